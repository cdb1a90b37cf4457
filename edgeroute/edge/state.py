"""State of models that remember: what a session keeps from one call to the next.

A session sets a `Turn` for the time of a call, in a context variable, which reaches the threads and tasks of its legs. A model
that keeps a state takes it from there, and leaves the next one there. So the state moves on only with the call, and a run that
was left behind (by a deadline, say) changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar, copy_context
from typing import Any, TypeVar

from edgeroute.errors import BadInput

T = TypeVar("T")


class Turn:
    """One call of a session.

    Args:
        states: model -> its state before the call; a model that has none yet begins.
        stream: id of the session; empty: it is of this one call.
    """

    def __init__(self, states: Mapping[object, Any], stream: str = "") -> None:
        self.states: dict[object, Any] = dict(states)
        self.stream = stream


TURN: ContextVar[Turn | None] = ContextVar("edgeroute_turn", default=None)


IN_SESSION = (
    "keeps a state from one input to the next, one for each stream: use a session, `with router.session() as s: s.infer(x)`"
)
"""What a model does that keeps a state, and what to write."""


def turn_of(name: str) -> Turn:
    """The call under way, for a model of that name.

    Raises:
        BadInput: it is not a session's.
    """
    turn = TURN.get()
    if turn is None:
        raise BadInput(f"{name} {IN_SESSION}")
    return turn


def in_a_turn(function: Callable[..., T], *arguments: object) -> T:
    """Calls it as the first call of a session of its own."""
    context = copy_context()
    context.run(TURN.set, Turn({}))
    return context.run(function, *arguments)
