"""Counts of audits in the state file: what is counted, that processes add up, when they begin anew, and what damage does."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from math import inf, nan

import numpy as np
import pytest
from both import LONG
from commands import cli
from draws import slow

from edgeroute import Audit, BadInput, CallableModel, Function, OpenAIChat, Router, Trial
from edgeroute.confidence import Certificate, NotEnough
from edgeroute.confidence.certificate import BoundCertificate, digest
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.system import wall_clock
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.cli.calibrate_from_examples_or_audits import audited_counts, certify_audits
from edgeroute.tools.cli.status_and_trial_arms import read_state
from edgeroute.tools.measure.audit_counts_and_evidence import NONE, LossCounts
from edgeroute.tools.measure.certification_and_verdicts import audited_examples
from edgeroute.trials.audit_setting_and_drift_monitor import DriftMonitor
from edgeroute.trials.audits_and_drift_alarms import COUNTS, SERVED

DAY = 86_400.0


def edge(value="a", version="1"):
    """A model that is as sure as its input says."""
    return CallableModel(lambda x: (value, x), version=version)


def says(value):
    """A cloud that always says that; its version is the same."""
    return Function(lambda _: value, version="1")


def until(condition):
    """Returns once it holds."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.001)


def used(home, *inputs, version="1", share=1.0, cloud="b", **more):
    """Runs a router on the inputs, each audited -> the digest of its fingerprints."""
    audit = Audit(share=share, scene=1)
    with Router(edge(version=version), says(cloud), **{"threshold": 0.5, "audit": audit, "state": home, **more}) as router:
        for x in inputs:
            router.infer(x)
            until(lambda: not router.engine.auditor.jobs.busy)
        return digest(router.fingerprints())


def stored(home):
    """The stored counts, by digest."""
    return {
        name.removeprefix(COUNTS): LossCounts.load(v.value) for name, v in read_state(home).items() if name.startswith(COUNTS)
    }


def test_each_audit_counts_once(tmp_path):
    """Accepted or deferred; a later run adds to them, another model has its own, and without audits nothing is stored."""
    first = used(tmp_path, 0.9, 0.1, 0.9)
    assert stored(tmp_path)[first].accepted(NONE - 1) == (0, 0, 0)
    assert stored(tmp_path)[first].accepted(0) == (3, 3, 0)
    assert used(tmp_path, 0.9, threshold=0.7) == first, "another threshold is no other model"
    assert stored(tmp_path)[first].n == 4
    second = used(tmp_path, 0.9, version="2")
    assert {name: counts.n for name, counts in stored(tmp_path).items()} == {first: 4, second: 1}
    used(tmp_path / "other", 0.9, share=0.0)
    assert not stored(tmp_path / "other")


@pytest.mark.parametrize("runs", [[10], [70], [64, 3]])
def test_the_status_counts_each_answer(tmp_path, runs):
    """Of short runs, too, once they have ended; a router that only measures changes nothing."""
    for i, count in enumerate(runs):
        with Router(edge(), says("a"), threshold=0.5, audit=Audit(share=0.0), state=tmp_path) as router:
            assert {router.infer(0.9 if x % 2 else 0.1).value for x in range(count)} == {"a"}
        (shown,) = json.loads(cli("status", "--state", tmp_path, "--json")[1])["edges"]
        assert (shown["judged"], shown["deferred"]) == (count, (count + 1) // 2), i
    before = read_state(tmp_path)
    with Router(edge(), says("a"), threshold=0.5, audit=Audit(share=0.0), state=tmp_path) as router:
        router.evaluate([0.1, 0.9])
    assert read_state(tmp_path)["audit:edge"] == before["audit:edge"]


def same_first_letter(edge, cloud):
    return edge[0] == cloud[0]


def never(_, __):
    return False


def test_another_comparison_begins_new_counts(tmp_path):
    """Counts of different functions `agrees`, or of one and none, are never added up, in the state or by the log."""

    def ran(agrees, *inputs):
        return used(tmp_path, *inputs, audit=Audit(share=1.0, scene=1, agrees=agrees))

    name = ran(None, 0.9, 0.9)
    with Router(edge(), says("b"), threshold=0.5) as router:
        prints = router.fingerprints()
    assert (stored(tmp_path)[name].n, stored(tmp_path)[name].alarms) == (2, 0)
    for alarms, agrees in ((1, never), (2, same_first_letter), (3, None)):
        ran(agrees, 0.9)
        assert ran(agrees, 0.8) == name
        counts = stored(tmp_path)[name]
        assert (counts.n, counts.alarms, counts.begun > 0) == (2, alarms, True)
        audits = audited_examples(tmp_path / "audit.jsonl", "edge", prints)
        assert (len(audits.ids), audits.alarms) == (2, alarms)


def test_a_trial_that_is_the_edge_in_use_is_counted_once(tmp_path):
    """The same request of the same model is no second example; another model has counts of its own."""
    name = used(tmp_path, 0.9, 0.8, trial=Trial(edge=edge(), shown=False))
    assert {name: counts.n for name, counts in stored(tmp_path).items()} == {name: 2}
    used(tmp_path, 0.9, trial=Trial(edge=edge(version="2"), shown=False))
    assert sorted(counts.n for counts in stored(tmp_path).values()) == [1, 3]


ADD = """
import sys
from pathlib import Path
from edgeroute.stores.sqlite_file_and_key_values import Database, KeyValueStore
from edgeroute.trials.audits_and_drift_alarms import COUNTS
Database.__init__.__kwdefaults__["busy_s"] = 120.0  # a machine may be busy
store = KeyValueStore(Path(sys.argv[1]))
for i in range(40):
    store.add({COUNTS + "x": {"0 1.0 90 0": 1}})
    store.flush()
store.close()
"""


def test_two_processes_add_up(tmp_path):
    """None of their audits is lost, though each writes on its own."""
    processes = [subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path / "state.db")]) for _ in range(2)]
    assert [process.wait(LONG) for process in processes] == [0, 0]
    assert stored(tmp_path)["x"].n == 80


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_does_not_add_what_the_parent_does(tmp_path):
    """What waits is written once."""
    store = KeyValueStore(tmp_path / "state.db")
    for _ in range(3):
        store.add({COUNTS + "x": {"0 1.0 90 0": 1}})
    child = os.fork()
    if not child:
        store.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    store.close()
    assert stored(tmp_path)["x"].n == 3


def test_with_a_disk_that_fails(tmp_path):
    """What waits for it is added when it is back; without a file, or once it is closed, nothing happens."""
    store = KeyValueStore(tmp_path / "s" / "state.db")
    (tmp_path / "s").write_text("no folder")
    store.add({COUNTS + "x": {"0 1.0 90 0": 1}})
    assert not store.flush()
    store.add({COUNTS + "x": {"0 1.0 90 0": 1}})
    (tmp_path / "s").unlink()
    assert store.flush()
    store.close()
    store.add({COUNTS + "x": {"0 1.0 90 0": 1}})
    assert stored(tmp_path / "s")["x"].n == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"0 1.0 90": 3}', "{}", "changed"])
def test_damage_begins_anew(tmp_path, text):
    """A value that was changed or cut off is not believed: later audits alone count, and nothing else of the file is lost."""
    used(tmp_path, 0.9)
    (name,) = stored(tmp_path)
    with sqlite3.connect(tmp_path / "state.db") as connection:
        if text == "changed":
            connection.execute("UPDATE kept SET value = replace(value, ':1', ':9') WHERE name LIKE 'counts:%'")
        else:
            connection.execute("UPDATE kept SET value = ? WHERE name LIKE 'counts:%'", (text,))
    connection.close()
    used(tmp_path, 0.8, 0.8)
    assert stored(tmp_path)[name].accepted(0) == (2, 2, 0)


def test_counts_by_other_thresholds(tmp_path):
    """Their indices mean other confidences, so they are not read; what was certified by them has spent its part of the risk."""
    name = used(tmp_path / "other", 0.9)
    store = KeyValueStore(tmp_path / "state.db")
    store.put(f"counts:{name}", {"0 1.0 90 0": 1500})
    store.close()
    for n in (1, 2):
        assert used(tmp_path, 0.8) == name
        counts = stored(tmp_path)[name]
        assert (counts.accepted(0), counts.alarms, counts.begun > 0) == ((n, n, 0), 1, True)


def test_a_counts_file_that_is_cut_off(tmp_path):
    """The state begins anew, and so do the counts."""
    used(tmp_path, 0.9)
    path = tmp_path / "state.db"
    path.write_bytes(path.read_bytes()[:5000])
    name = used(tmp_path, 0.8)
    assert stored(tmp_path)[name].n == 1


# ------------------------------------------------------------------------------------------------------ the alarm
def certificate(loss=0.02):
    return Certificate(
        "max_loss", loss, 0.95, "LR-BB", True, 4000, "2026-01-01", 0.0, {}, 0.0, (0.0, 0.01), {}, 0.0, "msp", {}, {}, disagreement=loss
    )  # fmt: skip


def alarms(monkeypatch, rates, *, daily, scene=30, days=10, turn=1):
    """The number of audits at which the alarm goes off; None: it does not. rates: share that differs, by the hour of the day."""
    now = [0.0]
    monkeypatch.setattr(wall_clock, "now", lambda: now[0])
    monitor, credit = DriftMonitor(BoundCertificate(certificate(), {}, 1e12), Audit(scene=scene)), [0.0] * 24
    for i in range(days * daily):
        now[0] = turn * i * DAY / daily
        hour = int(now[0] % DAY // 3600)
        credit[hour] += rates[hour]
        differs = credit[hour] >= 1
        credit[hour] -= differs
        if monitor.add_comparison(0.9, agrees=not differs, counted=True):
            return i + 1
    return None


CYCLE = [0.0005] * 16 + [0.058] * 8


@pytest.mark.parametrize("turn", [1, -1])
def test_a_daily_cycle_is_no_alarm(monkeypatch, turn):
    """Of which the mean is within the limit, whichever way the clock goes; a test of each value takes the night for a drift."""
    assert alarms(monkeypatch, CYCLE, daily=1200, turn=turn) is None
    assert alarms(monkeypatch, CYCLE, daily=1200, turn=turn, scene=1) < 3 * 1200


def test_a_change_is_found_at_the_end_of_a_day_and_a_great_one_at_once(monkeypatch):
    """Three times as many, and thirty times."""
    assert 1200 < alarms(monkeypatch, [0.06] * 24, daily=1200) <= 2 * 1200 + 1
    assert alarms(monkeypatch, [0.6] * 24, daily=1200) < 100


def test_an_alarm_begins_the_counts_anew(tmp_path):
    """What was counted is of other inputs, or of another cloud."""
    before = used(tmp_path, *[0.9] * 20, threshold=certificate(), cloud="a")
    assert stored(tmp_path)[before].n == 20
    assert used(tmp_path, *[0.9] * 300, threshold=certificate(), cloud="b") == before
    with Router(edge(), says("a"), threshold=certificate(), audit=Audit(share=1, scene=1), state=tmp_path) as router:
        assert "differ from the cloud's" in router.stats().audits[0].alarm
    counts = stored(tmp_path)[before]
    assert counts.alarms == 1
    assert 200 < counts.n < 300
    assert counts.accepted(-1) == (counts.n, counts.n, 0)


class Calls:
    """What is certified."""

    score_name = "msp"

    def __init__(self, prints):
        self.fingerprints = lambda: prints


def looked(home, prints, **more):
    """The certificate of a look by the command; None: there are too few audits."""
    counts, remember, _ = audited_counts(home, "edge", prints, **more)
    try:
        return certify_audits(home, counts, Calls(prints), 0.02, 0.95, remember=remember)
    except NotEnough:
        return None


def test_audits_of_one_input_are_doubted(tmp_path):
    """By counts it is known from the confidence alone, and said in the certificate; the guarantee is about that input."""
    used(tmp_path, *[0.9] * 300, cloud="a")
    with Router(edge(), says("a"), threshold=0.5) as router:
        prints = router.fingerprints()
    (doubt,) = looked(tmp_path, prints).doubts
    assert "all 300 audits have the same confidence" in doubt
    used(tmp_path, 0.8, cloud="a")
    assert looked(tmp_path, prints).doubts == ()


def test_audits_without_a_confidence_are_doubted(tmp_path):
    """They are not of one input: nothing that the edge answers has a confidence, so all of it is deferred."""
    used(tmp_path, *[nan] * 300, cloud="a")
    with Router(edge(), says("a"), threshold=0.5) as router:
        found = looked(tmp_path, router.fingerprints())
    (doubt,) = found.doubts
    assert "none of the 300 audits has a confidence" in doubt
    assert found.threshold == inf


@pytest.mark.parametrize("every", [2, *slow(1)])
def test_nothing_from_before_an_alarm_is_certified(tmp_path, every):
    """Neither after a restart at once, nor by the log, with the counts or without; and what was certified is forgotten."""
    used(tmp_path, *[0.9] * 700, threshold=certificate(), cloud="a")
    with Router(edge(), says("b"), threshold=certificate(), audit=Audit(share=1.0, scene=1), state=tmp_path) as router:
        prints = router.fingerprints()
        assert looked(tmp_path, prints, every=every).threshold < 0.9
        while not router.stats().audits[0].alarm:
            router.infer(0.9)
            until(lambda: not router.engine.auditor.jobs.busy)
    assert looked(tmp_path, prints) is None
    with pytest.raises(BadInput, match="from before the last alarm"):
        audited_counts(tmp_path, "edge", prints, every=2)
    used(tmp_path, *[0.9] * 10, threshold=certificate(), cloud="a")
    assert stored(tmp_path)[digest(prints)].n == 10
    assert audited_counts(tmp_path, "edge", prints, every=2)[0].n == 5
    (tmp_path / "state.db").unlink()
    counts, remember, notes = audited_counts(tmp_path, "edge", prints)
    assert (counts.n, counts.alarms, remember) == (10, 1, False)
    assert any("from before the last alarm" in note for note in notes)


@pytest.mark.parametrize("later", ["alarm", "lost"])
def test_a_look_is_bound_to_its_counts(tmp_path, later):
    """Two rates before an alarm and one after it, or a state that began anew: what was certified is none of these counts."""
    prints = {"edge": later}
    before, after = {"0 0.02 90 0": 1500}, {f"{17 * (later == 'alarm')} 0.02 90 1": 900}
    before |= {"0 0.01 90 0": 1500} if later == "alarm" else {}
    store = KeyValueStore(tmp_path / "state.db")
    store.put(COUNTS + digest(prints), before)
    assert store.flush()
    good = looked(tmp_path, prints)
    assert good.threshold < 1
    assert looked(tmp_path, prints).threshold == good.threshold
    store.put(COUNTS + digest(prints), (before if later == "alarm" else {}) | after)
    store.close()
    assert looked(tmp_path, prints).accuracy["edge"] == 0
    assert looked(tmp_path, prints).threshold > good.threshold


@pytest.mark.parametrize(("grade", "n"), [(0.1, 0), (None, 0), ("yes", 0), (1.0, 3), (0, 3), (np.bool_(True), 3)])
def test_a_grade_is_no_agreement(tmp_path, grade, n, caplog):
    """Without labels a comparison says yes or no."""
    audit = Audit(share=1.0, scene=1, agrees=lambda *_: grade)
    with Router(edge(), says("b"), threshold=0.5, audit=audit, state=tmp_path) as router:
        for x in (0.9, 0.9, 0.1):
            router.infer(x)
            until(lambda: not router.engine.auditor.jobs.busy)
    assert sum(counts.n for counts in stored(tmp_path).values()) == n
    assert sum(counts.accepted(-1)[1] for counts in stored(tmp_path).values()) == n * (not grade)
    assert ("returns True or False" in caplog.text) == (not n)


def test_a_grade_with_labels_agrees_at_1_alone(tmp_path):
    """It grades what is right; half as good is another answer."""
    audit = Audit(share=1.0, scene=1, agrees=lambda *_: 0.5, labelled=True)
    name = used(tmp_path, 0.9, 0.8, audit=audit)
    assert stored(tmp_path)[name].accepted(-1) == (2, 2, 0)


def test_an_alarm_is_stored_at_once(tmp_path, monkeypatch):
    """With the beginning of the counts, while the router runs: a process that is killed after it does not forget it."""
    monkeypatch.setattr("edgeroute.stores.sqlite_file_and_key_values.DELAY_S", 1e6)
    with Router(edge(), says("b"), threshold=certificate(), audit=Audit(share=1.0, scene=1), state=tmp_path) as router:
        while not router.stats().audits[0].alarm:
            router.infer(0.9)
            until(lambda: not router.engine.auditor.jobs.busy)
        until(lambda: "audit:edge" in read_state(tmp_path))
        assert read_state(tmp_path)["audit:edge"].value["alarm"]
        (counts,) = stored(tmp_path).values()
        assert (counts.n, counts.alarms) == (0, 1)


# ------------------------------------------------------------------------------------ the model that the server names
def completions(models, answer="a"):
    """Replies of these models in turn, the last one for ever; None names none."""
    left = [*models]

    def reply(_):
        model = left.pop(0) if len(left) > 1 else left[0]
        said = {"choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]}
        body = json.dumps(said if model is None else {**said, "model": model, "system_fingerprint": "f"})
        return http_reply(body.encode(), headers=[("Content-Type", "application/json")])

    return reply


def named(*models):
    """The identity of a server that has named these."""
    return f"version:{','.join(f'{model}/f' for model in models)} described:openai"


def asked(home, models):
    """Audits a deferred request for each of these models -> the fingerprints in use, as a new process knows them."""
    model = CallableModel(lambda x: ("a", float(x)), version="1")
    with CannedServer(completions(models)) as server:
        hosted = OpenAIChat("http://127.0.0.1:9", model="m", stream=False)
        with Router(model, hosted, threshold=0.5) as router:
            prints = router.fingerprints()
        hosted = OpenAIChat(server.url, model="m", stream=False)
        hosted.where = "http://127.0.0.1:9/v1 (m)"  # of each run
        audit = Audit(share=1.0, scene=1)
        with Router(model, hosted, threshold=0.5, audit=audit, state=home) as router:
            for _ in models:
                assert router.infer("0.1").source == "cloud"
    return prints


@pytest.mark.parametrize("every", [1, 2])
def test_audits_of_models_that_the_server_names_are_counted_apart(tmp_path, every):
    """In one process, by several, and where the provider changes between two; the log has the names, too."""
    prints = asked(tmp_path, ["m-1", "m-1", "m-2", "m-1", "m-2", "m-2"])
    asked(tmp_path, ["m-1"] * 4 + ["m-2"])
    counts, _, notes = audited_counts(tmp_path, "edge", prints, every=every)
    assert (counts.n, counts.served, counts.alarms) == (4 // every, named("m-2"), 1)
    assert any("left out, 7" in note and "other models of the server" in note for note in notes)
    asked(tmp_path, ["m-1"])
    counts, *_ = audited_counts(tmp_path, "edge", prints, every=every)
    assert (counts.n, counts.served) == (8 // every, named("m-1"))


def hosted_counts(home, last, prints, **audits):
    """Stores counts of audits by the server's model: how many are the same, and how many differ."""
    store, numbers = KeyValueStore(home / "state.db"), {}
    for model, (same, differ) in audits.items():
        of = f" of {named(model)}" if model != "unknown" else ""
        numbers |= {f"0 1.0 {90 - i % 3} 0{of}": same // 3 for i in range(3)} | {f"0 1.0 90 1{of}": differ}
    store.put(COUNTS + digest(prints), numbers)
    store.put(SERVED + digest(prints), last)
    store.close()


PRINTS = {"edge": "e", "served": "version:? described:openai"}


@pytest.mark.parametrize(("name", "differ"), [("m2", 16), ("m2", 0), ("unknown", 16)])
def test_a_swapped_model_is_not_certified_by_audits_of_the_one_before(tmp_path, name, differ):
    """It has too few of its own, also where the earlier ones are of a version that did not note the model."""
    of = {"m1" if name == "m2" else name: (3000, 4), "m2" if name == "m2" else "m1": (24, differ)}
    hosted_counts(tmp_path, named([*of][-1]), PRINTS, **of)
    assert looked(tmp_path, PRINTS) is None
    hosted_counts(tmp_path, named("m3"), PRINTS, **of)
    assert looked(tmp_path, PRINTS) is None, "a swap of which no audit is counted yet"


@pytest.mark.parametrize(("other", "covered"), [((3000, 0), True), ((3000, 900), False), ((30, 0), False)])
def test_a_certificate_names_the_models_of_its_audits(tmp_path, other, covered):
    """The last, and each other one whose own audits certify the threshold: a reply of any other suspends it."""
    hosted_counts(tmp_path, named("m2"), PRINTS, m1=other, m2=(3000, 0))
    found = looked(tmp_path, PRINTS)
    assert found.fingerprints["served"] == (named("m1", "m2") if covered else named("m2"))
    used = {name: found.fingerprints[name] for name in PRINTS}
    assert BoundCertificate(found, used, inf).broken() is None
    assert BoundCertificate(found, {**used, "served": PRINTS["served"]}, inf).broken() is None, "no reply so far"
    for model, holds in (("m1", covered), ("m2", True), ("m3", False)):
        broken = BoundCertificate(found, {**used, "served": named(model)}, inf).broken()
        assert broken is None if holds else f"version {model}/f, and not" in broken


def test_what_was_certified_of_a_model_stays_with_it(tmp_path):
    """A look at another's counts has no part in it."""
    hosted_counts(tmp_path, named("m1"), PRINTS, m1=(3000, 0))
    assert looked(tmp_path, PRINTS).threshold < 1
    hosted_counts(tmp_path, named("m2"), PRINTS, m1=(3000, 0), m2=(0, 900))
    assert looked(tmp_path, PRINTS).threshold == inf


def test_a_server_that_names_no_model(tmp_path):
    """Is certified by all audits, and a note says what that leaves out."""
    prints = asked(tmp_path, [None] * 300)
    counts, remember, (note,) = audited_counts(tmp_path, "edge", prints)
    assert (counts.n, counts.served, remember) == (300, "", True)
    assert "do not tell which model" in note
    assert looked(tmp_path, prints).fingerprints["served"] == "version:? described:openai"


def test_a_server_of_ever_new_names(tmp_path):
    """Has no more names than are stored: all others are one, for which no certificate of theirs holds."""
    prints = asked(tmp_path, [f"m-{i}" for i in range(40)])
    counts, *_ = audited_counts(tmp_path, "edge", prints)
    assert (counts.n, counts.served, counts.alarms) == (8, "version:other described:openai", 32)
