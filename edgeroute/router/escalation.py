"""The edges' answers of one call, for its clouds that take them (`send_edge`); and where they cannot be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from edgeroute.cloud.escalated import Escalated, told
from edgeroute.core.policy import Policy, Target
from edgeroute.core.walk import Done, Event, Prediction
from edgeroute.edge.beforehand import ScoredBeforehand
from edgeroute.errors import PolicyError

if TYPE_CHECKING:
    from edgeroute.cloud.egress import Egress
    from edgeroute.types import Backend

ALONE = (0,)
"""The rows of a single input."""


class EdgeAnswers:
    """What the edge has answered to the inputs of one call so far, and what each cloud was told of it.

    Legs write to it in their threads, each for rows of its own: no lock is needed.

    Args:
        ids: of one request, or of the rows of a batch.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._rows = {identity: row for row, identity in enumerate(ids)}
        self._found: dict[int, Prediction] = {}
        self._told: dict[int, dict[int, Mapping[str, Any] | None]] = {}
        """Leg -> row -> what goes along; a leg writes to its own."""

    def note(self, rows: Sequence[int] | None, answers: Sequence[Any]) -> None:
        """Notes the edge's answers to these rows; None: to all."""
        for row, answer in zip(range(len(self._rows)) if rows is None else rows, answers, strict=True):
            if type(answer) is Prediction:
                self._found[row] = answer

    def ended(self, event: Event | None) -> None:
        """Notes the answer of a first leg that has run already."""
        if type(event) is Done:
            self.note(ALONE, [event.answer])

    def beside(self, leg: int, rows: Sequence[int] | None, inputs: Sequence[Any]) -> list[Escalated]:
        """These inputs with the answers there are, for a cloud's leg."""
        found, along = [], dict[int, Mapping[str, Any] | None]()
        for row, x in zip(range(len(self._rows)) if rows is None else rows, inputs, strict=True):
            answer = self._found.get(row)
            along[row] = None if answer is None else told(answer)
            found.append(Escalated(x, along[row]))
        self._told[leg] = along
        return found

    def stored(self, identity: str, leg: int, *, asked: bool) -> Mapping[str, Any] | None:
        """What a stored call goes out with: what that leg was told of that request; if it was not asked, what is known."""
        row, along = self._rows[identity], self._told.get(leg, {})
        if asked and row in along:
            return along[row]
        answer = self._found.get(row)
        return None if answer is None else told(answer)

    def went(self, leg: int) -> bool | None:
        """Whether all inputs of that leg have the edge's answer along; None: it takes none."""
        along = self._told.get(leg)
        return None if along is None else None not in along.values()


def check_send_edge(
    policy: Policy, targets: Sequence[Target], backends: Sequence[Backend], egress: Egress, *, candidate: bool
) -> bool:
    """Whether any cloud takes the edge's answer.

    Raises:
        PolicyError: it can never have one, or it is another than certificates would be about.
    """
    named = [b.name for b in backends if b.side == "cloud" and getattr(b, "sends_edge", False)]
    if not named:
        return False
    edges = [(t, b) for t, b in zip(targets, backends, strict=True) if t.side == "edge"]
    what = f"send_edge of {named[0]} sends the edge's answer"
    if not edges:
        raise PolicyError(f"{what}, and there is no edge=: leave it out")
    if len({target.group or target.name for target, _ in edges}) > 1:
        raise PolicyError(f"{what}, of one edge model or of variants of one, and there are {len(edges)}: leave it out")
    if policy.mode in {"prefer_cloud", "shadow"}:
        raise PolicyError(f"{what}, and with mode={policy.mode!r} the cloud is asked before there is one: leave one of them out")
    if policy.hedge_after == 0:
        raise PolicyError(f"{what}, and with hedge_after=0 the cloud is asked before there is one: leave one of them out")
    if any(isinstance(backend, ScoredBeforehand) for _, backend in edges):
        raise PolicyError(f"{what}, and by a score of the input (score=) the cloud is asked before there is one: leave one out")
    if egress.redact is not None:
        raise PolicyError(
            f"{what}, and that is made of the input as it is before redact=, whose result alone may leave: leave one of them out"
        )
    if candidate:
        raise PolicyError(f"{what}, and a candidate= would be compared with the cloud's answers to that: leave one of them out")
    return True
