from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timezone
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.core.explain import finite
from edgeroute.core.policy import INF, Target
from edgeroute.core.words import printable
from edgeroute.errors import BadInput, StoreError
from edgeroute.system import process
from edgeroute.tools.cli.exits import OK
from edgeroute.tools.cli.outbox import InFolder, OfPolicy, folder, when
from edgeroute.tools.cli.tables import Json, table
from edgeroute.trials.trial import EDGE_TRIAL, STORED

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import BoundCertificate
    from edgeroute.core.spending import Limits
    from edgeroute.observe.stats import ShadowStats
    from edgeroute.router.build import Snapshot
    from edgeroute.trials.drift import Audit


# Reads a router's state.db without changing it, also while another process writes it.

BUSY_S = 5.0


class Value(NamedTuple):
    """A stored value."""

    value: Any
    updated: float
    """When it was last written, seconds since 1970."""


def read_state(folder: Path) -> dict[str, Value]:
    """All values stored in that state folder, by name; those that are not JSON are left out.

    Raises:
        BadInput: there are none.
        StoreError: it cannot be read.
    """
    import sqlite3

    path = folder / "state.db"
    if not path.exists():
        raise BadInput(f"{path}: there is no state: no router with this state folder has run, or it was removed")
    # without a journal file nobody has it open: opened this way, none is created either
    alone = "" if path.with_name("state.db-wal").exists() else "&immutable=1"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{alone}", uri=True, timeout=BUSY_S)
        ) as connection:
            rows = connection.execute("SELECT name, value, updated FROM kept").fetchall()
    except sqlite3.Error as e:
        raise StoreError(f"{path} cannot be read: {e}") from e
    found = {}
    for name, text, updated in rows:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            found[str(name)] = Value(json.loads(text), float(updated))
    return found


# The figures of trials, as `status` and `arms` show them, of one device or many.


def trials_of(kept: Mapping[str, Value]) -> list[dict[str, Any]]:
    """Return the settings and arms of each trial, as they were stored last."""
    stored = kept[STORED].value if STORED in kept else None
    return [
        {"settings": one["settings"], "arms": one["arms"]}
        for one in (stored if isinstance(stored, list) else ())
        if isinstance(one, dict) and isinstance(one.get("settings"), dict) and isinstance(one.get("arms"), list)
    ]


def arms_of(trials: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the arms of trials, those of what is in use once."""
    found = dict[str, Mapping[str, Any]]()
    for arm in (arm for one in trials for arm in one["arms"] if isinstance(arm, dict)):
        found.setdefault(str(arm.get("arm")), arm)
    return [*found.values()]


def show_arms(arms: Sequence[Mapping[str, Any]]) -> None:
    """Print them, with 95 % intervals."""
    if not arms:
        return
    from edgeroute.tools.measure.report.words import arm_cells, arm_rows

    rows = [(one.get("arm"), one.get("model"), *arm_cells(one, "-")) for one in arms]
    table(("arm", "model", *arm_rows(arms)), rows, ("arm", "model"))
    for one in arms:
        if one.get("stopped"):
            print(printable(f"  {one.get('arm')} is stopped: {one['stopped']}"))


# What `status` says of edge models that run in shadow.


def shadows(log: Path, snapshot: Snapshot | None) -> list[ShadowStats]:
    """Statistics of the shadow runs in the audit log.

    Args:
        log: its path.
        snapshot: of a router with the policy: the runs made with its models are counted, by its thresholds; None: of each edge
            model those made as the last one was, by the threshold of that time.
    """
    from edgeroute.confidence.certificate import digest
    from edgeroute.router.audit_calls import edge_fingerprints
    from edgeroute.stores.journal import read
    from edgeroute.trials.shadow import UNHEARD, Tally

    wanted: dict[str, str] = {}
    targets: dict[str, Target] = {}
    if snapshot is not None:
        wanted = {name: digest(used) for name, used in edge_fingerprints(snapshot).items()}
        targets = {target.name: target for target in snapshot.targets}
    tallies: dict[str, Tally] = {name: Tally() for name in wanted}
    for line in read(log):
        name, made, probability = line.get("target"), line.get("fingerprints"), line.get("probability")
        if not (line.get(UNHEARD) and isinstance(name, str) and isinstance(line.get("agrees"), bool)):
            continue
        if not isinstance(probability, int | float) or not 0 < probability <= 1:
            continue
        if snapshot is None and wanted.get(name) != made:
            wanted[name], tallies[name] = str(made), Tally()
        if wanted.get(name) == made:
            tallies[name].add(line, accepted=_accepted(line, targets.get(name)))
    return [tally.stats(name) for name, tally in tallies.items() if tally.count]


def _accepted(line: Mapping[str, Any], target: Target | None) -> bool:
    """Whether the edge's answer would be accepted by the target's threshold; else as then, if that cannot be told."""
    sure = line.get("edge_confidence")
    if target is None or target.thresholds or not isinstance(sure, int | float):
        return line.get("audited") == "shadow"
    return target.threshold is not None and target.threshold != INF and sure >= target.threshold


def show(found: ShadowStats, target: Target | None, *, first: bool) -> list[str]:
    """Lines for readers. `target`: in the policy, if that is known. `first`: it is asked first, so all requests reach it."""
    of = "requests" if first else "requests that reach it"
    share = f"{found.answers:.1%} ({found.answers_low:.1%} to {found.answers_high:.1%})"
    lines = [f"{found.target} in shadow: of {found.compared:,} {of} it would answer {share}"]
    if found.answers:
        lines[0] += (
            f", of these {found.differs:.2%} ({found.differs_low:.2%} to {found.differs_high:.2%}) differ from the cloud's"
        )
        saved = [f"{found.saved_calls:,.0f} calls"]
        saved += [f"${found.saved_usd:,.4g}"] if found.saved_usd else []
        saved += [f"{found.saved_mb:,.3g} MB"] if found.saved_mb else []
        lines.append(f"  of 1,000 requests that saves {', '.join(saved)}")
    if found.target == EDGE_TRIAL:
        lines = [f"{EDGE_TRIAL}, hidden: {found.compared:,} requests compared; `edgeroute recertify` says what is missing"]
    elif target is not None and target.threshold is None:
        why = "no threshold yet, which `edgeroute calibrate --audited` finds once they are enough"
        lines = [f"{found.target} in shadow: {found.compared:,} {of} compared; {why}"]
    if found.failed:
        lines.append(f"  on {found.failed:,} it failed: the log says why")
    edge, cloud = (found.edge_p50_s, found.edge_p99_s), (found.cloud_p50_s, found.cloud_p99_s)
    if None not in edge:
        beside = "" if None in cloud else f", the cloud {_ms_quantiles(cloud)}"
        lines.append(f"  it takes {_ms_quantiles(edge)}{beside}")
    return lines


def _ms_quantiles(quantiles: tuple[float | None, float | None]) -> str:
    p50, p99 = (1000 * (seconds or 0.0) for seconds in quantiles)
    return f"{p50:,.2f} ms (p99 {p99:,.2f} ms)"


MB = 1e6
EDGE = "audit:"
"""Prefix of the names under which a router stores the drift monitor of an edge model."""


class Edge(NamedTuple):
    """Status of an edge model with a threshold. None: unknown."""

    target: str
    threshold: float | str | None
    """The effective threshold; `inf`: every input is deferred; with per-class thresholds the one for any other class."""
    promise: str
    """The certificate's label, or why there is none. Empty: unknown."""
    made: str | None
    """Date of the certificate."""
    age_days: int | None
    audited: int
    """Accepted answers compared with the cloud's."""
    disagreed: int
    limit: float | None
    """Share of them that may differ; with labels the loss, or error rate, that there may be."""
    evidence: float
    """Evidence that it is more; at 10,000 there is an alarm."""
    alarm: Mapping[str, Any] | None
    """Time (seconds since 1970), text, and the reaction."""
    judged: int
    """Answers compared with the threshold, since the certificate was first used; without one, in the last run."""
    deferred: int
    usual: tuple[float, float] | None
    """Interval of the deferral rate in the certificate."""
    labelled: int | None = None
    """Audited answers of which the right value was reported; None: labels are not expected."""


def status(*, policy: OfPolicy = None, state: InFolder = None, as_json: Json = False) -> int:
    """Shows the state of routers with a state folder: guarantees, latencies, spending, the outbox.

    Changes nothing.

    With --state alone, values from the policy are left out: limits, and whether a certificate fits the models.
    """
    home = folder(policy, state)
    of = opened(policy)
    found = gathered(of, home)
    snapshot, in_shadow = of.snapshot, of.in_shadow
    if as_json:
        print(json.dumps(found.as_dict(), allow_nan=False))
        return OK
    edges, latencies, links, spent, joules, shadow, trials, box, written, notes = found
    for note in notes:
        print(printable(note), file=sys.stderr)
    for edge in edges:
        _show(edge)
    targets = {} if snapshot is None else {target.name: target for target in snapshot.targets}
    for i, one in enumerate(shadow):
        print(printable("\n".join(show(one, targets.get(one.target), first=i == 0))))
    if in_shadow and not shadow:
        print("mode is shadow: no request has been compared yet with these models and endpoints")
    if not edges and not shadow and not in_shadow:
        print("no edge model's promise is watched here: that takes a threshold, and [audit] in the policy")
    show_arms(arms_of(trials))
    if latencies:
        rows = [(name, f"{one['count']:,}", *(_ms(one[q]) for q in ("p50_s", "p99_s"))) for name, one in latencies.items()]
        table(("leg", "answers", "p50", "p99"), rows, ("leg",))
    for name, link in links.items():
        speed = "" if link["bytes_per_s"] is None else f", and its bytes go at {link['bytes_per_s'] / MB:.3g} MB/s"
        print(printable(f"{name}: a call takes {_ms(link['call_s'])}{speed}"))
    rows = [(name, f"{one['spent']:.4g}", _limit(one["limit"])) for name, one in spent.items()]
    table(("spent", "so far", "limit"), rows, ("spent",))
    for name, one_call in joules.items():
        print(printable(f"energy: {one_call:.3g} J a call of {name}"))
    if snapshot is not None and (line := _break_even(snapshot, joules)):
        print(printable(line))
    if box is not None:
        print(f"outbox: {', '.join(f'{n:,} {name}'.replace('_', ' ') for name, n in box.items())}")
    if written is not None:
        print(f"last written at {when(written)}")
    return OK


class Opened(NamedTuple):
    """A policy as a router started now would have it."""

    snapshot: Snapshot | None = None
    """None: there is no policy, or a model of it is missing."""
    audit: Audit | None = None
    limits: Limits | None = None
    notes: tuple[str, ...] = ()

    @property
    def in_shadow(self) -> bool:
        """Whether its edges run in shadow alone."""
        return self.snapshot is not None and self.snapshot.policy.mode == "shadow"


class Gathered(NamedTuple):
    """What a state folder says."""

    edges: list[Edge]
    latencies: dict[str, dict[str, Any]]
    links: dict[str, dict[str, float | None]]
    spent: dict[str, dict[str, float | None]]
    joules: dict[str, float]
    shadow: list[ShadowStats]
    trials: list[dict[str, Any]]
    outbox: dict[str, int] | None
    written: float | None
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """It for JSON."""
        told: dict[str, Any] = {"edges": [e._asdict() for e in self.edges], "latency": self.latencies, "link": self.links}
        told |= {"spent": self.spent, "outbox": self.outbox, "written_at": self.written}
        if self.joules:
            told["joules"] = self.joules
        told["shadow"] = [one._asdict() for one in self.shadow]
        told["trials"] = self.trials
        return {**told, "notes": self.notes}


def opened(policy: Path | None) -> Opened:
    """Reads a policy, and its models' cards; a missing model is told in a note. None: there is none.

    Raises:
        PolicyError, ModelError: it is invalid.
    """
    if policy is None:
        return Opened()
    from edgeroute.errors import ModelMissing
    from edgeroute.router.router import Router

    none: dict[str, Any] = dict.fromkeys(("state", "cache", "outbox", "trace", "instruments"))
    try:
        with Router.from_policy(policy, **none, offline="edge", uncalibrated="tell") as router:
            engine = router.engine
            audit = None if engine.auditor is None else engine.auditor.audit
            return Opened(engine.snapshot, audit, engine.spending.limits)
    except ModelMissing as e:
        text = f"{e}: whether a certificate fits the models is not known, and the policy is left out of what follows"
        return Opened(notes=(text,))


def gathered(of: Opened, home: Path, *, shadow_runs: bool = True) -> Gathered:
    """Reads a state folder. shadow_runs: with their statistics, for which the whole audit log is read.

    Raises:
        BadInput, StoreError: there is none, or it cannot be read.
    """
    kept = read_state(home)
    shadow = shadows(home / "audit.jsonl", of.snapshot) if shadow_runs else []
    if of.snapshot is not None and not of.in_shadow:
        shadow = [one for one in shadow if one.target == EDGE_TRIAL]
    joules = _joules(kept)
    return Gathered(
        _edges(of, kept), _latencies(kept), _links(kept), _spent(kept, of.limits), joules, shadow, trials_of(kept),
        _outbox(home / "outbox.db"),
        max((value.updated for value in kept.values()), default=None),
        [*of.notes, *_uncounted(of.snapshot, of.limits, joules)],
    )  # fmt: skip


def _edges(of: Opened, kept: Mapping[str, Value]) -> list[Edge]:
    dumps = {name.removeprefix(EDGE): value.value for name, value in kept.items() if name.startswith(EDGE)}
    dumps = {name: dumped for name, dumped in dumps.items() if isinstance(dumped, dict)}
    if of.snapshot is None:
        return [_of_dump(name, dumped) for name, dumped in sorted(dumps.items())]
    return [
        _of_policy(target, promise, of.audit, dumps.get(target.name))
        for target, promise in zip(of.snapshot.targets, of.snapshot.certificates, strict=True)
        if target.side == "edge" and target.threshold is not None
    ]


def _of_policy(target: Target, promise: BoundCertificate | None, audit: Audit | None, dumped: Mapping[str, Any] | None) -> Edge:
    """The status that a router started now with this policy would have."""
    from edgeroute.trials.drift import DriftMonitor

    certificate = None if promise is None else promise.certificate
    fits = dumped is not None and certificate is not None and dumped.get("certificate") == certificate.checksum
    if audit is not None and dumped is not None:
        watch = DriftMonitor(promise, audit)
        watch.load(dumped)
        target = watch.target(target)
    found = _of_dump(target.name, dumped if dumped is not None and (fits or certificate is None) else {})
    found = found._replace(threshold=finite(target.threshold), promise=target.label)
    if certificate is None:
        return found
    return found._replace(made=certificate.date, age_days=_age_days(certificate.date), usual=certificate.deferral_interval)


def _of_dump(name: str, dumped: Mapping[str, Any]) -> Edge:
    """The status at the end of the last run."""
    drifts = dumped.get("drift") or {}
    alarm, threshold, usual = dumped.get("alarm"), dumped.get("threshold"), dumped.get("deferral_interval")
    return Edge(
        target=name,
        threshold=None if threshold is None else finite(float(threshold)),
        promise=str(dumped.get("label", "")),
        made=dumped.get("date"),
        age_days=None if dumped.get("date") is None else _age_days(dumped["date"]),
        audited=_count(dumped.get("audited")),
        disagreed=_count(dumped.get("disagreed")),
        limit=dumped.get("limit"),
        evidence=_evidence(drifts.get("loss", drifts.get("disagreement"))),
        alarm=alarm if isinstance(alarm, dict) else None,
        judged=_count(dumped.get("judged")),
        deferred=_count(dumped.get("deferred")),
        usual=None if usual is None else (usual[0], usual[1]),
        labelled=_count(dumped.get("labelled")) if "loss" in drifts else None,
    )


def _evidence(drift: Any) -> float:
    from edgeroute.core.sequential import Drift

    with contextlib.suppress(KeyError, TypeError, ValueError):
        return Drift.load(drift, drift["level"]).evidence
    return 0.0


def _latencies(kept: Mapping[str, Value]) -> dict[str, dict[str, Any]]:
    """Leg -> number of answers, and median and 99 % quantile of latency, seconds."""
    from edgeroute.core.estimates import Latency

    found = {}
    for name, dumped in dict(kept["latency"].value if "latency" in kept else {}).items():
        with contextlib.suppress(KeyError, TypeError, ValueError):
            known = Latency.load(dumped)
            found[name] = {"count": known.count, "p50_s": known.quantile(0.5), "p99_s": known.quantile(0.99)}
    return found


def _links(kept: Mapping[str, Value]) -> dict[str, dict[str, float | None]]:
    """Endpoint -> time of a call but for its bytes, seconds, and bandwidth, bytes a second, as its calls had them."""
    from edgeroute.core.estimates import Link

    found = {}
    links = kept["link"].value if "link" in kept else {}
    for name, dumped in links.items() if isinstance(links, dict) else ():
        with contextlib.suppress(ValueError):
            link = Link.load(dumped)
            if link.count:
                found[name] = {"call_s": link.call_s, "bytes_per_s": link.bytes_per_s}
    return found


def _joules(kept: Mapping[str, Value]) -> dict[str, float]:
    """Target -> energy of a call, joules, as the router knew it."""
    found = kept["energy"].value if "energy" in kept else {}
    return {str(name): float(one) for name, one in dict(found).items() if isinstance(one, int | float) and 0 <= one < inf}


def _break_even(snapshot: Snapshot, joules: Mapping[str, float]) -> str:
    """When the edge first takes less energy than the cloud alone; empty: not known."""
    from edgeroute.core.estimates import break_even

    edge, cloud = (next((joules.get(t.name) for t in snapshot.targets if t.side == side), None) for side in ("edge", "cloud"))
    if edge is None or cloud is None:
        return ""
    share = break_even(edge, cloud)
    return f"energy: the edge first takes less while under {share:.0%} are deferred" if share else "energy: the cloud takes less"


def _uncounted(snapshot: Snapshot | None, limits: Limits | None, joules: Mapping[str, float]) -> list[str]:
    """What the limit of energy does not count, as it is not known what a run takes, in one line."""
    edges = [] if snapshot is None else [t.name for t in snapshot.targets if t.side == "edge" and t.name not in joules]
    if not edges or limits is None or limits.joules_per_hour == inf:
        return []
    why = "the device tells no power, or too few readings of it are known"
    return [f"joules_per_hour counts no runs of {', '.join(edges)}, as it is not known what one takes: {why}"]


def _spent(kept: Mapping[str, Value], limits: Limits | None) -> dict[str, dict[str, float | None]]:
    """Limit -> spending over its window by all routers with this folder, and the limit; None: there is none."""
    from edgeroute.core.spending import Limits, Spending

    now, spending = process.now(), Spending(limits or Limits())
    for name, dumped in kept.items():
        if name.startswith("spending:"):
            with contextlib.suppress(ValueError):
                spending.load(dumped.value, now)
    return {
        name: {"spent": spent, "limit": None if limit == inf else limit}
        for name, spent, limit in zip(Limits._fields, spending.spent(now), spending.limits, strict=True)
    }


def _outbox(path: Path) -> dict[str, int] | None:
    if not path.exists():  # opening it would create one
        return None
    from edgeroute.stores.outbox import Outbox

    box = Outbox(path, ttl_s=inf)
    try:
        return box.counts()
    finally:
        box.close()


def _show(edge: Edge) -> None:
    threshold = "not known" if edge.threshold is None else "none" if edge.threshold == "inf" else f"{float(edge.threshold):.6g}"
    print(printable(f"{edge.target}: threshold {threshold}" + (f" ({edge.promise})" if edge.promise else "")))
    if edge.made is not None:
        print(printable(f"  certificate of {edge.made}, {edge.age_days} days old"))
    if edge.alarm is not None:
        print(printable(f"  ALARM at {when(edge.alarm['at'])}: {edge.alarm['what']}; action: {edge.alarm['action']}"))
    if edge.audited:
        most = "" if edge.limit is None or edge.labelled is not None else f", and at most {edge.limit:.2%} should"
        rate = edge.disagreed / edge.audited
        print(f"  audited {edge.audited:,}: {edge.disagreed:,} ({rate:.2%}) differ from the cloud{most}")
        if edge.labelled is not None and edge.limit is not None:
            print(f"  with a label {edge.labelled:,}: the loss of accuracy, or error rate, may be {edge.limit:.2%}")
        print(f"  evidence that the promise fails: {edge.evidence:,.3g}, with an alarm at 10,000")
    if edge.judged:
        usual = "" if edge.usual is None else f", where {edge.usual[0]:.1%} to {edge.usual[1]:.1%} is usual"
        print(f"  deferred {edge.deferred:,} of {edge.judged:,} ({edge.deferred / edge.judged:.1%}){usual}")


def _age_days(made: str) -> int:
    return (datetime.fromtimestamp(process.now(), timezone.utc).date() - date.fromisoformat(made)).days


def _count(value: Any) -> int:
    return int(value) if isinstance(value, int | float) and 0 <= value < inf else 0


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.2f} ms"


def _limit(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
