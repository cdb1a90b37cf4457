"""Codes of rejections and failures (`Rejection`, `Failure`), for programs; and sanitising of foreign texts, for display."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias, get_args

# Codes of rejections and failures, by which programs decide; the text beside a code is for people.

# Reason why an endpoint was not called. Its breaker is open, or closed but on hold; a limit (concurrency: of calls under way,
# below the policy's number, since `max_concurrent = "auto"`, or it is not known whether the endpoint is well); the egress ledger
# cannot be written; no consent; the redaction or the view of the input failed; no free thread; the answer is no longer needed.
HeldCode = Literal[
    "breaker", "retry_after", "max_concurrent", "concurrency", "calls_per_s", "usd_per_day", "mb_per_day", "joules_per_hour",
    "calls_per_minute", "ledger", "consent", "redaction", "view", "threads", "stopped", "other",
]  # fmt: skip
# Kind of error; empty: any other.
#
# context, unsupported: the edge model cannot take this input, which is longer than its context, or has tools or images in it;
# another model is asked, and this one is not at fault. busy: all runs that the edge model may have at a time are taken.
ErrorCode = Literal["", "bad_input", "unreachable", "timeout", "refused", "bad_reply", "held", "context", "unsupported", "busy"]
# Codes of an input that this model cannot take, or not now, though another may.
TOO_LONG: Final = "the prompt is longer than the model's context"  # in a text of the code "refused"
UNFIT: Final[frozenset[str]] = frozenset({"context", "unsupported", "busy"})
CALLERS: Final[frozenset[str]] = frozenset({"bad_input", "context", "unsupported"})  # of an input that is itself the reason
HELD: Final[frozenset[str]] = frozenset(get_args(HeldCode))
# HTTP statuses that are about this input, not about the endpoint.
INPUTS_OWN: Final = frozenset({400, 406, 411, 413, 414, 415, 422, 431})
AnyCode: TypeAlias = ErrorCode | HeldCode
Verdict = Literal["answered", "fault", "late", "nothing"]


def may_succeed_again(status: int) -> bool:
    """Return True if a request that got this HTTP status may succeed when sent again."""
    return status in {408, 429} or status >= 500  # noqa: PLR2004 - HTTP's own numbers


class Rejection(NamedTuple):
    """Reason why a request was not admitted."""

    code: HeldCode
    text: str

    @property
    def wait_s(self) -> float:
        """Least time for which the reason holds, as far as known, seconds; 0: unknown."""
        return 0.0


class Lasting(Rejection):
    """Rejection that holds for a known time."""

    wait_s: float = 0.0

    @classmethod
    def of(cls, code: HeldCode, text: str, wait_s: float) -> Lasting:
        """Return a rejection that holds for `wait_s` seconds, 0 at least."""
        rejection = cls(code, text)
        rejection.wait_s = max(0.0, wait_s)
        return rejection


class Crowded(Rejection):
    """Rejection that the end of another call lifts: a request waits its turn."""

    __slots__ = ()


class Coded:
    """Base of all edgeroute errors: an error with a code."""

    code: AnyCode = ""
    status: int | None = None  # HTTP status; None: none
    again: bool = False  # True if held before a retry: at least one attempt had been made
    foreign: bool = False  # True if a function of the application raised it, such as a view: its text may quote the input


class Failure(NamedTuple):
    """Properties of an error by which rules decide."""

    code: AnyCode = ""
    status: int | None = None
    again: bool = False

    @classmethod
    def of(cls, error: BaseException | None) -> Failure:
        """Return the properties of an exception; a foreign one has no code, unless it is a `TimeoutError`."""
        if isinstance(error, Coded):
            return cls(error.code, error.status, error.again)
        return cls("timeout") if isinstance(error, TimeoutError) else cls()

    @property
    def held(self) -> bool:
        """True if the endpoint was not called at all."""
        return self.code in HELD and not self.again

    @property
    def of_the_input(self) -> bool:
        """True if this input is the reason: the endpoint answered, and rejects it, or whoever was to take it cannot."""
        return self.status in INPUTS_OWN or self.code in CALLERS

    @property
    def retriable(self) -> bool:
        """True if the endpoint was unreachable, or its status is a passing one."""
        return self.code == "unreachable" or (self.status is not None and may_succeed_again(self.status))

    def verdict(self, *, cut: bool = False, in_time: bool = False, stale: bool = False) -> Verdict:
        """Return how the end of an attempt counts for the breaker: answered, fault, late or nothing.

        answered: the endpoint rejects this input. nothing: a stale connection, a cancellation in time, an input that it cannot
        take, a call that a function did not make, or an unreadable reply, which counts only when its request ends, once. late:
        another cancellation, or a time-out. fault: all else.

        Args:
            cut: True if cancelled from this side.
            in_time: True if cancelled before its deadline, since its answer was no longer needed.
            stale: True if sent on a kept-alive connection, which the server may just have closed.
        """
        if self.status in INPUTS_OWN:
            return "answered"
        if (stale and not cut) or (cut and in_time) or self.of_the_input or self.held or self.code == "bad_reply":
            return "nothing"
        return "late" if cut or self.code == "timeout" else "fault"


class DumpOf:
    """Block of a `with` statement that reads a dump of such a state: an error in its form is raised as ValueError."""

    def __init__(self, state: str) -> None:
        self._state = state

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, AttributeError | LookupError | OverflowError | TypeError | ValueError):
            raise ValueError(f"not a dump of {self._state}: {error!r}") from error  # noqa: TRY004 - it is one for all


# Mark in the fingerprint of a thing without an identity across processes; such a fingerprint differs at every call.
UNIDENTIFIED = "unidentified:"


# Sanitising of foreign texts (of servers, models, functions, stored rows) for reasons, traces, logs, stores and terminals.
#
# `edgeroute.system.quotable_codes_and_secrets` decides which parts of a server's reply such a text may have at all.

FOREIGN = 200  # maximum characters of a server's text, or of an exception that edgeroute did not raise
OWN = 400  # maximum characters of one of edgeroute's own messages, which may contain such a text
LOST = "\N{REPLACEMENT CHARACTER}"  # replacement of a character that is not printable
_name = type.__dict__["__name__"].__get__


def clean(text: object, most: int = OWN) -> str:
    """Return a value as printable text on one line, cut to at most `most` characters, with `…` if cut.

    Line breaks and tabs become spaces; other control characters, escapes and direction marks become `LOST`.
    """
    line = text if type(text) is str else str.__str__(str(text))  # never of a class of its own, whose methods may do anything
    cut = line[: most - 1] + "…" if len(line) > most else line
    return cut if cut.isprintable() else "".join(map(_shown, cut))


def error_message(error: object, most: int = FOREIGN) -> str:
    """Return an exception's message, sanitised and cut; empty if it has none, or if formatting it raises anything but Ctrl-C."""
    try:
        return clean(error, OWN if isinstance(error, Coded) else most)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - a foreign `__str__` may raise SystemExit as well
        return ""


def error_text(error: object) -> str:
    """Return the message of an exception, after its type if it is not edgeroute's own.

    Only the type if there is no message; the type is not repeated.
    """
    text, kind = error_message(error), class_name(error)
    return (text or kind) if not text or isinstance(error, Coded) or text.startswith(f"{kind}:") else f"{kind}: {text}"


def failure_text(error: object) -> str:
    """Return the message of edgeroute's own exception, and only the type of another one, whose message may quote the input."""
    return error_message(error) if isinstance(error, Coded) and not error.foreign else class_name(error)


def class_name(value: object) -> str:
    """Return the name of a value's class, sanitised, whatever the class itself makes of `__name__`."""
    return clean(_name(type(value)), FOREIGN)


def printable(text: str) -> str:
    """Return a text of several lines without control characters, except line breaks."""
    return text if text.isprintable() else "\n".join("".join(map(_shown, line)) for line in text.split("\n"))


def _shown(c: str) -> str:
    """Return a character if it is printable, else a space or `LOST`."""
    return c if c.isprintable() else " " if c.isspace() else LOST
