"""Contract of edge models: a suite of checks that the author of a runtime runs on one of its models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeroute.edge.runtimes import load
from edgeroute.errors import EdgerouteError
from edgeroute.testing.checks import Checks, error_text, outputs_stay
from edgeroute.testing.running import Hangs
from edgeroute.types import EdgeModel


class ContractBroken(AssertionError):
    """Raised for a model or an endpoint that breaks its contract.

    Attributes:
        problems: (name of the check, what is wrong and what to do), in the order of the checks.
    """

    def __init__(self, name: str, problems: Sequence[tuple[str, str]], what: str = "edge models") -> None:
        lines = [f"- {check}: {text}" for check, text in problems]
        super().__init__("\n".join([f"{name} breaks the contract of {what}:", *lines]))
        self.problems = tuple(problems)


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
    problems: list[tuple[str, str]] = []
    try:
        for name, check in checks:
            try:
                problems += [(name, text) for text in check()]
            except Hangs as e:
                problems.append((name, str(e)))
                break  # it would hang in the others
            except Exception as e:  # noqa: BLE001 - whatever a model raises
                problems.append((name, f"it raised {error_text(e)} for samples that it takes"))
            if name == "run" and problems:
                break  # nothing can be compared
    finally:
        subject.end()
    if problems:
        raise ContractBroken(loaded.name, problems)
