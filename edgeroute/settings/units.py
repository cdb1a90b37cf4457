"""Durations and sizes as a person writes them: "300ms", "2s", "5MB"."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m)"
SIZE = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(B|KB|MB|GB|KiB|MiB|GiB)"
BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_LOOSE = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*([a-z]*)\s*", re.IGNORECASE)


def duration(value: Any) -> float:
    """From text to seconds: 0.3 for "300ms".

    Raises:
        PydanticCustomError: it is no duration; the message has the nearest right spelling.
    """
    match = re.fullmatch(DURATION, value) if isinstance(value, str) else None
    if match is None:
        raise expected('a duration such as "300ms" or "2s"', _near(value, _times))
    number, unit = float(match[1]), match[2]
    return number / 1000 if unit == "ms" else number * 60 if unit == "m" else number


def span(value: Any) -> float:
    """A duration of more than nothing."""
    if not (seconds := duration(value)):
        raise expected("a duration of more than 0")
    return seconds


def size(value: Any) -> int:
    """From text to bytes, at least one: 16777216 for "16MiB".

    Raises:
        PydanticCustomError: it is no size; the message has the nearest right spelling.
    """
    match = re.fullmatch(SIZE, value) if isinstance(value, str) else None
    if match is None:
        raise expected('a size such as "512KB" or "16MiB"', _near(value, _sizes))
    if not (count := round(float(match[1]) * BYTES[match[2]])):
        raise expected("a size of a byte or more")
    return count


def expected(words: str, hint: str = "") -> PydanticCustomError:
    """The error that says so; what was found is added where the message is written."""
    return PydanticCustomError("expected", "expected {words}", {"words": words, "hint": hint})


def _near(value: Any, units: Callable[[str], list[str]]) -> str:
    """How the value could have been meant; nothing where it has no number."""
    match = None if isinstance(value, bool) else _LOOSE.fullmatch(str(value))
    meant = [f'"{match[1]}{unit}"' for unit in units(match[2].lower())] if match else []
    return f"did you mean {' or '.join(meant)}?" if meant else ""


def _times(word: str) -> list[str]:
    if not word:
        return ["ms", "s"]
    if word in {"ms", "msec", "msecs"} or word.startswith("milli"):
        return ["ms"]
    return [word[0]] if word.startswith(("s", "min")) or word == "m" else []


def _sizes(word: str) -> list[str]:
    return [unit for unit in BYTES if word in {unit.lower(), unit[:-1].lower()}][:1] if word else ["KB", "MB"]


def _text(title: str, pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "title": title, "pattern": f"^{pattern}$", "examples": [example]})


Duration = Annotated[float, PlainValidator(span), _text("duration", DURATION, "300ms")]
"""Seconds, more than 0."""
Delay = Annotated[float, PlainValidator(duration), _text("duration", DURATION, "100ms")]
"""Seconds, 0 or more."""
Size = Annotated[int, PlainValidator(size), _text("size", SIZE, "16MiB")]
"""Bytes."""
