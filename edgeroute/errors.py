"""What can go wrong, and whose fault it is.

EdgerouteError
├── PolicyError (ValueError)           the policy's: a key, a unit, a contradiction
│   └── NotEnough                      too few examples for the promise that is asked for (in edgeroute.confidence)
├── BadInput (ValueError)              the caller's: shape, dtype, NaN
├── ModelError                         the model file's: corrupt, another sha256, a provider that is not there
│   ├── ModelMissing (FileNotFoundError)
│   └── RuntimeMissing (ImportError)   the installation's: a runtime is not installed
├── CloudError                         an endpoint's; inside a route this degrades the answer, it does not raise
│   ├── Unreachable                    no connection, or it broke
│   ├── TimedOut (TimeoutError)        no reply in the time there was
│   ├── Refused                        an HTTP status that is not a success
│   ├── BadReply                       a reply that is not what the protocol promises
│   └── Held                           it was not asked: breaker open, a limit reached, no consent
├── NoAnswer                           no leg answered: `errors` has each leg's reason
│   ├── DeadlineExceeded (TimeoutError)
│   └── MayNotLeave                    the data's class forbids the cloud, and the mode everything else
├── StoreError (OSError)               the disk's: full, read-only, corrupt; inside a route it costs no answer
└── Closed (RuntimeError)              the router was closed before the call
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from edgeroute.core import codes
from edgeroute.core.codes import Coded, ErrorCode, HeldCode, passing

INPUTS_OWN = codes.INPUTS_OWN


class EdgerouteError(Coded, Exception):
    """The root of everything edgeroute raises on purpose."""


class PolicyError(EdgerouteError, ValueError):
    """The policy, or an argument that stands for one, is wrong."""


class BadInput(EdgerouteError, ValueError):
    """The caller's input does not fit the model."""

    code = "bad_input"


class ModelError(EdgerouteError):
    """The edge model cannot be used as asked."""


class ModelMissing(ModelError, FileNotFoundError):
    """There is no model file at that path."""


class RuntimeMissing(ModelError, ImportError):
    """The runtime that this needs is not installed."""


class CloudError(EdgerouteError):
    """An endpoint did not answer as it should."""

    retriable = False
    held = False
    """Nothing was sent: it says nothing about the endpoint."""
    retry_after_s: float | None = None
    stale = False
    """It came on a kept-alive connection, which the server may just have closed: worth one try at once."""


class Unreachable(CloudError):
    """No connection could be made, or it broke before the reply was complete."""

    code = "unreachable"
    retriable = True


class TimedOut(CloudError, TimeoutError):
    """The reply was not there in the time that was left."""

    code = "timeout"
    retriable = True


class Refused(CloudError):
    """The endpoint answered with an HTTP status that is not a success."""

    code = "refused"

    def __init__(self, message: str, *, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status: int = status
        self.retry_after_s = retry_after_s
        self.retriable = passing(status)


class BadReply(CloudError):
    """The endpoint answered, but not in the protocol."""

    code = "bad_reply"


class Held(CloudError):
    """The endpoint was not asked, for a reason on this side.

    Args:
        message: for people.
        code: what kept it from being asked.
        again: it was asked before, and was not asked again.
    """

    code: ErrorCode | HeldCode = "held"
    held = True

    def __init__(self, message: str = "", *, code: HeldCode = "other", again: bool = False) -> None:
        super().__init__(message)
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
    """The data's class keeps it on the device, and the mode asks nothing that is there."""


class StoreError(EdgerouteError, OSError):
    """What is to outlive the process could not be read or written."""


class Closed(EdgerouteError, RuntimeError):
    """The router was closed."""


def nearest(word: object, valid: Iterable[str]) -> str:
    """What a message says after a word that is not valid: the valid one that is close to it, or else all of them."""
    from difflib import get_close_matches

    text, words = str(word), list(valid)
    near = get_close_matches(text, words, 1) or get_close_matches(text.lower().replace("-", "_"), words, 1)
    return f'did you mean "{near[0]}"?' if near else f"expected one of {', '.join(words)}"
