"""Plug-ins: objects that installed packages bring, found by their entry points."""

from __future__ import annotations

from functools import cache
from typing import Any

from edgeroute.errors import EdgerouteError, PolicyError, RuntimeMissing, nearest
from edgeroute.system.imports import import_late


@cache
def installed(group: str) -> dict[str, tuple[str, ...]]:
    """Return name -> targets, `module:attribute`, of the entry points of a group in all installed packages. Looked up once."""
    from importlib.metadata import entry_points

    targets: dict[str, tuple[str, ...]] = {}
    for point in entry_points(group=group):
        target = point.value.partition("[")[0].strip()  # without extras
        if target not in targets.get(point.name, ()):
            targets[point.name] = (*targets.get(point.name, ()), target)
    return targets


def attribute(target: str, what: str) -> Any:
    """Import the function or class that a target names.

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


def plugged(group: str, name: str, /, *given: Any, **options: Any) -> Any:
    """Import the factory of an entry point, call it with these arguments and return the result.

    Raises:
        PolicyError: no installed package has it, or several do, or it does not take these arguments; names the entry point.
        RuntimeMissing: the factory cannot be imported.
    """
    known = installed(group)
    targets, point = known.get(name, ()), f"the entry point {name} of {group}"
    if len(targets) > 1:
        raise PolicyError(f"{len(targets)} installed packages have {point}, {' and '.join(targets)}: uninstall all but one")
    if not targets:
        raise PolicyError(f"no installed package has {point}: {nearest(name, known) if known else 'install the one that has it'}")
    factory = attribute(targets[0], point)
    try:
        return factory(*given, **options)
    except EdgerouteError:
        raise
    except (TypeError, ValueError) as e:
        raise PolicyError(f"{point}, {targets[0]}, does not take what it is given: {e}") from e
