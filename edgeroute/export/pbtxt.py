"""Protocol buffers' text format, in which Triton's configurations are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Word(NamedTuple):
    """A name of an enumeration, which stands without quotes."""

    text: str


def dumps(message: Mapping[str, Any], indent: str = "") -> str:
    """A message as text: mappings are messages, lists repeated fields, lists of plain values short ones in brackets."""
    lines = list[str]()
    for key, value in message.items():
        for one in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(one, Mapping):
                inside = dumps(one, indent + "  ")
                lines.append(f"{indent}{key} {{\n{inside}{indent}}}\n" if inside else f"{indent}{key} {{ }}\n")
            elif isinstance(one, list):
                lines.append(f"{indent}{key}: [{', '.join(map(_value, one))}]\n")
            else:
                lines.append(f"{indent}{key}: {_value(one)}\n")
    return "".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Word):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """A string of which nothing can end the quotes: what is no printable ASCII is escaped byte by byte."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode()) + '"'  # noqa: PLR2004 - ASCII
