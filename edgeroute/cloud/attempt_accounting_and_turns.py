"""Exchange: one request to an endpoint with all its attempts, as its guard accounts for them; and turns of waiting requests.

`Exchange` books money and bytes before an attempt and corrects them after it; `Turns` gives free places in order of arrival.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from itertools import count
from threading import get_ident
from time import monotonic, time
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeVar
from weakref import ref

from edgeroute.cloud.load_reports import report_in
from edgeroute.core.endpoint_breaker_and_limits import Admission, price
from edgeroute.core.error_codes_and_texts import Crowded, ErrorCode, Failure, HeldCode, Rejection
from edgeroute.core.policy_egress_and_options import INF, Permit
from edgeroute.core.spending_limits import Cost, Tokens
from edgeroute.core.walk import new
from edgeroute.errors import BadReply, CloudError, EdgerouteError, Held, Refused, StoreError, Unreachable
from edgeroute.system import wall_clock
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.types import Spent, StopToken

if TYPE_CHECKING:
    import asyncio

    from typing_extensions import Self

    from edgeroute.cloud.shared_spending_and_record import SharedSpending
    from edgeroute.stores.json_lines_and_process_locks import Journal


# Turns: requests wait for a place among an endpoint's calls under way, in order of arrival, for threads and asyncio.

# Maximum waiting threads in this process, of the 256 for the clouds of a router, so that others have some left.
MOST_THREADS = 200
MOST_TASKS = 1000  # maximum waiting tasks for one endpoint
LEFT = "it was cancelled"
LOOK_S = 0.5  # seconds between a waiting request's own checks: the place of a garbage-collected one is freed without notice
_CLOSED = Rejection("stopped", "the router is closed")


class Turn:
    """Waiting request."""

    __slots__ = ("calls", "done", "rejection", "slot", "stop", "until", "wake")

    def __init__(
        self, slot: Hashable, calls: int, until: float, wake: Callable[[], object], stop: StopToken | None = None
    ) -> None:
        self.slot, self.calls, self.until, self.wake, self.stop = slot, calls, until, wake, stop
        self.done = False  # True if it was admitted, or rejected for another reason than the places
        self.rejection: Rejection | None = None

    def waits(self, now: float) -> bool:
        """Return True if the request still waits: its time has not passed, and no stop was requested."""
        return now < self.until and not (self.stop is not None and self.stop.asked)


class _WaitingThreads(ForkSafe):
    """Turns for which threads of this process wait: endpoints share their threads."""

    turns: set[Turn] = per_process(set)


_threads = _WaitingThreads()


class Turns:
    """Waiting requests of one endpoint. The first gets a free place; the others wait, by threads and tasks, without a lock held.

    Its methods take the lock themselves, and wake requests after they have released it: call them without it.

    Args:
        rules: rules that admit a request.
        lock: lock of the rules.
    """

    def __init__(self, rules: Admission, lock: AbstractContextManager[Any]) -> None:
        self._rules, self._lock, self._closed = rules, lock, False
        self.waiting: dict[Turn, None] = {}  # turns in order of arrival

    def advance(self) -> None:
        """Give free places to the waiting requests, first come first, and wake those that have one. Call it without the lock.

        It takes the lock, and wakes after its release. A request that the rules now reject for another reason than the places,
        or after `close`, is woken as well, with that reason. One whose time has passed, or that was told to stop, is removed
        without a place and not woken.
        """
        if not self.waiting:
            return
        ready, now = list[Turn](), monotonic()
        with self._lock:
            while self.waiting:
                turn = next(iter(self.waiting))
                if not turn.waits(now):
                    del self.waiting[turn]
                    continue
                crowded = None if self._closed or self._rules.why(now) is not None else self._rules.crowded(now)
                if isinstance(crowded, Crowded):
                    break
                del self.waiting[turn]
                turn.rejection = _CLOSED if self._closed else self._rules.enter(turn.slot, now, turn.calls)
                turn.done = True
                ready.append(turn)
        for turn in ready:
            turn.wake()

    def wait(self, slot: Hashable, calls: int, until: float, stop: StopToken | None, why: Rejection) -> Rejection | None:
        """Wait for a place, blocking this thread in order of arrival.

        Return None once admitted, else the reason of the rejection. Every `LOOK_S` seconds it looks by itself, in case nothing
        wakes it. It does not wait at all if `MOST_THREADS` threads do, or within another request of this thread, which would wait
        for itself.

        Args:
            slot: slot of the request's exchange.
            calls: number of calls.
            until: instant at which it gives up.
            stop: token whose request ends the wait; None: none.
            why: reason to return if it gives up, or if too many wait already.
        """
        if len(_threads.turns) >= MOST_THREADS or self._is_inside():
            return why
        awake = threading.Event()
        turn = Turn(slot, calls, until, awake.set, stop)
        _threads.turns.add(turn)
        try:
            if stop is not None:
                stop.on_ask(awake.set)
            self._join(turn)
            while not turn.done and turn.waits(now := monotonic()):
                if not awake.wait(min(until - now, LOOK_S)):
                    self.advance()
            return self._remove_turn(turn, why)
        except BaseException:
            self._drop(turn)
            raise
        finally:
            _threads.turns.discard(turn)
            if stop is not None:
                stop.on_ask(None)

    async def wait_async(self, slot: Hashable, calls: int, until: float, why: Rejection) -> Rejection | None:
        """Wait for a place in this task, in order of arrival; see `wait`. Cancelling the task gives the turn up.

        It does not wait at all if `MOST_TASKS` requests for this endpoint do, threads' among them.
        """
        if len(self.waiting) >= MOST_TASKS:
            return why
        import asyncio  # not for a router without a cloud

        loop = asyncio.get_running_loop()
        awake: asyncio.Future[None] | None = None

        def awaken() -> None:
            if awake is not None and not awake.done():
                awake.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(awaken)

        turn = Turn(slot, calls, until, wake)
        try:
            self._join(turn)
            while not turn.done and (left_s := until - monotonic()) > 0:
                awake = loop.create_future()
                alarm = loop.call_later(min(left_s, LOOK_S), awaken)
                try:
                    await awake
                finally:
                    alarm.cancel()
                self.advance()
            return self._remove_turn(turn, why)
        except BaseException:
            self._drop(turn)
            raise

    def close(self) -> None:
        """Reject all waiting requests, and all that would wait from now on."""
        self._closed = True
        self.advance()

    def _is_inside(self) -> bool:
        """Return True if this thread has a request under way, as below a signal handler: it would wait for itself."""
        this = threading.get_ident()
        inside = (slot() for slot in list(self._rules.under_way) if isinstance(slot, ref))
        return any(exchange is not None and exchange.thread == this for exchange in inside)

    def _join(self, turn: Turn) -> None:
        """Append a turn to the waiting ones, and admit those for which there are places.

        Uncounts the request's rejection: it is counted again if it gives up.
        """
        with self._lock:
            self._rules.rejected -= 1  # it is counted at the end
            self.waiting[turn] = None
        self.advance()

    def _remove_turn(self, turn: Turn, why: Rejection) -> Rejection | None:
        """Remove a turn after its wait. Return None if it was admitted, else its own reason, or `why` if it gave up.

        One that gave up is counted as rejected.
        """
        with self._lock:
            self.waiting.pop(turn, None)
            self._rules.rejected += not turn.done
            return turn.rejection if turn.done else why

    def _drop(self, turn: Turn) -> None:
        """Remove a turn, uncounted, give back the place and the calls that it may just have got, and admit the next ones."""
        with self._lock:
            self.waiting.pop(turn, None)
            if turn.done and turn.rejection is None:
                self._rules.rate.give_back(turn.calls)
        self._rules.leave(turn.slot)
        self.advance()


T = TypeVar("T")
MB = 1e6
TOO_LARGE = 413  # HTTP status of a request whose body is too large
NO_DATA = "no user data"
NUMBERS = count(1)  # numbers of attempts
# Time that an attempt of this context must have had if its lateness is to be a fault, seconds: for deadlines of strangers.
LEAST_LATE_S: ContextVar[float] = ContextVar("edgeroute_least_late_s", default=0.0)


class Sending(NamedTuple):
    """Request about to be sent over the network, as instruments get it."""

    protocol: str  # http or grpc
    method: str  # method of HTTP
    origin: str  # scheme, host and port of the endpoint, as in `https://api.example.com`
    path: str  # path of HTTP, or method of gRPC
    model: str  # name of the model at the endpoint; empty: none


class Reported(Protocol):
    """Receiver of attempts, and of rejected requests."""

    follows: bool  # True if `began` is to be called
    prompt: bool  # True if its methods return at once, whatever happens

    def began(self, number: int, target: str, request: str, again: int, sending: Sending) -> Mapping[str, str]:
        """Handle that an attempt is about to be sent. Return further headers for it."""

    def attempt(
        self, target: str, request: str, sent: int, received: int, took_s: float, error: BaseException | None, number: int,
        status: int | None, tokens: Tokens | None, cancelled: bool,
    ) -> object:  # fmt: skip
        """Handle the end of an attempt.

        Args:
            target: name of the target.
            request: id of the request.
            sent: bytes of the request's body.
            received: bytes of the reply's body.
            took_s: seconds.
            error: why it failed; None: it did not.
            number: number of the attempt; 0: `began` was not called.
            status: HTTP status; None: none.
            tokens: counted tokens; None: none.
            cancelled: True if it ended before its deadline, as its answer was not needed.
        """

    def held(self, target: str, code: ErrorCode | HeldCode) -> object:
        """Handle that a request was rejected for a local reason."""


class Owner(Protocol):
    """Interface of the guard to which an exchange reports."""

    name: str
    where: str
    rules: Admission
    lock: AbstractContextManager[Any]
    spending: SharedSpending
    journal: Journal | None
    turns: Turns
    report: Reported | None
    withdrawn: Callable[[Permit], str]

    @property
    def watcher(self) -> Any:
        """Receiver of events, such as `loaded`."""

    def hold(self, wait_s: float) -> None:
        """Reject all requests for some seconds, as the endpoint requested."""

    def succeeded(self, took_s: float | None, moved: int | None = None) -> None:
        """Record a success, with its latency and the bytes of its bodies."""

    def failed(self, status: int | None = None, late: Exchange | None = None) -> None:
        """Record a fault, with its HTTP status if it has one; or that an exchange is late, if that is a fault."""


class _Slot(ref["Exchange"]):
    """Weak reference to an exchange, with a callback that frees its slot.

    Not `__del__`: an exception that a signal handler raises in there is lost. No Python code runs between the collection and a
    callback written in C.
    """

    __slots__ = ()
    __eq__, __hash__ = object.__eq__, object.__hash__  # the exchange's own fail once it is collected


class Exchange:
    """One request to an endpoint with all its calls and attempts. The HTTP client reports each attempt before and after it.

    Its slot is freed at the end of the `with`, or when it is garbage collected. It has no lock of its own: its methods take the
    guard's where they decide by the rules, and call watcher and receiver after its release.
    """

    __slots__ = (
        "__weakref__", "_admitted", "_again", "_allowed", "_attempts", "_call_usd", "_due_usd", "_going", "_guard",
        "_made", "_moved", "_number", "_open", "_paid", "_sending", "_size", "_tokens_usd", "_took_s", "_unpaid",
        "_until", "answers", "begun", "codec", "counts", "data_class", "edge", "ended", "failure", "identity", "late",
        "left", "off_loop", "received", "refused", "rule", "sent", "slot", "status", "thread", "usd", "wanted_by",
    )  # fmt: skip

    def __init__(self, guard: Owner, identity: str, allowed: Permit | None, calls: int = 1) -> None:
        self.thread = get_ident()
        self._admitted = 0 if allowed is None else calls  # calls admitted by the rate limit that have not begun
        self._paid = 0  # calls booked ahead that have not begun
        self._unpaid = allowed is not None  # True if the next attempt is the first one of a call
        self._guard, self.identity, self._allowed = guard, identity, allowed
        self.data_class, self.rule = (None, NO_DATA) if allowed is None else (allowed.data_class, allowed.rule)
        self.slot = _Slot(self, guard.rules.under_way.discard)
        self.sent, self.received, self.usd = 0, 0, 0.0
        self.off_loop: Callable[[Callable[[], Any]], Any] | None = None  # makes calls that block, see `call_off_loop`; None: here
        self.counts = True  # True if the breaker counts its result
        # True once a part of the answer has come: the endpoint works, and a request for too much is late by itself.
        self.answers = False
        self.failure: BaseException | None = None  # exception that ended it, although some of its calls have answered
        # Instant by which its answer is of use, though it may go on; -inf: it is one that certificates are about.
        self.wanted_by = INF
        self.codec = ""  # rung of a ladder of codecs by which its inputs are encoded; empty: no ladder
        # True if the edge's answers are sent along to all inputs, False if not to all; None: the endpoint takes none.
        self.edge: bool | None = None
        # Called at the end with `late=`, but not after other failures than these.
        #
        # True if its answer did not come by `wanted_by`, or could not, as the request was too large.
        self.ended: Callable[..., object] | None = None
        self.refused: Callable[[Exchange, Refused], object] | None = None  # called at the end if the endpoint has refused a call
        # Costs booked for the attempt under way: of its tokens, before they are counted, and of its call.
        self._tokens_usd = self._call_usd = 0.0
        self._due_usd = 0.0  # cost of the call that the next attempt is to pay, as nothing of the last one was sent
        self._going = self._open = self.late = False
        self.left = False  # True from its end on: a thread that still books an attempt returns the cost
        self._attempts = self._made = self._moved = self._size = 0
        # Number of the attempt under way, 0 if its beginning was not reported; and how often the same was sent before.
        self._number = self._again = 0
        self._sending: Sending | None = None
        self.status: int | None = None  # HTTP status of its reply
        self.begun, self._until = 0.0, INF
        self._took_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.left = True
        cause = self.failure if error is None else error
        # A fault is counted before its place is free, else another request would get that.
        if isinstance(cause, BadReply) and cause.counts and self.counts:  # it replied, but unreadably
            self._open = False
            self._guard.failed()
        elif self._open and monotonic() >= self._until:  # cancelled in the middle, by the deadline and not by a faster answer
            self.overdue()
        self._guard.rules.leave(self.slot)
        if self._going:  # interrupted or cancelled within it
            self._report(0, error, None, cut=not isinstance(error, Exception))
        if self._admitted:  # calls that were not made
            with self._guard.lock:
                self._guard.rules.rate.give_back(self._admitted)
        if self._paid:  # booked calls that were not made
            cost, self._paid = self._guard.rules.cost(0, self._paid), 0
            self.usd -= cost.usd
            self._guard.spending.settle(cost, Cost(), wall_clock.now())
        if self.ended is not None and self.wanted_by > -INF:
            late = monotonic() >= self.wanted_by or Failure.of(cause).status == TOO_LARGE
            if late or cause is None:
                self.ended(late=late)
        if cause is None and self._took_s is not None and self.counts:
            self._guard.succeeded(self._took_s, self._moved)
        if self._guard.turns.waiting:
            self._guard.turns.advance()
        if self.refused is not None and isinstance(cause, Refused):
            self.refused(self, cause)

    @property
    def spent(self) -> Spent:
        """Bytes, cost and estimated energy so far, with the codec, and if the edge's answer went along."""
        terms, mb = self._guard.rules.terms, (self.sent + self.received) / MB
        joules = max(1, self._made) * terms.joules_per_call + mb * terms.joules_per_mb
        return new(Spent, (self.sent, self.received, self.usd, joules, self.codec, self.edge))

    def before_attempt(self, size: int, until: float, tokens: Tokens | None = None) -> None:
        """Book an attempt's cost in the spending limits, and write it to the egress ledger; nothing may be sent before.

        The first attempt of a call also counts in the rate limit, unless `enter` has counted it. Starts the attempt's clock.
        Blocks for the disk where bookings or the ledger are written. A rejection returns what was booked, is reported, and is
        counted if it is of a first attempt and no probe.

        Args:
            size: bytes of the body.
            until: instant by which the attempt must end.
            tokens: expected tokens; None: none.

        Raises:
            Held: the policy in force by now or a limit forbids it, or for a repeated attempt the breaker, or a booking or the
                ledger cannot be written.
            Unreachable: the exchange has ended meanwhile, so nothing is sent; the cost is returned.
        """
        if self.left:  # while it waited for a thread
            raise Unreachable(LEFT)
        guard, again, probe = self._guard, self._attempts > 0, self._allowed is None
        if self._allowed is not None and (why := guard.withdrawn(self._allowed)):
            with guard.lock:
                guard.rules.rejected += not again
            self._refuse(Rejection("other", why))
        cost = guard.rules.cost(size / MB, int(self._unpaid and not self._paid))
        tokens_usd = 0.0 if tokens is None else price(guard.rules.terms, tokens)
        if tokens_usd or self._due_usd:
            cost = cost._replace(usd=cost.usd + tokens_usd + self._due_usd)
        with guard.lock:
            more = self._unpaid and not self._admitted
            rejection = guard.rules.take(monotonic(), 1) if more else None
            self._admitted += more and rejection is None
            rejection = rejection or guard.rules.attempt(cost, monotonic(), wall_clock.now(), again=again, probe=probe)
        wait_until = until if self.wanted_by == -INF else min(until, self.wanted_by)
        if rejection is None and (rejection := guard.spending.secure(cost, wait_until) or self._note_in_ledger(size)) is not None:
            guard.spending.settle(cost, Cost(), wall_clock.now())
            with guard.lock:
                guard.rules.rejected += not (again or probe)
        if rejection is not None:
            self._refuse(rejection)
        if self.left:
            guard.spending.settle(cost, Cost(), wall_clock.now())
            raise Unreachable(LEFT)
        self._call_usd, self._due_usd = guard.rules.terms.usd_per_call if self._unpaid else self._due_usd, 0.0
        if self._unpaid:
            self._unpaid = False
            self._made += 1
            self._paid, self._admitted = max(0, self._paid - 1), max(0, self._admitted - 1)
        self._attempts += 1
        self.usd += cost.usd
        self._tokens_usd = tokens_usd
        self.sent += size
        self._size = size
        self.begun, self._until, self._open, self._going, self.answers = monotonic(), until, True, True, False

    async def call_off_loop(self, call: Callable[[], T]) -> T:
        """Make a call that may block for the disk, such as a booking, and return its result: off the event loop, if on one."""
        return call() if self.off_loop is None else await self.off_loop(call)

    def _note_in_ledger(self, size: int) -> Rejection | None:
        """Write an attempt to the egress ledger, if there is one, blocking; return the rejection if it cannot be written."""
        if self._guard.journal is None:
            return None
        record = {  # with the clock's own time, which may have been set since the process began
            "at": round(time(), 3), "to": self._guard.where, "bytes": size, "data_class": self.data_class, "rule": self.rule,
            "request": self.identity,
        }  # fmt: skip
        try:
            self._guard.journal.append(record)
        except StoreError as e:
            return Rejection("ledger", f"what is not in the egress ledger does not leave ({e})")
        return None

    def record_load(self, headers: Mapping[str, str]) -> None:
        """Record the load that the endpoint reports in a reply's headers.

        Notify the guard's watcher if decisions depend on the change. Without a valid report it does nothing.
        """
        if (report := report_in(headers)) is not None:
            guard = self._guard
            with guard.lock:
                changed = guard.rules.load.add(report.load, monotonic())
            if changed:
                guard.watcher.loaded(guard)

    def headers(self, sending: Sending) -> Mapping[str, str]:
        """Report to the instrument that an attempt is about to be sent, and return the headers that it adds.

        Returns {} and does nothing if no instrument follows attempts. Gives the attempt a number, and counts how often in a
        row the same address and model were sent to. Comes after `before_attempt`.
        """
        report = self._guard.report
        if report is None or not report.follows:
            return {}
        self._again = self._again + 1 if sending == self._sending else 0
        self._number, self._sending = next(NUMBERS), sending
        return report.began(self._number, self._guard.name, self.identity, self._again, sending)

    def _report(self, size: int, error: BaseException | None, tokens: Tokens | None, *, cut: bool) -> None:
        """Report the end of the attempt to the guard's receiver, if there is one; the attempt is not under way any more.

        Its number and HTTP status are reset, also without a receiver. One that was cut after its deadline is reported as failed
        by TimeoutError, one that was cut before it as cancelled.
        """
        self._going, late = False, cut and monotonic() >= self._until
        (number, self._number), (status, self.status), guard = (self._number, 0), (self.status, None), self._guard
        if guard.report is not None:
            took_s = monotonic() - self.begun
            error = TimeoutError("cut by its deadline") if late else error
            guard.report.attempt(
                guard.name, self.identity, self._size, size, took_s, error, number, status, tokens, cut and not late
            )

    def next_call(self) -> None:
        """Declare that the next attempt is the first one of another call, which counts as one in every limit."""
        self._unpaid, self._sending = True, None

    def prepay(self) -> bool:
        """Book the cost of all its calls before the first one leaves.

        Return True if `secure` has to write the booking to disk now. A single call is booked as it leaves instead, unless
        bookings are written ahead. The cost of calls that are not made is returned at the exchange's end.

        Raises:
            Held: together they exceed a spending limit, which counts as a rejection, and is reported.
        """
        guard, calls = self._guard, self._admitted
        if calls == 1 and not guard.spending.durable:
            return False
        cost = guard.rules.cost(0, calls)
        with guard.lock:
            rejection = guard.rules.attempt(cost, monotonic(), wall_clock.now())
        if rejection is not None:
            self._refuse(rejection)
        self._paid = calls
        self.usd += cost.usd
        return guard.spending.unwritten

    def secure(self, until: float) -> None:
        """Write the booking of `prepay` to disk, blocking; a locked file is waited for until the instant `until`.

        Raises:
            Held: it could not be written, which counts as a rejection, and is reported.
        """
        guard = self._guard
        rejection = guard.spending.secure(guard.rules.cost(0, self._paid), until)
        if rejection is not None:
            guard.rules.rejected += 1
            self._refuse(rejection)

    def _refuse(self, rejection: Rejection) -> NoReturn:
        """Report a rejection to the guard's receiver, if any, and raise Held with its code, text and wait. Counts nothing."""
        guard, again = self._guard, self._attempts > 0
        if guard.report is not None:
            guard.report.held(guard.name, rejection.code)
        text = f"{guard.name} was not asked{' again' if again else ''}: {rejection.text}"
        raise Held(text, code=rejection.code, again=again, wait_s=rejection.wait_s)

    def after_attempt(
        self, size: int, error: BaseException | None = None, *, cut: bool = False, tokens: Tokens | None = None
    ) -> None:
        """Record the end of an attempt: settle its cost, count received bytes, report it to instruments, and tell the breaker.

        If nothing was sent, money and bytes are returned. A Retry-After holds the endpoint's calls. A fault may open the breaker.
        A success closes nothing yet: that waits until the reply is decoded, at the exchange's end.

        Args:
            size: bytes of the body received.
            error: exception that ended it; None: it succeeded.
            cut: True if it was cancelled, as the answer is no longer needed.
            tokens: tokens counted by the endpoint; None: not counted.
        """
        cut = cut or isinstance(error, KeyboardInterrupt | GeneratorExit)  # of the caller
        guard, in_time = self._guard, monotonic() < self._until
        own = error if isinstance(error, CloudError) else None  # the attributes of a foreign exception may be anything
        self._open = cut and in_time  # by whose deadline it was cut, the walk knows
        if own is not None and own.unsent:
            tokens, cost = None, guard.rules.cost(self._size / MB)  # money and bytes are returned; its call and energy count
            guard.spending.settle(Cost(cost.usd + self._call_usd, cost.mb), Cost(), wall_clock.now())
            self.usd -= cost.usd + self._call_usd
            self.sent -= self._size
            self._size, self._due_usd = 0, self._call_usd
        self.received += size
        self._report(size, error, tokens, cut=cut or not isinstance(error, Exception | None))
        if size:
            cost = guard.rules.cost(size / MB)
            self.usd += cost.usd
            guard.spending.add(cost, wall_clock.now())
        if self._tokens_usd or tokens is not None:
            self._settle_tokens(0.0 if tokens is None else price(guard.rules.terms, tokens))
        if not self.counts:
            return
        if error is None:
            self._moved = self._size + size
            self._took_s = monotonic() - self.begun  # whether it is a valid reply is known once it is decoded
            return
        verdict = Failure.of(error).verdict(cut=cut, in_time=in_time, stale=own is not None and own.stale)
        if own is not None and own.retry_after_s and verdict != "answered":
            guard.hold(own.retry_after_s)
        if verdict == "answered":
            self._open = False
            guard.succeeded(None)
        elif verdict == "late":
            self._overdue()
        elif verdict == "fault" and not self.late and not (isinstance(error, EdgerouteError) and not error.counts):
            guard.failed(None if own is None else own.status)

    def _settle_tokens(self, usd: float) -> None:
        """Replace the cost booked for the attempt's tokens by the actual one, in dollars, here and in the spending limits."""
        booked, self._tokens_usd = self._tokens_usd, 0.0
        self.usd += usd - booked
        if usd > booked:
            self._guard.spending.add(Cost(usd - booked), wall_clock.now())
        elif usd < booked:
            self._guard.spending.settle(Cost(booked), Cost(usd), wall_clock.now())

    def overdue(self) -> None:
        """Record, while an attempt is still under way, that its deadline has passed, which may be a fault.

        A no-op if none is under way.
        """
        if self._open:
            self._open = False
            self._overdue()

    def _overdue(self) -> None:
        """Record lateness as a fault of the endpoint, once an exchange.

        It is none if the answer had begun, or if the attempt had no time, less than the endpoint usually takes, or than
        `LEAST_LATE_S`.
        """
        little = self.answers or self.begun >= self._until or monotonic() - self.begun < LEAST_LATE_S.get()
        if self.counts and not little:
            self._guard.failed(late=self)

    def may_retry(self, *, stale: bool = False) -> bool:
        """Return True if another attempt may be made: the breaker is closed, and the retry budget has one, which is taken.

        False, and nothing is taken, for a late exchange, and for one that the breaker does not count, such as a probe.

        Args:
            stale: True if its kept-alive connection had been closed; then neither the breaker nor the budget is asked.
        """
        if not self.counts or self.late:
            return False
        if stale:
            return True
        with self._guard.lock:
            return self._guard.rules.retry()
