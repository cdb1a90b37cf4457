"""Report of `inspect` (`Report`, with answers to a sample), as text for narrow terminals and as JSON."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.output_forms_labels_and_comparison import form_of
from edgeroute.core.error_codes_and_texts import LOST, clean, printable
from edgeroute.edge.input_checks_and_stacking import shape_text
from edgeroute.tools.inspect.input_guesses_and_trial_tensors import Finding, quoted
from edgeroute.types import TensorSpec

MOST = 24  # most elements of a value to show
LINES = 60  # most tensors, and findings of one kind, to show
WIDEST = 100
NARROWEST = 24


class SampleAnswer(NamedTuple):
    """Answer to the sample, in one way of preparing it."""

    way: str
    value: Any = None
    confidence: float | None = None
    error: str = ""


@dataclass
class Report:
    """All findings about a model."""

    model: str
    facts: dict[str, str] = field(default_factory=dict)
    inputs: list[tuple[TensorSpec, str]] = field(default_factory=list)  # input tensors with their roles
    outputs: list[tuple[TensorSpec, str]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # notes on its runs
    sample: str = ""
    shown: list[SampleAnswer] = field(default_factory=list)
    card: dict[str, Any] | None = None  # card to write; None: not for this model
    written: str = ""
    policy: dict[str, str] = field(default_factory=dict)  # entries of `[cloud]` in a policy for an endpoint

    def as_json(self) -> str:
        """Return everything as a JSON object."""
        return json.dumps(
            {
                "model": self.model,
                **self.facts,
                "inputs": [_tensor(*tensor) for tensor in self.inputs],
                "outputs": [_tensor(*tensor) for tensor in self.outputs],
                "findings": [finding._asdict() for finding in self.findings],
                "notes": self.notes,
                "sample": {"file": self.sample, "answers": [*map(_answer_json, self.shown)]} if self.sample else None,
                "card": self.card,
                "written": self.written or None,
                "policy": {"cloud": self.policy} if self.policy else None,
            },
            allow_nan=False,
        )

    def show(self) -> None:
        """Print the report, in the width of the terminal, 24 to 100."""
        width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns))
        for line in self._lines(width):
            print(printable(line).replace(LOST, "?"))

    def _lines(self, width: int) -> Iterator[str]:
        """Yield the lines of the report, wrapped: facts, tensors, findings by sureness, notes, sample's answers, policy and card.

        Of tensors and of findings of one kind 60 at most are shown.
        """
        yield from _wrapped(self.model, width)
        for name, fact in self.facts.items():
            yield from _wrapped(f"{name.replace('_', ' ')}: {fact}", width, 2)
        for title, tensors in (("inputs", self.inputs), ("outputs", self.outputs)):
            yield from ("", title)
            for spec, role in tensors[:LINES]:
                suffix = "" if role in {"given", "read"} else f", {role}"
                yield from _wrapped(f"{quoted(spec.name)}  {_dtype(spec)} {shape_text(spec.shape)}{suffix}", width, 2)
            if len(tensors) > LINES:
                yield f"  and {len(tensors) - LINES} more: --json"
        for sure, title in (("certain", "known"), ("likely", "guessed, with good grounds"), ("open", "open: yours to say")):
            findings = [finding for finding in self.findings if finding.sure == sure]
            if findings:
                yield from ("", title)
            for finding in findings[:LINES]:
                yield from _finding(finding, width)
            if len(findings) > LINES:
                yield f"  and {len(findings) - LINES} more: --json"
        if self.notes:
            yield from ("", "how it ran")
            for note in self.notes:
                yield from _wrapped(note, width, 2)
        if self.sample:
            yield ""
            yield from _wrapped(f"on {clean(self.sample)}", width)
            for shown in self.shown:
                yield from _wrapped(_answer_text(shown), width, 2)
        yield from self._end(width)

    def _end(self, width: int) -> Iterator[str]:
        """Yield the lines for a policy, and of the card, or where it was written; none without a card."""
        if self.policy:
            yield from ("", "in a policy, as far as known")
            yield from ("  [cloud]", *(f"  {key} = {json.dumps(value)}" for key, value in self.policy.items()))
        if self.card is None:
            return
        yield ""
        if self.written:
            yield from _wrapped(f"written: {clean(self.written)}", width)
            return
        yield from _wrapped("the card that --write writes, with what is known or has good grounds", width)
        yield from ("  " + line for line in card_text(self.card).splitlines())


def card_text(card: Mapping[str, Any]) -> str:
    """Return a card as JSON, with lists of numbers on one line each."""
    return "{\n" + ",\n".join(f'  "{key}": {_short(value)}' for key, value in card.items()) + "\n}\n"


def _short(value: Any) -> str:
    """Return a value as JSON on one line; a list or mapping of over 24 characters as a line for each entry."""
    text = json.dumps(value)
    if len(text) <= MOST:
        return text
    if isinstance(value, dict):
        parts = [f'    "{key}": {json.dumps(entry)}' for key, entry in value.items()]
        return "{\n" + ",\n".join(parts) + "\n  }"
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"    {json.dumps(entry)}" for entry in value) + "\n  ]"
    return text


def _finding(finding: Finding, width: int) -> Iterator[str]:
    """Yield the lines of a finding: what it says, its grounds, and for an open one what to write."""
    yield from _wrapped(f"{finding.about}: {quoted(finding.says) if len(finding.says) <= 60 else clean(finding.says)}", width, 2)  # noqa: PLR2004
    yield from _wrapped(f"because: {finding.grounds}" if finding.sure != "open" else finding.grounds, width, 4)
    lines = finding.write.split("\n") if finding.write else []
    if lines:
        yield "    write" + (", one of" if len(lines) > 1 else "") + ":"
    for line in lines:
        yield from _wrapped(line, width, 6)


def _wrapped(text: str, width: int, indent: int = 0) -> list[str]:
    """Return a text as lines of at most `width` characters, unless a word is longer; lines after the first have 2 more spaces."""
    before = " " * indent
    return textwrap.wrap(
        printable(text), width, initial_indent=before, subsequent_indent=before + "  ", break_on_hyphens=False,
        break_long_words=False,
    ) or [""]  # fmt: skip


def _dtype(spec: TensorSpec) -> str:
    """Return a tensor's type for people."""
    return "texts" if spec.dtype == "object" else spec.dtype


def _tensor(spec: TensorSpec, role: str) -> dict[str, Any]:
    """Return a tensor as JSON data."""
    return {"name": spec.name, "dtype": _dtype(spec), "shape": list(spec.shape), "role": role}


def _answer_text(shown: SampleAnswer) -> str:
    """Return an answer with its confidence, or its error, as text."""
    if shown.error:
        return f"{shown.way}: {clean(shown.error)}"
    confidence = "no confidence" if shown.confidence is None else f"confidence {shown.confidence:.4g}"
    return f"{shown.way}: {clean(_value(shown.value), 300)}, {confidence}"


def _answer_json(shown: SampleAnswer) -> dict[str, Any]:
    """Return an answer, or its error, as JSON data; a confidence that is not finite is None."""
    if shown.error:
        return {"way": shown.way, "error": shown.error}
    confidence = shown.confidence
    return {
        "way": shown.way,
        "value": _value(shown.value),
        "confidence": confidence if confidence is not None and isfinite(confidence) else None,
    }


def _value(value: Any) -> Any:
    """Return a value as JSON data: lists and mappings cut to 24 entries, NaN and infinity as text.

    A larger array, or another type, is described in words.
    """
    if isinstance(value, np.ndarray) or hasattr(value, "tolist"):
        if np.size(value) > MOST:
            return form_of(value)
        value = value.tolist()
    if isinstance(value, Mapping):
        return {clean(key, 60): _value(item) for key, item in list(value.items())[:MOST]}
    if isinstance(value, list | tuple):
        return [_value(item) for item in value[:MOST]]
    if isinstance(value, float) and not isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str | None) else form_of(value)
