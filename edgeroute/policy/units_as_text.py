"""Values with a unit as text in policy files: durations, sizes and shares, such as "300ms", "12h", "5MB", "1%"."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

DURATION = r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)"
SIZE = r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(B|KB|MB|GB|KiB|MiB|GiB)"
SHARE = r"(100(?:\.0{1,9})?|[0-9]{1,2}(?:\.[0-9]{1,9})?)%"
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# A number with any word after it, for suggestions.
_LOOSE = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*([a-z]*|%)\s*", re.IGNORECASE)
# Unit -> words that are taken for it in suggestions.
_WORDS = {"ms": "ms|msecs?|milli.*", "s": "s.*", "m": "m|min.*", "h": "h|hrs?|hours?", "d": "d|days?"}


def duration(value: Any, *, words: str = 'a duration such as "300ms", "2s" or "12h"') -> float:
    """Parse a duration to seconds: 0.3 for "300ms". `words` describes it in messages.

    Raises:
        PydanticCustomError: not a duration; the message has the nearest valid spelling.
    """
    match = re.fullmatch(DURATION, value) if isinstance(value, str) else None
    if match is None:
        raise expected_error(words, _suggestion(value, _times, DURATION))
    number, unit = float(match[1]), match[2]
    return number / 1000 if unit == "ms" else number * SECONDS[unit]


def span(value: Any) -> float:
    """Parse a duration above 0 to seconds."""
    if not (seconds := duration(value)):
        raise expected_error("a duration of more than 0")
    return seconds


def period(value: Any) -> float:
    """Parse a duration from a second to a minute to seconds. Raises PydanticCustomError outside of it."""
    words = 'a duration from "1s" to "60s"'
    if not 1 <= (seconds := duration(value, words=words)) <= 60:  # noqa: PLR2004 - said in the words
        raise expected_error(words)
    return seconds


def size(value: Any) -> int:
    """Parse a size to bytes, at least 1: 16777216 for "16MiB".

    Raises:
        PydanticCustomError: not a size; the message has the nearest valid spelling.
    """
    match = re.fullmatch(SIZE, value) if isinstance(value, str) else None
    if match is None:
        raise expected_error('a size such as "512KB" or "16MiB"', _suggestion(value, _sizes, SIZE))
    if not (count := round(float(match[1]) * BYTES[match[2]])):
        raise expected_error("a size of a byte or more")
    return count


def share(value: Any) -> float:
    """Parse a share to 0..1, from text or a number: 0.01 for "1%", and for 0.01.

    Raises:
        PydanticCustomError: not a share; the message has the nearest valid spelling.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    match = re.fullmatch(SHARE, value) if isinstance(value, str) else None
    if match is None:
        raise expected_error('a share such as "1%" or 0.01', _suggestion(value, _shares, SHARE))
    return float(match[1]) / 100


def expected_error(words: str, hint: str = "") -> PydanticCustomError:
    """Return the error for an unexpected value; the value itself is added where the message is written."""
    return PydanticCustomError("expected", "expected {words}", {"words": words, "hint": hint})


def _suggestion(value: Any, units: Callable[[str], list[str]], pattern: str) -> str:
    """Return a hint such as `did you mean "300ms"?` for an invalid value: its number with each unit that its word may mean.

    Empty if the value is no number with a word, or no spelling fits the pattern.
    """
    match = None if isinstance(value, bool) else _LOOSE.fullmatch(str(value))
    meant = [match[1] + unit for unit in units(match[2].lower())] if match else []
    right = [f'"{text}"' for text in meant if re.fullmatch(pattern, text)]
    return f"did you mean {' or '.join(right)}?" if right else ""


def _times(word: str) -> list[str]:
    """Return the units of time that a word may mean. Without a word: ms and s."""
    return [unit for unit, words in _WORDS.items() if re.fullmatch(words, word)] if word else ["ms", "s"]


def _sizes(word: str) -> list[str]:
    """Return the units of size that a word may mean. Without a word: KB and MB."""
    if named := re.fullmatch("(kilo|mega|giga)?bytes?", word):
        return [{"k": "KB", "m": "MB", "g": "GB"}.get((named[1] or "")[:1], "B")]
    return [unit for unit in BYTES if word in {unit.lower(), unit[:-1].lower()}][:1] if word else ["KB", "MB"]


def _shares(word: str) -> list[str]:
    """Return the unit of a share if a word may mean it."""
    return ["%"] if word in {"", "%", "percent"} else []


def text(title: str, pattern: str, example: str) -> dict[str, Any]:
    """Return the JSON Schema of text that matches the whole pattern."""
    return {"type": "string", "title": title, "pattern": f"^({pattern})$", "examples": [example]}


Duration = Annotated[float, PlainValidator(span), WithJsonSchema(text("duration", DURATION, "300ms"))]  # seconds, above 0
Delay = Annotated[float, PlainValidator(duration), WithJsonSchema(text("duration", DURATION, "100ms"))]  # seconds, 0 or more
Period = Annotated[float, PlainValidator(period), WithJsonSchema(text("duration", DURATION, "5s"))]  # seconds, 1 to 60
Size = Annotated[int, PlainValidator(size), WithJsonSchema(text("size", SIZE, "16MiB"))]  # Bytes
# 0..1.
Share = Annotated[
    float,
    PlainValidator(share),
    WithJsonSchema({"anyOf": [text("percentage", SHARE, "1%"), {"type": "number", "minimum": 0, "maximum": 1}]}),
]


def to_text(kind: str, value: float) -> str:
    """Return a number of seconds, bytes or a share as a policy file has it: "1h", "16MiB", "0.5%".

    The largest unit that gives a whole number.
    """
    if kind == "share":
        return f"{100 * value:.9g}%"
    if kind == "duration":
        known = (unit for unit, seconds in reversed(SECONDS.items()) if value % seconds == 0)
        unit = next(known, "ms") if value else "s"
        return f"{1000 * value if unit == 'ms' else value / SECONDS[unit]:.9g}{unit}"
    count, unit = next((value / b, unit) for unit, b in reversed(BYTES.items()) if not value % b or b == 1)
    return f"{count:.9g}{unit}"
