"""The contract of edge models as a suite: it passes on each kind of model, and says of a broken one what is wrong."""

# ruff: noqa: D101, D102 - what a broken model does is in its name

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from typing import ClassVar

import numpy as np
import pytest
from both import LONG

from edgeroute import BadInput, CallableModel, Ensemble, ModelError, OnnxModel, Prediction
from edgeroute.testing import ContractBroken, edge_contract
from edgeroute.types import TensorSpec

A, B = np.array([0.1, 0.9]), np.array([0.8, 0.3])
"""Two samples."""


class Sound:
    """A model that keeps the contract: logits are twice the input."""

    name = "sound"

    def take(self, inputs):
        """One array [n, 2]."""
        rows = [np.asarray(x) for x in inputs]
        for row in rows:
            if row.shape != (2,) or row.dtype.kind != "f" or not np.isfinite(row).all():
                raise BadInput("two finite numbers, please")
        return np.array(rows).reshape(-1, 2)

    def run(self, inputs, cancel=None):
        """All of them."""
        return self.take(inputs) * 2


class Labelled(Sound):
    labels: ClassVar = ["a", "b"]


class NoFile(Sound):
    files = ("/nowhere/weights.bin",)


class OddSettings(Sound):
    settings = ("threads", 1)


class NoCancel(Sound):
    def run(self, inputs):
        return self.take(inputs) * 2


class Unlike(Sound):
    """It answers another time otherwise."""

    runs = 0

    def run(self, inputs, cancel=None):
        self.runs += 1
        return self.take(inputs) * self.runs


class Empty(Sound):
    """An empty batch is an IndexError."""

    def run(self, inputs, cancel=None):
        inputs[0]
        return self.take(inputs) * 2


class Mixes(Sound):
    """It normalises over the batch."""

    def run(self, inputs, cancel=None):
        rows = self.take(inputs) * 2
        return rows * rows.mean() if len(rows) > 1 else rows


class LosesRows(Sound):
    """The batch's first row alone."""

    def run(self, inputs, cancel=None):
        return self.take(inputs)[:1] * 2


class OtherOne(Sound):
    """`run_one` without the factor."""

    def run_one(self, x, cancel=None):
        return self.take([x])


class OtherStream(Sound):
    """`stream` gives something else."""

    def stream(self, x, cancel=None):
        yield int(self.take([x]).argmax()) + 1
        return 0.9


class Writes(Sound):
    """It scales its input in place."""

    def run(self, inputs, cancel=None):
        out = self.take(inputs) * 2
        for x in inputs:
            np.multiply(x, 1.5, out=x)
        return out


class Swallows(Sound):
    """A wrapper as it is usually written."""

    def run(self, inputs, cancel=None):
        try:
            return super().run(inputs, cancel)
        except ValueError as e:
            raise ModelError(f"the runtime failed: {e}") from e


class SwallowsOne(Sound):
    """Its quicker way alone."""

    def run_one(self, x, cancel=None):
        try:
            return super().run([x], cancel)
        except ValueError:
            raise ModelError("the runtime failed") from None


class Natives(Sound):
    """A native error for another shape."""

    def run(self, inputs, cancel=None):
        if any(np.shape(x) != (2,) for x in inputs):
            raise RuntimeError("dimension mismatch")
        return super().run(inputs, cancel)


class Zeroes(Sound):
    """NaN is taken for zero."""

    def run(self, inputs, cancel=None):
        return super().run([np.nan_to_num(x) if np.asarray(x).dtype.kind == "f" else x for x in inputs], cancel)


class Spreads(Sound):
    """NaN in one row is NaN in all; it is refused nowhere."""

    def run(self, inputs, cancel=None):
        rows = np.array(self.take([np.nan_to_num(x, nan=7.5) if np.asarray(x).dtype.kind == "f" else x for x in inputs]) * 2)
        return rows + np.nan if (rows == 15).any() else rows


class Shares(Sound):
    """A run's input is kept in the model: of two runs at once both have the last."""

    def __init__(self):
        self.both = threading.Barrier(2)

    def run(self, inputs, cancel=None):
        self.rows = self.take(inputs)
        if cancel is None and sum(thread.name == "edge-contract-both" for thread in threading.enumerate()) > 1:
            self.both.wait(LONG)
        return self.rows * 2


class Sticks(Sound):
    """A stop is for all runs after it, too."""

    stopped = False

    def run(self, inputs, cancel=None):
        if cancel is not None:
            cancel.on_ask(lambda: setattr(self, "stopped", True))
        if self.stopped:
            raise ModelError("stopped")
        return super().run(inputs, cancel)


class Blames(Sound):
    """A stop is called bad input."""

    def run(self, inputs, cancel=None):
        if cancel is not None and cancel.asked:
            raise BadInput("stopped")
        return super().run(inputs, cancel)


class Halves(Sound):
    """A stopped run returns what it has."""

    def run(self, inputs, cancel=None):
        return super().run(inputs, cancel) * (0 if cancel is not None and cancel.asked else 1)


class NeverEnds(Sound):
    """A stopped run waits for ever."""

    def run(self, inputs, cancel=None):
        if cancel is not None and cancel.asked:
            threading.Event().wait()
        return super().run(inputs, cancel)


class StopsAll(Sound):
    """A stop ends the runs beside it, too, as with one terminate flag for all."""

    def __init__(self):
        self.lock, self.count, self.stopped = threading.Lock(), 0, threading.Event()

    def run(self, inputs, cancel=None):
        out = super().run(inputs, cancel)
        if cancel is None or cancel.asked or len(inputs) > 1:
            return out
        with self.lock:
            self.count += 1
            waits = self.count > 1 or np.array_equal(inputs[0], A)
        try:
            cancel.on_ask(self.stopped.set)
            if waits and self.stopped.wait(LONG):
                raise ModelError("terminated")
        finally:
            with self.lock:
                self.count -= 1
                if not self.count:
                    self.stopped.clear()
        return out


class Worker(Sound):
    """A thread of its own does the work; a child has none."""

    def __init__(self):
        from queue import SimpleQueue

        self.asked, self.told = SimpleQueue(), SimpleQueue()
        self.lock = threading.Lock()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        while True:
            inputs = self.asked.get()
            try:
                self.told.put(self.take(inputs) * 2)
            except BadInput as e:
                self.told.put(e)

    def run(self, inputs, cancel=None):
        with self.lock:
            self.asked.put(inputs)
            out = self.told.get()
        if isinstance(out, Exception):
            raise out
        return out


class Dies(Sound):
    """A child is killed by a signal."""

    def __init__(self):
        self.parent = os.getpid()

    def run(self, inputs, cancel=None):
        if os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().run(inputs, cancel)


class Reuses(Sound):
    """One array for the outputs of all runs."""

    def __init__(self):
        self.out = np.zeros((8, 2), np.float32)

    def run(self, inputs, cancel=None):
        found = super().run(inputs, cancel)
        self.out[: len(found)] = found
        return self.out[: len(found)]


class ReusesOne(Sound):
    """Of `run_one` alone."""

    def __init__(self):
        self.out = np.zeros((1, 2), np.float32)

    def run_one(self, x, cancel=None):
        self.out[:] = self.run([x], cancel)
        return self.out


class NeverTheSame(Sound):
    """Its settings have a new value each time."""

    @property
    def settings(self):
        return {"made": os.urandom(8)}


class Closes(Sound):
    """It is closed as the protocol says."""

    open = True

    def run(self, inputs, cancel=None):
        self.open = True
        return super().run(inputs, cancel)

    def close(self):
        """Nothing is left to do the second time."""
        self.open = False


class ClosesOnce(Closes):
    def close(self):
        if not self.open:
            raise RuntimeError("closed already")
        self.open = False


class StaysClosed(Closes):
    def run(self, inputs, cancel=None):
        if not self.open:
            raise RuntimeError("it is closed")
        return Sound.run(self, inputs, cancel)


class ClosesUnderRuns(Sound):
    """It says that its runs keep what they need, and they do not."""

    closes_after_runs = True

    def __init__(self):
        self.ended, self.open = threading.Event(), True

    def run(self, inputs, cancel=None):
        self.open, self.ended = True, threading.Event()
        out = super().run(inputs, cancel)
        if cancel is not None and not cancel.asked and np.array_equal(inputs, [A]):
            cancel.on_ask(self.ended.set)
            self.ended.wait(LONG)
            if not self.open:
                raise RuntimeError("it went away")
        return out

    def close(self):
        self.open = False
        self.ended.set()


BROKEN = {
    Labelled: ("members", "labels is a list: make it a tuple"),
    NoFile: ("members", "it names the file /nowhere/weights.bin, which is not there"),
    OddSettings: ("members", "settings is a tuple: make it a mapping"),
    NoCancel: ("members", r"run does not take \(inputs, cancel\)"),
    Unlike: ("run", "make it repeatable"),
    Empty: ("batch", r"it raised IndexError \(list index out of range\) for an empty batch: give no outputs"),
    Mixes: ("batch", "rows are separate"),
    LosesRows: ("batch", r"it raised BadReply \(3 inputs gave 1 outputs.*\) for a batch of 3 samples"),
    OtherOne: ("run_one and stream", "and run_one 1 at .*: they answer alike"),
    OtherStream: ("run_one and stream", r"and stream \[2\] at 0.9 in \[2\]: make them alike"),
    Writes: ("inputs", "it wrote to sample 0: inputs are the caller's"),
    Reuses: ("outputs", "a later run changed the outputs of an earlier one"),
    ReusesOne: ("outputs", "a later run_one changed the outputs of an earlier one"),
    NeverTheSame: ("members", "its settings are others at each look"),
    Swallows: (
        "bad input",
        r"BadInput became ModelError \(the runtime failed: two finite numbers, please\) \(run\), and the router .* cloud: let it",
    ),
    SwallowsOne: ("bad input", r"BadInput became ModelError \(the runtime failed\) \(run_one\)"),
    Natives: (
        "bad input",
        r"it raised RuntimeError \(dimension mismatch\) for an array \[2, 3, 2\] float64 .* cloud: raise BadInput",
    ),
    Zeroes: ("NaN", "an input with NaN is answered with the confidence .*: raise BadInput, or let NaN come through"),
    Spreads: ("NaN", "NaN in one row of a batch makes .* of another row's"),
    Shares: (
        "threads",
        "with two runs at once sample . got .*, and alone .*: keep a run's state in the run, or set parallel = 1",
    ),
    Sticks: ("cancel", r"after a run was stopped the next one raised ModelError \(stopped\): a stop is for one run alone"),
    Blames: ("cancel", r"a run that was told to stop raised BadInput \(stopped\), the caller's fault: raise another error"),
    Halves: ("cancel", "a run told to stop gave .*: raise an error instead"),
    StopsAll: ("deadline", r"a run beside one that was stopped at its deadline raised ModelError \(terminated\)"),
    Dies: ("fork", "a run in a forked child ended it by signal 15: make threads, locks and sessions anew there"),
    ClosesOnce: ("close", r"close, called again, raised RuntimeError \(closed already\)"),
    ClosesUnderRuns: ("close", r"a run during a close raised RuntimeError \(it went away\): closes_after_runs is for runs"),
    StaysClosed: ("close", r"after it was closed the next one raised RuntimeError \(it is closed\): a later run loads it again"),
}
"""Class -> the check that fails on it, and what it says."""


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_model(kind):
    """That check is the first that fails, in words that say what to do; what follows from it may fail after it."""
    check, says = BROKEN[kind]
    with pytest.raises(ContractBroken) as caught:
        edge_contract(kind(), [A, B])
    first, text = caught.value.problems[0]
    assert first == check
    assert re.search(says, text)
    assert f"- {check}: {text}" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "says"), [(NeverEnds, "a run that was told to stop does not end"), (Worker, "a run in a forked child does not end")]
)
def test_a_run_that_hangs(kind, says):
    """It is waited for no longer than it is said, and nothing is asked of it then."""
    with pytest.raises(ContractBroken, match=says) as caught:
        edge_contract(kind(), [A, B], timeout_s=2)
    assert len(caught.value.problems) == 1


MODELS = {
    "a class": Sound,
    "with close": Closes,
    "one at a time": lambda: CallableModel(lambda x: x * 2, parallel=1),
    "a function": lambda: lambda x: (int(x.argmax()), float(x.max())),
    "a generator": lambda: CallableModel(speaks),
    "a coroutine function": lambda: awaits,
    "an asynchronous generator": lambda: async_speaks,
    "an ensemble": lambda: Ensemble([lambda x: x, lambda x: x * 2]),
}


def speaks(x):
    """In pieces."""
    yield "ab"
    yield str(x.argmax())
    return float(x.max())


async def awaits(x):
    """Awaited."""
    await asyncio.sleep(0)
    return int(x.argmax()), float(x.max())


async def async_speaks(x):
    """Awaited, in pieces."""
    yield str(x.argmax())
    yield Prediction(None, float(x.max()), None)


@pytest.mark.parametrize("name", MODELS)
def test_a_sound_model(name):
    """Whatever kind it is, and again after it was closed."""
    model = MODELS[name]()
    for _ in range(2):
        edge_contract(model, [A, B])


def test_the_shipped_model(fashion):
    """As a path, as a model and in an ensemble."""
    samples = list(np.load(fashion / "sample.npz")["images"][:3])
    edge_contract(fashion / "edge.int8.onnx", samples, bad=[np.zeros((28, 27), np.uint8), "text", None])
    edge_contract(Ensemble([fashion / "edge.int8.onnx", OnnxModel(fashion / "edge.int8.onnx")]), samples[:2])


class Chained(CallableModel):
    """A function behind a wrapper that swallows."""

    def run(self, inputs, cancel=None):
        """As `Swallows`."""
        try:
            return super().run(inputs, cancel)
        except ValueError as e:
            raise ModelError("no") from e


def test_bad_input_that_is_said():
    """What follows from no sample is given: text, say. A plain function's own error counts there alone."""

    def strict(x):
        if not isinstance(x, str):
            raise BadInput("text, please")
        return x.upper(), 0.9

    def lax(x):
        return x.upper(), 0.9

    edge_contract(strict, ["a", "b"], bad=[1, None])
    edge_contract(lax, ["a", "b"])
    with pytest.raises(ContractBroken, match=r"bad input: it raised AttributeError .* for 1 \(run\)"):
        edge_contract(lax, ["a", "b"], bad=[1])
    with pytest.raises(ContractBroken, match=r"bad input: for 1 BadInput became ModelError \(no\) \(run\)"):
        edge_contract(Chained(strict), ["a", "b"], bad=[1])
    with pytest.raises(ContractBroken, match=r"bad input: it answered 'c' with 'C' at 0.9 \(run\): raise BadInput"):
        edge_contract(lax, ["a", "b"], bad=["c"])


def test_models_that_take_nan():
    """Where it is a missing value, that is said."""
    edge_contract(Zeroes(), [A, B], nan_is_missing=True)


def test_what_is_no_model():
    """A member that cannot be is said as the router says it; one sample tells nothing apart."""

    class Odd(Sound):
        kind = "numbers"

    with pytest.raises(ContractBroken, match="members: there is no kind of outputs 'numbers'"):
        edge_contract(Odd(), [A, B])
    with pytest.raises(ValueError, match="two samples or more, not 1"):
        edge_contract(Sound(), [A])


class AwaitedShares:
    """An asynchronous model whose runs mix."""

    name = "mixes"

    async def run(self, inputs, cancel=None):
        """The last input's."""
        self.rows = Sound().take(inputs)
        await asyncio.sleep(0)
        return self.rows * 2


class AwaitedSticks:
    """One that does not run again once a run was cancelled."""

    name = "sticks"

    def __init__(self):
        self.gone = False

    async def run(self, inputs, cancel=None):
        """Twice the input."""
        if self.gone:
            raise ModelError("gone")
        try:
            await asyncio.sleep(0.02)  # a stop comes within it
        except asyncio.CancelledError:
            self.gone = True
            raise
        return Sound().take(inputs) * 2


def test_a_broken_model_that_is_awaited():
    """The same checks, with tasks in place of threads."""
    with pytest.raises(ContractBroken, match="threads: with two runs at once sample"):
        edge_contract(AwaitedShares(), [A, B])
    with pytest.raises(ContractBroken, match=r"cancel: after a run was stopped the next one raised ModelError \(gone\)"):
        edge_contract(AwaitedSticks(), [A, B])


def test_specs_and_waiting():
    """An input by name may be NaN too; and the suite leaves no thread behind."""

    def function(feed):
        x = feed["x"]
        if not isinstance(x, np.ndarray) or x.shape != (2,) or x.dtype.kind != "f":
            raise BadInput("two numbers")
        return int(x.argmax()), float(x.max())

    before = set(threading.enumerate())
    edge_contract(CallableModel(function, inputs=[TensorSpec("x", "float64", (-1, 2))]), [{"x": A}, {"x": B}])
    edge_contract(awaits, [A, B])
    for thread in set(threading.enumerate()) - before:
        thread.join(LONG)
        assert not thread.is_alive()
