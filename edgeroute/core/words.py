"""Machine-readable codes of rejections and failures, and texts made fit to be shown."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias, get_args

# Machine-readable codes of rejections and failures; programs decide by them, the text beside them is for people.

HeldCode = Literal[
    "breaker", "retry_after", "max_concurrent", "concurrency", "calls_per_s", "usd_per_day", "mb_per_day", "joules_per_hour",
    "calls_per_minute", "ledger", "consent", "redaction", "view", "threads", "stopped", "other",
]  # fmt: skip
"""Why an endpoint was not called: its breaker is open, or closed but on hold; a limit (concurrency: of calls under way, where the
policy's number is not reached: `max_concurrent = "auto"`, or it is not known whether the endpoint is well); the egress ledger
cannot be written; no consent; the redaction or the view of the input failed; no free thread; the answer is no longer needed."""
ErrorCode = Literal["", "bad_input", "unreachable", "timeout", "refused", "bad_reply", "held", "context", "unsupported"]
"""Kind of error; empty: any other. context, unsupported: the edge model cannot take this input, as it is longer than its context,
or has tools or images in it; so another is asked, and it is no fault of the model."""
UNFIT: Final[frozenset[str]] = frozenset({"context", "unsupported"})
HELD: Final[frozenset[str]] = frozenset(get_args(HeldCode))
INPUTS_OWN: Final = frozenset({400, 406, 411, 413, 414, 415, 422, 431})
"""HTTP statuses that are about this input, not about the endpoint."""
AnyCode: TypeAlias = ErrorCode | HeldCode
Verdict = Literal["answered", "fault", "late", "nothing"]


def passing(status: int) -> bool:
    """Whether a request that got this HTTP status may succeed if it is sent again."""
    return status in {408, 429} or status >= 500  # noqa: PLR2004 - HTTP's own numbers


class Rejection(NamedTuple):
    """Why a request was not admitted."""

    code: HeldCode
    text: str

    @property
    def wait_s(self) -> float:
        """How long it is so at least, as far as is known, seconds; 0: it is not known."""
        return 0.0


class Lasting(Rejection):
    """A rejection of which it is known how long it holds."""

    wait_s: float = 0.0

    @classmethod
    def of(cls, code: HeldCode, text: str, wait_s: float) -> Lasting:
        """Makes one."""
        made = cls(code, text)
        made.wait_s = max(0.0, wait_s)
        return made


class Crowded(Rejection):
    """A rejection that the end of another call lifts: a request waits its turn."""

    __slots__ = ()


class Coded:
    """Base of all edgeroute errors: one that carries a code."""

    code: AnyCode = ""
    status: int | None = None
    """The HTTP status, if any."""
    again: bool = False
    """Held before a retry: at least one attempt had been made."""


class Failure(NamedTuple):
    """The properties of an error that rules decide by."""

    code: AnyCode = ""
    status: int | None = None
    again: bool = False

    @classmethod
    def of(cls, error: BaseException | None) -> Failure:
        """Extracts them from an exception; a foreign one has no code, unless it is a `TimeoutError`."""
        if isinstance(error, Coded):
            return cls(error.code, error.status, error.again)
        return cls("timeout") if isinstance(error, TimeoutError) else cls()

    @property
    def held(self) -> bool:
        """Whether the endpoint was not called at all."""
        return self.code in HELD and not self.again

    @property
    def of_the_input(self) -> bool:
        """Whether the endpoint answered, and rejects this input."""
        return self.status in INPUTS_OWN

    @property
    def retriable(self) -> bool:
        """Whether an HTTP client would retry such a request, given the time."""
        return self.code == "unreachable" or (self.status is not None and passing(self.status))

    def verdict(self, *, cut: bool = False, in_time: bool = False, stale: bool = False) -> Verdict:
        """What the end of an attempt means for the breaker.

        An unreadable reply counts only when its request ends, once.

        Args:
            cut: cancelled from this side.
            in_time: cancelled before its deadline, since its answer was no longer needed.
            stale: on a kept-alive connection, which the server may just have closed.
        """
        if self.of_the_input:
            return "answered"
        if (stale and not cut) or (cut and in_time) or self.code == "bad_reply":
            return "nothing"
        return "late" if cut or self.code == "timeout" else "fault"


UNIDENTIFIED = "unidentified:"
"""Is in the fingerprint of what has no identity across processes; that is another one at every call."""


# Sanitises texts of others (servers, models, functions, stored rows) for reasons, traces, messages, logs, stores and terminals.
#
# What of a server's reply may be in such a text at all is decided in `edgeroute.system.quoting`.

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
