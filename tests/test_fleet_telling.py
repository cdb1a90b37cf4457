"""A device of a fleet: every request is counted, every day is told once, and nothing is lost or doubled on the way."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import tiny
from both import GOOD, LONG, Threads, makes, wait_for
from commands import cli

from edgeroute import Audit, Cache, CallableModel, Egress, Function, NoAnswer, Secret, StoreError, Trial
from edgeroute.core.sequential_tests import GRID
from edgeroute.fleet import daily_digest_spool_and_upload as daily_digests
from edgeroute.fleet import device_request_counts
from edgeroute.fleet.daily_digest_spool_and_upload import (
    DAY_S,
    KEEP_DAYS,
    MOST_SPOOLED,
    day_and_hour,
    new_device,
    row_name,
    spooled,
)
from edgeroute.fleet.device_request_counts import Fleet
from edgeroute.fleet.digest_encoding_and_coarsening import AUDIT_STEP, UNSTATED
from edgeroute.stores.json_lines_and_process_locks import read
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.testing import CannedServer
from edgeroute.tools.fleet.untrusted_digest_decoder import decode

NOON = 1_795_953_600.0  # 2026-11-29 12:00 UTC
KEY = b"a key"


def quiet(*args, **options):
    """Return a part that uploads only when the test says so."""
    fleet = Fleet(*args, **options)
    fleet.opened = lambda status: None
    return fleet


class Clock:
    """Wall clock that the test sets."""

    def __init__(self):
        self.now = NOON

    def __call__(self):
        """Return the time."""
        return self.now


@pytest.fixture
def wall(monkeypatch):
    """Wall clock of the digests."""
    clock = Clock()
    monkeypatch.setattr(daily_digests, "clock", clock)
    return clock


@pytest.fixture
def to(tmp_path):
    """Folder to which digests go."""
    (tmp_path / "to").mkdir()
    return tmp_path / "to"


def edge(x):
    """Return an answer whose confidence is the input."""
    if x == "bad":
        raise RuntimeError
    return "edge", float(x)


def cloud(x):
    """Return another answer."""
    return "cloud"


made = makes(edge=CallableModel(edge, version="1"), cloud=Function(cloud, version="1", usd_per_call=0.25), threshold=0.5)


def digests(folder):
    """Return the newest digest of each device and day, as a reader has it."""
    newest = {}
    for path in folder.rglob("*.digest"):
        read = decode(path.read_bytes())
        known = newest.get((read.device, read.day))
        newest[read.device, read.day] = read if known is None or read.revision > known.revision else known
    return sorted(newest.values(), key=lambda one: one.day)


def rows(tmp_path, prefix):
    """Return the rows of the state file whose names begin with that."""
    store = KeyValueStore(tmp_path / "state" / "state.db")
    try:
        return store.rows(prefix)
    finally:
        store.close()


def total(given, field=2):
    """Return the sum of a count of digests: by default of the requests."""
    return sum(row[field] for one in given for row in one.requests)


def by_group(given, field=2):
    """Return (model without digest, arm, data class) -> sum of a count."""
    sums = {}
    for one in given:
        for row in one.requests:
            model, _, arm, data_class = one.groups[row[0]]
            key = (model.partition(":")[0], arm, data_class)
            sums[key] = sums.get(key, 0) + row[field]
    return sums


def test_each_kind_of_call_is_counted(made, tmp_path, to, wall):
    """Single calls, batches, refined and streamed answers, hits of the cache, and errors; with costs once a batch."""
    fleet = quiet(str(to), site="plant-7")
    router = made(state=tmp_path / "state", parts=[fleet], cache=Cache())
    router.infer(0.9)
    router.infer(0.1)
    router.infer(0.1)  # from the cache
    assert [answer.value for answer in router.infer_many([0.8, 0.2, 0.3])] == ["edge", "cloud", "cloud"]
    assert [answer.value for answer in router.refine(0.4)][-1] == "cloud"
    with router.stream(0.95) as stream:
        assert [*stream] == ["edge"]
    assert router.infer("bad").value == "cloud"
    assert fleet.tell()
    (told,) = digests(to)
    assert (told.day, told.final, told.site, told.coarse) == ("2026-11-29", False, "plant-7", 0)
    assert {row[1] for row in told.requests} == {12}
    names = by_group([told])
    assert sum(names.values()) == 9
    assert names["edge", "", ""] >= 7
    deferred, failed, moved, usd = (total([told], field) for field in (3, 5, 6, 7))
    assert (deferred, failed, moved) == (5, 0, 0)
    assert usd == 5 * 250_000
    assert sum(sum(row[8:]) for row in told.requests) == 9
    assert sum(row[2] for row in told.confidences) == 7


def test_requests_without_an_answer_are_failed(made, tmp_path, to, wall):
    """They have no latency; a degraded answer is one of the edge that was deferred."""

    def down(x):
        raise OSError

    fleet = quiet(str(to))
    router = made(state=tmp_path / "state", parts=[fleet], cloud=Function(down, version="1"))
    assert router.infer(0.2).degraded
    with pytest.raises(NoAnswer):
        router.infer("bad")
    fleet.tell()
    (told,) = digests(to)
    assert [total([told], field) for field in (2, 3, 4, 5)] == [2, 1, 1, 1]
    assert sum(sum(row[8:]) for row in told.requests) == 1


def test_groups_are_models_policies_arms_and_classes(made, tmp_path, to, wall):
    """A class that the policy does not name is `other`, as it may be a user's text; both arms have one policy."""
    rules = Egress(may_leave=["product"], never_leave=["face"], unknown_class="allow")
    trial = Trial(CallableModel(edge, version="2"), share=0.5)
    fleet = quiet(str(to))
    router = made(state=tmp_path / "state", parts=[fleet], egress=rules, trial=trial)
    for name in ("product", "face", "Mr Smith's", "product"):
        router.infer(0.9, data_class=name)
    for _ in range(40):
        router.infer(0.9)
    fleet.tell()
    (told,) = digests(to)
    names = by_group([told])
    assert {data_class for _, _, data_class in names} == {"product", "face", "other", ""}
    assert {(model, arm) for model, arm, _ in names} == {("edge", ""), ("edge-trial", "edge-trial")}
    assert len({group[0] for group in told.groups}) == 2
    assert len({group[1] for group in told.groups}) == 1
    assert "Smith" not in str(told)


def test_counts_of_an_earlier_version(made, tmp_path, to, wall):
    """Of a day on which the device was updated: the requests count, and audits have no index, as it was of other thresholds."""
    fleet = quiet(str(to))
    router = made(state=tmp_path / "state", parts=[fleet])
    group, (day, hour) = ("edge", "p", "", ""), day_and_hour(wall.now)
    store = KeyValueStore.shared_store(tmp_path / "state" / "state.db", fleet)
    store.add({row_name(day, "requests", hour, group): {"r": 9}, row_name(day, "confidences", 0, group): {"31": 9}})
    store.add({row_name(day, "audits", hour, group): {"252 1.0 audited": 2, "100 1.0 audited": 1, "100 1.0 differ": 1}})
    router.infer(0.9)
    fleet.tell()
    (told,) = digests(to)
    assert total([told], 2) == 10
    assert [row[2:5] for row in told.audits] == [(UNSTATED, 3, 1)]
    assert sum(row[2] for row in told.confidences) == 1


def _policy():
    """Return the arguments of the fixture's policy."""
    return {"edge": CallableModel(edge, version="1"), "cloud": Function(cloud, version="1")}


def test_audits_are_counted_with_the_rate_of_the_draw(made, tmp_path, to, wall):
    """All of share 1 differ: harms without labels; the index is that of a threshold that digests have."""
    fleet = quiet(str(to))
    router = made(state=tmp_path / "state", parts=[fleet], audit=Audit(1.0))
    for x in (0.9, 0.2, 0.7):
        router.infer(x)
    wait_for(lambda: sum("agrees" in line for line in read(tmp_path / "state" / "audit.jsonl")) == 3)
    wait_for(lambda: not router.engine.auditor.jobs.busy)
    fleet.tell()
    (told,) = digests(to)
    assert [sum(row[i] for row in told.audits) for i in range(3, 7)] == [3, 3, 3, 0]
    assert {row[7] for row in told.audits} == {1.0}
    accepted = sorted(max((i for i in range(0, len(GRID), AUDIT_STEP) if GRID[i] <= x), default=-1) for x in (0.9, 0.2, 0.7))
    assert sorted(row[2] for row in told.audits for _ in range(row[3])) == accepted


def test_with_labels_an_audit_counts_once_its_label_is_reported(made, tmp_path, to, wall):
    """The edge's wrong answer is a harm if the cloud's is right, and its right one a win if the cloud's is wrong."""
    fleet = quiet(str(to))
    router = made(state=tmp_path / "state", parts=[fleet], audit=Audit(1.0, labelled=True))
    answers = [router.infer(0.9) for _ in range(3)]
    wait_for(lambda: sum("agrees" in line for line in read(tmp_path / "state" / "audit.jsonl")) == 3)
    wait_for(lambda: not router.engine.auditor.jobs.busy)
    assert [router.report(answers[0].id, "cloud"), router.report(answers[1].id, "edge")] == [True, True]
    fleet.tell()
    (told,) = digests(to)
    assert [sum(row[i] for row in told.audits) for i in range(3, 7)] == [2, 2, 1, 1]


def test_sixty_days_offline_are_no_gap(tmp_path, to, wall):
    """Each day has one digest, which waits for the destination; all arrive once that is back, and none is told again."""
    away = tmp_path / "away"
    fleet = quiet(str(away))
    with Threads(**_policy(), threshold=0.5, state=tmp_path / "state", parts=[fleet]) as router:
        for day in range(60):
            for _ in range(day + 1):
                router.infer(0.9)
            fleet.count()
            wall.now += DAY_S
            if day == 30:  # the device is off for a while in between
                wall.now += 5 * DAY_S
            assert not fleet.tell()
        assert len(spooled(tmp_path / "state" / "fleet")) == 60
        assert fleet.stats()["error"].endswith("away: there is no such folder now")
        away.mkdir()
        assert fleet.tell()
        assert fleet.tell()
    told = digests(away)
    assert len(told) == len([*away.rglob("*.digest")]) == 60
    assert [total([one]) for one in told] == [*range(1, 61)]
    assert all(one.final for one in told)


def test_counts_that_come_late_are_told_in_a_higher_revision(tmp_path, to, wall):
    """Of a day that is over; long after that they count for today. A day without anything new has a final digest alone."""
    fleet = quiet(str(to))
    with Threads(**_policy(), threshold=0.5, state=tmp_path / "state", parts=[fleet]) as router:
        router.infer(0.9)
        fleet.tell()
        fleet.tell()
        wall.now += DAY_S
        fleet.tell()
        fleet.tell()
        assert [(one.revision, one.final) for one in digests(to)] == [(2, True)]
        wall.now -= DAY_S
        router.infer(0.9)
        fleet.count()
        wall.now += DAY_S
        fleet.tell()
        assert [(one.revision, one.final, total([one])) for one in digests(to)] == [(3, True, 2)]
        wall.now += (KEEP_DAYS + 2) * DAY_S
        fleet.tell()
        assert not rows(tmp_path, "fleet:")
        wall.now -= (KEEP_DAYS + 3) * DAY_S
        router.infer(0.9)
        fleet.count()
        wall.now += (KEEP_DAYS + 3) * DAY_S
        fleet.tell()
    assert [(one.day, total([one])) for one in digests(to)] == [("2026-11-29", 2), (day_and_hour(wall.now)[0], 1)]


@pytest.mark.parametrize("wrong", [0.0, NOON + 3650 * DAY_S], ids=["1970", "2036"])
def test_a_clock_that_was_wrong_loses_and_doubles_nothing(tmp_path, to, wall, wrong):
    """What was counted before the clock was set counts for the day on which that is seen, also if it happens again."""
    fleet = quiet(str(to))
    with Threads(**_policy(), threshold=0.5, state=tmp_path / "state", parts=[fleet]) as router:
        for _ in range(3):
            wall.now = wrong
            router.infer(0.9)
            fleet.count()
            wall.now = NOON
            router.infer(0.9)
            fleet.tell()
    (told,) = digests(to)
    assert (told.day, total([told])) == ("2026-11-29", 6)


def test_a_clock_that_was_five_days_ahead_while_digests_were_made(tmp_path, to, wall):
    """Today is closed by then: its later counts go to the next day that is not."""
    fleet = quiet(str(to))
    with Threads(**_policy(), threshold=0.5, state=tmp_path / "state", parts=[fleet]) as router:
        router.infer(0.9)
        fleet.tell()
        wall.now += 5 * DAY_S
        router.infer(0.9)
        fleet.tell()
        fleet.tell()
        wall.now = NOON
        for _ in range(3):
            router.infer(0.9)
            fleet.tell()
        wall.now += 2 * DAY_S
        fleet.tell()
    told = digests(to)
    assert total(told) == 5
    assert {one.day for one in told} == {"2026-11-29", "2026-11-30", "2026-12-04"}


def test_a_day_is_due_after_midnight_at_a_time_of_the_device(tmp_path, to, wall):
    """Within an hour, and with `every` also before; a disk or a second process in between makes it wait."""
    fleet = quiet(str(to), every=7200.0)
    with Threads(**_policy(), threshold=0.5, state=tmp_path / "state", parts=[fleet]) as router:
        router.infer(0.9)
        fleet.count()
        wall.now = NOON - NOON % DAY_S + 60
        assert 0 < fleet.digests.write_and_upload(router.engine) <= 900
        wall.now += 7200
        fleet.digests.write_and_upload(router.engine)
        assert [one.final for one in digests(to)] == [False]
        wall.now = NOON
        router.infer(0.9)
        fleet.count()
        waits = []
        wall.now += DAY_S / 2 + 1
        while not digests(to)[0].final:
            waits.append(fleet.digests.write_and_upload(router.engine))
            wall.now += 60
        assert len(waits) <= 61
        assert all(1 <= wait <= 900 for wait in waits)


def test_the_id_is_random_and_rotates_with_a_day(tmp_path, to, wall):
    """A day that has a digest keeps its id, or it would count twice."""
    fleet = quiet(str(to), rotate=3 * DAY_S)
    with Threads(**_policy(), threshold=0.5, state=tmp_path / "state", parts=[fleet]) as router:
        for _ in range(6):
            router.infer(0.9)
            fleet.tell()
            new_device(router.engine.checkpoint.store)
            router.infer(0.9)
            fleet.tell()
            wall.now += 3 * DAY_S
    told = digests(to)
    assert len({one.device for one in told}) == len(told) == 6
    assert [total([one]) for one in told] == [2] * 6


def test_nothing_leaves_without_a_line_in_the_ledger(tmp_path, to, wall, monkeypatch):
    """The line is there before the upload; a ledger that cannot be written holds it back, as a metered link does."""
    metered = [True]
    fleet = quiet(str(to), key=Secret("a key"))
    lines = []

    class Spy:
        """Destination that looks at the ledger."""

        where = "https://example.com"

        def put(self, name, data):
            """Note the last line."""
            lines.append([*read(tmp_path / "state" / "egress.jsonl")][-1])
            assert decode(data, KEY).requests

    monkeypatch.setattr(daily_digests, "destination", lambda to: Spy())
    with Threads(**_policy(), threshold=0.5, state=tmp_path / "state", parts=[fleet], metered=lambda: metered[0]) as router:
        router.infer(0.9)
        assert not fleet.tell()
        assert fleet.stats()["error"] == "nothing leaves by itself: the link is metered"
        metered[0] = False

        def full(record):
            raise StoreError("no space left")

        append, router.engine.ledger.append = router.engine.ledger.append, full
        assert not fleet.tell()
        assert not lines
        router.engine.ledger.append = append
        assert fleet.tell()
    (line,) = lines
    assert (line["to"], line["rule"], line["data_class"]) == ("https://example.com", "no user data", None)
    assert line["request"].startswith("digests/2026-11-29/")


def test_only_edge_holds_digests_back(tmp_path, to, wall):
    """They wait in the spool; no line is in the ledger."""
    fleet = quiet(str(to))
    with Threads(CallableModel(edge, version="1"), mode="only_edge", state=tmp_path / "state", parts=[fleet]) as router:
        router.infer(0.9)
        assert not fleet.tell()
        assert fleet.stats() == {"waiting": 1, "sent": 0, "dropped": 0, "error": "nothing leaves by itself: only_edge"}
    assert not [*read(tmp_path / "state" / "egress.jsonl")]
    assert not [*to.iterdir()]


def test_the_spool_has_a_bound(tmp_path, to, wall):
    """The oldest digests go, and are counted."""
    fleet = quiet(str(tmp_path / "away"))
    with Threads(**_policy(), threshold=0.5, state=tmp_path / "state", parts=[fleet]) as router:
        for i in range(MOST_SPOOLED):
            (tmp_path / "state" / "fleet").mkdir(exist_ok=True)
            day, _ = day_and_hour(NOON - (MOST_SPOOLED + 9 - i) * DAY_S)
            (tmp_path / "state" / "fleet" / f"{day}.{'ab' * 16}.1.digest").write_bytes(b"x")
        router.infer(0.9)
        fleet.tell()
        assert fleet.stats()["dropped"] == 1
        assert len(spooled(tmp_path / "state" / "fleet")) == MOST_SPOOLED


def test_damaged_rows_and_ids_cost_only_themselves(tmp_path, to, wall):
    """Values that are no counts, a device's id of another form, and files in the spool that are no digests."""
    fleet = quiet(str(to))
    with Threads(**_policy(), threshold=0.5, state=tmp_path / "state", parts=[fleet]) as router:
        store = KeyValueStore(tmp_path / "state" / "state.db")
        for name, value in {
            "fleet:2026-11-29:no": {"r": 1}, "fleet:2026-11-29:[1]": [3], "fleet:never:x": {"r": 1}, "fleet.device": [1],
            "fleet.day:2026-11-29": "x", 'fleet:2026-11-29:["requests",9,"a","b","c","d"]': {"r": "many"},
            'fleet:2026-11-29:["requests",99,"a","b","c","d"]': {"r": 1},
        }.items():  # fmt: skip
            store.put(name, value)
        store.close()
        (tmp_path / "state" / "fleet").mkdir()
        (tmp_path / "state" / "fleet" / "x.digest").write_bytes(b"x")
        router.infer(0.9)
        fleet.tell()
    assert total(digests(to)) == 1


PROGRAM = """
import sys, threading
from edgeroute import CallableModel, Options, Router
from edgeroute.fleet import daily_digest_spool_and_upload as daily_digests, device_request_counts
from edgeroute.fleet.device_request_counts import Fleet
state, to, count = sys.argv[1:]
fleet = Fleet(to)
fleet.opened = lambda status: None
with Router(CallableModel(lambda x: ("e", 0.9), version="1"), state=state, options=Options(parts=[fleet])) as router:
    for i in range(int(count)):
        router.infer(i)
        if i % 50 == 0:
            fleet.tell()
            print(i, flush=True)
    print("done", flush=True)
    sys.stdin.read()
"""


def program(tmp_path, count):
    """Start a process of the device."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "state"), str(tmp_path / "to"), str(count)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_of_a_device_are_one_device(tmp_path, to):
    """Two that count and tell at the same time: the sum is of both, with one id."""
    (tmp_path / "state").mkdir()
    both = [program(tmp_path, 200), program(tmp_path, 300)]
    for process in both:
        process.communicate("", timeout=9 * LONG)
        assert not process.returncode
    fleet = quiet(str(to))
    with Threads(CallableModel(edge, version="1"), state=tmp_path / "state", parts=[fleet]):
        fleet.tell()
    told = digests(to)
    assert total(told) == 500
    assert len({one.device for one in told}) == 1


@pytest.mark.slow
def test_kill_9_at_any_point_doubles_nothing(tmp_path, to):
    """What was told stays told, at most what was not in the state file yet is lost, and no file is left half written."""
    (tmp_path / "state").mkdir()
    known = most = 0
    for round_ in range(12):
        process = program(tmp_path, 10_000)
        for _ in range(2 + round_ % 3):
            last = int(process.stdout.readline())
        timer = threading.Timer(0.001 * (7 * round_ % 20), process.send_signal, [signal.SIGKILL])
        timer.start()
        process.wait(9 * LONG)
        rest = [int(line) for line in process.stdout.read().split() if line.isdigit()]
        process.stdout.close()
        process.stdin.close()
        begun = known
        known = total(digests(to))
        most += max([last, *rest]) + 51  # what this process may have counted: more than it told, and the next one tells
        assert begun + last <= known <= most
    fleet = quiet(str(to))
    with Threads(CallableModel(edge, version="1"), state=tmp_path / "state", parts=[fleet]):
        assert fleet.tell()
    assert total(digests(to)) >= known


def test_a_forked_child_counts_its_own_requests(tmp_path, to):
    """And none of its parent's that are not written yet."""
    if not hasattr(os, "fork"):
        pytest.skip("the system has no fork")
    fleet = quiet(str(to))
    with Threads(CallableModel(edge, version="1"), state=tmp_path / "state", parts=[fleet]) as router:
        for _ in range(5):
            router.infer(0.9)
        child = os.fork()
        if not child:
            router.infer(0.9)
            fleet.tell()
            os._exit(0)
        os.waitpid(child, 0)
        fleet.tell()
    assert total(digests(to)) == 6


def test_names_in_the_state_file_have_no_input(made, tmp_path, to, wall):
    """Neither a value nor a class that is a user's text is in what is stored or sent."""
    fleet = quiet(str(to))
    router = made(state=tmp_path / "state", parts=[fleet], edge=CallableModel(lambda x: (x, 0.9), version="1"))
    router.infer("hunter2", data_class="hunter2's")
    fleet.tell()
    stored = rows(tmp_path, "fleet")
    assert stored
    assert "hunter2" not in json.dumps(stored) + str(digests(to))


def test_commands_show_the_spool_and_rotate_the_id(tmp_path, to, wall):
    """`status` has a line, `fleet rotate` a new id, which the next day's digest has."""
    state = tmp_path / "state"
    fleet = quiet(str(to))
    code, _, err = cli("fleet", "rotate", "--state", state)
    assert (code, "there is no state" in err) == (1, True)
    with Threads(CallableModel(edge, version="1"), mode="only_edge", state=state, parts=[fleet]) as router:
        router.infer(0.9)
        fleet.tell()
        code, out, _ = cli("status", "--state", state)
        assert "fleet: digests waiting: 1, the oldest of 2026-11-29; last one made: of 2026-11-29" in out
        code, out, _ = cli("fleet", "rotate", "--state", state, "--json")
        device = json.loads(out)["device"]
        wall.now += DAY_S
        router.infer(0.9)
        fleet.tell()
    assert json.loads(cli("status", "--state", state, "--json")[1])["fleet"]["waiting"] == 2
    first, second = [path.name.split(".")[1] for path in spooled(state / "fleet")]
    assert (first == device, second == device) == (False, True)


def test_the_threads_do_all_of_it(tmp_path, to, wall, monkeypatch):
    """Counts are in the state file a moment later, and the digest of a day arrives once that is over."""
    monkeypatch.setattr(device_request_counts.random, "uniform", lambda low, high: 0.01)
    fleet = quiet(str(to))
    with Threads(CallableModel(edge, version="1"), state=tmp_path / "state", parts=[fleet]) as router:
        router.infer(0.9)
        wait_for(lambda: rows(tmp_path, "fleet:"))
        wall.now += DAY_S + 3600
        Fleet.opened(fleet, None)
        wait_for(lambda: digests(to))
    assert [(one.final, total([one])) for one in digests(to)] == [(True, 1)]


def test_a_short_program_sends_its_digests_as_it_closes(tmp_path, to, wall, monkeypatch):
    """Those of days that are over, of any run; one that has to wait for its destination is sent by a later run."""
    monkeypatch.setattr(device_request_counts.random, "uniform", lambda low, high: LONG)  # no thread looks before a program ends
    away, spool = to.with_name("away"), tmp_path / "state" / "fleet"

    def program():
        with Threads(CallableModel(edge, version="1"), state=tmp_path / "state", parts=[Fleet(Secret(str(to)))]) as router:
            return router.infer(0.9)

    program()
    wall.now += DAY_S + 3600
    to.rename(away)
    wait_for(lambda: program() and spooled(spool))
    away.rename(to)
    wall.now += DAY_S
    wait_for(lambda: program() and len(digests(to)) == 2)
    assert total(digests(to)[:1]) == 1


def test_a_folder_that_is_missing_is_named_before_there_is_a_digest(tmp_path, wall, caplog):
    """The router works; the folder may be a drive that comes later."""
    fleet = Fleet(str(tmp_path / "later"))
    with Threads(CallableModel(edge, version="1"), state=tmp_path / "state", parts=[fleet]) as router:
        wait_for(lambda: "later: there is no such folder" in fleet.stats()["error"])
        assert router.infer(0.9)
        (tmp_path / "later").mkdir()
        assert fleet.tell()
        assert fleet.stats()["error"] == ""
    assert caplog.text.count("there is no such folder") == 1


def test_a_reload_frees_the_models_of_the_policy_before(tmp_path, to, wall):
    """Neither counts nor audits whose labels may come later hold them."""
    tiny.linear(tmp_path / "m.onnx")
    policy = tmp_path / "policy.json"

    def write(threshold):
        policy.write_text(
            json.dumps({
                "threshold": threshold, "state": "state", "edge": {"path": "m.onnx", "threads": int(threshold * 10)},
                "cloud": {"url": f"http://127.0.0.1:{server.port}", "protocol": "json"}, "audit": {"share": "100%", "labelled": True},
                "fleet": {"to": str(to)},
            })
        )  # fmt: skip

    with CannedServer(GOOD) as server:
        write(0.1)
        with Threads.from_policy(policy) as router:
            fleet = next(part for part in router.engine.parts.all if isinstance(part, Fleet))
            answer = router.infer(np.array([0, 2, 1, 5], np.float32))
            router.engine.auditor.jobs.drain(LONG)
            fleet.count()
            old = weakref.ref(router.engine.snapshot.backends[0])
            write(0.2)
            router.reload()
            router.infer(np.array([0, 2, 1, 5], np.float32))
            router.engine.auditor.jobs.drain(LONG)
            fleet.count()
            wait_for(lambda: gc.collect() >= 0 and old() is None)  # a thread of an audit may be about to end
            assert router.report(answer.id, "cloud")
            fleet.tell()
    (told,) = digests(to)
    assert [sum(row[i] for row in told.audits) for i in range(3, 7)] == [1, 1, 1, 0]
    assert len({group[1] for group in told.groups}) == 2


def test_a_model_whose_fingerprint_fails_is_counted(made, tmp_path, to, wall):
    """Without a digest of its own."""

    class Odd:
        """Model of another package."""

        name = "odd"

        def run(self, inputs, cancel=None):
            """Return answers."""
            return [("edge", 0.9) for _ in inputs]

        @property
        def fingerprint(self):
            """Fail."""
            raise ZeroDivisionError

    fleet = quiet(str(to))
    router = made(state=tmp_path / "state", parts=[fleet], edge=Odd())
    router.infer(0.9)
    fleet.tell()
    assert [group[0] for group in digests(to)[0].groups] == ["edge:"]
