"""`edgeroute fleet alarm` and `fleet calibrate` on stores of Parquet: each day is bet on once, alarms, suspects, certificates."""

import json
import shutil
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
import tiny
from commands import cli
from fleets import device_id

from edgeroute import Router, StoreError
from edgeroute.confidence import Certificate
from edgeroute.confidence.certificate import digest
from edgeroute.core.sequential_tests import GRID, grid_index
from edgeroute.fleet.digest_encoding_and_coarsening import rounded
from edgeroute.router.audits_and_hidden_trials import edge_fingerprints

pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.matrix

from edgeroute.tools.fleet.digest_parquet_store import TABLES, write_rows  # noqa: E402 - needs duckdb
from edgeroute.tools.fleet.fleet_alarms import FleetAlarms  # noqa: E402

FIRST = date(2026, 9, 7)  # a Monday
INDEX = rounded(grid_index(0.9))  # of the threshold that accepts an audit
MODEL, POLICY = "small:0123456789ab", "aaaaaaaaaaaa"
DEVICES, AUDITS, REQUESTS, RATE, DEFERRED = 120, 12, 400, 0.03, 0.25
HOURS = (0, 6, 12, 18)
CYCLE = {0: 0.5, 6: 1.0, 12: 1.8, 18: 0.7}


class Store:
    """Store that days are written to; the numbers of a day depend on the seed and the day alone."""

    def __init__(self, folder, seed=0, model=MODEL, policy=POLICY, devices=DEVICES):
        self.folder, self.seed, self.model, self.policy, self.devices = Path(folder), seed, model, policy, devices
        self.tables = {}

    def add(
        self, day, *, times=1.0, deferral=1.0, who=None, more=(), final=True, labelled=False, index=INDEX, rate=0.02, coarse=0
    ):
        """Draw a day. times: of the usual rate of differing; who: devices that report, all by default; more: further rows.

        coarse: 4, digests with one block of hours a day.
        """
        rng = np.random.default_rng([self.seed, abs(day)])
        nature = np.random.default_rng(self.seed).gamma(4, 1 / 4, (self.devices, 1))
        weekend = 1.3 if (FIRST + timedelta(days=day)).weekday() >= 5 else 1.0
        shape = self.devices, len(HOURS)
        asked, audited = rng.poisson(REQUESTS / 4, shape), rng.poisson(AUDITS / 4, shape)
        chance = RATE * nature * list(CYCLE.values()) * weekend * np.reshape(times, (-1, 1))
        differ, deferred = rng.binomial(audited, np.minimum(0.95, chance)), rng.binomial(asked, DEFERRED * deferral)
        wins = differ // 2 if labelled else 0 * differ
        tables = self.tables.setdefault(day, {name: [] for name in TABLES})
        for i in range(self.devices) if who is None else sorted(who):
            head = (device_id(i), f"site-{i % 5}", self.model, self.policy, "", "")
            counts = zip(HOURS, *(part[i].tolist() for part in (asked, deferred, audited, differ, wins)), strict=True)
            for at, n, later, k, differing, won in counts:
                hour = 0 if coarse else at
                tables["requests"].append((*head, "", hour, n, later, 0, 0, 100, 0.01, *[0] * 8))
                tables["audits"] += [(*head, hour, index, k, differing, differing - won, won, rate)] * (k > 0)
            tables["digests"].append((device_id(i), f"site-{i % 5}", "", "0.9.0", 1, final, coarse))
        tables["audits"] += more
        for name, rows in tables.items():
            write_rows(self.folder / name / f"day={FIRST + timedelta(days=day)}" / "rows.parquet", name, rows)
        return self


def look(folder, **settings):
    """Return the report of a look."""
    tests = FleetAlarms(folder, **settings)
    try:
        return tests.look()
    finally:
        tests.close()


def only(report):
    """Return the only stream of a report."""
    [stream] = report["streams"]
    return stream


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """Folder of a store of 28 days without a change."""
    store = Store(tmp_path_factory.mktemp("usual"))
    for day in range(28):
        store.add(day)
    return store


def copied(usual, tmp_path):
    """A store with the same days, which another test may extend."""
    shutil.copytree(usual.folder, tmp_path / "store", ignore=shutil.ignore_patterns("alarm"))
    store = Store(tmp_path / "store")
    store.tables = {day: {name: rows[:] for name, rows in tables.items()} for day, tables in usual.tables.items()}
    return store


def test_cycles_of_days_and_weeks_raise_no_alarm_and_the_days_are_counted_once(usual):
    first = look(usual.folder)
    state = (usual.folder / "alarm" / "state.json").read_text()
    again = [look(usual.folder) for _ in range(3)]
    assert not first["alarm"]
    assert only(first)["tests"] == ["deferred", "differ", "kept"]  # no labels, no test of the loss
    assert first["closed"] == str(FIRST + timedelta(days=27))
    assert all(report == first for report in again)
    assert (usual.folder / "alarm" / "state.json").read_text() == state


def test_a_look_a_day_is_the_same_as_one_look(usual, tmp_path):
    whole, store = look(usual.folder), Store(tmp_path / "store")
    for day in range(28):
        store.add(day)
        report = look(store.folder)
    assert report == whole


def test_digests_that_have_no_room_for_hours_any_more_are_no_alarm(usual, tmp_path):
    """As of a fleet with more traffic: each was compared with the usual rate of midnight."""
    store = copied(usual, tmp_path)
    for day in range(28, 42):
        store.add(day, coarse=4)
    assert only(look(store.folder))["alarms"] == []
    for day in range(42, 56):
        store.add(day, coarse=4, times=2.5)
    assert [alarm["test"] for alarm in only(look(store.folder))["alarms"]] == ["differ"]


def test_busy_hours_are_most_of_a_digest_without_hours(tmp_path):
    """In them more is deferred, too: the sum of a day is no alarm by the mean rate of its hours, at night as by day."""
    hours = np.arange(24)
    busy, rate = np.where((hours >= 8) & (hours < 20), 10, 1), np.where((hours >= 8) & (hours < 20), 0.3, 0.1)
    for day in range(42):
        rng, rows = np.random.default_rng(day), []
        for i in range(60):
            asked = rng.poisson(3 * busy)
            counts = np.stack([hours, asked, rng.binomial(asked, rate)], 1)[asked > 0].tolist()
            if day >= 28:
                counts = [[0, *(sum(column) for column in [*zip(*counts, strict=True)][1:])]]
            head = (device_id(i), "site", MODEL, POLICY, "", "", "")
            rows += [(*head, *cells, 0, 0, 100, 0.01, *[0] * 8) for cells in counts]
        told = [(device_id(i), "site", "", "0.9.0", 1, True, 4 * (day >= 28)) for i in range(60)]
        for name, table in (("requests", rows), ("digests", told)):
            write_rows(tmp_path / name / f"day={FIRST + timedelta(days=day)}" / "rows.parquet", name, table)
    assert only(look(tmp_path))["alarms"] == []


def test_a_week_is_a_reference_where_it_is_asked_for(tmp_path):
    """Without that the first day on which an alarm is possible is named."""
    store = Store(tmp_path / "store")
    for day in range(7):
        store.add(day)
    code, out, _ = cli("fleet", "alarm", store.folder)
    assert code == 0
    assert f"before {FIRST + timedelta(days=14)}" in out
    shutil.rmtree(store.folder / "alarm")
    assert not look(store.folder, learn=7)["alarm"]
    for day in range(7, 16):
        store.add(day, times=3.0)
    report = look(store.folder, learn=7)
    assert "differ" in {alarm["test"] for alarm in only(report)["alarms"]}
    assert only(report)["begins"] is None


@pytest.mark.parametrize(
    ("change", "test"), [({"times": 3.0}, "differ"), ({"deferral": 1.6}, "deferred"), ({"deferral": 0.4}, "kept")]
)
def test_a_change_is_an_alarm_with_its_date_and_interval(usual, tmp_path, change, test):
    store = copied(usual, tmp_path)
    for day in range(28, 36):
        store.add(day, **change)
    code, out, _ = cli("fleet", "alarm", store.folder, "--json")
    stream = only(json.loads(out))
    [alarm] = stream["alarms"]
    assert (code, alarm["test"], alarm["devices"]) == (4, test, DEVICES)
    assert FIRST + timedelta(days=26) <= date.fromisoformat(alarm["since"]) <= FIRST + timedelta(days=30)
    assert 1.1 < alarm["low"] < alarm["times"] < alarm["high"]
    code, text, _ = cli("fleet", "alarm", store.folder)
    assert code == 4
    assert f"since {alarm['since']}" in text
    assert f"--again {MODEL}" in text


def test_after_an_alarm_the_tests_begin_anew(usual, tmp_path):
    store = copied(usual, tmp_path)
    for day in range(28, 36):
        store.add(day, times=3.0)
    codes = [cli("fleet", "alarm", store.folder, *more)[0] for more in ((), ("--again", "other"), ("--again", "small"))]
    assert codes == [4, 1, 0]
    for day in range(36, 54):
        store.add(day, times=3.0)
    code, out, _ = cli("fleet", "alarm", store.folder, "--json")
    assert (code, only(json.loads(out))["learning"]) == (0, False)  # three times is usual now


def test_harms_with_as_many_more_wins_are_no_loss(tmp_path):
    store = Store(tmp_path)
    for day in range(21):
        store.add(day, labelled=True)
    assert "loss" in only(look(tmp_path))["tests"]


def test_late_days_are_bet_on_once_and_what_comes_after_a_bet_never(usual, tmp_path):
    store, late = copied(usual, tmp_path), set(range(60))
    for day in range(28, 31):
        store.add(day, who=set(range(DEVICES)) - late)
    look(store.folder)
    for day in range(28, 31):
        store.add(day, times=50.0, who=late)  # they come after the others were bet on, with a change
    before = look(store.folder)
    store.add(31)
    report = look(store.folder)
    assert before["closed"] == str(FIRST + timedelta(days=30))
    assert not before["alarm"]
    assert report["alarm"]
    store = copied(usual, tmp_path / "other")
    look(store.folder)
    store.add(27, times=50.0)  # rows for days that were bet on
    store.add(28)
    assert not look(store.folder)["alarm"]


def test_an_interim_digest_waits_for_the_last_of_its_day(usual, tmp_path):
    store = copied(usual, tmp_path)
    look(store.folder)
    store.add(28, times=50.0, final=False)
    for day in range(29, 34):
        store.add(day)
    assert not look(store.folder)["alarm"]
    store.add(34)
    store.add(35)
    assert look(store.folder)["alarm"]  # a week later the day is counted as it is


def test_suspects_are_named_with_their_site_and_alone_raise_no_broad_alarm(usual, tmp_path):
    store, times = copied(usual, tmp_path), np.ones(DEVICES)
    times[[5, 10, 25]] = 1e6  # all of site 0: nearly every answer differs
    for day in range(28, 35):
        store.add(day, times=times)
    stream = only(look(store.folder))
    assert {row["device"] for row in stream["suspects"]} == {device_id(i) for i in (5, 10, 25)}
    assert stream["sites"] == {"site-0": 3}
    assert not any(alarm["broad"] for alarm in stream["alarms"])
    assert "3 of site site-0" in cli("fleet", "alarm", store.folder)[1]


def test_devices_whose_ids_change_are_no_alarm(usual, tmp_path):
    store = copied(usual, tmp_path)
    for day in range(28, 40):
        tables = store.add(day).tables[day]
        for name, rows in tables.items():
            tables[name] = [(device_id(1000 * day + int(row[0][:6], 16)), *row[1:]) for row in rows]
            write_rows(store.folder / name / f"day={FIRST + timedelta(days=day)}" / "rows.parquet", name, tables[name])
    stream = only(look(store.folder))
    assert (stream["alarms"], stream["suspects"]) == ([], [])


def test_impossible_rows_and_a_device_with_a_billion_requests_move_nothing(usual, tmp_path):
    store, head = copied(usual, tmp_path), (device_id(999), "site-9", MODEL, POLICY, "", "")
    rows = [(*head, 3, 40, 10, 11, 11, 0, 0.02), (*head, 3, 40, -5, 0, 0, 0, 0.02), (*head, 30, 40, 5, 1, 1, 0, 0.02),
            (*head, 3, 40, 5, 1, 1, 0, 0.0), ("x", "", "other", "", "", "", 3, 40, 5, 1, 1, 0, 0.02)]  # fmt: skip
    huge = (*head, 9, 40, 10**9, 10**9, 10**9, 0, 0.02)
    for day in range(28, 35):
        store.add(day, more=[*rows, huge])
        store.tables[day]["digests"].append((device_id(999), "site-9", "", "0.9.0", 1, True, 0))
        store.add(day)
    report = look(store.folder)
    assert not report["alarm"]
    assert [row["device"] for row in only(report)["suspects"]] == [device_id(999)]
    assert report["left_out"]["impossible"] > 0
    assert report["left_out"]["of models beyond the digest"] > 0


def test_a_new_name_is_the_same_model(usual, tmp_path):
    store = copied(usual, tmp_path)
    store.model = "renamed:0123456789ab"
    for day in range(28, 36):
        store.add(day, times=3.0)
    stream = only(look(store.folder))
    assert (stream["model"], [alarm["test"] for alarm in stream["alarms"]]) == (store.model, ["differ"])


def test_models_that_cannot_be_identified_are_told_apart_by_their_names(tmp_path):
    """And one of them that changes is no change of the other."""
    store, names = Store(tmp_path / "store"), ("small:", "large:")
    for day in range(24):
        for part, store.model in enumerate(names):
            store.add(day, who=range(part, DEVICES, 2), times=3.0 if part and day >= 14 else 1.0)
    streams = {stream["model"]: stream for stream in look(store.folder)["streams"]}
    assert {name: [alarm["test"] for alarm in streams[name]["alarms"]] for name in names} == {"small:": [], "large:": ["differ"]}


@pytest.mark.parametrize(("times", "alarmed"), [(1.0, False), (6.0, True)])
def test_a_new_policy_on_some_devices_is_compared_with_the_earlier_one(usual, tmp_path, times, alarmed):
    store, ring = copied(usual, tmp_path), set(range(0, DEVICES, 4))
    for day in range(28, 36):
        store.policy = POLICY
        store.add(day, who=set(range(DEVICES)) - ring)
        store.policy = "bbbbbbbbbbbb"
        store.add(day, who=ring, times=times)
    streams = {stream["policy"]: stream for stream in look(store.folder)["streams"]}
    assert streams["bbbbbbbbbbbb"]["tests"] == ["differ"]  # its deferral may differ, and is learnt
    assert [bool(stream["alarms"]) for stream in streams.values()] == [False, alarmed]


def test_the_tests_of_audits_are_about_answers_that_the_edge_gives_alone(tmp_path):
    store = Store(tmp_path)
    low = [(device_id(i), "", MODEL, POLICY, "", "", 3, 8, 3, 2, 2, 0, 0.02) for i in range(DEVICES)]  # below the threshold
    for day in range(15):
        store.add(day, more=low)
    stream = only(look(tmp_path))
    assert stream["threshold"] == pytest.approx(GRID[INDEX])


def test_a_store_of_idle_devices_has_nothing_to_test_until_they_are_used(tmp_path):
    """Digests without a request of a model: the first look closes the day, and a model is found later."""
    Store(tmp_path, devices=0).add(0)
    idle = [(device_id(0), "site-0", "", "0.9.0", 1, True, 0)]
    write_rows(tmp_path / "digests" / f"day={FIRST}" / "rows.parquet", "digests", idle)
    report = look(tmp_path)
    assert (report["closed"], report["alarm"], report["streams"]) == (str(FIRST), False, [])
    Store(tmp_path).add(1)
    assert only(look(tmp_path))["days"] == 1


def named(policy, devices):
    """Rows of audits of some devices, one each, under a policy."""
    return [(device_id(i), "site-9", MODEL, policy, "", "", 3, 40, 5, 1, 1, 0, 0.02) for i in devices]


def test_a_device_that_invents_policies_adds_none_to_the_tests(usual, tmp_path):
    """What it reports is counted, and the honest devices' tests are as without it."""
    store = copied(usual, tmp_path)
    before, size = only(look(usual.folder)), (usual.folder / "alarm" / "state.json").stat().st_size
    store.add(3, more=[row for i in range(150) for row in named(f"invented-{i}", [999])])
    store.add(27, more=[row for i in range(150) for row in named(f"invented-{i}", [999])])
    report = look(store.folder)
    assert only(report) == before
    assert report["left_out"] == {"of policies that fewer than 3 devices report": 300}
    assert (store.folder / "alarm" / "state.json").stat().st_size < 2 * size
    code, _, err = cli("fleet", "alarm", store.folder)
    assert (code, "300 rows are left out: of policies that fewer than 3 devices report" in err) == (0, True)


def test_of_many_policies_those_of_most_devices_are_tested(usual, tmp_path, monkeypatch):
    """An alarm of a policy that goes does not stay, and audits of before a model began anew do not come back."""
    monkeypatch.setattr("edgeroute.tools.fleet.fleet_alarms.MOST_STREAMS", 2)
    store = copied(usual, tmp_path)
    store.add(20, more=[*named("few", range(3)), *named("some", range(4))])
    report = look(store.folder)
    assert {stream["policy"] for stream in report["streams"]} == {POLICY, "some"}
    assert report["left_out"] == {"of policies beyond the 2 that most devices report": 3}
    with closing(FleetAlarms(store.folder)) as tests:
        assert len(tests.again(MODEL)) == 2
        since = tests.audits(MODEL.rpartition(":")[2]).counts().begun
    for day in (62, 65):  # the usual policy's last day is beyond the window of the second look
        store.add(day, who=(), more=[*named("new", range(5)), *named("newer", range(5))])
        store.tables[day]["digests"] += [(device_id(i), "site-9", "", "0.9.0", 1, True, 0) for i in range(5)]
        store.add(day, who=())
        report = look(store.folder)
    assert {stream["policy"] for stream in report["streams"]} == {"new", "newer"}
    with closing(FleetAlarms(store.folder)) as tests:
        assert tests.audits(MODEL.rpartition(":")[2]).counts().begun == since > 0


def test_a_device_that_dates_its_digests_back_does_not_hide_an_alarm(tmp_path):
    """In a fleet of few devices: its reports alone had been the reference."""
    store = Store(tmp_path, devices=19)
    for day in range(-30, 0):
        store.add(day, who={18}, times=30.0)
    for day in range(42):
        store.add(day, who=range(18), times=1.0 if day < 28 else 6.0)
    stream = only(look(store.folder))
    assert [alarm["test"] for alarm in stream["alarms"]] == ["differ"]
    assert stream["days"] == 42


def test_no_reference_is_that_of_one_device_alone(tmp_path):
    """All have requests, and audits at first one: their rates are learnt once there are those of three."""
    store = Store(tmp_path, devices=12)
    for day in range(14):
        store.add(day, times=[20.0, *[1.0] * 11])
        tables = store.tables[day]
        tables["audits"] = [row for row in tables["audits"] if row[0] == device_id(0)]
        write_rows(tmp_path / "audits" / f"day={FIRST + timedelta(days=day)}" / "rows.parquet", "audits", tables["audits"])
    assert only(look(tmp_path))["tests"] == ["deferred", "kept"]
    for day in range(14, 21):
        store.add(day)
    assert only(look(tmp_path))["tests"] == ["deferred", "differ", "kept"]


def test_two_runs_do_not_bet_at_once_and_damage_is_named(usual, tmp_path):
    store = copied(usual, tmp_path)
    tests = FleetAlarms(store.folder)
    with pytest.raises(StoreError, match="another run"):
        FleetAlarms(store.folder)
    tests.look()
    tests.close()
    [bets] = (store.folder / "alarm").glob("bets-*.parquet")
    bets.rename(tmp_path / "away")
    store.add(28)
    with pytest.raises(StoreError, match="is missing"):
        look(store.folder)
    state = json.loads((store.folder / "alarm" / "state.json").read_text())
    [stream] = state["streams"].values()
    for damaged in ({"version": 1}, {**state, "closed": 10**9}, {**state, "streams": {"a b": {**stream, "first": "x"}}}):
        (store.folder / "alarm" / "state.json").write_text(json.dumps(damaged))
        with pytest.raises(StoreError, match="is damaged"):
            FleetAlarms(store.folder)
    (store.folder / "alarm" / "state.json").write_text(json.dumps(state) + " " * 2**24)  # as of many policies, once
    FleetAlarms(store.folder).close()
    [name] = state["streams"]
    lacking = [{**stream, "tests": {"differ": {**test, key: None}}} for test in [stream["tests"]["differ"]] for key in test]
    lacking += [{each: value for each, value in stream.items() if each != key} for key in stream]
    for other in (*lacking, {**stream, "threshold": 10**6}, {**stream, "tests": {"other": {}}}):
        (store.folder / "alarm" / "state.json").write_text(json.dumps({**state, "streams": {name: other}}))
        code, _, err = cli("fleet", "alarm", store.folder)
        assert (code, "state.json is damaged" in err) == (2, True), other


# The certificate.

POLICY_TOML = """\
threshold = 0.5
state = "state"

[edge]
path = "model.onnx"

[cloud]
url = "http://127.0.0.1:9/v2/models/none"
"""


@pytest.fixture
def home(tmp_path):
    """A folder with a policy and its model; `key` there has the model's identity in a store."""
    tiny.linear(tmp_path / "model.onnx", weights=[[3, 0, 0], [0, 3, 0], [0, 0, 3], [4, -3, 0]], card={"labels": ["a", "b", "c"]})
    (tmp_path / "policy.toml").write_text(POLICY_TOML)
    with Router.from_policy(tmp_path / "policy.toml", state=None) as router:
        (tmp_path / "key").write_text(digest(edge_fingerprints(router.engine.snapshot)["edge"])[:12])
    return tmp_path


def calibrated(home, *more):
    """Run `fleet calibrate` with JSON, and return its exit code and result."""
    code, out, err = cli("fleet", "calibrate", home / "store", "--policy", home / "policy.toml", "--json", *more)
    return code, json.loads(out or err.splitlines()[-1])


def audited(home, days=10, **more):
    """Write days of audits of the policy's model: those above the threshold of `INDEX` differ in 3 %, below in half."""
    store = Store(home / "store", model=f"edge:{(home / 'key').read_text()}")
    for day in range(days):
        low = [(device_id(i), "", store.model, POLICY, "", "", 3, 8, 4, 2, 2, 0, 0.02) for i in range(DEVICES)]
        store.add(day, more=low, **more)
    return store


def test_the_fleets_audits_give_one_certificate(home):
    audited(home)
    code, result = calibrated(home, "--max-loss", "5%")
    certificate = Certificate.load(home / "certificate-fleet.json")
    assert (code, result["devices"]) == (0, DEVICES)
    assert certificate.threshold < 1
    assert (certificate.value, certificate.sure, certificate.agreement) == (pytest.approx(0.05), pytest.approx(0.95), True)
    assert certificate.deferral_rate == pytest.approx(4 / (AUDITS + 4), abs=0.03)
    assert 0.05 < result["liars_weight"] < 0.2
    assert RATE / 2 < result["mean_over_devices"] < 0.05
    assert len(result["worst"]) == 5
    assert all(row["low"] < row["high"] for row in result["worst"])
    (home / "policy.toml").write_text(POLICY_TOML.replace("0.5", '"certificate-fleet.json"'))
    with Router.from_policy(home / "policy.toml", state=None) as router:
        assert router.engine.snapshot.certificates[0].certificate == certificate


def test_liars_who_report_no_difference_do_not_break_the_certificate(home):
    times = np.full(DEVICES, 2.6)
    times[:6] = 0.0  # 5 %, with as many audits as others
    audited(home, times=times)
    _, honest = calibrated(home, "--max-loss", "5.5%", "--liars", "0.0001%")
    _, bounded = calibrated(home, "--max-loss", "5.5%")
    assert (bounded["threshold"] or 9) >= (honest["threshold"] or 9)


def test_too_few_audits_and_other_models_are_refused(home):
    audited(home, days=1)
    assert calibrated(home, "--max-loss", "0.1%")[0] == 5
    assert (
        cli("fleet", "calibrate", home / "store", "--policy", home / "policy.toml", "--max-loss", "5%", "--liars", "50%")[0] == 2
    )
    tiny.linear(home / "model.onnx", weights=[[1, 0, 0], [0, 3, 0], [0, 0, 3], [4, -3, 0]], card={"labels": ["a", "b", "c"]})
    code, result = calibrated(home, "--max-loss", "5%")
    assert code == 1
    assert "the store has audits of edge:" in result["error"]


def test_one_device_proves_nothing_for_a_fleet_unless_it_is_trusted(home):
    store = Store(home / "store", model=f"edge:{(home / 'key').read_text()}", devices=1)
    for day in range(20):
        store.add(day)
    code, result = calibrated(home, "--max-loss", "5%")
    assert (code, "of 1 device, may" in result["error"]) == (1, True)
    assert calibrated(home, "--max-loss", "9%", "--liars", "0%")[0] == 0


def test_a_device_that_reports_a_rate_near_zero_does_not_take_the_weight_of_the_others(home):
    store = audited(home)
    _, before = calibrated(home, "--max-loss", "5%")
    shutil.rmtree(home / "store")
    for day in range(10):
        row = (device_id(999), "", store.model, POLICY, "", "", 3, INDEX, 9, 0, 0, 0, 1e-12)
        store.tables[day]["audits"].append(row)
        for name, rows in store.tables[day].items():
            write_rows(home / "store" / name / f"day={FIRST + timedelta(days=day)}" / "rows.parquet", name, rows)
    _, after = calibrated(home, "--max-loss", "5%")
    assert after["threshold"] == before["threshold"]


def test_a_digest_of_a_day_long_past_does_not_make_the_first_look_long(tmp_path):
    Store(tmp_path, devices=3).add(-20_000).add(0)
    report = look(tmp_path)
    assert [stream["days"] for stream in report["streams"]] == [1]


def test_a_device_with_a_past_of_its_own_is_not_the_reference_of_all(tmp_path):
    """It says that most answers differed long before the others began; of these, three times as many as usual are an alarm."""
    store = Store(tmp_path)
    for day in range(-60, -30):
        liar = [(device_id(999), "", MODEL, POLICY, "", "", hour, INDEX, 60, 50, 50, 0, 0.02) for hour in HOURS]
        store.tables[day] = {**{name: [] for name in TABLES}, "digests": [(device_id(999), "", "", "0.9.0", 1, True, 0)]}
        store.add(day, who=(), more=liar)
    for day in range(28):
        store.add(day, times=1.0 if day < 16 else 3.0)
    report = look(tmp_path)
    assert only(report)["days"] == 28
    assert [alarm["test"] for alarm in only(report)["alarms"]] == ["differ"]


def test_devices_draw_at_rates_of_their_own_and_unstated_confidences_are_left_out(home):
    store = audited(home, days=8)
    for day in range(8, 12):
        store.add(day, rate=0.1)
    store.add(12, index=-2)
    code, result = calibrated(home, "--max-loss", "5%")
    again, later = calibrated(home, "--max-loss", "5%")
    assert (code, again) == (0, 0)
    assert later["threshold"] == result["threshold"]
    _, out, err = cli("fleet", "calibrate", home / "store", "--policy", home / "policy.toml", "--max-loss", "5%")
    assert "do not state the confidence" in err
    assert any("do not state the confidence" in doubt for doubt in Certificate.load(result["certificate"]).doubts)
    assert "with each device counted the same" in out


def test_the_certificate_is_published_with_the_model(home):
    pytest.importorskip("tuf")
    from edgeroute.tools.catalog_keys_and_publishing import keygen, publish

    audited(home)
    keygen(home / "keys")
    publish(home / "catalog", "shop", "1", [home / "model.onnx"], keys=home / "keys")
    more = ["--catalog", home / "catalog", "--name", "shop", "--keys", home / "keys"]
    assert cli("fleet", "calibrate", home / "store", "--policy", home / "policy.toml", "--max-loss", "5%", *more)[0] == 2
    code, result = calibrated(home, "--max-loss", "5%", *more, "--version", "2")
    assert (code, result["published"], result["copied"]) == (0, "2", "1")
    folder = home / "catalog" / "files" / "shop" / "2"
    [path] = list(folder.rglob("certificate-fleet.json"))
    assert Certificate.load(path) == Certificate.load(home / "certificate-fleet.json")
    assert (folder / "model.onnx").read_bytes() == (home / "model.onnx").read_bytes()


def test_the_certificate_is_published_with_the_model_that_was_audited(home):
    """Not with a newer one of the same name; and with none, where no version is that model."""
    pytest.importorskip("tuf")
    from edgeroute.tools.catalog_keys_and_publishing import keygen, publish

    audited(home)
    keygen(home / "keys")
    other = home / "other"
    other.mkdir()
    tiny.linear(other / "model.onnx", weights=[[1, 0, 0], [0, 3, 0], [0, 0, 3], [4, -3, 0]], card={"labels": ["a", "b", "c"]})
    publish(home / "catalog", "shop", "1", [home / "model.onnx"], keys=home / "keys")
    publish(home / "catalog", "shop", "2", [other / "model.onnx"], keys=home / "keys")
    tiny.linear(other / "model.onnx", weights=[[3, 0, 0], [0, 3, 0], [0, 0, 3], [4, -3, 0]], card={"labels": ["c", "b", "a"]})
    publish(home / "catalog", "renamed", "1", [other / "model.onnx"], keys=home / "keys")
    given = ["--max-loss", "5%", "--catalog", home / "catalog", "--keys", home / "keys"]
    code, result = calibrated(home, *given, "--name", "renamed", "--version", "2")
    assert code == 1
    assert "edgeroute models publish renamed FILE" in result["error"]
    assert not (home / "certificate-fleet.json").exists()
    assert not (home / "catalog" / "files" / "renamed" / "2").exists()
    command = ("fleet", "calibrate", home / "store", "--policy", home / "policy.toml", *given, "--name", "shop", "--version", "3")
    code, _, err = cli(*command)
    assert (code, "shop 3 has the model of 1" in err) == (0, True)
    folder = home / "catalog" / "files" / "shop" / "3"
    assert (folder / "model.onnx").read_bytes() == (home / "model.onnx").read_bytes()
    path = folder / "policy.toml"
    path.write_text(POLICY_TOML.replace("0.5", '"certificate-fleet.json"'))
    with Router.from_policy(path, state=None) as router:
        assert router.engine.snapshot.certificates[0].broken() is None
