"""Part of a router that counts its requests by hour, model, policy, arm and data class, for the owner of a fleet."""

from __future__ import annotations

import random
import weakref
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from edgeroute.catalog.signed_policy_follower import signed_name
from edgeroute.confidence.certificate import digest
from edgeroute.core.error_codes_and_texts import UNIDENTIFIED
from edgeroute.core.policy_egress_and_options import EDGE_TRIAL, Rules
from edgeroute.errors import PolicyError, check_number
from edgeroute.fleet import daily_digest_spool_and_upload as daily_digests
from edgeroute.fleet.daily_digest_spool_and_upload import (
    AUDIT_ROWS,
    CONFIDENCE_ROWS,
    LOOK_S,
    DailyDigests,
    day_and_hour,
    row_name,
    spooled,
)
from edgeroute.fleet.digest_destinations import destination
from edgeroute.fleet.digest_encoding_and_coarsening import CONFIDENCES, MOST_NAME, OTHER, Group, bucket, name_of, rounded
from edgeroute.http.messages_addresses_and_secrets import Secret
from edgeroute.record.event_tally_and_histograms import drain
from edgeroute.router.audits_and_hidden_trials import edge_fingerprints
from edgeroute.router.part_hooks_and_dispatch import Part
from edgeroute.router.policy_snapshot import Snapshot, calibrated_target
from edgeroute.stores.cache import fingerprint
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.system.files_and_lock_waits import sha256
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.json_codec_and_short_repr import to_json_types
from edgeroute.system.signal_safe_locks import SafeLock
from edgeroute.system.thread_pool_and_workers import Worker
from edgeroute.trials.audits_and_drift_alarms import UNLABELLED_MOST, Compared
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.core.plan import Plan
    from edgeroute.core.walk import Outcome
    from edgeroute.router.engine import Engine
    from edgeroute.router.leg_execution import Walked
    from edgeroute.router.request import Request
    from edgeroute.router.steps_and_composed_stages import Result

HOUR_S: Final = 3600
UNJUDGED: Final = object()  # confidence of a request for which no edge was judged
WAITING: Final = 1 << 16  # maximum events that wait to be counted, as while there is no thread; of more the oldest are dropped
MOST_GROUPS: Final = 200  # groups that are distinguished at a time; a further one counts as `OTHER`


class _Event(NamedTuple):
    """Request to count, or its cost."""

    at: float
    snapshot: Snapshot
    plan: Plan
    target: str
    fields: str  # keys of the counts that grow by 1
    latency_s: float | None = None  # None: no answer
    confidence: Any = UNJUDGED  # of an edge's answer
    moved: int = 0
    usd: float = 0.0


class Fleet(ForkSafe, Part):
    """Digest of the counts of each day, for the owner of many devices; no input and no answer is in it (fleet.md).

    An object for one router with a state folder. All processes with that folder are one device. Counts that are not in the state
    file yet, of the last 2 seconds, are lost if the process is killed.

    Args:
        to: folder, https://, s3://BUCKET/PREFIX or mqtts://HOST/TOPIC; as a `Secret` if a user, password or query is in it.
        site: text that the owner sees with the digests, such as a plant's name.
        key: key of the fleet, with which digests are signed (HMAC).
        rotate: seconds after which the device's random id is replaced; None: never.
        every: seconds between two digests of a day that is not over; None: one digest, once the day is over.

    Raises:
        PolicyError: an argument is invalid.
    """

    name = "fleet"
    _lock = per_process(SafeLock)
    _new: deque[_Event] = per_process(lambda: deque(maxlen=WAITING))
    _audited: deque[tuple[float, Compared]] = per_process(lambda: deque(maxlen=WAITING))
    _waiting, _rest = initially(False), initially(0.0)

    def __init__(
        self, to: str | Secret, *, site: str = "", key: str | Secret | None = None, rotate: float | None = None,
        every: float | None = None,
    ) -> None:  # fmt: skip
        for name, number in (("rotate", rotate), ("every", every)):
            if number is not None:
                check_number(f"fleet: {name}", number, above=True)
        if not isinstance(to, Secret):
            destination(to)
        self._given = to, name_of(site), key, rotate, every
        self._engine: Callable[[], Engine | None] = lambda: None
        self._groups: dict[tuple[int, str, str, str | None], tuple[Snapshot, Group]] = {}
        self._origins: dict[int, tuple[Snapshot, Mapping[str, Any]]] = {}  # id of a policy -> itself, and its `origin`
        self._awaited: dict[str, Group] = {}  # id of an audited request whose label may be reported -> its group
        self._open = False
        self._counter = Worker("edgeroute-fleet", self.count, "the fleet's counts failed", first_s=1.0)
        first_s = random.uniform(1, 30)  # noqa: S311 - devices that are switched on together upload one after another
        first_s = 0.5 if isinstance(to, str) and "://" not in to else first_s  # a folder that is missing is soon known
        self._uploader = Worker("edgeroute-fleet-upload", self._turn, "no digest could be made", first_s=first_s, retry_s=LOOK_S)

    def attach(self, engine: Engine) -> None:
        """Take the router's engine, by a weak reference, open its state file, and prepare the digests in its folder `fleet`.

        Raises PolicyError without a state folder, or for a part that has an engine already.
        """
        if self._engine() is not None:
            raise PolicyError("fleet: it is another router's: make one for each")
        if engine.state is None:
            raise PolicyError("fleet needs state, the folder for what outlives the process")
        self._engine = weakref.ref(engine)
        self._store = KeyValueStore.shared_store(engine.state / "state.db", self)  # open until all is counted
        self.digests = DailyDigests(engine.state / "fleet", self._store, *self._given)
        if engine.instruments:
            engine.instruments.origin = self.origin

    def check(self, snapshot: Snapshot) -> None:
        """Compute the names of a policy before its first request, if there are instruments; reads the models' files."""
        if (engine := self._engine()) is not None and engine.instruments.origin is not None:
            self.origin(snapshot)

    def origin(self, snapshot: Snapshot) -> Mapping[str, Any]:
        """Return site, policy and models of a policy in force, as digests name them, for traces. Kept for the last few policies.

        The models are by target. A policy that is new reads the models' files.
        """
        if (known := self._origins.get(id(snapshot))) is None:
            engine = self._engine()
            models = {target.name: _model(snapshot, target.name) for target in snapshot.targets}
            names = {"site": self._given[1], "policy": _policy(self._whole(snapshot)), "models": models}
            signed = "" if engine is None or engine.state is None else signed_name(engine.state)
            known = snapshot, {**names, "signed": signed}
            self._origins = {**dict([*self._origins.items()][-7:]), id(snapshot): known}
        return known[1]

    def check_lines(self) -> list[str]:
        """Return where digests go, and a problem if that is a folder which is missing."""
        to = self._given[0]
        where = "the address in an environment variable" if isinstance(to, Secret) else destination(to).where
        lines = [f"counts of each day, without inputs and answers, go to {where} (fleet)"]
        if isinstance(to, str) and "://" not in to and not Path(to).is_dir():
            lines.append(f"! fleet: there is no folder {where} now")
        return lines

    def opened(self, status: Callable[[], Any]) -> None:  # noqa: ARG002 - as parts are called
        """Start the thread that writes and uploads digests."""
        self._open = self._uploader.start()

    def ended(self, request: Request, result: Result) -> None:
        """Queue a request that has ended, answered or failed, for counting; start the counting thread if none waits."""
        plan = request.plan
        target, fields, latency_s = plan.legs[0].name, "rf", None
        confidence: Any = UNJUDGED
        if isinstance(result, Answer):
            latency_s, outcome, fields = result.latency_s, result._outcome, "rg" if result.degraded else "r"  # noqa: SLF001
            if outcome is not None:
                target, deferred, confidence = _target_and_confidence(plan, outcome)
            else:  # of the cache, or of an equal request
                deferred = result.source == "cloud" and plan.legs[0].permit is None
                target = target if deferred else result.leg
            fields += "d" * deferred
        self._new.append(_Event(daily_digests.clock(), request.snapshot, plan, target, fields, latency_s, confidence))
        if not self._waiting:
            self._waiting = self._counter.start()

    def walked(self, walks: Sequence[Walked]) -> None:
        """Queue what a request, or a batch, has cost (bytes, dollars) for counting; nothing if no endpoint was asked."""
        if costs := walks[0].costs.values():
            plan, at = walks[0].request.plan, daily_digests.clock()
            target = max((_target_and_confidence(plan, walk.outcome) for walk in walks), key=lambda judged: judged[1])[0]
            moved, usd = sum(cost.sent_bytes + cost.received_bytes for cost in costs), sum(cost.usd for cost in costs)
            self._new.append(_Event(at, walks[0].request.snapshot, plan, target, "", None, UNJUDGED, moved, usd))

    def compared(self, comparison: Compared) -> None:
        """Queue an audit, perhaps in place of the oldest, and start the counting thread, where it waits for an expected label."""
        self._audited.append((daily_digests.clock(), comparison))
        self._counter.start()

    def count(self) -> None:
        """Add queued requests and audits to the counts of their hours and groups, which the store writes about a second later.

        Forgets the oldest audits that await a label beyond `UNLABELLED_MOST`; in a forked child, starts the thread of uploads.
        """
        self._waiting = False
        sums = defaultdict[str, Counter[str]](Counter)
        with self._lock:
            for event, number, moved, usd in self._drain_by_kind():
                day, hour = day_and_hour(event.at)
                group, micro_usd = self._group(event.snapshot, event.plan, event.target), usd * 1e6 + self._rest
                self._rest = micro_usd - int(micro_usd)
                row = sums[row_name(day, "requests", hour, group)]
                row.update({**dict.fromkeys(event.fields, number), "b": moved, "u": int(micro_usd)})
                if event.latency_s is not None:
                    row[str(bucket(event.latency_s))] += number
                if event.confidence is not UNJUDGED:
                    sums[row_name(day, CONFIDENCE_ROWS, 0, group)][str(_confidence_index(event.confidence))] += number
            for at, of in drain(self._audited):
                day, hour = day_and_hour(at)
                plan, request = of.plan, of.request
                known = self._awaited.pop(request, None) if plan is None else self._group(of.snapshot, plan, of.target)
                if known is None or of.label == "awaited":
                    self._awaited |= {request: known} if known else {}
                    continue
                row = sums[row_name(day, AUDIT_ROWS, hour, known)]
                harm, win = (of.harm, of.win) if of.label else (of.differs, False)
                start = f"{rounded(of.grid_index)} {float(f'{of.rate:.4g}')!r}"
                counts = {"audited": 1, "differ": of.differs, "harms": harm, "wins": win}
                row.update({f"{start} {field}": int(number) for field, number in counts.items()})
            self._store.add(sums)
            for request in [*self._awaited][:-UNLABELLED_MOST]:
                del self._awaited[request]
            live = () if (engine := self._engine()) is None else (engine.snapshot, engine.snapshot.trial)
            self._groups = {key: known for key, known in self._groups.items() if any(known[0] is one for one in live)}
        if self._open:
            self._uploader.start()  # in a forked child

    def _drain_by_kind(self) -> Iterable[tuple[_Event, int, int, float]]:
        """Empty the queue of requests.

        Return an event of each kind (hour, group, buckets), its number, and sums of bytes and dollars.
        """
        kinds: dict[tuple[Any, ...], tuple[_Event, int, int, float]] = {}
        for event in drain(self._new):
            at, snapshot, plan, target, fields, latency_s, confidence, moved, usd = event
            place = -1 if latency_s is None else bucket(latency_s)
            index = UNJUDGED if confidence is UNJUDGED else _confidence_index(confidence)
            key = at // HOUR_S, id(snapshot), target, plan.arm, plan.data_class, fields, place, index
            first, number, bytes_, dollars = kinds.get(key) or (event, 0, 0, 0.0)
            kinds[key] = first, number + 1, bytes_ + moved, dollars + usd
        return kinds.values()

    def _group(self, snapshot: Snapshot, plan: Plan, target: str) -> Group:
        """Return the group (model, policy, arm, data class) of a request, and keep it; a new one reads the models' files.

        A data class that the policy does not name counts as "other"; a group beyond `MOST_GROUPS` as `OTHER`.
        """
        key = id(snapshot), target, plan.arm, plan.data_class
        if key not in self._groups:
            rules, name = snapshot.policy.rules, plan.data_class or ""
            named = name in {"", rules.default_class, *rules.may_leave, *rules.never_leave}  # any other may be a user's text
            arm = plan.arm or (target if target == EDGE_TRIAL else "")
            group = _model(snapshot, target), _policy(self._whole(snapshot)), name_of(arm), name_of(name) if named else OTHER[0]
            known = {group for _, group in self._groups.values()}
            self._groups[key] = snapshot, group if len(known) < MOST_GROUPS or group in known else OTHER
        return self._groups[key][1]

    def _whole(self, snapshot: Snapshot) -> Snapshot:
        """Return the policy in force for the one of a trial's arm, and any other as it is."""
        engine = self._engine()
        return snapshot if engine is None or snapshot is not engine.snapshot.trial else engine.snapshot

    def _turn(self) -> float | None:
        """Write the digests that are due, and upload; return the seconds until the next turn; None: the router is gone."""
        engine = self._engine()
        return None if engine is None or (engine.closed and not self.digests.until) else self.digests.write_and_upload(engine)

    def tell(self) -> bool:
        """Count what is queued, write a digest of each day with new counts, today's too, and upload now; blocks.

        For programs that end before a day does. Return True if no digest waits any more.

        Raises:
            StoreError, OSError: the state folder cannot be written, and nothing was lost.
            PolicyError: a secret's variable is not set.
        """
        if (engine := self._engine()) is None:
            return False
        self.count()
        self.digests.write_and_upload(engine, due=True)
        return not spooled(self.digests.folder)

    def stats(self) -> dict[str, Any]:
        """Return how many digests wait, were uploaded, and were deleted unsent, and the last upload's error; empty: none."""
        digests = self.digests
        return {"waiting": len(spooled(digests.folder)), "sent": digests.sent, "dropped": digests.dropped, "error": digests.error}

    def close(self) -> None:
        """Count what is queued, write it to the state file, and upload the digests that are due; waits up to a second for each.

        So the digests of programs that run for seconds arrive. An upload that takes longer goes on while the process does.
        """
        self._counter.close(1.0)
        self.count()
        self.digests.until = monotonic() + 1.0
        self._uploader.close(1.0, last=True)
        self._store.leave(self)


def _target_and_confidence(plan: Plan, outcome: Outcome) -> tuple[str, bool, Any]:
    """Return the target that a request counts for, True if an edge deferred it, and the confidence of that edge's answer.

    The target is the edge model that answered, or the last one whose answer was not accepted, or the first target.
    """
    legs, i = plan.legs, outcome.leg
    if outcome.accepted and i is not None and legs[i].permit is None and outcome.prediction is not None:
        return legs[i].name, False, outcome.prediction.confidence
    for leg in reversed([*outcome.held]):
        if legs[leg].permit is None:
            return legs[leg].name, True, outcome.held[leg].confidence
    if plan.unsure:
        return plan.unsure[-1].leg.name, True, plan.unsure[-1].confidence
    return legs[0].name, legs[0].permit is None, UNJUDGED


def _confidence_index(confidence: Any) -> int:
    """Return the index of the highest threshold of `CONFIDENCES` that accepts a confidence; -1: none, or no confidence."""
    return -1 if confidence is None or confidence != confidence else bisect_right(CONFIDENCES, confidence) - 1  # noqa: PLR0124


def _model(snapshot: Snapshot, target: str) -> str:
    """Return a target's name, a colon, and 12 digits of the digest of its fingerprints; no digits if it cannot be identified.

    Reads the model's file. Raises nothing.
    """
    prints: Any = UNIDENTIFIED
    with suppress(Exception):  # of the model's class
        prints = edge_fingerprints(snapshot).get(target) or next(
            ({"cloud": b.fingerprint(fingerprint)} for b in snapshot.backends if b.name == target), UNIDENTIFIED
        )
    return f"{name_of(target, MOST_NAME - 13)}:{'' if UNIDENTIFIED in str(prints) else digest(prints)[:12]}"


def _policy(snapshot: Snapshot) -> str:
    """Return 12 digits of the digest of a policy's rules and thresholds, without paths, addresses and functions."""
    targets = [calibrated_target(snapshot, i) for i in range(len(snapshot.targets))]
    never, may, *rules = snapshot.policy.rules
    content = snapshot.policy._replace(rules=Rules()), sorted(never), sorted(may), rules
    content_of = [(t.name, t.side, t.threshold, t.thresholds, t.trial, t.group) for t in targets]
    return sha256(repr(to_json_types([content, content_of])).encode()).hexdigest()[:12]
