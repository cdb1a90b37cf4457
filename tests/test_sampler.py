"""Sensors are read in the background, by age: also while no request comes, by few threads for many routers, and in a child."""

import os
import threading
import time
from pathlib import Path

import pytest
from both import LONG, flat, unsure

from edgeroute import DeviceSensors, Reading, Router, Rule
from edgeroute.observe import device_sensors_and_sampler as system
from edgeroute.observe.device.power_draw_and_batteries import Battery
from edgeroute.observe.device_sensors_and_sampler import SAMPLER, Sampler, period_s
from edgeroute.router import engine_assembly as assemble
from edgeroute.router.policy_reload import replace

LOW_RULE = [Rule("battery", "only_edge", 0.2)]
FULL, LOW = Reading(battery=0.9), Reading(battery=0.1)


pytestmark = pytest.mark.usefixtures("leaves_nothing")


@pytest.fixture
def quick(monkeypatch):
    """Sensors are due at once again."""
    monkeypatch.setattr("edgeroute.observe.plan_facts_energy_rules.READS_S", 0.005)


def cloud(_):
    return "cloud"


class Device:
    """Says what it is told to; `again()` returns once it has been read anew, from the beginning to the end."""

    def __init__(self, says=FULL):
        self.says, self.reads = says, 0
        self.changed = threading.Condition()

    def __call__(self):
        """What it says."""
        with self.changed:
            self.reads += 1
            self.changed.notify_all()
        return self.says

    def again(self, times=3):
        """A reading that began after this call has been taken up: another one has begun since."""
        with self.changed:
            until = self.reads + times
            assert self.changed.wait_for(lambda: self.reads >= until, LONG)


def make(device, **policy):
    return Router(unsure, cloud, **flat(**{"threshold": 0.5, "rules": LOW_RULE, "sensors": device, **policy}))


def ours():
    """Names of the threads in which sensors are read."""
    return [t.name for t in threading.enumerate() if t.name in {"edgeroute-sampler", "edgeroute-sensors"}]


def wait_for(what):
    """Waits until it is true."""
    end = time.monotonic() + LONG
    while not what():
        assert time.monotonic() < end
        threading.Event().wait(0.002)


@pytest.mark.usefixtures("quick")
def test_the_first_request_after_an_idle_hour_decides_by_what_is_now():
    """Nobody has asked for anything meanwhile."""
    device = Device(FULL)
    with make(device) as router:
        assert router.infer(1).source == "cloud"
        device.says = LOW
        device.again()
        assert router.infer(1).source == "edge"
        device.says = FULL
        device.again()
        assert router.infer(1).source == "cloud"


@pytest.mark.usefixtures("quick")
def test_sensors_that_no_policy_uses_are_not_read():
    """There is no thread for them either; a reload changes it, in both directions, without a request."""
    device = Device(LOW)
    with make(device, rules=None) as router:
        assert router.infer(1).source == "cloud"
        assert (device.reads, ours()) == (0, [])
        engine = router.engine

        def use(rules):
            replace(engine, engine.arguments._replace(rules=rules), engine.spending.limits, metered=False)

        use(LOW_RULE)
        device.again()
        assert router.infer(1).source == "edge"
        use([])
        wait_for(lambda: "edgeroute-sampler" not in ours())
    assert len(SAMPLER) == 0


def test_many_routers_share_a_few_threads_and_the_devices_sensors(monkeypatch, tmp_path):
    """300 routers, which are read again and again."""
    reads, sensors, read = [], DeviceSensors(tmp_path, fresh_s=3600.0), Battery.read
    monkeypatch.setattr(Battery, "read", lambda part: reads.append(1) or read(part))
    monkeypatch.setattr(system, "system_sensors", lambda: sensors)
    monkeypatch.setattr("edgeroute.observe.plan_facts_energy_rules.READS_S", 3600.0)
    routers = [make(None) for _ in range(300)]
    try:
        assert len(SAMPLER) == 300
        assert len(ours()) == 1, "the sampler alone: they have just been read"
        for router in routers:
            router.engine.observer.reads_at = 0.0
        SAMPLER.add(routers[0].engine)  # something is due sooner than it was
        wait_for(lambda: all(0.0 < router.engine.observer.reads_at < float("inf") for router in routers))
        assert len(ours()) <= 9
        assert len(reads) == 1
    finally:
        for router in routers:
            router.close()
    assert (len(SAMPLER), ours()) == (0, [])


@pytest.mark.usefixtures("quick")
def test_a_function_that_hangs_holds_up_only_its_own_router():
    """Its last reading counts; another router's are read on."""
    gate, began = threading.Event(), threading.Event()

    class Hangs(Device):
        def __call__(self):
            if self.reads:
                began.set()
                assert gate.wait(LONG)
            return super().__call__()

    hangs, device = Hangs(LOW), Device(FULL)
    try:
        with make(hangs) as stuck, make(device) as other:
            assert began.wait(LONG)
            device.again(times=20)
            assert hangs.reads == 1
            assert stuck.infer(1).source == "edge"
            assert other.infer(1).source == "cloud"
            gate.set()
            hangs.again()
    finally:
        gate.set()


@pytest.mark.usefixtures("quick")
def test_a_function_that_hangs_at_once_does_not_hold_up_the_router(monkeypatch):
    """It is made all the same; once the function answers, it is read on."""
    monkeypatch.setattr(assemble, "FIRST_S", 0.01)
    gate = threading.Event()

    class Hangs(Device):
        def __call__(self):
            assert gate.wait(LONG)
            return super().__call__()

    hangs = Hangs(LOW)
    try:
        with make(hangs) as router:
            assert hangs.reads == 0
            assert router.infer(1).source == "cloud"
            gate.set()
            hangs.again()
            assert router.infer(1).source == "edge"
    finally:
        gate.set()


@pytest.mark.usefixtures("quick")
def test_a_router_that_is_closed_or_dropped_is_not_read_any_more():
    """The sampler does not keep it."""
    first, second = Device(), Device()
    router = make(second)
    with make(first):
        first.again()
    reads = first.reads
    second.again()
    assert first.reads <= reads + 1, "one may have been under way"
    assert len(SAMPLER) == 1
    held = [router]
    del router
    with pytest.warns(ResourceWarning, match="unclosed router"):
        held.clear()
    wait_for(lambda: ours() == [])


def test_without_a_thread_it_is_tried_again(monkeypatch):
    """Once there are threads again."""
    monkeypatch.setattr("edgeroute.observe.device_sensors_and_sampler.AGAIN_S", 0.005)
    device = Device(FULL)
    with make(device) as router:
        observer = router.engine.observer
        with monkeypatch.context() as patch:
            patch.setattr("edgeroute.system.thread_pool_and_workers.ThreadPool.submit_later", lambda *_: False)
            observer.reads_at = 0.0
            assert router.infer(1).source == "cloud"
            assert 0.0 < observer.reads_at < float("inf")
            assert device.reads == 1
        device.says = LOW
        wait_for(lambda: router.infer(1).source == "edge")


def test_without_its_own_thread_requests_have_them_read(monkeypatch):
    """As on a system that is out of threads when the router is made."""

    def none(_):
        raise RuntimeError("can't start new thread")

    device = Device(FULL)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none)
        router = make(device)
    with router:
        assert ours() == []
        device.says = LOW
        router.engine.observer.reads_at = 0.0
        wait_for(lambda: router.infer(1).source == "edge")
        wait_for(lambda: "edgeroute-sampler" in ours())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="it has no fork")
@pytest.mark.usefixtures("quick")
def test_a_child_reads_its_own(tmp_path):
    """Its first request starts that; the parent's goes on."""
    device = Device(FULL)
    with make(device) as router:
        device.again()
        child = os.fork()
        if not child:
            code = 1
            try:
                assert len(SAMPLER) == 0
                device.changed = threading.Condition()
                assert router.infer(1).source == "cloud"
                device.says = LOW
                device.again()
                assert router.infer(1).source == "edge"
                assert len(SAMPLER) == 1
                router.close()
                assert ours() == []
                code = 0
            except BaseException as e:  # noqa: BLE001 - the parent has it
                Path(tmp_path / "said").write_text(repr(e))
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0, Path(tmp_path / "said").read_text()
        device.again()


@pytest.mark.usefixtures("quick")
def test_routers_come_and_go_in_many_threads():
    """At the end there is nothing."""
    devices, failed = [Device() for _ in range(4)], []

    def some(device):
        try:
            for _ in range(15):
                with make(device) as router:
                    router.infer(1)
        except Exception as e:  # noqa: BLE001 - the test has it
            failed.append(e)

    threads = [threading.Thread(target=some, args=(device,)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not failed
    assert len(SAMPLER) == 0
    wait_for(lambda: ours() == [])


def test_the_period_is_the_sensors_own():
    """From a second to a minute; other values are refused, or brought into this range."""
    from edgeroute import PolicyError

    assert period_s(DeviceSensors(every_s=1), 10.0) == 1.0
    assert period_s(Reading, 10.0) == 10.0
    for given, taken in ((0.0, 1.0), (5, 5.0), (1e9, 60.0), (float("nan"), 1.0), ("1s", 10.0)):
        device = Device()
        device.every_s = given
        assert period_s(device, 10.0) == taken
    for wrong in (0.5, 61, float("nan"), "1s", None):
        with pytest.raises(PolicyError, match="every 1 to 60 seconds"):
            DeviceSensors(every_s=wrong)
    device, begun = Device(), time.monotonic()
    device.every_s = 60.0
    with make(device) as router:
        assert router.engine.observer.reads_at >= begun + 60


def test_the_period_of_a_policy(tmp_path):
    """It goes before the sensors' own, from a second to a minute; a reload changes it."""
    from edgeroute import PolicyError

    device, policy = Device(), tmp_path / "policy.toml"
    device.every_s = 1.0
    text = 'sensors_every = "60s"\nthreshold = 0.5\n[[rule]]\nof = "battery"\nenter = "20%"\nthen = "only_edge"\n[cloud]\nurl = "http://127.0.0.1:1/v2/models/m"\n'
    policy.write_text(text)
    begun = time.monotonic()
    with Router.from_policy(policy, edge=unsure, cloud=cloud, sensors=device) as router:
        assert router.engine.observer.reads_at >= begun + 60
        policy.write_text(text.replace("60s", "20s"))
        router.reload()
        router.engine.read_sensors()
        read = []
        wait_for(lambda: read.append(router.engine.observer.reads_at) or read[-1] < float("inf"))  # inf: it is being read
        assert begun + 20 <= read[-1] <= time.monotonic() + 20
    begun = time.monotonic()
    with make(device, sensors_every=50) as router:
        assert router.engine.observer.reads_at >= begun + 50
    for wrong in ("500ms", "2m"):
        policy.write_text(text.replace("60s", wrong))
        with pytest.raises(PolicyError, match='sensors_every: expected a duration from "1s" to "60s"'):
            Router.from_policy(policy, edge=unsure, cloud=cloud)
    for number in (0.5, 61, float("inf")):
        with pytest.raises(PolicyError, match="sensors_every= takes seconds, from 1 to 60"):
            make(device, sensors_every=number)
    for other in (0, "2s", float("nan")):
        with pytest.raises(PolicyError, match="sensors_every= takes seconds, a number"):
            make(device, sensors_every=other)


def test_it_is_one_for_the_process():
    """And begins empty."""
    assert isinstance(SAMPLER, Sampler)
    assert (len(Sampler()), ours()) == (0, [])
