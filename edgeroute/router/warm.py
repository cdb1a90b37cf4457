"""Warm-up of one model, and the trial of a new version of a catalog before it is in force."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.core.words import named
from edgeroute.edge.backend import EdgeBackend, in_new_session
from edgeroute.edge.members import member
from edgeroute.errors import EdgerouteError, ModelError
from edgeroute.router.build import Snapshot, edges_of, made_of
from edgeroute.system.logs import call_quietly

if TYPE_CHECKING:
    from edgeroute.catalog.installed import Release

Warming = Callable[[int, int, str], object]
"""Called with the number of models that are done, the number of all, and the name of the one that comes next."""
CHECK_S = 60.0
"""How long a run on zeros may take, seconds."""


class Warmed(NamedTuple):
    """The warm-up of one model."""

    name: str
    """Of the target."""
    load_s: float
    """Seconds that loading took; about 0: it was loaded already."""
    first_s: float | None
    """Seconds of the first run; None: it was given no input, and does not say what zeros would be one."""
    again_s: float | None
    """Seconds of a second one, on the same input."""

    def __str__(self) -> str:
        if self.first_s is None or self.again_s is None:
            return f"{self.name}: loaded in {1000 * self.load_s:.0f} ms, not run: give samples="
        times = f"first run {1000 * self.first_s:.1f} ms, then {1000 * self.again_s:.1f} ms"
        return f"{self.name}: loaded in {1000 * self.load_s:.0f} ms, {times}"


def warmed(name: str, backend: EdgeBackend, samples: Sequence[Any] = ()) -> Warmed:
    """Loads one model, and runs it on the samples, or on zeros.

    Raises:
        ModelError, BadInput: it cannot be loaded, or does not run.
    """
    found = _warmed(name, backend, samples)
    backend.warmth = str(found).partition(": ")[2]
    return found


def _warmed(name: str, backend: EdgeBackend, samples: Sequence[Any]) -> Warmed:
    begun = monotonic()
    load = member(backend.model, "load")
    if load is not None:
        load()
    loaded = monotonic()
    if backend.alone_async:
        return Warmed(name, loaded - begun, None, None)
    if samples:
        for x in samples:
            value(backend, x)
        first = monotonic()
        value(backend, samples[0])
        return Warmed(name, loaded - begun, (first - loaded) / len(samples), monotonic() - first)
    times = backend.time_on_zeros(CHECK_S)
    return Warmed(name, loaded - begun, *(times or (None, None)))


def value(backend: EdgeBackend, x: Any) -> Any:
    """The value that it gives for an input, in a turn of its own if it has a state.

    Raises:
        ModelError: it failed.
    """
    try:
        return in_new_session(backend.run_one, x, None).value
    except EdgerouteError:
        raise
    except Exception as e:
        raise ModelError(f"{backend.where} does not run: {named(e)}") from e


def rehearsed(made: Snapshot, old: Snapshot) -> None:
    """Tries new versions of a catalog before they are in force: each is loaded, warmed up, and has its canary inputs.

    Models of other files are loaded by their first request, as when a router is made.

    Raises:
        ModelError: one failed, and is closed; what is in force stays.
    """
    known = {id(backend) for backend in made_of(old).values()}
    fresh = [b for _, b in edges_of(made) if id(b) not in known]
    try:
        for backend in fresh:
            release: Release | None = member(backend.model, "release")
            if release is not None:
                _rehearse(backend, release)
                if release.trial and backend in made.backends:
                    _check_certificate(made, made.backends.index(backend), release)
    except BaseException:
        for backend in fresh:
            call_quietly(backend.close, "dropping a version that was tried")
        raise


def _rehearse(backend: EdgeBackend, release: Release) -> None:
    from edgeroute.catalog import update

    try:
        found = None if release.canaries is None else update.read_canaries(release.canaries)
        warmed(backend.name, backend, [] if found is None else found.inputs[:1])
        wrong = [] if found is None else found.wrong(lambda x: value(backend, x))
    except Exception as e:
        raise ModelError(f"{release} failed its warm-up: {named(e)}") from e
    if wrong:
        raise ModelError(f"{release} failed its canary inputs: {'; '.join(wrong[:3])}")


def _check_certificate(made: Snapshot, i: int, release: Release) -> None:
    promise = made.certificates[i]
    broken = None if promise is None or release.certificate is None else promise.broken()
    if broken is not None:
        raise ModelError(f"the certificate of {release} does not hold here: {broken}")


def viewed(snapshot: Snapshot, samples: Sequence[Any], backend: EdgeBackend) -> Sequence[Any]:
    """What that model takes of each sample."""
    for one in (snapshot, snapshot.trial):
        if one is not None and backend in one.backends:
            i = one.backends.index(backend)
            return [one.views.of(one.targets[i], i, x) for x in samples]
    return samples


async def warmed_async(name: str, backend: EdgeBackend, samples: Sequence[Any]) -> Warmed:
    """Load one model that is awaited, and run it on the samples."""
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
