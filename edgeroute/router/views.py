"""Views: what of an input each side takes, as a function of it or a key of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeroute.core.texts import clean, named, typed
from edgeroute.errors import BadInput, Held, ModelError, PolicyError, nearest
from edgeroute.system import contained

if TYPE_CHECKING:
    from edgeroute.core.policy import Target

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
            seen = contained(view, x)
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
