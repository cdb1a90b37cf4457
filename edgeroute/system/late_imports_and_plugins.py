"""Imports on first use, safe for forks and Ctrl-C; plug-ins by entry points; programs and folders that come with edgeroute."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeroute.errors import EdgerouteError, ModelMissing, PolicyError, RuntimeMissing, nearest
from edgeroute.system.signal_safe_locks import SafeLock

log = logging.getLogger("edgeroute")

# Imports on first use.


class _NoFork:
    """Lock that is held during late imports and native calls of a leg, and that a fork waits for.

    Without it a child could wait for ever for a module that a thread of its parent was importing, or for a native lock that such
    a thread held, as nobody in the child releases those. Callers use `with no_fork.lock` and no method of this class: in a method
    written in Python, Ctrl-C could come just after the lock was acquired.
    """

    def __init__(self) -> None:
        self.lock = SafeLock()

    def before_fork(self) -> None:
        """Acquire the lock, waiting at most 10 s, so that a holder that hangs does not prevent the fork.

        Then the fork goes on without it.
        """
        self.lock.acquire(timeout=10.0)

    def in_parent(self) -> None:
        """Release the lock in the parent; a no-op if it was not obtained in time."""
        with contextlib.suppress(RuntimeError):  # the timeout had passed
            self.lock.release()

    def in_child(self) -> None:
        """Release the lock in the child, or replace it by a new one where a thread of the parent still holds it."""
        try:
            self.lock.release()
        except RuntimeError:
            self.lock = SafeLock()


no_fork = _NoFork()  # the lock of this process

if hasattr(os, "register_at_fork"):
    # registered last is called first before a fork: `logging`, which `system` imports, takes its lock then, and imports need it
    os.register_at_fork(before=no_fork.before_fork, after_in_parent=no_fork.in_parent, after_in_child=no_fork.in_child)

_ending = sys.is_finalizing  # True once Python's exit has ended all daemon threads, and starts no other
_loaded: set[str] = set()  # names of modules that `import_late` has imported
_threads: dict[str, threading.Thread] = {}  # module name -> the thread that imports it for the main thread


def import_late(name: str) -> ModuleType:
    """Import a module and return it, so that no signal leaves it, or a module that it imports, half imported.

    A module whose import was interrupted stays unusable. Ctrl-C and other signals come up in the main thread alone, so there the
    import runs in a thread of its own, and the main thread waits for it. A signal handler may call this meanwhile, and waits for
    the same thread. Within an import or a native call of the current thread, the import runs in the current thread: the other
    thread might wait for this one. A module that is loaded already is returned at once.

    Raises:
        ImportError: the module does not exist, or cannot be imported.
    """
    if name in _loaded and (module := sys.modules.get(name)) is not None:
        return module
    if _importing() or _ending():  # without the lock, whose holder may wait for what this thread imports, or has ended
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


def import_needed(name: str, need: str) -> ModuleType:
    """Import a module of a package that may be missing, as `import_late` does, and return it.

    Args:
        name: the module.
        need: what needs it, and how to install it.

    Raises:
        RuntimeMissing: it cannot be imported; the message is `need`, and why.
    """
    try:
        return import_late(name)
    except ImportError as e:
        raise RuntimeMissing(f"{need} ({e})") from e


def import_httpx(need: str) -> ModuleType:
    """Import httpx2, or httpx where that is not installed, and return it; see `import_needed`.

    Raises:
        RuntimeMissing: neither can be imported.
    """
    try:
        return import_late("httpx2")
    except ImportError:
        return import_needed("httpx", need)


def import_tool(name: str) -> ModuleType:
    """Import `edgeroute.tools.<name>` and return the module. Nothing else outside that folder imports a program.

    Raises:
        ImportError: there is no program of that name, or a package that it needs is not installed.
    """
    return import_module(f"edgeroute.tools.{name}")


def _import_whole(name: str) -> ModuleType:
    """Import a module while holding the lock that forks wait for, and record its name, so that later calls return it at once.

    Waits for the lock. Raises ImportError.
    """
    with no_fork.lock:
        module = import_module(name)
    _loaded.add(name)
    return module


def _import(name: str) -> None:
    """Import a module in a thread of its own. An exception is only logged: `import_late` raises it again."""
    try:
        _import_whole(name)
    except BaseException:
        log.debug("%s cannot be imported", name, exc_info=True)


def _importing() -> bool:
    """Return True if the current thread is in the middle of an import."""
    frame = sys._getframe()  # noqa: SLF001 - `inspect` has no other either
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
    return False


# Folders that come with the package beside its code: models and documentation.

# Where to look for those folders: inside the package, as a wheel has them, and beside the package, as a source tree has them.
HOMES = (Path(__file__).parents[1], Path(__file__).parents[2])


def package_folder(*parts: str, has: str) -> Path:
    """Return the path of a folder that comes with edgeroute, such as `models/fashion`.

    Args:
        parts: the parts of its path.
        has: name of a file that the folder must contain.

    Raises:
        ModelMissing: neither place has such a folder with that file.
    """
    for home in HOMES:
        path = home.joinpath(*parts)
        if (path / has).exists():
            return path
    raise ModelMissing(f"{'/'.join(parts)} did not come with this edgeroute: install its wheel, or a clone with `pip install -e`")


def docs_folder() -> Path:
    """Return the path of the folder with the documentation.

    Raises:
        ModelMissing: this installation has no documentation.
    """
    return package_folder("docs", has="quickstart.md")


# Plug-ins: objects that installed packages bring, found by their entry points.


@cache
def plugin_targets(group: str) -> dict[str, tuple[str, ...]]:
    """Return name -> targets, `module:attribute`, of the entry points of a group in all installed packages. Nothing is imported.

    A name has several targets if several packages give it different ones. Looked up once per process and group.
    """
    from importlib.metadata import entry_points

    targets: dict[str, tuple[str, ...]] = {}
    for point in entry_points(group=group):
        target = point.value.partition("[")[0].strip()  # without extras
        if target not in targets.get(point.name, ()):
            targets[point.name] = (*targets.get(point.name, ()), target)
    return targets


def attribute(target: str, what: str) -> Any:
    """Import the function or class that a target names, and return it.

    Args:
        target: `module:attribute`.
        what: its description, with which an error begins.

    Raises:
        PolicyError: the module has no such function or class.
        RuntimeMissing: the module, or one that it imports, is not installed.
    """
    module, _, path = target.partition(":")
    try:
        value: Any = import_late(module)
    except ImportError as e:
        raise RuntimeMissing(f"{what}, {target}, cannot be imported: {e}") from e
    for name in path.split("."):
        value = getattr(value, name, None)
    if not callable(value):
        raise PolicyError(f"{what} is registered as {target}, and {module} has no class {path}")
    return value


def load_plugin(group: str, name: str, /, *given: Any, **options: Any) -> Any:
    """Import the factory of an entry point, call it with these arguments and return the result.

    Raises:
        PolicyError: no installed package has it, or several do, or it does not take these arguments; names the entry point.
        RuntimeMissing: the factory cannot be imported.
    """
    known = plugin_targets(group)
    targets, point = known.get(name, ()), f"the entry point {name} of {group}"
    if len(targets) > 1:
        raise PolicyError(f"{len(targets)} installed packages have {point}, {' and '.join(targets)}: uninstall all but one")
    if not targets:
        raise PolicyError(f"no installed package has {point}: {nearest(name, known) if known else 'install the one that has it'}")
    return call_factory(attribute(targets[0], point), f"{point}, {targets[0]}", *given, **options)


def call_factory(factory: Any, what: str, /, *given: Any, **options: Any) -> Any:
    """Call a factory with these arguments and return the result.

    edgeroute's own errors, and others than the two below, pass unchanged.

    Raises:
        PolicyError: it raised TypeError or ValueError, so it does not take these arguments; begins with `what`, and names a key
            that it does not have.
    """
    try:
        return factory(*given, **options)
    except EdgerouteError:
        raise
    except (TypeError, ValueError) as e:
        unknown = _unknown_key(factory, options) if isinstance(e, TypeError) else ""
        raise PolicyError(f"{what}, does not take what it is given: {unknown or e}") from e


def _unknown_key(factory: Any, options: Mapping[str, Any]) -> str:
    """Return a hint about the first option that a factory does not have, with the nearest name of those it has.

    Empty if it has all, or its signature is not known.
    """
    from inspect import Parameter, signature

    try:
        parameters = signature(factory).parameters
    except (TypeError, ValueError):
        return ""
    names = [name for name, p in parameters.items() if p.kind in {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}]
    taken = any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in options if name not in names and not taken]
    return f"there is no such key, {unknown[0]}: {nearest(unknown[0], names)}" if unknown else ""
