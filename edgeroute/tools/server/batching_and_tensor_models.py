"""`Batcher`, which merges inference requests for one model into runs in a thread; `Meter` of load; `TensorModel` of any model.

Requests that arrive during a run of the model share the next run. There is no delay to configure. An idle model runs a request at
once, so that light traffic does not wait; under load, requests gather during the run in progress, and batches grow with the load.
A fixed delay would only add latency under light traffic, and gain nothing under load.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from math import exp, prod
from time import monotonic
from typing import Any, NamedTuple

import numpy as np

from edgeroute.edge.edge_model_members_and_fingerprints import feed_of, has_async_runs, member
from edgeroute.edge.model_card import Array, Card
from edgeroute.edge.runtime_base import concatenate
from edgeroute.errors import BadInput, EdgerouteError, ModelError, PolicyError
from edgeroute.tools.event_loop_thread import DaemonThread, LoopThread
from edgeroute.types import EdgeModel, TensorSpec

# The load of a served model. Each reply reports it in the header `endpoint-load-metrics`, in ORCA's text form.

WINDOW_S = 2.0  # time constant of the average of a model's use, seconds


class Meter:
    """Running average of a model's use: the share of time with a run, weighted by how full the batches are.

    The caller passes the clock.
    """

    def __init__(self) -> None:
        self._used, self._level, self._at = 0.0, 0.0, 0.0

    def level(self, level: float, now: float) -> None:
        """Set the use from now on, 0 to 1; 0 means that nothing runs."""
        self._used, self._level, self._at = self.used(now), level, now

    def used(self, now: float) -> float:
        """Return the average use, 0 to 1, with weights that fade over `WINDOW_S`."""
        decay = exp(-max(0.0, now - self._at) / WINDOW_S)
        return self._used * decay + self._level * (1 - decay)


_log = logging.getLogger("edgeroute")
Tensors = Mapping[str, Array]


class Full(EdgerouteError):
    """Error of a request that is refused because the model's queue is full. `headers` report the model's load."""

    def __init__(self, text: str, headers: Mapping[str, str]) -> None:
        super().__init__(text)
        self.headers = headers


class _Job(NamedTuple):
    """One queued request: its tensors and number of rows, the future of its result, the shapes of a row, and its time."""

    feed: dict[str, Array]
    rows: int
    done: asyncio.Future[Tensors]
    shapes: tuple[tuple[int, ...], ...]
    since: float


class Batcher:
    """Queue of one model, which refuses requests beyond its length, and merges those that fit into the next run.

    One run at a time, in a thread that belongs to the batcher. Everything else happens on the event loop.

    Args:
        model: the loaded model.
        outputs: specifications of the model's outputs.
        max_batch: rows merged into one run; a larger single request is run alone.
        queue: requests that may wait, beyond those being run.

    Attributes:
        merges: True if requests share runs: the first axis of every input and output is dynamic, and counts the inputs.
        requests, rows, runs: counts of what succeeded; rows / runs is the mean batch size.
        failed: failed requests.
    """

    def __init__(self, model: TensorModel, outputs: tuple[TensorSpec, ...], *, max_batch: int, queue: int) -> None:
        self.model, self.max_batch, self.queue = model, max_batch, queue
        self.merges = model.card.batch_first and all(spec.shape[:1] == (-1,) for spec in (*model.inputs, *outputs))
        self.requests = self.rows = self.runs = self.failed = 0
        self._names = [spec.name for spec in outputs]
        self._waiting: deque[_Job] = deque()
        self._task: asyncio.Task[None] | None = None
        self._meter = Meter()
        self._thread = DaemonThread(f"edgeroute-serve-{model.name}", native=True)

    @property
    def waiting(self) -> int:
        """Number of requests that wait for a run."""
        return len(self._waiting)

    def submit(self, feed: dict[str, Array], rows: int) -> asyncio.Future[Tensors]:
        """Queue a request and return at once the future of its outputs; start the task that runs the queue if none is active.

        Cancel the future to withdraw the request: withdrawn ones leave a full queue first. Call it on the event loop.

        Args:
            feed: tensors that fit the model, name -> array.
            rows: length of their first axis.

        Raises:
            Full: at once, if the queue is full.
            ModelError, BadInput: from the future.
        """
        if len(self._waiting) >= self.queue:
            self._waiting = deque(job for job in self._waiting if not job.done.done())
        if len(self._waiting) >= self.queue:
            raise Full(f"{self.model.name} is busy and {self.queue} requests wait already: try again later", self.load())
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Job(feed, rows, done, tuple(array.shape[1:] for array in feed.values()), monotonic()))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        return done

    def load(self) -> dict[str, str]:
        """Return the header that reports the model's use and how long the oldest waiting request has waited."""
        now = monotonic()
        used, waits = self._meter.used(now), max(0.0, now - self._waiting[0].since) if self._waiting else 0.0
        return {"endpoint-load-metrics": f"TEXT application_utilization={used:.3f}, named_metrics.queue_s={waits:.3f}"}

    def close(self) -> None:
        """Shut down the thread without waiting; the run in progress ends first."""
        self._thread.shutdown(wait=False)

    async def _drain(self) -> None:
        """Run batches in the thread until the queue is empty; set each request's result or error, and count it.

        Also sets the meter: how full each run is, and 0 at the end. What else a run raises is logged, and becomes the
        `ModelError` of its requests; the queue goes on. Only a cancellation ends it early.
        """
        loop = asyncio.get_running_loop()
        while batch := self._take():
            full = min(1.0, sum(job.rows for job in batch) / self.max_batch) if self.merges else 1.0
            self._meter.level(full, monotonic())
            try:
                results = await loop.run_in_executor(self._thread, self._run, batch)
            except asyncio.CancelledError:
                raise
            except BaseException as e:  # noqa: BLE001 - no memory, or the thread is shut down
                _log.error("%s failed: %s", self.model.name, e)
                results = [ModelError(f"{self.model.name} could not be run ({type(e).__name__})")] * len(batch)
            for job, result in zip(batch, results, strict=True):
                settle: Callable[[Any], None] = job.done.set_result
                if isinstance(result, EdgerouteError):
                    self.failed, settle = self.failed + 1, job.done.set_exception
                else:
                    self.requests, self.rows = self.requests + 1, self.rows + job.rows
                if not job.done.done():  # else it was withdrawn
                    settle(result)
        self._meter.level(0.0, monotonic())

    def _take(self) -> list[_Job]:
        """Remove the oldest request from the queue, with those that can share its run, and return them; [] if the queue is empty.

        Those have the same shapes of a row, and `max_batch` rows together. Withdrawn requests are dropped. The others keep their
        order.
        """
        batch: list[_Job] = []
        rest: deque[_Job] = deque()
        rows = 0
        for job in self._waiting:
            if job.done.done():  # withdrawn
                continue
            if not batch or (self.merges and job.shapes == batch[0].shapes and rows + job.rows <= self.max_batch):
                batch.append(job)
                rows += job.rows
            else:
                rest.append(job)
        self._waiting = rest
        return batch

    def _run(self, batch: list[_Job]) -> Sequence[Tensors | EdgerouteError]:
        """Run a batch in the thread and return a result or error per request; logs a failure, never raises.

        If the merged run fails, each request runs alone, so that one cannot fail the others.
        """
        if len(batch) > 1:
            try:
                return self._run_merged(batch)
            except Exception as e:  # noqa: BLE001 - e.g. out of memory for the batch; a persistent error is raised again below
                _log.warning("%d requests failed together, each is run by itself now: %s", len(batch), e)
        return [self._run_alone(job) for job in batch]

    def _run_alone(self, job: _Job) -> Tensors | EdgerouteError:
        """Run one request; return its outputs, or the `ModelError` or `BadInput` as a value."""
        try:
            return self._run_model(job.feed)
        except (ModelError, BadInput) as e:
            return e

    def _run_merged(self, batch: list[_Job]) -> list[Tensors]:
        """Run the concatenated tensors of several requests and split the outputs by request, as views.

        Raises:
            ModelError: the model failed, or returned another number of rows.
            BadInput: the model refused an input.
        """
        feeds = [job.feed for job in batch]
        out = self._run_model({name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})
        ends = [*accumulate(job.rows for job in batch)]
        if any(array.shape[:1] != (ends[-1],) for array in out.values()):
            raise ModelError(f"{self.model.name} returned another number of rows than it received: correct the model")
        return [{name: array[start:end] for name, array in out.items()} for start, end in pairwise([0, *ends])]

    def _run_model(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Call the model, count the run if it succeeds, and return its outputs as arrays by name, a bare one under the first.

        Raises:
            BadInput: the model refused its input.
            ModelError: any other failure of the model, even SystemExit; one that is no ModelError is logged, and its details stay
                in the log.
        """
        try:
            out = self.model.run_feed(feed)
            self.runs += 1
            named = out if isinstance(out, dict) else {self._names[0]: out}
            return {name: _tensor(output) for name, output in named.items()}
        except (ModelError, BadInput):
            raise
        except BaseException as e:  # also a panic of an extension, and what would be Ctrl-C elsewhere: this thread gets none
            _log.exception("%s failed", self.model.name)
            raise ModelError(f"{self.model.name} failed with {type(e).__name__}; the server's log has the rest") from e


def _tensor(output: Array | list[Mapping[Any, float]]) -> Array:
    """Return an array as it is, or a list of mappings class -> probability as float32 [n, classes], in the first one's order.

    Raises:
        ModelError: it is a list of something else, or empty.
        KeyError: a later mapping lacks a class of the first.
    """
    if not isinstance(output, list):
        return output
    if not output or not all(isinstance(row, Mapping) for row in output):
        raise ModelError("an output is a sequence of tensors, which the protocol does not support: return it as one tensor")
    names = list(output[0])
    return np.array([[row[name] for name in names] for row in output], np.float32)


EDGES = "\0edges"  # key in a feed for the edge's answers, object [n], of a model that takes them. No input has this name.


SPECS = 'inputs=[TensorSpec("x", "float32", (-1, 784))]'


def tensor_model(model: EdgeModel) -> TensorModel:
    """Load a model and wrap it for serving: a coroutine's gets an event loop in a thread.

    One that declares no outputs is also run on zeros.

    Raises:
        PolicyError: it declares no inputs; the message shows how to.
        ModelError: it cannot be loaded, returns no tensors, or has a state for each stream.
    """
    card: Card | None = member(model, "card")
    if card is not None and card.state:
        raise ModelError(f"{model.name} cannot be served: it has a state for each stream, and requests belong to no stream")
    load = member(model, "load")
    if load is not None:
        load()
    if not member(model, "inputs"):
        raise PolicyError(f"{model.name} declares no inputs: declare them, batch axis first, as in CallableModel(f, {SPECS})")
    return TensorModel(model)


class TensorModel:
    """Adapter that runs a model on tensors: by its own `run_feed`, or row by row.

    A model whose `run` is a coroutine function gets an event loop in a thread. A model of a fixed number of rows takes any
    number: its runs are padded. A model without declared outputs is run on zeros.
    """

    def __init__(self, model: EdgeModel) -> None:
        self.name, self.model = model.name, model
        self.inputs: tuple[TensorSpec, ...] = tuple(member(model, "inputs"))
        run_feed, self._escalated = feed_of(model), member(model, "run_escalated")
        self.takes_edge = self._escalated is not None  # True if a feed has the edge's answers, under `EDGES`
        run_feed = None if self.takes_edge else run_feed
        self.run_feed: Callable[[dict[str, Array]], Any] = (
            self._run_rows if run_feed is None else lambda feed: run_feed(feed, None)
        )
        self._loop: LoopThread | None = None
        if run_feed is None and has_async_runs(model):
            self._loop = LoopThread("edgeroute-serve-loop", f"{model.name} failed")
        self.card: Card = member(model, "card") or Card()
        self.only: str | None = member(model, "output")
        self.outputs: tuple[TensorSpec, ...] = tuple(member(model, "outputs")) or self._outputs_on_zeros()
        self._size, self._whole = _fixed(self), self.run_feed
        if self._size:  # clients send as many rows as they have
            self.inputs, self.outputs = (tuple(map(_any_rows, specs)) for specs in (self.inputs, self.outputs))
            self.run_feed = self._run_padded

    def _run_rows(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Run the model on the feed's rows, each an array, or name -> array of several inputs, and return its outputs by name.

        A coroutine runs on the loop's thread, and is waited for. A model with `run_escalated` gets the edge's answer of each row,
        too, from the feed's key `EDGES`, None without it. Raises ModelError if the results are no tensors.
        """
        arrays = [feed[spec.name] for spec in self.inputs]
        count = len(arrays[0]) if arrays[0].ndim else 1
        if len(arrays) == 1:
            rows: list[Any] = list(arrays[0])
        else:
            rows = [{spec.name: array[i] for spec, array in zip(self.inputs, arrays, strict=True)} for i in range(count)]
        if self._escalated is not None:
            edges = feed.get(EDGES)
            return self._by_name(self._escalated(rows, [None] * count if edges is None else list(edges)))
        results = self.model.run(rows, None)
        return self._by_name(results if self._loop is None else self._loop.begin(results).result())

    def _run_padded(self, feed: dict[str, Array]) -> Any:
        """Run the feed in batches of the model's fixed size; repeat the last row to fill the last batch, and cut the rest off."""
        size, count = self._size, len(next(iter(feed.values())))
        missing = -count % size
        if missing:
            feed = {name: np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) for name, array in feed.items()}
        parts = [
            self._whole({name: array[start : start + size] for name, array in feed.items()})
            for start in range(0, count + missing, size)
        ]
        if isinstance(parts[0], Mapping):
            return {name: concatenate([part[name] for part in parts])[:count] for name in parts[0]}
        return concatenate(parts)[:count]

    def close(self) -> None:
        """Stop the event loop of a model with a coroutine function, without waiting; does not free the model."""
        if self._loop is not None:
            self._loop.close(0.0)

    def _by_name(self, results: Any) -> dict[str, Array]:
        """Return results, a mapping or the rows of one output, as arrays by name; one output has its declared name or "output".

        Raises:
            ModelError: a row is no number, array or list.
        """
        if isinstance(results, Mapping):
            return {str(name): np.asarray(array) for name, array in results.items()}
        if not isinstance(results, np.ndarray) and any(
            not isinstance(row, np.ndarray | np.generic | int | float | list) for row in results
        ):
            raise ModelError(f"{self.name} returns {type(results[0]).__name__}s, and only tensors can be served: return an array")
        outputs = member(self.model, "outputs")
        array = np.asarray(results)
        return {outputs[0].name if outputs else "output": array}

    def _outputs_on_zeros(self) -> tuple[TensorSpec, ...]:
        """Run a model that declares no outputs on zeros, and return its outputs' specifications, with a first axis of any size.

        Raises:
            PolicyError: the model fails on zeros, or its inputs are too large.
            EdgerouteError: the model's own, such as ModelError for results that are no tensors.
        """
        zeros = make_zeros(self.name, self.inputs)
        try:
            outputs = self.run_feed(zeros)
        except EdgerouteError:
            raise
        except Exception as e:
            raise PolicyError(f"{self.name} raised {type(e).__name__} on zeros: {e}. Declare its outputs, as its inputs") from e
        named = outputs if isinstance(outputs, Mapping) else {"output": np.asarray(outputs)}
        return tuple(TensorSpec(name, array.dtype.name, (-1, *array.shape[1:])) for name, array in named.items())


def _fixed(model: TensorModel) -> int:
    """Return the size of the first axis if all inputs and outputs share a fixed one that counts the rows; 0 otherwise."""
    sizes = {spec.shape[0] if spec.shape else 0 for spec in (*model.inputs, *model.outputs)}
    return max(0, sizes.pop()) if len(sizes) == 1 and model.card.batch_first else 0


def _any_rows(spec: TensorSpec) -> TensorSpec:
    """Return a specification whose first axis takes any size."""
    return spec._replace(shape=(-1, *spec.shape[1:]))


MOST_ZEROS = 1 << 28  # maximum elements of the inputs of a model that is served: it is run on zeros


def make_zeros(name: str, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """Return an array of zeros for each input, by name, of size 1 where an axis is dynamic.

    Raises:
        PolicyError: the inputs have more than 2^28 elements together.
    """
    shapes = [[max(1, size) for size in spec.shape] for spec in specs]
    if sum(map(prod, shapes)) > MOST_ZEROS:
        raise PolicyError(f"{name} cannot be served: its inputs have more than {MOST_ZEROS} elements")
    return {spec.name: np.zeros(shape, spec.dtype) for spec, shape in zip(specs, shapes, strict=True)}
