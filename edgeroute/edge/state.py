"""State of models that remember: what a session keeps from one call to the next.

A session sets a `Turn` for the time of a call, in a context variable, which reaches the threads and tasks of its legs. A model
that keeps a state takes it from there, and leaves the next one there. So the state moves on only with the call, and a run that
was left behind (by a deadline, say) changes nothing any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from edgeroute.errors import BadInput


class Turn:
    """One call of a session.

    Args:
        states: model -> its state before the call; a model that has none yet begins.
    """

    def __init__(self, states: Mapping[object, Any]) -> None:
        self.states: dict[object, Any] = dict(states)


TURN: ContextVar[Turn | None] = ContextVar("edgeroute_turn", default=None)


def turn_of(name: str) -> Turn:
    """The call under way, for a model of that name.

    Raises:
        BadInput: it is not a session's.
    """
    turn = TURN.get()
    if turn is None:
        raise BadInput(
            f"{name} keeps a state from one input to the next, one for each stream: use a session, "
            "`with router.session() as s: s.infer(x)`"
        )
    return turn
