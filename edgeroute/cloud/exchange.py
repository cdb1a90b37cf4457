"""Exchange: one request to an endpoint with all its calls and attempts, as its guard accounts for them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol
from weakref import ref

from edgeroute import system
from edgeroute.cloud.load_reports import report_in
from edgeroute.core.admission import price
from edgeroute.core.codes import ErrorCode, Failure, HeldCode, Rejection
from edgeroute.core.policy import INF
from edgeroute.core.spending import Cost, Tokens
from edgeroute.core.walk import new
from edgeroute.errors import BadReply, Held, StoreError
from edgeroute.types import Spent

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from typing_extensions import Self

    from edgeroute.cloud.spending import SharedSpending
    from edgeroute.cloud.turns import Turns
    from edgeroute.core.admission import Admission
    from edgeroute.stores.journal import Journal

MB = 1e6
TOO_LARGE = 413
"""HTTP status of a request whose body is too large."""
NO_DATA = "no user data"
NUMBERS = count(1)
"""Of attempts."""


class Sending(NamedTuple):
    """What is about to be sent over the network, as far as instruments are told."""

    protocol: str
    """http or grpc."""
    method: str
    """Of HTTP."""
    origin: str
    """Scheme, host and port of the endpoint, as in `https://api.example.com`."""
    path: str
    """Of HTTP; or the method of gRPC."""
    model: str
    """The model's name at the endpoint; empty: none is said."""


class Report(Protocol):
    """Receiver of attempts, and of rejected requests."""

    follows: bool
    """Whether it is told when attempts begin."""
    prompt: bool
    """Whether its methods return at once, whatever happens."""

    def began(self, number: int, target: str, request: str, again: int, sending: Sending) -> Mapping[str, str]:
        """An attempt is about to be sent -> further headers for it."""

    def attempt(
        self, target: str, request: str, sent: int, received: int, took_s: float, error: BaseException | None, number: int,
        status: int | None, tokens: Tokens | None, cancelled: bool,
    ) -> object:  # fmt: skip
        """An attempt has ended; bytes of bodies, and seconds. cancelled: before its deadline, as its answer was not needed."""

    def held(self, target: str, code: ErrorCode | HeldCode) -> object:
        """A request was rejected, for a local reason."""


class Owner(Protocol):
    """Interface of the guard that an exchange reports to."""

    name: str
    where: str
    rules: Admission
    lock: AbstractContextManager[Any]
    spending: SharedSpending
    journal: Journal | None
    turns: Turns
    report: Report | None

    @property
    def watcher(self) -> Any:
        """Receives events, such as `loaded`."""

    def hold(self, wait_s: float) -> None:
        """Holds all requests, as the endpoint requested."""

    def succeeded(self, took_s: float | None, moved: int | None = None) -> None:
        """Records a success, with its latency and the bytes of its bodies."""

    def failed(self) -> None:
        """Records a fault."""

    def mark_late(self, exchange: Exchange) -> bool:
        """Marks an exchange as late. Returns whether that is a fault."""

    def count_rejected(self, code: HeldCode) -> None:
        """Counts and reports a rejected request."""


class _Slot(ref["Exchange"]):
    """A weak reference to an exchange with a callback that frees its slot.

    Not `__del__`: an exception that a signal handler raises in there is lost. No Python code runs between the collection and a
    callback written in C.
    """

    __slots__ = ()
    __eq__, __hash__ = object.__eq__, object.__hash__  # the exchange's own fail once it is collected


class Exchange:
    """One call of an endpoint with all its attempts. The HTTP client reports each attempt before and after it.

    Its slot is freed at the end of the `with`, or when it is collected.
    """

    __slots__ = (
        "__weakref__", "_admitted", "_again", "_attempts", "_going", "_guard", "_made", "_moved", "_number", "_open", "_paid",
        "_sending", "_size", "_tokens_usd", "_took_s", "_unpaid", "_until", "begun", "codec", "counts", "data_class", "edge",
        "ended", "failure", "identity", "late", "received", "rule", "sent", "slot", "status", "thread", "usd", "wanted_by",
    )  # fmt: skip

    def __init__(self, guard: Owner, identity: str, data_class: str | None, rule: str, calls: int = 1) -> None:
        self.thread = get_ident()
        self._admitted = calls
        """Calls that the rate was asked for and that have not begun."""
        self._paid = 0
        """Calls booked ahead that have not begun."""
        self._unpaid = rule != NO_DATA
        """Whether the next attempt is the first one of a call."""
        self._guard, self.identity, self.data_class, self.rule = guard, identity, data_class, rule
        self.slot = _Slot(self, guard.rules.under_way.discard)
        self.sent = self.received = 0
        self.usd = 0.0
        self.counts = True
        """Whether the breaker counts it."""
        self.failure: BaseException | None = None
        """What ended it, where some of its calls have answered all the same."""
        self.wanted_by = INF
        """Instant by which its answer is of use, though it may go on; -inf: it is one that certificates are about."""
        self.codec = ""
        """The rung of a ladder by which its inputs are encoded; empty: there is no ladder."""
        self.edge: bool | None = None
        """Whether the edge's answers go along, to all inputs; None: the endpoint takes none."""
        self.ended: Callable[..., object] | None = None
        """Called at the end with `late=`, whether its answer came by `wanted_by`, or never can as it was too large; not if it
        failed otherwise."""
        self._tokens_usd = 0.0
        """Booked for the tokens of the attempt under way, before they are counted."""
        self._going = self._open = self.late = False
        self._attempts = self._made = self._moved = self._size = 0

        self._number = self._again = 0
        """Of the attempt under way, if its beginning was reported; else 0. How often the same was sent before it."""
        self._sending: Sending | None = None
        self.status: int | None = None
        """HTTP status of its reply."""

        self.begun, self._until = 0.0, INF
        self._took_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._guard.rules.leave(self.slot)
        if self._going:  # interrupted or cancelled within it
            self._report(0, error, None, cut=not isinstance(error, Exception))
        if error is None:
            error = self.failure
        if self._paid:
            self._give_back()
        if self.ended is not None and self.wanted_by > -INF:
            late = monotonic() >= self.wanted_by or getattr(error, "status", None) == TOO_LARGE
            if late or error is None:
                self.ended(late=late)
        if error is None and self._took_s is not None and self.counts:
            self._guard.succeeded(self._took_s, self._moved)
        elif isinstance(error, BadReply) and self.counts:  # it replied, but unreadably
            self._open = False
            self._guard.failed()
        if self._guard.turns.waiting:
            self._guard.turns.advance()
        if self._open and monotonic() >= self._until:  # cancelled in the middle, by the deadline and not by a faster answer
            self.overdue()

    @property
    def spent(self) -> Spent:
        """Bytes and cost so far."""
        terms, mb = self._guard.rules.terms, (self.sent + self.received) / MB
        joules = max(1, self._made) * terms.joules_per_call + mb * terms.joules_per_mb
        return new(Spent, (self.sent, self.received, self.usd, joules, self.codec, self.edge))

    def before_attempt(self, size: int, until: float, tokens: Tokens | None = None) -> None:
        """Books and records an attempt about to send `size` bytes, which must end by `until`. `tokens`: as are expected.

        Raises:
            Held: a limit forbids it, or the egress ledger cannot be written. Nothing may be sent then.
        """
        guard, again, probe, calls = self._guard, self._attempts > 0, self.rule == NO_DATA, 0
        if self._unpaid and not self._paid:
            calls = 1
        cost = guard.rules.cost(size / MB, calls)
        tokens_usd = 0.0 if tokens is None else price(guard.rules.terms, tokens)
        if tokens_usd:
            cost = cost._replace(usd=cost.usd + tokens_usd)
        with guard.lock:
            rejection = guard.rules.take(monotonic(), 1) if self._unpaid and not self._admitted else None
            rejection = rejection or guard.rules.attempt(cost, monotonic(), system.now(), again=again, probe=probe)
        if rejection is None and (rejection := guard.spending.secure(cost)) is not None:
            guard.spending.settle(cost, Cost(), system.now())
            guard.rules.rejected += not (again or probe)
        if rejection is not None:
            self._refuse(rejection)
        if guard.journal is not None:
            record = {
                "at": round(system.now(), 3), "to": guard.where, "bytes": size, "data_class": self.data_class,
                "rule": self.rule, "request": self.identity,
            }  # fmt: skip
            try:
                guard.journal.append(record)
            except StoreError as e:
                guard.spending.settle(cost, Cost(), system.now())
                if not (again or probe):
                    guard.count_rejected("ledger")
                raise self._held("ledger", f"what is not in the egress ledger does not leave ({e})") from e
        if self._unpaid:
            self._unpaid = False
            self._made += 1
            self._paid, self._admitted = max(0, self._paid - 1), max(0, self._admitted - 1)
        self._attempts += 1
        self.usd += cost.usd
        self._tokens_usd = tokens_usd
        self.sent += size
        self._size = size
        self.begun, self._until, self._open, self._going = monotonic(), until, True, True

    def reported(self, headers: Mapping[str, str]) -> None:
        """Takes what a reply's headers say of the endpoint's load."""
        if (report := report_in(headers)) is not None:
            guard = self._guard
            with guard.lock:
                changed = guard.rules.load.add(report.load, monotonic())
            if changed:
                guard.watcher.loaded(guard)

    @property
    def followed(self) -> bool:
        """Whether an instrument is told of the beginnings of attempts."""
        report = self._guard.report
        return report is not None and report.follows

    def headers(self, sending: Sending) -> Mapping[str, str]:
        """Reports that an attempt is about to be sent, after `before_attempt` -> further headers to send with it."""
        report = self._guard.report
        if report is None or not report.follows:
            return {}
        self._again = self._again + 1 if sending == self._sending else 0
        self._number, self._sending = next(NUMBERS), sending
        return report.began(self._number, self._guard.name, self.identity, self._again, sending)

    def _report(self, size: int, error: BaseException | None, tokens: Tokens | None, *, cut: bool) -> None:
        """Reports the end of an attempt; one that its deadline has cut was too late."""
        self._going, late = False, cut and monotonic() >= self._until
        (number, self._number), (status, self.status), guard = (self._number, 0), (self.status, None), self._guard
        if guard.report is not None:
            took_s = monotonic() - self.begun
            error = TimeoutError("cut by its deadline") if late else error
            guard.report.attempt(
                guard.name, self.identity, self._size, size, took_s, error, number, status, tokens, cut and not late
            )

    def next_call(self) -> None:
        """The next attempt is the first one of another call: it counts as one in every limit."""
        self._unpaid, self._sending = True, None

    def prepay(self) -> bool:
        """Books all its calls before the first one leaves, if there are several or bookings are written ahead.

        Those not made are given back at its end. Returns whether the booking is to be written by `secure` now.

        Raises:
            Held: together they exceed a limit.
        """
        guard, calls = self._guard, self._admitted
        if calls == 1 and not guard.spending.durable:
            return False
        cost = guard.rules.cost(0, calls)
        with guard.lock:
            rejection = guard.rules.attempt(cost, monotonic(), system.now())
        if rejection is not None:
            self._refuse(rejection)
        self._paid = calls
        self.usd += cost.usd
        return guard.spending.unwritten

    def secure(self) -> None:
        """Writes what `prepay` has booked, which takes as long as the disk does.

        Raises:
            Held: it could not be written.
        """
        guard = self._guard
        rejection = guard.spending.secure(guard.rules.cost(0, self._paid))
        if rejection is not None:
            guard.rules.rejected += 1
            self._refuse(rejection)

    def _refuse(self, rejection: Rejection) -> NoReturn:
        guard = self._guard
        if guard.report is not None:
            guard.report.held(guard.name, rejection.code)
        raise self._held(rejection.code, rejection.text, rejection.wait_s)

    def _give_back(self) -> None:
        cost, self._paid = self._guard.rules.cost(0, self._paid), 0
        self.usd -= cost.usd
        self._guard.spending.settle(cost, Cost(), system.now())

    def _held(self, code: HeldCode, text: str, wait_s: float = 0.0) -> Held:
        again = self._attempts > 0
        return Held(f"{self._guard.name} was not asked{' again' if again else ''}: {text}", code=code, again=again, wait_s=wait_s)

    def after_attempt(
        self, size: int, error: BaseException | None = None, *, cut: bool = False, tokens: Tokens | None = None
    ) -> None:
        """Records the end of an attempt: bytes received, or the error.

        Args:
            size: bytes of the body that came.
            error: what ended it, if it failed.
            cut: it was cancelled, as the answer is no longer needed.
            tokens: that the endpoint has counted.
        """
        guard, in_time = self._guard, monotonic() < self._until
        self._open = cut and in_time  # by whose deadline it was cut, the walk knows
        self.received += size
        self._report(size, error, tokens, cut=cut or not isinstance(error, Exception | None))
        if size:
            cost = guard.rules.cost(size / MB)
            self.usd += cost.usd
            guard.spending.add(cost, system.now())
        if self._tokens_usd or tokens is not None:
            self._settle_tokens(0.0 if tokens is None else price(guard.rules.terms, tokens))
        if not self.counts:
            return
        if error is None:
            self._moved = self._size + size
            self._took_s = monotonic() - self.begun  # whether it is a valid reply is known once it is decoded
            return
        verdict = Failure.of(error).verdict(cut=cut, in_time=in_time, stale=getattr(error, "stale", False))
        wait_s = getattr(error, "retry_after_s", None)
        if wait_s and verdict != "answered":
            guard.hold(wait_s)
        if verdict == "answered":
            self._open = False
            guard.succeeded(None)
        elif verdict == "late":
            self._overdue()
        elif verdict == "fault" and not self.late:
            guard.failed()

    def _settle_tokens(self, usd: float) -> None:
        """Corrects what was booked for the attempt's tokens."""
        booked, self._tokens_usd = self._tokens_usd, 0.0
        self.usd += usd - booked
        if usd > booked:
            self._guard.spending.add(Cost(usd - booked), system.now())
        elif usd < booked:
            self._guard.spending.settle(Cost(booked), Cost(usd), system.now())

    def overdue(self) -> None:
        """Records that the deadline has passed before the attempt had ended, which is a fault already."""
        if self._open:
            self._open = False
            self._overdue()

    def _overdue(self) -> None:
        """Records lateness as a fault, unless the attempt had less than the endpoint's usual time."""
        if self.counts and self._guard.mark_late(self):
            self._guard.failed()

    def may_retry(self, *, stale: bool = False) -> bool:
        """Whether the breaker and the retry budget allow another attempt. stale: its connection had been closed: that is free."""
        if not self.counts or self.late:
            return False
        if stale:
            return True
        with self._guard.lock:
            return self._guard.rules.retry()
