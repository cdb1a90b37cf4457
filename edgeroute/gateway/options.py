"""Options of one request, from its headers `x-edgeroute-...`. What is not known is refused: a typo must not let data leave."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from edgeroute.core.egress import Rules
from edgeroute.core.policy import MODES, Mode
from edgeroute.core.texts import clean
from edgeroute.errors import BadInput, nearest

PREFIX = b"x-edgeroute-"
NAMES = ("mode", "deadline", "first-token", "data-class")
LONGEST = 200
"""Characters of a value."""
MOST_S = 86400.0
"""Seconds of a deadline."""
_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?) ?(ms|s|m)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}


class Options(NamedTuple):
    """What a request asks of the router; None: as the policy says."""

    mode: Mode | None = None
    deadline: float | None = None
    first_token: float | None = None
    data_class: str | None = None


NONE = Options()


def options(headers: Iterable[tuple[bytes, bytes]], rules: Rules) -> Options:
    """Reads them.

    Args:
        headers: of the request, names in lower case.
        rules: the policy's, which name the data classes.

    Raises:
        BadInput: there is no such option, it is there twice, or its value is none.
    """
    given: dict[str, str] = {}
    for raw, value in headers:
        if not raw.startswith(PREFIX):
            continue
        name, text = raw[len(PREFIX) :].decode("latin-1"), value.decode("latin-1").strip()
        if name not in NAMES:
            raise BadInput(f"there is no header {clean(raw.decode('latin-1'), 60)}: {nearest(name, NAMES)}")
        if name in given:
            raise BadInput(f"the header x-edgeroute-{name} is there twice: send it once")
        if not 0 < len(text) <= LONGEST or not text.isprintable():
            raise BadInput(f"the header x-edgeroute-{name} takes 1 to {LONGEST} printable characters")
        given[name] = text
    return _read(given, rules) if given else NONE


def _read(given: dict[str, str], rules: Rules) -> Options:
    mode: Any = given.get("mode")
    if mode not in (None, *MODES):
        raise BadInput(f"x-edgeroute-mode is {clean(mode, 40)!r}: {nearest(mode, MODES)}")
    data_class = given.get("data-class")
    classes = {*rules.never_leave, *rules.may_leave, *([rules.default_class] if rules.default_class else [])}
    if data_class is not None and data_class not in classes and rules.unknown_class == "deny":
        hint = nearest(data_class, sorted(classes)) if classes else "it has none, see [egress]"
        raise BadInput(f"x-edgeroute-data-class is {clean(data_class, 40)!r}, which the policy does not name: {hint}")
    return Options(
        mode, _seconds("deadline", given), _seconds("first-token", given), data_class
    )  # fmt: skip


def _seconds(name: str, given: dict[str, str]) -> float | None:
    text = given.get(name)
    if text is None:
        return None
    found = _TIME.fullmatch(text)
    seconds = 0.0 if found is None else float(found[1]) * _UNITS[found[2]]
    if not 0 < seconds <= MOST_S:
        raise BadInput(f"x-edgeroute-{name} is a time with a unit, as in 300ms, 1.5s or 2m, not {clean(text, 40)!r}")
    return seconds
