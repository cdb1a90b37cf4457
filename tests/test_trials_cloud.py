"""Trials of a cloud: which endpoint a request gets, what comes of each arm, and the guardrail."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import numpy as np
import pytest
import tiny
from both import LONG, Tasks, Threads
from commands import cli

from edgeroute import AsyncRouter, Egress, Function, Limits, Options, PolicyError, Router, Trace, Trial, Unreachable
from edgeroute.core.plan import Facts, plan
from edgeroute.core.policy_egress_and_options import Policy, Target
from edgeroute.core.sequential_tests import UnitArmTest
from edgeroute.router.trial_arms_and_guardrail import RunningTrial
from edgeroute.testing import FakeModel


def unsure(x):
    return "cat", 0.1


def always(value, **terms):
    return Function(lambda x: (value, 1.0), **terms)


def broken(x):
    raise Unreachable("away")


def arms_of(router):
    return {arm.arm: arm for arm in router.stats().arms}


def stopped(router):
    """Endpoint on trial -> why the guardrail stopped it, of those that it stopped."""
    return {one.names[1]: one.stopped for one in router.engine.trials.all if one.stopped}


def tried(clouds, split=None, hidden=None, **settings):
    """A router's arguments: the first endpoint in use, and the others on trial."""
    for name, one in clouds.items():
        one.name = name
    first, *_ = clouds.values()
    trials = [Trial(cloud=clouds[name], share=share, **settings) for name, share in (split or {}).items()]
    trials += [Trial(cloud=clouds[name], shown=False, share=share, **settings) for name, share in (hidden or {}).items()]
    return {"cloud": first, "trial": trials}


def router_of(given, **more):
    return Router(unsure, threshold=0.8, **given, **more)


def test_a_share_of_the_requests_gets_another_endpoint_and_each_arm_is_counted():
    clouds = {"cloud": always("cat", usd_per_call=0.002), "next": always("dog", usd_per_call=0.001)}
    arms = tried(clouds, {"next": 0.25}, more_differs=1)
    with router_of(arms) as router:
        answers = [router.infer(i) for i in range(400)]
        assert {one.leg for one in answers} == {"cloud", "next"}
        told = arms_of(router)
    got = sum(one.leg == "next" for one in answers)
    assert 60 < got < 140
    assert (told["next"].requests, told["cloud"].requests) == (got, 400 - got)
    assert told["next"].differs.share == 1
    assert told["cloud"].differs.share == 0
    assert 0 < told["cloud"].differs.high < 0.03
    assert told["next"].usd.share == pytest.approx(0.001)
    assert told["cloud"].usd.share == pytest.approx(0.002)
    assert (told["next"].share, told["cloud"].share) == (0.25, 0.75)
    assert told["cloud"].p50_s is not None


def test_a_key_stays_in_its_arm_while_the_share_grows():
    clouds = {"cloud": always("cat"), "next": always("cat")}
    kept = set()
    for share in (0.1, 0.3, 0.7, 1.0):
        arms = tried(clouds, {"next": share}, by=lambda x: x % 50)
        with router_of(arms) as router:
            first = {i: router.infer(i).leg for i in range(50)}
            assert {i: router.infer(i + 50).leg for i in range(50)} == first
        now = {i for i, source in first.items() if source == "next"}
        assert kept <= now
        kept = now
    assert len(kept) == 50


def test_a_device_is_in_one_arm():
    clouds = {"cloud": always("cat"), "next": always("cat")}
    seen = set()
    for device in range(30):
        with router_of(tried(clouds, {"next": 0.5}, device=str(device))) as router:
            sources = {router.infer(i).leg for i in range(5)}
            assert len(sources) == 1
            seen |= sources
    assert seen == {"cloud", "next"}


def test_an_arm_that_fails_is_stopped_and_its_requests_have_the_first_ones_answer():
    clouds = {"cloud": always("cat"), "next": Function(broken, health=lambda: None)}
    told = []
    with router_of(tried(clouds, {"next": 0.5}), trace=told.append) as router:
        for i in range(400):
            assert router.infer(i).leg == "cloud"
        assert "more calls that fail than cloud" in stopped(router)["next"]
        calls = arms_of(router)["next"].requests
        assert {router.infer(i).leg for i in range(100)} == {"cloud"}
        assert arms_of(router)["next"].requests == calls
        assert "more calls that fail" in arms_of(router)["next"].stopped


def test_an_arm_that_disagrees_is_stopped():
    clouds = {"cloud": always("cat"), "next": always("dog")}
    with router_of(tried(clouds, {"next": 0.5})) as router:
        for i in range(300):
            router.infer(i)
        assert "differ from the edge's" in stopped(router)["next"]
        assert router.infer(0).leg == "cloud"


def test_in_shadow_nobody_sees_it_and_its_answers_are_compared():
    seen, done = [], threading.Semaphore(0)

    def trial(x):
        seen.append(x)
        done.release()
        return "dog" if x % 2 else "cat", 1.0

    clouds = {"cloud": always("cat"), "trial": Function(trial)}
    with router_of(tried(clouds, hidden={"trial": 1.0}, more_differs=1)) as router:
        for i in range(20):
            assert router.infer(i).leg == "cloud"
            assert done.acquire(timeout=LONG)
            while router.engine.trials.under_way:
                threading.Event().wait(0.001)
        told = arms_of(router)["trial"]
    assert sorted(seen) == [*range(20)]
    assert (told.requests, told.compared, told.differs.share, told.shown) == (20, 20, 0.5, False)


def test_an_arm_in_shadow_that_fails_is_seen_to(tmp_path):
    clouds = {"cloud": always("cat"), "trial": Function(broken, health=lambda: None)}
    with router_of(tried(clouds, hidden={"trial": 1.0}), state=tmp_path) as router:
        until = monotonic() + 30
        while not arms_of(router)["trial"].failed.share:
            assert router.infer(1).leg == "cloud"
            assert monotonic() < until
        told = arms_of(router)["trial"]
        assert (told.failed.share, told.compared, told.stopped) == (1, 0, "")
    line = next(line for line in cli("status", "--state", tmp_path)[1].splitlines() if "trial" in line)
    assert "100.00 %, hidden" in line
    assert "100.00 % (" in line, "of its calls have failed"


def test_an_arm_in_shadow_that_differs_too_often_is_asked_no_more():
    clouds = {"cloud": always("cat"), "trial": always("dog")}
    with router_of(tried(clouds, hidden={"trial": 1.0})) as router:
        for _ in range(2000):
            router.infer(0)
            if stopped(router):
                break
        assert "hidden answers that differ from those of cloud" in stopped(router)["trial"]


def test_equal_arms_are_not_stopped():
    """Whenever one looks: the guardrail alarms on at most 5 % of such pairs, ever."""
    clouds = {"cloud": always("cat"), "next": always("cat")}
    with router_of(tried(clouds, {"next": 0.5})) as router:
        for i in range(1000):
            router.infer(i)
        assert not stopped(router)


def test_what_came_of_them_outlives_the_process(tmp_path):
    clouds = {"cloud": always("cat"), "next": always("dog")}
    arms = tried(clouds, {"next": 0.5})
    with router_of(arms, state=tmp_path) as router:
        for i in range(200):
            router.infer(i)
        before, why = arms_of(router), stopped(router)
    assert why
    with router_of(arms, state=tmp_path) as router:
        assert arms_of(router) == before
        assert stopped(router) == why
        assert router.infer(0).leg == "cloud"
    with router_of(tried(clouds, {"next": 0.5}, salt="another"), state=tmp_path) as router:
        assert arms_of(router)["cloud"].requests == 0


def test_figures_that_cannot_be_read_begin_anew(caplog):
    clouds = {"cloud": always("cat"), "next": always("dog")}
    with router_of(tried(clouds, {"next": 0.5})) as router:
        for i in range(200):
            router.infer(i)
        (one,) = router.engine.trials.all
        dumped = json.loads(json.dumps(router.engine.trials.dump()))
        for wrong in (dumped, [{**dumped[0], "tests": {}}], [{**dumped[0], "tallies": [[], []]}], [3, None]):
            again = RunningTrial(one.trial, one.names, one.names, tuple(one.of[4:6]), 1.0, 0.5, print)
            assert again.of == one.of
            again.load(wrong)
            assert (again.stopped == one.stopped != "") is (wrong is dumped)
            assert (again.stats() == one.stats()) is (wrong is dumped)
    assert caplog.text.count("cannot be read, and begin anew") == 2


def test_another_endpoint_that_has_an_arms_name_is_not_taken_for_it(tmp_path):
    clouds = {"cloud": always("cat"), "next": always("dog", version="1")}
    arms = tried(clouds, {"next": 0.5})
    with router_of(arms, state=tmp_path) as router:
        for i in range(200):
            router.infer(i)
        assert stopped(router)
    mended = tried({**clouds, "next": always("cat", version="2")}, {"next": 0.5})
    with router_of(mended, state=tmp_path) as router:
        assert (stopped(router), arms_of(router)["next"].requests) == ({}, 0)
        assert {router.infer(i).leg for i in range(50)} == {"cloud", "next"}


def test_a_reload_with_another_endpoint_begins_anew(tmp_path, fashion):
    path = tmp_path / "policy.toml"
    text = (
        POLICY.replace("edge.onnx", str(fashion / "edge.int8.onnx")) + '[[trial]]\ncloud = "next"\nshown = false\nshare = "10%"\n'
    )
    path.write_text(text)
    with Router.from_policy(path) as router:
        router.engine.trials.all[0].add_comparison(differs=True, b=True)
        path.write_text(text.replace(":1/b", ":1/c"))
        router.reload()
        assert arms_of(router)["next"].compared == 0
        router.engine.trials.all[0].add_comparison(differs=True, b=True)
        router.engine.snapshot.clouds[1].reader.labels = ("cat", "dog")  # as a server tells them
        router.reload()
        assert arms_of(router)["next"].compared == 1
        assert "127.0.0.1" not in json.dumps(router.engine.trials.dump())


def test_an_answer_names_its_arm_and_the_certificates_cloud(tmp_path):
    """A certificate is for the first endpoint: in another arm its label says so."""
    edge = Target("edge", "edge", 0.8, "loss <= 1 %", certified=True)
    targets = (edge, Target("cloud", "cloud"), Target("next", "cloud", trial=True))
    plain, other = plan(Policy(), targets, Facts()), plan(Policy(), targets, Facts(), arm="next")
    assert [leg.name for leg in plain.legs] == ["edge", "cloud"]
    assert [leg.name for leg in other.legs] == ["edge", "next", "cloud"]
    assert plain.legs[0].label == "loss <= 1 %"
    assert other.legs[0].label == "uncalibrated: its certificate is for another cloud than next"
    assert plan(Policy(), targets, Facts(), arm="next", mode="only_edge").legs[0].name == "edge"
    told = []
    with router_of(tried({"cloud": always("cat"), "next": always("cat")}, {"next": 1.0}), trace=Trace(told.append)) as router:
        assert router.infer(0).leg == "next"
    assert [leg["leg"] for leg in told[0]["plan"]] == ["edge", "next", "cloud"]
    assert told[0]["arm"] == "next"


def test_the_fingerprint_of_the_cloud_is_that_of_the_first(tmp_path):
    from edgeroute.router.policy_snapshot import fingerprints

    clouds = {"cloud": always("cat", version="1"), "next": always("cat", version="2")}
    alone = Router(unsure, cloud=clouds["cloud"], threshold=0.8)
    other = router_of(tried(clouds, {"next": 0.5}))
    with alone, other:
        assert fingerprints(alone.engine.snapshot, 0)["cloud"] == fingerprints(other.engine.snapshot, 0)["cloud"]


async def asked(given):
    async with AsyncRouter(unsure, threshold=0.8, **given) as router:
        return [(await router.infer(i)).leg for i in range(100)]


def test_asyncio_likewise():
    import asyncio

    sources = asyncio.run(asked(tried({"cloud": always("cat"), "next": always("cat")}, {"next": 0.5})))
    assert 20 < sources.count("next") < 80


def test_status_and_arms_show_them_of_one_device_and_of_many(tmp_path):
    clouds = {"cloud": always("cat", usd_per_call=0.002), "next": always("cat", usd_per_call=0.001)}
    folders = [tmp_path / str(device) for device in range(6)]
    for folder in folders:
        with router_of(tried(clouds, {"next": 0.5}, device=folder.name), state=folder) as router:
            for i in range(10):
                router.infer(i)
    code, out, _ = cli("status", "--state", folders[0], "--json")
    told = {arm["arm"]: arm for arm in json.loads(out)["trials"][0]["arms"]}
    assert code == 0
    assert sum(arm["requests"] for arm in told.values()) == 10
    assert "USD a call" in cli("status", "--state", folders[0])[1]
    code, out, _ = cli("arms", *folders, "--json")
    fleet = {arm["arm"]: arm for arm in json.loads(out)["trials"][0]["arms"]}
    assert code == 0
    assert fleet["cloud"]["requests"] + fleet["next"]["requests"] == 60
    assert fleet["next"]["requests"] % 10 == 0
    assert fleet["next"]["usd"][0] == pytest.approx(0.001)
    assert "USD a call" in cli("arms", *folders)[1]


class Odd:
    """A value that cannot be compared."""

    def __eq__(self, other):
        raise ZeroDivisionError

    __hash__ = None


def test_values_that_cannot_be_compared_touch_no_answer(caplog):
    clouds = {"cloud": Function(lambda x: (Odd(), 1.0)), "next": always("cat"), "third": always("cat")}
    with Router(lambda x: (Odd(), 0.1), **tried(clouds, {"next": 0.5}, hidden={"third": 1.0}), threshold=0.8) as router:
        for i in range(20):
            assert router.infer(i).leg in clouds
        assert sum(arm.requests for arm in arms_of(router).values() if arm.shown) == 20
    assert caplog.text.count("cannot be compared") == 1


class Uncopied:
    """A value that has no copy, as one with a lock or an open file."""

    def __deepcopy__(self, memo):
        raise TypeError("it has no copy")


def test_values_that_have_no_copy_are_compared_with_a_hidden_cloud(caplog):
    clouds = {"cloud": always(Uncopied()), "trial": always("cat")}
    with router_of(tried(clouds, hidden={"trial": 1.0}, more_differs=1)) as router:
        router.infer(0)
        while router.engine.trials.under_way:
            threading.Event().wait(0.001)
        assert arms_of(router)["trial"].compared == 1
    assert not caplog.records


def test_arrays_of_other_shapes_differ():
    """As boxes of two detectors: they are compared, and each call is counted."""
    clouds = {"cloud": Function(lambda x: (np.ones((2, 4)), 1.0)), "next": Function(lambda x: (np.ones((1, 4)), 1.0))}
    arms = tried(clouds, {"next": 0.5}, more_differs=1)
    with Router(lambda x: (np.ones((2, 4)), 0.1), threshold=0.8, **arms) as router:
        for i in range(40):
            router.infer(i)
        told = arms_of(router)
    assert told["cloud"].requests + told["next"].requests == 40
    assert (told["cloud"].differs.share, told["next"].differs.share) == (0, 1)


def test_many_callers_are_all_counted():
    clouds = {"cloud": always("cat"), "next": always("cat"), "third": always("cat")}
    with router_of(tried(clouds, {"next": 0.5}, hidden={"third": 0.5})) as router:
        with ThreadPoolExecutor(8) as pool:
            legs = [one.leg for one in pool.map(router.infer, range(400))]
        told = arms_of(router)
        assert {name: told[name].requests for name in ("cloud", "next")} == {name: legs.count(name) for name in ("cloud", "next")}


def test_a_batch_is_in_one_arm():
    clouds = {"cloud": always("cat"), "next": always("cat")}
    seen = set()
    with router_of(tried(clouds, {"next": 0.5})) as router:
        for _ in range(20):
            legs = {one.leg for one in router.infer_many([1, 2, 3])}
            assert len(legs) == 1
            seen |= legs
    assert seen == {"cloud", "next"}


def test_a_batch_is_one_observation_of_the_guardrail():
    """Its rows fail together, so that as one each they would be evidence that is not there."""
    clouds = {"cloud": always("cat"), "next": Function(lambda x: ("dog" if x % 2 else "cat", 1.0))}
    arms = tried(clouds, {"next": 0.5}, by=lambda x: x)
    errors, differs = (UnitArmTest(margin, 0.05 / 2) for margin in (0.02, 0.1))
    with router_of(arms) as router:
        for i in range(20):
            leg = router.infer_many([*range(i, i + 100)])[0].leg
            errors.add(0.0, b=leg == "next", unit=str(i))
            differs.add(0.5 * (leg == "next"), b=leg == "next", unit=str(i))
        told, tests = arms_of(router), router.engine.trials.dump()[0]["tests"]
    assert [tests[name]["tests"] for name in ("more_errors", "more_differs")] == [
        one.dump()["tests"] for one in (errors, differs)
    ]
    assert differs.dump()["tests"][0]["pairs"] > 3
    assert told["cloud"].requests + told["next"].requests == 2000
    assert told["next"].compared == told["next"].requests
    assert told["next"].differs.share == 0.5


def test_an_arm_whose_batches_fail_is_stopped():
    clouds = {"cloud": always("cat"), "next": Function(broken)}
    with router_of(tried(clouds, {"next": 0.5})) as router:
        for _ in range(400):
            router.infer_many([1, 2, 3])
        assert "more calls that fail" in stopped(router)["next"]


def test_the_page_of_an_evaluation_has_them_and_asks_the_first_alone(tmp_path):
    asked = []

    def trial(x):
        asked.append(x)
        return "dog", 1.0

    clouds = {"cloud": always("cat", usd_per_call=0.002), "next": Function(trial)}
    with router_of(tried(clouds, {"next": 0.5}, more_differs=1)) as router:
        for i in range(20):
            router.infer(i)
        seen = len(asked)
        result = router.evaluate([*range(30)], ["cat"] * 30)
        assert len(asked) == seen
        assert [arm["arm"] for arm in result.as_dict()["arms"]] == ["cloud", "next"]
        assert "Trials in operation" in result._repr_html_()  # private: the name is Jupyter's


def test_three_endpoints_share_the_requests():
    """Each has its own share, and a share that grows takes nobody out of its arm."""
    clouds = {name: always("cat") for name in ("cloud", "next", "third")}

    def legs(share):
        with router_of(tried(clouds, {"next": share, "third": 0.3}, by=lambda x: x)) as router:
            return [router.infer(i).leg for i in range(1000)]

    one, other = legs(0.2), legs(0.6)
    for name, share, found in (("next", 0.2, one), ("third", 0.3, one), ("next", 0.6, other), ("third", 0.3, other)):
        assert abs(found.count(name) / 1000 - share) < 0.06, name
    assert {b for a, b in zip(one, other, strict=True) if a == "next"} == {"next"}
    assert {b for a, b in zip(one, other, strict=True) if a == "third"} <= {"next", "third"}


def test_an_endpoint_without_a_name_of_its_own():
    trials = [Trial(cloud=lambda x: ("cat", 1.0), share=share) for share in (0.5, 0.5)]
    with Router(unsure, lambda x: ("cat", 1.0), threshold=0.8, trial=trials) as router:
        assert {router.infer(i).leg for i in range(60)} == {"cloud-trial", "cloud-trial-3"}
        assert arms_of(router)["cloud"].share == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.5}, "trial: share"),
        ({"share": float("nan")}, "trial: share"),
        ({"alpha": 0}, "alpha"),
        ({"more_differs": -1}, "more_differs"),
        ({"by": 3}, "by is a function"),
        ({"by": len, "device": "x"}, "device is not given"),
        ({"threshold": 0.5}, "threshold is that of an edge"),
        ({"edge": unsure}, "either edge=, a model, or cloud="),
        ({"cloud": None}, "either edge=, a model, or cloud="),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(PolicyError, match=message):
        Router(unsure, always("cat"), threshold=0.8, trial=Trial(**{"cloud": always("cat"), **settings}))


def test_trials_that_do_not_fit_together_are_refused():
    one = Trial(cloud=always("cat"), share=0.6)
    with pytest.raises(PolicyError, match="more than 1 together"):
        Router(unsure, always("cat"), threshold=0.8, trial=[one, one])
    with pytest.raises(PolicyError, match="beside cloud="):
        Router(unsure, trial=one)
    with pytest.raises(PolicyError, match=r"takes an edgeroute\.Trial or a list"):
        Router(unsure, always("cat"), threshold=0.8, trial=always("cat"))


POLICY = """
threshold = 0.8
[edge]
path = "edge.onnx"
[[cloud]]
name = "cloud"
protocol = "json"
url = "http://127.0.0.1:1/a"
[[cloud]]
name = "next"
protocol = "json"
url = "http://127.0.0.1:1/b"
"""


def test_a_policy_file_says_it(tmp_path, fashion):
    path = tmp_path / "policy.toml"
    text = POLICY.replace("edge.onnx", str(fashion / "edge.int8.onnx"))
    path.write_text(text + '[trial]\ncloud = "next"\nshare = "10%"\ndevice = "shop-7"\n')
    with Router.from_policy(path) as router:
        (trial,) = router.engine.snapshot.trials
        assert (trial.share, trial.shown, trial.device, trial.more_errors) == (0.1, True, "shop-7", 0.02)
        assert [target.name for target in router.engine.snapshot.targets] == ["edge", "cloud", "next"]
    for wrong, message in (
        ('[trial]\ncloud = "next"\nshares = "10%"', "no such key"),
        ('[trial]\ncloud = "others"', "trial.cloud: expected the name of one of cloud, next"),
        ('[trial]\nshare = "10%"', "either edge, a model, or cloud"),
        ('[trial]\ncloud = "next"\nedge = "edge.onnx"', "either edge, a model, or cloud"),
        ('[[trial]]\ncloud = "next"\n[[trial]]\ncloud = "next"', "is on trial already"),
        ('[[trial]]\ncloud = "next"\n[[trial]]\ncloud = "cloud"', "beside cloud="),
        ("trial = 3", "expected a section"),
        ("[cloud_arms]\n", r"write a \[\[trial\]\] for each endpoint but the first"),
    ):
        path.write_text(wrong + text if wrong[0] == "t" else text + wrong + "\n")
        with pytest.raises(PolicyError, match=message):
            Router.from_policy(path)


def test_a_reload_keeps_what_came_of_them(tmp_path, fashion):
    path = tmp_path / "policy.toml"
    text = POLICY.replace("edge.onnx", str(fashion / "edge.int8.onnx"))
    path.write_text(text + '[[trial]]\ncloud = "next"\nshare = "10%"\n')
    with Router.from_policy(path) as router:
        router.engine.trials.all[0].add_comparison(differs=True, b=True)
        path.write_text(text + '[[trial]]\ncloud = "next"\nshare = "50%"\n')
        router.reload()
        assert arms_of(router)["next"].share == 0.5
        assert arms_of(router)["next"].compared == 1
        path.write_text(text)
        router.reload()
        assert router.stats().arms == ()


def test_a_model_may_be_the_edge(tmp_path):
    with Router(FakeModel([("cat", 0.1)]), threshold=0.5, **tried({"a": always("x"), "b": always("y")}, {"b": 0.0})) as r:
        assert r.infer(0).leg == "cloud"
        assert json.dumps(r.engine.trials.dump())


def test_what_may_not_leave_reaches_no_endpoint_on_trial():
    """By its data class, the mode, consent for that address, or a limit; and what leaves is redacted."""
    seen = []

    def on_trial(x):
        seen.append(x)
        return "cat", 1.0

    def ask(count, x=0, call=None, **given):
        seen.clear()
        trials = [
            Trial(cloud=Function(on_trial, name=name), shown=shown, share=1.0) for name, shown in (("a", True), ("b", False))
        ]
        for trial in trials:
            with Router(unsure, always("cat"), threshold=0.8, trial=trial, **given) as router:
                for _ in range(count):
                    router.infer(x, **(call or {}))
                while router.engine.trials.under_way:
                    threading.Event().wait(0.001)
        return list(seen)

    secret = Egress(never_leave={"secret"}, unknown_class="allow")
    assert len(ask(3, egress=secret, call={"data_class": "other"})) == 6
    assert ask(3, egress=secret, call={"data_class": "secret"}) == []
    assert ask(3, mode="only_edge") == ask(3, call={"mode": "only_edge"}) == []
    assert ask(3, egress=Egress(consent=lambda where, _: "on_trial" not in where)) == []
    assert set(ask(3, x=7, egress=Egress(redact=lambda x, _: -x))) == {-7}
    limited = ask(30, limits=Limits(calls_per_minute=4))
    assert 0 < len(limited) <= 6, "4 of the shown one, and of the hidden one what the other has left"


@pytest.mark.parametrize("kind", [Threads, Tasks])
def test_hidden_and_shown_together_count_each_request_once(kind):
    """An edge and two endpoints, many callers, singly and in batches."""
    clouds = {name: always("cat") for name in ("cloud", "next", "third")}
    given = tried(clouds, {"next": 0.3}, {"third": 0.5})
    trials = [*given["trial"], Trial(edge=lambda x: ("dog", 0.1), share=0.5, more_differs=1)]
    with kind(unsure, given["cloud"], threshold=0.8, trial=trials) as router:

        def call(i):
            return [router.infer(i)] if i % 5 else router.infer_many([i, i, i])

        with ThreadPoolExecutor(8) as pool:
            answers = [one for some in pool.map(call, range(300)) for one in some]
        while router.engine.trials.under_way:
            threading.Event().wait(0.001)
        told = arms_of(router)
    legs = [one.leg for one in answers]
    assert [told[name].requests for name in ("cloud", "next")] == [legs.count("cloud"), legs.count("next")]
    assert told["edge"].requests + told["edge-trial"].requests == len(answers) == told["cloud"].requests + told["next"].requests
    assert 0 < told["third"].requests <= told["cloud"].requests
    assert told["edge"].deferred.share == told["edge-trial"].deferred.share == 1


def test_endpoints_in_use_are_one_arm():
    """Whichever of them is called first, as the fastest is."""
    clouds = [Function(lambda x: ("cat", 1.0), name=name) for name in ("one", "two")]
    trial = Trial(cloud=always("cat"), share=0.5)
    with Router(unsure, clouds, threshold=0.8, trial=trial, options=Options(order="fastest")) as router:
        legs = [router.infer(i).leg for i in range(200)]
        told = arms_of(router)
    assert told["one, two"].requests == len(legs) - legs.count("cloud-trial") > 50
    assert {*legs} >= {"one", "cloud-trial"}


def test_a_reload_that_changes_the_trial_while_requests_are_under_way(tmp_path):
    path, stop, wrong = tmp_path / "policy.toml", threading.Event(), []
    base = 'mode = "prefer_edge"\nthreshold = 0.5\n[edge]\npath = "one.onnx"\n[[cloud]]\nurl = "http://127.0.0.1:9/v2/models/m"\n'
    base += '[[cloud]]\nname = "next"\nurl = "http://127.0.0.1:9/v2/models/n"\n'
    for name in ("one", "two"):
        tiny.linear(tmp_path / f"{name}.onnx", weights=np.eye(4, 3) * 9, card={"labels": ["a", "b", "c"]})
    texts = [
        base, base + '[trial]\ncloud = "next"\n', base + '[[trial]]\nedge = "two.onnx"\nshare = "50%"\n[[trial]]\ncloud = "next"\n',
        base + '[trial]\nedge = "two.onnx"\nshown = false\n',
    ]  # fmt: skip
    path.write_text(base)
    with Router.from_policy(path) as router:

        def call():
            try:
                while not stop.is_set():
                    assert router.infer(np.array([1, 0, 0, 0], np.float32)).leg in {"edge", "edge-trial"}
            except BaseException as e:  # noqa: BLE001 - looked at below
                wrong.append(e)

        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(16):
            path.write_text(texts[i % 4])
            router.reload()
        stop.set()
        for thread in threads:
            thread.join(LONG)
    assert wrong == []


def test_requests_between_two_policies_do_not_get_a_hidden_edge(tmp_path):
    """A request may have the new policy and the arms of the old one: an edge that was shown and is hidden now answers nobody."""
    path = tmp_path / "policy.toml"
    for name in ("one", "two"):
        tiny.linear(tmp_path / f"{name}.onnx", weights=np.eye(4, 3) * 9, card={"labels": ["a", "b", "c"]})
    base = 'mode = "prefer_edge"\nthreshold = 0.5\n[edge]\npath = "one.onnx"\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/m"\n'
    path.write_text(base + '[trial]\nedge = "two.onnx"\nshare = "100%"\n')
    with Router.from_policy(path) as router:
        earlier, shown = router.engine.trials, router.engine.snapshot
        assert {earlier.choose(shown, str(i), None)[0].targets[0].name for i in range(20)} == {"edge-trial"}
        path.write_text(base + '[trial]\nedge = "two.onnx"\nshown = false\n')
        router.reload()
        assert {earlier.choose(router.engine.snapshot, str(i), None)[0].policy.mode for i in range(20)} == {"prefer_edge"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_goes_on_with_its_own_counts():
    given = tried({name: always("cat") for name in ("cloud", "next", "third")}, {"next": 0.5}, {"third": 1.0})
    with router_of(given) as router:
        for i in range(20):
            router.infer(i)
        with router.engine.trials.all[0]._lock:  # private: held by another thread as the process forks
            child = os.fork()
            if not child:
                try:
                    assert {router.infer(i).value for i in range(20)} == {"cat"}
                    told = arms_of(router)
                    os._exit(0 if told["cloud"].requests + told["next"].requests == 40 else 3)
                finally:
                    os._exit(4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
