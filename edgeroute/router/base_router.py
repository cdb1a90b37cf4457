"""Base of both routers: the constructor, policy files, reloads, reports, closing, and the methods that need no pump."""

from __future__ import annotations

import _thread
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar
from weakref import WeakSet

from edgeroute.confidence.scores import Score
from edgeroute.core.policy_egress_and_options import Offline, Options, PolicyMode
from edgeroute.core.spending_limits import Limits
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.errors import BadInput, PolicyError
from edgeroute.router.constructor_checks import Cloud, Edge, checked_options, with_options
from edgeroute.router.engine import Engine, status
from edgeroute.router.engine_assembly import Spawn, assemble
from edgeroute.router.policy_snapshot import PolicyArguments, edges_of, fingerprints
from edgeroute.system.files_and_lock_waits import limited_waits
from edgeroute.system.fork_safety import list_weakset
from edgeroute.system.late_imports_and_plugins import import_tool
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.thread_pool_and_workers import start_thread
from edgeroute.types import V

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgeroute.cloud.egress_consent_and_redaction import Egress
    from edgeroute.confidence.certificate import Certificate
    from edgeroute.observe.stats_and_status_types import Stats, Status
    from edgeroute.record.trace import Trace
    from edgeroute.router.policy_reload import PolicyFile
    from edgeroute.stores.cache import Cache
    from edgeroute.stores.outbox import Outbox
    from edgeroute.tools.measure.report.report_pages_and_results import CalibrationResult
    from edgeroute.trials.audit_setting_and_drift_monitor import Audit
    from edgeroute.trials.trial_setting import Trial

Late = TypeVar("Late", bound=Callable[..., object])
W = TypeVar("W")

_ending = sys.is_finalizing  # True once Python's exit has ended all daemon threads
LOCKED_S = 1.0  # maximum seconds that a start waits for files that others have locked, and a moment for each


class BaseRouter(Generic[V]):
    """Base of both routers: the constructor, the policy file, reloads, promotion of a trial, reports, labels, and the end.

    Attributes:
        engine: parts of the router.
    """

    _awaits: bool  # True if edges and clouds may be asynchronous
    _file: PolicyFile | None = None
    _live: WeakSet[Any] | None = None  # iterators over live sources, which end with the router

    def __init__(
        self,
        edge: Edge[V] | Sequence[Edge[V]] | None = None,
        cloud: Cloud[V] | Sequence[Cloud[V]] | None = None,
        *,
        threshold: float | Certificate | CalibrationResult | Sequence[float | Certificate] | None = None,
        score: str | Score = "msp",
        mode: PolicyMode = "prefer_edge",
        deadline: float | None = None,
        offline: Offline = "edge",
        egress: Egress | None = None,
        limits: Limits | None = None,
        cache: Cache | None = None,
        outbox: Outbox | None = None,
        audit: Audit | None = None,
        trial: Trial | Sequence[Trial] | None = None,
        state: str | Path | None = None,
        trace: Trace | Callable[[Mapping[str, Any]], object] | str | Path | None = None,
        options: Options | None = None,
    ) -> None:
        """Make a router; nothing is loaded and nothing is sent yet.

        Args:
            edge: a path (its suffix selects the runtime), an `EdgeModel`, or any callable `f(x) -> (value, confidence)` or
                logits; several as a list, the smallest first.
            cloud: the URL of a model (`.../v2/models/NAME`), an endpoint (`OpenInference`, `PlainJson`), any callable, a
                list of them in order of trying, or None: then nothing can leave.
            threshold: confidence from which an edge answer is accepted: a number, or a `Certificate` from
                `edgeroute.confidence.calibrate`, whose guarantee the reasons then quote; one, or one per edge model. Or the
                result of `router.calibrate`, with its certificate and its score.
            score: msp, margin, entropy, energy, quantile, or a function of one input's raw outputs, such as a `Learned`.
            mode: prefer_edge, only_edge, prefer_cloud or only_cloud; or shadow: as only_cloud, and of the audited requests
                (without `audit=`: of all) it is recorded what the edge would have answered.
            deadline: seconds over all legs; at the deadline the best available answer is returned.
            offline: if the cloud was needed and did not answer: "edge" returns the edge's answer, marked degraded; "queue" does
                too, and sends the request later; "stale" returns a stale cache entry; "raise" raises NoAnswer.
            egress: an `Egress`: which data classes may leave, by name or by a function of the input; consent, redaction.
            limits: a `Limits`: maximum spending per day, hour and minute.
            audit: an `Audit`: the share of answers that are compared with the cloud's in the background, and what an alarm does.
            trial: a `Trial`, or a list of them: another edge model or endpoint for a share of the requests, shown or hidden.
            cache: a `Cache` of answers.
            outbox: an `Outbox`; with offline="queue" and a `state` there is one by default.
            state: the folder for state that outlives the process: latencies, spending, the egress ledger, the outbox.
            trace: receiver of each answer's trace: a function, the path of a file of JSON lines, or a `Trace`.
            options: an `Options`: hedging, views, sensors and their rules, instruments, and what else few programs change.

        Raises:
            PolicyError: the arguments are invalid together.
            ModelMissing: there is no file at the edge's path.
        """
        if (certificate := getattr(threshold, "certificate", None)) is not None:
            threshold, score = certificate, threshold.score if score == "msp" else score  # type: ignore[union-attr]  # a result has both
        with limited_waits(LOCKED_S):
            self.engine = assemble(
                self._spawner(), awaits=self._awaits, edge=edge, cloud=cloud, threshold=threshold, score=score, mode=mode,
                deadline=deadline, offline=offline, egress=egress, limits=limits, cache=cache, outbox=outbox, audit=audit,
                trial=trial, state=state, trace=trace, **checked_options(options)._asdict(),
            )  # fmt: skip

    def _spawner(self) -> Spawn:
        """Return the function that executes steps in the background."""
        raise NotImplementedError

    @classmethod
    def from_policy(cls, path: str | Path, *, watch: bool = False, **more: Any) -> Self:
        """Make a router from a policy file: TOML, JSON or YAML, overridden by EDGEROUTE_ environment variables.

        Args:
            path: path of the file; relative paths in it start from its folder.
            watch: reload when the file changes; an invalid file is logged, and the old policy stays in force. Also follow the
                signed policy that `[fleet]` names.
            more: further arguments of the router and fields of `Options`, which override the file's, and `consent`, `redact`
                and `data_class` for its egress rules.
                With an `edge`, `cloud`, `threshold` or `state` here the file need not have one; in that state folder are
                all files that the policy has in its own.
                `instruments` are added to those of the file, whose ones of the same class are left out. None: no instruments.

        Raises:
            PolicyError: one message with all problems, and the nearest valid names.
        """
        if "options" in more:
            raise PolicyError("a policy file has these settings itself: give fields of Options one by one, as in order='fastest'")
        from edgeroute.router.policy_reload import PolicyFile

        file = PolicyFile(Path(path), more)
        if watch:
            file.begin()
        with file.named():
            self = cls(**with_options(file.arguments()))
        self._file = file
        if watch:
            file.watch(weakref.WeakMethod(self.reload))
            file.follow(weakref.WeakMethod(self.reload), self.engine)
        return self

    def __repr__(self) -> str:
        snapshot = self.engine.snapshot
        targets = (t.name if t.threshold is None else f"{t.name} from {t.threshold:.4g}" for t in snapshot.targets)
        return f"<{type(self).__name__} {snapshot.policy.mode}: {', '.join(targets)}>"

    def _repr_html_(self) -> str:
        """Return the page for a notebook."""
        return import_tool("measure.report.report_pages_and_results").router_page(self)  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Raise TypeError for `copy`, `deepcopy` and `pickle`: two routers would own the same threads, connections and files."""
        raise TypeError(f"a {type(self).__name__} is neither copied nor pickled: share it, or make one in each process")

    def reload(self) -> None:
        """Read the policy file again, and put it in force. Blocks.

        Requests in progress end under the policy they began with, but make no attempt at a call that the new one forbids.
        Unchanged models and connections are reused. Files on disk (state, cache, outbox, trace) stay as configured at
        construction.

        A router that was not made from a file reads the active versions of its models (`NAME.active`). A new version is warmed
        up, and tested on its canary inputs, before it is in force.

        Raises:
            PolicyError: the file is invalid, or there is none, and no model of a catalog either; the policy in force stays.
            ModelError: a new version failed; the policy in force stays.
            Closed: the router is closed.
        """
        if self._file is not None:
            self._file.reload(self.engine)
            return
        engine = self.engine
        if not any(member(b.model, "release") for _, b in edges_of(engine.snapshot)):
            raise PolicyError("this router was not made from a policy file, and has no model of a catalog: nothing to read again")

        with engine.replacing:
            _replace_arguments(engine, engine.arguments)

    def promote(self) -> None:
        """Make the edge model on trial the edge, and end its trial; clouds on trial stay.

        If both are versions of one model of a catalog, the one on trial is activated in the catalog, for later runs, too, and the
        router reloads. Otherwise the trial's certificate, or its threshold, replaces the router's.

        Raises:
            PolicyError: no shown edge is on trial; or the models are those of a policy file, which has to be changed.
            CatalogError, StoreError: the model's files are damaged, or the change cannot be written.
        """
        engine = self.engine
        other, now = engine.snapshot.shown, engine.snapshot
        if other is None:
            raise PolicyError("there is no edge on trial that could be promoted: give trial=Trial(edge=...)")
        tried, used = (member(s.backends[0].model, "release") for s in (other, now))  # type: ignore[attr-defined]  # of edges
        if tried is not None and used is not None and (tried.pointer.parent, tried.name) == (used.pointer.parent, used.name):
            from edgeroute.catalog.installed_versions_and_active_loading import Installed

            Installed(tried.pointer.parent).activate(tried.name, tried.version)
            self.reload()
        elif self._file is not None:
            raise PolicyError(f"{self._file.path}: make the edge of [trial] the path of [edge], and remove [trial]")
        else:
            limit = other.certificates[0]
            threshold = other.targets[0].threshold if limit is None else limit.certificate
            edge = next(trial.edge for trial in now.trials if trial.side == "edge")
            rest = [trial for trial in now.trials if trial.side == "cloud"]
            with engine.replacing:  # a reload at the same time does not put the model before in force again
                _replace_arguments(engine, engine.arguments._replace(edge=edge, threshold=threshold, trial=rest))

    def on_late(self, function: Late) -> Late:
        """Register `function(late)` for every cloud answer that arrives after its request was answered. A decorator.

        Called once per request, in a thread, in whichever run of the program the answer arrives. With an outbox an answer
        whose call did not end (the process was killed) is delivered again, with the same id. `function(late, tx)` makes
        it exactly once: its writes by `tx.execute(...)`, in the outbox's own file, are committed if and only if the answer
        is marked as delivered. With an outbox there is one such function: a later one replaces it.

        Raises:
            PolicyError: its signature does not fit.
        """
        self.engine.on_late(function)
        return function

    def link_up(self) -> None:
        """Report that the network is back, if the system does not: a modem behind a cable, a tunnel, a test.

        Endpoints whose breaker is open are probed at once, in the background, and due entries of the outbox are sent without
        spreading. Linux reports its own links, and then this is not needed. May be called from any thread, at any time; does
        nothing once the router is closed.
        """
        if not self.engine.closed:
            self.engine.health.link_up()

    def report(self, identity: str, truth: Any) -> bool:
        """Report the right value for an answer, by its `id`. With `Audit(labelled=True)` drift alarms test the loss of accuracy.

        Report it for all answers, or for a random part of them, not only for wrong ones. Labels of earlier runs are not taken.

        Args:
            identity: id of the answer.
            truth: right value; compared by `Audit.agrees`, or for equality.

        Returns:
            True if it counts: the edge gave that answer, and it was audited. At most 10,000 audited answers wait for a label.

        Raises:
            PolicyError: labels are not expected.
            BadInput: the label is None or NaN: it says nothing about the answer.
        """
        auditor = self.engine.auditor
        if auditor is None or not auditor.audit.labelled:
            raise PolicyError("labels are for drift alarms: give audit=Audit(labelled=True), or labelled = true in [audit]")
        if truth is None or (isinstance(truth, float) and truth != truth):  # noqa: PLR0124 - NaN
            raise BadInput(f"report takes the right value for an answer, not {truth}: leave out what is not known")
        return auditor.report(identity, truth)

    def stats(self) -> Stats:
        """Return counts, deferral rate, latency quantiles, bytes and cost, since the router was made."""
        return self.engine.stats()

    def status(self) -> Status:
        """Return statistics with limits, outbox, sensors and rules, as metrics and dashboards show them. Reads the outbox."""
        return status(self.engine)

    def fingerprints(self, edge: int = 0) -> dict[str, str]:
        """Return the fingerprints that a certificate for this router is bound to, for `calibrate(..., fingerprints=...)`.

        Raises IndexError for another number. Reads files.

        Args:
            edge: index of the edge model, from 0.
        """
        snapshot = self.engine.snapshot
        i = [i for i, t in enumerate(snapshot.targets) if t.side == "edge"][edge]
        return fingerprints(snapshot, i)

    def _calibration(self, x: Any, y: Any, **given: Any) -> Any:
        """Return the steps of `calibrate`, not begun; takes its arguments by name. Raises PolicyError for an invalid request."""
        steps = import_tool("measure.calibrate_evaluate_and_read_data")
        wanted = ("max_loss", "max_error", "max_defer", "sure", "per_class", "score", "ood")
        want = steps.checked_request(**{name: given.pop(name) for name in wanted})
        return steps.calibration(self.engine, x, y, want, policy=self._policy_name, **given)

    def _evaluation(self, x: Any, y: Any, **given: Any) -> Any:
        """Return the steps of `evaluate`."""
        return import_tool("measure.calibrate_evaluate_and_read_data").evaluation(
            self.engine, x, y, policy=self._policy_name, **given
        )

    @property
    def _policy_name(self) -> str:
        """Name of the policy file; empty: there is none."""
        return "" if self._file is None else self._file.path.name

    def _close(self) -> None:
        """Close the iterators over live sources, the policy file and the engine. Blocks; never raises.

        A no-op while the interpreter ends, in a `__del__`: its threads have ended, perhaps with locks that this would wait for.
        """
        if _ending():
            return
        _end_live(self._live)
        _close(self.engine, self._file)
        _end_live(self._live)  # those that were opened meanwhile

    def _watch(self, updates: W) -> W:
        """Register an iterator over a live source, by a weak reference, to end when the router is closed, and return it."""
        live: WeakSet[Any] = self.__dict__.setdefault("_live", WeakSet())  # atomic
        live.add(updates)
        if self.engine.closed:  # by another thread meanwhile, which may have looked before this one was there
            _end_live(live)
        return updates

    def __del__(self, _ending: Callable[[], bool] = _ending) -> None:
        """Close a router that was garbage collected without `close`, in the background, and warn.

        Not while the interpreter ends: its threads and files end with it.
        """
        engine: Engine | None = self.__dict__.get("engine")  # None: it could not be made
        if engine is None or engine.closed or _ending():
            return
        engine.closed = True
        in_background(partial(_close_dropped, engine, self._file))
        warnings.warn(f"unclosed router {self!r}", ResourceWarning, stacklevel=2, source=self)


def _end_live(live: WeakSet[Any] | None) -> None:
    """End the iterators over live sources."""
    for updates in [] if live is None else list_weakset(live):
        updates.router_closed()


_warned = threading.Event()


def _replace_arguments(engine: Engine, arguments: PolicyArguments) -> None:
    """Put a policy of these arguments in force, with the limits and audits as they are; effects and errors as `replace`."""
    from edgeroute.router.policy_reload import replace

    audit = None if engine.auditor is None else engine.auditor.audit
    replace(engine, arguments, engine.spending.limits, engine.observer.metered, audit)


def _close(engine: Engine, file: PolicyFile | None) -> None:
    """Stop watching the policy file, and close the engine."""
    if file is not None:
        file.close()
    engine.close()


def _close_dropped(engine: Engine, file: PolicyFile | None) -> None:
    """Close the policy file and engine of a router that was garbage collected unclosed; log a warning, once in a process."""
    if not _warned.is_set():
        _warned.set()
        log.warning("a router was dropped without close(): use `with Router(...)`, or call close() (later ones: ResourceWarning)")
    _close(engine, file)


def in_background(job: Callable[[], object]) -> None:
    """Call the job in a new thread, or here if there is none.

    For a `__del__`: the garbage collector may run within `threading`, whose locks a thread cannot take twice. So a thread without
    these locks starts the new thread.
    """
    try:
        _thread.start_new_thread(_start, (job,))
    except RuntimeError:
        job()


def _start(job: Callable[[], object]) -> None:
    """Call the job in a new thread, or here if there is none."""
    if start_thread("edgeroute-close", job) is None:
        job()
