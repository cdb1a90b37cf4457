"""Composition root: constructs an engine from a router's arguments, and replaces its policy when the policy file changes."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeroute.cloud.spending_file import SharedSpending
from edgeroute.core.error_codes import error_text
from edgeroute.core.routing_policy import INF, Offline
from edgeroute.core.usage_limits import Limits, Spending
from edgeroute.edge.model_attributes import member
from edgeroute.edge.runtimes import each
from edgeroute.errors import Closed, EdgerouteError, PolicyError
from edgeroute.observe.device_sensors import SAMPLER
from edgeroute.observe.endpoint_probing import EndpointHealth
from edgeroute.observe.planning_facts import Observer
from edgeroute.observe.target_counts import Counts
from edgeroute.router.argument_checks import check_types
from edgeroute.router.audits_and_hidden_trials import put_audits, put_trials
from edgeroute.router.engine import CLOSED, Engine, status_of
from edgeroute.router.fallbacks_and_late_replies import NO_OUTBOX, RULES, Fallback, LateReplies
from edgeroute.router.policy_snapshot import PolicyArguments, backends_by_spec, build, clear_plans
from edgeroute.router.router_parts import Instrumented, InstrumentedFromStart, Part, State, Steps
from edgeroute.router.warm_up_and_rehearsal import check_releases
from edgeroute.system.process import file_stamp, log
from edgeroute.system.safe_logging import call_quietly
from edgeroute.system.thread_pool import ThreadPool, Worker, start_thread

if TYPE_CHECKING:
    from edgeroute.cloud.endpoint_guard import Guard
    from edgeroute.cloud.http_backend import CloudBackend
    from edgeroute.record.instrument_interface import Instrument
    from edgeroute.record.trace import Trace
    from edgeroute.stores.cache import Cache
    from edgeroute.stores.outbox import Outbox
    from edgeroute.trials.guarantee_monitor import Audit

EDGE_MOST, CLOUD_MOST, LOCAL_MOST = 256, 256, 64
"""Maximum threads: for legs on the device; for calls of a cloud, which may hang; for disks, sensors and late replies."""

FIRST_S = 5.0
"""Maximum seconds that a new router waits for the first reading of the application's own sensors."""


def assemble(
    spawn: Callable[[Engine, Steps[None]], bool], *, awaits: bool = False, offline: Offline = "edge",
    limits: Limits | None = None, metered: bool | Callable[[], bool] = False, cache: Cache | None = None,
    outbox: Outbox | None = None, audit: Audit | None = None, sensors: Any = None, state: str | Path | None = None,
    trace: Trace | Callable[[Mapping[str, Any]], object] | str | Path | None = None, instruments: Sequence[Instrument] = (),
    parts: Sequence[Part] = (), **policy: Any
) -> Engine:  # fmt: skip
    """Construct an engine and its parts; opens the state folder's files, reads sensors, and starts the outbox's delivery.

    Restores the state of earlier runs. Logs which sensors a rule lacks.

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
    folder = None if state is None else Path(state)
    engine = Engine(folder)
    engine.edge_threads = ThreadPool("edgeroute-edge", EDGE_MOST, native=True)
    engine.cloud_threads = ThreadPool("edgeroute-cloud", CLOUD_MOST)
    engine.local_threads = ThreadPool("edgeroute-local", LOCAL_MOST)
    counts = engine.counts = Counts()
    store = None
    if folder is not None:
        from edgeroute.stores.sqlite_file import KeyValueStore  # imports SQLite, only if there is something to store

        store = KeyValueStore.shared_store(folder / "state.db", counts)
    spending = engine.spending = SharedSpending(Spending(limits or Limits()), store)
    sinks = [*instruments]
    if trace is not None:
        from edgeroute.record.trace import Trace

        sinks.insert(0, trace if isinstance(trace, Trace) else Trace(trace))
    if sinks:
        from edgeroute.record.instrument_interface import Instruments

        all_sinks = engine.instruments = Instruments(sinks)
        engine.breaker_changed, engine.alarm, engine.outbox_changed = (
            all_sinks.breaker_changed, all_sinks.alarm, all_sinks.outbox_changed,
        )  # fmt: skip
    if folder is not None and store is not None:
        from edgeroute.record.checkpoint import Checkpoint
        from edgeroute.stores.rotated_json_lines import Journal

        engine.checkpoint = Checkpoint(store, counts, spending)
        engine.ledger = Journal(folder / "egress.jsonl")
    engine.health = EndpointHealth(engine)
    engine.arguments = PolicyArguments(offline=offline, awaits=awaits, **policy)
    engine.snapshot = build(engine.arguments, partial(guard, engine))
    observer = engine.observer = Observer(counts, spending, metered, sensors, records=_recorded(sinks, sensors))
    _fix(engine, cache, _outbox(outbox, offline, folder), spawn, parts)
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
        for line in [*observer.lacking(()), *(observer.budget() if observer.reading.power_w is None else ())]:
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
        engine.queue.start()
    for opened in engine.parts.methods("opened"):
        opened(status_of(engine))
    return engine


def _recorded(sinks: Sequence[Instrument], sensors: Any) -> bool:
    """Return True if instruments want readings of the sensors."""
    return (bool(sinks) and sensors is not None) or any(getattr(sink, "reads_sensors", False) for sink in sinks)


def _first_reading(engine: Engine, sensors: Any) -> None:
    """Read the sensors, blocking; for a function of the application, which may hang, in a thread, and at most `FIRST_S`.

    A reading that comes later still counts. Its exception is raised here if it came in time.
    """
    done, late = threading.Event(), threading.Event()
    raised = list[BaseException]()

    def read() -> None:
        try:
            engine.sensing.read()
        except BaseException as e:  # noqa: BLE001 - no failure of the sensors, which is logged, but an end: passed on to the caller
            raised.append(e)
        finally:
            done.set()
        if late.is_set():
            SAMPLER.add(engine)

    if sensors is None:
        engine.sensing.read()
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
        report=engine.instruments,
    )  # fmt: skip


def _fix(
    engine: Engine,
    cache: Cache | None,
    outbox: Outbox | None,
    spawn: Callable[[Engine, Steps[None]], bool],
    parts: Sequence[Part],
) -> None:
    """Construct the parts that a reload does not change, and set them on the engine."""
    fixed_parts: list[Part] = [engine.private]
    if engine.instruments is not None:
        kind = InstrumentedFromStart if engine.instruments.follow_requests else Instrumented
        fixed_parts.append(kind(engine.instruments, engine.observer))
    fixed_parts += parts
    if cache is not None:
        from edgeroute.router.cache_stage import Caching

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
    """Return the outbox of a router; for `offline='queue'` without one, a new one in the state folder.

    Raises PolicyError without one.
    """
    if outbox is not None or offline != "queue":
        return outbox
    if folder is None:
        raise PolicyError(NO_OUTBOX)
    from edgeroute.stores.outbox import Outbox as Made

    return Made(folder / "outbox.db")


# Policy files of a router: read when it is made, watched, and put in force again when they change.

# Replacement of the policy in force of a running router, which reuses models and connections of the old one.


def replace(
    engine: Engine, arguments: PolicyArguments, limits: Limits, metered: bool | Callable[[], bool], audit: Audit | None = None
) -> None:
    """Put another policy in force, which reuses unchanged models and connections of the old one.

    New models of a catalog are loaded and tested first; targets that the policy has no more are closed.

    Raises:
        PolicyError: it is invalid; the old one stays.
        Closed: the router is closed, also meanwhile.
    """
    with engine.replacing:  # and not the other one, which calls wait for: this may take long
        if engine.closed:
            raise Closed(CLOSED)
        old = engine.snapshot
        new = build(arguments, partial(guard, engine), old)
        RULES[new.policy.offline].check(engine)
        for check in engine.parts.methods("check"):
            check(new)
        check_releases(new, old)
        with engine.refreshing:
            put_audits(engine, new, audit)
            if new.views.given:
                engine.plain = False  # before it is in force
            engine.snapshot, engine.arguments = new, arguments
        put_trials(engine, new)
        engine.spending.limits, engine.observer.metered = limits, metered
        engine.observer.use(new.policy, new.watched[0])
        clear_plans(new)  # of rules that were not there before
        SAMPLER.add(engine)
        engine.refresh_thresholds()
        current = [*backends_by_spec(new).values()]
        models = [getattr(b, "model", b) for b in current]
        for backend in backends_by_spec(old).values():
            if backend not in current and getattr(backend, "model", backend) not in models:
                call_quietly(backend.close, "dropping a target that the policy has no more")
        if engine.closed:
            for backend in current:
                call_quietly(backend.close, "closing a router")
            raise Closed(CLOSED)


LOOKS_S = 1.0
"""Seconds between two checks of a watched file."""
STAYS = ("cache", "instruments", "outbox", "parts", "sensors", "state", "trace")
"""Arguments that a reload does not change: most have open files."""


class PolicyFile:
    """Policy file of one router.

    Args:
        path: path of the file.
        more: arguments of the router that override the file's, and `consent`, `redact` and `data_class` for its egress rules.
    """

    def __init__(self, path: Path, more: Mapping[str, Any]) -> None:
        self.path, self._more = path, more
        self._seen = file_stamp(path)  # before reading it: later changes are detected
        self._worker: Worker | None = None
        self._versions: dict[Path, str] = {}
        """File that names the active version of a model -> version read last."""

    def arguments(self) -> dict[str, Any]:
        """Read the file, and return the router's arguments. Notes the active versions of its models.

        Errors have the file's path.

        Raises:
            PolicyError: the file is invalid.
            ModelMissing: the file of a model does not exist.
        """
        from edgeroute import policy as settings  # pydantic is imported only for policy files

        functions = {key: self._more[key] for key in ("consent", "redact", "data_class") if key in self._more}
        given = [key for key in ("edge", "cloud", "threshold", "state") if self._more.get(key) is not None]
        policy = settings.load(self.path, given, complete=True)
        if "state" in self._more:
            policy = policy.with_state(self._more["state"])
        if self._more.get("instruments", ()) is None:  # none are wanted, and none are made: an extra may not be installed here
            policy = policy.model_copy(update={"telemetry": None})
        try:
            arguments: dict[str, Any] = policy.arguments(self.path.parent, **functions)
        except EdgerouteError as e:
            raise type(e)(f"{self.path}: {e}") from e
        merged = {**arguments, **{key: value for key, value in self._more.items() if key not in functions}}
        if "instruments" in self._more:
            instruments = self._more["instruments"]
            kinds = {type(instrument) for instrument in instruments or ()}
            merged["instruments"] = (
                [*(instrument for instrument in arguments.get("instruments", ()) if type(instrument) not in kinds), *instruments]
                if instruments
                else ()
            )
        on_trial = [trial.edge for trial in merged["trial"] or () if trial.edge is not None]
        models = [*on_trial, *_models(merged["edge"])]  # the latter's version counts, where both are of one model
        releases = [release for model in models if (release := member(model, "release")) is not None]
        self._versions = {release.pointer: release.version for release in releases}
        return merged

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Add the file and the key to a PolicyError raised within the block, if the mistake is the file's."""
        try:
            yield
        except PolicyError as e:
            section = {"rule": "rules"}.get(name := re.split(r"[.\[]", e.key)[0], name)
            if not e.key or section in self._more:  # no key of the file's
                raise
            raise PolicyError(f"{self.path}: {e.key}: {e}") from None

    def reload(self, engine: Engine) -> None:
        """Read the file again, and put it in force.

        Raises:
            PolicyError: the file is invalid; the policy in force stays.
            Closed: the router is closed.
        """
        with engine.replacing:  # from here on: who has read the file before another does not put it in force after that one
            try:
                self._put_in_force(engine)
            except Exception as e:
                engine.refused = error_text(e)
                raise
            engine.refused = ""

    def _put_in_force(self, engine: Engine) -> None:
        """Read the file, and replace the engine's policy by it. Raises as `reload`."""
        arguments = self.arguments()
        limits, metered, audit = arguments.pop("limits", None), arguments.pop("metered", False), arguments.pop("audit", None)
        for key in STAYS:
            arguments.pop(key, None)
        with self.named():
            settings = PolicyArguments(**arguments, awaits=engine.arguments.awaits)
            replace(engine, settings, limits or Limits(), metered, audit)

    def watch(self, reload: Callable[[], Callable[[], object] | None]) -> None:
        """Start a thread that calls the referent of the weak reference `reload` when the file changes; errors are logged."""
        message = f"{self.path} cannot be used; the policy in force stays"
        self._worker = Worker("edgeroute-watch", partial(self._look, reload), message, first_s=LOOKS_S, retry_s=LOOKS_S)
        self._worker.start()

    def _look(self, reload: Callable[[], Callable[[], object] | None]) -> float:
        """Check the file, and the active versions; reload after a change. Return the seconds until the next check.

        A file that is missing for a moment is no change.
        """
        now = file_stamp(self.path)
        if self._activated() or (now is not None and now != self._seen):
            self._seen = now or self._seen
            if (call := reload()) is not None:
                call()
        return LOOKS_S

    def _activated(self) -> bool:
        """Return True if another version of a model is active than at the last check, and note it. Reads the catalogs' files.

        A file that cannot be read counts as unchanged.
        """
        if not self._versions:
            return False
        from edgeroute.catalog.model_folder import pointer

        changed = False
        for path, version in self._versions.items():
            with contextlib.suppress(EdgerouteError):  # it cannot be read now
                active = pointer(path)
                if active is not None and active.version != version:
                    self._versions, changed = {**self._versions, path: active.version}, True
        return changed

    def close(self) -> None:
        """Have the watching thread end, without waiting: a reload that has begun goes on."""
        if self._worker is not None:
            self._worker.close(0.0)


def _models(edges: Any) -> list[Any]:
    """Return the models of one or several edges, each variant of a group by itself."""
    return [model for edge in (edges if isinstance(edges, list) else [edges]) for model in each(edge)]
