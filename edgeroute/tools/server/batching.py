"""Dynamic batching: requests that arrive during a run of the model share the next one.

There is no delay to configure. An idle model runs a request at once, so that light traffic does not wait; under load,
requests gather during the run in progress, and batches grow with the load. A fixed delay would only add latency
under light traffic, and gain nothing under load.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import exp
from time import monotonic
from typing import Any, Protocol

import numpy as np

from edgeroute.edge.card import Array, Card
from edgeroute.errors import EdgerouteError, ModelError
from edgeroute.types import TensorSpec

# How loaded a served model is, as its replies say it: the header `endpoint-load-metrics`, in ORCA's text form.

WINDOW_S = 2.0
"""Time over which use is averaged, seconds."""


class Meter:
    """Used share of a model: the time in which runs go, weighted by how full their batches are. The clock is passed in."""

    def __init__(self) -> None:
        self._used, self._level, self._at = 0.0, 0.0, 0.0

    def level(self, level: float, now: float) -> None:
        """From this instant on, runs use that share, 0..1; 0: no run goes."""
        self._used, self._level, self._at = self.used(now), level, now

    def used(self, now: float) -> float:
        """The share at this instant, averaged with weights that fade by `WINDOW_S`."""
        fades = exp(-max(0.0, now - self._at) / WINDOW_S)
        return self._used * fades + self._level * (1 - fades)


def header(used: float, queue_s: float) -> dict[str, str]:
    """The header of a reply."""
    return {"endpoint-load-metrics": f"TEXT application_utilization={used:.3f}, named_metrics.queue_s={queue_s:.3f}"}


_log = logging.getLogger("edgeroute")
Tensors = Mapping[str, Array]


class Model(Protocol):
    """A model that is fed tensors, such as `edgeroute.tools.server.model.Fed`."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def card(self) -> Card:
        """Its card; an empty one if it has none."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes."""

    @property
    def run_feed(self) -> Callable[[dict[str, Array]], Any]:
        """Runs every input, name -> array; returns the card's output, or the only one; a mapping if there are several."""


class Full(EdgerouteError):
    """The queue is full. `headers`: the report of the model's load."""

    def __init__(self, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(text)
        self.headers = headers


class _Job:
    __slots__ = ("done", "feed", "key", "rows", "since")

    def __init__(self, feed: dict[str, Array], rows: int, done: asyncio.Future[Tensors]) -> None:
        self.feed, self.rows, self.done = feed, rows, done
        self.since = monotonic()
        self.key = tuple(array.shape[1:] for array in feed.values())


class Batcher:
    """Batches requests of one model: one run at a time, in a thread of its own. Everything else is on the event loop.

    Args:
        model: loaded.
        outputs: of the model.
        max_batch: rows merged into one run; a larger single request is run alone.
        queue: requests that may wait, beyond those being run.

    Attributes:
        merges: whether requests share runs: the first axis of every input and output is dynamic, and counts the inputs.
        requests, rows, runs: successful ones; rows / runs is the mean batch size.
        failed: failed requests.
    """

    def __init__(self, model: Model, outputs: tuple[TensorSpec, ...], *, max_batch: int, queue: int) -> None:
        self.model, self.max_batch, self.queue = model, max_batch, queue
        self.merges = model.card.batch_first and all(spec.shape[:1] == (-1,) for spec in (*model.inputs, *outputs))
        self.requests = self.rows = self.runs = self.failed = 0
        self._names = [spec.name for spec in outputs]
        self._waiting: deque[_Job] = deque()
        self._task: asyncio.Task[None] | None = None
        self._meter = Meter()
        self._thread = ThreadPoolExecutor(1, f"edgeroute-serve-{model.name}")

    @property
    def waiting(self) -> int:
        """Requests that wait for a run."""
        return len(self._waiting)

    def submit(self, feed: dict[str, Array], rows: int) -> asyncio.Future[Tensors]:
        """Queues tensors that fit the model, `rows` long in their first axis. Cancel the future to withdraw the request.

        Raises:
            Full: at once; ModelError: from the future.
        """
        if len(self._waiting) >= self.queue:
            self._waiting = deque(job for job in self._waiting if not job.done.done())
        if len(self._waiting) >= self.queue:
            raise Full(f"{self.model.name} is busy and {self.queue} requests wait already: try again later", self.load())
        job = _Job(feed, rows, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return job.done

    def load(self) -> dict[str, str]:
        """The header that reports the load: the used share, and how long the first that waits has done so."""
        now = monotonic()
        return header(self._meter.used(now), max(0.0, now - self._waiting[0].since) if self._waiting else 0.0)

    def close(self) -> None:
        """Ends the thread after the run in progress."""
        self._thread.shutdown(wait=False)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            full = min(1.0, sum(job.rows for job in batch) / self.max_batch) if self.merges else 1.0
            self._meter.level(full, monotonic())
            results = await loop.run_in_executor(self._thread, self._run, batch)
            for job, result in zip(batch, results, strict=True):
                if isinstance(result, ModelError):
                    self.failed += 1
                else:
                    self.requests += 1
                    self.rows += job.rows
                if job.done.done():
                    continue
                if isinstance(result, ModelError):
                    job.done.set_exception(result)
                else:
                    job.done.set_result(result)
        self._meter.level(0.0, monotonic())
        self._task = None

    def _take(self) -> list[_Job]:
        """Removes the oldest request, and those that can be batched with it. The rest keep their order: none is starved."""
        batch: list[_Job] = []
        rest: deque[_Job] = deque()
        rows = 0
        for job in self._waiting:
            if job.done.done():  # withdrawn
                continue
            if not batch or (self.merges and job.key == batch[0].key and rows + job.rows <= self.max_batch):
                batch.append(job)
                rows += job.rows
            else:
                rest.append(job)
        self._waiting = rest
        return batch

    def _run(self, batch: list[_Job]) -> Sequence[Tensors | ModelError]:
        """Runs a batch, in the thread; never raises. If it fails, its requests run one by one: one must not fail the others."""
        if len(batch) > 1:
            try:
                return self._together(batch)
            except Exception as e:  # noqa: BLE001 - e.g. out of memory for the batch; a persistent error is raised again below
                _log.warning("%d requests failed together, each is run by itself now: %s", len(batch), e)
        return [self._alone(job) for job in batch]

    def _alone(self, job: _Job) -> Tensors | ModelError:
        try:
            return self._once(job.feed)
        except ModelError as e:
            return e

    def _together(self, batch: list[_Job]) -> list[Tensors]:
        feeds = [job.feed for job in batch]
        out = self._once({name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
        total = sum(job.rows for job in batch)
        if any(array.shape[:1] != (total,) for array in out.values()):
            raise ModelError(f"{self.model.name} gave another number of rows than it was given")
        pieces: list[Tensors] = []
        at = 0
        for job in batch:
            pieces.append({name: array[at : at + job.rows] for name, array in out.items()})
            at += job.rows
        return pieces

    def _once(self, feed: dict[str, Array]) -> dict[str, Array]:
        try:
            out = self.model.run_feed(feed)
            self.runs += 1
            named = out if isinstance(out, dict) else {self._names[0]: out}
            return {name: _tensor(output) for name, output in named.items()}
        except ModelError:
            raise
        except Exception as e:  # any exception is the model's failure
            _log.exception("%s failed", self.model.name)
            raise ModelError(f"{self.model.name} failed with {type(e).__name__}; the server's log has the rest") from e


def _tensor(output: Array | list[Mapping[Any, float]]) -> Array:
    """An output as an array; mappings from class to probability [n] as [n, classes], in the order of the first."""
    if not isinstance(output, list):
        return output
    if not output or not all(isinstance(row, Mapping) for row in output):
        raise ModelError("an output is a sequence of tensors, which the protocol does not have: give it as one tensor")
    names = list(output[0])
    return np.array([[row[name] for name in names] for row in output], np.float32)
