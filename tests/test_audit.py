"""Audits: what is compared with the cloud in the background, what is never asked, and what an alarm does."""

import json
import logging
import random
import threading
import time

import numpy as np
import pytest
import routes
from both import LONG, Tasks, flat, makes
from draws import slow

from edgeroute import Audit, BadInput, Cache, Egress, Function, Limits, PolicyError, Router
from edgeroute.confidence import calibrate
from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.observe.target_counts import TOGETHER
from edgeroute.stores.json_lines_and_process_locks import read
from edgeroute.system.wall_clock import now
from edgeroute.testing import FakeCloud
from edgeroute.trials.audit_setting_and_drift_monitor import DriftMonitor, limit
from edgeroute.trials.audits_and_drift_alarms import FULL

pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]
make = makes(threshold=0.5)


def until(condition):
    """Returns once it holds."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.001)


def edge(x):
    """It says `a`, as surely as it is told."""
    return "a", x


def right(_):
    return "a"


def wrong(_):
    return "b"


SCORE = np.random.default_rng(0).uniform(size=4000)


@pytest.fixture(scope="module")
def certificate():
    """Below .25 one in two differs, above none does."""
    agree = (SCORE > 0.25) | (np.arange(4000) % 2 == 0)
    return calibrate(SCORE, agree, max_loss=0.05)


def idle(router):
    """No audit is under way."""
    until(lambda: not router.engine.auditor.jobs.busy)


# ------------------------------------------------------------------------------------------------------ what is asked
def test_an_accepted_answer_is_compared_in_the_background(make, tmp_path):
    """The caller has the edge's; the cloud's is a line of the audit, with the confidence, and nothing that was in the input."""
    cloud = FakeCloud(lambda _: "b")
    router = make(edge, cloud, audit=Audit(share=1), state=tmp_path)
    answer = router.infer(0.9)
    assert (answer.value, answer.source) == ("a", "edge")
    until(lambda: router.stats().audits[0].audited)
    (line,) = read(tmp_path / "audit.jsonl")
    assert abs(line.pop("at") - now()) < LONG
    assert len(line.pop("fingerprints")) == 32
    known = {"id": answer.id, "target": "edge", "edge_confidence": 0.9, "agrees": False, "audited": "shadow", "probability": 1.0}
    assert line == known
    told = router.stats().audits[0]
    assert (told.target, told.audited, told.disagreed, told.limit, told.alarm) == ("edge", 1, 1, None, "")
    assert cloud.runs == 1


def test_a_deferred_answer_is_compared_for_free(make, tmp_path):
    """The cloud is asked once, for the answer, and the line says that it was deferred."""
    cloud = FakeCloud(lambda _: "b")
    router = make(edge, cloud, audit=Audit(share=1), state=tmp_path)
    assert router.infer(0.1).value == "b"
    (line,) = read(tmp_path / "audit.jsonl")
    assert (line["audited"], line["agrees"], line["edge_confidence"]) == ("deferred", False, 0.1)
    assert cloud.runs == 1
    assert router.stats().audits[0].audited == 0, "of what the edge answered"


def test_a_coroutine_function_is_asked_too():
    """As the cloud of an AsyncRouter, and from a thread."""

    async def cloud(_):
        return "b"

    with Tasks(edge, cloud, threshold=0.5, audit=Audit(share=1)) as router:
        router.infer(0.9)
        until(lambda: router.stats().audits[0].disagreed)


def test_of_a_batch_each_row_may_be_audited(make, tmp_path):
    """By the name that its answer has."""
    router = make(edge, right, audit=Audit(share=1), state=tmp_path)
    answers = router.infer_many([0.1, 0.9])
    until(lambda: len(list(read(tmp_path / "audit.jsonl"))) == 2)
    found = {line["id"]: (line["audited"], line["agrees"]) for line in read(tmp_path / "audit.jsonl")}
    assert found == {answers[0].id: ("deferred", True), answers[1].id: ("shadow", True)}


def test_the_sample_is_uniform(monkeypatch, tmp_path):
    """Of 4,000 requests 5 % are compared, accepted or not, and no pattern in the requests meets a pattern in the sample."""
    monkeypatch.setattr("edgeroute.trials.shadow_statistics_and_job_queue.TOGETHER", 1 << 30)
    with Router(edge, right, threshold=0.5, audit=Audit(share=0.05), state=tmp_path) as router:
        for i in range(4000):
            router.infer(0.1 if i % 2 else 0.9)
        idle(router)
    lines = list(read(tmp_path / "audit.jsonl"))
    assert 140 < len(lines) < 260  # 4.5 standard deviations
    shadows = sum(line["audited"] == "shadow" for line in lines)
    assert abs(shadows - len(lines) / 2) < 4.5 * len(lines) ** 0.5 / 2


def test_the_input_may_be_overwritten_at_once():
    """As a camera's buffer is: what the cloud is asked about is what the edge saw."""
    seen, go = [], threading.Event()

    def cloud(x):
        go.wait(LONG)
        seen.append(np.array(x))
        return "a"

    with Router(lambda x: ("a", 0.9), cloud, threshold=0.5, audit=Audit(share=1)) as router:
        frame = np.zeros(3)
        router.infer(frame)
        frame[:] = 7
        go.set()
        until(lambda: router.stats().audits[0].audited)
    assert seen[0].tolist() == [0, 0, 0]


def test_it_is_said_before():
    """`check` and `decide` tell what an audit sends: else they would promise that it stays."""
    with Router(edge, right, threshold=0.5, audit=Audit(share=0.01)) as router:
        assert "1 % of what the edge answers is sent there afterwards, to compare (audit)" in router.check().lines
        assert router.decide(0.9).steps[-1] == "=> one in 100 such inputs is sent to the cloud afterwards, to compare (audit)"
        assert not any("audit" in step for step in (*router.decide(0.1).steps, *router.decide(0.9, mode="only_edge").steps))
    with Router(edge, right, threshold=0.5) as router:
        assert not any("audit" in line for line in (*router.check().lines, *router.decide(0.9).steps))


# -------------------------------------------------------------------------------------------------- what is not asked
@pytest.mark.parametrize(
    ("policy", "ask"),
    [
        ({"egress": Egress(never_leave=["private"], unknown_class="allow")}, {"data_class": "private"}),
        ({"egress": Egress(consent=lambda where, data_class: False)}, {}),
        ({"metered": True}, {}),
        ({"mode": "only_edge"}, {}),
        ({"limits": Limits(calls_per_minute=1)}, {}),
    ],
    ids=["class", "consent", "metered", "mode", "limits"],
)
def test_an_audit_asks_nothing_that_the_policy_does_not_allow(policy, ask):
    """Not for a class that stays, without consent, over a metered link, on a call that stays, or with the half of a limit spent."""
    cloud = FakeCloud(lambda _: "a")
    with Router(edge, cloud, **flat(threshold=0.5, audit=Audit(share=1), **policy)) as router:
        if "limits" in policy:
            assert router.infer(0.1).source == "cloud"  # it spends what there is
        before = cloud.runs
        for _ in range(5):
            assert router.infer(0.9, **ask).source == "edge"
        idle(router)
        assert cloud.runs == before


def test_an_endpoint_that_does_not_answer_is_left_alone(monkeypatch):
    """With its breaker open no audit is tried, and the edge's answers are what they were."""
    monkeypatch.setattr(admission, "FIRST_S", 1e6)  # no probe is due while this runs, however slow the machine

    def broken(_):
        raise ConnectionError("away")

    cloud = FakeCloud([ConnectionError("away")])
    with Router(edge, cloud, threshold=0.5, audit=Audit(share=1)) as router:
        for _ in range(5):
            router.infer(0.1)
        assert router.stats().legs[1].breaker == "open"
        runs = cloud.runs
        assert router.infer(0.9).source == "edge"
        idle(router)
        assert cloud.runs == runs


def test_audits_take_no_more_than_half_of_what_an_endpoint_bears():
    """With one call a second there is none to spare once it was used; a request that needs it gets it."""
    cloud = FakeCloud(lambda _: "a")
    with Router(edge, Function(cloud, calls_per_s=0.001), threshold=0.5, audit=Audit(share=1)) as router:
        router.infer(0.9)
        idle(router)
        router.infer(0.9)
        until(lambda: router.engine.auditor.jobs.busy == 1)
        assert cloud.runs == 1


def test_no_more_than_two_at_a_time(tmp_path):
    """A slow cloud holds up neither answers nor memory: the others wait, and meanwhile fewer are drawn, which the log says."""
    gate = threading.Event()
    cloud = FakeCloud(lambda _: "a", gate=gate)
    with Router(edge, cloud, threshold=0.5, audit=Audit(share=1), state=tmp_path) as router:
        for _ in range(500):
            assert router.infer(0.9).source == "edge"
        until(lambda: cloud.runs == 2)
        waiting = router.engine.auditor.jobs.busy
        assert 2 + FULL < waiting < 2 + 12 * FULL, "half as many from each eight on: 500 are too few for twelve times eight"
        gate.set()
        idle(router)
        assert cloud.runs == waiting == router.stats().audits[0].audited
    drawn = [line["probability"] for line in read(tmp_path / "audit.jsonl")]
    assert drawn.count(1.0) == 2 + FULL
    assert drawn.count(0.5) == FULL


def test_what_finds_no_room_waits_and_is_asked_later(tmp_path, due):
    """Whether it was accepted or is held up by a limit: a request that was drawn is compared, as soon as there is room."""
    gate = threading.Event()
    cloud = FakeCloud(lambda x: "a" if x != 0.2 or gate.wait(LONG) else "")
    asked = Function(cloud, max_concurrent=2)
    with Router(edge, asked, threshold=0.5, audit=Audit(share=1), state=tmp_path) as router:
        calls = [threading.Thread(target=router.infer, args=(0.2,)) for _ in range(2)]
        for call in calls:
            call.start()
        until(lambda: cloud.runs == 2)
        assert router.infer(0.9).source == "edge"
        assert router.infer(0.3, deadline=due()).degraded, "for it there is no room either"
        assert router.engine.auditor.jobs.busy == 2
        gate.set()
        for call in calls:
            call.join()
        idle(router)
    lines = {(line["edge_confidence"], line["audited"]) for line in read(tmp_path / "audit.jsonl")}
    assert lines == {(0.9, "shadow"), (0.3, "deferred"), (0.2, "deferred")}


def weighted(lines, threshold):
    """The share of the deferred among the lines, each weighted by 1 / probability, and its standard error.

    The error is as if there were another line of either kind with the largest weight: of few lines the heaviest may all be missing.
    """
    weight = np.array([1 / line["probability"] for line in lines])
    deferred = np.array([line["edge_confidence"] < threshold for line in lines])
    share = (weight * deferred).sum() / weight.sum()
    squares = (weight**2 * (deferred - share) ** 2).sum() + weight.max() ** 2 * (share**2 + (1 - share) ** 2)
    return share, np.sqrt(squares) / weight.sum()


@pytest.mark.parametrize(("callers", "scene"), [(8, 1), *slow((1, 1), (1, 40), (8, 40))])
def test_under_a_slow_cloud_the_log_is_as_the_traffic(callers, scene, tmp_path):
    """One input in ten is deferred, and as many of the audited are, though there are more audits than the cloud can take.

    Within five standard errors. In scenes, too, of which whole ones are deferred.
    """
    rng, n = np.random.default_rng(5), 6000
    sure = np.where(np.repeat(rng.random(n // scene) < 0.1, scene), 0.1, 0.9)
    cloud = FakeCloud(lambda _: time.sleep(0.002) or "a")  # the slow cloud is the subject
    with Router(edge, cloud, threshold=0.5, audit=Audit(share=0.3), state=tmp_path) as router:

        def call(own):
            for x in own.tolist():
                router.infer(x)

        calls = [threading.Thread(target=call, args=(sure[i::callers],)) for i in range(callers)]
        for one in calls:
            one.start()
        for one in calls:
            one.join()
        idle(router)
    lines = list(read(tmp_path / "audit.jsonl"))
    share, error = weighted(lines, 0.5)
    assert len(lines) > 50
    assert abs(share - (sure < 0.5).mean()) < 5 * error


def test_each_edge_of_a_ladder_is_compared(tmp_path):
    """An answer of the second is the cloud's question for both: for the first that input was deferred."""

    def other(x):
        return "a", 1 - x

    with Router([edge, other], right, threshold=[0.5, 0.5], audit=Audit(share=1), state=tmp_path) as router:
        assert router.infer(0.1).leg == "other"
        idle(router)
    lines = {line["target"]: line["audited"] for line in read(tmp_path / "audit.jsonl")}
    assert lines == {"edge-1": "deferred", "other": "shadow"}


def test_what_was_too_late_for_its_request_is_compared(make, tmp_path, due):
    """Else the log would lack deferred inputs for which the cloud is slow, while an audit of an accepted one has time."""
    gate = threading.Event()
    router = make(edge, FakeCloud(lambda _: "b", gate=gate), audit=Audit(share=1), state=tmp_path)
    assert router.infer(0.1, deadline=due()).degraded
    gate.set()
    until(lambda: list(read(tmp_path / "audit.jsonl")))
    (line,) = read(tmp_path / "audit.jsonl")
    assert (line["audited"], line["agrees"]) == ("deferred", False)


def test_what_is_under_way_at_the_end_is_compared(tmp_path):
    """A program that answers one request and ends would log the deferred ones alone, else."""
    gate = threading.Event()
    router = Router(edge, FakeCloud(lambda _: "b", gate=gate), threshold=0.5, audit=Audit(share=1), state=tmp_path)
    for _ in range(5):
        router.infer(0.9)
    threading.Timer(0.05, gate.set).start()
    router.close()
    assert len(list(read(tmp_path / "audit.jsonl"))) == 5


@pytest.mark.parametrize("call", ["infer", "refine", "stream", "infer_many"])
def test_every_kind_of_call_is_audited_on_both_sides(make, call, tmp_path):
    """Deferred streams and refinements as well."""
    router = make(edge, right, audit=Audit(share=1), state=tmp_path)
    for x in (0.1, 0.9):
        if call == "infer_many":
            router.infer_many([x])
        elif call == "infer":
            router.infer(x)
        elif call == "refine":
            list(router.refine(x))
        else:
            with router.stream(x) as pieces:
                list(pieces)
    until(lambda: len(list(read(tmp_path / "audit.jsonl"))) == 2)
    assert sorted(line["audited"] for line in read(tmp_path / "audit.jsonl")) == ["deferred", "shadow"]


@pytest.mark.parametrize("trouble", ["cloud", "agrees", "disk"])
def test_whatever_goes_wrong_touches_no_answer(trouble, tmp_path, caplog):
    """A cloud that raises, a comparison that does, a disk that is none: the edge's answer stands, and the next audit is tried."""

    def agrees(_, __):
        raise ValueError("these cannot be compared")

    cloud = FakeCloud([RuntimeError("oops")] if trouble == "cloud" else lambda _: "a")
    audit = Audit(share=1, agrees=agrees if trouble == "agrees" else None)
    with caplog.at_level(logging.CRITICAL), Router(edge, cloud, threshold=0.5, audit=audit, state=tmp_path / "s") as router:
        if trouble == "disk":
            (tmp_path / "s" / "audit.jsonl").mkdir()
        for _ in range(2):
            answer = router.infer(0.9)
            assert (answer.value, answer.degraded) == ("a", False)
            idle(router)
        assert cloud.runs == 2
        assert router.stats().audits[0].audited == (2 if trouble == "disk" else 0)
        assert router.infer(0.1).value == "a"


# ------------------------------------------------------------------------------------------------------------ alarms
def drifted(router, n=400):
    """Audits, one after the other, of a cloud that says something else."""
    for i in range(n):
        router.infer(0.3 + 0.7 * (i % 50) / 50)
        idle(router)
        if router.stats().audits[0].alarm:
            return
    raise AssertionError("no alarm")


def test_no_alarm_while_nothing_changes(certificate):
    """The cloud disagrees as often as at the calibration."""
    rng = np.random.default_rng(1)
    cloud = FakeCloud(lambda x: "a" if x > 0.25 or rng.uniform() < 0.5 else "b")
    with Router(edge, cloud, threshold=certificate, audit=Audit(share=1)) as router:
        for x in rng.uniform(size=1000).tolist():
            router.infer(x)
            idle(router)
        told = router.stats().audits[0]
        assert told.audited > 500
        assert not told.alarm


def test_an_alarm_is_told(certificate, caplog):
    """In the log, in the reasons, in check and in stats; the threshold stays."""
    with Router(edge, wrong, threshold=certificate, audit=Audit(share=1, scene=1)) as router:
        drifted(router)
        told = router.stats().audits[0]
        assert told.evidence >= 1e4
        assert "differ from the cloud's, and at most" in told.alarm
        answer = router.infer(0.9)
        assert routes.judged(answer)[:3] == ("accepted", 0.9, certificate.threshold)
        assert routes.label(answer).endswith(told.alarm)
        assert routes.uncalibrated(answer)
        assert any("drift alarm" in line for line in router.check().lines)
    (line,) = [r.getMessage() for r in caplog.records if "drift alarm" in r.getMessage()]
    assert line.endswith("calibrate again")


def test_an_alarm_may_raise_the_threshold(certificate, caplog):
    """Half of what was accepted is deferred, and it goes on watching: the next alarm raises it again."""
    caplog.set_level(logging.CRITICAL)
    with Router(edge, wrong, threshold=certificate, audit=Audit(share=1, scene=1, on_alarm="raise")) as router:
        drifted(router)
        first = router.engine.snapshot.targets[0].threshold
        assert certificate.threshold < first < 1
        until(lambda: router.infer(1.0) and idle(router) is None and router.engine.snapshot.targets[0].threshold > first)
        assert router.infer(first).source == "cloud"


def test_an_alarm_goes_for_what_is_stored_too(certificate):
    """An answer that was accepted by a threshold which is not trusted any more is not given again."""
    answers = [*np.linspace(0.9, 1, 2000)]
    policy = {"audit": Audit(share=1, scene=1, on_alarm="defer"), "cache": Cache()}
    with Router(edge, wrong, **flat(threshold=certificate, **policy)) as router:
        assert router.infer(0.95).source == "edge"
        assert router.infer(0.95).source == "cache"
        for x in answers:
            router.infer(x)
            idle(router)
            if router.stats().audits[0].alarm:
                break
        assert router.stats().audits[0].alarm
        assert router.infer(0.95).value == "b"


def test_an_alarm_may_defer_all_and_a_later_run_knows(certificate, tmp_path, caplog):
    """Until there is another certificate: that begins anew."""
    caplog.set_level(logging.CRITICAL)
    policy = {"audit": Audit(share=1, scene=1, on_alarm="defer"), "state": tmp_path}
    with Router(edge, wrong, **flat(threshold=certificate, **policy)) as router:
        drifted(router)
        assert router.infer(1.0).source == "cloud"
    with Router(edge, wrong, **flat(threshold=certificate, **policy)) as router:
        answer = router.infer(1.0)
        assert answer.source == "cloud"
        assert routes.judged(answer)[:3] == ("below", 1.0, "inf")
        assert routes.label(answer).endswith(router.stats().audits[0].alarm)
        assert routes.uncalibrated(answer)
    with Router(edge, right, **flat(threshold=certificate._replace(n=4001), **policy)) as router:
        assert router.infer(1.0).source == "edge"
        assert not router.stats().audits[0].alarm


@pytest.mark.parametrize("on_alarm", ["tell", "raise", "defer"])
def test_deferral_rates_are_watched_without_any_audit(certificate, on_alarm, caplog):
    """Inputs of which all are unsure are not those of the calibration, nor are those of which none is. The threshold stays."""
    caplog.set_level(logging.CRITICAL)
    for x, what, share in ((0.0, "more", "100.0 %"), (1.0, "fewer", "0.0 %")):
        cloud = FakeCloud(lambda _: "a")
        with Router(edge, cloud, threshold=certificate, audit=Audit(share=0, scene=1, on_alarm=on_alarm)) as router:
            until(lambda: router.infer(x) and router.stats().audits[0].alarm)  # noqa: B023 - it is called here
            alarm = router.stats().audits[0].alarm
            assert f"{what} inputs than usual are deferred" in alarm
            assert f"have {share}" in alarm
            assert cloud.runs == (0 if x else router.stats().requests)
            assert router.engine.snapshot.targets[0].threshold == certificate.threshold
            assert router.engine.snapshot.targets[0].label.startswith("uncalibrated: drift alarm")
    assert all("it only tells" in r.getMessage() for r in caplog.records if "drift alarm" in r.getMessage())


def test_after_an_alarm_of_the_deferral_rate_that_of_the_audits_still_acts(certificate, tmp_path, caplog):
    """In a later run, too; and the text is the graver one."""
    caplog.set_level(logging.CRITICAL)
    policy = {"audit": Audit(share=1, scene=1, on_alarm="defer"), "state": tmp_path}
    with Router(edge, right, **flat(threshold=certificate, **policy)) as router:
        until(lambda: router.infer(1.0) and idle(router) is None and router.stats().audits[0].alarm)
        assert router.infer(1.0).source == "edge"
    with Router(edge, wrong, **flat(threshold=certificate, **policy)) as router:
        until(lambda: router.infer(1.0).source == "cloud" or idle(router))
        assert "differ from the cloud's" in router.stats().audits[0].alarm


@pytest.mark.parametrize("on_alarm", ["raise", "defer"])
def test_a_promise_of_few_deferrals_is_not_broken_by_an_alarm(on_alarm, caplog):
    """More deferrals would do that, so it only tells."""
    caplog.set_level(logging.CRITICAL)
    watch = a_watch(calibrate(SCORE, max_defer=0.3, agree=SCORE > 0.1), on_alarm=on_alarm)
    while not watch.add_comparison(0.9, agrees=False, counted=True):
        pass
    assert watch.at_least == -np.inf
    assert watch.reaction == "nothing else was changed (it only tells)"


@pytest.mark.parametrize("kind", ["max_loss", "max_error"])
def test_with_labels_the_loss_is_tested(make, kind, tmp_path, caplog):
    """A cloud that says something else is no loss while the edge is right; once that is wrong, there is an alarm. It survives."""
    caplog.set_level(logging.CRITICAL)
    edge_right = SCORE > 0.02
    made = calibrate(SCORE, edge_right, np.ones(4000, bool), **{kind: 0.05}, agree=edge_right)
    audit = Audit(share=1, scene=1, labelled=True)
    router = make(edge, wrong, threshold=made, audit=audit, state=tmp_path)
    told = router.stats().audits[0]
    for truth, alarmed in (("a", False), ("b", True)):
        for _ in range(300):
            answer = router.infer(0.99)
            until(lambda: not router.engine.auditor.jobs.busy)
            assert router.report(answer.id, truth)
            assert not router.report(answer.id, truth), "once"
            told = router.stats().audits[0]
            if told.alarm:
                break
        assert bool(told.alarm) == alarmed
    assert told.labelled < told.audited + 1
    assert told.disagreed == told.audited
    assert "audited answers with a label" in told.alarm
    router.close()
    again = make(edge, wrong, threshold=made, audit=audit, state=tmp_path)
    assert again.stats().audits[0]._replace(evidence=0) == told._replace(evidence=0)


def test_labels_that_are_not_expected_or_of_no_use():
    """Of answers that were not audited, of the cloud's, and of none."""
    with Router(edge, right, threshold=0.5, audit=Audit(share=1, labelled=True)) as router:
        assert not router.report(router.infer(0.1).id, "a")
        assert not router.report("nothing", "a")
        for nothing in (None, float("nan")):
            with pytest.raises(BadInput, match="leave out what is not known"):
                router.report("nothing", nothing)
    for audit in (None, Audit()):
        with Router(edge, right, threshold=0.5, audit=audit) as router, pytest.raises(PolicyError, match="labelled=True"):
            router.report("nothing", "a")


def test_a_label_may_come_before_the_clouds_answer(make, certificate):
    """It waits for that, and is taken then; once."""
    gate = threading.Event()
    router = make(edge, FakeCloud(lambda _: "b", gate=gate), threshold=certificate, audit=Audit(share=1, labelled=True))
    first = router.infer(0.9).id
    assert router.report(first, "a")
    assert not router.report(first, "a")
    gate.set()
    until(lambda: router.stats().audits[0].labelled == 1 and not router.engine.auditor.jobs.busy)
    assert not router.report(first, "a"), "it was taken"


def test_graded_labels_are_taken(certificate):
    """How right a value is may be a number; what is none is refused, and nothing was counted."""
    near = Audit(share=1, scene=1, labelled=True, agrees=lambda value, truth: 1 - abs(value - truth))
    with Router(lambda x: (0.5, x), lambda _: 0.75, threshold=certificate, audit=near) as router:
        ids = []
        for _ in range(200):
            ids.append(router.infer(0.9).id)
            idle(router)
        with pytest.raises(ValueError, match="a number from 0 to 1, not -2"):
            router.report(ids.pop(), 3.5)
        assert router.stats().audits[0].labelled == 0
        for one in ids:
            router.report(one, 0.75)
        assert "75.0 % are right, 100.0 % of the cloud's" in router.stats().audits[0].alarm


def test_of_those_that_wait_for_a_label_the_oldest_is_given_up(monkeypatch):
    """Most audited answers never get one."""
    monkeypatch.setattr("edgeroute.trials.audits_and_drift_alarms.UNLABELLED_MOST", 3)
    with Router(edge, right, threshold=0.5, audit=Audit(share=1, labelled=True)) as router:
        ids = []
        for _ in range(5):
            ids.append(router.infer(0.9).id)
            idle(router)
        assert [router.report(one, "a") for one in ids] == [False, False, True, True, True]


def test_a_raise_stops_at_the_highest_certified_threshold(certificate):
    """Above it what is accepted may be worse. If there is an alarm even there, nothing is accepted."""
    from edgeroute.trials import audit_setting_and_drift_monitor as drift

    watch = a_watch(certificate, on_alarm="raise")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drift, "highest_certified", lambda _: 0.6)
        found = []
        for _ in range(2):
            while not watch.add_comparison(0.9, agrees=False, counted=True):
                pass
            found.append(watch.at_least)
    assert found == [0.6, np.inf]


SCENES = 30_000


@pytest.mark.slow
@pytest.mark.parametrize("scene", [1, 2, 5, 30])
def test_scenes_and_bursts_are_no_drift(certificate, scene, tmp_path):
    """Inputs in scenes, each of which is deferred as a whole or hardly, and of which some differ as a whole; the world stays.

    Four runs with fixed seeds: in each of them the next alarm is further away than 10,000 requests; a run is cut off at 30,000.
    """
    rng = np.random.default_rng(scene)
    x = np.repeat(rng.random(SCENES // scene), scene).tolist()
    differs = rng.random(10_000) < 0.5
    cloud = Function(lambda x: "b" if x < 0.25 and differs[int(x * 10_000)] else "a")
    random.seed(scene)
    with Router(edge, cloud, threshold=certificate, audit=Audit(share=0.05)) as router:
        for one in x:
            router.infer(one)
            if router.engine.auditor.jobs.busy:  # one at a time, so that each run is the same
                idle(router)
        told = router.stats().audits[0]
        assert told.audited > 1000
        assert not told.alarm


def test_a_reload_keeps_what_is_known_of_the_same_certificate(certificate, tmp_path, caplog):
    """With another threshold it begins anew."""
    caplog.set_level(logging.CRITICAL)
    certificate.save(tmp_path / "c.json")
    policy = tmp_path / "policy.toml"
    text = (
        'threshold = "c.json"\nstate = "s"\n[audit]\nscene = 1\nshare = "100%"\n[cloud]\nurl = "http://127.0.0.1:1/v2/models/m"\n'
    )
    policy.write_text(text)
    with Router.from_policy(policy, edge=edge, cloud=wrong) as router:
        drifted(router)
        policy.write_text('deadline = "10s"\n' + text)
        router.reload()
        assert routes.label(router.infer(0.9)).endswith(router.stats().audits[0].alarm)
        policy.write_text(text.replace('"c.json"', "0.5"))
        router.reload()
        assert routes.judged(router.infer(0.9)) == ("accepted", 0.9, 0.5, "uncalibrated")


@pytest.mark.parametrize("now", ['never_leave = ["chat"]', 'may_leave = ["other"]'])
def test_an_audit_that_waits_heeds_the_rules_in_force_by_then(tmp_path, now):
    """What the egress rules forbid since a reload is not sent, although its answer was given before."""
    policy, sent, gate = tmp_path / "policy.toml", [], threading.Event()
    text = 'threshold = 0.5\n[audit]\nscene = 1\nshare = "100%"\n[cloud]\nurl = "http://127.0.0.1:1/v2/models/m"\n[egress]\n'
    policy.write_text(text + 'may_leave = ["chat"]')

    def cloud(x):
        sent.append(x)
        gate.wait(LONG)
        return "a"

    with Router.from_policy(policy, edge=edge, cloud=cloud) as router:
        for x in (0.9, 0.91, 0.92, 0.93):
            router.infer(x, data_class="chat")
        until(lambda: len(sent) == 2)  # as many as run together
        policy.write_text(text + now)
        router.reload()
        gate.set()
        idle(router)
        assert sent == [0.9, 0.91]


def test_what_the_caller_makes_of_its_answer_is_not_compared(tmp_path):
    """An application scales the boxes that it got, say: the audit compares what the edge has answered."""
    gate = threading.Event()

    def cloud(_):
        gate.wait(LONG)
        return [1.0, 2.0], 0.9

    with Router(lambda _: ([1.0, 2.0], 0.9), cloud, threshold=0.5, audit=Audit(share=1.0), state=tmp_path) as router:
        for x in range(3):
            router.infer(x).value[0] *= 640
        gate.set()
        idle(router)
    assert [line["agrees"] for line in read(tmp_path / "audit.jsonl")] == [True] * 3


def test_a_function_of_numpy_compares(tmp_path):
    options = {"threshold": 0.5, "audit": Audit(share=1.0, agrees=np.array_equal), "state": tmp_path}
    with Router(lambda _: (np.ones(3), 0.9), lambda x: (np.full(3, x), 0.9), **options) as router:
        for x in range(3):
            router.infer(x)
        idle(router)
    assert sorted(line["agrees"] for line in read(tmp_path / "audit.jsonl")) == [False, False, True]


class Uncopied:
    """A value that has no copy, as one with a lock or an open file."""

    def __deepcopy__(self, memo):
        raise TypeError("it has no copy")

    def __eq__(self, other):
        return type(other) is Uncopied

    def __hash__(self):
        return 0


@pytest.mark.parametrize("labelled", [True, False])
def test_a_value_that_has_no_copy_is_compared(tmp_path, labelled, caplog):
    """As it is by then: an audit without a copy says more than none."""
    options = {"threshold": 0.5, "audit": Audit(share=1.0, labelled=labelled), "state": tmp_path}
    with Router(lambda _: (Uncopied(), 0.9), lambda _: (Uncopied(), 0.9), **options) as router:
        for x in range(3):
            router.infer(x)
        idle(router)
    assert [line["agrees"] for line in read(tmp_path / "audit.jsonl")] == [True] * 3
    assert not caplog.records


def test_what_was_deferred_before_a_reload_says_nothing_of_another_certificate(certificate, tmp_path):
    """Nor is it counted once more for the same: a reload is no reason for an alarm."""
    certificate.save(tmp_path / "c.json")
    certificate._replace(n=4001).save(tmp_path / "d.json")
    policy = tmp_path / "policy.toml"
    text = 'threshold = 1\n[audit]\nscene = 1\nshare = 0\n[cloud]\nurl = "http://127.0.0.1:1/v2/models/m"\n'
    policy.write_text(text)
    rng = np.random.default_rng(3)
    with Router.from_policy(policy, edge=edge, cloud=right) as router:
        for _ in range(10 * TOGETHER + 5):
            router.infer(0.1)  # all of them are deferred: the threshold is above every confidence
        for name in ("c", "d", "d"):
            policy.write_text(text.replace("= 1\n[", f'= "{name}.json"\n['))
            router.reload()
            for x in rng.uniform(size=5 * TOGETHER).tolist():
                router.infer(x)
            router.stats()
            assert not router.stats().audits[0].alarm


# ----------------------------------------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("audit", "says"),
    [
        (Audit(share=1.5), "share= takes a number, 0 to 1"),
        (Audit(share=float("nan")), "share= takes a number, 0 to 1"),
        (Audit(on_alarm="panic"), "on_alarm is 'tell', 'raise' or 'defer'"),
        (Audit(scene=0), "scene= takes a whole number, 1 or more, not 0"),
        (Audit(labelled="yes"), "labelled"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(audit, says):
    """Before anything is asked."""
    with pytest.raises(PolicyError, match=says):
        Router(edge, right, threshold=0.5, audit=audit)


# ----------------------------------------------------------------------------------------------------- by themselves
def a_watch(certificate, **audit):
    from edgeroute.confidence.certificate import BoundCertificate

    return DriftMonitor(BoundCertificate(certificate, {}, 1e9), Audit(**audit))


def test_the_limit_is_what_calibration_saw_and_what_the_promise_allows(certificate):
    """Without a comparison at calibration there is none, nor where nothing was accepted."""
    from edgeroute.confidence.certificate import BoundCertificate

    def of(**changed):
        return limit(BoundCertificate(certificate._replace(**changed), {}, 1e9))

    assert of(disagreement=0.2) == 0.2
    assert of(disagreement=0.001, value=0.01, deferral_rate=0.5) == 0.02
    assert of(disagreement=0.001, value=0.05, kind="max_error") == 0.001
    assert of(disagreement=None) is None
    assert of(deferral_rate=1.0) is None


def test_what_is_dumped_is_taken_up(certificate):
    """By a watch of the same certificate alone; and of garbage nothing."""
    watch = a_watch(certificate)
    for i in range(300):
        watch.add_comparison(0.3 + i / 1000, agrees=i % 100 > 0, counted=True)
    watch.add_totals(640, 200)
    dumped = json.loads(json.dumps(watch.dump()))
    again = a_watch(certificate)
    again.load(dumped)
    assert json.loads(json.dumps(again.dump())) == dumped
    assert (dumped["judged"], dumped["deferred"]) == (640, 200)
    other = a_watch(certificate._replace(n=1))
    other.load(dumped)
    assert other.audited == 0
    for broken in ({}, {"certificate": certificate.checksum}, {**dumped, "drift": 3, "alarm": 5, "audited": None}):
        a_watch(certificate).load(broken)
