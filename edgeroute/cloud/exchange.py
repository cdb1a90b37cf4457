"""One talk with an endpoint: its attempts, what they cost, and what their ends say of the endpoint."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING
from weakref import ref

from edgeroute import system
from edgeroute.core.codes import Failure, HeldCode
from edgeroute.core.policy import INF
from edgeroute.core.spending import Cost
from edgeroute.errors import BadReply, Held, StoreError
from edgeroute.types import Spent

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgeroute.cloud.guard import Guard

MB = 1e6
NO_DATA = "no user data"


class _Slot(ref["Exchange"]):
    """A reference to an exchange that calls back as that is collected.

    Why not `__del__`: what a signal handler raises in there is lost. Nothing of Python runs between the collection and a
    callback that is written in C.
    """

    __slots__ = ()
    __eq__, __hash__ = object.__eq__, object.__hash__  # those of the exchange are no more once it is


class Exchange:
    """One talk with an endpoint. The leg says before each attempt what it is about to send, and after it what came of it.

    Its slot is given back as `with` ends; if it never came to that, as it is collected.
    """

    __slots__ = (
        "__weakref__",
        "_attempts",
        "_begun",
        "_guard",
        "_open",
        "_took_s",
        "_until",
        "counts",
        "data_class",
        "identity",
        "late",
        "received",
        "rule",
        "sent",
        "slot",
        "usd",
    )  # fmt: skip

    def __init__(self, guard: Guard, identity: str, data_class: str | None, rule: str) -> None:
        self._guard, self.identity, self.data_class, self.rule = guard, identity, data_class, rule
        self.slot = _Slot(self, guard.rules.under_way.discard)
        self.sent = self.received = 0
        self.usd = 0.0
        self.counts = True
        """Whether the breaker hears of it."""
        self._open = self.late = False
        self._attempts = 0
        self._begun, self._until = 0.0, INF
        self._took_s: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._guard.leave(self)
        if error is None and self._took_s is not None and self.counts:
            self._guard.succeeded(self._took_s)
        elif isinstance(error, BadReply) and self.counts:  # it replied, but with what nobody can read
            self._guard.failed()
        if self._open:  # it was cut off in the middle: by the deadline, or by an answer that was quicker
            self._open = False
            if monotonic() >= self._until:
                self._overdue()

    @property
    def spent(self) -> Spent:
        """What it has cost so far."""
        terms, mb = self._guard.terms, (self.sent + self.received) / MB
        return Spent(self.sent, self.received, self.usd, terms.joules_per_call + mb * terms.joules_per_mb)

    def before_attempt(self, size: int, until: float) -> None:
        """Before an attempt that sends `size` bytes and has until that instant.

        Raises:
            Held: a limit does not allow it, or the egress ledger cannot be written. Nothing may be sent then.
        """
        guard, again, probe = self._guard, self._attempts > 0, self.rule == NO_DATA
        cost = guard.rules.cost(size / MB, first=not (again or probe))
        rejection = guard.attempt(cost, again=again, probe=probe)
        if rejection is not None:
            raise self._held(rejection.code, rejection.text)
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
                    guard.count_rejected()
                raise self._held("ledger", f"what is not in the egress ledger does not leave ({e})") from e
        self._attempts += 1
        self.usd += cost.usd
        self.sent += size
        self._open, self._begun, self._until = True, monotonic(), until

    def _held(self, code: HeldCode, text: str) -> Held:
        again = self._attempts > 0
        return Held(f"{self._guard.name} was not asked{' again' if again else ''}: {text}", code=code, again=again)

    def after_attempt(self, size: int, error: BaseException | None = None, *, cut: bool = False) -> None:
        """After it: so many bytes came back, or this error did. `cut`: because the answer is not needed any more."""
        guard = self._guard
        self._open = False
        self.received += size
        if size:
            cost = guard.rules.cost(size / MB, first=False)
            self.usd += cost.usd
            guard.spending.add(cost, system.now())
        if not self.counts:
            return
        if error is None:
            self._took_s = monotonic() - self._begun  # whether the reply is one will be seen when it is read
            return
        stale, in_time = getattr(error, "stale", False), monotonic() < self._until
        verdict = Failure.of(error).verdict(cut=cut, in_time=in_time, stale=stale)
        wait_s = getattr(error, "retry_after_s", None)
        if wait_s and verdict != "answered":
            guard.hold(wait_s)
        if verdict == "answered":
            guard.succeeded(None)
        elif verdict == "late":
            self._overdue()
        elif verdict == "fault" and not self.late:
            guard.failed()

    def overdue(self) -> None:
        """The deadline has passed, and the leg is left to run on: that is a fault already."""
        if self._open:
            self._overdue()

    def _overdue(self) -> None:
        """Too late, unless it had less time than it usually takes: that is nobody's fault."""
        guard = self._guard
        if self.counts and guard.too_late(monotonic() - self._begun) and guard.mark_late(self):
            guard.failed()

    def may_retry(self) -> bool:
        """Whether the retry budget and the breaker have room for one more attempt."""
        return self.counts and not self.late and self._guard.retry()
