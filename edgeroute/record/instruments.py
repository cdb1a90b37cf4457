"""Instruments: the interface for traces, metrics and dashboards, and a list that forwards events to several."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from edgeroute.cloud.exchange import Sending
from edgeroute.core.rules import Reading
from edgeroute.core.spending import Tokens
from edgeroute.observe.stats import Status
from edgeroute.types import Answer

log = logging.getLogger("edgeroute")


class RequestBegan(NamedTuple):
    """A request has begun."""

    id: str
    """As in its answer and in traces."""
    batch: str
    """Id of the batch of which it is a row, by which its attempts go; empty: none."""
    begun: float
    """Monotonic instant, seconds."""


class RequestEnded(NamedTuple):
    """A request has ended."""

    id: str
    """As in `RequestBegan`."""
    inputs: Any
    """As passed by the caller; not to be stored without its consent."""
    answer: Answer | None
    """What the caller got; None: an error."""
    error: BaseException | None
    """The exception raised to the caller; None if there is an answer."""
    reading: Reading | None = None
    """The last reading of the device's sensors; None: they are not read, or have not been."""
    reading_age_s: float = 0.0
    """How long before the request began it was made, seconds; less than 0: since then."""
    edge_w: float | None = None
    """Power that a run of an edge takes beside what the device takes anyway, watts; None: not known."""
    batch: str = ""
    """Id of the batch of which it is a row; empty: none."""


class AttemptBegan(NamedTuple):
    """An attempt to call an endpoint, over HTTP or gRPC, is about to be sent."""

    number: int
    """Of this attempt, in this process; that of its `AttemptEnded`."""
    target: str
    """The endpoint's name."""
    request: str
    """The request's id, or that of the batch; empty: a probe, which has no user data."""
    again: int
    """How often it was tried before."""
    sending: Sending
    """What, and where to."""


class AttemptEnded(NamedTuple):
    """An attempt to call an endpoint, or a probe, has ended."""

    target: str
    """The endpoint's name."""
    request: str
    """The request's id; empty: a probe, which has no user data."""
    sent_bytes: int
    """Of the request's body; likewise those of the reply."""
    received_bytes: int
    took_s: float
    """Time since it began, seconds."""
    error: BaseException | None
    """Why it failed; None: it did not."""
    number: int = 0
    """As in `AttemptBegan`; 0: it was not announced, as a function's are not."""
    status: int | None = None
    """Of HTTP; None: there was no reply, or it is no HTTP."""
    tokens: Tokens | None = None
    """As the endpoint has counted them; None: it does not."""
    cancelled: bool = False
    """edgeroute has cancelled it before its deadline, as its answer was not needed; `error` is what that ended it with."""


class Instrument:
    """Base of all instruments: one method per kind of event; each is a no-op unless overridden.

    Called from any thread, including an event loop's: methods must not block. An exception from one is logged, and affects no
    answer.
    """

    def opened(self, status: Callable[[], Status | None]) -> None:
        """The router was made. `status` returns its state, as `Router.status` does, to any thread; None once it is gone."""

    def request_began(self, began: RequestBegan) -> None:
        """A request began. With an instrument that has this method, calls take the longer way through all stages."""

    def request_left(self, identity: str) -> None:
        """A request that began will not end: its caller was interrupted or cancelled, or closed the stream."""

    def request_ended(self, ended: RequestEnded) -> None:
        """A request ended with an answer or an error."""

    def attempt_began(self, began: AttemptBegan) -> Mapping[str, str] | None:
        """An attempt is about to be sent. Returns further headers to send with it, such as `traceparent`; None: none."""

    def attempt_ended(self, ended: AttemptEnded) -> None:
        """An attempt to call an endpoint has ended."""

    def breaker_changed(self, target: str, state: str) -> None:
        """A circuit breaker changed to `open`, `half-open` or `closed`."""

    def alarm(self, target: str, what: str) -> None:
        """A drift alarm: the certificate of that edge model is no longer trusted."""

    def outbox_changed(self, identity: str, what: str) -> None:
        """What happened to a request: it is `queued` on disk, or its `late` answer has arrived.

        `not queued`: its answer said that it is being queued, and that failed. `damaged`: its row in the outbox cannot be read.
        """

    def limit_hit(self, target: str, code: str) -> None:
        """An endpoint was not called, for a local reason; `code` as in `Held.code`."""

    def close(self) -> None:
        """The router was closed."""


def _failed(name: str, error: BaseException) -> None:
    log.error("an instrument failed at %s; no answer is touched by it", name, exc_info=error)


_NAME, _VALUE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"), re.compile(r"[!-~]([\t -~]*[!-~])?")
FIXED = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "content-type", "authorization", "idempotency-key"}
)
"""Headers that no instrument sets."""


def _checked(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers.

    Raises:
        ValueError: one cannot be sent, or is not an instrument's.
    """
    for name, value in headers.items():
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value) or name.lower() in FIXED:
            raise ValueError("an instrument gave a header that it cannot set, so none of its is sent")
    return dict(headers)


def _own(instruments: Iterable[Instrument], name: str) -> list[Callable[..., Any]]:
    """The methods of that name, without those that do nothing. An instrument of another class may lack it."""
    found = (_method(one, name) for one in instruments)
    return [method for method in found if method and getattr(method, "__func__", None) is not getattr(Instrument, name)]


def _method(instrument: Instrument, name: str) -> Any:
    """The method; one that cannot be had now is looked up at each event, where what that raises is logged."""
    try:
        return getattr(instrument, name, None)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - likewise
        return lambda *event: getattr(instrument, name)(*event)  # noqa: PLW0108 - it is looked up at the event


_DURING = ("attempt_began", "attempt_ended", "breaker_changed", "limit_hit")
"""Events while a call is under way."""


class Instruments(Instrument):
    """Forwards each event to several instruments."""

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        self.all = tuple(instruments)
        self._methods = {name: _own(self.all, name) for name in vars(Instrument) if not name.startswith("_")}

    def __bool__(self) -> bool:
        return bool(self.all)

    @property
    def follow_requests(self) -> bool:
        """Whether one is told when requests begin."""
        return bool(self._methods["request_began"])

    @property
    def follow_attempts(self) -> bool:
        """Whether one is told when attempts begin."""
        return bool(self._methods["attempt_began"])

    @property
    def prompt(self) -> bool:
        """Whether those that are told of attempts, breakers and limits return at once: their classes say so, `prompt = True`."""
        methods = [method for name in _DURING for method in self._methods[name]]
        return all(vars(type(getattr(method, "__self__", None))).get("prompt", False) for method in methods)

    def _each(self, name: str, *event: Any) -> None:
        for method in self._methods[name]:
            try:
                method(*event)
            except KeyboardInterrupt:  # noqa: PERF203 - each on its own
                raise
            except BaseException as e:  # noqa: BLE001 - it is logged
                _failed(name, e)

    def opened(self, status: Callable[[], Status | None]) -> None:
        """Forwards it."""
        self._each("opened", status)

    def request_began(self, began: RequestBegan) -> None:
        """Forwards it."""
        self._each("request_began", began)

    def request_left(self, identity: str) -> None:
        """Forwards it."""
        self._each("request_left", identity)

    def request_ended(self, ended: RequestEnded) -> None:
        """Forwards it."""
        self._each("request_ended", ended)

    def attempt_began(self, began: AttemptBegan) -> Mapping[str, str]:
        """Forwards it -> all headers."""
        headers: dict[str, str] = {}
        for method in self._methods["attempt_began"]:
            try:
                headers |= _checked(method(began) or {})
            except KeyboardInterrupt:  # noqa: PERF203 - likewise
                raise
            except BaseException as e:  # noqa: BLE001 - likewise
                _failed("attempt_began", e)
        return headers

    def attempt_ended(self, ended: AttemptEnded) -> None:
        """Forwards it."""
        self._each("attempt_ended", ended)

    def breaker_changed(self, target: str, state: str) -> None:
        """Forwards it."""
        self._each("breaker_changed", target, state)

    def alarm(self, target: str, what: str) -> None:
        """Forwards it."""
        self._each("alarm", target, what)

    def outbox_changed(self, identity: str, what: str) -> None:
        """Forwards it."""
        self._each("outbox_changed", identity, what)

    def limit_hit(self, target: str, code: str) -> None:
        """Forwards it."""
        self._each("limit_hit", target, code)

    def close(self) -> None:
        """Closes each."""
        self._each("close")
