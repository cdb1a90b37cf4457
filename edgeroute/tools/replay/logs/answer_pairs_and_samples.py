"""Requests of a log, whose lines may be huge or damaged: pairs of two models' answers (`read_pairs`), or a sample (`survey`).

Logs are JSON lines of the kinds `READERS`, or tables (CSV). A record that cannot be used is skipped and counted by its reason.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from hashlib import blake2b
from heapq import nsmallest
from math import isfinite, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final, NamedTuple

import numpy as np

import edgeroute.tools.replay.logs.answer_log_parsers_and_digests as recorded
from edgeroute.confidence.binomial_tests import Floats
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.errors import BadInput
from edgeroute.system.untrusted_files import open_file
from edgeroute.tools.data_classes_of_records import data_classes

MOST: Final = 1 << 24  # most bytes of a line; longer ones are skipped without being held in memory
TOO_LONG: Final = "a line of more than 16 MiB"


class Left(NamedTuple):
    """Records that were skipped for one reason."""

    why: str
    requests: int
    first: str  # FILE:LINE of the first of them; empty: unknown

    def __str__(self) -> str:
        return f"left out, {self.requests:,}: {self.why}" + (f" (first: {self.first})" if self.first else "")


class LeftOut:
    """Counter of skipped records, by reason."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, str]] = {}

    def add(self, why: str, first: str = "", count: int = 1) -> None:
        """Count records under a reason, unless `count` is 0; the place of the first of each reason is stored."""
        if not count:
            return
        before, place = self._counts.get(why, (0, first))
        self._counts[why] = before + count, place

    def __str__(self) -> str:
        """Return the end of an error's message; empty if there are none."""
        return "".join(f"; left out, {r.requests:,}: {r.why}" + (f" ({r.first})" if r.first else "") for r in self.all())

    def all(self) -> tuple[Left, ...]:
        """Return the reasons, the most frequent first."""
        return tuple(sorted((Left(why, *count) for why, count in self._counts.items()), key=lambda reason: -reason.requests))


def lines(paths: Iterable[Path]) -> Iterator[tuple[str, bytes | None]]:
    """Yield FILE:NUMBER and text of each line of all files, without empty ones; `-` is stdin. None: it is longer than `MOST`.

    Raises:
        BadInput: a file cannot be read.
    """
    for path in paths:
        with _opened(path) as file:
            for number, part in enumerate(iter(lambda: file.readline(MOST + 1), b""), 1):
                complete = part.endswith(b"\n") or len(part) <= MOST
                rest = part
                while not rest.endswith(b"\n") and len(rest) > MOST:
                    rest = file.readline(MOST + 1)
                if not complete or part.strip():
                    yield f"{path}:{number}", part if complete else None


@contextmanager
def regular_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Provide files that can be read twice: stdin, for `-`, is copied to a temporary one, deleted after the `with` block.

    The temporary folder is for its owner alone.
    """
    with ExitStack() as stack:
        files = []
        for path in paths:
            if str(path) == "-":
                copy = Path(stack.enter_context(TemporaryDirectory())) / "stdin.jsonl"
                with copy.open("wb") as file:
                    shutil.copyfileobj(sys.stdin.buffer, file)
                files.append(copy)
            else:
                files.append(path)
        yield files


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Provide an open file, closed at the end, or stdin for `-`, which stays open.

    Raise BadInput for errors, in the block too.
    """
    try:
        if str(path) == "-":
            yield sys.stdin.buffer
            return
        with open_file(path) as file:
            yield file
    except FileNotFoundError as e:
        raise BadInput(f"{path}: there is no such file") from e
    except OSError as e:
        raise BadInput(f"{path} cannot be read: {e.strerror or e}") from e


# Tables (CSV): a row for each request, with a confidence, and the answers of both models or their correctness.

SCORES, ANSWERS, USD = ("edge_score", "cloud_score"), ("edge_answer", "cloud_answer"), ("edge_usd", "cloud_usd")
COLUMNS: Final = "confidence, edge_score and cloud_score (0..1) or edge_answer and cloud_answer; if known id, edge_usd, cloud_usd"
LONGEST: Final = 1 << 17  # most characters of a field
DAMAGED: Final = "no row of a table: a field that is too long, or damaged"
_TRUTHS: Final = {"true": 1.0, "false": 0.0}


class Row(NamedTuple):
    """Request that both models answered."""

    id: str
    confidence: float  # confidence of the edge; NaN: there is none
    edge: float  # correctness of the edge, 0..1; where answers are compared, 1: equal to the cloud's
    cloud: float
    usd: tuple[float | None, float | None]  # costs of edge and cloud


def rows(paths: Iterable[Path], options: recorded.Options, skipped: LeftOut) -> tuple[list[Row], bool]:
    """Read the rows of all tables; return them, and True if answers are compared because there are no scores.

    A row that cannot be used is added to `skipped`.

    Raises:
        BadInput: a file cannot be read, lacks a column or has it twice; or some tables have scores, and others answers.
    """
    table_rows, kinds = list[Row](), set[bool]()
    for path in paths:
        place = [""]
        table = csv.DictReader(_text_lines(path, skipped, place))
        header = _header(table, path)
        kinds.add(not header.issuperset(SCORES))
        if len(kinds) > 1:
            raise BadInput(f"{path}: some tables have scores and others answers: use one kind")
        while True:
            try:
                row = next(table, None)
                if row is None:
                    break
                table_rows.append(_row(row, options, scores=not any(kinds)))
            except (csv.Error, recorded.Skip) as e:
                skipped.add(DAMAGED if isinstance(e, csv.Error) else str(e), place[0])
    return table_rows, any(kinds)


def _text_lines(path: Path, skipped: LeftOut, place: list[str]) -> Iterator[str]:
    """Yield a file's lines as text, and write the place of each into `place`; too long lines are skipped and counted."""
    for place[0], line in lines([path]):
        if line is None:
            skipped.add(TOO_LONG, place[0])
        else:
            yield line.decode("utf-8-sig", "replace").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _header(table: csv.DictReader[str], path: Path) -> set[str]:
    """Read the header of a table and return its columns; raise BadInput if one is missing or there twice."""
    try:
        header = {*(table.fieldnames or ())}
    except csv.Error as e:
        raise BadInput(f"{path}:1: no header of a table: {COLUMNS}") from e
    if "confidence" not in header or not (header.issuperset(SCORES) or header.issuperset(ANSWERS)):
        raise BadInput(f"{path}:1: the first line names the columns: {COLUMNS}")
    twice = sorted(name for name in {"id", "confidence", *SCORES, *ANSWERS, *USD} if list(table.fieldnames or ()).count(name) > 1)
    if twice:
        raise BadInput(f"{path}:1: the first line names {twice[0]} twice")
    return header


def _row(row: Mapping[str | None, str | None], options: recorded.Options, *, scores: bool) -> Row:
    """Parse a row, an empty confidence as NaN, an empty cost as None; raise `Skip` if it cannot be used.

    With `scores` correctness is as given; without, the edge is right where both answers are the same, and the cloud always.
    """
    if any(len(text or "") > LONGEST for text in row.values()):
        raise recorded.Skip(DAMAGED)  # csv's own limit may have been changed by the program
    text = {name: (row.get(name) or "").strip() for name in ("id", "confidence", *SCORES, *USD)}
    confidence = nan if text["confidence"] in {"", "nan", "NaN"} else _number("confidence", text["confidence"])
    if scores:
        edge, cloud = (_score(name, text[name]) for name in SCORES)
    else:
        edge_answer, cloud_answer = (row.get(name) for name in ANSWERS)
        if edge_answer is None or cloud_answer is None:
            raise recorded.Skip("a row that ends before its answers")
        digests = [recorded.answer_digest(answer, [], options) for answer in (edge_answer, cloud_answer)]
        edge, cloud = float(digests[0] == digests[1]), 1.0
    usd = [recorded.number(_number(name, text[name])) if text[name] else None for name in USD]
    return Row(text["id"], confidence, edge, cloud, (usd[0], usd[1]))


def _score(name: str, text: str) -> float:
    """Parse a score, from 0 to 1, rounding errors put right, or true or false; raise `Skip` for all else."""
    score: float = _TRUTHS[text.lower()] if text.lower() in _TRUTHS else recorded.round_grade(_number(name, text))
    if not 0 <= score <= 1:
        raise recorded.Skip(f"{name} is not from 0 to 1")
    return score


def _number(name: str, text: str) -> float:
    """Parse a finite number; raise `Skip` for all else."""
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not isfinite(value):
        raise recorded.Skip(f"{name} is no number")
    return value


READERS: Final[Mapping[str, recorded.Reader]] = {
    "openai-log": recorded.openai_answer, "litellm-log": recorded.litellm_answer, "langfuse-log": recorded.langfuse_answer,
}  # fmt: skip
FORMATS: Final = (*READERS, "csv")
SHOWN: Final = 10  # most models of a log that an error lists


class Price(NamedTuple):
    """Price of a request, dollars; overrides the log."""

    usd: float = 0.0  # price of a request
    usd_in: float = 0.0  # price of a million tokens of the prompt
    usd_out: float = 0.0  # price of a million tokens of the completion

    def of(self, tokens: tuple[float, float] | None) -> float | None:
        """Return the cost of a request; None if it depends on tokens, which are not recorded."""
        if tokens is None:
            return None if self.usd_in or self.usd_out else self.usd
        return self.usd + (tokens[0] * self.usd_in + tokens[1] * self.usd_out) / 1e6


Prices = Price | Mapping[str, Price]  # of all models, or model or pattern (`gpt-4o-mini*`) -> its price; the first that fits


class Read(NamedTuple):
    """Options for reading and pairing a log."""

    # Model that would run on the edge, as the log names it, or a pattern (`gpt-4o-mini*`); empty: the other one of two.
    edge_model: str = ""
    cloud_model: str = ""
    edge_price: Prices | None = None
    cloud_price: Prices | None = None
    id: str = ""  # dotted path of a request's id (`metadata.job`); empty: the format's own id, or the messages
    score: str = ""  # dotted path of an answer's correctness, 0..1; empty: correct means to agree with the cloud
    match: recorded.Match = "text"  # meaning of agreement: `text` ignores case, spaces and surrounding punctuation; or `exact`


class Pairs(NamedTuple):
    """Requests that both models answered."""

    edge_model: str
    cloud_model: str
    confidence: Floats  # [n], of the edge's answers; NaN: unknown
    edge: Floats  # [n], correctness of the edge, 0..1; where answers are compared, 1 if it agrees with the cloud
    cloud: Floats | None  # [n], correctness of the cloud, 0..1; None: answers are compared
    usd: tuple[Floats, Floats]  # [n] each, of edge and cloud; NaN: unknown
    left_out: tuple[Left, ...]


def read_pairs(paths: Sequence[Path], kind: str, how: Read) -> Pairs:
    """Read a log of one of `FORMATS`, from one or several files, and pair the two models' answers by their request.

    Unusable and single answers, and repeats, are skipped and counted in the result.

    Raises:
        BadInput: a file cannot be read, the models are ambiguous, there is no pair, or no answer of the edge has a confidence.
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
    """Make the pairs of tables' rows, with costs by the given prices; an id that occurs again is skipped and counted."""
    all_rows, compared = rows(paths, recorded.Options(match=how.match), skipped)
    unique, seen = list[Row](), set[str]()
    for row in all_rows:
        if row.id and row.id in seen:
            skipped.add("an ID that was there before")
            continue
        seen.add(row.id)
        unique.append(row)
    names = how.edge_model or "the edge", how.cloud_model or "the cloud"
    edge_usd = _floats(_cost(how.edge_price, row.usd[0], None, names[0]) for row in unique)
    cloud_usd = _floats(_cost(how.cloud_price, row.usd[1], None, names[1]) for row in unique)
    confidence, edge, cloud = (_floats(row[i] for row in unique) for i in (1, 2, 3))
    return Pairs(*names, confidence, edge, None if compared else cloud, (edge_usd, cloud_usd), skipped.all())


def _floats(values: Iterable[Any]) -> Floats:
    """Return numbers as an array."""
    return np.fromiter(values, np.float64)


def _pairs_of_log(paths: Sequence[Path], reader: recorded.Reader, how: Read, skipped: LeftOut) -> Pairs:
    """Pair the answers of a log by request and model; count repeats, other models and single answers as skipped.

    Raises:
        BadInput: a file cannot be read, or the two models are ambiguous.
    """
    requests, models = dict[bytes, dict[str, recorded.RecordedAnswer]](), Counter[str]()
    for place, exchange in exchanges(paths, reader, recorded.Options(how.id, how.score, how.match), skipped):
        answer = exchange.answer
        if not answer.model:
            skipped.add(recorded.UNNAMED, place)
            continue
        models[answer.model] += 1
        answers = requests.setdefault(answer.key, {})
        if answer.model in answers:
            skipped.add("the same request to the same model again, which tells nothing new", place)
        else:
            answers[answer.model] = answer
    edge_model, cloud_model = _sides(f"{paths[0]}", models, how, skipped)
    pairs = list[tuple[recorded.RecordedAnswer, recorded.RecordedAnswer]]()
    others = sum(count for model, count in models.items() if model not in {edge_model, cloud_model})
    skipped.add("an answer of another model", count=others)
    for answers in requests.values():
        edge_answer, cloud_answer = answers.get(edge_model), answers.get(cloud_model)
        if edge_answer is not None and cloud_answer is not None:
            pairs.append((edge_answer, cloud_answer))
        elif edge_answer is not None or cloud_answer is not None:
            skipped.add(f"a request that only {clean(cloud_model if edge_answer is None else edge_model)} answered")
    confidence = _floats(a.confidence for a, _ in pairs)
    edge = _floats(a.score if how.score else a.answer == b.answer for a, b in pairs)
    cloud = _floats(b.score for _, b in pairs) if how.score else None
    edge_usd = _floats(_cost(how.edge_price, a.usd, a.tokens, edge_model) for a, _ in pairs)
    cloud_usd = _floats(_cost(how.cloud_price, b.usd, b.tokens, cloud_model) for _, b in pairs)
    return Pairs(edge_model, cloud_model, confidence, edge, cloud, (edge_usd, cloud_usd), skipped.all())


def exchanges(
    paths: Sequence[Path], reader: recorded.Reader, options: recorded.Options, skipped: LeftOut,
    alone: Callable[[recorded.RequestAlone], object] | None = None,
) -> Iterator[tuple[str, recorded.Exchange]]:  # fmt: skip
    """Yield the place and content of each line that can be used; count the others as skipped.

    alone: called with a request whose answer is in another line; None: such a line is skipped.

    Raises:
        BadInput: a file cannot be read.
    """
    for place, text in lines(paths):
        try:
            record = record_of(text)
            exchange = reader(record, options)._replace(classes=(*data_classes(record),))
        except recorded.Skip as e:  # noqa: PERF203 - a line must not lose the others
            if alone is not None and isinstance(e, recorded.RequestAlone):
                alone(e)
            else:
                skipped.add(str(e), place)
        except RecursionError:
            skipped.add("no JSON object: nested too deep", place)
        else:
            yield place, exchange


def record_of(text: bytes | None) -> dict[str, object]:
    """Parse a line as a JSON object; raise `Skip` if it is none. `RecursionError` if it is nested too deep."""
    if text is None:
        raise recorded.Skip(TOO_LONG)
    try:
        record = json.loads(text)
    except ValueError as e:  # also of encodings, and of numbers with thousands of digits
        raise recorded.Skip("no JSON object") from e
    if not isinstance(record, dict):
        raise recorded.Skip("no JSON object")
    return record


def _cost(prices: Prices | None, usd: float | None, tokens: tuple[float, float] | None, model: str) -> float:
    """Return a request's cost by the model's price, or as recorded if it has none; NaN if unknown."""
    if isinstance(prices, Mapping):
        prices = prices.get(model, next((prices[name] for name in prices if fnmatchcase(model, name)), None))
    cost = usd if prices is None else prices.of(tokens)
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
        how_to = "name the models with --edge-model and --cloud-model"
        if len(models) == 1:
            how_to = "it has one model: name the edge that answers its requests with --edge, as in --edge model.gguf"
        raise BadInput(f"{where}: {how_to}; its models: {listed}{skipped}")
    return sides[0], sides[1]


LONGEST_LABEL, MOST_LABELS = 60, 100  # most characters of a label, and most labels, of answers that count as labels
REPEATED: Final = "the same request again, which tells nothing new"


class Logged(NamedTuple):
    """Request of the log, with the cloud's answer."""

    id: str  # digest of request and answer, hex
    x: Any  # input for a model: messages, a prompt, or a mapping with tools or a format
    text: str  # the cloud's answer
    calls: list[list[object]]  # its tool calls
    usd: float  # its cost, dollars; NaN: unknown
    took_s: float | None
    classes: tuple[Any, ...] = ()  # data classes that its lines name, of whatever type


class Survey(NamedTuple):
    """Usable requests of a log, and the sample of them."""

    models: frozenset[str]  # names of the cloud's model
    requests: int  # different usable requests
    repeats: int
    usd: float  # cost of all usable requests, dollars; NaN: not all are known
    chosen: frozenset[bytes]  # digests of the sampled requests
    labels: frozenset[str] | None  # forms of all answers, if these are labels; None: they are not
    left_out: tuple[Left, ...]

    @property
    def model(self) -> str:
        """Names of the cloud's model, for people, unprintable characters removed."""
        return ", ".join(sorted(clean(name) for name in self.models if name)) or "the log's model"


def survey(paths: Sequence[Path], kind: str, how: Read, sample: int, seed: int) -> Survey:
    """Read a log, and draw a sample of its different requests, which depends on the seed and not on their order.

    Of a request that is there several times the first answer counts. The answers count as labels if they are short and few.

    Args:
        paths: files of the log.
        kind: one of `READERS`.
        how: how it is read; `cloud_model` may be a pattern of several names.
        sample: most requests; 0: all.
        seed: seed of the sample.

    Raises:
        BadInput: a file cannot be read, there is no usable request, or several models and none is named.
    """
    skipped, counts = LeftOut(), Counter[str]()
    prompts = set[bytes]()
    answered = dict[bytes, dict[str, tuple[float, bool]]]()  # request -> model -> cost, and True if the request is beside it
    labels = dict[str, set[str] | None]()

    def add_prompt(alone: recorded.RequestAlone) -> None:
        """Store that a request is known, if a model can take it."""
        if alone.request:
            prompts.add(alone.key)

    repeats = 0
    for place, exchange in exchanges(paths, READERS[kind], recorded.Options(how.id), skipped, add_prompt):
        answer = exchange.answer
        counts[answer.model] += 1
        by_model = answered.setdefault(answer.key, {})
        if answer.model in by_model:
            repeats += 1
            skipped.add(REPEATED, place)
            continue
        cost = _cost(how.cloud_price, answer.usd, answer.tokens, answer.model)
        by_model[answer.model] = cost, bool(exchange.request)
        labels[answer.model] = _with_label(labels.get(answer.model, set()), exchange)
    if not counts:
        raise BadInput(f"{paths[0]}: there is no answer of a model in it that can be used{_hint(paths)}{skipped}")
    models = _cloud_models(str(paths[0]), counts, how.cloud_model)
    costs, usable = array("d"), list[bytes]()
    for key, by_model in answered.items():
        name = next((name for name in by_model if name in models), None)
        if name is None:
            skipped.add("an answer of another model alone")
        elif by_model[name][1] or key in prompts:
            usable.append(key)
            costs.append(by_model[name][0])
        else:
            skipped.add("an answer without its request (of a batch, pass the input file too)")
    if not usable:
        raise BadInput(f"{paths[0]}: there is no request with its answer in it{skipped}")
    ranked = usable if not sample else nsmallest(sample, usable, lambda key: blake2b(key, key=b"%d" % seed).digest())
    forms = [labels[name] for name in models]
    known = None if None in forms else frozenset[str]().union(*(form for form in forms if form is not None))
    known = None if known is None or len(known) > min(MOST_LABELS, max(2, len(usable) // 3)) else known
    return Survey(models, len(usable), repeats, float(np.sum(costs)), frozenset(ranked), known, skipped.all())


def _with_label(labels: set[str] | None, exchange: recorded.Exchange) -> set[str] | None:
    """Add an answer's form to the labels, in place, and return them; None once an answer is no label, or there are too many."""
    form = recorded.text_form(exchange.text)
    if labels is None or not form or len(form) > LONGEST_LABEL or exchange.calls:
        return None
    labels.add(form)
    return labels if len(labels) <= MOST_LABELS else None


def _hint(paths: Sequence[Path]) -> str:
    """Return the hint for a first file that is one list, as some exports are; empty for others. Opens the files again."""
    _, first = next(lines(paths), ("", None))
    is_list = (first or b"").lstrip()[:1] == b"["
    return ": it is a list, and a log has an object on each line, as `jq -c '.[]'` writes them" if is_list else ""


def _cloud_models(where: str, counts: Counter[str], wanted: str) -> frozenset[str]:
    """Return the names of the cloud's model: those of the pattern, or the only one.

    Raises:
        BadInput: none matches, or there are several and no pattern.
    """
    names = frozenset(name for name in counts if not wanted or name == wanted or fnmatchcase(name, wanted))
    listed = ", ".join(f"{clean(name) or 'without a name'} ({count:,})" for name, count in counts.most_common(SHOWN))
    if not names:
        raise BadInput(f"{where}: --cloud-model {clean(wanted)} matches none of its models: {listed}")
    if len(names) > 1 and not wanted:
        raise BadInput(f"{where}: name the cloud's model with --cloud-model, as in 'gpt-4o*'; its models: {listed}")
    return names


def read_sample(paths: Sequence[Path], kind: str, how: Read, drawn: Survey) -> Iterator[Logged]:
    """Yield the sampled requests, each once with the first answer of the cloud's model, as soon as both have been read.

    A request and its answer may be in different lines, in any order, and are in memory until the other comes.

    Raises:
        BadInput: a file cannot be read.
    """
    requests, waiting, done = dict[bytes, recorded.RequestAlone](), dict[bytes, recorded.Exchange](), set[bytes]()
    ready = list[Logged]()

    def add_prompt(alone: recorded.RequestAlone) -> None:
        """Store a sampled request until its answer comes, or complete the answer that waits for it."""
        if alone.key in drawn.chosen and alone.request and alone.key not in done:
            if (exchange := waiting.pop(alone.key, None)) is not None:
                ready.append(complete(exchange, alone.request, alone.classes))
            else:
                requests.setdefault(alone.key, alone)

    def complete(exchange: recorded.Exchange, request: Any, classes: tuple[Any, ...] = ()) -> Logged:
        """Return a request with its answer; mark it as done."""
        done.add(exchange.answer.key)
        x, answer = next(iter(request.values())) if len(request) == 1 else request, exchange.answer
        cost = _cost(how.cloud_price, answer.usd, answer.tokens, answer.model)
        return Logged(
            recorded.digest([x, answer.answer.hex()]).hex(), x, exchange.text, exchange.calls, cost, exchange.took_s,
            (*classes, *exchange.classes),
        )  # fmt: skip

    for _, exchange in exchanges(paths, READERS[kind], recorded.Options(how.id, match="exact"), LeftOut(), add_prompt):
        key = exchange.answer.key
        if key in drawn.chosen and exchange.answer.model in drawn.models and key not in done:
            if exchange.request:
                ready.append(complete(exchange, exchange.request))
            elif (alone := requests.pop(key, None)) is not None:
                ready.append(complete(exchange, alone.request, alone.classes))
            else:
                waiting.setdefault(key, exchange)
        yield from ready
        ready.clear()
    yield from ready
