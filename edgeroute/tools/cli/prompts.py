"""Prompts with the answers of two models, in lines of JSON: graded, 0 or 1 by a label, or without a grade."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeroute.confidence.input_score import InputScore
from edgeroute.confidence.prefix import Prefix, token_logprobs
from edgeroute.confidence.scores import quantile
from edgeroute.errors import BadInput, BadReply
from edgeroute.tools.cli.graded import Graded
from edgeroute.tools.cli.inputs import files, prompt_of

if TYPE_CHECKING:
    from edgeroute.router.router import Router
    from edgeroute.tools.measure.collect import DirectCalls

SIDES = ("edge", "cloud")


class Line(NamedTuple):
    """One prompt."""

    where: str
    x: Any
    said: dict[str, Any]
    """Side -> its answer's text; None: it is not there."""
    grades: dict[str, float | None]
    """Side -> how good its answer is, 0..1."""
    confidence: float | None
    logprobs: list[float]
    """Of the edge's tokens; empty: they are not there."""
    group: Any


def prompts(paths: Sequence[Path], every: int) -> list[Line] | None:
    """Reads .jsonl files whose lines have answers or grades; None: there are none, or they hold inputs alone.

    A line has `prompt` or `messages`; `edge` and `cloud`, each an answer's text, or a mapping with `text` and `logprobs`, or a
    completion in OpenAI's JSON; `grade`, the edge's, or a mapping from side to grade, 0..1; or `label`, the right answer; and
    perhaps `confidence` and `group`.

    Raises:
        BadInput: a line is not that, or only some have grades.
    """
    found = [path for path in files(paths) if path.suffix.lower() == ".jsonl"]
    lines = [_line(f"{path}:{n}", text) for path in found for n, text in _numbered(path)][::every]
    if not lines or not any(line.said["edge"] is not None or line.grades["edge"] is not None for line in lines):
        return None
    if len(found) < len(files(paths)):
        raise BadInput("some of the files are lines of JSON with answers, and others are not: give one kind at a time")
    for side in SIDES:
        missing = [line.where for line in lines if line.grades[side] is None]
        if missing and (side == "edge" or len(missing) < len(lines)):
            raise BadInput(f"{missing[0]}: there is no grade of the {side}'s answer, and no label to compare it with")
    grouped = [line.group is not None for line in lines]
    if any(grouped) and not all(grouped):
        raise BadInput(f"{lines[grouped.index(False)].where}: there is no group, and other lines have one")
    return lines


def graded_prompts(lines: Sequence[Line], aside: DirectCalls, router: Router) -> Graded:
    """The grades, with the confidence of each answer by the score in use: recorded, or that of the edge, which then runs.

    Raises:
        BadInput: neither is possible, or the edge answers otherwise now than was graded.
    """
    confidence = [_confidence(line, aside, router) for line in lines]
    cloud = None if lines[0].grades["cloud"] is None else np.array([line.grades["cloud"] for line in lines], float)
    groups = None if lines[0].group is None else np.array([str(line.group) for line in lines])
    return Graded(np.array(confidence, float), np.array([line.grades["edge"] for line in lines], float), cloud, groups)


def _confidence(line: Line, aside: DirectCalls, router: Router) -> float:
    score = aside.score
    if line.confidence is not None:
        return line.confidence
    if isinstance(score, InputScore):
        return score.of_input(line.x)
    if line.logprobs and (isinstance(score, Prefix) or not callable(score)):
        return score(line.logprobs) if isinstance(score, Prefix) else quantile(np.array(line.logprobs))
    if aside.before or aside.number:
        raise BadInput(f"{line.where}: of several edge models the confidence is recorded, as confidence or logprobs")
    answer = router.infer(line.x, mode="only_edge")
    if line.said["edge"] is not None and answer.value != line.said["edge"]:
        raise BadInput(
            f"{line.where}: the edge model answers otherwise now than what was graded, so its confidence is of another answer: "
            "record that with the answer, as logprobs or confidence, or grade its answers of now"
        )
    return float("nan") if answer.confidence is None else answer.confidence


def _numbered(path: Path) -> list[tuple[int, bytes]]:
    try:
        return [(n, text) for n, text in enumerate(path.read_bytes().splitlines(), 1) if text.strip()]
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror or e}") from e


def _line(where: str, text: bytes) -> Line:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{where}: expected a line of JSON: {type(e).__name__}") from e
    if not isinstance(line, dict):
        raise BadInput(f'{where}: expected a mapping with "prompt" or "messages", found a {type(line).__name__}')
    said = {side: _text(where, side, line.get(side)) for side in SIDES}
    given, label = line.get("grade"), line.get("label")
    grade = given if isinstance(given, dict) else {"edge": given}
    grades = {side: _grade(f"{where}: the grade of the {side}", grade.get(side)) for side in SIDES}
    for side in SIDES if label is not None else ():
        if grades[side] is None and said[side] is not None:
            grades[side] = float(said[side] == str(label))
    if label is None and given is None and None not in said.values():  # right is what the cloud says
        grades = {"edge": float(said["edge"] == said["cloud"]), "cloud": 1.0}
    confidence = _number(f"{where}: confidence", line.get("confidence"))
    return Line(where, prompt_of(line, where), said, grades, confidence, _logprobs(where, line.get("edge")), line.get("group"))


def _text(where: str, side: str, answer: Any) -> str | None:
    if isinstance(answer, dict) and "choices" in answer:
        try:
            choice = answer["choices"][0]
            answer = choice["text"] if "text" in choice else choice["message"]["content"]
        except (LookupError, TypeError):
            raise BadInput(f"{where}: {side} is no completion") from None
    elif isinstance(answer, dict):
        answer = answer.get("text")
    if not isinstance(answer, str | None):
        raise BadInput(f'{where}: {side} is an answer\'s text, or a mapping with "text", and not a {type(answer).__name__}')
    return answer


def _logprobs(where: str, answer: Any) -> list[float]:
    if not isinstance(answer, dict):
        return []
    try:
        found = token_logprobs(answer if "choices" in answer else ("", answer.get("logprobs") or []))
    except (AttributeError, BadReply, KeyError, TypeError, ValueError):
        raise BadInput(f"{where}: logprobs are natural logarithms, one for each token") from None
    return found


def _grade(what: str, given: Any) -> float | None:
    grade = _number(what, given)
    if grade is not None and not 0 <= grade <= 1:
        raise BadInput(f"{what} is a number from 0 to 1, not {grade:g}")
    return grade


def _number(what: str, given: Any) -> float | None:
    if given is None:
        return None
    if not isinstance(given, int | float) or not isfinite(given):
        raise BadInput(f"{what} is a number, not {given!r:.40}")
    return float(given)
