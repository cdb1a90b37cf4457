"""A served model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException
from starlette.types import Scope

from edgeroute.cloud.datatypes import NAMES, TEXTS
from edgeroute.edge.card import Array, Card
from edgeroute.edge.members import feed_of, has_async_runs, member
from edgeroute.errors import BadInput, EdgerouteError, ModelError, PolicyError
from edgeroute.tools.server.batching import Batcher, Tensors
from edgeroute.tools.server.encoded import ENCODED, Decoder, Files
from edgeroute.tools.server.notify import BEATS, Notify
from edgeroute.tools.server.protocol import VERSION, Ask, describe, edge_answers
from edgeroute.types import EdgeModel, TensorSpec

# Any edge model as one that takes and gives tensors by name.

EDGES = "\0edges"
"""Where a feed has the edge's answer to each row, object [n], for a model that takes them: no input has this name."""
SPECS = 'inputs=[TensorSpec("x", "float32", (-1, 784))]'


def fed(model: EdgeModel) -> Fed:
    """The model, loaded, as one that can be served.

    Raises:
        PolicyError: it does not say what it takes; the message has what to write.
        ModelError: it cannot be loaded, or it gives no tensors.
    """
    card: Card | None = member(model, "card")
    if card is not None and card.state:
        raise ModelError(f"{model.name} cannot be served: it keeps a state for each stream, and a request is of no stream")
    load = member(model, "load")
    if load is not None:
        load()
    if not member(model, "inputs"):
        raise PolicyError(
            f"{model.name} cannot be served: it does not say what it takes. Give it inputs, with the batch axis first, as in "
            f"CallableModel(f, {SPECS}), or as an attribute of its class"
        )
    return Fed(model)


class Fed:
    """A model that is fed tensors: by its `run_feed`, or row by row."""

    def __init__(self, model: EdgeModel) -> None:
        self.name, self.model = model.name, model
        self.inputs: tuple[TensorSpec, ...] = tuple(member(model, "inputs"))
        own, self._escalated = feed_of(model), member(model, "run_escalated")
        self.takes_edge = self._escalated is not None
        """Whether a feed has the edge's answers, under `EDGES`."""
        own = None if self.takes_edge else own
        self.run_feed: Callable[[dict[str, Array]], Any] = self._rows if own is None else lambda feed: own(feed, None)
        self._loop: asyncio.AbstractEventLoop | None = None
        if own is None and has_async_runs(model):
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(self._loop,), name=f"edgeroute-serve-{model.name}-loop", daemon=True).start()
        self.card: Card = member(model, "card") or Card()
        self.only: str | None = member(model, "output")
        self.outputs: tuple[TensorSpec, ...] = tuple(member(model, "outputs")) or self._tried()
        self._size, self._whole = _fixed(self), self.run_feed
        if self._size:  # clients send as many rows as they have
            self.inputs, self.outputs = (tuple(map(_of_any_number, specs)) for specs in (self.inputs, self.outputs))
            self.run_feed = self._parts

    def _rows(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Rows as `run` takes them: an array, or, of several inputs, name -> array."""
        arrays = [feed[spec.name] for spec in self.inputs]
        count = len(arrays[0]) if arrays[0].ndim else 1
        if len(arrays) == 1:
            rows: list[Any] = list(arrays[0])
        else:
            rows = [{spec.name: array[i] for spec, array in zip(self.inputs, arrays, strict=True)} for i in range(count)]
        if self._escalated is not None:
            edges = feed.get(EDGES)
            return self._named(self._escalated(rows, [None] * count if edges is None else list(edges)))
        found = self.model.run(rows, None)
        return self._named(found if self._loop is None else asyncio.run_coroutine_threadsafe(found, self._loop).result())

    def _parts(self, feed: dict[str, Array]) -> Any:
        """Runs of the only number of rows that the model takes, the last row again where some are missing."""
        size, count = self._size, len(next(iter(feed.values())))
        missing = -count % size
        if missing:
            feed = {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in feed.items()}
        parts = [
            self._whole({name: array[at : at + size] for name, array in feed.items()}) for at in range(0, count + missing, size)
        ]
        if isinstance(parts[0], Mapping):
            return {name: _joined([part[name] for part in parts])[:count] for name in parts[0]}
        return _joined(parts)[:count]

    def close(self) -> None:
        """Ends the loop of a model that is awaited."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _named(self, found: Any) -> dict[str, Array]:
        if isinstance(found, Mapping):
            return {str(name): np.asarray(array) for name, array in found.items()}
        if not isinstance(found, np.ndarray) and any(
            not isinstance(row, np.ndarray | np.generic | int | float | list) for row in found
        ):
            raise ModelError(
                f"{self.name} gives {type(found[0]).__name__}s, and only tensors can be served: let it return an array, such as"
                " a probability for each class"
            )
        outputs = member(self.model, "outputs")
        array = np.asarray(found)
        return {outputs[0].name if outputs else "output": array}

    def _tried(self) -> tuple[TensorSpec, ...]:
        """The outputs of a run on zeros, of a model that does not declare them."""
        zeros = {spec.name: np.zeros([max(1, size) for size in spec.shape], spec.dtype) for spec in self.inputs}
        try:
            found = self.run_feed(zeros)
        except EdgerouteError:
            raise
        except Exception as e:
            raise PolicyError(
                f"{self.name} cannot be served: it does not say what it gives, and on zeros it raised {type(e).__name__}: {e}."
                " Give it outputs, as it has inputs"
            ) from e
        named = found if isinstance(found, Mapping) else {"output": np.asarray(found)}
        return tuple(TensorSpec(name, array.dtype.name, (-1, *array.shape[1:])) for name, array in named.items())


def _fixed(model: Fed) -> int:
    """The only number of rows that a model takes at a time, and each of its outputs has; 0: any, or it has no such axis."""
    sizes = {spec.shape[0] if spec.shape else 0 for spec in (*model.inputs, *model.outputs)}
    return max(0, sizes.pop()) if len(sizes) == 1 and model.card.batch_first else 0


def _of_any_number(spec: TensorSpec) -> TensorSpec:
    return spec._replace(shape=(-1, *spec.shape[1:]))


def _joined(parts: list[Any]) -> Any:
    """Outputs of several runs as those of one; some are lists."""
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [row for part in parts for row in part]


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


def platform_of(model: EdgeModel) -> str:
    """The model's platform in its metadata: what runs it, and its format."""
    runtime = member(model, "settings").get("runtime", "edgeroute")
    path = member(model, "path")
    return f"{runtime}_{type(model).__name__.lower() if path is None else Path(path).suffix.removeprefix('.')}"


class Served:
    """One model: its metadata and its batcher."""

    def __init__(self, model: EdgeModel, *, max_batch: int, queue: int) -> None:
        self.model = fed(model)
        self.name, self.inputs, only = self.model.name, self.model.inputs, self.model.only
        self.outputs = tuple(spec for spec in self.model.outputs if only in (None, spec.name))
        if odd := [spec.name for spec in self.inputs if spec.dtype not in NAMES]:
            raise ModelError(f"{self.name} cannot be served: its inputs {odd} are no numbers")
        self.decoders = {spec.name: Decoder(spec, self.model.card) for spec in self.inputs}
        self.about = describe(model.name, platform_of(model), self.inputs, self.outputs)
        self.batcher = Batcher(self.model, self.outputs, max_batch=max_batch, queue=queue)

    def submit(self, ask: Ask) -> asyncio.Future[Tensors]:
        """Queues a request; see `Batcher.submit`.

        Raises:
            BadInput: its inputs have different numbers of rows, or none; or the edge's answers are not as many.
        """
        if self.model.takes_edge:
            first = next(iter(ask.feed.values()))
            answers = edge_answers(ask.edges, len(first) if first.ndim else 1)
            ask = ask._replace(feed={**ask.feed, EDGES: answers})
        if not self.batcher.merges:
            return self.batcher.submit(ask.feed, 1)
        rows = {len(array) for array in ask.feed.values()}
        if len(rows) != 1 or 0 in rows:
            raise BadInput(f"the inputs have {sorted(rows)} rows: send the same number for each, at least 1")
        return self.batcher.submit(ask.feed, rows.pop())

    def decoded_bytes(self, ask: Ask) -> int | None:
        """How many bytes the files of a request make once they are decoded, as far as shapes tell; None: it has none."""
        found = [self.decoders[name].bytes * len(one) for name, one in ask.feed.items() if isinstance(one, Files)]
        return sum(found) if found else None

    def decoded(self, ask: Ask) -> Ask:
        """The request with arrays in place of its files. Takes long, as pictures do.

        Raises:
            BadInput, RuntimeMissing: as `Decoder`.
        """
        feed = {name: self.decoders[name](one) if isinstance(one, Files) else one for name, one in ask.feed.items()}
        return ask._replace(feed=feed)

    def described(self, name: str) -> dict[str, Any]:
        """Metadata under that name: the model's own, or the one by which it takes files of pictures."""
        if name == self.name:
            return self.about
        files = {"datatype": TEXTS, "shape": [-1, 1]}
        takes = [{**one, **files} if self.decoders[one["name"]].pictures else one for one in self.about["inputs"]]
        return {**self.about, "name": name, "inputs": takes}

    def close(self) -> None:
        """Ends its threads after the run in progress."""
        self.batcher.close()
        self.model.close()

    def stats(self) -> dict[str, Any]:
        """Counts since the start: inferences are rows, executions are runs of the model."""
        b = self.batcher
        requests = {"success": {"count": b.requests}, "fail": {"count": b.failed}}
        counts = {"inference_count": b.rows, "execution_count": b.runs, "inference_stats": requests}
        return {"name": self.name, "version": VERSION, **counts}


def find_model(served: Mapping[str, Served], scope: Scope) -> Served:
    """The model that a path names.

    Raises:
        HTTPException: 404, there is none.
    """
    name, which = scope["path_params"]["name"], scope["path_params"].get("version", VERSION)
    plain = name.removesuffix(ENCODED)
    if name not in served and plain in served and any(one.pictures for one in served[plain].decoders.values()):
        name = plain
    if name not in served:
        raise HTTPException(404, f"there is no model {name!r} here, only {', '.join(sorted(served))}")
    if which != VERSION:
        raise HTTPException(404, f"{name} has no version {which!r}, only {VERSION}")
    return served[name]


# Watches served models: whether each still answers.


async def watch(served: Iterable[Served], notify: Notify) -> None:
    """Says that the service is ready, once each model has run on zeros, and from then on that it is alive while all run.

    A model that does not run on zeros is only asked whether it ends. Runs for clients count: under load nothing is added to them.
    """
    models = [_Watched(one) for one in served]
    for one in models:
        await one.tried(None)
    notify.ready(f"serving {', '.join(one.served.name for one in models)}")
    if notify.watchdog_s is None:
        return
    period = notify.watchdog_s / BEATS
    while True:
        dead = [one.served.name for one, alive in zip(models, await _all(models, period), strict=True) if not alive]
        if dead:
            notify.status(f"no answer from {', '.join(dead)}")
        else:
            notify.alive()
        await asyncio.sleep(period)


async def _all(models: list[_Watched], seconds: float) -> list[bool]:
    return await asyncio.gather(*(one.tried(seconds) for one in models))


class _Watched:
    """One model."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.zeros = {spec.name: np.zeros([max(1, size) for size in spec.shape], spec.dtype) for spec in served.inputs}
        self.takes_zeros: bool | None = None
        self._runs = -1

    async def tried(self, seconds: float | None) -> bool:
        """Whether it has answered anything since the last time, or answers zeros now, within so many seconds."""
        runs, self._runs = self._runs, self.served.batcher.runs
        if self.takes_zeros and runs != self._runs:
            return True
        answered = False
        with suppress(asyncio.TimeoutError):
            answered = await asyncio.wait_for(self._answer(), seconds)
        if self.takes_zeros is None:
            self.takes_zeros = answered
        alive = answered or self.served.batcher.runs != self._runs
        self._runs = self.served.batcher.runs
        return alive

    async def _answer(self) -> bool:
        """Whether it answers, or, if it has never taken zeros, at least ends."""
        try:
            await self.served.submit(Ask(self.zeros, [], None))
        except EdgerouteError:
            return self.takes_zeros is False
        return True
