"""Ways to break the package, by which tests see that the campaign notices."""

from __future__ import annotations

from collections.abc import Callable
from time import sleep
from typing import Any

from edgeroute import Outbox
from edgeroute.cloud.shared_spending_and_record import SharedSpending
from edgeroute.core import plan
from edgeroute.core.endpoint_breaker_and_limits import Admission
from edgeroute.core.policy_egress_and_options import Rules, permit
from edgeroute.observe.target_counts import Counts
from edgeroute.router import audits_and_hidden_trials as audit_calls
from edgeroute.router import engine_assembly, leg_inputs_views_and_copies, offline_queue
from edgeroute.router import fallbacks_and_late_replies as fallback_answers
from edgeroute.router.private_conversations_and_digest_store import Digests, PrivateConversations
from edgeroute.stores import cache
from edgeroute.stores.json_lines_and_process_locks import Journal


def _replaced(place: Any, name: str, make: Callable[[Any], Any]) -> Callable[[], None]:
    """Return a function that replaces what has that name by what is made of it."""
    return lambda: setattr(place, name, make(getattr(place, name)))


def _no_gate() -> None:
    for place in (plan, offline_queue):
        place.permit = lambda _, *more: permit(Rules(unknown_class="allow"), *more)
    engine_assembly.withdrawn = lambda *_: ""


def _shared_buffers() -> None:
    for place in (leg_inputs_views_and_copies, offline_queue, audit_calls):
        place.copy_input = lambda x: x


def _dropped(settle: Any) -> Any:
    return lambda self, name, effect=None: settle(self, name)


def _twice(settle: Any) -> Any:
    def both(self: Any, name: str, effect: Any = None) -> bool:
        return settle(self, name, None if effect is None else lambda *args: (effect(*args), effect(*args)))

    return both


def _forgotten(_: Any) -> Any:
    return lambda self, _: self._unwritten.clear()  # private: a file that cannot be written has everything stay


def _some(record: Any) -> Any:
    return lambda self, plan, outcome, batch=False: batch or record(self, plan, outcome, batch)


def _slow(ended: Any) -> Any:
    return lambda *args: (sleep(0.6), ended(*args))[1]


def _raising(answer: Any) -> Any:
    def best(*args: Any, **more: Any) -> Any:
        raise fallback_answers.no_answer(args[0].request.plan, args[0].outcome, "broken") if args else answer

    return best


BREAKS: dict[str, tuple[str, Callable[[], None]]] = {
    "a class that may not leave leaves": ("leaked", _no_gate),
    "a conversation that has to stay leaves": (
        "leaked", _replaced(PrivateConversations, "why", lambda _: lambda *_: ""),
    ),
    "private conversations are not written": ("leaked", _replaced(Digests, "_write", _forgotten)),
    "what is read after the call is the caller's": ("leaked", _shared_buffers),
    "the ledger is not written": ("leaked", _replaced(Journal, "append", lambda _: lambda *_: None)),
    "nothing is booked": ("miscounted", _replaced(SharedSpending, "reserve", lambda _: lambda *_: None)),
    "some requests are not counted": ("miscounted", _replaced(Counts, "record", _some)),
    "calls hold their places": ("miscounted", _replaced(Admission, "leave", lambda _: lambda *_: None)),
    "late answers are dropped": ("lost", _replaced(Outbox, "settle", _dropped)),
    "late answers come twice": ("twice", _replaced(Outbox, "settle", _twice)),
    "answers of the edge are lost": ("lost", _replaced(fallback_answers, "best_answer", _raising)),
    "the cache mixes inputs up": ("foreign", _replaced(cache, "digest", lambda _: lambda prefix, _: prefix[:32].ljust(32))),
    "an event loop waits": ("still", _replaced(PrivateConversations, "walk_ended", _slow)),
}  # fmt: skip
"""Name -> the list in which the campaign has to note it, and the function that breaks the package."""
