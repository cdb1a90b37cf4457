"""Sanitises texts of others (servers, models, functions, stored rows) for reasons, traces, messages, logs, stores and terminals.

What of a server's reply may be in such a text at all is decided in `edgeroute.quoting`.
"""

from __future__ import annotations

from edgeroute.core.codes import Coded

FOREIGN = 200
"""Maximum number of characters of what a server said, or of an exception that edgeroute did not raise."""
OWN = 400
"""Maximum number of characters of one of edgeroute's own messages, which may have such a text in it."""
LOST = "\N{REPLACEMENT CHARACTER}"
_name = type.__dict__["__name__"].__get__


def clean(text: object, most: int = OWN) -> str:
    """Formats a value as printable text on one line of at most `most` characters.

    Line breaks and tabs become spaces; other control characters, escapes and direction marks become `LOST`.
    """
    found = text if type(text) is str else str.__str__(str(text))  # never of a class of its own, whose methods may do anything
    cut = found[: most - 1] + "…" if len(found) > most else found
    return cut if cut.isprintable() else "".join(map(_shown, cut))


def told(error: object, most: int = FOREIGN) -> str:
    """The message of an exception, sanitised; empty if it has none, or raises anything but Ctrl-C when it is formatted."""
    try:
        return clean(error, OWN if isinstance(error, Coded) else most)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a foreign `__str__` may raise SystemExit as well
        return ""


def named(error: object) -> str:
    """The message of an exception; with its type if it is not edgeroute's own, whose messages say what is the matter."""
    said, kind = told(error), typed(error)
    if not said:
        return kind
    return said if isinstance(error, Coded) or said.startswith(f"{kind}:") else f"{kind}: {said}"


def typed(value: object) -> str:
    """The name of its class, sanitised, whatever the class itself makes of `__name__`."""
    return clean(_name(type(value)), FOREIGN)


def printable(text: str) -> str:
    """A text of several lines without control characters. A line break stays one."""
    return text if text.isprintable() else "\n".join("".join(map(_shown, line)) for line in text.split("\n"))


def _shown(c: str) -> str:
    return c if c.isprintable() else " " if c.isspace() else LOST
