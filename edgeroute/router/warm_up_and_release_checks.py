"""Warm-up of models, with zeros or samples, and checks of a catalog's new version by its canary inputs; both block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.core.error_codes_and_texts import error_text, failure_text
from edgeroute.edge.edge_backend import EdgeBackend, OffLoop, in_new_session
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.errors import EdgerouteError, ModelError
from edgeroute.router.policy_snapshot import Snapshot, backends_by_spec, edges_of
from edgeroute.system.sanitised_logs_and_contained_errors import call_quietly

if TYPE_CHECKING:
    from edgeroute.catalog.installed_versions_and_active_loading import Release

Warming = Callable[[int, int, str], object]  # called with (number of models done, number of all, name of the next)
CHECK_S = 60.0  # time limit of a run on zeros, seconds


class Warmed(NamedTuple):
    """Timings of one model's warm-up."""

    name: str  # name of the target
    load_s: float  # seconds that loading took; about 0: it was loaded already
    first_s: float | None  # seconds of the first run; None: no run, without samples and without an input shape
    again_s: float | None  # seconds of a second run on the same input; None: no run

    def __str__(self) -> str:
        if self.first_s is None or self.again_s is None:
            return f"{self.name}: loaded in {1000 * self.load_s:.0f} ms, not run: give samples="
        times = f"first run {1000 * self.first_s:.1f} ms, then {1000 * self.again_s:.1f} ms"
        return f"{self.name}: loaded in {1000 * self.load_s:.0f} ms, {times}"


def warm_up(name: str, backend: EdgeBackend, samples: Sequence[Any] = ()) -> Warmed:
    """Load one model, and run it on the samples, or on zeros; blocks. Return the timings, and store them in `backend.warmth`.

    Raises:
        ModelError, BadInput: the model cannot be loaded, or does not run.
    """
    timings = _load_and_run(name, backend, samples)
    backend.warmth = str(timings).partition(": ")[2]
    return timings


def _load_and_run(name: str, backend: EdgeBackend, samples: Sequence[Any]) -> Warmed:
    """Load one model, and run it on the samples and again on the first, or on zeros; blocks. Return the timings.

    On zeros for at most `CHECK_S` a run. An asynchronous model is only loaded; None for runs that were not made.
    """
    load_s, loaded = _load(backend), monotonic()
    if backend.alone_async:
        return Warmed(name, load_s, None, None)
    if samples:
        for x in samples:
            value(backend, x)
        first = monotonic()
        value(backend, samples[0])
        return Warmed(name, load_s, (first - loaded) / len(samples), monotonic() - first)
    return Warmed(name, load_s, *(backend.time_on_zeros(CHECK_S) or (None, None)))


def _load(backend: EdgeBackend) -> float:
    """Load a model, blocking, and return the seconds that it took; about 0 if it is loaded, or has no method for it."""
    begun = monotonic()
    if (load := member(backend.model, "load")) is not None:
        load()
    return monotonic() - begun


def value(backend: EdgeBackend, x: Any) -> Any:
    """Run a model on an input, in a new session if it has a state, and return its answer's value; blocks.

    Raises:
        ModelError: the run failed; also in place of other errors than edgeroute's.
        BadInput: the model cannot take the input.
    """
    try:
        return in_new_session(backend.run_one, x, None).value
    except EdgerouteError:
        raise
    except Exception as e:
        raise ModelError(f"{backend.where} does not run: {failure_text(e)}") from e


def check_releases(new: Snapshot, old: Snapshot) -> None:
    """Load and warm up a catalog's new versions, and run their canary inputs, before they are put in force; blocks.

    The certificate of one on trial has to hold. Models of other files are loaded by their first request, as when a router is
    made.

    Args:
        new: snapshot with the new versions.
        old: snapshot in force.

    Raises:
        ModelError: a version failed. As after any exception, all new models are closed; the snapshot in force stays.
    """
    known = {id(backend) for backend in backends_by_spec(old).values()}
    fresh = [b for _, b in edges_of(new) if id(b) not in known]
    try:
        for backend in fresh:
            release: Release | None = member(backend.model, "release")
            if release is not None:
                _rehearse(backend, release)
                if release.trial and release.certificate is not None and backend in new.backends:
                    bound = new.certificates[new.backends.index(backend)]
                    if bound is not None and (broken := bound.broken()) is not None:
                        raise ModelError(f"the certificate of {release} does not hold here: {broken}")  # noqa: TRY301 - as another failure
    except BaseException:
        for backend in fresh:
            call_quietly(backend.close, "dropping a version that was tried")
        raise


def _rehearse(backend: EdgeBackend, release: Release) -> None:
    """Warm up a release's model, and compare its answers to the canary inputs; raise ModelError if either fails. Blocks."""
    from edgeroute.catalog import catalog_client_and_updates as update

    try:
        canaries = None if release.canaries is None else update.read_canaries(release.canaries)
        warm_up(backend.name, backend, [] if canaries is None else canaries.inputs[:1])
        wrong = [] if canaries is None else canaries.wrong(lambda x: value(backend, x))
    except Exception as e:
        raise ModelError(f"{release} failed its warm-up: {error_text(e)}") from e
    if wrong:
        raise ModelError(f"{release} failed its canary inputs: {'; '.join(wrong[:3])}")


def models_to_warm(
    snapshot: Snapshot, samples: Sequence[Any], progress: Warming | None
) -> Iterator[tuple[str, EdgeBackend, Sequence[Any]]]:
    """Yield name and backend of each edge model, with its view of the samples; call `progress` before each, and at the end.

    Raises as `TargetViews.of`.
    """
    models = edges_of(snapshot)
    for i, (name, backend) in enumerate(models):
        if progress is not None:
            progress(i, len(models), name)
        yield name, backend, _view_samples(snapshot, samples, backend)
    if progress is not None:
        progress(len(models), len(models), "")


def _view_samples(snapshot: Snapshot, samples: Sequence[Any], backend: EdgeBackend) -> Sequence[Any]:
    """Return the model's view of each sample, by the policy or that of its trial.

    The samples themselves if the model is in neither. Raises as `TargetViews.of`.
    """
    for candidate in (snapshot, snapshot.trial):
        if candidate is not None and backend in candidate.backends:
            i = candidate.backends.index(backend)
            return [candidate.views.of(candidate.targets[i], i, x) for x in samples]
    return samples


async def warm_up_async(name: str, backend: EdgeBackend, samples: Sequence[Any], off_loop: OffLoop) -> Warmed:
    """Load one asynchronous model, blocking the event loop; await a run on each sample, and another on the first.

    Return the timings. Without samples, or without `run_async`, the model is only loaded. Checks of its answers are awaited by
    `off_loop`. Raises what the model raises.
    """
    load_s, loaded = _load(backend), monotonic()
    if not samples or backend.run_async is None:
        return Warmed(name, load_s, None, None)
    for x in samples:
        await backend.run_async([x], False, off_loop)
    first = monotonic()
    await backend.run_async([samples[0]], False, off_loop)
    return Warmed(name, load_s, (first - loaded) / len(samples), monotonic() - first)
