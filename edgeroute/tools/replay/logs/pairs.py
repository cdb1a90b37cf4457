"""Pairs the answers of two models to the same request, with what each cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from math import nan
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from edgeroute.confidence.exact import Floats
from edgeroute.core.words import clean
from edgeroute.errors import BadInput
from edgeroute.tools.replay.logs.bodies import Answer, Ask, Match, Reader, Skip, litellm_answer, openai_answer
from edgeroute.tools.replay.logs.lines import Left, LeftOut, Row, lines, rows

READERS: Final[Mapping[str, Reader]] = {"openai-log": openai_answer, "litellm-log": litellm_answer}
FORMATS: Final = (*READERS, "csv")
SHOWN: Final = 10
"""Models of a log that an error lists."""


class Price(NamedTuple):
    """What a request costs, in dollars; replaces what the log says."""

    usd: float = 0.0
    """A request."""
    usd_in: float = 0.0
    """A million tokens of the prompt."""
    usd_out: float = 0.0
    """A million tokens of the completion."""

    def of(self, tokens: tuple[float, float] | None) -> float | None:
        """The cost of a request; None: it depends on tokens, which are not recorded."""
        if tokens is None:
            return None if self.usd_in or self.usd_out else self.usd
        return self.usd + (tokens[0] * self.usd_in + tokens[1] * self.usd_out) / 1e6


class Read(NamedTuple):
    """How a log is read and paired."""

    edge_model: str = ""
    """The model that would run on the edge, as the log names it, or a pattern (`gpt-4o-mini*`); empty: the other one of two."""
    cloud_model: str = ""
    edge_price: Price | None = None
    cloud_price: Price | None = None
    id: str = ""
    """Dotted path of what identifies a request (`metadata.job`); empty: the format's own ID, or the messages."""
    score: str = ""
    """Dotted path of how correct an answer is, 0..1; empty: correct means to agree with the cloud."""
    match: Match = "text"
    """What agreement is: `text`, alike but for case, spaces and surrounding punctuation; or `exact`."""


class Pairs(NamedTuple):
    """Requests that both models answered."""

    edge_model: str
    cloud_model: str
    confidence: Floats
    """[n], of the edge's answers; NaN: unknown."""
    edge: Floats
    """[n], how correct the edge is, 0..1; where answers are compared, whether it agrees with the cloud."""
    cloud: Floats | None
    """[n], likewise; None: answers are compared."""
    usd: tuple[Floats, Floats]
    """[n] each, of edge and cloud; NaN: unknown."""
    left_out: tuple[Left, ...]


def read_pairs(paths: Sequence[Path], kind: str, how: Read) -> Pairs:
    """Reads a log of one of `FORMATS`, which may be in several files.

    Raises:
        BadInput: a file cannot be read, or there is no pair in it.
    """
    left = LeftOut()
    found = _of_table(paths, how, left) if kind == "csv" else _of_log(paths, READERS[kind], how, left)
    if not found.edge.size:
        raise BadInput(f"{paths[0]}: there is no request that both models answered{left}")
    if np.isnan(found.confidence).all():
        what = "a confidence" if kind == "csv" else "log-probabilities of its tokens (a request asks for them with logprobs=true)"
        raise BadInput(f"{paths[0]}: no answer of {clean(found.edge_model)} has {what}, so nothing tells which to keep")
    return found


def _of_table(paths: Sequence[Path], how: Read, left: LeftOut) -> Pairs:
    read, compared = rows(paths, Ask(match=how.match), left)
    kept, seen = list[Row](), set[str]()
    for row in read:
        if row.id and row.id in seen:
            left.add("an ID that was there before")
            continue
        seen.add(row.id)
        kept.append(row)
    usd = [[_cost(price, row.usd[side], None) for row in kept] for side, price in enumerate((how.edge_price, how.cloud_price))]
    confidence, edge, cloud = (_column(kept, i) for i in (1, 2, 3))
    both = np.array(usd[0], np.float64), np.array(usd[1], np.float64)
    names = how.edge_model or "the edge", how.cloud_model or "the cloud"
    return Pairs(*names, confidence, edge, None if compared else cloud, both, left.all())


def _column(table: Sequence[Row], i: int) -> Floats:
    return np.array([row[i] for row in table], np.float64)


def _of_log(paths: Sequence[Path], reader: Reader, how: Read, left: LeftOut) -> Pairs:
    ask = Ask(how.id, how.score, how.match)
    requests, models = dict[bytes, dict[str, Answer]](), Counter[str]()
    for place, text in lines(paths):
        try:
            one = reader(_record(text), ask)
        except Skip as e:
            left.add(str(e), place)
            continue
        except RecursionError:
            left.add("no JSON object: nested too deep", place)
            continue
        models[one.model] += 1
        answers = requests.setdefault(one.key, {})
        if one.model in answers:
            left.add("the same request to the same model again, which tells nothing new", place)
        else:
            answers[one.model] = one
    edge_model, cloud_model = _sides(f"{paths[0]}", models, how, left)
    made = list[tuple[Answer, Answer]]()
    alone = Counter[str]()
    for answers in requests.values():
        mine, other = answers.get(edge_model), answers.get(cloud_model)
        if mine is not None and other is not None:
            made.append((mine, other))
        elif mine is not None or other is not None:
            alone[cloud_model if mine is None else edge_model] += 1
    others = sum(count for model, count in models.items() if model not in {edge_model, cloud_model})
    if others:
        left.add("an answer of another model", count=others)
    for model, count in alone.items():
        left.add(f"a request that only {clean(model)} answered", count=count)
    confidence = np.array([mine.confidence for mine, _ in made], np.float64)
    if how.score:
        edge = np.array([mine.score for mine, _ in made], np.float64)
        cloud = np.array([other.score for _, other in made], np.float64)
    else:
        edge, cloud = np.array([mine.answer == other.answer for mine, other in made], np.float64), None
    usd = (
        np.array([_cost(how.edge_price, mine.usd, mine.tokens) for mine, _ in made], np.float64),
        np.array([_cost(how.cloud_price, other.usd, other.tokens) for _, other in made], np.float64),
    )
    return Pairs(edge_model, cloud_model, confidence, edge, cloud, usd, left.all())


def _record(text: bytes | None) -> dict[str, object]:
    if text is None:
        raise Skip("a line of more than 16 MiB")
    try:
        found = json.loads(text)
    except ValueError as e:  # also of encodings, and of numbers with thousands of digits
        raise Skip("no JSON object") from e
    if not isinstance(found, dict):
        raise Skip("no JSON object")
    return found


def _cost(price: Price | None, usd: float | None, tokens: tuple[float, float] | None) -> float:
    found = usd if price is None else price.of(tokens)
    return nan if found is None else found


def _sides(where: str, models: Counter[str], how: Read, left: LeftOut) -> tuple[str, str]:
    """The models of edge and cloud.

    Raises:
        BadInput: it is not clear which they are.
    """
    listed = ", ".join(f"{clean(name)} ({count:,})" for name, count in models.most_common(SHOWN))
    if not models:
        raise BadInput(f"{where}: there is no answer of a model in it that can be used{left}")
    found = list[str]()
    for option, wanted in (("--edge-model", how.edge_model), ("--cloud-model", how.cloud_model)):
        names = [wanted] if wanted in models else [name for name in models if wanted and fnmatchcase(name, wanted)]
        if wanted and len(names) != 1:
            raise BadInput(f"{where}: {option} {clean(wanted)} is {len(names)} of its models: {listed}{left}")
        found.append(names[0] if names else "")
    if not all(found) and any(found) and len(models) == 2:  # noqa: PLR2004 - the other one
        other = next(name for name in models if name not in found)
        found = [name or other for name in found]
    if not all(found) or found[0] == found[1]:
        raise BadInput(f"{where}: say which model is which, with --edge-model and --cloud-model; its models: {listed}{left}")
    return found[0], found[1]
