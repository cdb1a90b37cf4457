"""Base of both routers: the methods that need no pump."""

from __future__ import annotations

import _thread
import logging
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.edge.backend import EdgeBackend
from edgeroute.edge.members import member
from edgeroute.errors import BadInput, PolicyError
from edgeroute.observe.stats import Stats, Status
from edgeroute.router.build import Snapshot, edges_of, fingerprints
from edgeroute.router.engine import Engine, status
from edgeroute.router.reload import PolicyFile, replace
from edgeroute.router.warm import Warmed, warmed

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("edgeroute")
Late = TypeVar("Late", bound=Callable[..., object])


class EngineOwner:
    """Owns an engine, and the policy file that it was made from.

    Attributes:
        engine: the router's parts.
    """

    engine: Engine
    _file: PolicyFile | None = None

    @classmethod
    def from_policy(cls, path: str | Path, *, watch: bool = False, **more: Any) -> Self:
        """Makes a router from a policy file: TOML, JSON or YAML, overridden by EDGEROUTE_ environment variables.

        Args:
            path: of the file; relative paths in it start from its folder.
            watch: reload when the file changes; an invalid file is logged, and the old policy stays in force.
            more: further arguments of the router, which override the file's, and `consent` and `redact` for its egress rules.
                With an `edge`, `cloud` or `threshold` here the file need not have one.
                `instruments` are added to those of the file; of one kind there is only yours. None: there are none.

        Raises:
            PolicyError: one message with all problems, and the nearest valid names.
        """
        file = PolicyFile(Path(path), more)
        with file.named():
            self = cls(**file.arguments())
        self._file = file
        if watch:
            file.watch(weakref.WeakMethod(self.reload))
        return self

    def reload(self) -> None:
        """Reads the policy file again.

        Requests in progress end under the policy they began with; unchanged models and connections are reused. What is on disk
        (state, cache, outbox, trace) stays as configured at construction.

        A router that was not made from a file looks for the active versions of its models (`NAME.active`). A new version is
        warmed up, and tried on its canary inputs, before it is in force.

        Raises:
            PolicyError: the file is invalid, or there is none, and no model of a catalog either; the policy in force stays.
            ModelError: a new version failed, likewise.
        """
        if self._file is not None:
            self._file.reload(self.engine)
            return
        engine = self.engine
        if not any(member(b.model, "release") for _, b in edges_of(engine.snapshot)):
            raise PolicyError("this router was not made from a policy file, and has no model of a catalog: nothing to read again")
        with engine.replacing:
            audit = None if engine.auditor is None else engine.auditor.audit
            replace(engine, engine.rebuild, engine.spending.limits, engine.observer.metered, audit)

    def promote(self) -> None:
        """Makes the model of arm B the edge model, and ends the comparison (`AB`).

        Where both are versions of one model of a catalog, B's is activated: it stays so after a restart.

        Raises:
            PolicyError: there is no arm B; or the models are those of a policy file, which has to be changed.
            CatalogError, StoreError: B's files are damaged, or the change cannot be written.
        """
        engine = self.engine
        other, now = engine.snapshot.other, engine.snapshot
        if engine.arms is None or other is None:
            raise PolicyError("there is no arm B that could be promoted: give ab=AB(...)")
        one, own = (member(s.backends[0].model, "release") for s in (other, now))  # type: ignore[attr-defined]  # of edges
        if one is not None and own is not None and (one.pointer.parent, one.name) == (own.pointer.parent, own.name):
            from edgeroute.catalog.installed import Installed

            Installed(one.pointer.parent).activate(one.name, one.version)
            self.reload()
        elif self._file is not None:
            raise PolicyError(f"{self._file.path}: make the path of [ab] that of [edge], and remove [ab]")
        else:
            limit = other.certificates[0]
            threshold = other.targets[0].threshold if limit is None else limit.certificate
            with engine.replacing:  # a reload at the same time does not put the model before in force again
                engine.rebuild = partial(engine.rebuild, edge=engine.arms.ab.model, threshold=threshold, ab=None)
                audit = None if engine.auditor is None else engine.auditor.audit
                replace(engine, engine.rebuild, engine.spending.limits, engine.observer.metered, audit)

    def on_late(self, function: Late) -> Late:
        """Registers `function(late)` for every cloud answer that arrives after its request was answered. A decorator.

        Called once per request, in a thread, in whichever run of the program the answer arrives. With an outbox an answer
        whose call did not end (the process was killed) is delivered again, with the same id. `function(late, tx)` makes
        it exactly once: what it writes by `tx.execute(...)`, in the outbox's own file, is committed if and only if the answer
        is marked as delivered. With an outbox there is one such function: a later one replaces it.

        Raises:
            PolicyError: its signature does not fit.
        """
        self.engine.on_late(function)
        return function

    def link_up(self) -> None:
        """Says that the network is back, where the system does not tell: a modem behind a cable, a tunnel, a test.

        Endpoints whose breaker is open are probed at once, in the background, and what is due in the outbox is sent without
        spreading. Linux tells of its own links, and then this is not needed. May be called from any thread, at any time.
        """
        if not self.engine.closed:
            self.engine.health.link_up()

    def report(self, identity: str, truth: Any) -> bool:
        """Reports the right value for an answer, by its `id`: with `Audit(labelled=True)` drift alarms test the loss of accuracy.

        Report it for all answers, or for a random part of them, not only for wrong ones. Labels of earlier runs are not taken.

        Args:
            identity: of the answer.
            truth: what the answer's value should be; compared by `Audit.agrees`, or for equality.

        Returns:
            Whether it was of use: the edge gave that answer, and it was audited. At most 10,000 audited answers wait for a label.

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
        """Counts, deferral rate, latency quantiles, bytes and cost, since the router was made."""
        return self.engine.stats()

    def status(self) -> Status:
        """Statistics with limits, outbox, sensors and rules, as metrics and dashboards show them. Reads the outbox's file."""
        return status(self.engine)

    def fingerprints(self, edge: int = 0) -> dict[str, str]:
        """Fingerprints that a certificate for this router is bound to, for `calibrate(..., fingerprints=...)`.

        Args:
            edge: index of the edge model, from 0.
        """
        snapshot = self.engine.snapshot
        i = [i for i, t in enumerate(snapshot.targets) if t.side == "edge"][edge]
        return fingerprints(snapshot, i)

    @property
    def _policy_name(self) -> str:
        """The name of the policy file; empty: there is none."""
        return "" if self._file is None else self._file.path.name

    def _close(self) -> None:
        _close(self.engine, self._file)

    def __del__(self, _ending: Callable[[], bool] = sys.is_finalizing) -> None:
        """Closes a router that was dropped without `close`, in the background, and says so.

        Not while the interpreter ends: its threads and files end with it.
        """
        engine: Engine | None = self.__dict__.get("engine")  # None: it could not be made
        if engine is None or engine.closed or _ending():
            return
        engine.closed = True
        _in_background(partial(_close_dropped, engine, self._file))
        warnings.warn(f"unclosed router {self!r}", ResourceWarning, stacklevel=2, source=self)


_told = threading.Event()


def _close(engine: Engine, file: PolicyFile | None) -> None:
    if file is not None:
        file.close()
    engine.close()


def _close_dropped(engine: Engine, file: PolicyFile | None) -> None:
    if not _told.is_set():
        _told.set()
        log.warning(
            "a router was dropped without close(), and is closed now: use `with Router(...)`, or call close(); said once, each "
            "further one is a ResourceWarning"
        )
    _close(engine, file)


def _in_background(job: Callable[[], object]) -> None:
    """Calls it in a thread, or here if there is none.

    For a `__del__`: the garbage collector may call that inside `threading` itself, whose locks no thread takes twice. So the new
    thread is started by another one, which takes none of them.
    """
    try:
        _thread.start_new_thread(_start, (job,))
    except RuntimeError:
        job()


def _start(job: Callable[[], object]) -> None:
    try:
        threading.Thread(target=job, name="edgeroute-close", daemon=True).start()
    except RuntimeError:
        job()


# `warm` of both routers: models are loaded, and run once, before the first request needs them.

Progress = Callable[[int, int, str], object]
"""Called with the number of models that are done, the number of all, and the name of the one that comes next."""


class Warming(EngineOwner):
    """`warm` of `Router`."""

    def warm(self, samples: Sequence[Any] = (), *, progress: Progress | None = None) -> list[Warmed]:
        """Loads each model on the device and runs it twice, so that the first request does not wait for that.

        Nothing is sent, and nothing is counted.

        Args:
            samples: inputs as of `infer`; empty: zeros in the shape that a model says it takes.
            progress: called as `progress(done, of, name)` before each model, and once at the end with an empty name.

        Raises:
            ModelError: a model cannot be loaded, or does not run on a sample.
            BadInput: a sample is no input of a model.
        """
        snapshot, found = self.engine.snapshot, list[Warmed]()
        models = edges_of(snapshot)
        for i, (name, backend) in enumerate(models):
            if progress is not None:
                progress(i, len(models), name)
            found.append(warmed(name, backend, _viewed(snapshot, samples, backend)))
        if progress is not None:
            progress(len(models), len(models), "")
        return found


class AsyncWarming(EngineOwner):
    """`warm` of `AsyncRouter`."""

    async def warm(self, samples: Sequence[Any] = (), *, progress: Progress | None = None) -> list[Warmed]:
        """As `Router.warm`; models that are async are awaited, others run in a thread."""
        from edgeroute.router.off_loop import in_edge_thread

        found, models = list[Warmed](), edges_of(self.engine.snapshot)
        for i, (name, backend) in enumerate(models):
            if progress is not None:
                progress(i, len(models), name)
            if backend.run_async is not None:
                found.append(await _awaited(name, backend, _viewed(self.engine.snapshot, samples, backend)))
            else:
                call = partial(warmed, name, backend, _viewed(self.engine.snapshot, samples, backend))
                found.append(await in_edge_thread(self.engine.edge_threads, call))
        if progress is not None:
            progress(len(models), len(models), "")
        return found


def _viewed(snapshot: Snapshot, samples: Sequence[Any], backend: EdgeBackend) -> Sequence[Any]:
    """What that model takes of each sample."""
    for one in (snapshot, snapshot.candidate, snapshot.other):
        if one is not None and backend in one.backends:
            i = one.backends.index(backend)
            return [one.views.of(one.targets[i], i, x) for x in samples]
    return samples


async def _awaited(name: str, backend: EdgeBackend, samples: Sequence[Any]) -> Warmed:
    begun = monotonic()
    load = member(backend.model, "load")
    if load is not None:
        load()
    loaded = monotonic()
    if not samples or backend.run_async is None:
        return Warmed(name, loaded - begun, None, None)
    for x in samples:
        await backend.run_async([x], many=False)
    first = monotonic()
    await backend.run_async([samples[0]], many=False)
    return Warmed(name, loaded - begun, (first - loaded) / len(samples), monotonic() - first)
