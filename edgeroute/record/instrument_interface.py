"""Instruments: their interface (`Instrument`), its events, and a list that forwards each event to several (`Instruments`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.core.device_rules import Reading
from edgeroute.core.spending_limits import Tokens
from edgeroute.system.sanitised_logs_and_contained_errors import call_logged
from edgeroute.types import Answer

if TYPE_CHECKING:
    from edgeroute.cloud.attempt_accounting_and_turns import Sending
    from edgeroute.observe.stats_and_status_types import Status


class RequestBegan(NamedTuple):
    """Event: a request has begun.

    Attributes:
        id: id of the request, as in its answer and in traces.
        batch: id of the batch of which it is a row, which its attempts carry; empty: none.
        begun: monotonic instant, seconds.
    """

    id: str
    batch: str
    begun: float


class RequestEnded(NamedTuple):
    """Event: a request has ended.

    Attributes:
        id: id, as in `RequestBegan`.
        inputs: input as passed by the caller; not to be stored without consent.
        answer: answer that the caller got; None: an error.
        error: exception raised to the caller; None if there is an answer.
        reading: last reading of the device's sensors; None: they are not read, or have not been.
        reading_age_s: age of the reading when the request began, seconds; less than 0: it was made since.
        edge_w: power that a run of an edge takes beside the device's idle power, watts; None: not known.
        batch: id of the batch of which it is a row; empty: none.
        origin: site, policy and models as the fleet's digests name them (`Fleet.origin`); None: without `[fleet]`.
    """

    id: str
    inputs: Any
    answer: Answer | None
    error: BaseException | None
    reading: Reading | None = None
    reading_age_s: float = 0.0
    edge_w: float | None = None
    batch: str = ""
    origin: Mapping[str, Any] | None = None


class AttemptBegan(NamedTuple):
    """Event: an attempt to call an endpoint, over HTTP or gRPC, is about to be sent.

    Attributes:
        number: number of the attempt in this process, as in its `AttemptEnded`.
        target: name of the endpoint.
        request: id of the request, or of the batch; empty: a probe, which has no user data.
        again: number of attempts before.
        sending: request that is sent, and its destination.
    """

    number: int
    target: str
    request: str
    again: int
    sending: Sending


class AttemptEnded(NamedTuple):
    """Event: an attempt to call an endpoint, or a probe, has ended.

    Attributes:
        target: name of the endpoint.
        request: id of the request; empty: a probe, which has no user data.
        sent_bytes: bytes of the request's body; `received_bytes`: of the reply's.
        took_s: time since the attempt began, seconds.
        error: exception; None: it succeeded.
        number: number, as in `AttemptBegan`; 0: its beginning was not reported, as that of a function.
        status: HTTP status; None: there was no reply, or it is not HTTP.
        tokens: tokens as the endpoint has counted them; None: it does not.
        cancelled: True if edgeroute cancelled it before its deadline, as its answer was not needed; `error` is the resulting
            exception.
    """

    target: str
    request: str
    sent_bytes: int
    received_bytes: int
    took_s: float
    error: BaseException | None
    number: int = 0
    status: int | None = None
    tokens: Tokens | None = None
    cancelled: bool = False


class Instrument:
    """Base of all instruments: one method per kind of event; each is a no-op unless overridden.

    Methods are called from any thread, including an event loop's, and must not block. An exception is logged, and affects no
    answer.
    """

    def opened(self, status: Callable[[], Status | None]) -> None:
        """Handle a new router. `status` returns its state, as `Router.status` does, to any thread; None once it is gone."""

    def request_began(self, began: RequestBegan) -> None:
        """Handle a request that began. With an instrument that has this method, calls take the longer way through all stages."""

    def request_left(self, identity: str) -> None:
        """Handle a request that will not end: its caller was interrupted or cancelled, or closed the stream."""

    def request_ended(self, ended: RequestEnded) -> None:
        """Handle a request that ended with an answer or an error."""

    def attempt_began(self, began: AttemptBegan) -> Mapping[str, str] | None:
        """Handle an attempt about to be sent. Return further headers to send with it, such as `traceparent`; None: none."""

    def attempt_ended(self, ended: AttemptEnded) -> None:
        """Handle an attempt to call an endpoint that has ended."""

    def breaker_changed(self, target: str, state: str) -> None:
        """Handle a circuit breaker that changed to `open`, `half-open` or `closed`."""

    def alarm(self, target: str, what: str) -> None:
        """Handle a drift alarm: the certificate of that edge model is no longer trusted."""

    def outbox_changed(self, identity: str, what: str) -> None:
        """Handle a change of a request in the outbox: it is `queued` on disk, or its `late` answer has arrived.

        `not queued`: its answer announced the queueing, which then failed. `damaged`: its row in the outbox cannot be read.
        """

    def limit_hit(self, target: str, code: str) -> None:
        """Handle a call of an endpoint that was not made, for a local reason; `code` as in `Held.code`."""

    def close(self) -> None:
        """Handle the closing of the router."""


FAILED = "an instrument failed at %s; no answer is affected"
_NAME, _VALUE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"), re.compile(r"[!-~]([\t -~]*[!-~])?")
# Headers that no instrument may set.
FIXED = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "content-type", "authorization", "idempotency-key"}
)


def _check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return a copy of an instrument's headers, after checking them.

    Raises:
        ValueError: a header cannot be sent, or is one of `FIXED`.
    """
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value) or name.lower() in FIXED:
            raise ValueError("an instrument gave a header that it cannot set, so none of its headers is sent")
    return dict(headers)


def _overridden(instruments: Iterable[Instrument], name: str) -> list[Callable[..., Any]]:
    """Return the instruments' methods of that name, without those inherited from `Instrument`, which do nothing.

    An instrument of another class may lack it.
    """
    methods = (_method(instrument, name) for instrument in instruments)
    return [method for method in methods if method and getattr(method, "__func__", None) is not getattr(Instrument, name)]


def _method(instrument: Instrument, name: str) -> Any:
    """Return an instrument's method; if it cannot be read now, a function that looks it up at each event."""
    try:
        return getattr(instrument, name, None)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - it is logged at the event
        return lambda *event: getattr(instrument, name)(*event)  # noqa: PLW0108 - it is looked up at the event


_DURING = ("attempt_began", "attempt_ended", "breaker_changed", "limit_hit")  # events while a call is under way


def _forward(name: str) -> Callable[..., None]:
    """Return a method that calls the method of this name of each instrument, and logs their exceptions. Ctrl-C passes."""

    def forward(self: Instruments, *event: Any) -> None:
        for method in self._methods[name]:
            call_logged(partial(method, *event), FAILED, name)

    return forward


class Instruments(Instrument):
    """List of instruments; forwards each event to all of them, and logs their exceptions.

    Attributes:
        follow_requests: True if an instrument handles the beginning of requests.
        follows: True if an instrument handles the beginning of attempts.
        prompt: True if all instruments for attempts, breakers and limits return at once: their classes have `prompt = True`. Each
            in the class itself; an inherited `prompt` does not count.
        origin: returns `RequestEnded.origin` for a request's policy; None: there is none.
    """

    origin: Callable[[Any], Mapping[str, Any]] | None = None

    opened, request_began, request_left = _forward("opened"), _forward("request_began"), _forward("request_left")
    request_ended, attempt_ended = _forward("request_ended"), _forward("attempt_ended")
    breaker_changed, alarm, outbox_changed = _forward("breaker_changed"), _forward("alarm"), _forward("outbox_changed")
    limit_hit, close = _forward("limit_hit"), _forward("close")
    held = limit_hit

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        self.all = tuple(instruments)
        self._methods = {name: _overridden(self.all, name) for name in vars(Instrument) if not name.startswith("_")}
        self.follow_requests, self.follows = bool(self._methods["request_began"]), bool(self._methods["attempt_began"])
        methods = [method for name in _DURING for method in self._methods[name]]
        self.prompt = all(vars(type(getattr(method, "__self__", None))).get("prompt", False) for method in methods)

    def __bool__(self) -> bool:
        return bool(self.all)

    def began(self, *attempt: Any) -> Mapping[str, str]:
        """Report that an attempt is about to be sent; the fields are those of `AttemptBegan`. Return further headers for it."""
        return self.attempt_began(AttemptBegan(*attempt))

    def attempt(self, *attempt: Any) -> None:
        """Report that an attempt has ended; the fields are those of `AttemptEnded`."""
        self.attempt_ended(AttemptEnded(*attempt))

    def attempt_began(self, began: AttemptBegan) -> Mapping[str, str]:
        """Forward the event, and return the headers of all instruments.

        An instrument that raises, or whose headers are invalid, is logged and gives none; of one name the last counts.
        """
        headers: dict[str, str] = {}

        def add(method: Callable[..., Mapping[str, str] | None]) -> None:
            headers.update(_check_headers(method(began) or {}))

        for method in self._methods["attempt_began"]:
            call_logged(partial(add, method), FAILED, "attempt_began")
        return headers
