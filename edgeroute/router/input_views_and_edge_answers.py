"""Parts of an input that each target takes, by functions or keys (views); and the edge's answers sent along to clouds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeroute.core.error_codes_and_texts import class_name, clean, failure_text
from edgeroute.core.policy_egress_and_options import Policy, Target
from edgeroute.core.walk import Prediction
from edgeroute.edge.edge_backend import InputScoredBackend
from edgeroute.errors import BadInput, Held, ModelError, PolicyError, nearest
from edgeroute.router.cache_key_prefixes import fingerprint
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.late_imports_and_plugins import import_late
from edgeroute.system.read_and_check_signatures import runs_later
from edgeroute.types import Backend, Escalated

if TYPE_CHECKING:
    from edgeroute.cloud.egress_consent_and_redaction import Egress

View: TypeAlias = str | Callable[[Any], Any]  # key of the input (a mapping), or function of the input
SIDES = ("edge", "cloud")


class TargetViews:
    """Views of a policy's targets: a key or a function for each, checked once; `of` calls the application's function.

    Args:
        views: view by side, or by the name of a target, which takes precedence; a policy file's sections by (side, number).
        targets: targets of the policy.

    Attributes:
        given: True if a target has a view.

    Raises:
        PolicyError: there is no such side or target, or a view is neither a key nor a plain function.
    """

    def __init__(self, views: Mapping[Any, View], targets: Sequence[Target]) -> None:
        sides = {target.side for target in targets}
        numbers = {side: [t.name for t in targets if t.side == side] for side in SIDES}
        names = dict.fromkeys([side for side in SIDES if side in sides] + [target.name for target in targets])
        for key, value in views.items():
            if not isinstance(key, tuple) and key not in names:
                raise PolicyError(f"views has {clean(repr(key), 80)}, which is no side or target here: {nearest(key, names)}")
            _check_view(key, value)
        self.views: list[View | None] = []  # view of each target; None: it takes the whole input
        self.cells: list[int] = []  # for each target, the index of the first one on its side with the same view
        for target in targets:
            number = (target.side, numbers[target.side].index(target.name))
            named = None if target.name in SIDES else views.get(target.name)
            view: View | None = named or views.get(number) or views.get(target.side)
            same = (i for i, other in enumerate(self.views) if targets[i].side == target.side and _same_view(other, view))
            self.cells.append(next(same, len(self.views)))
            self.views.append(view)
        self.given = any(view is not None for view in self.views)

    @property
    def keys(self) -> list[str]:
        """Keys of an input that the views use."""
        return list(dict.fromkeys(view for view in self.views if isinstance(view, str)))

    def blocks(self, target: int) -> bool:
        """Return True if that target's view is a function, which may block."""
        return callable(self.views[target])

    def describe(self, targets: Sequence[Target]) -> list[str]:
        """Return a line for each target with a view, for `check`."""
        return [
            f"{t.name}: takes " + (f"the input's {view!r}" if isinstance(view, str) else "what a function makes of the input")
            for t, view in zip(targets, self.views, strict=True)
            if view
        ]

    def identity(self, target: int) -> str:
        """Return a text that identifies the view of target number `target`, for certificates; empty: none."""
        view = self.views[target]
        return "" if view is None else f"key {view!r}" if isinstance(view, str) else f"view {fingerprint(view)}"

    def of(self, target: Target, number: int, x: Any) -> Any:
        """Return the target's view of an input; calls the application's function each time, if the view is one.

        A view that can be read only once counts as failed; a coroutine is closed.

        Args:
            target: the target.
            number: its index.
            x: the input.

        Raises:
            BadInput: the input has no such key, or the function reports that it does not fit.
            ModelError, Held: the function failed: for a target on the device, or off it, which then gets nothing.
        """
        view = self.views[number]
        if view is None:
            return x
        if isinstance(view, str):
            return _item_under_key(x, view, target.name)
        try:
            seen = call_contained(view, x)
        except BadInput:
            raise
        except Exception as e:
            raise _view_error(target, failure_text(e)) from e
        if any(hasattr(type(seen), name) for name in ("__next__", "__anext__", "__await__")):
            if inspect.iscoroutine(seen):
                seen.close()
            raise _view_error(target, f"it returned a {class_name(seen)}, which can be read only once")
        return seen


def _same_view(view: View | None, other: View | None) -> bool:
    """Return True if two views are one function or equal keys."""
    return view is other or (isinstance(view, str) and isinstance(other, str) and view == other)


def _view_error(target: Target, why: str) -> Exception:
    """Return the error for a view that failed: ModelError on the device, Held for a cloud."""
    text = f"the view for {target.name} failed ({why})"
    error = ModelError(text) if target.side == "edge" else Held(f"{text}, so nothing was sent")
    error.code = "view"
    return error


def _check_view(key: Any, view: Any) -> None:
    """Raise PolicyError unless a view is a text that is not empty, or a function that is no coroutine or generator function."""
    if isinstance(view, str) and view:
        return
    if not callable(view):
        raise PolicyError(f"views[{key!r}] is a key of the input, such as 'jpeg', or a function of it, not {class_name(view)}")
    if runs_later(view):
        raise PolicyError(f"views[{key!r}] is a coroutine or generator function: a view is a plain function of the input")


def _item_under_key(x: Any, key: str, name: str) -> Any:
    """Return the item of an input under a key; raise BadInput if the input is no mapping, or has no such key."""
    if not isinstance(x, Mapping):
        raise BadInput(f"the input is {class_name(x)}, and {name} takes its {key!r}: give a mapping, as in {{{key!r}: ...}}")
    if key not in x:
        there = [other for other in x if isinstance(other, str)]
        hint = clean(nearest(key, there)) if there else "it has no keys"
        raise BadInput(f"the input has no {key!r}, which {name} takes: {hint}")
    return x[key]


# Answers of the edges within one call, for its clouds that take them along (`send_edge`); and the policies that exclude them.


class EdgeAnswers:
    """Answers of the edge to the inputs of one call so far, and what each cloud was sent of them.

    Legs write to it in their threads, each for rows of its own: no lock is needed.

    Args:
        ids: id of the request, or of each row of a batch.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self._rows = {identity: row for row, identity in enumerate(ids)}
        self._answers: dict[int, Mapping[str, Any]] = {}  # in JSON types: the caller may change what it got
        # Leg -> row -> edge's answer sent along; None: there was none. Each leg writes its own item.
        self._sent: dict[int, dict[int, Mapping[str, Any] | None]] = {}

    def note(self, rows: Sequence[int] | None, answers: Sequence[Any]) -> None:
        """Store the edge's answers to these rows, None: to all, as a cloud is sent them; failures are skipped."""
        for row, answer in zip(range(len(self._rows)) if rows is None else rows, answers, strict=True):
            if type(answer) is Prediction:
                self._answers[row] = import_late("edgeroute.cloud.encoding_and_edge_answers").answer_fields(answer)

    def attach(self, leg: int, rows: Sequence[int] | None, inputs: Sequence[Any]) -> list[Escalated]:
        """Return the inputs joined with the edge's answers known now, for a cloud's leg, and record what that leg was sent.

        None for a row without one.

        Args:
            leg: the leg.
            rows: rows of the batch; None: all.
            inputs: the inputs of these rows.
        """
        escalated, along = [], dict[int, Mapping[str, Any] | None]()
        for row, x in zip(range(len(self._rows)) if rows is None else rows, inputs, strict=True):
            along[row] = self._answers.get(row)
            escalated.append(Escalated(x, along[row]))
        self._sent[leg] = along
        return escalated

    def to_store(self, identity: str, leg: int, *, asked: bool) -> Mapping[str, Any] | None:
        """Return the edge's answer to send with a stored call: the one sent by the leg for that request, or the one known now.

        Args:
            identity: id of the request.
            leg: the leg.
            asked: True if the leg's cloud was called; then its recorded answer counts.
        """
        row, along = self._rows[identity], self._sent.get(leg, {})
        return along[row] if asked and row in along else self._answers.get(row)

    def all_have_answers(self, leg: int) -> bool | None:
        """Return True if all inputs of a leg were sent with the edge's answer, False if not; None: the leg takes none."""
        along = self._sent.get(leg)
        return None if along is None else None not in along.values()


def check_send_edge(
    policy: Policy, targets: Sequence[Target], backends: Sequence[Backend], egress: Egress, *, hidden: bool
) -> bool:
    """Return True if any cloud takes the edge's answer along.

    Raise PolicyError where it never has it, or certificates would not hold. Not with several edges, cloud-first modes, immediate
    hedges, scores of the input, redaction, or a hidden edge.
    """
    names = [b.name for b in backends if b.side == "cloud" and getattr(b, "sends_edge", False)]
    if not names:
        return False
    edges = [(t, b) for t, b in zip(targets, backends, strict=True) if t.side == "edge"]
    what = f"send_edge of {names[0]} sends the edge's answer"
    models, early = {target.group or target.name for target, _ in edges}, "the cloud is asked before there is one"
    scored = any(isinstance(backend, InputScoredBackend) for _, backend in edges)
    for excluded, why in (
        (not edges, "and there is no edge=: leave it out"),
        (len(models) > 1, f"of one edge model or of variants of one, and there are {len(edges)}: leave it out"),
        (policy.mode in {"prefer_cloud", "shadow"}, f"and with mode={policy.mode!r} {early}: leave one of them out"),
        (policy.hedge_after == 0, f"and with hedge_after=0 {early}: leave one of them out"),
        (scored, f"and by a score of the input (score=) {early}: leave one out"),
        (egress.redact is not None, "made of the input before redact=, whose result alone may leave: leave one of them out"),
        (hidden, "and a hidden edge on trial would be compared with the cloud's answers to that: leave one out"),
    ):
        if excluded:
            raise PolicyError(f"{what}, {why}")
    return True
