"""`warm` of both routers: models are loaded, and run once, before the first request needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any

from edgeroute.edge.backend import EdgeBackend
from edgeroute.edge.members import member
from edgeroute.router.owner import EngineOwner
from edgeroute.router.snapshot import Snapshot, edges_of
from edgeroute.router.warm import Warmed, warmed

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
