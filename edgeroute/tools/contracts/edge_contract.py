"""Contract of edge models: a suite of checks that the author of a runtime runs on one of its models (`edge_contract`).

Also what `endpoint_contract` shares: comparisons, `check_all` and `ContractBroken`.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute.core.stream_walk import join_pieces
from edgeroute.core.walk import Prediction
from edgeroute.edge.callable_model import CallableModel
from edgeroute.edge.edge_model_members_and_fingerprints import files, fingerprint, member
from edgeroute.edge.runtimes_variants_ensemble import Ensemble, load
from edgeroute.errors import BadInput, EdgerouteError
from edgeroute.system.input_copies import copy_input
from edgeroute.tools.contracts.model_runs_that_may_hang import Ask, Hangs, Running, Token
from edgeroute.types import EdgeModel, StopToken

# Comparison, damage and description of a model's answers and inputs.


def error_text(error: BaseException) -> str:
    """Return an exception in words. Only its type and first line, cut to 200 characters."""
    text = str(error).strip().splitlines()
    return type(error).__name__ + (f" ({text[0][:200]})" if text else "")


def shown(answer: Prediction) -> str:
    """Return an answer in words."""
    sure = "" if answer.confidence is None else f" at {answer.confidence:.4g}"
    return f"{short(answer.value)}{sure}"


def short(x: Any) -> str:
    """Return a value in words, shortened. Arrays by shape and dtype."""
    if isinstance(x, np.ndarray):
        return f"an array {list(x.shape)} {x.dtype}"
    text = repr(x)
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - a line's worth


def equal(a: Any, b: Any, rtol: float) -> bool:
    """Return True if two values are the same within the tolerance; NaN equals itself.

    Arrays of different shapes differ; other types are compared by ==.
    """
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(equal(a[key], b[key], rtol) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(equal(x, y, rtol) for x, y in zip(a, b, strict=True))
    if not (numbers(a) and numbers(b)):
        return bool(np.all(a == b))
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape:
        return False
    return bool(np.allclose(first, second, rtol=rtol, atol=rtol / 100, equal_nan=True))


def same(a: Prediction, b: Prediction, rtol: float) -> bool:
    """Return True if two predictions have the same value and confidence within the tolerance."""
    return equal(a.value, b.value, rtol) and equal(a.confidence, b.confidence, rtol)


def numbers(x: Any) -> bool:
    """Return True for a real number or bool, or a numpy array of them; False for a list."""
    return isinstance(x, int | float | np.number | np.ndarray) and np.asarray(x).dtype.kind in "fiub"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception, and those that it is chained to as causes or contexts."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def bad_of(sample: Any) -> list[Any]:
    """Return inputs derived from a sample that are not valid: of another rank, and text for numbers.

    [] for samples that are no numeric arrays.
    """
    if isinstance(sample, Mapping):
        return [{}, *({**sample, name: bad} for name, part in sample.items() for bad in bad_of(part))]
    if not isinstance(sample, np.ndarray) or sample.dtype.kind not in "fiub":
        return []
    return [np.zeros((2, 3, *sample.shape), sample.dtype), np.full(sample.shape, "text")]


def with_nan(sample: Any) -> Any:
    """Return the sample with NaN for its first number, changed in place; None if it has no float.

    A mapping is copied, its array changed.
    """
    if isinstance(sample, Mapping):
        for name, part in sample.items():
            if (spoilt := with_nan(part)) is not None:
                return {**sample, name: spoilt}
        return None
    if isinstance(sample, float):
        return math.nan
    if not isinstance(sample, np.ndarray) or sample.dtype.kind != "f" or not sample.size:
        return None
    sample.flat[0] = math.nan
    return sample


ROUNDS = 20  # runs of each of two threads beside each other
ANEW = "make threads, locks and sessions anew there"
CLOUD = "the router takes that for the model's fault, and sends the input to the cloud"
LET_IT = "let it pass, as by `except BadInput: raise` before `except ValueError`, which catches it too"


class Checks(Running):
    """Checks of one model on samples that it takes; each method yields a text for each problem.

    Args:
        model: the model.
        samples: two or more inputs.
        rtol: relative tolerance between answers to one input.
        timeout_s: seconds after which a run counts as hanging.

    Raises:
        PolicyError: the model's members contradict the protocol.
    """

    def __init__(self, model: EdgeModel, samples: Sequence[Any], rtol: float, timeout_s: float) -> None:
        super().__init__(model, timeout_s)
        self.model, self.rtol = model, rtol
        self._samples = list(samples)
        self.truth: list[Prediction] = []
        # True if the model itself decides what it takes; a plain function may raise whatever it likes.
        self.strict = not _calls(model)

    @property
    def samples(self) -> list[Any]:
        """Copies of the samples: a model that writes to one spoils one check alone."""
        return [copy_input(x) for x in self._samples]

    def members(self) -> Iterator[str]:
        """Check the members that `EdgeMembers` documents: arguments, types, files, and settings that are the same at two looks.

        Calls `load` twice, and waits for it; its error, or a hang, is raised.
        """
        for name, wanted in (("run", "(inputs, cancel)"), ("run_one", "(x, cancel)"), ("stream", "(x, cancel)")):
            method = self.model.run if name == "run" else member(self.model, name)  # type: ignore[arg-type]  # two of them
            try:
                inspect.signature(method).bind(None, None) if method is not None else None
            except TypeError:
                yield f"{name} does not take {wanted}, which the router passes by position"
            except ValueError:  # built in, without a signature
                continue
        labels = member(self.model, "labels")
        if labels is not None and not isinstance(labels, tuple):
            yield f"labels is a {type(labels).__name__}: make it a tuple, or None"
        for path in files(self.model):
            if not path.exists():
                yield f"it names the file {path}, which is not there: `path` and `files` are what its outputs depend on"
        settings = member(self.model, "settings")
        if not isinstance(settings, Mapping):
            yield f"settings is a {type(settings).__name__}: make it a mapping of names to values"
        elif len({fingerprint(self.model, str) for _ in range(2)}) > 1:
            yield "its settings are others at each look, so no certificate would apply: have in them what its outputs depend on"
        load: Callable[[], object] | None = member(self.model, "load")
        if load is not None:
            self.wait(self.thread(lambda: (load(), load())), "load, called twice,")

    def runs(self) -> Iterator[str]:
        """Run each sample twice, store the first answers in `truth` for later checks, and yield the first difference.

        An error of the model is raised.
        """
        self.truth = [self.ask([x])[0] for x in self.samples]
        for i, x in enumerate(self.samples):
            (again,) = self.ask([x])
            if not same(again, self.truth[i], self.rtol):
                yield f"it answers {shown(self.truth[i])} to a sample, and {shown(again)} to it again: make it repeatable"
                return

    def batch(self) -> Iterator[str]:
        """Check an empty batch, and all samples as one batch in two orders, which must answer as each sample alone.

        Stops at the first difference in a batch.
        """
        try:
            if answers := self.ask([]):
                yield f"it has {len(answers)} outputs for an empty batch: give none, or raise BadInput"
        except BadInput:
            pass
        except Exception as e:  # noqa: BLE001 - whatever a model raises
            yield f"it raised {error_text(e)} for an empty batch: give no outputs, or raise BadInput"
        order = [*range(len(self.truth)), 0]
        for rows in (order, order[::-1]):
            samples = self.samples
            try:
                answers = self.ask([copy_input(samples[i]) for i in rows])
            except Exception as e:  # noqa: BLE001 - likewise
                yield f"it raised {error_text(e)} for a batch of {len(rows)} samples, each of which it takes alone"
                return
            for i, answer in zip(rows, answers, strict=True):
                if not same(answer, self.truth[i], self.rtol):
                    alone = shown(self.truth[i])
                    yield f"alone sample {i} gets {alone}, and in a batch of {len(rows)} {shown(answer)}: rows are separate"
                    return

    def ways(self) -> Iterator[str]:
        """Check that `run_one` and `stream`, and its pieces joined, answer as `run` did; yields one difference of each."""
        for i, x in enumerate(self.samples):
            (answer,) = self.ask([x], many=False)
            if not same(answer, self.truth[i], self.rtol):
                yield f"run gives {shown(self.truth[i])} for sample {i}, and run_one {shown(answer)}: they answer alike"
                break
        if member(self.model, "stream") is None:
            return
        for i, x in enumerate(self.samples):
            pieces, reply = self.run_stream(x)
            if not same(reply, self.truth[i], self.rtol) or not equal(join_pieces(pieces), self.truth[i].value, self.rtol):
                yield f"run gives {shown(self.truth[i])} for sample {i}, and stream {shown(reply)} in {pieces!r}: make them alike"
                break

    def unwritten(self) -> Iterator[str]:
        """Check that `run` and `run_one`, alone and in a batch, do not write to inputs; yields the first that changed."""
        mine, before = self.samples, self.samples
        for many in (True, False):
            for x in mine:
                self.ask([x], many=many)
        self.ask(mine)
        for i, (now, was) in enumerate(zip(mine, before, strict=True)):
            if not equal(now, was, 0.0):
                yield f"it wrote to sample {i}: inputs are the caller's, so copy what is changed"
                break

    def refuses(self, bad: Sequence[Any]) -> Iterator[str]:
        """Check that input that the model cannot take raises `BadInput`, by each way and in a batch; yields one problem each.

        bad: inputs that have to be refused. Others, derived from a sample, may be answered.
        """
        derived = [(x, False) for x in bad_of(self._samples[0])]
        for x, must in [*((x, True) for x in bad), *derived]:
            for many, rows in ((True, [x]), (False, [x]), (True, [*self.samples, x])):
                if problem := self._refusal_problem([copy_input(row) for row in rows], many=many, must=must, what=short(x)):
                    yield problem
                    break

    def _refusal_problem(self, rows: list[Any], *, many: bool, must: bool, what: str) -> str:
        """Return the problem with how the model takes a bad input; empty if there is none. `must`: it has to raise `BadInput`.

        An error other than BadInput counts only if `must`, or for a model with stricter rules.
        """
        way = "run_one" if not many else "run" if len(rows) == 1 else "a batch with others"
        try:
            answers = self.ask(rows, many=many)
        except BadInput:
            return ""
        except Exception as e:  # noqa: BLE001 - whatever a model raises
            if any(isinstance(cause, BadInput) for cause in chain(e)):
                return f"for {what} BadInput became {error_text(e)} ({way}), and {CLOUD}: {LET_IT}"
            return f"it raised {error_text(e)} for {what} ({way}), and {CLOUD}: raise BadInput" if must or self.strict else ""
        return f"it answered {what} with {shown(answers[-1])} ({way}): raise BadInput for what it cannot take" if must else ""

    def nan(self, *, missing: bool) -> Iterator[str]:
        """Check that NaN is refused by `BadInput`, or shows in the confidence, and leaves other rows alone.

        Skipped for samples without floats.

        missing: True if the model takes NaN for a missing value, and may be confident.
        """
        x = with_nan(copy_input(self._samples[0]))
        if x is None:
            return
        if problem := self._refusal_problem([x], many=True, must=False, what="an input with NaN"):
            yield problem
            return
        with suppress(Exception):
            (answer,) = self.ask([copy_input(x)])
            sure = answer.confidence
            if self.strict and not missing and sure is not None and not math.isnan(sure):
                yield f"an input with NaN is answered with the confidence {sure:.2f}: raise BadInput, or let NaN come through"
        with suppress(Exception):
            beside, _ = self.ask([self.samples[0], x])
            if not same(beside, self.truth[0], self.rtol):
                yield f"NaN in one row of a batch makes {shown(beside)} of another row's {shown(self.truth[0])}"

    def threads(self) -> Iterator[str]:
        """Check that two runs at once, in threads or as tasks, do not mix; yields the first problem, such as an error.

        Meanwhile threads of the whole process switch more often. A run that hangs raises `Hangs`.
        """
        samples, interval = self.samples[:2], sys.getswitchinterval()
        ready, wrong = threading.Barrier(2), list[str]()

        def check(i: int, answer: Prediction) -> None:
            if not same(answer, self.truth[i], self.rtol):
                wrong.append(f"sample {i} got {shown(answer)}, and alone {shown(self.truth[i])}")

        def work(i: int) -> None:
            ready.wait(self.timeout_s)
            for number in range(ROUNDS):
                check(i, self.here([copy_input(samples[i])], None, many=bool(number % 2))[0])

        async def task(i: int) -> None:
            for number in range(ROUNDS):
                check(i, (await self.backend_async([copy_input(samples[i])], many=bool(number % 2)))[0])

        async def both() -> None:
            await asyncio.gather(task(0), task(1))

        sys.setswitchinterval(1e-5)
        try:
            if self.awaited:
                begun = [self.task(both())]
            else:
                begun = [self.thread(partial(work, i), "edge-contract-both") for i in range(2)]
            for run in begun:
                self.wait(run, "one of two runs at once")
        except Exception as e:  # noqa: BLE001 - whatever a model raises
            wrong.append(f"it raised {error_text(e)}")
        finally:
            sys.setswitchinterval(interval)
        if wrong:
            yield f"with two runs at once {wrong[0]}: keep a run's state in the run, or set parallel = 1"

    def cancel(self) -> Iterator[str]:
        """Check that a run that is stopped, before it begins or during it, ends in time, and that the next is right.

        Stops at the first next run that is not.
        """
        for many in (True, False):
            for early in (True, False):
                stopped, stop = self._run(self.samples[0], many=many, early=early)
                stop()
                yield from self._check_end(stopped)
                if problem := self._next_right():
                    yield f"after a run was stopped {problem}: a stop is for one run alone"
                    return

    def deadline(self) -> Iterator[str]:
        """Check that a run left behind at its deadline does not disturb the next, which begins beside it; three times.

        Yields a difference or error of the next run, and then stops; without one, what is wrong with the end of the stopped run.
        """
        what = "a run beside one that was stopped at its deadline"
        for _ in range(3):
            left, stop = self._run(self.samples[0])
            beside, _ = self._run(self.samples[1])
            stop()
            if problem := self._problem(partial(self.wait, beside, what), 1):
                yield f"{what} {problem}: a stop is for one run alone"
                return
            yield from self._check_end(left)

    def _check_end(self, stopped: Future[list[Prediction]]) -> Iterator[str]:
        """Wait for a stopped run; yield a problem if it gave a wrong answer or raised BadInput. Any other error is fine.

        Raises:
            Hangs: it does not end.
        """
        try:
            (answer,) = self.wait(stopped, "a run that was told to stop")
        except BadInput as e:
            yield f"a run that was told to stop raised {error_text(e)}, the caller's fault: raise another error, as ModelError"
        except Hangs:
            raise
        except BaseException:  # noqa: BLE001, S110 - it may fail in any other way, also by its task's cancellation
            pass
        else:
            if not same(answer, self.truth[0], self.rtol):
                yield f"a run told to stop gave {shown(answer)}, not {shown(self.truth[0])}: raise an error instead"

    def _next_right(self) -> str:
        """Run the second sample; return the problem with it, an error or a wrong answer; empty if its answer is right."""
        problem = self._problem(lambda: self.ask([self.samples[1]], StopToken()), 1)
        return f"the next one {problem}" if problem else ""

    def _problem(self, run: Callable[[], list[Prediction]], i: int) -> str:
        """Return the error of a run of sample number `i`, or its wrong answer; empty if it is right."""
        try:
            (answer,) = run()
        except Exception as e:  # noqa: BLE001 - whatever a model raises
            return f"raised {error_text(e)}"
        return "" if same(answer, self.truth[i], self.rtol) else f"gave {shown(answer)}, not {shown(self.truth[i])}"

    def fork(self) -> Iterator[str]:
        """Check that a forked child answers, and its parent afterwards. A child that hangs is killed. Skipped on Windows."""
        if sys.platform == "win32":  # it has no fork
            return
        read, write = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # there are other threads, as in the programs that fork
            child = os.fork()
        if not child:
            self._child(write)
        os.close(write)
        try:
            with os.fdopen(read, "rb") as pipe:
                if not select.select([pipe], [], [], self.timeout_s)[0]:
                    os.kill(child, signal.SIGKILL)
                    yield f"a run in a forked child does not end within {self.timeout_s:g} s: {ANEW}"
                child_problem = pipe.read().decode(errors="replace")
        finally:
            _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
            yield f"a run in a forked child ended it by signal {os.WTERMSIG(status)}: {ANEW}"
        if child_problem:
            yield f"in a forked child {child_problem}: {ANEW}"
        if problem := self._next_right():
            yield f"after a fork, in the parent, {problem}"

    def _child(self, write: int) -> None:
        """Run a sample in the child, write the problem (empty: none) to the pipe, and exit the process with 0. Never returns.

        No exit handler runs.
        """
        problem = ""
        try:
            if not self.awaited:
                (answer,) = self.here([self.samples[0]], None, many=True)
            else:
                (answer,) = asyncio.new_event_loop().run_until_complete(self.backend_async([self.samples[0]], many=True))
            if not same(answer, self.truth[0], self.rtol):
                problem = f"sample 0 gets {shown(answer)}, not {shown(self.truth[0])}"
        except BaseException as e:  # noqa: BLE001 - the child does nothing else
            problem = f"it raised {error_text(e)}"
        finally:
            os.write(write, problem.encode()[:4000])
            os._exit(0)

    def close(self) -> Iterator[str]:
        """Check that the model can be closed during a run, twice, and runs again.

        A close that raises, or a run that it breaks, ends the check. Skipped for a model without `close`.
        """
        close_method: Callable[[], object] | None = member(self.model, "close")
        if close_method is None:
            return
        under_way, _ = self._run(self.samples[0])
        for close, how in ((self.backend.close, "during a run"), (close_method, "again"), (close_method, "once more")):
            try:
                self.wait(self.thread(close), "close")
            except Exception as e:  # noqa: BLE001 - whatever a model raises
                yield f"close, called {how}, raised {error_text(e)}: it does nothing where there is nothing to free"
                return
            ends = partial(self.wait, under_way, "a run during which it was closed")
            if close == self.backend.close and (problem := self._problem(ends, 0)):
                yield f"a run during a close {problem}: closes_after_runs is for runs that keep what they need"
                return
        if problem := self._next_right():
            yield f"after it was closed {problem}: a later run loads it again"

    def _run(self, x: Any, *, many: bool = True, early: bool = False) -> tuple[Future[list[Prediction]], Ask]:
        """Start a run that can be stopped; return its future, and a function that stops it.

        Waits until the model listens to a stop, the run ends, or `timeout_s`, so that a stop comes in the middle of a run.

        early: True: it is stopped before it begins.
        """
        token = Token()
        if early:
            token()
        run, stop = self.begin([x], token, many=many)
        if not early and not self.awaited:
            run.add_done_callback(lambda _: token.taken.set())
            token.taken.wait(self.timeout_s)  # a model that can be stopped is in the middle then
        return run, stop


def outputs_stay(subject: Checks) -> Iterator[str]:
    """Check that later runs, by `run` and `run_one`, do not change the outputs of an earlier one; yields the first change."""
    for many, way in ((True, "run"), (False, "run_one")):
        (answer,) = subject.ask([subject.samples[0]], many=many)
        was = copy_input(answer.outputs)
        for x in subject.samples[1:]:
            subject.ask([x], many=many)
        if not equal(answer.outputs, was, 0.0):
            yield f"a later {way} changed the outputs of an earlier one: give each its own, not one array that is used again"
            return


def _calls(model: EdgeModel) -> bool:
    """Return True if the model calls plain functions, which decide themselves what they take."""
    if isinstance(model, Ensemble):
        return any(map(_calls, model.models))
    return isinstance(model, CallableModel)


class ContractBroken(AssertionError):
    """Raised for a model or an endpoint that breaks its contract.

    Attributes:
        problems: (name of the check, what is wrong and what to do), in the order of the checks.
    """

    def __init__(self, name: str, problems: Sequence[tuple[str, str]], what: str = "edge models") -> None:
        lines = [f"- {check}: {text}" for check, text in problems]
        super().__init__("\n".join([f"{name} breaks the contract of {what}:", *lines]))
        self.problems = tuple(problems)


def check_all(
    name: str, checks: Iterable[tuple[str, Callable[[], Iterator[str]]]], *, first: Collection[str], what: str = "edge models"
) -> None:
    """Run the named checks in order, and raise ContractBroken with the problems that they yield; an error counts as one.

    The checks end at a run that hangs, and at a problem after a check of `first`, without which nothing can be compared.
    """
    problems: list[tuple[str, str]] = []
    for part, check in checks:
        try:
            problems += [(part, text) for text in check()]
        except Hangs as e:
            problems.append((part, str(e)))
            break  # it would hang in the others
        except Exception as e:  # noqa: BLE001 - whatever a model or an endpoint raises
            problems.append((part, f"it raised {error_text(e)} for samples that it takes"))
        if problems and part in first:
            break
    if problems:
        raise ContractBroken(name, problems, what)


def edge_contract(
    model: EdgeModel | Callable[[Any], Any] | str | Path,
    samples: Sequence[Any],
    *,
    bad: Sequence[Any] = (),
    rtol: float = 1e-3,
    nan_is_missing: bool = False,
    fork: bool = True,
    timeout_s: float = 60.0,
) -> None:
    """Check that a model keeps the contract of edge models (docs/runtimes.md). Runs the model many times, and closes it.

    Input that it cannot take raises `BadInput`; NaN is refused, or not answered with confidence; a batch of 0, 1 and n agree, and
    with `run_one` and `stream`; inputs are not written to; two threads at once; a forked child; closing, twice, and a run after
    it; a run that is cancelled, or left behind at a deadline, ends, and those after it and beside it are right.

    Args:
        model: a model, a callable, or the path of a model file.
        samples: two or more inputs that differ, each without the batch axis.
        bad: inputs that the model cannot take, besides those that follow from the samples: of another rank, and text for numbers.
        rtol: relative tolerance between answers to one input.
        nan_is_missing: True if the model takes NaN for a missing value, as some tree models do: it may answer with confidence.
        fork: True to check a forked child, where the system can fork.
        timeout_s: seconds after which a run counts as hanging.

    Raises:
        ContractBroken: an AssertionError that lists all problems, and what to do.
        ValueError: fewer than two samples.
    """
    if len(samples) < 2:  # noqa: PLR2004 - to tell one from another
        raise ValueError(f"a contract is checked with two samples or more, not {len(samples)}")
    loaded = load(model)
    try:
        subject = Checks(loaded, samples, rtol, timeout_s)
    except EdgerouteError as e:
        raise ContractBroken(loaded.name, [("members", str(e))]) from e
    checks: list[tuple[str, Callable[[], Iterator[str]]]] = [
        ("members", subject.members),
        ("run", subject.runs),
        ("batch", subject.batch),
        ("run_one and stream", subject.ways),
        ("inputs", subject.unwritten),
        ("outputs", lambda: outputs_stay(subject)),
        ("bad input", lambda: subject.refuses(bad)),
        ("NaN", lambda: subject.nan(missing=nan_is_missing)),
        ("threads", subject.threads),
        ("cancel", subject.cancel),
        ("deadline", subject.deadline),
        ("fork", subject.fork if fork and hasattr(os, "fork") else lambda: iter(())),
        ("close", subject.close),
    ]
    try:
        check_all(loaded.name, checks, first={"run"})
    finally:
        subject.end()
