"""Views: what of an input each side takes, as a function of it or a key of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeroute.cloud.payloads import Escalated, told
from edgeroute.core.policy import Policy, Target
from edgeroute.core.walk import Done, Event, Prediction
from edgeroute.core.words import clean, named, typed
from edgeroute.edge.backend import InputScoredBackend
from edgeroute.errors import BadInput, Held, ModelError, PolicyError, nearest
from edgeroute.system.process import call_contained

if TYPE_CHECKING:
    from edgeroute.cloud.guard import Egress
    from edgeroute.types import Backend

View: TypeAlias = str | Callable[[Any], Any]
"""A key of the input, or a function of it."""
SIDES = ("edge", "cloud")


class TargetViews:
    """The views of a policy's targets.

    Args:
        views: side, or name of a target, which goes before its side's -> view; a policy file's sections by side and number.
        targets: of the policy.

    Raises:
        PolicyError: there is no such side or target, or a view is neither a key nor a plain function.
    """

    def __init__(self, views: Mapping[Any, View], targets: Sequence[Target]) -> None:
        sides = {target.side for target in targets}
        numbers = {side: [t.name for t in targets if t.side == side] for side in SIDES}
        names = dict.fromkeys([side for side in SIDES if side in sides] + [target.name for target in targets])
        for key, given in views.items():
            if not isinstance(key, tuple) and key not in names:
                raise PolicyError(f"views has {clean(repr(key), 80)}, which is no side or target here: {nearest(key, names)}")
            _check(key, given)
        self.views: list[View | None] = []
        """Of each target; None: it takes the input itself."""
        self.cells: list[int] = []
        """Of each target the number of the first one on its side with the same view."""
        for target in targets:
            number = (target.side, numbers[target.side].index(target.name))
            own = None if target.name in SIDES else views.get(target.name)
            view: View | None = own or views.get(number) or views.get(target.side)
            same = (i for i, other in enumerate(self.views) if targets[i].side == target.side and _same(other, view))
            self.cells.append(next(same, len(self.views)))
            self.views.append(view)
        self._any = any(view is not None for view in self.views)

    def __bool__(self) -> bool:
        """Whether there is any."""
        return self._any

    @property
    def keys(self) -> list[str]:
        """The keys of an input that they take."""
        return list(dict.fromkeys(view for view in self.views if isinstance(view, str)))

    def blocks(self, target: int) -> bool:
        """Whether that target's view is a function, which may block."""
        return callable(self.views[target])

    def describe(self, targets: Sequence[Target]) -> list[str]:
        """Status lines for `check`: what of an input each target takes, where that is not all of it."""
        seen = zip(targets, self.views, strict=True)
        kinds = [
            (t.name, f"the input's {view!r}" if isinstance(view, str) else "what a function makes of the input")
            for t, view in seen
            if view
        ]
        return [f"{name}: takes {kind}" for name, kind in kinds]

    def identity(self, target: int, of: Callable[[Any], str]) -> str:
        """What decides which view of an input that target takes; `of` takes the fingerprint of a function. Empty: none."""
        view = self.views[target]
        return "" if view is None else f"key {view!r}" if isinstance(view, str) else f"view {of(view)}"

    def of(self, target: Target, number: int, x: Any) -> Any:
        """That target's view of an input.

        Raises:
            BadInput: the input has no such key, or the function says that it does not fit.
            ModelError, Held: the function failed, for a target on the device, or off it; then nothing was sent.
        """
        view = self.views[number]
        if view is None:
            return x
        if isinstance(view, str):
            return _item(x, view, target.name)
        try:
            seen = call_contained(view, x)
        except BadInput:
            raise
        except Exception as e:
            raise _failed(target, named(e)) from e
        if any(hasattr(type(seen), name) for name in ("__next__", "__anext__", "__await__")):
            if inspect.iscoroutine(seen):
                seen.close()
            raise _failed(target, f"it returned a {typed(seen)}, which can be read only once")
        return seen


def _same(one: View | None, other: View | None) -> bool:
    return one is other or (isinstance(one, str) and isinstance(other, str) and one == other)


def _failed(target: Target, why: str) -> Exception:
    if target.side == "edge":
        error = ModelError(f"the view for {target.name} failed ({why})")
        error.code = "view"
        return error
    return Held(f"the view for {target.name} failed ({why}), so nothing was sent", code="view")


def _check(key: Any, view: Any) -> None:
    if isinstance(view, str) and view:
        return
    if not callable(view):
        raise PolicyError(f"views[{key!r}] is a key of the input, such as 'jpeg', or a function of it, not {typed(view)}")
    call = getattr(view, "__call__", None)  # noqa: B004 - the object's method may be a coroutine function
    if any(kind(f) for kind in _LATER for f in (view, call)):
        raise PolicyError(f"views[{key!r}] is a coroutine or generator function: a view is a plain function of the input")


_LATER = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)


def _item(x: Any, key: str, name: str) -> Any:
    if not isinstance(x, Mapping):
        raise BadInput(f"the input is {typed(x)}, and {name} takes its {key!r}: give a mapping, as in {{{key!r}: ...}}")
    if key not in x:
        there = [other for other in x if isinstance(other, str)]
        hint = clean(nearest(key, there)) if there else "it has no keys"
        raise BadInput(f"the input has no {key!r}, which {name} takes: {hint}")
    return x[key]


# The edges' answers of one call, for its clouds that take them (`send_edge`); and where they cannot be had.

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
    policy: Policy, targets: Sequence[Target], backends: Sequence[Backend], egress: Egress, *, hidden: bool
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
    if any(isinstance(backend, InputScoredBackend) for _, backend in edges):
        raise PolicyError(f"{what}, and by a score of the input (score=) the cloud is asked before there is one: leave one out")
    if egress.redact is not None:
        raise PolicyError(
            f"{what}, and that is made of the input as it is before redact=, whose result alone may leave: leave one of them out"
        )
    if hidden:
        raise PolicyError(f"{what}, and a hidden edge on trial would be compared with the cloud's answers to that: leave one out")
    return True
