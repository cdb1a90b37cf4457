"""Composition root: constructs an engine, with all its parts, from a router's arguments.

Opens the files of the state folder, reads the sensors once, and starts the outbox's threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeroute.cloud.shared_spending_and_record import SharedSpending
from edgeroute.core.plan import withdrawn
from edgeroute.core.policy_egress_and_options import INF, Offline
from edgeroute.core.spending_limits import Limits, Spending
from edgeroute.errors import PolicyError
from edgeroute.observe.device_sensors_and_sampler import SAMPLER
from edgeroute.observe.plan_facts_energy_rules import Observer
from edgeroute.record.instrument_interface import Instrument, Instruments
from edgeroute.router.constructor_checks import check_types
from edgeroute.router.engine import Engine, read_sensors_once, status_of
from edgeroute.router.fallbacks_and_late_replies import NO_OUTBOX, RULES, Fallback, LateReplies
from edgeroute.router.part_hooks_and_dispatch import Instrumented, InstrumentedFromStart, Part, State
from edgeroute.router.policy_snapshot import PolicyArguments, build
from edgeroute.router.steps_and_composed_stages import Steps
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.thread_pool_and_workers import start_thread

if TYPE_CHECKING:
    from edgeroute.cloud.endpoint_guard import Guard
    from edgeroute.cloud.http_backend import CloudBackend
    from edgeroute.record.trace import Trace
    from edgeroute.stores.cache import Cache
    from edgeroute.stores.outbox import Outbox
    from edgeroute.trials.audit_setting_and_drift_monitor import Audit

Spawn: TypeAlias = Callable[[Engine, Steps[None]], bool]  # executes steps in the background; returns False if the router cannot
FIRST_S = 5.0  # maximum seconds that a new router waits for the first reading of the application's own sensors


def assemble(
    spawn: Spawn, *, awaits: bool = False, offline: Offline = "edge",
    limits: Limits | None = None, metered: bool | Callable[[], bool] = False, cache: Cache | None = None,
    outbox: Outbox | None = None, audit: Audit | None = None, sensors: Any = None, state: str | Path | None = None,
    trace: Trace | Callable[[Mapping[str, Any]], object] | str | Path | None = None, instruments: Sequence[Instrument] = (),
    parts: Sequence[Part] = (), **policy: Any
) -> Engine:  # fmt: skip
    """Construct an engine and its parts.

    Opens the state folder's files, reads sensors, and starts threads, such as the outbox's delivery. Restores the state of
    earlier runs. Waits up to `FIRST_S` for sensors, if rules need them. Logs which sensors a rule lacks.

    Args:
        spawn: executes steps in the background; returns False if it cannot.
        awaits: True if edges may be asynchronous.
        offline: see `Router`, as for all that follow.
        limits: see `Router`.
        metered: see `Options`, as for `sensors`, `instruments` and `parts`.
        cache: see `Router`.
        outbox: see `Router`.
        audit: see `Router`.
        sensors: see `Options`.
        state: see `Router`.
        trace: see `Router`.
        instruments: see `Router`.
        parts: see `Router`.
        policy: arguments of `PolicyArguments`.

    Raises:
        PolicyError, ModelMissing: the arguments are invalid together.
    """
    check_types({
        "audit": audit, "cache": cache, "instruments": instruments, "limits": limits, "metered": metered, "outbox": outbox,
        "sensors": sensors, "state": state, "trace": trace, **policy,
    })  # fmt: skip
    if limits is not None or audit is not None:
        from edgeroute.system.read_and_check_signatures import plain_numbers

        limits, audit = plain_numbers(limits), plain_numbers(audit)
    folder = None if state is None else Path(state).absolute()  # the program may change its working directory
    engine = Engine(folder)
    counts, store = engine.counts, None
    if folder is not None:
        from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore  # imports SQLite, only if there is a folder

        store = KeyValueStore.shared_store(folder / "state.db", counts)
    spending = engine.spending = SharedSpending(Spending(limits or Limits()), store)
    sinks = [*instruments]
    if trace is not None:
        from edgeroute.record.trace import Trace

        sinks.insert(0, trace if isinstance(trace, Trace) else Trace(trace))
    engine.instruments = Instruments(sinks)
    engine.breaker_changed = engine.instruments.breaker_changed
    if folder is not None and store is not None:
        from edgeroute.record.checkpoint import Checkpoint
        from edgeroute.stores.json_lines_and_process_locks import Journal

        engine.checkpoint = Checkpoint(store, counts, spending)
        engine.ledger = Journal(folder / "egress.jsonl")
    engine.arguments = PolicyArguments(offline=offline, awaits=awaits, **policy)
    engine.snapshot = build(engine.arguments, partial(guard, engine))
    records = (bool(sinks) and sensors is not None) or any(getattr(sink, "reads_sensors", False) for sink in sinks)
    observer = engine.observer = Observer(counts, spending, metered, sensors, records=records)
    _set_fixed_parts(engine, cache, _outbox(outbox, offline, folder), spawn, parts)
    engine.use()
    for part in parts:
        if hasattr(part, "attach") and type(part).__module__.startswith("edgeroute."):  # no other may make calls of its own
            part.attach(engine)
    if engine.snapshot.on_trial:
        from edgeroute.router.audits_and_hidden_trials import put_trials

        put_trials(engine, engine.snapshot)
    RULES[engine.snapshot.policy.offline].check(engine)
    for check in engine.parts.methods("check"):
        check(engine.snapshot)
    observer.use(engine.snapshot.policy, engine.snapshot.watched[0])
    if engine.snapshot.policy.device_rules or observer.limited:
        _first_reading(engine, sensors)
        for line in [*observer.lacking_lines(()), *(observer.budget_lines() if observer.reading.power_w is None else ())]:
            log.warning("%s", line)
    if engine.checkpoint is not None:
        engine.checkpoint.recall(engine.snapshot.clouds)
        for name, load in engine.parts.named("load").items():
            if (state := engine.checkpoint.store.get(f"part:{name}")) is not None:
                load(state)
    if audit is not None or engine.snapshot.policy.mode == "shadow" or engine.snapshot.hidden is not None:
        from edgeroute.router.audits_and_hidden_trials import put_audits

        put_audits(engine, engine.snapshot, audit)
    engine.refresh_thresholds()
    if observer.reads_at < INF:
        SAMPLER.add(engine)  # these two last: a router that cannot be made leaves no thread behind
    if engine.queue is not None:
        engine.queue.delivery.start()
    for opened in engine.parts.methods("opened"):
        opened(status_of(engine))
    return engine


def _first_reading(engine: Engine, sensors: Any) -> None:
    """Read the sensors, blocking; for a function of the application, which may hang, in a thread, and at most `FIRST_S`.

    A reading that comes later still counts. Its exception is raised here if it came in time.
    """
    done, late = threading.Event(), threading.Event()
    raised = list[BaseException]()

    def read() -> None:
        try:
            read_sensors_once(engine)
        except BaseException as e:  # noqa: BLE001 - no failure of the sensors, which is logged, but an end: passed on to the caller
            raised.append(e)
        finally:
            done.set()
        if late.is_set():
            SAMPLER.add(engine)

    if sensors is None:
        read_sensors_once(engine)
        return
    if start_thread("edgeroute-sensors", read) is None:
        read()
    if not done.wait(FIRST_S):
        late.set()
    elif raised:
        raise raised[0]


def guard(engine: Engine, backend: CloudBackend) -> Guard:
    """Return a new guard for one cloud of this router."""
    from edgeroute.cloud.endpoint_guard import Guard

    return Guard(
        backend.name, backend.where, backend.terms, engine.spending,
        health=backend.health, watcher=engine.health, journal=engine.ledger,
        report=engine.instruments or None,
        withdrawn=lambda allowed: withdrawn(engine.snapshot.policy, engine.observer.facts, allowed),
    )  # fmt: skip


def _set_fixed_parts(engine: Engine, cache: Cache | None, outbox: Outbox | None, spawn: Spawn, parts: Sequence[Part]) -> None:
    """Construct the parts that a reload does not change, such as cache, instruments and outbox, and set them on the engine."""
    fixed_parts: list[Part] = [engine.private]
    if engine.instruments:
        kind = InstrumentedFromStart if engine.instruments.follow_requests else Instrumented
        fixed_parts.append(kind(engine.instruments, engine.observer))
    fixed_parts += parts
    if cache is not None:
        from edgeroute.router.cache_and_singleflight import Caching

        engine.caching = Caching(cache, engine, spawn)
        fixed_parts.append(engine.caching)
    if engine.checkpoint is not None and engine.ledger is not None:
        fixed_parts.append(State(engine.checkpoint, engine.ledger, lambda: engine.snapshot.clouds))
    if outbox is not None:
        from edgeroute.router.offline_queue import OfflineQueue

        engine.queue = OfflineQueue(outbox, engine)
    engine.late = LateReplies(engine)
    engine.fallback = Fallback(engine)
    engine.fixed = tuple(fixed_parts)


def _outbox(outbox: Outbox | None, offline: str, folder: Path | None) -> Outbox | None:
    """Return the given outbox; for `offline='queue'` without one, a new one in the state folder; else None.

    Raises PolicyError if that rule has no folder.
    """
    if outbox is not None or offline != "queue":
        return outbox
    if folder is None:
        raise PolicyError(NO_OUTBOX)
    from edgeroute.stores.outbox import Outbox as Made

    return Made(folder / "outbox.db")
