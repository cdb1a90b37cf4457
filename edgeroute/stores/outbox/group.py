"""Group commit: entries that several threads store at the same time share one transaction, and so one wait for the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeAlias

from edgeroute.errors import Closed, StoreError
from edgeroute.stores.outbox.entries import Put, Waiting
from edgeroute.system import renew_after_fork

MOST = 256
"""Entries in one transaction."""
Write: TypeAlias = Callable[[Sequence[Waiting]], Sequence[Put]]
Refuse: TypeAlias = Callable[[], str]
"""Says why entries are not stored any more; empty: they are."""


class _Ticket:
    """One entry, and what became of it."""

    __slots__ = ("refuse", "result", "waiting")

    def __init__(self, waiting: Waiting, refuse: Refuse) -> None:
        self.waiting, self.refuse = waiting, refuse
        self.result: Put | Exception | None = None


class GroupCommit:
    """Stores entries. A thread that has its turn stores what all others have brought by then, and its own.

    Args:
        write: stores entries in one transaction; all or none.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A child has none of its parent's threads."""
        self._brought: dict[_Ticket, None] = {}
        """In order of arrival."""
        self._turn = threading.RLock()
        """Reentrant for a signal handler that stores an entry, too."""

    def __len__(self) -> int:
        """Number of entries that wait for their transaction."""
        return len(self._brought)

    def put(self, entries: Sequence[Waiting], refuse: Refuse = str) -> list[Put | Exception]:
        """Stores entries durably -> for each what became of it, or why it could not be stored.

        Args:
            entries: to store.
            refuse: asked before the transaction.
        """
        tickets = [_Ticket(entry, refuse) for entry in entries]
        try:
            self._brought.update(dict.fromkeys(tickets))
            while _unfinished(tickets):
                with self._turn:
                    if _unfinished(tickets):  # nobody did it meanwhile
                        self._store(list(islice(self._brought.copy(), MOST)))
        finally:
            for ticket in tickets:
                self._brought.pop(ticket, None)
        return [_result(ticket) for ticket in tickets]

    def _store(self, brought: Sequence[_Ticket]) -> None:
        tickets = list[_Ticket]()
        for ticket in brought:
            if why := ticket.refuse():
                self._end(ticket, Closed(why))
            else:
                tickets.append(ticket)
        if not tickets:
            return
        try:
            results: Sequence[Put | Exception] = self._write([ticket.waiting for ticket in tickets])
        except Exception as e:  # noqa: BLE001 - passed to whoever brought them
            if len(tickets) > 1 and not isinstance(e, StoreError):  # one of them is at fault
                for ticket in tickets:
                    self._store([ticket])
                return
            results = [StoreError(str(e)) for _ in tickets] if isinstance(e, StoreError) else [e]
        for ticket, result in zip(tickets, results, strict=True):
            self._end(ticket, result)

    def _end(self, ticket: _Ticket, result: Put | Exception) -> None:
        ticket.result = result
        self._brought.pop(ticket, None)


def _unfinished(tickets: Sequence[_Ticket]) -> bool:
    return any(ticket.result is None for ticket in tickets)


def _result(ticket: _Ticket) -> Put | Exception:
    assert ticket.result is not None, "it was stored, or was not"
    return ticket.result
