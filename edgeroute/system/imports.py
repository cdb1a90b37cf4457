"""Imports on first use: of other packages, of what comes with this one, and of its programs."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import ModuleType

from edgeroute.errors import ModelMissing
from edgeroute.system.process import log

# Imports on first use: a fork waits for them, and Ctrl-C leaves none half done.


class _NoFork:
    """`lock` is held during late imports and native calls of a leg: a fork waits for it.

    Otherwise a child could wait for ever for a module that a thread of its parent was importing, or for a native lock that such a
    thread held: nobody renews those. It is used by itself, `with no_fork.lock`: in a method written in Python, Ctrl-C could come
    after it was acquired.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def before_fork(self) -> None:
        """Acquires the lock, with a timeout, so that a hanging holder does not block the fork."""
        self.lock.acquire(timeout=10.0)

    def in_parent(self) -> None:
        """Releases the lock."""
        with contextlib.suppress(RuntimeError):  # the timeout had passed
            self.lock.release()

    def in_child(self) -> None:
        """Releases the lock."""
        try:
            self.lock.release()
        except RuntimeError:
            self.lock = threading.RLock()


no_fork = _NoFork()

if hasattr(os, "register_at_fork"):
    # registered last is called first before a fork: `logging`, which `system` imports, takes its lock then, and imports need it
    os.register_at_fork(before=no_fork.before_fork, after_in_parent=no_fork.in_parent, after_in_child=no_fork.in_child)

_loaded: set[str] = set()
_threads: dict[str, threading.Thread] = {}


def imported(name: str) -> ModuleType:
    """Imports a module, and those that it imports, as a whole: an interrupted import leaves some of them for ever unusable.

    In the main thread, where Ctrl-C and what other signal handlers raise come up, it waits for a thread that imports; a handler
    may ask meanwhile, and waits for the same. Not within an import or a native call of this thread, which that thread may need
    to end first: there it is imported here.

    Raises:
        ImportError: there is none, or it cannot be imported.
    """
    if name in _loaded and (module := sys.modules.get(name)) is not None:
        return module
    if _importing():  # without the lock, whose holder may wait for what this thread imports
        return import_module(name)
    if threading.current_thread() is threading.main_thread() and not no_fork.lock._is_owned():  # type: ignore[attr-defined]  # noqa: SLF001 - as `threading.Condition` does
        thread = _threads.get(name)
        if thread is None or not thread.is_alive():
            thread = _threads[name] = threading.Thread(target=_import, args=(name,), name=f"import of {name}", daemon=True)
            with contextlib.suppress(RuntimeError):  # none is to be had
                thread.start()
        with contextlib.suppress(RuntimeError):  # likewise
            thread.join()
    return _import_whole(name)


def tool(name: str) -> ModuleType:
    """Imports a program of `edgeroute.tools` by its name there. Nothing outside that folder imports one otherwise."""
    return import_module(f"edgeroute.tools.{name}")


def _import_whole(name: str) -> ModuleType:
    with no_fork.lock:
        module = import_module(name)
    _loaded.add(name)
    return module


def _import(name: str) -> None:
    try:
        _import_whole(name)
    except BaseException:  # noqa: BLE001 - raised again where it was asked for
        log.debug("%s cannot be imported", name, exc_info=True)


def _importing() -> bool:
    """Whether this thread is in the middle of an import."""
    frame = sys._getframe()  # noqa: SLF001 - `inspect` has no other either
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
    return False


# Finds what comes with the package beside its code: models and documentation.

HOMES = (Path(__file__).parents[1], Path(__file__).parents[2])
"""In a built package it lies inside, in a source tree beside it."""


def folder(*parts: str, has: str) -> Path:
    """The folder of that name that has such a file.

    Raises:
        ModelMissing: there is none.
    """
    for home in HOMES:
        found = home.joinpath(*parts)
        if (found / has).exists():
            return found
    raise ModelMissing(f"{'/'.join(parts)} did not come with this edgeroute: install its wheel, or a clone with `pip install -e`")


def pages() -> Path:
    """The folder with the documentation.

    Raises:
        ModelMissing: this installation has none.
    """
    return folder("docs", has="quickstart.md")
