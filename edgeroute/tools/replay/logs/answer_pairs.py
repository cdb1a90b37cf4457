"""Pairs of two models' recorded answers to the same request, with their costs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from math import nan
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from edgeroute.confidence.binomial_tests import Floats
from edgeroute.core.error_codes import clean
from edgeroute.errors import BadInput
from edgeroute.tools.replay.logs.lines_and_tables import Left, LeftOut, Row, lines, rows
from edgeroute.tools.replay.logs.recorded_answers import (
    UNNAMED,
    Answer,
    Exchange,
    Match,
    Options,
    Reader,
    RequestAlone,
    Skip,
    langfuse_answer,
    litellm_answer,
    openai_answer,
)

READERS: Final[Mapping[str, Reader]] = {
    "openai-log": openai_answer, "litellm-log": litellm_answer, "langfuse-log": langfuse_answer,
}  # fmt: skip
FORMATS: Final = (*READERS, "csv")
SHOWN: Final = 10
"""Most models of a log that an error lists."""


class Price(NamedTuple):
    """Price of a request, dollars; overrides the log."""

    usd: float = 0.0
    """Price of a request."""
    usd_in: float = 0.0
    """Price of a million tokens of the prompt."""
    usd_out: float = 0.0
    """Price of a million tokens of the completion."""

    def of(self, tokens: tuple[float, float] | None) -> float | None:
        """Return the cost of a request; None if it depends on tokens, which are not recorded."""
        if tokens is None:
            return None if self.usd_in or self.usd_out else self.usd
        return self.usd + (tokens[0] * self.usd_in + tokens[1] * self.usd_out) / 1e6


class Read(NamedTuple):
    """Options for reading and pairing a log."""

    edge_model: str = ""
    """Model that would run on the edge, as the log names it, or a pattern (`gpt-4o-mini*`); empty: the other one of two."""
    cloud_model: str = ""
    edge_price: Price | None = None
    cloud_price: Price | None = None
    id: str = ""
    """Dotted path of a request's id (`metadata.job`); empty: the format's own id, or the messages."""
    score: str = ""
    """Dotted path of an answer's correctness, 0..1; empty: correct means to agree with the cloud."""
    match: Match = "text"
    """Meaning of agreement: `text` ignores case, spaces and surrounding punctuation; or `exact`."""


class Pairs(NamedTuple):
    """Requests that both models answered."""

    edge_model: str
    cloud_model: str
    confidence: Floats
    """[n], of the edge's answers; NaN: unknown."""
    edge: Floats
    """[n], correctness of the edge, 0..1; where answers are compared, 1 if it agrees with the cloud."""
    cloud: Floats | None
    """[n], correctness of the cloud, 0..1; None: answers are compared."""
    usd: tuple[Floats, Floats]
    """[n] each, of edge and cloud; NaN: unknown."""
    left_out: tuple[Left, ...]


def read_pairs(paths: Sequence[Path], kind: str, how: Read) -> Pairs:
    """Read a log of one of `FORMATS`, from one or several files, and pair its answers.

    Raises:
        BadInput: a file cannot be read, or there is no pair in it, or none of the edge's answers has a confidence.
    """
    skipped = LeftOut()
    pairs = _pairs_of_table(paths, how, skipped) if kind == "csv" else _pairs_of_log(paths, READERS[kind], how, skipped)
    if not pairs.edge.size:
        raise BadInput(f"{paths[0]}: there is no request that both models answered{skipped}")
    if np.isnan(pairs.confidence).all():
        what = "a confidence" if kind == "csv" else "log-probabilities of its tokens (a request gets them with logprobs=true)"
        raise BadInput(f"{paths[0]}: no answer of {clean(pairs.edge_model)} has {what}, so nothing tells which to accept")
    return pairs


def _pairs_of_table(paths: Sequence[Path], how: Read, skipped: LeftOut) -> Pairs:
    """Pair the rows of tables; an id that occurs again is skipped and counted."""
    all_rows, compared = rows(paths, Options(match=how.match), skipped)
    unique, seen = list[Row](), set[str]()
    for row in all_rows:
        if row.id and row.id in seen:
            skipped.add("an ID that was there before")
            continue
        seen.add(row.id)
        unique.append(row)
    usd = [[_cost(price, row.usd[side], None) for row in unique] for side, price in enumerate((how.edge_price, how.cloud_price))]
    confidence, edge, cloud = (_column(unique, i) for i in (1, 2, 3))
    both = np.array(usd[0], np.float64), np.array(usd[1], np.float64)
    names = how.edge_model or "the edge", how.cloud_model or "the cloud"
    return Pairs(*names, confidence, edge, None if compared else cloud, both, skipped.all())


def _column(table: Sequence[Row], i: int) -> Floats:
    """Return a column of rows as an array."""
    return np.array([row[i] for row in table], np.float64)


def _pairs_of_log(paths: Sequence[Path], reader: Reader, how: Read, skipped: LeftOut) -> Pairs:
    """Pair the answers of a log by request and model; count repeats, other models and single answers as skipped."""
    requests, models = dict[bytes, dict[str, Answer]](), Counter[str]()
    for place, exchange in exchanges(paths, reader, Options(how.id, how.score, how.match), skipped):
        answer = exchange.answer
        if not answer.model:
            skipped.add(UNNAMED, place)
            continue
        models[answer.model] += 1
        answers = requests.setdefault(answer.key, {})
        if answer.model in answers:
            skipped.add("the same request to the same model again, which tells nothing new", place)
        else:
            answers[answer.model] = answer
    edge_model, cloud_model = _sides(f"{paths[0]}", models, how, skipped)
    pairs = list[tuple[Answer, Answer]]()
    single = Counter[str]()
    for answers in requests.values():
        edge_answer, cloud_answer = answers.get(edge_model), answers.get(cloud_model)
        if edge_answer is not None and cloud_answer is not None:
            pairs.append((edge_answer, cloud_answer))
        elif edge_answer is not None or cloud_answer is not None:
            single[cloud_model if edge_answer is None else edge_model] += 1
    others = sum(count for model, count in models.items() if model not in {edge_model, cloud_model})
    skipped.add("an answer of another model", count=others)
    for model, count in single.items():
        skipped.add(f"a request that only {clean(model)} answered", count=count)
    edges, clouds = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    confidence = np.array([answer.confidence for answer in edges], np.float64)
    edge = np.array([a.score if how.score else a.answer == b.answer for a, b in pairs], np.float64)
    cloud = np.array([answer.score for answer in clouds], np.float64) if how.score else None
    usd = (
        np.array([_cost(how.edge_price, answer.usd, answer.tokens) for answer in edges], np.float64),
        np.array([_cost(how.cloud_price, answer.usd, answer.tokens) for answer in clouds], np.float64),
    )
    return Pairs(edge_model, cloud_model, confidence, edge, cloud, usd, skipped.all())


def exchanges(
    paths: Sequence[Path], reader: Reader, options: Options, skipped: LeftOut,
    alone: Callable[[RequestAlone], object] | None = None,
) -> Iterator[tuple[str, Exchange]]:  # fmt: skip
    """Yield the place and content of each line that can be used; count the others as skipped.

    alone: called with a request whose answer is in another line; None: such a line is skipped.

    Raises:
        BadInput: a file cannot be read.
    """
    for place, text in lines(paths):
        try:
            exchange = reader(_record(text), options)
        except Skip as e:  # noqa: PERF203 - a line must not lose the others
            if alone is not None and isinstance(e, RequestAlone):
                alone(e)
            else:
                skipped.add(str(e), place)
        except RecursionError:
            skipped.add("no JSON object: nested too deep", place)
        else:
            yield place, exchange


def _record(text: bytes | None) -> dict[str, object]:
    """Parse a line as a JSON object; raise `Skip` if it is none."""
    if text is None:
        raise Skip("a line of more than 16 MiB")
    try:
        record = json.loads(text)
    except ValueError as e:  # also of encodings, and of numbers with thousands of digits
        raise Skip("no JSON object") from e
    if not isinstance(record, dict):
        raise Skip("no JSON object")
    return record


def _cost(price: Price | None, usd: float | None, tokens: tuple[float, float] | None) -> float:
    """Return a request's cost by the price, or as recorded; NaN if unknown."""
    cost = usd if price is None else price.of(tokens)
    return nan if cost is None else cost


def _sides(where: str, models: Counter[str], how: Read, skipped: LeftOut) -> tuple[str, str]:
    """Return the names of the edge's and the cloud's model: as wanted (a pattern may match one), or the other of two.

    Raises:
        BadInput: there are none, or they are ambiguous.
    """
    listed = ", ".join(f"{clean(name)} ({count:,})" for name, count in models.most_common(SHOWN))
    if not models:
        raise BadInput(f"{where}: there is no answer of a model in it that can be used{skipped}")
    sides = list[str]()
    for option, wanted in (("--edge-model", how.edge_model), ("--cloud-model", how.cloud_model)):
        names = [wanted] if wanted in models else [name for name in models if wanted and fnmatchcase(name, wanted)]
        if wanted and len(names) != 1:
            raise BadInput(f"{where}: {option} {clean(wanted)} matches {len(names)} of its models: {listed}{skipped}")
        sides.append(names[0] if names else "")
    if not all(sides) and any(sides) and len(models) == 2:  # noqa: PLR2004 - the other one
        other = next(name for name in models if name not in sides)
        sides = [name or other for name in sides]
    if not all(sides) or sides[0] == sides[1]:
        raise BadInput(f"{where}: name the models with --edge-model and --cloud-model; its models: {listed}{skipped}")
    return sides[0], sides[1]
