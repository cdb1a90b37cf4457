"""Exceptions, grouped by whose fault they are; `check_number` for arguments, and `nearest`, a hint after an invalid word.

EdgerouteError
├── PolicyError (ValueError)           the policy's: a key, a unit, a contradiction
│   └── NotEnough                      too few examples for the requested guarantee (in edgeroute.confidence)
├── BadInput (ValueError)              the caller's: shape, dtype, NaN
├── ModelError                         the model file's: corrupt, another sha256, an unavailable execution provider
│   ├── Unfit                          it cannot take this input, which another model may: it is deferred
│   ├── Busy                           its runs are all taken, and the deadline leaves no time to wait: it is deferred
│   ├── ModelMissing (FileNotFoundError)
│   └── RuntimeMissing (ImportError)   the installation's: a runtime is not installed
├── CloudError                         an endpoint's; it degrades the answer, and is raised only where no other leg was asked
│   ├── Unreachable                    no connection, or a broken one
│   ├── TimedOut (TimeoutError)        no reply in time
│   ├── Refused                        an HTTP status other than success
│   ├── BadReply                       a reply that violates the protocol
│   └── Held                           not called, for a local reason: breaker open, a limit reached, no consent
├── NoAnswer                           no leg answered: `errors` has each leg's error
│   ├── DeadlineExceeded (TimeoutError)
│   └── MayNotLeave                    the data class forbids the cloud, and the mode everything else
├── CatalogError                       a catalog's: a wrong signature, hash, size or name, an old or expired list
│   └── CatalogAway                    it cannot be reached, or is too slow
├── StoreError (OSError)               the disk's: full, read-only, corrupt; within a route it costs no answer
└── Closed (RuntimeError)              the router was closed before the call
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf, isfinite
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal

from edgeroute.core.error_codes_and_texts import Coded, ErrorCode, HeldCode, clean, may_succeed_again

if TYPE_CHECKING:
    from edgeroute.core.walk import Prediction


class EdgerouteError(Coded, Exception):
    """Base class of all exceptions that edgeroute raises deliberately.

    Attributes:
        counts: False if the request or the program brings it about, as an answer without a text: the circuit breaker does not
            count it as a fault.
    """

    counts = True

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the attributes: Python's own way would call the class with the message alone."""
        return _unpickle, (type(self), self.args, self.__dict__)


class PolicyError(EdgerouteError, ValueError):
    """Invalid policy file, or an invalid argument of the same meaning.

    Attributes:
        key: key of the policy file whose value contradicts another one; empty if the message has it, or there is no such key.
    """

    key = ""
    counts = False


class BadInput(EdgerouteError, ValueError):
    """Input that does not fit the model: its shape, its dtype or a NaN. The fault is the caller's.

    Args:
        message: for people.
        field: name of the model's input; empty if it is not known.
    """

    code = "bad_input"

    def __init__(self, message: str = "", *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class ModelError(EdgerouteError):
    """Edge model that cannot be used: a corrupt file, another sha256, an unavailable execution provider."""


class Unfit(ModelError):
    """Input that this edge model cannot take, and another model may: the request is deferred, and the model counts as healthy.

    Args:
        message: for people.
        code: "context" if the input is longer than the model's context; "unsupported" if its kind is not supported, as tools and
            images are not by a model of text.
    """

    def __init__(self, message: str = "", *, code: Literal["context", "unsupported"] = "unsupported") -> None:
        super().__init__(message)
        self.code = code


class Busy(ModelError):
    """Model that takes no run now: all its runs are taken, or it says so itself, as a system's model beyond its quota.

    Args:
        message: for people.
        retry_after_s: seconds for which other targets are asked first, at most 1 day, to which more is cut; less than 0, as of an
            instant that is past, counts as 0. None: this run alone is refused.
    """

    code = "busy"
    held = True  # True, as nothing was run, which is no evidence about the model

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        if retry_after_s is not None:
            check_number("retry_after_s", retry_after_s, least=-inf, infinite=True)
        self.retry_after_s = None if retry_after_s is None else min(max(retry_after_s, 0.0), 86_400.0)


class ModelMissing(ModelError, FileNotFoundError):
    """Path without a model file."""


class RuntimeMissing(ModelError, ImportError):
    """Required runtime that is not installed."""


class CloudError(EdgerouteError):
    """Failed call of an endpoint.

    Attributes:
        retriable: True if an equal call may succeed a little later.
        held: True if nothing was sent, which is no evidence about the endpoint.
        unsent: True if no connection was made, so that nothing of the request was sent.
        retry_after_s: seconds that the endpoint asks to wait before the next call (`Retry-After`); None if it sent no such
            number.
        stale: True if the call failed on a kept-alive connection that the server may just have closed: worth one immediate retry.
        partial: beginning of an answer in pieces that had arrived before the failure; None if nothing had.
    """

    retriable = False
    held = False
    unsent = False
    retry_after_s: float | None = None
    stale = False
    partial: Prediction | None = None

    def __init__(self, message: str = "", *, unsent: bool = False) -> None:
        super().__init__(clean(message))
        if unsent:
            self.unsent = True


def _unpickle(kind: type[EdgerouteError], args: tuple[object, ...], state: dict[str, object]) -> EdgerouteError:
    """Return an exception of this class with these attributes, without calling its `__init__`."""
    self = kind.__new__(kind, *args)
    self.args = args  # an OSError with an `__init__` of its own has none yet
    self.__dict__.update(state)
    return self


class Unreachable(CloudError):
    """Connection that could not be made, or broke before the reply was complete."""

    code = "unreachable"
    retriable = True


class TimedOut(CloudError, TimeoutError):
    """No complete reply within the time that was left."""

    code = "timeout"
    retriable = True


class Refused(CloudError):
    """Reply with an HTTP status other than success.

    Attributes:
        status: the HTTP status.
    """

    code = "refused"

    def __init__(self, message: str, *, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status: int = status
        self.retry_after_s = retry_after_s
        self.retriable = may_succeed_again(status)


class BadReply(CloudError):
    """Reply that violates the protocol."""

    code = "bad_reply"


class Held(CloudError):
    """Call that was not made, for a local reason such as an open breaker, a limit or a missing consent.

    Args:
        message: for people.
        code: the reason, for programs.
        again: True if only a retry was not made; the first attempt was.
        wait_s: how long the reason lasts at least, seconds; 0 if this is not known.
    """

    code: ErrorCode | HeldCode = "held"
    held = True
    wait_s: float = 0.0

    def __init__(self, message: str = "", *, code: HeldCode = "other", again: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s
        self.code = code
        self.again = again


class NoAnswer(EdgerouteError):
    """Request that no leg of its route answered.

    Attributes:
        errors: leg name -> the exception that ended the leg.
    """

    def __init__(self, message: str, errors: Mapping[str, BaseException] | None = None) -> None:
        super().__init__(message)
        self.errors = dict(errors or {})


class DeadlineExceeded(NoAnswer, TimeoutError):
    """Deadline that passed before any leg had an answer."""


class MayNotLeave(NoAnswer):
    """Request whose data class may not leave the device, in a mode that allows no target on the device."""

    counts = False  # of a router that a function asks, as a cloud


class CatalogError(EdgerouteError):
    """Catalog of models that cannot be trusted, or lacks the requested model. The active model stays in use."""


class CatalogAway(CatalogError):
    """Catalog that cannot be reached, or is too slow. The active model stays in use."""


class StoreError(EdgerouteError, OSError):
    """Stored state that could not be read or written."""


class Closed(EdgerouteError, RuntimeError):
    """Call of a router that was closed before."""


def nearest(word: object, valid: Iterable[str]) -> str:
    """Return a hint after an invalid word: `did you mean "..."?` with the most similar valid word; without one, a list of all."""
    from difflib import get_close_matches

    text, words = str(word), list(valid)
    near = get_close_matches(text, words, 1) or get_close_matches(text.lower().replace("-", "_"), words, 1)
    return f'did you mean "{near[0]}"?' if near else f"expected one of {', '.join(words)}"


def check_number(
    name: str,
    value: object,
    *,
    least: float = 0,
    most: float | None = None,
    above: bool = False,
    whole: bool = False,
    infinite: bool = False,
) -> None:
    """Raise PolicyError unless an argument is a number in its range. Python's and numpy's numbers count, booleans do not.

    Args:
        name: of the argument.
        value: the argument.
        least: smallest value.
        most: largest value; None: no limit.
        above: `least` itself is not allowed.
        whole: the value must be an integer.
        infinite: infinity is allowed; NaN never is.

    Raises:
        PolicyError: says the name of the argument and the range.
    """
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    try:
        real = float(value) if number else least  # type: ignore[arg-type]
    except OverflowError:
        real, number = least, False
    good = number and (least < real if above else least <= real) and (most is None or real <= most)
    if not good or not (isfinite(real) or infinite):
        kind = f"{least:g} to {most:g}" if most is not None else f"of more than {least:g}" if above else f"{least:g} or more"
        comma = "" if above and most is None else ","
        given = value if isinstance(value, bool) or number else f"a {type(value).__name__}"
        raise PolicyError(f"{name}= takes a {'whole ' if whole else ''}number{comma} {kind}, not {given}")
