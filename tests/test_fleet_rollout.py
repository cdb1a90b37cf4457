"""The decision about a ring, by simulated fleets and by tables of digests; and the fleet's budget, on devices and by its rule."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import date, datetime, timedelta, timezone

import numpy as np
import pytest
from draws import slow

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

from both import wait_for
from signed_fleet import Fleet, threshold

from edgeroute import BadInput, CatalogError, Router
from edgeroute.catalog.signed_policy_follower import limits_by, standing
from edgeroute.tools.catalog_keys_and_publishing import sign_files, signed_file
from edgeroute.tools.fleet.budget_shares_and_signing import limit_for, next_margin, shares
from edgeroute.tools.fleet.budget_shares_and_signing import target as budget_target
from edgeroute.tools.fleet.policy_rollout_by_rings import Condition, Sums, decide, parse_halt, target


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeroute.catalog.signed_policy_follower.LOOKS_S", 0.02)
    return Fleet(tmp_path)


HALT = parse_halt("degraded>2%, cost>+20%, alarm")


def simulated(rng, devices=600, share=0.2, blocks=8, *, degraded=0.0, cost=1.0, outage=0.0, known=True):
    """Sums of a random fleet whose devices differ in size, cost and degraded answers.

    Args:
        rng: source of the numbers.
        devices: number of devices.
        share: of the ring.
        blocks: of hours.
        degraded: added to the ring's share.
        cost: factor of the ring's cost.
        outage: added to everybody's share of degraded answers.
        known: True: the days before are known.
    """
    ring = rng.random(devices) < share
    size, price = rng.lognormal(4, 1, devices), rng.lognormal(-7, 0.5, devices)
    requests = rng.poisson(np.repeat(size[:, None], blocks, 1)).astype(float)
    rate = np.clip(rng.beta(1, 200, devices) + degraded * ring + outage, 0, 1)
    amounts = {
        "degraded": rng.binomial(requests.astype(int), rate[:, None]).astype(float),
        "cost": requests * price[:, None] * np.where(ring, cost, 1)[:, None] * rng.gamma(20, 0.05, requests.shape),
    }
    past = rng.poisson(size * 28).astype(float)
    before = {"requests": past, "cost": past * price, "degraded": rng.binomial(past.astype(int), rate)} if known else {}
    return Sums(ring, requests, amounts, before)


@pytest.mark.parametrize(
    ("change", "expected", "least"),
    [
        ({}, {"go_on"}, 27),
        ({"degraded": 0.04}, {"roll_back"}, 27),
        ({"cost": 1.8}, {"roll_back"}, 27),
        ({"cost": 1.2}, {"wait", "halt"}, 29),  # the limit itself
        ({"outage": 0.1}, {"wait", "halt"}, 29),  # of all: no fault of the policy
        ({"blocks": 1, "devices": 60}, {"wait", "go_on"}, 29),
    ],
)
def test_the_decision(change, expected, least):
    """Of 30 fleets, nearly all end as they should; bad policies are never promoted."""
    rng = np.random.default_rng(7)
    found = [decide(HALT, simulated(rng, **change)).did for _ in range(30)]
    assert sum(did in expected for did in found) >= least, found
    if "roll_back" in expected:
        assert "go_on" not in found


def test_few_devices_and_few_blocks_decide_nothing():
    rng = np.random.default_rng(1)
    assert decide(HALT, simulated(rng, devices=20, share=0.2, degraded=0.5)).did == "wait"
    assert decide(HALT, simulated(rng, blocks=1), least_blocks=4).did == "wait"
    empty = Sums(np.zeros(0, bool), np.zeros((0, 1)), {"degraded": np.zeros((0, 1)), "cost": np.zeros((0, 1))})
    assert decide(HALT, empty).did == "wait"


def test_silence_is_no_evidence():
    """Thirty requests without a degraded answer do not show that fewer than 2 % are."""
    sums = Sums(np.arange(40) < 10, np.full((40, 1), 3.0), {"degraded": np.zeros((40, 1)), "cost": np.zeros((40, 1))})
    assert decide(parse_halt("degraded>2%"), sums).did == "wait"


@pytest.mark.parametrize("of", ["degraded", "cost"])
def test_one_device_that_lies_decides_nothing(of):
    """Neither in favour of a bad policy nor against a good one, whatever it reports."""
    rng = np.random.default_rng(3)
    good, bad = simulated(rng), simulated(rng, degraded=0.06, cost=2.0)
    for sums, wrong in ((good, {"roll_back", "halt"}), (bad, {"go_on"})):
        liar = int(np.flatnonzero(sums.ring)[0])
        sums.requests[liar] = 1e9
        sums.amounts[of][liar] = 1e9 if wrong == {"roll_back", "halt"} else 0.0
        assert decide(HALT, sums).did not in wrong


LIES = {
    "all report much": lambda now, past, ring: now * 1e6,
    "nothing": lambda now, past, ring: now * 0,
    "the rest reports much": lambda now, past, ring: now * np.where(ring, 1, 1e6),
    "the ring reports nothing": lambda now, past, ring: now * np.where(ring, 0, 1e6),
    "the ring reports much": lambda now, past, ring: now * np.where(ring, 1e6, 1),
}
PASTS = {"true": lambda past, ring: past, "much": lambda past, ring: past * 1e6, "both": lambda past, ring: past * 1e6 * ring}


@pytest.mark.parametrize("past", ["true", *slow("much", "both")])
@pytest.mark.parametrize("lie", LIES)
def test_five_percent_that_lie_hide_no_increase_and_do_not_make_one(lie, past):
    """What costs 40 % more is rolled back, or halted, and what costs the same is not, whatever they say of then and now."""
    rng = np.random.default_rng(17)
    for cost, allowed in ((1.4, {"roll_back", "halt"}), (1.0, {"go_on", "wait"})):
        found = []
        for _ in range(10):
            sums = simulated(rng, cost=cost)
            liars = rng.random(len(sums.ring)) < 0.05
            now, before = sums.amounts["cost"], sums.before["cost"]
            now[liars] = LIES[lie](now.sum(1), before, sums.ring)[liars, None] / now.shape[1]
            before[liars] = PASTS[past](before, sums.ring)[liars]
            found.append(decide(HALT, sums, least_blocks=4).did)
        assert sum(did in allowed for did in found) >= 9, found
        assert cost == 1.0 or "go_on" not in found


def test_an_alarm_halts_and_without_its_condition_does_not():
    rng = np.random.default_rng(5)
    sums = simulated(rng)
    assert decide(HALT, sums, alarm=True).did == "halt"
    assert decide(HALT[:2], sums, alarm=True).did == "go_on"


def test_looks_at_every_block_do_not_roll_back_a_policy_that_is_as_the_others():
    """The limit is where the fleet is already: of 40 rollouts with 12 looks each, few are rolled back."""
    rng = np.random.default_rng(11)
    back = 0
    for _ in range(40):
        sums = simulated(rng, devices=300, blocks=12)
        rate = sums.amounts["degraded"].sum() / sums.requests.sum()
        condition = (Condition("degraded", float(rate)),)
        looks = [Sums(sums.ring, sums.requests[:, :k], {"degraded": sums.amounts["degraded"][:, :k]}) for k in range(1, 13)]
        back += any(decide(condition, look).did == "roll_back" for look in looks)
    assert back <= 5


def test_limits_are_read():
    assert parse_halt("degraded>2%, cost > +20%, alarm") == (
        Condition("degraded", 0.02), Condition("cost", 0.2, relative=True), Condition("alarm"),
    )  # fmt: skip
    assert parse_halt("") == ()
    for wrong in ("degraded", "degraded<2%", "nothing>2%", "cost>+3", "degraded>2%;cost>3"):
        with pytest.raises(BadInput):
            parse_halt(wrong)


DAY = date(2026, 11, 2)


def _store(folder, signed_of, change=None, days=10, devices=120, lacks=lambda device, day: False):
    """A store of random digests, in which a device's day has the signed policy that the function returns, or is not there."""
    from fleets import random_fleet, write_store

    def signed(digest, device):
        day = (date.fromisoformat(digest.day) - DAY).days
        name, policy = signed_of(device, day)
        groups = tuple((model, policy, arm, kind) for model, _, arm, kind in digest.groups)
        return digest._replace(signed=name, groups=groups)

    digests = enumerate(random_fleet(devices, days, seed=2, first=DAY, change=change))
    write_store(folder, [signed(digest, i % devices) for i, digest in digests if not lacks(i % devices, i // devices)])
    return folder


@pytest.mark.parametrize("bad", [False, True])
def test_a_ring_is_promoted_by_the_tables(fleet, tmp_path, bad):
    """By the command: a good policy goes on; a bad one is rolled back: the contents before return as a new version."""
    pytest.importorskip("duckdb")
    from commands import cli

    fleet.publish(0.4)
    fleet.publish(0.6, rings=(0.25, 1.0), halt="degraded>2%, deferred>+50%")

    def change(device, day, shares):
        if bad and device < 30 and day >= 5:
            shares["degraded"] = 0.3

    ring = lambda device, day: ("shop-2", "new") if device < 30 and day >= 5 else ("shop-1", "old")  # noqa: E731
    store = _store(tmp_path / "store", ring, change)
    given = [
        store,
        "--name",
        "shop",
        "--catalog",
        fleet.catalog,
        "--keys",
        fleet.keys,
        "--since",
        DAY + timedelta(days=5),
        "--json",
    ]
    code, out, err = cli("fleet", "promote", *given, "--dry-run")
    assert len(json.loads(signed_file(fleet.catalog, target("shop")))["versions"]) == 2, err
    code, out, err = cli("fleet", "promote", *given)
    result = json.loads(out)
    if bad:
        assert (code, result["did"]) == (4, "roll_back"), err
        data = json.loads(signed_file(fleet.catalog, target("shop")))
        assert [(v["version"], v["share"], v["policy"]["threshold"]) for v in data["versions"]] == [(3, 1.0, 0.4)]
    else:
        assert (code, result["did"], result["versions"][-1]["share"]) == (0, "go_on", 1.0), (err, out)
    code, out, err = cli("fleet", "promote", *given)
    assert (code, json.loads(out)["did"]) == (5, "wait")


def test_a_bad_first_version_is_halted(fleet, tmp_path):
    """There are no contents before, to which all could go back: no further device takes it, day after day, until the next version.

    That one reaches the same ring first. For all devices a version is not halted.
    """
    pytest.importorskip("duckdb")
    from commands import cli

    def change(device, day, shares):
        if device < 30 and day >= 5:
            shares["degraded"] = 0.3

    first = fleet.publish(0.4, rings=(0.25, 1.0), halt="degraded>2%")
    ring = lambda device, day: ("shop-1", "new") if device < 30 and day >= 5 else ("", "old")  # noqa: E731
    store = _store(tmp_path / "store", ring, change)
    named = ["--name", "shop", "--catalog", fleet.catalog, "--keys", fleet.keys, "--json"]
    given = [store, *named, "--since", DAY + timedelta(days=5)]
    for more, halted in ((["--dry-run"], False), ([], True), ([], True), (["--by-hand", "roll-back"], True)):
        code, out, err = cli("fleet", "promote", *given, *more)
        result = json.loads(out)
        assert (code, result["did"]) == (4, "halt"), err
        assert "no version before shop-1" in result["text"]
        assert "fleet publish POLICY --name shop" in result["text"]
        data = json.loads(signed_file(fleet.catalog, target("shop")))
        assert [(v["version"], v["share"], v["halted"]) for v in data["versions"]] == [(1, 0.25, halted)]
    data = fleet.publish(0.6, rings=(0.25, 1.0))
    assert data["salt"] == first["salt"]
    assert [(v["version"], v["halted"]) for v in data["versions"]] == [(2, False)]
    assert cli("fleet", "promote", *named, "--by-hand", "go-on")[0] == 0
    code, _, err = cli("fleet", "promote", *named, "--by-hand", "roll-back")
    assert (code, "no version before 2: publish another one" in err) == (1, True)


def test_an_alarm_of_the_candidates_audits_halts(fleet, tmp_path):
    """As `fleet alarm` found it last; an alarm of another policy does not."""
    pytest.importorskip("duckdb")
    from edgeroute.tools.fleet.digest_parquet_store import open_store
    from edgeroute.tools.fleet.fleet_alarms import FleetAlarms, Looked, last_look
    from edgeroute.tools.fleet.policy_rollout_by_rings import decide_by_tables, published

    fleet.publish(0.4)
    fleet.publish(0.6, rings=(0.25, 1.0), halt="degraded>5%, alarm")
    ring = lambda device, day: ("shop-2", "new") if device < 30 and day >= 5 else ("shop-1", "old")  # noqa: E731
    store = _store(tmp_path / "store", ring)
    assert last_look(store) == Looked()
    with open_store(store) as connection:
        data, since = published(fleet.catalog, "shop"), DAY + timedelta(days=5)
        decisions = [
            decide_by_tables(connection, data, since, look=look)
            for look in (
                Looked(since, frozenset({"new"}), {"new", "old"}),
                Looked(since, frozenset({"old"}), {"new", "old"}),
                Looked(since, (), {"old"}),
                Looked(since - timedelta(days=1)),
                None,
            )
        ]
    assert [decision.did for decision in decisions] == ["halt", "go_on", "go_on", "wait", "wait"]
    assert ["no test" in decision.text for decision in decisions[1:3]] == [False, True]
    with closing(FleetAlarms(store, learn=7)) as alarms:
        alarms.look()
    assert last_look(store) == Looked(DAY + timedelta(days=9), set(), {"new", "old"})


@pytest.mark.parametrize("silent", [True, False])
def test_a_ring_of_which_most_fail_does_not_go_on(fleet, tmp_path, silent):
    """The devices on which a policy fails send nothing, or go back by themselves and count as the rest: the others are well."""
    pytest.importorskip("duckdb")
    from edgeroute.tools.fleet.digest_parquet_store import open_store
    from edgeroute.tools.fleet.policy_rollout_by_rings import decide_by_tables, published

    fleet.publish(0.4)
    fleet.publish(0.6, rings=(0.25, 1.0), halt="degraded>2%")
    ring = lambda device, day: ("shop-2", "new") if device < 10 and day >= 5 else ("shop-1", "old")  # noqa: E731
    store = _store(tmp_path / "store", ring, lacks=lambda device, day: silent and 10 <= device < 30 and day >= 5)
    with open_store(store) as connection:
        decision = decide_by_tables(connection, published(fleet.catalog, "shop"), DAY + timedelta(days=5))
    assert (decision.did, "10 devices" in decision.text, "about 30" in decision.text) == ("wait", True, True), decision


def test_rows_of_before_the_switch_count_for_neither_side(fleet, tmp_path):
    """A digest of the day of the switch has rows of the old policy under the new name."""
    duckdb = pytest.importorskip("duckdb")
    assert duckdb
    from edgeroute.tools.fleet.digest_parquet_store import open_store
    from edgeroute.tools.fleet.policy_rollout_by_rings import decide_by_tables, published

    fleet.publish(0.4)
    fleet.publish(0.6, rings=(0.25, 1.0), halt="degraded>2%")

    def change(device, day, shares):
        if device < 30 and day == 5:
            shares["degraded"] = 0.9

    # on day 5 the old policy of the ring was awful, and the digest has the new name already
    ring = lambda device, day: ("shop-2", "old" if day == 5 else "new") if device < 30 and day >= 5 else ("shop-1", "old")  # noqa: E731
    with open_store(_store(tmp_path / "store", ring, change)) as connection:
        assert decide_by_tables(connection, published(fleet.catalog, "shop"), DAY + timedelta(days=5)).did == "go_on"


def test_few_liars_decide_nothing(fleet, tmp_path):
    """One says that the candidate's policy was there before, to remove the ring's rows, and nine that they are the ring, and well.

    Nor does the first one hide an alarm of the candidate's audits.
    """
    pytest.importorskip("duckdb")
    from edgeroute.tools.fleet.digest_parquet_store import open_store
    from edgeroute.tools.fleet.fleet_alarms import Looked
    from edgeroute.tools.fleet.policy_rollout_by_rings import decide_by_tables, published

    fleet.publish(0.4)
    fleet.publish(0.6, rings=(0.25, 1.0), halt="degraded>2%, alarm")

    def lying(device, day):
        if day < 5 or 30 <= device < 100 or device >= 110:
            return "shop-1", "old"
        return ("shop-2", "new") if device < 30 else ("shop-1", "new") if device == 100 else ("shop-2", "mine")

    def change(device, day, shares):
        if day >= 5:
            shares["degraded"] = 0.3 if device < 30 else 0.0 if device > 100 else shares["degraded"]

    since, data = DAY + timedelta(days=5), published(fleet.catalog, "shop")
    with open_store(_store(tmp_path / "bad", lying, change)) as connection:
        assert decide_by_tables(connection, data, since).did == "roll_back"
    with open_store(_store(tmp_path / "alarmed", lying)) as connection:
        assert decide_by_tables(connection, data, since, look=Looked(since, frozenset({"new"}))).did == "halt"


def test_more_devices_than_a_ring_can_have_are_no_reason_to_go_on(fleet, tmp_path):
    """Others say that they are in it, where all is well, and outvote the devices that are."""
    pytest.importorskip("duckdb")
    from edgeroute.tools.fleet.digest_parquet_store import open_store
    from edgeroute.tools.fleet.policy_rollout_by_rings import decide_by_tables, published

    fleet.publish(0.4)
    fleet.publish(0.6, rings=(0.1, 1.0), halt="degraded>2%")
    data, since = published(fleet.catalog, "shop"), DAY + timedelta(days=5)

    def change(device, day, shares):
        if day >= 5:
            shares["degraded"] = 0.03 if device < 12 else 0.0 if device < 42 else shares["degraded"]

    ring = lambda device, day: ("shop-2", "new") if device < 42 and day >= 5 else ("shop-1", "old")  # noqa: E731
    with open_store(_store(tmp_path / "store", ring, change)) as connection:
        decision = decide_by_tables(connection, data, since)
    assert (decision.did, "42 of 120 devices" in decision.text) == ("wait", True)


# The budget.


def test_the_limits_of_all_devices_are_the_budget():
    """Whatever the devices' use; a margin and a share for new devices are held back."""
    rng = np.random.default_rng(1)
    for usage in (rng.lognormal(0, 2, 1000), np.zeros(1000), np.ones(3)):
        rule = shares(usage, 500.0, margin=0.1, arrivals=20)
        assert limit_for(rule, usage).sum() + 20 * rule.new == pytest.approx(450.0)
        assert (limit_for(rule, usage) > 0).all()
        assert rule.new <= 450 / len(usage) + 1e-9
    assert limit_for(shares(np.ones(10), 100.0), np.array([np.nan]))[0] == pytest.approx(shares(np.ones(10), 100.0).new)


def test_a_device_that_lies_about_its_use_leaves_the_others_theirs():
    usage = np.random.default_rng(2).lognormal(0, 1, 1000)
    honest = limit_for(shares(usage, 1000.0), usage)
    lie = np.append(usage, 1e12)
    rule = shares(lie, 1000.0)
    limits = limit_for(rule, lie)
    assert limits.sum() <= 1000
    assert (limits[:-1] > 0.85 * honest).all()
    assert limits[-1] < 100


def test_the_margin_grows_with_overspending_and_falls():
    margin = next_margin(0.0, 120.0, 100.0)
    assert margin == pytest.approx(0.1)
    assert next_margin(margin, 50.0, 100.0) < margin
    assert next_margin(0.0, 50.0, 100.0) == pytest.approx(0.0)
    assert next_margin(0.5, 1e9, 100.0) == pytest.approx(0.5)
    assert next_margin(0.0, 1.0, 0.0) == pytest.approx(margin)
    assert next_margin(margin, 0.0, 0.0) < margin, "a budget of 0 that was kept"


BUDGET = {
    "format": 1, "through": "2026-11-28", "until": "2026-12-02", "reserve": 0.1,
    "limits": {"usd_per_day": {"least": 1.0, "factor": 2.0, "new": 0.5, "most": 20.0}},
}  # fmt: skip


def test_a_device_computes_its_own_limit():
    """By its own mean use; for a new one, one that was away, and an old budget."""
    used = {"2026-11-27": [3.0, 0.0], "2026-11-28": [5.0, 0.0]}
    assert limits_by(BUDGET, used, "2026-11-29") == {"usd_per_day": pytest.approx(9.0)}
    assert limits_by(BUDGET, {}, "2026-11-29") == {"usd_per_day": pytest.approx(0.5)}
    assert limits_by(BUDGET, used, "2026-12-03") == {"usd_per_day": pytest.approx(0.9)}
    assert limits_by(BUDGET, {"2026-09-01": [4.0, 0.0]}, "2026-11-29") == {"usd_per_day": pytest.approx(0.9)}
    assert limits_by(BUDGET, used, "2026-11-29", {"2026-11-28"}) == {"usd_per_day": pytest.approx(7.0)}
    assert limits_by(BUDGET, used, "2026-11-29", {*used}) == {"usd_per_day": pytest.approx(0.9)}, "the owner knows of none"
    for broken in (
        {},
        {**BUDGET, "limits": 3},
        {**BUDGET, "through": "soon"},
        {**BUDGET, "limits": {"usd_per_day": {"least": -3, "factor": 0, "new": -3, "most": 1}}},
    ):
        with pytest.raises(CatalogError):
            limits_by(broken, used, "2026-11-29")


def test_a_device_keeps_to_the_fleets_budget(fleet, monkeypatch):
    """Its limit is below its own file's and the signed policy's, falls to a reserve with an old budget, and follows the next one."""
    today = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
    clock = [today.timestamp()]
    monkeypatch.setattr("edgeroute.catalog.signed_policy_follower.now", lambda: clock[0])
    fleet.publish(0.4, limits={"usd_per_day": 50})
    _sign(fleet, BUDGET)
    with Router.from_policy(fleet.device(), watch=True) as router:
        wait_for(lambda: router.status().limits.usd_per_day == pytest.approx(0.5))
        wait_for(lambda: threshold(router) == pytest.approx(0.4))
        wait_for(lambda: "by the fleet's budget" in router.status().signed)
        clock[0] += 86_400
        wait_for(lambda: "2026-11-29" in standing(fleet.home / "device").usage)
        waiting = fleet.home / "device" / "fleet" / f"2026-11-29.{'0' * 32}.1.digest"
        waiting.touch()
        _sign(fleet, {**BUDGET, "through": "2026-11-29"})
        wait_for(lambda: router.status().limits.usd_per_day == pytest.approx(0.1))  # the owner does not know its use
        waiting.unlink()
        wait_for(lambda: router.status().limits.usd_per_day == pytest.approx(1.0))  # it has used nothing
        fleet.catalog.rename(fleet.home / "away")
        clock[0] += 86_400 * 4
        wait_for(lambda: router.status().limits.usd_per_day == pytest.approx(0.1))
        (fleet.home / "away").rename(fleet.catalog)
        _sign(
            fleet,
            {
                **BUDGET,
                "through": "2026-12-03",
                "until": "2026-12-09",
                "limits": {"usd_per_day": {"least": 70, "factor": 0, "new": 70, "most": 70}},
            },
        )
        wait_for(lambda: router.status().limits.usd_per_day == pytest.approx(50))  # the policy's own is lower
        _sign(fleet, {"format": 1})
        wait_for(lambda: router.status().limits.usd_per_day == pytest.approx(50))


@pytest.mark.parametrize(
    "known", [{"since": "2027-11-01"}, {"since": "2026-11-01", "usage": {f"2027-11-0{day}": [9.0, 0.0] for day in range(1, 8)}}]
)
def test_a_clock_that_was_ahead_leaves_no_device_at_its_reserve(fleet, monkeypatch, known):
    """Days that are to come are forgotten first, and what is used from now on counts, not in a year."""
    clock = [datetime(2026, 11, 28, 12, tzinfo=timezone.utc).timestamp()]
    monkeypatch.setattr("edgeroute.catalog.signed_policy_follower.now", lambda: clock[0])
    fleet.publish(0.4)
    _sign(fleet, BUDGET)
    device = fleet.device()
    (fleet.home / "device" / "fleet").mkdir(parents=True)
    (fleet.home / "device" / "fleet" / "policy.json").write_text(json.dumps({"name": "shop", **known}))
    with Router.from_policy(device, watch=True) as router:
        wait_for(lambda: "2026-11-" in standing(fleet.home / "device").since)
        clock[0] += 86_400
        wait_for(lambda: "2026-11-28" in standing(fleet.home / "device").usage)
        wait_for(lambda: router.status().limits.usd_per_day == pytest.approx(1.0))


def _sign(fleet, budget):
    sign_files(fleet.catalog, {budget_target("shop"): json.dumps(budget).encode()}, keys=fleet.keys)


def test_a_budget_is_split_by_the_tables(fleet, tmp_path):
    pytest.importorskip("duckdb")
    from commands import cli

    fleet.publish(0.4)
    store = _store(tmp_path / "store", lambda device, day: ("shop-1", "old"), devices=40)
    given = [
        store,
        "--name",
        "shop",
        "--catalog",
        fleet.catalog,
        "--keys",
        fleet.keys,
        "--day",
        DAY + timedelta(days=10),
        "--json",
    ]
    code, out, err = cli("fleet", "budget", *given, "--per-day", "500usd,2mb")
    assert code == 0, err
    data = json.loads(out)
    assert set(data["limits"]) == {"usd_per_day", "mb_per_day"}
    assert (data["through"], data["until"]) == ("2026-11-11", "2026-11-14")
    assert data["margins"] == {}
    code, out, err = cli("fleet", "budget", *given, "--per-day", "0.001usd")
    assert code == 0, err
    code, out, err = cli("fleet", "budget", *given, "--per-day", "0.001usd")
    assert json.loads(out)["margins"]["usd_per_day"] == pytest.approx(0.1)  # it was overspent
    assert len(signed_file(fleet.catalog, budget_target("shop"))) < 600  # bytes, whatever the number of devices
    for wrong in ("500", "usd", "-3usd", "5eur"):
        assert cli("fleet", "budget", *given, "--per-day", wrong)[0] == 2


@pytest.mark.parametrize(("silent", "day"), [(20, 8), (40, 9), (40, 12)])
def test_a_store_that_was_away_multiplies_no_budget(fleet, tmp_path, silent, day):
    """Devices whose last digests are not here spend as before, so that the budget is split over them, too."""
    pytest.importorskip("duckdb")
    from fleets import random_fleet, write_store

    from edgeroute.tools.fleet.budget_shares_and_signing import Rule, renew
    from edgeroute.tools.fleet.digest_parquet_store import open_store

    fleet.publish(0.4)
    late = str(DAY + timedelta(days=6))
    digests = [d for i, d in enumerate(random_fleet(40, day, first=DAY)) if i % 40 >= silent or d.day < late]
    with open_store(write_store(tmp_path / "store", digests)) as store:
        today, both = DAY + timedelta(days=day), {"catalog": fleet.catalog, "keys": fleet.keys}
        rule = Rule(**renew(store, "shop", {"usd_per_day": 100.0}, today=today, **both)["limits"]["usd_per_day"])
        use = store.execute("SELECT sum(usd) / count(DISTINCT day) AS used FROM requests GROUP BY device").fetchnumpy()["used"]
    assert len(use) == 40
    assert 80 < limit_for(rule, use).sum() <= 110


def test_a_device_that_lies_about_a_day_holds_no_budget_back(fleet, tmp_path):
    """It says that it has spent a thousand times the budget, which its limit did not allow."""
    pytest.importorskip("duckdb")
    from commands import cli
    from fleets import random_fleet, write_store

    fleet.publish(0.4)
    digests = list(random_fleet(40, 8, first=DAY))
    digests[-1] = digests[-1]._replace(requests=tuple((*row[:7], 10**12, *row[8:]) for row in digests[-1].requests))
    given = [write_store(tmp_path / "store", digests), "--name", "shop", "--catalog", fleet.catalog, "--keys", fleet.keys]
    for day in (7, 8):
        more = ["--per-day", "500usd", "--day", DAY + timedelta(days=day), "--json"]
        code, out, err = cli("fleet", "budget", *given, *more)
        assert code == 0, err
    assert json.loads(out)["margins"] == {"usd_per_day": 0.0}
