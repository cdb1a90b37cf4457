"""Commands `status`, of what routers have stored in a state folder, and `arms`, of trials on many devices; readers of that.

Nothing is changed.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, timezone
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.core.performance_estimates_and_encoding_choice import Latency, Link, break_even
from edgeroute.core.policy_egress_and_options import EDGE_TRIAL, INF, Target
from edgeroute.core.reason_text_and_trace_record import finite
from edgeroute.errors import BadInput, ModelMissing, StoreError
from edgeroute.system import wall_clock
from edgeroute.system.files_and_lock_waits import replace_file
from edgeroute.system.untrusted_files import MOST_TEXT, open_file, parse_json
from edgeroute.tools.bounded_lines_and_rows import lines_of
from edgeroute.tools.cli import tables_and_options as ui
from edgeroute.tools.cli.command_runner import NOT_READY, OK
from edgeroute.tools.cli.example_options_and_routers import read_only
from edgeroute.tools.cli.outbox_egress_and_state_folder import opened_outbox, state_folder
from edgeroute.trials.trial_setting import STORED

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import BoundCertificate
    from edgeroute.core.spending_limits import Limits
    from edgeroute.observe.stats_and_status_types import ShadowStats
    from edgeroute.router.policy_snapshot import Snapshot
    from edgeroute.tools.measure.fleet_trial_comparison import Device, FleetTrial
    from edgeroute.trials.audit_setting_and_drift_monitor import Audit

# Reading a router's state.db, without changing it, also while another process writes it.


class Value(NamedTuple):
    """Value stored by a router."""

    value: Any
    updated: float  # time of its last write, seconds since 1970


def read_state(folder: Path) -> dict[str, Value]:
    """Read all values in the state folder's database, by name, also while a router writes it.

    Values that are not JSON are left out.

    Raises:
        BadInput: the folder has no state.
        StoreError: the state cannot be read.
    """
    import sqlite3

    path = folder / "state.db"
    if not path.exists():
        raise BadInput(f"{path}: there is no state: no router with this state folder has run, or it was removed")
    try:
        with read_only(path) as connection:
            rows = connection.execute("SELECT name, value, updated FROM kept").fetchall()
    except sqlite3.Error as e:
        raise StoreError(f"{path} cannot be read: {e}") from e
    values = {}
    for name, text, updated in rows:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            values[str(name)] = Value(json.loads(text), float(updated))
    return values


# Results of trials, as `status` and `arms` show them, for one device or many.


def trials_of(state: Mapping[str, Value]) -> list[dict[str, Any]]:
    """Return the stored settings and arms of each trial, without malformed ones; [] if none is stored."""
    stored = state[STORED].value if STORED in state else None
    return [
        {"settings": trial["settings"], "arms": trial["arms"]}
        for trial in (stored if isinstance(stored, list) else ())
        if isinstance(trial, dict) and isinstance(trial.get("settings"), dict) and isinstance(trial.get("arms"), list)
    ]


def arms_of(trials: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the arms of all trials; the arm in use, which they share, once."""
    arms = dict[str, Mapping[str, Any]]()
    for arm in (arm for trial in trials for arm in trial["arms"] if isinstance(arm, dict)):
        arms.setdefault(str(arm.get("arm")), arm)
    return [*arms.values()]


def show_arms(arms: Sequence[Mapping[str, Any]]) -> None:
    """Print arms as a table, with 95 % intervals, and which are stopped; nothing without arms."""
    if not arms:
        return
    from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import arm_cells, arm_rows

    rows = [(arm.get("arm"), arm.get("model"), *arm_cells(arm, "-")) for arm in arms]
    ui.table(("arm", "model", *arm_rows(arms)), rows, ("arm", "model"))
    for arm in arms:
        if arm.get("stopped"):
            print(printable(f"  {arm.get('arm')} is stopped: {arm['stopped']}"))


# Results of edge models that run in shadow.


def shadow_stats(log: Path, snapshot: Snapshot | None) -> list[ShadowStats]:
    """Compute statistics of shadow runs, by edge model, from the whole audit log; invalid lines are left out. [] without a log.

    A shadow run compares an edge model's answer with the cloud's, and is not shown.

    Args:
        log: path of the audit log.
        snapshot: snapshot of a router with the policy: only runs of its models count, by its thresholds. None: for each edge
            model the runs of its latest version count, by the threshold of that time.
    """
    from edgeroute.confidence.certificate import digest
    from edgeroute.router.audits_and_hidden_trials import edge_fingerprints
    from edgeroute.stores.json_lines_and_process_locks import read
    from edgeroute.trials.shadow_statistics_and_job_queue import UNHEARD, Tally

    digests: dict[str, str] = {}
    targets: dict[str, Target] = {}
    if snapshot is not None:
        digests = {name: digest(bound) for name, bound in edge_fingerprints(snapshot).items()}
        targets = {target.name: target for target in snapshot.targets}
    tallies: dict[str, Tally] = {name: Tally() for name in digests}
    for line in read(log):
        name, fingerprints, probability = line.get("target"), line.get("fingerprints"), line.get("probability")
        if not (line.get(UNHEARD) and isinstance(name, str) and isinstance(line.get("agrees"), bool)):
            continue
        if not isinstance(probability, int | float) or not 0 < probability <= 1:
            continue
        if snapshot is None and digests.get(name) != fingerprints:
            digests[name], tallies[name] = str(fingerprints), Tally()
        if digests.get(name) == fingerprints:
            tallies[name].add(line, accepted=_accepted(line, targets.get(name)))
    return [tally.stats(name) for name, tally in tallies.items() if tally.count]


def _accepted(line: Mapping[str, Any], target: Target | None) -> bool:
    """Return True if the target's threshold would accept an audit's answer; without one, if the answer was accepted."""
    confidence = line.get("edge_confidence")
    if target is None or target.thresholds or not isinstance(confidence, int | float):
        return line.get("audited") == "shadow"
    return target.threshold is not None and target.threshold != INF and confidence >= target.threshold


def shadow_lines(stats: ShadowStats, target: Target | None, *, first: bool) -> list[str]:
    """Return the lines of text about an edge model's shadow runs: share it would answer, differences, savings, failures, times.

    Args:
        stats: statistics of an edge model's shadow runs.
        target: that model in the policy; None: unknown.
        first: True for the model that is asked first, which all requests reach.
    """
    of = "requests" if first else "requests that reach it"
    share = f"{stats.answers * 100:.1f} % ({stats.answers_low * 100:.1f} % to {stats.answers_high * 100:.1f} %)"
    lines = [f"{stats.target} in shadow: of {stats.compared:,} {of} it would answer {share}"]
    if stats.answers:
        lines[0] += (
            f", of these {stats.differs * 100:.2f} % ({stats.differs_low * 100:.2f} to {stats.differs_high * 100:.2f} %) differ "
            "from the cloud's"
        )
        saved = [f"{stats.saved_calls:,.0f} calls"]
        saved += [f"${stats.saved_usd:,.4g}"] if stats.saved_usd else []
        saved += [f"{stats.saved_mb:,.3g} MB"] if stats.saved_mb else []
        lines.append(f"  of 1,000 requests that saves {', '.join(saved)}")
    if stats.target == EDGE_TRIAL:
        lines = [f"{EDGE_TRIAL}, hidden: {stats.compared:,} requests compared; `edgeroute recertify` says what is missing"]
    elif target is not None and target.threshold is None:
        why = "no threshold yet: `edgeroute calibrate --audited` finds one once they are enough"
        lines = [f"{stats.target} in shadow: {stats.compared:,} {of} compared; {why}"]
    if stats.failed:
        lines.append(f"  on {stats.failed:,} it failed: the log says why")
    if None not in {stats.edge_p50_s, stats.edge_p99_s}:
        known = None not in {stats.cloud_p50_s, stats.cloud_p99_s}
        beside = f", the cloud {_ms(stats.cloud_p50_s)} (p99 {_ms(stats.cloud_p99_s)})" if known else ""
        lines.append(f"  it takes {_ms(stats.edge_p50_s)} (p99 {_ms(stats.edge_p99_s)}){beside}")
    return lines


MB = 1e6
# Prefixes of the names under which a router stores the drift monitor of an edge model, and the state of a part.
EDGE, PART = "audit:", "part:"


class Edge(NamedTuple):
    """Status of an edge model with a threshold. None: unknown."""

    target: str
    # Effective threshold; `inf` defers every input; with thresholds per class the one of any other class.
    threshold: float | str | None
    promise: str  # label of the certificate, or why there is none. Empty: unknown.
    made: str | None  # date of the certificate
    age_days: int | None
    audited: int  # number of accepted answers that were compared with the cloud's
    disagreed: int
    limit: float | None  # largest share of them that may differ; with labels the largest loss or error rate
    evidence: float  # evidence that it is exceeded; at 10,000 there is an alarm
    alarm: Mapping[str, Any] | None  # time (seconds since 1970), text and action of the alarm; None: there is none
    judged: int  # answers compared with the threshold since the certificate was first used; without one, in the last run
    deferred: int
    usual: tuple[float, float] | None  # interval of the deferral rate in the certificate
    labelled: int | None = None  # audited answers with a reported label; None: labels are not expected


def status(*, policy: ui.OptionalPolicy = None, state: ui.OptionalState = None, as_json: ui.Json = False) -> None:
    """Show the state that routers have stored: guarantees, latencies, spending, the outbox. Changes nothing.

    With --state alone, values from the policy are left out: limits, and whether a certificate fits the models.

    Raises:
        BadInput: the folder has no state.
        StoreError: it cannot be read.
        PolicyError: the policy is invalid, or has no state folder.
    """
    home = state_folder(policy, state)
    opened = open_policy(policy)
    report = read_status(opened, home)
    snapshot, in_shadow = opened.snapshot, opened.in_shadow
    if as_json:
        print(json.dumps(report.as_dict(), allow_nan=False))
        return
    edges, latencies, links, spent, box, written, joules, shadow, trials, fleet, notes, alarms = report
    ui.print_notes(notes)
    for name, alarm in alarms.items():
        print(printable(f"ALARM of {name}: {alarm}"))
    for edge in edges:
        print(printable("\n".join(edge_lines(edge._asdict()))))
    targets = {} if snapshot is None else {target.name: target for target in snapshot.targets}
    for i, stats in enumerate(shadow):
        print(printable("\n".join(shadow_lines(stats, targets.get(stats.target), first=i == 0))))
    if in_shadow and not shadow:
        print("mode is shadow: no request has been compared yet with these models and endpoints")
    if not edges and not shadow and not in_shadow:
        print("no edge model's guarantee is monitored here: that needs a threshold, and [audit] in the policy")
    show_arms(arms_of(trials))
    if latencies:
        rows = [(name, f"{leg['count']:,}", *(_ms(leg[q]) for q in ("p50_s", "p99_s"))) for name, leg in latencies.items()]
        ui.table(("leg", "answers", "p50", "p99"), rows, ("leg",))
    for name, link in links.items():
        speed = "" if link["bytes_per_s"] is None else f", and its bytes go at {link['bytes_per_s'] / MB:.3g} MB/s"
        print(printable(f"{name}: a call takes {_ms(link['call_s'])}{speed}"))
    unset = "none" if snapshot is not None else "unknown" if policy else "unknown without --policy"
    rows = [(name, f"{use['spent']:.4g}", unset if use["limit"] is None else f"{use['limit']:g}") for name, use in spent.items()]
    ui.table(("spent", "so far", "limit"), rows, ("spent",))
    for name, one_call in joules.items():
        print(printable(f"energy: {one_call:.3g} J a call of {name}"))
    if snapshot is not None and (line := _break_even(snapshot, joules)):
        print(printable(line))
    if box is not None:
        print(f"outbox: {outbox_words(box)}")
    if fleet is not None:
        oldest = f", the oldest of {fleet['oldest']}" if fleet["oldest"] else ""
        print(printable(f"fleet: digests waiting: {fleet['waiting']:,}{oldest}; last one made: of {fleet['last']}"))
    if written is not None:
        print(f"last written at {ui.local_time(written)}")


class Opened(NamedTuple):
    """Policy as a router would have it if it started now."""

    snapshot: Snapshot | None = None  # None without a policy, or with a missing model
    audit: Audit | None = None
    limits: Limits | None = None
    notes: tuple[str, ...] = ()

    @property
    def in_shadow(self) -> bool:
        """True if its edges run only in shadow."""
        return self.snapshot is not None and self.snapshot.policy.mode == "shadow"


class Status(NamedTuple):
    """Contents of a state folder, as `status` shows them.

    Attributes:
        alarms: part, such as a sentinel -> text of its alarm.
    """

    edges: list[Edge]
    latency: dict[str, dict[str, Any]]
    link: dict[str, dict[str, float | None]]
    spent: dict[str, dict[str, float | None]]
    outbox: dict[str, int] | None
    written_at: float | None
    joules: dict[str, float]
    shadow: list[ShadowStats]
    trials: list[dict[str, Any]]
    fleet: dict[str, Any] | None
    notes: list[str]
    alarms: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON data, without energies and digests if there are none."""
        data = self._asdict() | {"edges": [e._asdict() for e in self.edges], "shadow": [s._asdict() for s in self.shadow]}
        return {name: value for name, value in data.items() if value or name not in {"joules", "fleet"}}


def open_policy(policy: Path | None) -> Opened:
    """Return a policy as a router would have it, with its models' cards; a missing model gives only a note. None: no policy.

    A router is built and closed again; it runs no model, sends nothing, and does not touch the state folder.

    Raises:
        PolicyError: the policy is invalid.
        ModelError: a model's card is invalid.
    """
    if policy is None:
        return Opened()
    from edgeroute.router.router import Router

    without: dict[str, Any] = {**dict.fromkeys(("state", "cache", "outbox", "trace", "instruments")), "parts": ()}
    try:
        with Router.from_policy(policy, **without, offline="edge", uncalibrated="tell") as router:
            engine = router.engine
            audit = None if engine.auditor is None else engine.auditor.audit
            return Opened(engine.snapshot, audit, engine.spending.limits)
    except ModelMissing as e:
        text = f"{e}: the policy is left out, so it is not known if a certificate fits the models"
        return Opened(notes=(text,))


def read_status(of: Opened, home: Path, *, shadow_runs: bool = True) -> Status:
    """Read a state folder, with its outbox, waiting digests and, if `shadow_runs`, audit log; return all that `status` shows.

    Without a policy in `of`, what needs one is unknown.

    Args:
        of: the policy.
        home: the state folder.
        shadow_runs: False leaves out the statistics of shadow runs, for which the whole audit log is read.

    Raises:
        BadInput: the folder has no state.
        StoreError: it cannot be read.
    """
    state = read_state(home)
    shadow = shadow_stats(home / "audit.jsonl", of.snapshot) if shadow_runs else []
    if of.snapshot is not None and not of.in_shadow:
        shadow = [stats for stats in shadow if stats.target == EDGE_TRIAL]
    joules = _joules(state)
    written = max((value.updated for value in state.values()), default=None)
    return Status(
        _edges(of, state), _latencies(state), _links(state), _spent(state, of.limits), _outbox(home / "outbox.db"), written,
        joules, shadow, trials_of(state), _fleet(state, home / "fleet"),
        [*of.notes, *_uncounted(of.snapshot, of.limits, joules)], _part_alarms(state),
    )  # fmt: skip


def _edges(of: Opened, state: Mapping[str, Value]) -> list[Edge]:
    """Return the status of each edge model with a threshold in the policy; without a policy, of each that is stored, sorted."""
    dumps = {name.removeprefix(EDGE): value.value for name, value in state.items() if name.startswith(EDGE)}
    dumps = {name: dumped for name, dumped in dumps.items() if isinstance(dumped, dict)}
    if of.snapshot is None:
        return [_of_dump(name, dumped) for name, dumped in sorted(dumps.items())]
    return [
        _of_policy(target, promise, of.audit, dumps.get(target.name))
        for target, promise in zip(of.snapshot.targets, of.snapshot.certificates, strict=True)
        if target.side == "edge" and target.threshold is not None
    ]


def _of_policy(target: Target, promise: BoundCertificate | None, audit: Audit | None, dumped: Mapping[str, Any] | None) -> Edge:
    """Return the status of an edge model that a router with this policy would have if it started now, with stored alarms.

    The stored counts are left out if they belong to another certificate.
    """
    from edgeroute.trials.audit_setting_and_drift_monitor import DriftMonitor

    certificate = None if promise is None else promise.certificate
    fits = dumped is not None and certificate is not None and dumped.get("certificate") == certificate.checksum
    if audit is not None and dumped is not None:
        monitor = DriftMonitor(promise, audit)
        monitor.load(dumped)
        target = monitor.target(target)
    edge = _of_dump(target.name, dumped if dumped is not None and (fits or certificate is None) else {})
    edge = edge._replace(threshold=finite(target.threshold), promise=target.label)
    if certificate is None:
        return edge
    return edge._replace(made=certificate.date, age_days=_age_days(certificate.date), usual=certificate.deferral_interval)


def _of_dump(name: str, dumped: Mapping[str, Any]) -> Edge:
    """Return the status that was stored by the last run; what is missing or invalid is None, 0 or empty."""
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
        evidence=_evidence([drifts[name] for name in ("loss", "disagreement", "harm") if name in drifts]),
        alarm=alarm if isinstance(alarm, dict) else None,
        judged=_count(dumped.get("judged")),
        deferred=_count(dumped.get("deferred")),
        usual=None if usual is None else (usual[0], usual[1]),
        labelled=_count(dumped.get("labelled")) if "loss" in drifts else None,
    )


def _stored(state: Mapping[str, Value], name: str) -> dict[str, Any]:
    """Return the mapping that is stored under a name; {} if there is none."""
    stored = state[name].value if name in state else None
    return stored if isinstance(stored, dict) else {}


def _evidence(dumps: list[Any]) -> float:
    """Return the mean evidence of the stored drift tests; tests from the first that cannot be read on count as 0."""
    from edgeroute.core.sequential_tests import Drift

    total = 0.0
    with contextlib.suppress(KeyError, TypeError, ValueError):
        for dumped in dumps:
            test = Drift(dumped["level"])
            test.load(dumped)
            total += test.evidence / len(dumps)
    return total


def _latencies(state: Mapping[str, Value]) -> dict[str, dict[str, Any]]:
    """Return number of answers, and median and 99 % quantile of latency in seconds, by leg (one model or endpoint).

    A leg that cannot be read is left out.
    """
    legs = {}
    for name, dumped in _stored(state, "latency").items():
        with contextlib.suppress(KeyError, TypeError, ValueError):
            latency = Latency.load(dumped)
            legs[name] = {"count": latency.count, "p50_s": latency.quantile(0.5), "p99_s": latency.quantile(0.99)}
    return legs


def _links(state: Mapping[str, Value]) -> dict[str, dict[str, float | None]]:
    """Return time of a call without its bytes, seconds, and bandwidth, bytes a second, by endpoint, as measured.

    An endpoint without measurements, or that cannot be read, is left out.
    """
    measured = {}
    for name, dumped in _stored(state, "link").items():
        with contextlib.suppress(ValueError):
            link = Link.load(dumped)
            if link.count:
                measured[name] = {"call_s": link.call_s, "bytes_per_s": link.bytes_per_s}
    return measured


def _joules(state: Mapping[str, Value]) -> dict[str, float]:
    """Return the measured energy of a call, joules, by target, without invalid numbers."""
    energy = _stored(state, "energy").items()
    return {str(name): float(joules) for name, joules in energy if isinstance(joules, int | float) and 0 <= joules < inf}


def _break_even(snapshot: Snapshot, joules: Mapping[str, float]) -> str:
    """Return a sentence: below which deferral rate the edge takes less energy than the cloud alone, or that the cloud does.

    Empty: the energy of the first known edge or cloud is unknown.
    """
    edge, cloud = (next((joules.get(t.name) for t in snapshot.targets if t.side == side), None) for side in ("edge", "cloud"))
    if edge is None or cloud is None:
        return ""
    share = break_even(edge, cloud)
    first = f"the edge first takes less while under {share * 100:.0f} % are deferred" if share else "the cloud takes less"
    return f"energy: {first}"


def _part_alarms(state: Mapping[str, Value]) -> dict[str, str]:
    """Return the texts of the alarms that parts have stored, by part."""
    parts = {name.removeprefix(PART): value.value for name, value in state.items() if name.startswith(PART)}
    return {name: str(dumped["alarm"]) for name, dumped in parts.items() if isinstance(dumped, dict) and dumped.get("alarm")}


def _uncounted(snapshot: Snapshot | None, limits: Limits | None, joules: Mapping[str, float]) -> list[str]:
    """Return a note if an energy limit cannot count runs of edge models, as their energy is unknown; otherwise []."""
    edges = [] if snapshot is None else [t.name for t in snapshot.targets if t.side == "edge" and t.name not in joules]
    if not edges or limits is None or limits.joules_per_hour == inf:
        return []
    why = "the device reports no power, or too few readings so far"
    return [f"joules_per_hour counts no runs of {', '.join(edges)}, since their energy is not known: {why}"]


def _spent(state: Mapping[str, Value], limits: Limits | None) -> dict[str, dict[str, float | None]]:
    """Return spending over each limit's window by all routers with this folder, and the limit; None: no limit.

    Entries that cannot be read are left out.
    """
    from edgeroute.core.spending_limits import Limits, Spending

    now, spending = wall_clock.now(), Spending(limits or Limits())
    for name, dumped in state.items():
        if name.startswith("spending:"):
            with contextlib.suppress(ValueError):
                spending.load(dumped.value, now)
    return {
        name: {"spent": spent, "limit": None if limit == inf else limit}
        for name, spent, limit in zip(Limits._fields, spending.spent(now), spending.limits, strict=True)
    }


def _outbox(path: Path) -> dict[str, int] | None:
    """Return the numbers of entries in an outbox, by state; empty if it cannot be read, None if there is no file."""
    if not path.exists():
        return None
    with opened_outbox(path) as box:
        return box.known_counts()


def outbox_words(counts: Mapping[str, int] | None) -> str:
    """Return the counts of an outbox in words."""
    words = ", ".join(f"{n:,} {name}".replace("_", " ") for name, n in (counts or {}).items())
    return words or ("none" if counts is None else "cannot be read now")


def _fleet(state: Mapping[str, Value], folder: Path) -> dict[str, Any] | None:
    """Return the number of digests that wait for the fleet's destination, and the days of the oldest and of the last one made.

    None if the device has made none.
    """
    from edgeroute.fleet.daily_digest_spool_and_upload import DAYS, spooled

    days, waiting = [name.removeprefix(DAYS) for name in state if name.startswith(DAYS)], spooled(folder)
    oldest = waiting[0].name.partition(".")[0] if waiting else None
    return {"waiting": len(waiting), "oldest": oldest, "last": max(days)} if days else None


def edge_lines(edge: Mapping[str, Any]) -> list[str]:
    """Return the lines about an edge model, as far as it is known: threshold, certificate, alarm, audits, evidence, deferrals.

    edge: fields of `Edge`; some may be missing.
    """
    threshold, made, alarm, limit, usual = (edge.get(name) for name in ("threshold", "made", "alarm", "limit", "usual"))
    level = "not known" if threshold is None else "none" if threshold == "inf" else f"{float(threshold):.6g}"
    lines = [f"{edge['target']}: threshold {level}" + (f" ({edge['promise']})" if edge["promise"] else "")]
    if made is not None:
        lines.append(f"  certificate of {made}, {_age_days(made)} days old")
    if alarm is not None:
        lines.append(f"  ALARM at {ui.local_time(alarm['at'])}: {alarm['what']}; action: {alarm['action']}")
    if audited := edge["audited"]:
        labelled, disagreed = edge.get("labelled"), edge["disagreed"]
        most = "" if limit is None or labelled is not None else f", and at most {limit * 100:.2f} % should"
        lines.append(f"  audited {audited:,}: {disagreed:,} ({100 * disagreed / audited:.2f} %) differ from the cloud{most}")
        if labelled is not None and limit is not None:
            lines.append(f"  with a label {labelled:,}: the loss of accuracy, or error rate, may be {limit * 100:.2f} %")
        lines.append(f"  evidence that the guarantee fails: {float(edge['evidence']):,.3g}, with an alarm at 10,000")
    if judged := edge["judged"]:
        span = "" if usual is None else f", where {usual[0] * 100:.1f} % to {usual[1] * 100:.1f} % is usual"
        lines.append(f"  deferred {edge['deferred']:,} of {judged:,} ({100 * edge['deferred'] / judged:.1f} %){span}")
    return lines


def _age_days(date_: str) -> int:
    """Return the age of a certificate of this ISO date in whole days, UTC."""
    return (datetime.fromtimestamp(wall_clock.now(), timezone.utc).date() - date.fromisoformat(date_)).days


def _count(value: Any) -> int:
    """Return a stored count as an int; 0 if it is invalid."""
    return int(value) if isinstance(value, int | float) and 0 <= value < inf else 0


def _ms(seconds: float | None) -> str:
    """Format a time in milliseconds; None as "-"."""
    return "-" if seconds is None else f"{seconds * 1000:,.2f} ms"


def arms(
    devices: Annotated[list[Path], typer.Argument(metavar="DEVICE...")],
    *,
    report: ui.File | None = None,
    as_json: ui.Json = False,
) -> int:
    """Compare the arms of a trial over many devices, and report whether the one on trial is worse than allowed.

    Where each device is in one arm, no single device can compare them. Exit code 4: it is worse, stop it; or an endpoint on
    trial is stopped on a device.

    Args:
        devices: Output of `edgeroute status --json`, one device a line or file; or state folders.
        report: Also write the report as an HTML page.

    Trials of the same side and arm are compared together. A device without a trial is named on stderr, and left out.

    Raises:
        BadInput: a file is no such output, or trials cannot be read.
    """
    from edgeroute.tools.measure.fleet_trial_comparison import compare
    from edgeroute.tools.measure.report.report_pages_and_results import basis, document, fleets_page

    if report is not None:
        ui.check_output(report, ui.REPORT, "--report")
    trials: dict[tuple[str, str], list[Device]] = {}
    for path in devices:
        of_path = [*_read(path)]
        for device in of_path:
            trials.setdefault((device.settings.side, str(device.arms[1].get("arm"))), []).append(device)
        if not of_path:
            print(f"{path} has no trial: left out", file=sys.stderr)
    fleets = [(compare(devices), len(devices)) for devices in trials.values() or [[]]]
    pages = [(fleet, basis(count, sum(arm.requests for arm in fleet.arms))) for fleet, count in fleets]
    if report is not None:
        replace_file(report, document(fleets_page(pages)))
    stops = any(fleet.worse or (fleet.settings.side == "cloud" and fleet.arms[1].stopped) for fleet, _ in fleets)
    if as_json:
        print(json.dumps({"trials": [{"devices": count, **fleet.as_dict()} for fleet, count in fleets]}, allow_nan=False))
    else:
        for fleet, summary in pages:
            _show(fleet, summary)
        if report is not None:
            print(f"written to {report}")
    return NOT_READY if stops else OK


def _read(path: Path) -> Iterator[Device]:
    """Yield the trials of a state folder's device, or of the devices in a file: one JSON document, or one a line.

    Raises:
        BadInput: it cannot be read, or is neither.
    """
    if path.is_dir():
        yield from _trials(str(path), {"trials": trials_of(read_state(path))})
        return
    try:
        with open_file(path) as file:
            start = file.read(MOST_TEXT + 1)  # of one document, no device has more
            try:
                by_origin = {str(path): parse_json(start if len(start) <= MOST_TEXT else b"")}
            except ValueError:
                file.seek(0)
                lines = enumerate(lines_of(file, path), 1)
                by_origin = {f"{path}:{i}": parse_json(entry) for i, entry in lines if entry.strip()}
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror or e}") from e
    except BadInput:
        raise
    except ValueError as e:
        raise BadInput(f"{path} is not what `edgeroute status --json` prints: {e}") from e
    for origin, entry in by_origin.items():
        yield from _trials(origin, entry)


def _trials(origin: str, status: Any) -> Iterator[Device]:
    """Yield the trials of a device's status; none if it lacks `trials`.

    Raises:
        BadInput: it is no status, or the settings of a trial cannot be read.
    """
    from edgeroute.tools.measure.fleet_trial_comparison import Device, settings_of

    if not isinstance(status, dict) or not isinstance(trials := status.get("trials", []), list):
        raise BadInput(f"{origin} is not what `edgeroute status --json` prints")
    for trial in trials:
        stored: dict[str, Any] = trial if isinstance(trial, dict) else {}
        stored_settings, device_arms = stored.get("settings") or {}, stored.get("arms")
        settings = settings_of(stored_settings)
        if settings is None or not isinstance(device_arms, list) or [*map(type, device_arms)] != [dict, dict]:
            raise BadInput(f"{origin}: the settings of its trial cannot be read")
        name = stored_settings.get("device")
        yield Device(origin, None if name is None else str(name), settings, device_arms)


def _show(fleet: FleetTrial, summary: str) -> None:
    """Print the comparison of a trial's arms: summary, arms, and, if a measure was compared, differences and verdict."""
    from edgeroute.tools.measure.report.report_pages_and_results import difference, how, verdict

    print(summary)
    show_arms([{key: list(value) if isinstance(value, tuple) else value for key, value in arm._asdict().items()}
               for arm in fleet.arms])  # fmt: skip
    if not fleet.settings.measures:
        return
    less = f"{fleet.arms[1].arm} less {fleet.arms[0].arm}"
    rows = [(row.measure, *difference(row)) for row in fleet.differences]
    ui.table((less, "difference", "interval", "allowed", ""), rows, (less, ""))
    print(how(fleet))
    ui.console().print(" ".join(verdict(fleet)), markup=False)
