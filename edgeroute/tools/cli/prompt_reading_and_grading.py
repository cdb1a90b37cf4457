"""Prompts with the answers of two models, in lines of JSON, for `calibrate`: graded, labelled, or compared with each other.

A missing confidence is that of the recorded tokens, or else of a run of the edge model on the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgeroute.confidence.first_tokens import Prefix, token_logprobs
from edgeroute.confidence.output_forms_labels_and_comparison import same
from edgeroute.confidence.score_before_run import InputScore
from edgeroute.confidence.scores import quantile
from edgeroute.errors import BadInput, BadReply
from edgeroute.system.untrusted_files import parse_json
from edgeroute.tools.cli.inputs_labels_and_outputs import expand_folders, numbered_lines, prompt_of
from edgeroute.tools.cli.read_and_certify_graded_answers import Graded

if TYPE_CHECKING:
    from edgeroute.router.router import Router
    from edgeroute.tools.measure.collect_edge_and_cloud import DirectCalls

SIDES = ("edge", "cloud")


class Line(NamedTuple):
    """Prompt with its answers, grades and confidence."""

    where: str
    x: Any
    answers: dict[str, Any]  # side -> its answer's text; None: absent
    grades: dict[str, float | None]  # side -> grade of its answer, 0..1
    confidence: float | None
    logprobs: list[float]  # log-probabilities of the edge's tokens; empty: absent
    group: Any
    labels: dict[str, Any]  # side -> the right answer, where its grade comes from that


def read_prompts(paths: Sequence[Path], every: int) -> list[Line] | None:
    """Read .jsonl files whose lines have answers or grades, and take every `every`-th line; None if no line has an edge's.

    A line has `prompt` or `messages`; `edge` and `cloud`, each an answer's text, or a mapping with `text` and `logprobs`, or a
    completion in OpenAI's JSON; `grade`, the edge's, or a mapping from side to grade, 0..1; or `label`, the right answer; and
    perhaps `confidence` and `group`.

    Raises:
        BadInput: a line is invalid, only some have grades or groups, other files are among them, or no answer of a side equals a
            label.
    """
    from edgeroute.tools.measure.collect_edge_and_cloud import check_possible

    files = expand_folders(paths)
    json_files = [path for path in files if path.suffix.lower() == ".jsonl"]
    lines = [_line(*line) for path in json_files for line in numbered_lines(path)][::every]
    if not lines or not any(line.answers["edge"] is not None or line.grades["edge"] is not None for line in lines):
        return None
    if len(json_files) < len(files):
        raise BadInput("some of the files are lines of JSON with answers, and others are not: pass one kind at a time")
    for side in SIDES:
        missing = [line.where for line in lines if line.grades[side] is None]
        if missing and (side == "edge" or len(missing) < len(lines)):
            raise BadInput(f"{missing[0]}: there is no grade of the {side}'s answer, and no label to compare it with")
    for side in SIDES:
        compared = [line for line in lines if side in line.labels]
        if compared:
            answers = [line.answers[side] for line in compared]
            check_possible(side, answers, [line.labels[side] for line in compared], [], labelled=True)
    grouped = [line.group is not None for line in lines]
    if any(grouped) and not all(grouped):
        raise BadInput(f"{lines[grouped.index(False)].where}: there is no group, and other lines have one")
    return lines


def grade_prompts(lines: Sequence[Line], calls: DirectCalls, router: Router) -> Graded:
    """Return the grades of all lines, with the confidence of each edge answer. Nothing is sent to the cloud.

    The confidence is the recorded one; else by the score in use, of the input or of recorded log-probabilities; else from a run
    of the only edge. NaN: the model gives none.

    Raises:
        BadInput: there are several edges, and no record; or the edge now gives another answer than the graded one.
    """
    confidence = [_confidence(line, calls, router) for line in lines]
    cloud = None if lines[0].grades["cloud"] is None else np.array([line.grades["cloud"] for line in lines], float)
    groups = None if lines[0].group is None else np.array([str(line.group) for line in lines])
    return Graded(np.array(confidence, float), np.array([line.grades["edge"] for line in lines], float), cloud, groups)


def _confidence(line: Line, calls: DirectCalls, router: Router) -> float:
    """Return the confidence of the edge's answer: recorded, else by its input or recorded tokens, else by a run of the edge.

    NaN: the model gives none.

    Raises:
        BadInput: it must be recorded, as there are several edge models, or the edge now gives another answer.
    """
    score = calls.score
    if line.confidence is not None:
        return line.confidence
    if isinstance(score, InputScore):
        return score.of_input(line.x)
    if line.logprobs and (isinstance(score, Prefix) or not callable(score)):
        return score(line.logprobs) if isinstance(score, Prefix) else quantile(np.array(line.logprobs))
    if calls.before or calls.number:
        raise BadInput(f"{line.where}: with several edge models the confidence must be recorded, as confidence or logprobs")
    answer = router.infer(line.x, mode="only_edge")
    if line.answers["edge"] is not None and answer.value != line.answers["edge"]:
        raise BadInput(
            f"{line.where}: the edge model now gives another answer than the graded one, so its confidence does not fit: record "
            "the confidence with the answer, as logprobs or confidence, or grade its present answers"
        )
    return float("nan") if answer.confidence is None else answer.confidence


def _line(where: str, text: bytes) -> Line:
    """Parse a line of JSON. A missing grade is 1 or 0, as the answer equals the label or not.

    Without grade and label the cloud's answer counts as right: it has grade 1, and the edge's 1 if equal, else 0. Grades that
    cannot be had are None.

    Raises:
        BadInput: it is no JSON object, has no prompt, or a field is invalid.
    """
    try:
        line = parse_json(text)
    except ValueError as e:
        raise BadInput(f"{where}: expected a line of JSON: {type(e).__name__}") from e
    if not isinstance(line, dict):
        raise BadInput(f'{where}: expected a mapping with "prompt" or "messages", found a {type(line).__name__}')
    answers = {side: _text(where, side, line.get(side)) for side in SIDES}
    grade_entry, label = line.get("grade"), line.get("label")
    grade = grade_entry if isinstance(grade_entry, dict) else {"edge": grade_entry}
    grades = {side: _grade(f"{where}: the grade of the {side}", grade.get(side)) for side in SIDES}
    labels = {side: label for side in SIDES if label is not None and grades[side] is None and answers[side] is not None}
    for side in labels:
        grades[side] = float(same(answers[side], label))
    if label is None and grade_entry is None and None not in answers.values():  # the cloud's answer counts as right
        grades = {"edge": float(same(answers["edge"], answers["cloud"])), "cloud": 1.0}
    confidence = _number(f"{where}: confidence", line.get("confidence"))
    logprobs = _logprobs(where, line.get("edge"))
    return Line(where, prompt_of(line, where), answers, grades, confidence, logprobs, line.get("group"), labels)


def _text(where: str, side: str, answer: Any) -> str | None:
    """Return an answer's text, which may be in a mapping's `text` or in a completion of OpenAI's form; None if absent.

    Raises:
        BadInput: it is none of these.
    """
    if isinstance(answer, dict) and "choices" in answer:
        try:
            choice = answer["choices"][0]
            answer = choice["text"] if "text" in choice else choice["message"]["content"]
        except (LookupError, TypeError):
            raise BadInput(f"{where}: {side} is no completion") from None
    elif isinstance(answer, dict):
        answer = answer.get("text")
    if not isinstance(answer, str | None):
        raise BadInput(f'{where}: {side} must be an answer\'s text, or a mapping with "text", not a {type(answer).__name__}')
    return answer


def _logprobs(where: str, answer: Any) -> list[float]:
    """Return the log-probabilities of an answer's tokens; empty if absent; raise `BadInput` if they are invalid."""
    if not isinstance(answer, dict):
        return []
    try:
        return token_logprobs(answer if "choices" in answer else ("", answer.get("logprobs") or []))
    except (AttributeError, BadReply, KeyError, TypeError, ValueError):
        raise BadInput(f"{where}: logprobs must be natural logarithms, one for each token") from None


def _grade(what: str, value: Any) -> float | None:
    """Return a grade; None if absent; raise `BadInput` unless it is from 0 to 1."""
    grade = _number(what, value)
    if grade is not None and not 0 <= grade <= 1:
        raise BadInput(f"{what} must be a number from 0 to 1, not {grade:g}")
    return grade


def _number(what: str, value: Any) -> float | None:
    """Return a finite number as float, a bool as 0 or 1; None if absent; raise `BadInput` for all else."""
    if value is None:
        return None
    if not isinstance(value, int | float) or not isfinite(value):
        raise BadInput(f"{what} must be a number, not {value!r:.40}")
    return float(value)
