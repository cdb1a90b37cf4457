"""What `inspect` has found, as text for narrow terminals and as JSON."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.forms import form_of
from edgeroute.core.words import LOST, clean, printable
from edgeroute.edge.tensors import shape_text
from edgeroute.tools.inspect.guess_inputs import Finding, quoted
from edgeroute.types import TensorSpec

MOST = 24
"""Elements of a value that are shown."""
LINES = 60
"""Tensors, and findings of one kind, that are shown."""
WIDEST = 100
NARROWEST = 24


class Shown(NamedTuple):
    """What the sample gave, in one way of preparing it."""

    way: str
    value: Any = None
    confidence: float | None = None
    error: str = ""


@dataclass
class Report:
    """What is known of a model."""

    model: str
    facts: dict[str, str] = field(default_factory=dict)
    inputs: list[tuple[TensorSpec, str]] = field(default_factory=list)
    """With their roles."""
    outputs: list[tuple[TensorSpec, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """How it ran."""
    sample: str = ""
    shown: list[Shown] = field(default_factory=list)
    card: dict[str, Any] | None = None
    """What would be written; None: not for this model."""
    written: str = ""
    policy: dict[str, str] = field(default_factory=dict)
    """What `[cloud]` of a policy says of an endpoint."""

    def as_json(self) -> str:
        """All of it, as one object."""
        return json.dumps(
            {
                "model": self.model,
                **self.facts,
                "inputs": [_tensor(*one) for one in self.inputs],
                "outputs": [_tensor(*one) for one in self.outputs],
                "findings": [one._asdict() for one in self.findings],
                "notes": self.notes,
                "sample": {"file": self.sample, "answers": [_answer(one) for one in self.shown]} if self.sample else None,
                "card": self.card,
                "written": self.written or None,
                "policy": {"cloud": self.policy} if self.policy else None,
            },
            allow_nan=False,
        )

    def show(self) -> None:
        """Prints it, in the width of the terminal, with the characters that the stream takes."""
        width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns))
        for line in self._lines(width):
            encoding = sys.stdout.encoding or "utf-8"
            print(printable(line).replace(LOST, "?").encode(encoding, "backslashreplace").decode(encoding))

    def _lines(self, width: int) -> Iterator[str]:
        yield from _wrapped(self.model, width)
        for name, fact in self.facts.items():
            yield from _wrapped(f"{name.replace('_', ' ')}: {fact}", width, 2)
        for title, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            yield from ("", title)
            for spec, role in tensors[:LINES]:
                more = "" if role in {"given", "read"} else f", {role}"
                yield from _wrapped(f"{quoted(spec.name)}  {_dtype(spec)} {shape_text(spec.shape)}{more}", width, 2)
            if len(tensors) > LINES:
                yield f"  and {len(tensors) - LINES} more: --json"
        for sure, title in (("certain", "known"), ("likely", "guessed, with good grounds"), ("open", "open: yours to say")):
            found = [one for one in self.findings if one.sure == sure]
            if found:
                yield from ("", title)
            for one in found[:LINES]:
                yield from _finding(one, width)
            if len(found) > LINES:
                yield f"  and {len(found) - LINES} more: --json"
        if self.notes:
            yield from ("", "how it ran")
            for note in self.notes:
                yield from _wrapped(note, width, 2)
        if self.sample:
            yield ""
            yield from _wrapped(f"on {clean(self.sample)}", width)
            for shown in self.shown:
                yield from _wrapped(_said(shown), width, 2)
        yield from self._end(width)

    def _end(self, width: int) -> Iterator[str]:
        if self.policy:
            yield from ("", "in a policy, as far as it is known")
            yield from ("  [cloud]", *(f"  {key} = {json.dumps(value)}" for key, value in self.policy.items()))
        if self.card is None:
            return
        yield ""
        if self.written:
            yield from _wrapped(f"written: {clean(self.written)}", width)
            return
        yield from _wrapped("the card that --write makes, of what is known or has good grounds", width)
        yield from ("  " + line for line in card_text(self.card).splitlines())


def card_text(card: Mapping[str, Any]) -> str:
    """A card as JSON, lists of numbers on one line each."""
    return "{\n" + ",\n".join(f'  "{key}": {_short(value)}' for key, value in card.items()) + "\n}\n"


def _short(value: Any) -> str:
    """Lists of objects and objects with one key a line, as far as they are long."""
    text = json.dumps(value)
    if len(text) <= MOST:
        return text
    if isinstance(value, dict):
        parts = [f'    "{key}": {json.dumps(one)}' for key, one in value.items()]
        return "{\n" + ",\n".join(parts) + "\n  }"
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"    {json.dumps(one)}" for one in value) + "\n  ]"
    return text


def _finding(one: Finding, width: int) -> Iterator[str]:
    yield from _wrapped(f"{one.about}: {quoted(one.says) if len(one.says) <= 60 else clean(one.says)}", width, 2)  # noqa: PLR2004
    yield from _wrapped(f"because: {one.grounds}" if one.sure != "open" else one.grounds, width, 4)
    lines = one.write.split("\n") if one.write else []
    if lines:
        yield "    write" + (", one of" if len(lines) > 1 else "") + ":"
    for line in lines:
        yield from _wrapped(line, width, 6)


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    before = " " * indent
    return textwrap.wrap(
        printable(text), width, initial_indent=before, subsequent_indent=before + "  ", break_on_hyphens=False,
        break_long_words=False,
    ) or [""]  # fmt: skip


def _dtype(spec: TensorSpec) -> str:
    return "texts" if spec.dtype == "object" else spec.dtype


def _tensor(spec: TensorSpec, role: str) -> dict[str, Any]:
    return {"name": spec.name, "dtype": _dtype(spec), "shape": list(spec.shape), "role": role}


def _said(shown: Shown) -> str:
    if shown.error:
        return f"{shown.way}: {clean(shown.error)}"
    sure = "no confidence" if shown.confidence is None else f"confidence {shown.confidence:.4g}"
    return f"{shown.way}: {clean(_value(shown.value), 300)}, {sure}"


def _answer(shown: Shown) -> dict[str, Any]:
    if shown.error:
        return {"way": shown.way, "error": shown.error}
    sure = shown.confidence
    return {"way": shown.way, "value": _value(shown.value), "confidence": sure if sure is not None and isfinite(sure) else None}


def _value(value: Any) -> Any:
    """A value as JSON has it; in words if it is long."""
    if isinstance(value, np.ndarray) or hasattr(value, "tolist"):
        if np.size(value) > MOST:
            return form_of(value)
        value = value.tolist()
    if isinstance(value, Mapping):
        return {clean(key, 60): _value(one) for key, one in list(value.items())[:MOST]}
    if isinstance(value, list | tuple):
        return [_value(one) for one in value[:MOST]]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else form_of(value)
