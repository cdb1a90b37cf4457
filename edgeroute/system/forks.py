"""Forks: the attributes that a forked child does not take over, such as locks, threads, connections and calls under way."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar, cast
from weakref import WeakSet

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
_MISSING: Any = object()


class _Field(NamedTuple):
    """Declaration of an attribute that is made with the object, and again in a child."""

    make: Callable[[], Any]
    drop: Callable[[Any], object] | None


class _Lazy:
    """Non-data descriptor of an attribute that is made of the object at its first use, and again in a child."""

    def __init__(self, make: Callable[[Any], Any], drop: Callable[[Any], object] | None) -> None:
        self._make, self.drop = make, drop

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, thing: Any, owner: type | None = None) -> Any:
        if thing is None:
            return self
        return vars(thing).setdefault(self._name, self._make(thing))  # atomic: threads that come at once share the first


class ForkSafe:
    """Base of objects that a forked child goes on with, also of those that the application made.

    A class declares the attributes that belong to one process with `per_process`, `initially` or `per_process_of`. A forked child
    makes them anew; all other attributes are copies of the parent's. So a child never waits for a lock that another thread of the
    parent holds.
    """

    _fields: ClassVar[dict[str, _Field]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        """Collect the declarations, and remove them from the class: an attribute that shadows one would be slower to read."""
        super().__init_subclass__(**options)
        own = {name: field for name, field in vars(cls).items() if type(field) is _Field}
        for name in own:
            delattr(cls, name)
        cls._fields = {**cls._fields, **own}

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make the declared attributes, and register the object, weakly: each forked child calls its `after_fork`."""
        thing = super().__new__(cls)
        for name, field in cls._fields.items():
            setattr(thing, name, field.make())
        _alive.add(thing)
        return thing

    def after_fork(self) -> None:
        """Replace the attributes of the parent process. Override for what no declaration can express.

        The old attributes are dropped by their `drop`; lazy ones are made again at their next use.
        """
        for name, field in self._fields.items():
            old = getattr(self, name)
            setattr(self, name, field.make())
            if field.drop is not None:
                field.drop(old)
        for cls in type(self).__mro__:
            for name, lazy in vars(cls).items():
                if type(lazy) is _Lazy and (old := vars(self).pop(name, _MISSING)) is not _MISSING and lazy.drop is not None:
                    lazy.drop(old)


def per_process(make: Callable[[], T], drop: Callable[[T], object] | None = None) -> T:
    """Declare an attribute that each process makes for itself.

    Args:
        make: returns its value, in a new object and in a forked child.
        drop: disposes of the parent's value in a child. It must not wait for a thread or send anything.
    """
    return cast("T", _Field(make, drop))


def per_process_of(make: Callable[[Any], T], drop: Callable[[T], object] | None = None) -> T:
    """Declare an attribute as `per_process` does; `make` is a method of the object, called at the first use."""
    return cast("T", _Lazy(make, drop))


def initially(value: T, drop: Callable[[T], object] | None = None) -> T:
    """Declare an attribute that has this immutable value in a new object, and again in a forked child."""
    return cast("T", _Field(lambda: value, drop))


_alive: WeakSet[ForkSafe] = WeakSet()
"""Objects that are called in a forked child."""


def _in_child() -> None:
    """Call `after_fork` of all objects, and raise the first exception only after all were called.

    An AttributeError, of an object that is half made, is ignored.
    """
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
