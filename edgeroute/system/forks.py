"""Forks: the attributes that a forked child does not take over, such as locks, threads, connections and calls under way."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakSet

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
_MISSING: Any = object()


class ForkSafe:
    """Base of objects that a forked child goes on with, also of those that the application made.

    A class declares the attributes that belong to one process with `per_process`, `initially` or `per_process_of`. Each is made
    at its first use. A forked child deletes them, so that the next use makes them anew; all other attributes are copies of the
    parent's. So a child never waits for a lock that another thread of the parent holds.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Register the object, weakly: each forked child calls its `after_fork`."""
        thing = super().__new__(cls)
        _alive.add(thing)
        return thing

    def after_fork(self) -> None:
        """Delete the attributes of the parent process. Override for what no declaration can express."""
        held = vars(self)
        for cls in type(self).__mro__:
            for name, field in vars(cls).items():
                if type(field) is _Field and (value := held.pop(name, _MISSING)) is not _MISSING and field.drop is not None:
                    field.drop(value)


class _Field:
    """Non-data descriptor of an attribute that belongs to one process."""

    def __init__(self, make: Callable[[Any], Any], drop: Callable[[Any], object] | None) -> None:
        self._make, self.drop = make, drop

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, thing: Any, owner: type | None = None) -> Any:
        if thing is None:
            return self
        return vars(thing).setdefault(self._name, self._make(thing))  # atomic: threads that come at once share the first


def per_process(make: Callable[[], T], drop: Callable[[T], object] | None = None) -> T:
    """Declare an attribute that each process makes for itself.

    Args:
        make: returns its value, in a new object and in a forked child.
        drop: disposes of the parent's value in a child. It must not wait for a thread or send anything.
    """
    return cast("T", _Field(lambda _: make(), drop))


def per_process_of(make: Callable[[Any], T], drop: Callable[[T], object] | None = None) -> T:
    """Declare an attribute as `per_process` does; `make` is a method of the object."""
    return cast("T", _Field(make, drop))


def initially(value: T, drop: Callable[[T], object] | None = None) -> T:
    """Declare an attribute that has this immutable value in a new object, and again in a forked child."""
    return cast("T", _Field(lambda _: value, drop))


_alive: WeakSet[ForkSafe] = WeakSet()
"""Objects that are called in a forked child."""


def _in_child() -> None:
    """Call `after_fork` of all objects, and raise the first exception only after all were called."""
    errors: list[Exception] = []
    for thing in list(_alive):
        try:
            thing.after_fork()
        except Exception as e:  # noqa: BLE001, PERF203 - whatever it is, the others are renewed first
            if not isinstance(e, AttributeError):  # else half constructed, by a thread that the child lacks: nobody will use it
                errors.append(e)
    if errors:
        raise errors[0]  # Python prints it, and the child goes on


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
