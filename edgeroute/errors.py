"""Exceptions, grouped by whose fault they are.

EdgerouteError
├── PolicyError (ValueError)           the policy's: a key, a unit, a contradiction
│   └── NotEnough                      too few examples for the requested guarantee (in edgeroute.confidence)
├── BadInput (ValueError)              the caller's: shape, dtype, NaN
├── ModelError                         the model file's: corrupt, another sha256, an unavailable execution provider
│   ├── Unfit                          it cannot take this input, which another model may: it is deferred
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
from math import isfinite
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal

from edgeroute.core import words as codes
from edgeroute.core.words import Coded, ErrorCode, HeldCode, clean, passing

if TYPE_CHECKING:
    from edgeroute.core.walk import Prediction

INPUTS_OWN = codes.INPUTS_OWN


class EdgerouteError(Coded, Exception):
    """Base class of all exceptions that edgeroute raises deliberately."""


class PolicyError(EdgerouteError, ValueError):
    """The policy, or an equivalent argument, is invalid."""

    key = ""
    """Of a policy file, where a value in it cannot be used with the others; empty: the message has it, or there is none."""


class BadInput(EdgerouteError, ValueError):
    """The caller's input does not fit the model."""

    code = "bad_input"


class ModelError(EdgerouteError):
    """The edge model cannot be used."""


class Unfit(ModelError):
    """The edge model cannot take this input, and another may: it is deferred, and that is no fault of the model.

    Args:
        message: for people.
        code: context, longer than the model's; or unsupported, as tools and images are by a model of text.
    """

    def __init__(self, message: str = "", *, code: Literal["context", "unsupported"] = "unsupported") -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (type(self), self.args, self.__dict__)


class ModelMissing(ModelError, FileNotFoundError):
    """There is no model file at the path."""


class RuntimeMissing(ModelError, ImportError):
    """A required runtime is not installed."""


class CloudError(EdgerouteError):
    """An endpoint call failed."""

    retriable = False
    held = False
    """Nothing was sent: no evidence about the endpoint."""
    retry_after_s: float | None = None
    """Seconds that the endpoint asks to wait before the next call (`Retry-After`); None: it gave no such number."""
    stale = False
    """On a kept-alive connection, which the server may just have closed: worth one immediate retry."""
    partial: Prediction | None = None
    """What of an answer in pieces had arrived."""

    def __init__(self, message: str = "") -> None:
        super().__init__(clean(message))

    def __reduce__(self) -> tuple[object, ...]:
        """Python's own way would call the class with the message alone."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[EdgerouteError], args: tuple[object, ...], state: dict[str, object]) -> EdgerouteError:
    self = kind.__new__(kind, *args)
    self.__dict__.update(state)
    return self


class Unreachable(CloudError):
    """No connection could be made, or it broke before the reply was complete."""

    code = "unreachable"
    retriable = True


class TimedOut(CloudError, TimeoutError):
    """No complete reply within the time that was left."""

    code = "timeout"
    retriable = True


class Refused(CloudError):
    """The endpoint replied with an HTTP status other than success."""

    code = "refused"

    def __init__(self, message: str, *, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status: int = status
        self.retry_after_s = retry_after_s
        self.retriable = passing(status)


class BadReply(CloudError):
    """The reply violates the protocol."""

    code = "bad_reply"


class Held(CloudError):
    """The endpoint was not called, for a local reason.

    Args:
        message: for people.
        code: the reason, for programs.
        again: a retry that was not made; the first attempt was.
        wait_s: how long it is so at least, as far as is known, seconds; 0: it is not known.
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
    """No leg of the route gave an answer.

    Attributes:
        errors: leg name -> the exception that ended it.
    """

    def __init__(self, message: str, errors: Mapping[str, BaseException] | None = None) -> None:
        super().__init__(message)
        self.errors = dict(errors or {})


class DeadlineExceeded(NoAnswer, TimeoutError):
    """The deadline passed before any leg had an answer."""


class MayNotLeave(NoAnswer):
    """The data class may not leave the device, and the mode allows no target on it."""


class CatalogError(EdgerouteError):
    """A catalog of models cannot be trusted, or lacks what was asked for; the active model stays."""


class CatalogAway(CatalogError):
    """A catalog cannot be reached, or is too slow; the active model stays."""


class StoreError(EdgerouteError, OSError):
    """Stored state could not be read or written."""


class Closed(EdgerouteError, RuntimeError):
    """The router was closed."""


def nearest(word: object, valid: Iterable[str]) -> str:
    """Formats the hint after an invalid word: the closest valid one, or else all of them."""
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
    """Checks a numeric argument; numbers are Python's and numpy's, without truths.

    Args:
        name: of the argument.
        value: as it was given.
        least: what it is at least.
        most: what it is at most.
        above: it is more than `least`.
        whole: it is an integer.
        infinite: infinity is one, too.

    Raises:
        PolicyError: with the name, and what is expected.
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
        found = value if isinstance(value, bool) or number else f"a {type(value).__name__}"
        raise PolicyError(f"{name}= takes a {'whole ' if whole else ''}number{comma} {kind}, not {found}")
