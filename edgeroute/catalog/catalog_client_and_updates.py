"""A device's models with their catalog (`Catalog`), and automatic updates of a router's model (`Updater`, `Canaries`).

`Updater` downloads, tries canary inputs, watches a trial and rolls back in a thread; `Canaries` are inputs with right answers,
read from an .npz file.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol
from weakref import finalize

import numpy as np

from edgeroute.catalog.catalog_entry import Entry, entries
from edgeroute.catalog.catalog_source_and_verification import Source, download_index, source_of
from edgeroute.catalog.installed_versions_and_active_loading import KNOWN, Installed, resolved_folder, trying
from edgeroute.catalog.model_folder_and_downloads import Pointer, Progress, download, replace_durably, translate_os_errors
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.errors import CatalogAway, CatalogError, EdgerouteError, ModelMissing, PolicyError, StoreError, check_number
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.system.contained_calls_and_tasks import ClosedByWith
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.thread_pool_and_workers import Worker
from edgeroute.system.untrusted_files import MOST_TEXT, named_errors, read_arrays, read_bytes, read_json

if TYPE_CHECKING:
    from typing_extensions import Self

# Catalog: the models of a device, and the place from which their updates are downloaded.

SOURCE = "source.json"
ROOT = "root.json"


class Catalog(Installed, ClosedByWith):
    """Models of a device, with a catalog from which they are updated. A `with` closes its connections at the end.

    Downloads are verified before they are used: signatures, expiry and order of the list (by TUF), size and hash of each file.
    Whatever fails, the active models stay.

    Args:
        store: folder of the device's models; created if missing.
        source: the catalog: a folder, or an address that begins with https://; None: the one of the last `refresh`.
        root: path of the publisher's root.json, which says whose signatures count; None: the one of the last `refresh`.
        verify: certificate authorities for HTTPS: True for the usual ones, or the path of a file.
        patience_s: maximum time without data from the catalog, or with next to none, seconds.

    Raises:
        PolicyError: the source is not a valid address.
    """

    def __init__(
        self,
        store: str | Path,
        source: str | Path | None = None,
        *,
        root: str | Path | None = None,
        verify: bool | str | Path = True,
        patience_s: float = 30.0,
    ) -> None:
        super().__init__(Path(store))
        self._source = None if source is None else source_of(source, verify=verify, patience_s=patience_s)
        self._source_argument, self._verify, self._patience_s, self._root = source, verify, patience_s, root

    def refresh(self) -> tuple[Entry, ...]:
        """Download the list of models, verify and store it, and return its entries. Also stores source and root for next time.

        Raises:
            CatalogAway: the catalog cannot be reached; the list of the last time is still there (`entries`).
            CatalogError: the catalog cannot be trusted.
            PolicyError: source or root is neither given nor stored.
            StoreError: the list cannot be stored, or another process or thread downloads.
        """
        with self.store.downloading():
            return self._refresh()

    def _refresh(self) -> tuple[Entry, ...]:
        """Download and verify the list, store it with the trusted root and the source, if given, and return its entries.

        For a caller that has the turn to download.
        """
        source, root = self.source(), self._read_root()
        text = download_index(source, self.store.folder / "metadata", root)
        listed = entries(text)
        with translate_os_errors(self.store.folder):
            replace_durably(self.store.folder / KNOWN, text)
            if self._root is not None:
                replace_durably(self.store.folder / ROOT, root)
            if self._source_argument is not None:
                where = self._source_argument if "://" in str(self._source_argument) else Path(self._source_argument).absolute()
                verify = self._verify if isinstance(self._verify, bool) else str(Path(self._verify).absolute())
                replace_durably(self.store.folder / SOURCE, json.dumps({"source": str(where), "verify": verify}).encode())
        return listed

    def source(self) -> Source:
        """Return the source: the given one, or that of the last `refresh`, which is read from the store once.

        Opens no connection.

        Raises:
            PolicyError: there is neither.
            CatalogError: the stored one cannot be read.
        """
        if self._source is None:
            unknown = PolicyError(f"{self.store.folder}: no catalog is known: give it once, by source=, or by --from")
            with named_errors(path := self.store.folder / SOURCE, unknown, CatalogError, "cannot be read: %s"):
                known = read_json(path)
            if not isinstance(known, dict) or not isinstance(known.get("source"), str):
                raise unknown
            self._source = source_of(known["source"], verify=known.get("verify", True), patience_s=self._patience_s)
        return self._source

    def _read_root(self) -> bytes:
        """Return the bytes of the root metadata to trust: of the given file, or else of that stored by the last `refresh`.

        Raises:
            PolicyError: the file cannot be read.
        """
        path = self.store.folder / ROOT if self._root is None else Path(self._root)
        try:
            return read_bytes(path, MOST_TEXT)
        except OSError as e:
            raise PolicyError(f"{path} cannot be read ({e.strerror}): give the publisher's root.json, by root= or --root") from e

    def pull(self, name: str, version: str | None = None, *, progress: Callable[[Progress], object] | None = None) -> Entry:
        """Download the list of models, and then a version if it is not here or damaged, and return its entry. Activates nothing.

        Blocks for the download. Deletes partial files of versions no longer listed.

        Args:
            name: name of the model.
            version: version to download; None: the newest that this edgeroute can run.
            progress: called with a `Progress` after each block; an exception from it ends the download.

        Raises:
            CatalogAway, CatalogError, PolicyError, StoreError: see `refresh`; a file differs from what was signed; the disk is
                full; another process or thread downloads.
        """
        with self.store.downloading():
            self._refresh()
            entry = self.entry(name, version)
            download(self.source(), self.store, entry, progress)
            self._tidy()
        return entry

    def _tidy(self) -> None:
        """Delete partial downloads of files that are in no entry of the stored list; errors of the disk are suppressed."""
        wanted = {file.sha256 for entry in self.entries() for file in entry.files}
        for part in (self.store.folder / "parts").glob("*"):
            if part.name.partition(".")[0] not in wanted:
                with suppress(OSError):
                    part.unlink()

    def download(self, entry: Entry, *, progress: Callable[[Progress], object] | None = None) -> None:
        """Download a version from the list that was read last, if it is not here or damaged; see `pull`. Activates nothing.

        Raises StoreError at once if another process or thread downloads.
        """
        with self.store.downloading():
            download(self.source(), self.store, entry, progress)
            self._tidy()

    def close(self) -> None:
        """Close the source's connections; a later call opens them again."""
        if self._source is not None:
            self._source.close()


LOOKS_S = 1.0  # interval of checks of a version on trial, seconds
MOST_STARTS = 3  # process starts with a version on trial after which that version is rolled back, as the cause of the crashes
Did = Literal["nothing", "updated", "refused", "rolled_back", "on_trial", "confirmed"]


class Step(NamedTuple):
    """Result of one step of an update.

    Attributes:
        did: on_trial: still to be confirmed; refused: the version failed before it was activated.
        text: result in words.
        version: version that the step was about.
    """

    did: Did
    text: str
    version: str = ""


class Reloads(Protocol):
    """Router, as far as an update needs it."""

    @property
    def engine(self) -> Any:
        """Parts of the router."""

    def reload(self) -> None:
        """Load the active version again."""

    def stats(self) -> Any:
        """Return the router's statistics."""


class Updater(ClosedByWith):
    """Keeps one model of a router up to date. In a `with` block, a thread checks the catalog at an interval.

    A new version is downloaded, loaded, warmed up, and tried on its canary inputs beside the active one; only then it is
    activated. For its first runs it is on trial: it is rolled back when too many of them fail, when an audit alarms, or when the
    process ends with it again and again. A version that failed is not tried again.

    Args:
        catalog: catalog of this device.
        name: name of the model; the router has `catalog.path(name)` as its edge, and a version is active.
        router: a `Router` or an `AsyncRouter`.
        every_s: seconds between two checks of the catalog.
        trial_runs: runs after which a version is confirmed.
        max_errors: share of them that may fail, beyond that of the version before.
        progress: called during downloads, see `Catalog.pull`.
        on_step: called from the thread with each `Step` that changed something.

    Raises:
        PolicyError: the router has no such model, or a number is not valid.
    """

    def __init__(
        self,
        catalog: Catalog,
        name: str,
        router: Reloads,
        *,
        every_s: float = 3600.0,
        trial_runs: int = 200,
        max_errors: float = 0.05,
        progress: Callable[[Progress], object] | None = None,
        on_step: Callable[[Step], object] | None = None,
    ) -> None:
        check_number("every_s", every_s, above=True)
        check_number("trial_runs", trial_runs, least=1, whole=True)
        check_number("max_errors", max_errors, most=1)
        self.catalog, self.name, self.router = catalog, name, router
        self._every_s, self._runs, self._most, self._progress, self._on_step = every_s, trial_runs, max_errors, progress, on_step
        self._worker = Worker("edgeroute-update", self._look_and_step, f"{name} was not updated")
        self._due_at = 0.0
        self._turn = threading.Lock()
        self._index()
        self._base = self._run_counts()
        self._usual = 0.0
        lock = ProcessLock(catalog.store.folder / f"{name}.trial.lock")
        self._leave = finalize(self, lock.leave)
        try:
            if lock.take():  # else another one is alive, and has not ended with it
                self._begin()
        except (OSError, StoreError) as e:  # a full disk, say
            log.warning("%s: crashes with a version on trial are not counted: %s", name, e)

    def _index(self) -> int:
        """Return the index of the model among the router's targets. Raise PolicyError if the router does not have it."""
        pointer = resolved_folder(self.catalog.path(self.name))
        for i, backend in enumerate(self.router.engine.snapshot.backends):
            release = member(backend.model, "release") if backend.side == "edge" else None
            if release is not None and resolved_folder(release.pointer) == pointer:
                return i
        raise PolicyError(f"the router has no {self.name} of this catalog: give it {self.catalog.path(self.name)} as its edge")

    def _run_counts(self) -> tuple[int, int]:
        """Return the number of runs of the model so far, and of those that failed."""
        leg = self.router.stats().legs[self._index()]
        return leg.started, leg.failed

    def _begin(self) -> None:
        """Handle a version that an earlier process was trying or had on trial when it ended.

        One being tried is refused. One on trial is rolled back after `MOST_STARTS` starts, else this start is counted.
        """
        now = self.catalog.active(self.name)
        if now.tried and now.tried != now.version:
            self.catalog.refuse(self.name, now.tried, "the process ended while it was tried")
            now = self.catalog.active(self.name)
        if now.trial >= MOST_STARTS:
            self._roll_back(now, f"the process ended {now.trial} times while it was on trial")
        elif now.trial:
            self.catalog.mark(self.name, trial=now.trial + 1)

    def step(self) -> Step:
        """Check the catalog once: download a newer version, try it by a reload of the router, and activate it on trial or refuse.

        Returns what was done, which is logged and passed to `on_step`. Blocks for another step. Does nothing if the model is
        pinned or on trial.

        Raises:
            CatalogAway, CatalogError, StoreError: the catalog cannot be reached or trusted, or the disk is full; the active
                version stays.
        """
        with self._turn:
            return self._report(self._step())

    def _step(self) -> Step:
        """Refresh the catalog; download a newer version, try it by a reload, and activate it on trial, or mark it as refused.

        Nothing is done if the model is pinned or on trial, or the version was refused before. If even the present version does
        not load, or the activation cannot be stored, the error is raised.
        """
        now = self.catalog.active(self.name)
        if now.pinned:
            return Step("nothing", f"{self.name} is pinned to {now.version}", now.version)
        if now.trial:
            return Step("nothing", f"{self.name} {now.version} is on trial", now.version)
        self.catalog.refresh()
        entry = self.catalog.entry(self.name)
        if entry.version == now.version:
            return Step("nothing", f"{self.name} {now.version} is the newest", now.version)
        if entry.version in dict(now.refused):
            why = dict(now.refused)[entry.version]
            return Step("nothing", f"{self.name} {entry.version} is not tried again: {why}", entry.version)
        self.catalog.download(entry, progress=self._on_download)
        self.catalog.mark(self.name, tried=entry.version)
        before = self._run_counts()
        try:
            with trying(self.catalog.path(self.name), entry.version):
                self.router.reload()
        except EdgerouteError as e:
            try:
                self.router.reload()  # without the new version
            except EdgerouteError:
                self.catalog.mark(self.name, tried="")  # this version is not at fault
                raise
            self.catalog.refuse(self.name, entry.version, str(e))
            return Step("refused", f"{self.name} stays at {now.version}: {e}", entry.version)
        try:
            self.catalog.activate(self.name, entry.version, trial=1)
        except EdgerouteError:
            self.router.reload()  # the version before, which is still the active one
            raise
        self._usual, self._base = before[1] / max(1, before[0]), self._run_counts()
        return Step("updated", f"{self.name} {entry.version} is active, on trial for {self._runs:,} runs", entry.version)

    def _on_download(self, progress: Progress) -> None:
        """Pass on the progress of a download; raise CatalogAway to stop it once this updater is closed."""
        if self._worker.closed:
            raise CatalogAway(f"the download of {self.name} was stopped, since this updater was closed; the next one resumes it")
        if self._progress is not None:
            self._progress(progress)

    def look(self) -> Step:
        """Check a version on trial once: confirm it after enough runs, or roll it back and reload the router.

        Reloads too if others activated a version. A confirmation deletes older versions. The step is logged and passed to
        `on_step`.

        Raises:
            CatalogError, StoreError: the active version cannot be read or written.
        """
        with self._turn:
            return self._report(self._look())

    def _look(self) -> Step:
        """Follow others' activations; roll back for failed runs or an audit's alarm; confirm after enough runs, and prune.

        Reloads the router for the first two.
        """
        now = self.catalog.active(self.name)
        if member(self.router.engine.snapshot.backends[self._index()].model, "release").version != now.version:
            self.router.reload()
            return Step("updated", f"{self.name} {now.version} was activated by somebody else", now.version)
        if not now.trial:
            return Step("nothing", f"{self.name} {now.version} is not on trial", now.version)
        started, failed = (a - b for a, b in zip(self._run_counts(), self._base, strict=True))
        if failed > (self._most + self._usual) * self._runs:
            return self._roll_back(now, f"{failed} of its first {started} runs failed")
        target = self.router.engine.snapshot.targets[self._index()].name
        for audit in self.router.stats().audits:
            if audit.target == target and audit.alarm:
                return self._roll_back(now, audit.alarm)
        if started < self._runs:
            return Step("on_trial", f"{self.name} {now.version}: {started} of {self._runs:,} runs, {failed} failed", now.version)
        self.catalog.mark(self.name, trial=0)
        with suppress(StoreError):  # somebody downloads now: another time
            self.catalog.prune(self.name)
        return Step("confirmed", f"{self.name} {now.version} is confirmed: {failed} of {started} runs failed", now.version)

    def _roll_back(self, now: Pointer, why: str) -> Step:
        """Roll back to the previous version and reload; confirm the present one if there is no previous one to use.

        Logs the latter as a warning.
        """
        try:
            pointer = self.catalog.rollback(self.name, why=why)
        except (CatalogError, ModelMissing) as e:  # damaged, or removed: this one is better than none
            self.catalog.mark(self.name, trial=0)
            log.warning("%s %s stays, although %s: %s", self.name, now.version, why, e)
            return Step("nothing", f"{self.name} {now.version} stays, although {why}: {e}", now.version)
        self.router.reload()
        return Step("rolled_back", f"{self.name} is back at {pointer.version}: {why}", now.version)

    def _report(self, step: Step) -> Step:
        """Log a step that changed something, and pass it to `on_step`. Return it."""
        if step.did in {"updated", "refused", "rolled_back", "confirmed"}:
            (log.info if step.did in {"updated", "confirmed"} else log.warning)("%s", step.text)
            if self._on_step is not None:
                self._on_step(step)
        return step

    def start(self) -> None:
        """Start a thread that checks the catalog now and at the interval, and versions on trial every second.

        A no-op if there is one.
        """
        self._worker.start()

    def _look_and_step(self) -> float:
        """Confirm, roll back or reload the version on trial, and check the catalog if `every_s` has passed; for the thread.

        The catalog is checked even if the first raises; errors pass. Returns `LOOKS_S`, the seconds until the next call.
        """
        due = monotonic() >= self._due_at
        try:
            self.look()
        finally:
            if due:
                self._due_at = monotonic() + self._every_s
                self.step()
        return LOOKS_S

    def close(self) -> None:
        """Stop checking, and wait until the thread has ended; closes the catalog's connections.

        A download in progress is stopped, and resumed another time. This end of the process is no crash on trial.
        """
        self._worker.close(0.0)
        self.catalog.close()
        self._worker.close()
        self.catalog.close()  # again: between two files it may have opened another connection
        self._leave()

    def __enter__(self) -> Self:
        self.start()
        return self


# Canary inputs: a few inputs with their right answers, on which a new version is tried before it is activated.

CLOSE = 1e-3  # relative and absolute difference of numbers that count as equal: devices sum in another order
NAMED = "input:"  # prefix of an input's name in a file, for a model with several inputs


class Canaries(NamedTuple):
    """Inputs with their right answers."""

    inputs: Sequence[Any]  # inputs, each as a router takes it
    answers: Sequence[Any]
    most_wrong: int  # number of wrong answers that is allowed

    def wrong(self, answer: Callable[[Any], Any]) -> list[str]:
        """Answer each input by a function, and return a text for each wrong answer; empty if no more are wrong than allowed.

        What the function raises passes.
        """
        texts = []
        for i, (x, right) in enumerate(zip(self.inputs, self.answers, strict=True)):
            value = answer(x)
            if not same(value, right):
                texts.append(f"canary input {i}: {value!s:.60}, and {right!s:.60} is right")
        return texts if len(texts) > self.most_wrong else []


def same(value: Any, right: Any) -> bool:
    """Return True if an answer is the right one: equal as text, or close as numbers.

    False if they cannot be compared; shapes have to be equal.
    """
    try:
        a, b = np.asarray(value), np.asarray(right)
        if np.issubdtype(b.dtype, np.inexact):
            alike = np.issubdtype(a.dtype, np.number) and a.shape == b.shape
            return alike and bool(np.allclose(a.astype(float), b, rtol=CLOSE, atol=CLOSE, equal_nan=True))
    except (TypeError, ValueError):
        return False
    return bool(a.shape == b.shape and (a.astype(str) == b.astype(str)).all())


def read_canaries(path: Path) -> Canaries:
    """Read canary inputs from an .npz file.

    The file has `inputs` [n, ...] (or `input:NAME` for each of several), `answers` [n, ...], and `most_wrong` unless all must be
    right.

    Raises:
        CatalogError: the file cannot be read, or lacks one of these.
    """
    try:
        arrays = read_arrays(path)
        named = {key.removeprefix(NAMED): value for key, value in arrays.items() if key.startswith(NAMED)}
        answers = arrays["answers"]
        rows = [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)]
        inputs = rows if named else list(arrays["inputs"])
        if len(inputs) != len(answers) or not inputs:
            raise ValueError(f"{len(inputs)} inputs and {len(answers)} answers")  # noqa: TRY301 - translated below, like the others
        return Canaries(inputs, list(answers), int(arrays.get("most_wrong", 0)))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CatalogError(f"{path} has no canary inputs with answers: {e}") from e
