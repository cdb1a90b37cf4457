"""Sample of the requests that one model of a log has answered, read in two passes: the log may be larger than the memory."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b
from heapq import nsmallest
from math import nan
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from edgeroute.core.error_codes import clean
from edgeroute.errors import BadInput
from edgeroute.tools.replay.logs.answer_pairs import READERS, SHOWN, Price, Read, exchanges
from edgeroute.tools.replay.logs.lines_and_tables import Left, LeftOut, lines
from edgeroute.tools.replay.logs.recorded_answers import Exchange, Options, RequestAlone, digest, text_form

LONGEST_LABEL, MOST_LABELS = 60, 100
"""Most characters of a label, and most labels, of answers that count as labels."""
REPEATED: Final = "the same request again, which tells nothing new"


class Logged(NamedTuple):
    """Request of the log, with the cloud's answer."""

    id: str
    """Digest of request and answer, hex."""
    x: Any
    """Input for a model: messages, a prompt, or a mapping with tools or a format."""
    text: str
    """The cloud's answer."""
    calls: list[list[object]]
    """Its tool calls."""
    usd: float
    """Its cost, dollars; NaN: unknown."""
    took_s: float | None


class Survey(NamedTuple):
    """Usable requests of a log, and the sample of them."""

    models: frozenset[str]
    """Names of the cloud's model."""
    requests: int
    """Different usable requests."""
    repeats: int
    usd: float
    """Cost of all usable requests, dollars; NaN: not all are known."""
    chosen: frozenset[bytes]
    """Digests of the sampled requests."""
    labels: frozenset[str] | None
    """Forms of all answers, if these are labels; None: they are not."""
    left_out: tuple[Left, ...]

    @property
    def model(self) -> str:
        """The name of the cloud's model, for people."""
        return ", ".join(sorted(clean(name) for name in self.models if name)) or "the log's model"


def survey(paths: Sequence[Path], kind: str, how: Read, sample: int, seed: int) -> Survey:
    """Read a log, and draw a sample of its different requests, which does not depend on their order.

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

    def add_prompt(alone: RequestAlone) -> None:
        """Store that a request is known, if a model can take it."""
        if alone.request:
            prompts.add(alone.key)

    repeats = 0
    for place, exchange in exchanges(paths, READERS[kind], Options(how.id), skipped, add_prompt):
        answer = exchange.answer
        counts[answer.model] += 1
        by_model = answered.setdefault(answer.key, {})
        if answer.model in by_model:
            repeats += 1
            skipped.add(REPEATED, place)
            continue
        by_model[answer.model] = _cost(how.cloud_price, exchange), bool(exchange.request)
        labels[answer.model] = _with_label(labels.get(answer.model, set()), exchange)
    if not counts:
        raise BadInput(f"{paths[0]}: there is no answer of a model in it that can be used{_hint(paths)}{skipped}")
    models = _cloud_models(str(paths[0]), counts, how.cloud_model)
    costs, usable, other, mute = array("d"), list[bytes](), 0, 0
    for key, by_model in answered.items():
        name = next((name for name in by_model if name in models), None)
        if name is None:
            other += 1
        elif by_model[name][1] or key in prompts:
            usable.append(key)
            costs.append(by_model[name][0])
        else:
            mute += 1
    skipped.add("an answer of another model alone", count=other)
    skipped.add("an answer without its request (of a batch, pass the input file too)", count=mute)
    if not usable:
        raise BadInput(f"{paths[0]}: there is no request with its answer in it{skipped}")
    ranked = usable if not sample else nsmallest(sample, usable, lambda key: blake2b(key, key=b"%d" % seed).digest())
    forms = [labels[name] for name in models]
    known = None if None in forms else frozenset[str]().union(*(form for form in forms if form is not None))
    known = None if known is None or len(known) > min(MOST_LABELS, max(2, len(usable) // 3)) else known
    return Survey(models, len(usable), repeats, float(np.sum(costs)), frozenset(ranked), known, skipped.all())


def _with_label(labels: set[str] | None, exchange: Exchange) -> set[str] | None:
    """Add an answer's form to the labels, in place, and return them; None if the answers are no labels."""
    form = text_form(exchange.text)
    if labels is None or not form or len(form) > LONGEST_LABEL or exchange.calls:
        return None
    labels.add(form)
    return labels if len(labels) <= MOST_LABELS else None


def _cost(price: Price | None, exchange: Exchange) -> float:
    """Return the cost of a request by the price, or as recorded; NaN if unknown."""
    cost = exchange.answer.usd if price is None else price.of(exchange.answer.tokens)
    return nan if cost is None else cost


def _hint(paths: Sequence[Path]) -> str:
    """Return the hint for a file that is one list, as some exports are; empty for others."""
    first = next(lines(paths), None)
    is_list = first is not None and (first.text or b"").lstrip()[:1] == b"["
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
    """Yield the sampled requests, in the order of the log, each once with the first answer of the cloud's model.

    Raises:
        BadInput: a file cannot be read.
    """
    requests, waiting, done = dict[bytes, Any](), dict[bytes, Exchange](), set[bytes]()
    ready = list[Logged]()

    def add_prompt(alone: RequestAlone) -> None:
        """Store a sampled request until its answer comes, or complete the answer that waits for it."""
        if alone.key in drawn.chosen and alone.request and alone.key not in done:
            if (exchange := waiting.pop(alone.key, None)) is not None:
                ready.append(complete(exchange, alone.request))
            else:
                requests.setdefault(alone.key, alone.request)

    def complete(exchange: Exchange, request: Any) -> Logged:
        """Return a request with its answer; mark it as done."""
        done.add(exchange.answer.key)
        x = next(iter(request.values())) if len(request) == 1 else request
        asked = digest([x, exchange.answer.answer.hex()])
        return Logged(asked.hex(), x, exchange.text, exchange.calls, _cost(how.cloud_price, exchange), exchange.took_s)

    for _, exchange in exchanges(paths, READERS[kind], Options(how.id, match="exact"), LeftOut(), add_prompt):
        key = exchange.answer.key
        if key in drawn.chosen and exchange.answer.model in drawn.models and key not in done:
            request = exchange.request or requests.pop(key, None)
            if request:
                ready.append(complete(exchange, request))
            else:
                waiting.setdefault(key, exchange)
        yield from ready
        ready.clear()
    yield from ready
