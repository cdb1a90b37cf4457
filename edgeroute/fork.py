"""What a forked child must not inherit: locks that another thread held, threads that are not there, connections."""

from __future__ import annotations

import os
from typing import Protocol
from weakref import WeakSet


class _Forkable(Protocol):
    def after_fork(self) -> None: ...


_known: WeakSet[_Forkable] = WeakSet()


def renew_after_fork(thing: _Forkable) -> None:
    """Has `thing.after_fork()` called in every child that this process forks."""
    _known.add(thing)


def _in_child() -> None:
    for thing in list(_known):
        thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
