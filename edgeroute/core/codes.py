"""Codes of refusals and failures: what programs decide by, where people read the text beside it."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, TypeAlias, get_args

HeldCode = Literal[
    "breaker", "retry_after", "max_concurrent", "calls_per_s", "usd_per_day", "mb_per_day", "joules_per_hour", "calls_per_minute",
    "ledger", "consent", "redaction", "threads", "stopped", "other",
]  # fmt: skip
"""Why an endpoint was not asked: its breaker is open, or is closed but on hold; a limit; the egress ledger cannot be written;
there is no consent; the redaction failed; there is no thread for it; its answer is not needed any more."""
ErrorCode = Literal["", "bad_input", "unreachable", "timeout", "refused", "bad_reply", "held"]
"""What kind of error it is; empty: any other."""
HELD: Final[frozenset[str]] = frozenset(get_args(HeldCode))
INPUTS_OWN: Final = frozenset({400, 406, 411, 413, 414, 415, 422, 431})
"""HTTP statuses that say something about this very input, and not about the endpoint."""
AnyCode: TypeAlias = ErrorCode | HeldCode
Verdict = Literal["answered", "fault", "late", "nothing"]


def passing(status: int) -> bool:
    """Whether a request that was answered with this HTTP status may fare better if it is sent again."""
    return status in {408, 429} or status >= 500  # noqa: PLR2004 - HTTP's own numbers


class Rejection(NamedTuple):
    """Why a request was not let through."""

    code: HeldCode
    text: str


class Coded:
    """An error that carries a code; the base of all of edgeroute's."""

    code: AnyCode = ""
    status: int | None = None
    """The HTTP status, where there was one."""
    again: bool = False
    """It was held, but only after an attempt had been made: it was not asked again."""


class Failure(NamedTuple):
    """An error, as far as rules look at it."""

    code: AnyCode = ""
    status: int | None = None
    again: bool = False

    @classmethod
    def of(cls, error: BaseException | None) -> Failure:
        """That of an exception; one that is not edgeroute's has no code, unless it is a `TimeoutError`."""
        if isinstance(error, Coded):
            return cls(error.code, error.status, error.again)
        return cls("timeout") if isinstance(error, TimeoutError) else cls()

    @property
    def held(self) -> bool:
        """Whether the endpoint was not asked at all."""
        return self.code in HELD and not self.again

    @property
    def of_the_input(self) -> bool:
        """Whether the endpoint answered, and it is this input that it does not take."""
        return self.status in INPUTS_OWN

    @property
    def retriable(self) -> bool:
        """Whether an HTTP client would send such a request again, given the time."""
        return self.code == "unreachable" or (self.status is not None and passing(self.status))

    def verdict(self, *, cut: bool = False, in_time: bool = False, stale: bool = False) -> Verdict:
        """What the end of an attempt says of the endpoint.

        A reply that cannot be read says nothing yet: it counts once, when its request ends.

        Args:
            cut: it was ended from this side.
            in_time: that was before its deadline, since its answer was not needed any more.
            stale: it came on a kept-alive connection, which the server may just have closed.
        """
        if self.of_the_input:
            return "answered"
        if (stale and not cut) or (cut and in_time) or self.code == "bad_reply":
            return "nothing"
        return "late" if cut or self.code == "timeout" else "fault"
