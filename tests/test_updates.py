"""Updates by themselves: tried beside the model in use, swapped while calls run, on trial, rolled back."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import tiny
from both import LONG
from catalogs import FIRST, LABELS, SECOND, Publisher
from commands import cli
from test_recertify import until

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

import edgeroute
from edgeroute import AsyncRouter, Audit, CatalogError, PolicyError, Router
from edgeroute.catalog import Catalog, Updater
from edgeroute.catalog.model_folder_and_downloads import Pointer
from edgeroute.errors import CatalogAway
from edgeroute.testing import fresh_runtimes
from edgeroute.tools.catalog_keys_and_publishing import publish

X = np.array([1, 0, 0, 0], np.float32)


@pytest.fixture
def publisher(tmp_path):
    made = Publisher(tmp_path)
    made.publish("1.0")
    return made


@pytest.fixture
def registers(monkeypatch):
    """Registers a class for files with a suffix, until the test ends: errors elsewhere list all suffixes."""

    def register(suffix, runtime):
        module = type(sys)("runtime_of_a_test")
        module.Runtime = runtime
        monkeypatch.setitem(sys.modules, module.__name__, module)
        edgeroute.register(suffix, "runtime_of_a_test:Runtime")

    with fresh_runtimes():
        yield register


@pytest.fixture
def device(publisher):
    """A device with the first version active, and no other published yet."""
    catalog = publisher.device()
    catalog.pull("doors")
    catalog.activate("doors")
    return catalog


def test_an_update_from_start_to_end(publisher, device):
    """Downloaded, tried, active, on trial, confirmed; versions that nobody needs are deleted then."""
    told = []
    with Router(device.path("doors")) as router:
        updater = Updater(device, "doors", router, trial_runs=10, on_step=told.append)
        assert updater.step().did == "nothing"
        for version, weights, value in (("1.1", SECOND, "c"), ("1.2", FIRST, "a")):
            publisher.publish(version, weights)
            assert updater.step().did == "updated"
            assert device.active("doors").trial == 1
            assert updater.step().text == f"doors {version} is on trial"
            assert updater.look().did == "on_trial"
            assert [router.infer(X).value for _ in range(10)] == [value] * 10
            assert updater.look().did == "confirmed"
            assert updater.look().did == "nothing"
    assert [step.did for step in told] == ["updated", "confirmed", "updated", "confirmed"]
    assert device.store.versions("doors") == ["1.1", "1.2"]


@pytest.mark.parametrize("fault", ["broken", "canaries", "card", "no canaries"])
def test_a_version_that_fails_is_never_in_use(publisher, device, fault):
    """It fails beside the one in use, which answers meanwhile and after; it is not tried again."""
    model = tiny.linear(publisher.home / "doors.onnx", weights=SECOND, card={"labels": LABELS})
    canaries = publisher.home / "canaries.npz"
    np.savez(canaries, inputs=np.eye(4, dtype=np.float32)[:3], answers=["c", "a", "a" if fault == "canaries" else "b"])
    if fault == "broken":
        model.write_bytes(b"no model")
    if fault == "card":
        model.with_suffix(".json").write_text("{")
    if fault == "no canaries":
        canaries.write_bytes(b"no file of arrays")
    publish(publisher.catalog, "doors", "1.1", [model], keys=publisher.keys, canaries=canaries)
    with Router(device.path("doors")) as router:
        updater = Updater(device, "doors", router)
        step = updater.step()
        assert (step.did, step.version) == ("refused", "1.1"), step
        assert router.infer(X).value == "a"
        assert "not tried again" in updater.step().text
    assert device.active("doors").version == "1.0"
    assert dict(device.status()[0].refused)["1.1"]


def test_a_policy_file_that_is_wrong_is_not_the_versions_fault(publisher, device, tmp_path):
    """The version is tried again once somebody has mended the file."""
    policy = tmp_path / "doors.toml"
    text = f'mode = "only_edge"\n[edge]\npath = "{device.path("doors").as_posix()}"\n'
    policy.write_text(text)
    with Router.from_policy(policy) as router:
        updater = Updater(device, "doors", router)
        publisher.publish("1.1", SECOND)
        policy.write_text("mode = ")
        with pytest.raises(PolicyError):
            updater.step()
        assert device.active("doors") == Pointer("1.0")
        assert router.infer(X).value == "a"
        policy.write_text(text)
        assert updater.step().did == "updated"
        assert router.infer(X).value == "c"


def test_canaries_of_which_some_may_be_wrong(publisher, device):
    """And numbers that are close are right."""
    from edgeroute.catalog.catalog_client_and_updates import read_canaries, same

    np.savez(publisher.home / "c.npz", inputs=np.eye(4, dtype=np.float32)[:3], answers=["c", "a", "a"], most_wrong=1)
    publisher.publish("1.1", SECOND, canaries=publisher.home / "c.npz")
    with Router(device.path("doors")) as router:
        assert Updater(device, "doors", router).step().did == "updated"
    assert same(np.float32(1.0004), 1.0)
    assert not same(1.1, 1.0)
    assert not same("1.0", 1.0)
    assert same(3, "3")
    np.savez(publisher.home / "c.npz", **{"input:a": np.zeros((2, 3)), "input:b": np.ones(2), "answers": [0.5, 0.5]})
    found = read_canaries(publisher.home / "c.npz")
    assert {name: value.shape for name, value in found.inputs[0].items()} == {"a": (3,), "b": ()}


@pytest.mark.parametrize("count", [1, 3])
def test_canaries_of_inputs_of_other_lengths(tmp_path, count):
    """They are refused as a file's fault, where a name has fewer or more of them than there are answers."""
    from edgeroute.catalog.catalog_client_and_updates import read_canaries

    np.savez(tmp_path / "c.npz", **{"input:a": np.zeros((2, 3)), "input:b": np.ones(count), "answers": [0.5, 0.5]})
    with pytest.raises(CatalogError, match="no canary inputs with answers"):
        read_canaries(tmp_path / "c.npz")


def test_runs_that_fail_roll_it_back(publisher, device):
    """A version for other inputs, which no canary input told: the old one is back, and it is not tried again."""
    model = tiny.linear(publisher.home / "doors.onnx", size=5, weights=np.eye(5, 3), card={"labels": LABELS})
    publish(publisher.catalog, "doors", "1.1", [model], keys=publisher.keys)
    with Router(device.path("doors"), lambda x: "b", threshold=0.5) as router:
        updater = Updater(device, "doors", router, trial_runs=20, max_errors=0.1)
        assert updater.step().did == "updated"
        failed = 0
        while updater.look().did == "on_trial":
            with pytest.raises(ValueError, match="expected"):
                router.infer(X)
            failed += 1
        assert failed == 3
        assert router.infer(X).value == "a"
        assert "of its first 3 runs failed" in updater.step().text
    assert (device.active("doors").version, device.active("doors").trial) == ("1.0", 0)


def test_failures_that_were_there_before_are_no_reason(publisher, device):
    """An application that sends bad input now and then did so to the version before, too."""

    def some(router):
        for i in range(20):
            with contextlib.suppress(ValueError):
                router.infer(X if i % 5 else "no input")

    with Router(device.path("doors")) as router:
        updater = Updater(device, "doors", router, trial_runs=20)
        some(router)
        publisher.publish("1.1", SECOND)
        assert updater.step().did == "updated"
        some(router)
        assert updater.look().did == "confirmed"


def test_several_processes_with_one_store(publisher, device):
    """Those that start beside one that is alive are no sign that it has ended; nor is what it tries now refused."""
    publisher.publish("1.1", SECOND)
    device.pull("doors")
    device.activate("doors", "1.1", trial=1)
    with contextlib.ExitStack() as stack:
        router = stack.enter_context(Router(device.path("doors")))
        alive = [Updater(device, "doors", router) for _ in range(5)]
        device.mark("doors", tried="1.2")
        alive.append(Updater(device, "doors", router))
        now = device.active("doors")
        assert (now.version, now.trial, now.refused) == ("1.1", 2, ())
        for updater in alive:
            updater.close()
        Updater(device, "doors", router).close()
        now = device.active("doors")
        assert (now.trial, dict(now.refused)) == (3, {"1.2": "the process ended while it was tried"})


def test_a_version_before_that_is_gone(publisher, device):
    """There is nothing to go back to: the one on trial stays, and the program starts."""
    publisher.publish("1.1", SECOND)
    device.pull("doors")
    device.activate("doors", "1.1", trial=3)
    device.remove("doors", "1.0")
    with Router(device.path("doors")) as router:
        Updater(device, "doors", router).close()
        assert router.infer(X).value == "c"
    assert device.active("doors").trial == 0


def test_an_alarm_of_the_audits_rolls_it_back(publisher, device):
    """The certificate of the new version holds, and the world is another one."""
    from edgeroute.confidence import calibrate

    def cloud(x):
        return "b"  # never what the edge says

    with Router(
        tiny.linear(publisher.home / "doors.onnx", weights=SECOND, card={"labels": LABELS}), cloud, threshold=0.5
    ) as router:
        prints = router.fingerprints()
    good = np.ones(4000, bool)
    made = calibrate(np.linspace(0, 1, 4000), good, max_loss=0.05, fingerprints=prints)
    made.save(publisher.home / "certificate.json")
    publisher.publish("1.1", SECOND, certificate=publisher.home / "certificate.json")
    with Router(device.path("doors"), cloud, threshold=None, mode="prefer_cloud", audit=Audit(share=1.0, scene=1)) as router:
        updater = Updater(device, "doors", router, trial_runs=10**6)
        assert updater.step().did == "updated"
        assert router.engine.snapshot.certificates[0].broken() is None

        def rolled_back():
            router.infer_many([X] * 50, mode="prefer_edge")
            return updater.look().did == "rolled_back"

        until(rolled_back)
    assert device.active("doors").version == "1.0"
    assert "differ" in dict(device.active("doors").refused)["1.1"]


def test_a_certificate_for_another_model_refuses_the_version(publisher, device):
    from test_catalog import certified, cloud

    path = certified(publisher, FIRST, cloud)
    publisher.publish("1.1", SECOND, certificate=path)
    with Router(device.path("doors"), cloud, mode="prefer_cloud") as router:
        step = Updater(device, "doors", router).step()
        assert step.did == "refused"
        assert "does not hold here: it was made for edge model" in step.text


def test_a_pinned_model_is_left_alone(publisher, device):
    publisher.publish("1.1", SECOND)
    device.pin("doors")
    with Router(device.path("doors")) as router:
        assert "pinned to 1.0" in Updater(device, "doors", router).step().text


def test_what_others_activate_is_followed(publisher, device):
    """By the command line, say: the router has it at the next look."""
    publisher.publish("1.1", SECOND)
    with Router(device.path("doors")) as router:
        updater = Updater(device, "doors", router)
        Catalog(publisher.home / "store").pull("doors")
        Catalog(publisher.home / "store").activate("doors")
        assert updater.look().did == "updated"
        assert router.infer(X).value == "c"
        assert updater.look().did == "nothing"


def test_an_updater_in_a_thread(publisher, device):
    """It looks at once, and at its interval; a catalog that is away costs nothing but a line in the log."""
    told = []
    with Router(device.path("doors")) as router:
        publisher.catalog.rename(publisher.home / "away")
        with Updater(device, "doors", router, every_s=0.1, trial_runs=1, on_step=told.append):
            assert router.infer(X).value == "a"
            (publisher.home / "away").rename(publisher.catalog)
            publisher.publish("1.1", SECOND)
            until(lambda: router.infer(X).value == "c", every=0.01)
            until(lambda: router.infer(X) and [step.did for step in told] == ["updated", "confirmed"], every=0.01)
    with pytest.raises(CatalogAway):
        Catalog(publisher.home / "store", publisher.home / "nowhere").refresh()


def test_wrong_arguments(device, publisher, tmp_path):
    with Router(tiny.linear(tmp_path / "m.onnx")) as router, pytest.raises(PolicyError, match="no doors of this catalog"):
        Updater(device, "doors", router)
    with Router(device.path("doors")) as router:
        for wrong in ({"every_s": 0}, {"trial_runs": 0}, {"max_errors": 2}):
            with pytest.raises(PolicyError, match=next(iter(wrong))):
                Updater(device, "doors", router, **wrong)


PROGRAM = """
import os, signal, sys
import edgeroute
from edgeroute import Router
from edgeroute.catalog import Catalog, Updater

class Deadly:
    name = "deadly"
    def __init__(self, path):
        self.path = path
    def run(self, inputs, cancel=None):
        if open(self.path).read() == "bad":
            os.kill(os.getpid(), signal.SIGKILL)
        return [("a", 0.9) for _ in inputs]
    def load(self):
        if open(self.path).read() == "worse":
            os.kill(os.getpid(), signal.SIGKILL)

sys.modules["deadly"] = type(sys)("deadly")
sys.modules["deadly"].Deadly = Deadly
edgeroute.register(".deadly", "deadly:Deadly")
catalog = Catalog(sys.argv[1])
with Router(catalog.path("doors")) as router:
    updater = Updater(catalog, "doors", router)
    print(updater.step().text, flush=True)
    print(router.infer(1).source, catalog.active("doors").version, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "deaths"), [("worse", 1), ("bad", 3)])
def test_a_version_that_kills_the_process(publisher, tmp_path, fault, deaths):
    """While it is tried, the next start has the old version, and leaves the new one alone; on trial, after three starts."""
    import edgeroute

    edgeroute.register(".deadly", "deadly:Deadly")
    model, device = tmp_path / "m.deadly", publisher.device()
    for version, text in (("1", "good"), ("2", fault)):
        model.write_text(text)
        publish(publisher.catalog, "doors", version, [model], keys=publisher.keys)
        if version == "1":
            device.pull("doors")
            device.activate("doors")
    codes = []
    while 0 not in codes:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "store")], capture_output=True, text=True, check=False, timeout=100
        )
        codes.append(done.returncode)
        assert len(codes) < 6, done.stderr
    assert codes == [-signal.SIGKILL] * deaths + [0], done.stderr
    assert done.stdout.splitlines()[1] == "edge 1"
    assert "2" in dict(device.active("doors").refused)


@pytest.mark.slow
# -------------------------------------------------------------------------------------------------------------- under load
@pytest.mark.parametrize("kind", ["threads", pytest.param("tasks", marks=pytest.mark.slow)])
def test_a_swap_under_load_loses_no_request(publisher, device, kind):
    """Each request is answered by one of the two models, and what follows a swap by the new one; old models are freed."""
    publisher.publish("1.1", SECOND)
    device.pull("doors")
    swaps = 20

    def swap(router, i):
        device.activate("doors", ("1.1", "1.0")[i % 2])
        router.reload()

    if kind == "threads":
        with Router(device.path("doors")) as router:
            counts, done = [0] * 4, threading.Event()
            wrong = []

            def ask(n):
                while not done.is_set():
                    answer = router.infer(X)
                    counts[n] += 1
                    if answer.value not in {"a", "c"} or answer.degraded:
                        wrong.append(answer)

            threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
            for thread in threads:
                thread.start()
            for i in range(swaps):
                before = sum(counts)
                swap(router, i)
                assert router.infer(X).value == "ca"[i % 2]
                until(lambda before=before: sum(counts) > before + 4)
            done.set()
            for thread in threads:
                thread.join(LONG)
            assert not wrong
            assert router.stats().requests == sum(counts) + swaps
            assert router.stats().unanswered == 0
        return

    async def main():
        count, wrong = 0, []
        async with AsyncRouter(device.path("doors")) as router:

            async def ask(until_done):
                nonlocal count
                while not until_done.is_set():
                    answer = await router.infer(X)
                    count += 1
                    if answer.value not in {"a", "c"}:
                        wrong.append(answer)
                    await asyncio.sleep(0)

            done = asyncio.Event()
            tasks = [asyncio.create_task(ask(done)) for _ in range(4)]
            for i in range(swaps):
                await asyncio.to_thread(swap, router, i)
                assert (await router.infer(X)).value == "ca"[i % 2]
            done.set()
            await asyncio.gather(*tasks)
            assert not wrong
            assert router.stats().requests == count + swaps

    asyncio.run(main())


def test_a_swap_while_a_native_model_runs(tmp_path, publisher, registers):
    """What does not bear being closed under a run is closed after it; the new version answers others meanwhile."""
    running, go, closed = threading.Event(), threading.Event(), []

    class Slow:
        def __init__(self, path):
            self.path, self.name = path, "slow"
            self.text = Path(path).read_text()

        def run(self, inputs, cancel=None):
            if self.text == "old" and inputs[0] == "wait":
                running.set()
                assert go.wait(LONG)
                assert self.text not in closed
            return [(self.text, 0.9) for _ in inputs]

        def close(self):
            closed.append(self.text)

    registers(".slow", Slow)
    device = publisher.device()
    for version, text in (("1", "old"), ("2", "new")):
        (tmp_path / "m.slow").write_text(text)
        publish(publisher.catalog, "gates", version, [tmp_path / "m.slow"], keys=publisher.keys)
        device.pull("gates")
    device.activate("gates", "1")
    with Router(device.path("gates")) as router:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(router.infer("wait").value))
        thread.start()
        assert running.wait(LONG)
        device.activate("gates", "2")
        router.reload()
        assert router.infer("x").value == "new"
        assert closed == []
        go.set()
        thread.join(LONG)
        assert answers == ["old"]
        assert closed == ["old"]


def test_calls_do_not_wait_for_a_warm_up(tmp_path, publisher, device, registers):
    """A version that takes long to load is loaded beside the one in use, which answers meanwhile, thresholds and all."""
    loading, go = threading.Event(), threading.Event()

    class Heavy:
        def __init__(self, path):
            self.path, self.name, self.heavy = path, "heavy", Path(path).read_text() == "heavy"

        def load(self):
            if self.heavy:
                loading.set()
                assert go.wait(LONG)

        def run(self, inputs, cancel=None):
            return [("heavy" if self.heavy else "light", 0.9) for _ in inputs]

    registers(".heavy", Heavy)
    for version in ("light", "heavy"):
        (tmp_path / "m.heavy").write_text(version)
        publish(publisher.catalog, "gates", version, [tmp_path / "m.heavy"], keys=publisher.keys)
        device.pull("gates")
    device.activate("gates", "light")
    with Router(device.path("gates")) as router:
        device.activate("gates", "heavy")
        thread = threading.Thread(target=router.reload)
        thread.start()
        assert loading.wait(LONG)
        router.engine.refresh_at = 0.0  # a call looks at the certificates' age, too
        assert [router.infer(1).value for _ in range(200)] == ["light"] * 200
        go.set()
        thread.join(LONG)
        assert router.infer(1).value == "heavy"


def test_the_command_that_updates(publisher, device, monkeypatch):
    """It tries the newest version with a policy, in its own process, and activates it."""
    policy = publisher.home / "policy.json"
    policy.write_text(json.dumps({"mode": "only_edge", "edge": {"path": "store/doors.active"}}))

    def update(code=0):
        ended, out, err = cli("models", "update", "doors", "--policy", policy, "--store", publisher.home / "store", "--json")
        assert ended == code, out + err
        return json.loads(out)

    assert update()["did"] == "nothing"
    publisher.publish("1.1", SECOND)
    assert update()["did"] == "updated"
    assert device.active("doors")[:2] == ("1.1", "1.0")
    model = tiny.linear(publisher.home / "doors.onnx")
    model.write_bytes(b"broken")
    publish(publisher.catalog, "doors", "1.2", [model], keys=publisher.keys)
    assert update(4)["did"] == "refused"
    assert update()["did"] == "nothing"
