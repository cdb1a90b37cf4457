"""Fork safety: attributes that a forked child makes anew (`ForkSafe`), and objects that threads share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar, cast
from weakref import WeakSet, WeakValueDictionary

from edgeroute.system.sanitised_logs_and_contained_errors import Failures
from edgeroute.system.signal_safe_locks import SafeLock

if TYPE_CHECKING:
    from typing_extensions import Self


T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


# Forks: the attributes that a forked child does not take over, such as locks, threads, connections and calls under way.

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
        """Replace the attributes of the parent process, in a forked child, by new ones.

        Override for what no declaration can express. The old attributes are disposed of by their `drop`; lazy ones are made again
        at their next use.
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


_alive: WeakSet[ForkSafe] = WeakSet()  # objects that are called in a forked child


def _in_child() -> None:
    """Call `after_fork` of all living objects, in a forked child; raise the first exception only after all were called.

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


def list_weakset(things: WeakSet[T]) -> list[T]:
    """Return the objects of a WeakSet as a list. If another thread changes the set meanwhile, tries again until it succeeds."""
    while True:
        try:
            return list(things)
        except RuntimeError:  # noqa: PERF203 - it has changed: again
            continue


class Shared(ForkSafe, Generic[K, T]):
    """Objects by key that live while somebody refers to them, so that users of the same key share one object.

    The registry refers to them weakly. `setdefault` of a plain `WeakValueDictionary` may return a different object to each of two
    threads.
    """

    _lock = per_process(SafeLock)

    def __init__(self) -> None:
        self._held: WeakValueDictionary[K, T] = WeakValueDictionary()

    def get(self, key: K) -> T | None:
        """Return the object of the key; None: there is none, or nobody refers to it any more."""
        return self._held.get(key)

    def first(self, key: K, candidate: T) -> T:
        """Return the key's object, after storing the candidate if there was none. All threads get the same object."""
        with self._lock:
            return self._held.setdefault(key, candidate)

    def put(self, key: K, thing: T) -> None:
        """Store an object for the key in place of any other. It is referred to weakly."""
        self._held[key] = thing


class AbandonedRuns(ForkSafe):
    """Set of a target's abandoned runs, which were cancelled and are still running. Lock-free: adding and discarding are atomic.

    Args:
        most: number of abandoned runs at which the target counts as busy.

    Attributes:
        rests_until: monotonic instant up to which the target counts as busy, as it has said so itself.
    """

    stopping: set[object] = per_process(set)
    rests_until: float = initially(-inf)

    def __init__(self, most: int) -> None:
        self.max_abandoned = most
        self.failures = Failures()

    @property
    def abandoned(self) -> int:
        """Number of abandoned runs now."""
        return len(self.stopping)

    @property
    def occupied(self) -> bool:
        """True if the target takes no further run now."""
        return len(self.stopping) >= self.max_abandoned or time.monotonic() < self.rests_until
