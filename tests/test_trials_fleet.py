"""Trials over a fleet whose devices are in one arm each: `edgeroute arms` compares them; and the arms in the report."""

import json

import numpy as np
import pytest
import tiny
from catalogs import FIRST, LABELS, SECOND
from commands import cli
from pages import Closed

from edgeroute import BadInput, Router, Trial
from edgeroute.tools.measure import fleet_trial_comparison as fleets

X = np.array([1, 0, 0, 0], np.float32)
SETTINGS = fleets.Settings("edge", True, ("one", "two"), 0.5, "", 0.01, 0.1, 0.02, 0.05)


def device(number, arm, *, deferred, requests=200, compared=0, differs=0, settings=SETTINGS):
    """What a device stored, with these counts in its arm."""

    def counts(here):
        n = requests if here else 0
        return {
            "requests": n, "compared": compared * here, "failed": [0, 0, 1], "deferred": [deferred / requests * here, 0, 1],
            "differs": [differs / max(1, compared) * here, 0, 1], "mean_s": [0.01 * here, 0, 1], "p99_s": 0.02 if here else None,
            "stopped": "", "usd": None,
        }  # fmt: skip

    arms = [{"arm": name, "model": one, **counts(arm == one)} for one, name in (("a", "edge"), ("b", "edge-trial"))]
    return fleets.Device(f"{number}.json", f"device-{number}", settings, arms)


@pytest.fixture
def two(tmp_path):
    return [
        tiny.linear(tmp_path / f"{name}.onnx", weights=weights, card={"labels": LABELS})
        for name, weights in (("one", FIRST), ("two", SECOND))
    ]


@pytest.mark.slow
def test_devices_of_one_arm_each_are_compared(two, tmp_path):
    """From their state folders, or from what `status --json` printed; B, which defers everything, is to be stopped."""
    folders = []
    for i in range(24):
        trial = Trial(two[1], share=0.5, threshold=1.0, device=f"device-{i}")
        folders.append(tmp_path / f"state-{i}")
        with Router(two[0], lambda x: "a", threshold=0.5, state=folders[-1], trial=trial) as router:
            for _ in range(20 + i):
                router.infer(X)
            assert not router.stats().arms[1].stopped, "alone it knows of one arm"
    page = tmp_path / "arms.html"
    code, out, err = cli("arms", *folders, "--report", page)
    assert code == 4, out + err
    assert "edge-trial is worse: stop it. It has more requests deferred to the cloud" in out
    read = Closed(page.read_text())
    assert "edge-trial is worse: stop it." in read.text
    assert len(read.ids) == len(set(read.ids))
    assert not [tag for tag, _ in read.tags if tag in {"script", "link", "img"}]
    told = tmp_path / "fleet.jsonl"
    told.write_text("\n".join(cli("status", "--state", folder, "--json")[1].strip() for folder in folders))
    (found,) = json.loads(cli("arms", told, "--json")[1])["trials"]
    assert found["devices"] == 24
    assert found["by_device"] is True
    assert found["worse"] == ["deferred"]
    a, b = found["arms"]
    assert a["devices"] + b["devices"] == 24
    assert a["requests"] + b["requests"] == sum(20 + i for i in range(24))
    deferred = next(one for one in found["differences"] if one["measure"] == "deferred")
    assert deferred["value"] == 1.0
    assert deferred["low"] > 0.1
    assert cli("arms", folders[0], folders[0])[0] == 1, "a device twice"


def test_few_devices_say_nothing():
    """However many requests each has: another draw of three devices may look the same."""
    found = fleets.compare([device(i, "b" if i == 0 else "a", deferred=200 if i == 0 else 0) for i in range(4)])
    one = next(one for one in found.differences if one.measure == "deferred")
    assert (one.value, one.verdict) == (1.0, "open")
    assert one.low == -1


@pytest.mark.slow
def test_devices_that_differ_are_not_taken_for_arms_that_do():
    """Their rates are 10 % or 60 %: as by requests, an arm that has one device more of the worse kind would be worse."""
    rng = np.random.default_rng(1)
    fleets_of = [
        fleets.compare([device(i, "ab"[int(b)], deferred=120 if rng.random() < 0.5 else 20) for i, b in enumerate(rng.random(40) < 0.4)])
        for _ in range(12)
    ]  # fmt: skip
    assert not [found for found in fleets_of if found.worse]
    b = fleets_of[0].arms[1]
    assert b.deferred[2] - b.deferred[1] > 0.15, "that of its requests alone is 0.05 wide"


def test_enough_of_the_same_is_within_what_is_allowed():
    def of(i):
        return device(i, "ab"[i % 2], requests=2000, deferred=400 + i, compared=1000, differs=10)

    found = fleets.compare([of(i) for i in range(60)])
    assert {one.measure: one.verdict for one in found.differences} == dict.fromkeys(SETTINGS.measures, "within")


def test_requests_drawn_for_themselves_are_added_up(two, tmp_path):
    for i in range(3):
        with Router(two[0], lambda x: "a", threshold=0.5, state=tmp_path / str(i), trial=Trial(two[1], share=0.5)) as router:
            for _ in range(100):
                router.infer(X)
    code, out, err = cli("arms", *(tmp_path / str(i) for i in range(3)))
    assert code == 0, out + err
    assert "3 devices, 300 requests" in out
    assert "each was drawn for itself" in out + err


@pytest.mark.slow
def test_what_cannot_be_compared_is_said(two, tmp_path):
    with pytest.raises(BadInput, match="salt differs"):
        fleets.compare([device(0, "a", deferred=0), device(1, "b", deferred=0, settings=SETTINGS._replace(salt="x"))])
    with pytest.raises(BadInput, match=r"'device-1' occurs twice: 1\.json and 1\.json"):
        fleets.compare([device(1, "a", deferred=0)] * 2)
    with Router(two[0], state=tmp_path / "state") as router:
        router.infer(X)
    for name, text in (
        ("broken", "{"),
        ("list", "[]"),
        ("deep", "[" * 200_000),
        ("set", '{"trials": [{"arms": [{}, {}], "settings": {"share": 1}}]}'),
        ("alpha", json.dumps({"trials": [{"arms": [{}, {}], "settings": {**SETTINGS._asdict(), "alpha": 0}}]})),
    ):
        (tmp_path / name).write_text(text)
        code, _, err = cli("arms", tmp_path / name)
        assert (code, err.count("\n")) == (1, 1), name
    for wrong in (
        {"requests": "many"},
        {"requests": float("inf")},
        {"requests": 5, "failed": [float("nan")]},
        {"requests": 5, "mean_s": [float("inf")]},
        {"requests": 5, "mean_s": [1e308]},
        {"requests": 5, "usd": [1e308]},
        {"requests": 5, "p99_s": 1e308},
        {"requests": 10**300, "failed": [0.5]},
        {"requests": 5, "compared": 10**300},
        {"requests": 5, "failed": [7]},
        {"requests": 5, "failed": 3},
    ):
        arms = [{"arm": "a", **wrong}, {"arm": "b"}]
        (tmp_path / "wrong").write_text(
            json.dumps({"trials": [{"arms": arms, "settings": {**SETTINGS._asdict(), "device": "x"}}]})
        )
        code, _, err = cli("arms", tmp_path / "wrong", "--json")
        assert (code, "arm a" in err) == (1, True), wrong
    code, _, err = cli("arms", tmp_path / "state")
    assert code == 1
    assert "has no trial: left out" in err


@pytest.mark.slow
def test_the_report_has_the_arms(two, tmp_path):
    """Of a router's evaluation, and of the command's with the policy's state."""
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({
        "mode": "only_edge", "state": "state", "edge": {"path": "one.onnx"}, "trial": {"edge": "two.onnx", "share": "50%"},
    }))  # fmt: skip
    inputs = np.eye(4, dtype=np.float32)[np.arange(20) % 3]
    with Router.from_policy(policy) as router:
        assert "Trials in operation" not in router.evaluate(inputs).html(), "no request has been made"
        for x in inputs:
            router.infer(x)
        found = router.evaluate(inputs)
        assert "Trials in operation" in Closed(found.html()).text
        assert sum(arm["requests"] for arm in found.as_dict()["arms"]) == 20
        assert ">edge-trial<" not in found.html()
    np.savez(tmp_path / "data.npz", inputs=inputs)
    page = tmp_path / "page.html"
    code, out, err = cli("evaluate", "--policy", policy, "--data", tmp_path / "data.npz", "--report", page)
    assert code == 0, out + err
    assert "Trials in operation" in page.read_text()
