"""Rollout of a signed policy in rings: its publication (`publish`, `promote`), and the decision by digests (`decide`).

The decision is to go on, to wait, to halt or to roll back. It compares the devices of the ring with the rest of the fleet in the
same blocks of hours. A device is one observation, whatever its number of requests, since requests of one device resemble each
other. Each limit of `--halt` is decided by an interval that holds at every look, or the decision waits.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timezone
from math import exp, log, pi, sqrt
from pathlib import Path
from statistics import NormalDist
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from edgeroute.catalog.catalog_entry import checked_name
from edgeroute.catalog.signed_policy_follower import FORMAT, in_ring, position, read_policies
from edgeroute.errors import BadInput, CatalogError, PolicyError
from edgeroute.policy import load
from edgeroute.policy.file_and_environment import read_policy
from edgeroute.system.files_and_lock_waits import replace_file
from edgeroute.system.untrusted_files import parse_json
from edgeroute.system.wall_clock import now
from edgeroute.tools.catalog_keys_and_publishing import LISTS_DAYS, publishing, sign_files, signed_file
from edgeroute.tools.fleet.fleet_alarms import Looked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["Condition", "Decision", "Sums", "decide", "in_ring", "parse_halt", "position", "promote", "publish"]

SHARES = ("degraded", "failed", "deferred")  # amounts that are shares of the requests
AMOUNTS = (*SHARES, "cost", "bytes")
# Hours of a block, since a long digest has no shorter ones; blocks before a ring goes on: those of a day.
BLOCK_H, LEAST_BLOCKS = 6, 4
MOST_DAYS = 60  # days beyond which an estimate of the days that are missing would be no help
AGAIN = "run this again after the next `edgeroute fleet collect`, publish a larger ring, or decide with --by-hand"
LEAST_DEVICES = 8  # devices of a ring without which nothing is decided
# Largest weight of a device: so many times the requests of the median one. Its cost: 3 times that of the dearest tenth.
HEAVIEST = 3.0
KNOWN_AFTER = 100.0  # requests before the ring after which a device's own amount counts as much as the fleet's mean
Did = Literal["go_on", "wait", "halt", "roll_back"]


class Condition(NamedTuple):
    """Limit of a rollout.

    Attributes:
        amount: one of `AMOUNTS`, by request; `alarm`: an alarm of the fleet's audits.
        most: largest value, or the largest increase against the rest of the fleet, 0.2 for +20 %.
    """

    amount: str
    most: float = 0.0
    relative: bool = False

    def __str__(self) -> str:
        limit = f"+{self.most:.4g}" if self.relative else f"{self.most:.4g}"
        return self.amount if self.amount == "alarm" else f"{self.amount}>{limit}"


def parse_halt(text: str) -> tuple[Condition, ...]:
    """Return the conditions of a text such as `degraded>2%, cost>+20%, alarm`; none for an empty text.

    Raises:
        BadInput: it is not one.
    """
    conditions = []
    for part in filter(None, map(str.strip, text.split(","))):
        match = re.fullmatch(rf"({'|'.join(AMOUNTS)})\s*>\s*(\+?)\s*(\d+\.?\d*|\.\d+)\s*(%?)", part)
        if part == "alarm":
            conditions.append(Condition("alarm"))
        elif match is None or (match[2] and not match[4]):
            raise BadInput(f"--halt {part!r}: expected alarm, or one of {', '.join(AMOUNTS)} and a limit, as in degraded>2%")
        else:
            conditions.append(Condition(match[1], float(match[3]) / (100 if match[4] else 1), bool(match[2])))
    return tuple(conditions)


class Sums(NamedTuple):
    """Sums by device and block of hours.

    Attributes:
        ring: True for devices with the candidate, bool [devices].
        requests: [devices, blocks].
        amounts: name in `AMOUNTS` -> [devices, blocks]; cost in US dollars.
        before: `requests`, and the names in `AMOUNTS`, of these devices in the days before the ring, [devices]; empty: unknown.
    """

    ring: NDArray[Any]
    requests: NDArray[Any]
    amounts: Mapping[str, NDArray[Any]]
    before: Mapping[str, NDArray[Any]] = {}


class Decision(NamedTuple):
    """Result of a look at a ring. `halt`: no further device takes the candidate; `roll_back`: the old contents come back."""

    did: Did
    text: str

    def possible(self, data: Mapping[str, Any]) -> Decision:
        """Return the decision itself, or `halt` in place of a `roll_back` of a candidate without a version before.

        Args:
            data: the signed file's data.
        """
        if self.did != "roll_back" or [v["share"] < 1 for v in data["versions"]] != [True]:
            return self
        name = data["name"]
        return Decision(
            "halt",
            f"{self.text}; there is no version before {name}-{data['versions'][0]['version']} to roll back to: no further device "
            f"takes it, and those that have it keep it until there is another one: edgeroute fleet publish POLICY --name {name}; "
            f"edgeroute fleet publish --name {name} --only-edge stops what all send meanwhile",
        )


def decide(
    conditions: Sequence[Condition], sums: Sums, *, alarm: bool = False, alpha: float = 0.05, least_blocks: int = 1
) -> Decision:
    """Decide about a ring by its devices and the rest of the fleet. Wrong with a probability of at most about `alpha`.

    In this order: rolls back if an interval lies wholly beyond its limit, and the ring is worse than the rest in the same hours;
    halts by less evidence, that of a single look; halts for an alarm, however few the devices; waits for `LEAST_DEVICES` devices,
    without which no limit is tested, for blocks, or for evidence, as the text says; goes on, with all intervals within their
    limits. For any number of looks: `alpha` is spent over the conditions, and over times that double (of 1, 2, 4, ... blocks).
    Costs and bytes are tested twice, of all devices and of the middle 80 %: one test beyond its limit is enough, and to go on
    both are within theirs. So 5 % that lie hide no increase; a good policy they may keep waiting.

    Args:
        conditions: the limits; an alarm counts only if `alarm` is among them.
        sums: requests and amounts so far, since the ring began.
        alarm: True if the audits of the ring's policy have an alarm.
        alpha: risk, for each direction.
        least_blocks: blocks with requests of the ring before which nothing goes on.
    """
    limits = [condition for condition in conditions if condition.amount != "alarm"]
    blocks = int((sums.requests[sums.ring].sum(0) > 0).sum())
    devices = int((sums.requests[sums.ring].sum(1) > 0).sum())
    waits = f"of the ring {devices} devices have sent digests, and {LEAST_DEVICES} are needed" if devices < LEAST_DEVICES else ""
    twice = [(c, middle) for c in limits for middle in (False, True)[: 1 if c.amount in SHARES else 2]]
    looked = [] if waits else [(condition, _test(condition, sums, middle=middle)) for condition, middle in twice]
    risk = alpha / max(1, len(twice))
    epoch = max(1, blocks.bit_length() - 1)
    strict, once = (NormalDist().inv_cdf(1 - part) for part in (risk * 6 / (pi * epoch) ** 2, risk))
    worse = [(c, test) for c, test in looked if min(test.beyond, test.worse) > 0]
    for did, z in (("roll_back", strict), ("halt", once)):
        texts = [
            f"{c}: {test.text}" for c, test in worse if min(test.beyond, test.worse) > _student(z, test.devices) or test.bound > z
        ]
        if texts:
            return Decision(did, "; ".join(texts))  # type: ignore[arg-type]  # one of the two
    if alarm and any(condition.amount == "alarm" for condition in conditions):
        return Decision("halt", "an alarm of the fleet's audits")
    undecided = [(c, test) for c, test in looked if -test.beyond <= _student(strict, test.devices)]
    if blocks < least_blocks:
        waits = waits or f"{blocks} blocks of hours have requests of the ring, and {least_blocks} are needed"
    if waits:
        return Decision("wait", f"{waits}: {AGAIN}")
    if undecided:  # the distance from a limit, in standard errors, grows with the root of the time
        times = max((_student(strict, test.devices) / max(-test.beyond, 1e-9)) ** 2 for _, test in undecided)
        days = (times - 1) * blocks * BLOCK_H / 24
        more = f"about {max(1, days):.0f} more days at this rate" if days < MOST_DAYS else "perhaps never at this rate"
        limits_open = "; ".join(f"{c}: {test.text}" for c, test in undecided)
        return Decision("wait", f"not enough evidence yet for {limits_open}; {more}: {AGAIN}")
    return Decision("go_on", "; ".join(f"{c}: {test.text}" for c, test in looked) or "no limits were given")


_SUMS = (
    "sum(requests) AS requests, sum(degraded) AS degraded, sum(failed) AS failed, sum(deferred) AS deferred, sum(usd) AS cost, "
    "sum(bytes) AS bytes"
)


# SQL of the policies of the last days, by contents, of which fewer devices, or more, report another name than the candidate:
# a few devices that lie decide about none.
_OF_CANDIDATE = "count(DISTINCT device) FILTER (signed = $signed)"
_OF_POLICIES = """SELECT policy FROM requests WHERE policy <> '' AND day >= $day - 30 GROUP BY policy
    HAVING count(DISTINCT device) FILTER (signed <> $signed)"""


def decide_by_tables(
    connection: Any, data: Mapping[str, Any], since: date | None = None, *, look: Looked | None = None
) -> Decision:
    """Return the decision about a policy's candidate, by the tables of digests since its ring began. Changes nothing.

    Waits if it is for all devices or frozen, no digest is there, or more devices than the ring can have say that they are in it:
    the ring's random numbers are never sent. Goes on only after `LEAST_BLOCKS` blocks; not if far fewer devices say so, as those
    on which the candidate fails are silent, or go back; nor, with the limit `alarm`, before a look at the ring's days. Rows of
    before a device's switch, by the contents of their policy, count for neither side. The week before is each device's own
    reference.

    Args:
        connection: tables of digests, as of `digest_parquet_store.open_store`.
        data: the signed file's data.
        since: first day that counts; None: the day on which the ring began.
        look: last look of `fleet alarm`, of whose alarms one of the candidate's policy alone counts; None: there was none.
    """
    last = data["versions"][-1]
    if last["share"] == 1:
        return Decision("wait", f"{data['name']}-{last['version']} is for all devices: edgeroute fleet publish begins a ring")
    if data["freeze"]:
        return Decision("wait", f"{data['name']} is frozen: edgeroute fleet publish --name {data['name']} --no-freeze")
    day = since or datetime.fromtimestamp(last["since"], timezone.utc).date()
    given = {"signed": f"{data['name']}-{last['version']}", "day": day}
    rows = connection.execute(
        f"""
        WITH earlier AS ({_OF_POLICIES} >= {_OF_CANDIDATE}),
             recent AS (SELECT *, policy IN (SELECT policy FROM earlier) AS old FROM requests WHERE day >= $day),
             candidate AS (SELECT bool_or(signed = $signed AND NOT old) AS differs FROM recent)
        SELECT device, signed = $signed AS ring, date_diff('hour', $day::TIMESTAMP, day) + hour AS hour, {_SUMS}
        FROM recent, candidate WHERE signed <> $signed OR NOT (old AND differs)
        GROUP BY ALL
        """,
        given,
    ).fetchnumpy()
    if not len(rows["device"]):
        return Decision("wait", f"no digest is of {day} or later: {AGAIN}; a day is sent up to an hour after its end, UTC")
    earlier = connection.execute(
        f"SELECT device, {_SUMS} FROM requests WHERE day >= $day - 7 AND day < $day GROUP BY ALL", {"day": day}
    ).fetchnumpy()
    both = np.char.add(rows["device"].astype(str), np.where(rows["ring"], "+", "-"))
    names, device = np.unique(both, return_inverse=True)
    blocks, block = np.unique(rows["hour"] // BLOCK_H, return_inverse=True)
    tables = {name: np.zeros((len(names), len(blocks))) for name in ("requests", *AMOUNTS)}
    before = {name: np.zeros(len(names)) for name in tables}
    known = {name: i for i, name in enumerate(earlier["device"])}
    places = np.array([known.get(name[:-1], -1) for name in names])
    for name, table in tables.items():
        np.add.at(table, (device, block), np.asarray(rows[name], float))
        if known:
            before[name] = np.where(places >= 0, np.asarray(earlier[name], float)[places], 0.0)
    sums = Sums(np.char.endswith(names, "+"), tables.pop("requests"), tables, before)
    new = {policy for (policy,) in connection.execute(f"{_OF_POLICIES} < {_OF_CANDIDATE}", given).fetchall()}
    conditions, look = parse_halt(data["halt"]), look or Looked()
    decision = decide(conditions, sums, alarm=not new.isdisjoint(look.alarmed), least_blocks=LEAST_BLOCKS)
    if decision.did != "go_on":
        return decision
    devices, share, claims = len({*rows["device"].tolist()}), last["share"], int(sums.ring.sum())
    follow = "SELECT count(DISTINCT device) FROM requests WHERE day >= ? - 7 AND regexp_full_match(signed, ?)"
    (followers,) = connection.execute(follow, [day, re.escape(data["name"]) + r"-\d+"]).fetchone()
    most, least = (share * n + z * sqrt(share * (1 - share) * n) for n, z in ((devices, 4), (followers, -3)))
    why, alarm = "", any(condition.amount == "alarm" for condition in conditions)
    if claims > max(LEAST_DEVICES, most):
        why = f"{claims} of {devices} devices say that they are in a ring of {share:.3g}: some of these digests are false"
    elif claims < min(least, share * followers / 2):
        why = (
            f"{claims} devices have sent digests with the policy, of about {share * followers:.0f} in the ring: on the others it "
            "may have failed, been refused, or be pinned"
        )
    elif alarm and (look.closed is None or look.closed < day):
        return Decision("wait", "edgeroute fleet alarm has yet to look at a day of the ring: run it, and then this again")
    if why:
        return Decision("wait", f"{why}; decide with --by-hand")
    untested = alarm and new.isdisjoint(look.tested)
    return decision._replace(text=f"{decision.text}; fleet alarm has no test of the policy yet") if untested else decision


class _Test(NamedTuple):
    """Distance of a ring from a limit, and from the rest of the fleet, each in standard errors; above 0: beyond, worse.

    Attributes:
        devices: effective number of devices.
        bound: standard errors by which a share is beyond both, by Chernoff's bound: for few devices of which some fail
            altogether.
    """

    beyond: float
    worse: float
    devices: float
    text: str
    bound: float = 0.0


def _test(condition: Condition, sums: Sums, *, middle: bool) -> _Test:
    """Compare a ring with a limit, and with the rest of the fleet in the blocks of hours that both have.

    A device that is far above the others is cut. Without a common block the ring counts as worse than the rest, and a relative
    limit is undecided. middle: devices count as `_middle` says, so that a few that lie hide nothing.
    """
    share = condition.amount in SHARES
    n, x, ring = *_capped(sums, condition.amount, share=share), sums.ring
    requests = n[ring].sum()
    text = f"{x[ring].sum() / requests:.4g} a request in {int((n[ring].sum(1) > 0).sum())} devices of the ring"
    if condition.relative:
        n = n * _expected(sums, condition.amount)[:, None]
    if middle:
        n, x, text = *_middle(n, x, ring), f"{text}, of the middle 80 % of the devices"
    both = (n[ring].sum(0) > 0) & (n[~ring].sum(0) > 0)
    rate, total = x[ring].sum() / n[ring].sum(), n[ring].sum()
    effective = total**2 / (n[ring].sum(1) ** 2).sum()
    if not both.any():
        own = max(_variance((x - rate * n)[ring].sum(1) / total), _least_variance(condition, share, total))
        beyond = 0.0 if condition.relative else _ratio(rate - condition.most, sqrt(own))
        return _Test(beyond, np.inf, effective, f"{text}, and none to compare with")
    n_both, x_both = n * both, x * both
    in_both = n_both[ring].sum()
    weights = np.divide(n_both[ring].sum(0), in_both)
    rest_n = np.where(both, n[~ring].sum(0), 1.0)
    rest_rates = x_both[~ring].sum(0) / rest_n
    rest = float(weights @ rest_rates)
    scores = ((x_both - rest_rates * n_both)[~ring] * (weights / rest_n)).sum(1)
    rest_variance = _variance(scores)
    active, others = (int((n_both[side].sum(1) > 0).sum()) for side in (ring, ~ring))
    like_rest = rest_variance * others / max(1, active)  # a ring of the same devices has no less: a small one may seem to

    def error(rows: NDArray[Any], count: float, factor: float) -> float:
        own = max(_variance(rows / count), like_rest, _least_variance(condition, share, count))
        return sqrt(own + factor**2 * rest_variance)

    ring_rate = x_both[ring].sum() / in_both
    compared = (x_both - ring_rate * n_both)[ring].sum(1)
    if condition.relative:
        text += f", {ring_rate / rest - 1:+.1%} against {others} others" if rest > 0 else f", and none in {others} others"
        distance = _ratio(ring_rate - (1 + condition.most) * rest, error(compared, in_both, 1 + condition.most))
        return _Test(distance, np.inf, effective, text)
    text += f", and {rest:.4g} in {others} others"
    beyond = _ratio(rate - condition.most, error((x - rate * n)[ring].sum(1), total, 0.0))
    bound = _chernoff(min(rate, ring_rate), max(condition.most, rest), effective) if share else 0.0
    return _Test(beyond, _ratio(ring_rate - rest, error(compared, in_both, 1.0)), effective, text, bound)


def _chernoff(rate: float, limit: float, devices: float) -> float:
    """Return how far a mean of shares is beyond a limit: standard errors with the chance of Chernoff's bound; 0: it is not."""
    if not 0 < limit < rate:
        return 0.0 if rate <= limit else np.inf
    rest = (1 - rate) * log((1 - rate) / (1 - limit)) if rate < 1 else 0.0
    chance = exp(-devices * (rate * log(rate / limit) + rest))
    return -NormalDist().inv_cdf(min(max(chance, 1e-300), 0.5))


def _capped(sums: Sums, amount: str, *, share: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return requests and amounts in which no device counts for much more than others: one that lies cannot decide.

    Requests are cut at `HEAVIEST` times the median device's, and amounts with them. An amount that is a share (`share`) is at
    most the requests; another is cut at three times the rate of the dearest tenth of its side.
    """
    totals = sums.requests.sum(1)
    factors = np.minimum(1.0, HEAVIEST * np.median(totals[totals > 0]) / np.maximum(totals, 1e-12))[:, None]
    n, x = sums.requests * factors, sums.amounts[amount] * factors
    if share:
        return n, np.minimum(x, n)
    rates = np.divide(x.sum(1), n.sum(1), out=np.zeros(len(n)), where=n.sum(1) > 0)
    for side in (sums.ring, ~sums.ring):
        known = rates[side & (totals > 0)]
        most = 3 * np.quantile(known, 0.9, method="lower") if len(known) else 0.0
        if most > 0:
            x[side] *= np.minimum(1.0, most / np.maximum(rates[side], 1e-300))[:, None]
    return n, x


def _middle(n: NDArray[Any], x: NDArray[Any], ring: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return weights and amounts in which the tenths of each side with the lowest and highest rates have the next ones' rates.

    No weight is above `HEAVIEST` times the median one: what 5 % of the devices report, also of the past, moves little.
    """
    totals = n.sum(1)
    n, x = (a * np.minimum(1.0, HEAVIEST * np.median(totals[totals > 0]) / np.maximum(totals, 1e-300))[:, None] for a in (n, x))
    rates = np.divide(x.sum(1), n.sum(1), out=np.zeros(len(n)), where=totals > 0)
    for side in (ring & (totals > 0), ~ring & (totals > 0)):
        if side.any():
            cut = np.clip(rates[side], *np.quantile(rates[side], (0.1, 0.9)))[:, None]
            own = rates[side][:, None]
            x[side] = np.where(own > 0, x[side] * cut / np.maximum(own, 1e-300), n[side] * cut)
    return n, x


def _expected(sums: Sums, amount: str) -> NDArray[Any]:
    """Return the amount that each device is expected to have by request: its own before the ring, drawn to the fleet's mean.

    So devices are compared with themselves. One that was far above the others is cut. All 1 if nothing is known from before.
    """
    requests, before = sums.before.get("requests"), sums.before.get(amount)
    if requests is None or before is None or not before.sum() > 0:
        return np.ones(len(sums.ring))
    rates = before[requests > 0] / requests[requests > 0]
    before = np.minimum(before, requests * (3 * np.quantile(rates, 0.9, method="lower") or np.inf))
    mean = before.sum() / requests.sum()
    return np.asarray((before + KNOWN_AFTER * mean) / (requests + KNOWN_AFTER))


def _variance(scores: NDArray[Any]) -> float:
    """Return the variance of a sum of scores of devices, of which those without requests are 0."""
    count = int((scores != 0).sum())
    return float((scores**2).sum()) * (count / (count - 1) if count > 1 else 1.0)


def _least_variance(condition: Condition, share: bool, requests: float) -> float:
    """Return the variance of a share at its limit over independent requests, below which no estimate may be."""
    most = min(condition.most, 1.0)
    return most * (1 - most) / requests if share and not condition.relative else 0.0


def _ratio(distance: float, error: float) -> float:
    """Return a distance in standard errors; of 0 without an error and a distance."""
    return distance / error if error > 0 else 0.0 if distance == 0 else float(np.copysign(np.inf, distance))


def _student(z: float, devices: float) -> float:
    """Return the quantile of Student's t for a normal one, z >= 0 (Wallace): devices - 1 degrees of freedom, but at least 2."""
    freedom = max(devices - 1, 2.0)
    return sqrt(freedom * (exp(min(z * z * (freedom - 1.5 + 1e-9) / (freedom - 1) ** 2, 700.0)) - 1))


# Publication: the versions of a policy in the catalog, changed by one process at a time.


def target(name: str) -> str:
    """Return the path of a policy among a catalog's signed files. Raises CatalogError for an invalid name."""
    return f"policies/{checked_name(name)}.json"


def published(catalog: Path, name: str) -> dict[str, Any]:
    """Return a policy's signed file from the catalog's folder, with its versions checked, the oldest first.

    Raises:
        CatalogError: there is none, or it cannot be read.
    """
    text = signed_file(catalog, target(name))
    if text is None:
        raise CatalogError(f"{catalog} has no policy {name}: edgeroute fleet publish POLICY --name {name}")
    data = parse_json(text)
    data["versions"] = read_policies(data)
    return data  # type: ignore[no-any-return]


def publish(
    catalog: Path,
    name: str,
    policy: Path | None = None,
    *,
    keys: Path,
    rings: Sequence[float] = (1.0,),
    halt: str = "",
    requires: str = "",
    only_edge: bool | None = None,
    freeze: bool | None = None,
    days: float = LISTS_DAYS,
) -> dict[str, Any]:
    """Sign a new version of a policy for the first ring, or orders alone, into the catalog; return the signed file's data.

    Takes the publisher's lock. A candidate under way is replaced. The sections `[local]`, `[fleet]` and `state` of the policy are
    not published. Orders alone leave the versions, `rings` and `halt` as they are.

    Args:
        catalog: folder of the catalog.
        name: name of the policy.
        policy: path of the new version; None: orders alone.
        keys: folder of the keys.
        rings: shares of the devices, rising to 1.
        halt: limits, see `parse_halt`.
        requires: lowest version of edgeroute.
        only_edge: emergency order: no device sends anything to the cloud, whatever its ring; None: as before.
        freeze: True: no device takes a new version; None: as before.
        days: days that devices accept the catalog.

    Raises:
        BadInput, PolicyError, CatalogError, StoreError: an argument or the policy is invalid; the catalog cannot be written.
    """
    parse_halt(halt)
    if requires and not re.fullmatch(r"\d+(\.\d+)*", requires):
        raise BadInput(f"--requires {requires!r}: expected a version of edgeroute, as in 1.2")
    if sorted({*rings}) != [*rings] or not rings or not rings[0] > 0 or rings[-1] != 1:
        raise BadInput("--rings: expected rising shares that end with 100%, as in 1%,10%,100%")
    text = None if policy is None else publishable(policy)
    with publishing(catalog):
        data = {"name": name, "salt": "", "only_edge": False, "freeze": False, "versions": []}
        if text is None or signed_file(catalog, target(name)) is not None:
            data = published(catalog, name)
        if text is not None:
            data = _with_version(data, text, rings[0], requires) | {"rings": [*rings], "halt": halt}
        orders = {key: value for key, value in (("only_edge", only_edge), ("freeze", freeze)) if value is not None}
        return _sign(catalog, {**data, **orders}, keys, days)


def _with_version(data: Mapping[str, Any], policy: Mapping[str, Any], share: float, requires: str) -> dict[str, Any]:
    """Return a copy of a signed file's data with a new version as candidate, after the last that all devices have.

    All other versions are dropped. A new rollout draws a new salt, and so other devices; one that replaces a candidate keeps its
    devices.
    """
    versions, number = data["versions"], max((v["version"] for v in data["versions"]), default=0) + 1
    complete = [v for v in versions if v["share"] == 1][-1:]
    under_way = bool(versions) and versions[-1]["share"] < 1
    new = {"version": number, "share": share, "policy": policy, "requires": requires, "since": now(), "halted": False}
    salt = data["salt"] if under_way else os.urandom(8).hex()
    return {**data, "salt": salt, "versions": [*complete, new]}


def _sign(catalog: Path, data: Mapping[str, Any], keys: Path, days: float) -> dict[str, Any]:
    """Sign a policy's file, write it into the catalog, and return its data with the format. The caller holds the lock."""
    whole = {"format": FORMAT, **data}
    sign_files(catalog, {target(whole["name"]): json.dumps(whole).encode()}, keys=keys, days=days)
    return whole


LOCAL = ("local", "fleet", "state")  # keys that are a device's own
HARMLESS = {"accept", "accept-language", "content-type", "user-agent"}  # headers whose values may be published as they are
_AWAY = "https://local.invalid/v2/models/local"  # address in place of one that each device has itself, for the check of a policy


def publishable(path: Path) -> dict[str, Any]:
    """Check a policy file as a device would load it, in a temporary folder, and return its data without a device's own keys.

    Models and endpoints may be missing, as those of each device.

    Raises:
        PolicyError: the policy is invalid, or has a secret.
    """
    data = {key: value for key, value in read_policy(path).items() if key not in LOCAL}
    checked = {**data}
    if clouds := data.get("cloud"):
        listed = clouds if isinstance(clouds, list) else [clouds]
        checked["cloud"] = [{"url": _AWAY, **cloud} if isinstance(cloud, dict) else cloud for cloud in listed]
    with TemporaryDirectory(prefix="edgeroute-") as folder:
        copy = Path(folder) / "policy.json"
        replace_file(copy, json.dumps({**checked, "state": "state"}))
        try:
            load(copy, {"edge", "cloud"} - {*data})
        except PolicyError as e:
            raise PolicyError(str(e).replace(str(copy), str(path))) from None
    for name in _literal_headers(data):
        raise PolicyError(f'{path}: headers.{name} would be published: write {{ env = "ITS_NAME" }}, or move it to [local]')
    return data


def _literal_headers(data: Any) -> Iterator[str]:
    """Yield the names of headers, at any depth, whose values are in the policy and may be secrets."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data if isinstance(data, list) else ()):
        if key == "headers" and isinstance(value, dict):
            yield from (name for name, text in value.items() if isinstance(text, str) and name.lower() not in HARMLESS)
        else:
            yield from _literal_headers(value)


def promote(
    catalog: Path, name: str, decision: Decision, *, keys: Path, days: float = LISTS_DAYS, about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Carry out a decision about the candidate of a policy, sign it into the catalog, and return the signed file's data.

    go_on: the next ring gets it, after a halt too. halt: no further device does. roll_back: all get the contents before, as a new
    version; a candidate without a version before is halted. A `wait` is not passed here. Takes the publisher's lock. `about` is
    the version that the decision is about, as `published` gave it, which must still be the last, in the same ring; None: the
    last, whichever it is.

    Raises:
        BadInput: there is no candidate, or no version before one that is for all devices; or another version was published, or
            promoted, meanwhile.
        CatalogError, PolicyError, StoreError: the catalog or a key cannot be read or written.
    """
    with publishing(catalog):
        data = published(catalog, name)
        versions, decision = data["versions"], decision.possible(data)
        if not versions or (decision.did in {"go_on", "halt"} and versions[-1]["share"] == 1):
            raise BadInput(f"{name} has no version in a ring")
        if about is not None and about != versions[-1]:
            did = "published" if about["version"] != versions[-1]["version"] else "promoted"
            raise BadInput(f"{name}-{versions[-1]['version']} was {did} meanwhile: decide about that one")
        last = {**versions[-1], "halted": decision.did == "halt"}
        if decision.did == "go_on":
            last["share"] = next(share for share in data["rings"] if share > last["share"])
            last["since"] = now()
        data["versions"] = [*versions[:-1], last]
        if decision.did == "roll_back":
            if len(versions) < 2:  # noqa: PLR2004 - the candidate and the one before
                raise BadInput(f"{name} has no version before {versions[-1]['version']}: publish another one")
            before = versions[-2]
            data = _with_version(data, before["policy"], 1.0, before["requires"])
            data["versions"] = data["versions"][-1:]
        return _sign(catalog, data, keys, days)
