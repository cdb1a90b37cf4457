"""Arms of the cloud: which endpoint a request gets, what comes of each, and the guardrail."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import numpy as np
import pytest
from both import flat
from commands import cli

from edgeroute import AsyncRouter, CloudArms, Function, PolicyError, Router, Trace, Unreachable
from edgeroute.core.plan import Facts, plan
from edgeroute.core.policy import Policy, Target
from edgeroute.core.sequential import ArmTest
from edgeroute.router.trials import ArmTally, Trials, summed
from edgeroute.testing import FakeModel


def unsure(x):
    return "cat", 0.1


def always(value, **terms):
    return Function(lambda x: (value, 1.0), **terms)


def broken(x):
    raise Unreachable("away")


def arms_of(router):
    return {arm.arm: arm for arm in router.stats().cloud_arms}


def router_of(arms, **more):
    return Router(unsure, **flat(cloud=arms, threshold=0.8, **more))


def test_a_share_of_the_requests_gets_another_endpoint_and_each_arm_is_counted():
    clouds = {"large": always("cat", usd_per_call=0.002), "next": always("dog", usd_per_call=0.001)}
    arms = CloudArms(clouds, {"next": 0.25}, more_differs=1)
    with router_of(arms) as router:
        answers = [router.infer(i) for i in range(400)]
        assert {one.leg for one in answers} == {"large", "next"}
        told = arms_of(router)
    got = sum(one.leg == "next" for one in answers)
    assert 60 < got < 140
    assert (told["next"].calls, told["large"].calls) == (got, 400 - got)
    assert told["next"].differs.share == 1
    assert told["large"].differs.share == 0
    assert 0 < told["large"].differs.high < 0.03
    assert told["next"].usd.share == pytest.approx(0.001)
    assert told["large"].usd.share == pytest.approx(0.002)
    assert (told["next"].share, told["large"].share) == (0.25, 0.75)
    assert told["large"].p50_s is not None


def test_a_key_stays_in_its_arm_while_the_share_grows():
    clouds = {"large": always("cat"), "next": always("cat")}
    kept = set()
    for share in (0.1, 0.3, 0.7, 1.0):
        arms = CloudArms(clouds, {"next": share}, by=lambda x: x % 50)
        with router_of(arms) as router:
            first = {i: router.infer(i).leg for i in range(50)}
            assert {i: router.infer(i + 50).leg for i in range(50)} == first
        now = {i for i, source in first.items() if source == "next"}
        assert kept <= now
        kept = now
    assert len(kept) == 50


def test_a_device_is_in_one_arm():
    clouds = {"large": always("cat"), "next": always("cat")}
    seen = set()
    for device in range(30):
        with router_of(CloudArms(clouds, {"next": 0.5}, device=str(device))) as router:
            sources = {router.infer(i).leg for i in range(5)}
            assert len(sources) == 1
            seen |= sources
    assert seen == {"large", "next"}


def test_an_arm_that_fails_is_stopped_and_its_requests_have_the_first_ones_answer():
    clouds = {"large": always("cat"), "next": Function(broken, health=lambda: None)}
    told = []
    with router_of(CloudArms(clouds, {"next": 0.5}), trace=told.append) as router:
        trials = router.engine.trials
        for i in range(400):
            assert router.infer(i).leg == "large"
        assert "more calls that fail than large" in trials.stopped["next"]
        calls = arms_of(router)["next"].calls
        assert {router.infer(i).leg for i in range(100)} == {"large"}
        assert arms_of(router)["next"].calls == calls
        assert "more calls that fail" in arms_of(router)["next"].stopped


def test_an_arm_that_disagrees_is_stopped():
    clouds = {"large": always("cat"), "next": always("dog")}
    with router_of(CloudArms(clouds, {"next": 0.5})) as router:
        for i in range(300):
            router.infer(i)
        assert "differ from the edge's" in router.engine.trials.stopped["next"]
        assert router.infer(0).leg == "large"


def test_in_shadow_nobody_sees_it_and_its_answers_are_compared():
    seen, done = [], threading.Semaphore(0)

    def trial(x):
        seen.append(x)
        done.release()
        return "dog" if x % 2 else "cat", 1.0

    clouds = {"large": always("cat"), "trial": Function(trial)}
    with router_of(CloudArms(clouds, shadow={"trial": 1.0}, more_differs=1)) as router:
        for i in range(20):
            assert router.infer(i).leg == "large"
            assert done.acquire(timeout=30)
            while router.engine.trials.busy:
                threading.Event().wait(0.001)
        told = arms_of(router)["trial"]
    assert sorted(seen) == [*range(20)]
    assert (told.calls, told.shadowed, told.shadow_differs.share) == (0, 20, 0.5)


def test_an_arm_in_shadow_that_fails_is_seen_to(tmp_path):
    clouds = {"large": always("cat"), "trial": Function(broken, health=lambda: None)}
    with router_of(CloudArms(clouds, shadow={"trial": 1.0}), state=tmp_path) as router:
        until = monotonic() + 30
        while not (failed := arms_of(router)["trial"].shadow_failed):
            assert router.infer(1).leg == "large"
            assert monotonic() < until
        told = arms_of(router)["trial"]
        assert (told.calls, told.shadowed, told.stopped) == (0, 0, "")
    line = next(line for line in cli("status", "--state", tmp_path)[1].splitlines() if "trial" in line)
    assert int(line.partition(" failed")[0].split()[-1]) >= failed


def test_an_arm_in_shadow_that_differs_too_often_is_asked_no_more():
    clouds = {"large": always("cat"), "trial": always("dog")}
    with router_of(CloudArms(clouds, shadow={"trial": 1.0})) as router:
        for _ in range(2000):
            router.infer(0)
            if router.engine.trials.stopped:
                break
        assert "in shadow" in router.engine.trials.stopped["trial"]


def test_equal_arms_are_not_stopped():
    """Whenever one looks: the guardrail alarms on at most 5 % of such pairs, ever."""
    clouds = {"large": always("cat"), "next": always("cat")}
    with router_of(CloudArms(clouds, {"next": 0.5})) as router:
        for i in range(1000):
            router.infer(i)
        assert not router.engine.trials.stopped


def test_what_came_of_them_outlives_the_process(tmp_path):
    clouds = {"large": always("cat"), "next": always("dog")}
    arms = CloudArms(clouds, {"next": 0.5})
    with router_of(arms, state=tmp_path) as router:
        for i in range(200):
            router.infer(i)
        before, stopped = arms_of(router), dict(router.engine.trials.stopped)
    assert stopped
    with router_of(arms, state=tmp_path) as router:
        assert arms_of(router) == before
        assert router.engine.trials.stopped == stopped
        assert router.infer(0).leg == "large"
    with router_of(arms._replace(salt="another"), state=tmp_path) as router:
        assert arms_of(router)["large"].calls == 0


def test_a_count_that_an_earlier_version_did_not_have_is_0():
    """Then a stopped arm stays stopped, and the device's sums are in those of the fleet."""
    clouds = {"large": always("cat"), "next": always("dog")}
    with router_of(CloudArms(clouds, {"next": 0.5})) as router:
        for i in range(200):
            router.infer(i)
        trials = router.engine.trials
        dumped = json.loads(json.dumps(trials.dump()))
        for tally in dumped["tallies"].values():
            del tally["shadow_failed"]
        again = Trials(trials.arms, print, None, None, trials.identities, dumped)
        assert again.stopped == trials.stopped != {}
        assert [arm.calls for arm in again.stats()] == [arm.calls for arm in trials.stats()]
        assert [arm.calls for arm in summed([dumped, dumped])] == [2 * arm.calls for arm in trials.stats()]
    with pytest.raises(TypeError):
        ArmTally.load([])


def test_another_endpoint_that_has_an_arms_name_is_not_taken_for_it(tmp_path):
    clouds = {"large": always("cat"), "next": always("dog", version="1")}
    arms = CloudArms(clouds, {"next": 0.5})
    with router_of(arms, state=tmp_path) as router:
        for i in range(200):
            router.infer(i)
        assert router.engine.trials.stopped
    mended = arms._replace(clouds={**clouds, "next": always("cat", version="2")})
    with router_of(mended, state=tmp_path) as router:
        assert (router.engine.trials.stopped, arms_of(router)["next"].calls) == ({}, 0)
        assert {router.infer(i).leg for i in range(50)} == {"large", "next"}


def test_a_reload_with_another_endpoint_begins_anew(tmp_path, fashion):
    path = tmp_path / "policy.toml"
    text = POLICY.replace("edge.onnx", str(fashion / "edge.int8.onnx")) + 'split = { next = "10%" }\n'
    path.write_text(text)
    with Router.from_policy(path) as router:
        router.engine.trials.shadowed("next", differs=True)
        path.write_text(text.replace(":1/b", ":1/c"))
        router.reload()
        assert arms_of(router)["next"].shadowed == 0
        router.engine.trials.shadowed("next", differs=True)
        router.engine.snapshot.clouds[1].reader.labels = ("cat", "dog")  # as a server tells them
        router.reload()
        assert arms_of(router)["next"].shadowed == 1
        assert "127.0.0.1" not in json.dumps(router.engine.trials.dump())


def test_an_answer_names_its_arm_and_the_certificates_cloud(tmp_path):
    """A certificate is for the first endpoint: in another arm its label says so."""
    edge = Target("edge", "edge", 0.8, "loss <= 1 %", certified=True)
    targets = (edge, Target("large", "cloud"), Target("next", "cloud", trial=True))
    plain, other = plan(Policy(), targets, Facts()), plan(Policy(), targets, Facts(), arm="next")
    assert [leg.name for leg in plain.legs] == ["edge", "large"]
    assert [leg.name for leg in other.legs] == ["edge", "next", "large"]
    assert plain.legs[0].label == "loss <= 1 %"
    assert other.legs[0].label == "uncalibrated: its certificate is for another cloud than next"
    assert plan(Policy(), targets, Facts(), arm="next", mode="only_edge").legs[0].name == "edge"
    told = []
    with router_of(CloudArms({"large": always("cat"), "next": always("cat")}, {"next": 1.0}), trace=Trace(told.append)) as router:
        assert router.infer(0).leg == "next"
    assert [leg["leg"] for leg in told[0]["plan"]] == ["edge", "next", "large"]
    assert told[0]["arm"] == "next"


def test_the_fingerprint_of_the_cloud_is_that_of_the_first(tmp_path):
    from edgeroute.router.build import fingerprints

    clouds = {"large": always("cat", version="1"), "next": always("cat", version="2")}
    alone = Router(unsure, cloud=clouds["large"], threshold=0.8)
    tried = router_of(CloudArms(clouds, {"next": 0.5}))
    with alone, tried:
        assert fingerprints(alone.engine.snapshot, 0)["cloud"] == fingerprints(tried.engine.snapshot, 0)["cloud"]


async def asked(arms):
    async with AsyncRouter(unsure, cloud=arms, threshold=0.8) as router:
        return [(await router.infer(i)).leg for i in range(100)]


def test_asyncio_likewise():
    import asyncio

    sources = asyncio.run(asked(CloudArms({"large": always("cat"), "next": always("cat")}, {"next": 0.5})))
    assert 20 < sources.count("next") < 80


def test_status_and_arms_show_them_of_one_device_and_of_many(tmp_path):
    clouds = {"large": always("cat", usd_per_call=0.002), "next": always("cat", usd_per_call=0.001)}
    folders = [tmp_path / str(device) for device in range(6)]
    for folder in folders:
        with router_of(CloudArms(clouds, {"next": 0.5}, device=folder.name), state=folder) as router:
            for i in range(10):
                router.infer(i)
    code, out, _ = cli("status", "--state", folders[0], "--json")
    told = {arm["arm"]: arm for arm in json.loads(out)["cloud_arms"]}
    assert code == 0
    assert sum(arm["calls"] for arm in told.values()) == 10
    assert "differ from edge" in cli("status", "--state", folders[0])[1]
    code, out, _ = cli("arms", *folders, "--json")
    fleet = {arm["arm"]: arm for arm in json.loads(out)["cloud_arms"]}
    assert code == 0
    assert fleet["large"]["calls"] + fleet["next"]["calls"] == 60
    assert fleet["next"]["calls"] % 10 == 0
    assert fleet["next"]["usd"][0] == pytest.approx(0.001)
    assert "USD a call" in cli("arms", *folders)[1]


class Odd:
    """A value that cannot be compared."""

    def __eq__(self, other):
        raise ZeroDivisionError

    __hash__ = None


def test_values_that_cannot_be_compared_touch_no_answer(caplog):
    clouds = {"large": Function(lambda x: (Odd(), 1.0)), "next": always("cat")}
    with Router(lambda x: (Odd(), 0.1), cloud=CloudArms(clouds, {"next": 0.5}, shadow={"next": 1.0}), threshold=0.8) as router:
        for i in range(20):
            assert router.infer(i).leg in clouds
        assert sum(arm.calls for arm in arms_of(router).values()) == 20
    assert caplog.text.count("cannot be compared") == 1


def test_arrays_of_other_shapes_differ():
    """As boxes of two detectors: they are compared, and each call is counted."""
    clouds = {"large": Function(lambda x: (np.ones((2, 4)), 1.0)), "next": Function(lambda x: (np.ones((1, 4)), 1.0))}
    arms = CloudArms(clouds, {"next": 0.5}, more_differs=1)
    with Router(lambda x: (np.ones((2, 4)), 0.1), cloud=arms, threshold=0.8) as router:
        for i in range(40):
            router.infer(i)
        told = arms_of(router)
    assert told["large"].calls + told["next"].calls == 40
    assert (told["large"].differs.share, told["next"].differs.share) == (0, 1)


def test_many_callers_are_all_counted():
    clouds = {"large": always("cat"), "next": always("cat")}
    with router_of(CloudArms(clouds, {"next": 0.5}, shadow={"next": 0.5})) as router:
        with ThreadPoolExecutor(8) as pool:
            legs = [one.leg for one in pool.map(router.infer, range(400))]
        told = arms_of(router)
        assert {name: told[name].calls for name in clouds} == {name: legs.count(name) for name in clouds}


def test_a_batch_is_in_one_arm():
    clouds = {"large": always("cat"), "next": always("cat")}
    seen = set()
    with router_of(CloudArms(clouds, {"next": 0.5})) as router:
        for _ in range(20):
            legs = {one.leg for one in router.infer_many([1, 2, 3])}
            assert len(legs) == 1
            seen |= legs
    assert seen == {"large", "next"}


def test_a_batch_is_one_observation_of_the_guardrail():
    """Its rows fail together, so that as one each they would be evidence that is not there."""
    clouds = {"large": always("cat"), "next": Function(lambda x: ("dog" if x % 2 else "cat", 1.0))}
    arms = CloudArms(clouds, {"next": 0.5}, by=lambda x: x)
    errors, differs = (ArmTest(margin, arms.alpha / 3) for margin in (arms.more_errors, arms.more_differs))
    with router_of(arms) as router:
        for i in range(20):
            leg = router.infer_many([*range(i, i + 100)])[0].leg
            errors.add(0.0, b=leg == "next")
            differs.add(0.5 * (leg == "next"), b=leg == "next")
        told, tests = arms_of(router), router.engine.trials.dump()["tests"]["next"]
    assert (tests["errors"], tests["differs"]) == (errors.dump(), differs.dump())
    assert differs.pairs > 3
    assert told["large"].calls + told["next"].calls == 2000
    assert told["next"].compared == told["next"].calls
    assert told["next"].differs.share == 0.5


def test_an_arm_whose_batches_fail_is_stopped():
    clouds = {"large": always("cat"), "next": Function(broken)}
    with router_of(CloudArms(clouds, {"next": 0.5})) as router:
        for _ in range(400):
            router.infer_many([1, 2, 3])
        assert "more calls that fail" in router.engine.trials.stopped["next"]


def test_the_page_of_an_evaluation_has_them_and_asks_the_first_alone(tmp_path):
    asked = []

    def trial(x):
        asked.append(x)
        return "dog", 1.0

    clouds = {"large": always("cat", usd_per_call=0.002), "next": Function(trial)}
    with router_of(CloudArms(clouds, {"next": 0.5}, more_differs=1)) as router:
        for i in range(20):
            router.infer(i)
        seen = len(asked)
        result = router.evaluate([*range(30)], ["cat"] * 30)
        assert len(asked) == seen
        assert [arm["arm"] for arm in result.as_dict()["cloud_arms"]] == ["large", "next"]
        assert "Arms of the cloud, in operation" in result._repr_html_()  # private: the name is Jupyter's


def test_shares_may_be_pairs():
    clouds = {"large": always("cat"), "next": always("cat")}
    with router_of(CloudArms(clouds, [("next", 1)], shadow=[("next", 0.5)])) as router:
        assert [router.infer(i).leg for i in range(3)] == ["next"] * 3
        assert arms_of(router)["next"].share == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": {"next": 1.5}}, "split.next"),
        ({"split": {"large": 0.5}}, "the first endpoint"),
        ({"split": {"other": 0.5}}, "'other'"),
        ({}, "has no share"),
        ({"split": {"next": 0.5}, "alpha": 0}, "alpha"),
        ({"split": {"next": 0.5}, "by": 3}, "by is a function"),
        ({"split": {"next": float("nan")}}, "split.next"),
        ({"split": ["next"]}, r"split has a share for each name, as in \{'next': 0.1\}, not \['next'\]"),
        ({"split": 0.5}, "not 0.5"),
        ({"shadow": [(["next"], 1)]}, "shadow has a share for each name"),
        ({"split": None}, "not None"),
        ({"split": iter([("next", 0.5)])}, "split is read again with each policy"),
        ({"split": [("other", 0.5)]}, "'other'"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    clouds = {"large": always("cat"), "next": always("cat")}
    with pytest.raises(PolicyError, match=message):
        router_of(CloudArms(clouds, **settings))


POLICY = """
threshold = 0.8
[edge]
path = "edge.onnx"
[[cloud]]
name = "large"
protocol = "json"
url = "http://127.0.0.1:1/a"
[[cloud]]
name = "next"
protocol = "json"
url = "http://127.0.0.1:1/b"
[cloud_arms]
"""


def test_a_policy_file_says_it(tmp_path, fashion):
    path = tmp_path / "policy.toml"
    text = POLICY.replace("edge.onnx", str(fashion / "edge.int8.onnx"))
    path.write_text(text + 'split = { next = "10%" }\nshadow = { next = 0.05 }\ndevice = "shop-7"\n')
    with Router.from_policy(path) as router:
        arms = router.engine.trials.arms
        assert (arms.split, arms.shadow, arms.device) == ({"next": 0.1}, {"next": 0.05}, "shop-7")
    for wrong, message in (
        ('shares = "10%"', "no such key"),
        ('split = { others = "10%" }', "endpoints after the first"),
        ('split = { large = "10%" }', "endpoints after the first"),
        ("split = 3", "a table of shares"),
    ):
        path.write_text(text + wrong + "\n")
        with pytest.raises(PolicyError, match=message):
            Router.from_policy(path)


def test_a_reload_keeps_what_came_of_them(tmp_path, fashion):
    path = tmp_path / "policy.toml"
    text = POLICY.replace("edge.onnx", str(fashion / "edge.int8.onnx"))
    path.write_text(text + 'split = { next = "10%" }\n')
    with Router.from_policy(path) as router:
        router.engine.trials.shadowed("next", differs=True)
        path.write_text(text + 'split = { next = "50%" }\n')
        router.reload()
        assert router.engine.trials.arms.split == {"next": 0.5}
        assert arms_of(router)["next"].shadowed == 1
        path.write_text(text.replace("[cloud_arms]", ""))
        router.reload()
        assert router.stats().cloud_arms == ()


def test_a_model_may_be_the_edge(tmp_path):
    with Router(FakeModel([("cat", 0.1)]), cloud=CloudArms({"a": always("x"), "b": always("y")}, {"b": 0.0}), threshold=0.5) as r:
        assert r.infer(0).leg == "a"
        assert json.dumps(r.engine.trials.dump())
