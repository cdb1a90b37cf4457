"""Runtimes: which class runs a model file, by its suffix. Imported when a model needs it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from os import PathLike, fspath
from pathlib import PurePath
from typing import Any

from edgeroute.edge.callable import CallableModel
from edgeroute.edge.members import checked, is_model
from edgeroute.errors import EdgerouteError, PolicyError, RuntimeMissing, nearest
from edgeroute.system.imports import imported
from edgeroute.types import EdgeModel

BUILT_IN = {
    ".active": "edgeroute.catalog.installed:active_model",
    ".gguf": "edgeroute.edge.llama:LlamaModel",
    ".mlmodel": "edgeroute.edge.coreml:CoreMLModel",
    ".mlpackage": "edgeroute.edge.coreml:CoreMLModel",
    ".onnx": "edgeroute.edge.onnx:OnnxModel",
    ".tflite": "edgeroute.edge.litert:LiteRTModel",
    "http:": "edgeroute.edge.local_server:LocalServer",
}
"""Suffix -> `module:Class`; of a server on this device the scheme of its address stands for it."""
SCHEMES = ("http:", "https:", "unix:")
ACTIVE = ".active"
"""Suffix of the pointer to a catalog's active model, whose own suffix picks the runtime."""
GROUP = "edgeroute.runtimes"
"""Group of the entry points by which an installed package registers its runtimes: `suffix = "module:Class"`, without the dot."""
_TARGET = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
_SUFFIX = re.compile(r"\.[^\s./\\][^\s/\\]*")
_registered: dict[str, str] = {}


def register(suffix: str, target: str) -> None:
    """Registers the class that runs model files with this suffix, in place of any other.

    It is imported when such a file is to be run, and called with the path; in a policy `[edge]` then has the keyword arguments
    of its `__init__` as keys. An installed package need not call this: it has an entry point in the group `edgeroute.runtimes`.

    Args:
        suffix: as in ".tflite"; capitals do not count.
        target: as in "package.module:Class"; the class follows the protocol `EdgeModel`.

    Raises:
        PolicyError: one of them cannot be a suffix or a target.
    """
    if not (isinstance(suffix, str) and _SUFFIX.fullmatch(suffix)):
        raise PolicyError(f'register takes a suffix with its dot, as in ".tflite", not {suffix!r}')
    if not (isinstance(target, str) and _TARGET.fullmatch(target)):
        raise PolicyError(f'register takes the class as text, "package.module:Class", not {target!r}')
    _registered[suffix.lower()] = target


@contextmanager
def fresh_runtimes() -> Iterator[None]:
    """Begins with no registered runtime; at the end of the block what it registered is forgotten. Packages are looked for anew.

    For tests: `edgeroute.testing` has it.
    """
    before = dict(_registered)
    _registered.clear()
    _installed.cache_clear()
    try:
        yield
    finally:
        _registered.clear()
        _registered.update(before)
        _installed.cache_clear()


def suffixes() -> list[str]:
    """All suffixes that have a runtime, those of installed packages too."""
    known = {*BUILT_IN, *_registered, *_installed()} - {ACTIVE}
    return sorted(suffix for suffix in known if suffix.startswith("."))


def is_address(edge: object) -> bool:
    """Whether this is the address of a server, and no path."""
    return isinstance(edge, str) and edge.lower().startswith(SCHEMES)


def suffix_of(path: str | PathLike[str]) -> str | None:
    """The suffix by which the path has a runtime, the longest one; None: it has none."""
    if is_address(path):
        return SCHEMES[0]
    name = PurePath(fspath(path)).name.lower()
    built_in = {suffix for suffix in BUILT_IN if suffix.startswith(".")}
    for known in ({*built_in, *_registered}, _installed):
        found = [suffix for suffix in (known() if callable(known) else known) if name.endswith(suffix) and name != suffix]
        if found:
            return max(found, key=len)
    return None


def target_of(suffix: str) -> str:
    """Where the class for a suffix is, `module:Class`.

    Raises:
        PolicyError: there is none, or two installed packages have one.
    """
    own = _registered.get(suffix) or BUILT_IN.get(suffix)
    if own is not None:
        return own
    found = _installed().get(suffix, ())
    if len(found) > 1:
        raise PolicyError(
            f"{len(found)} installed packages have a runtime for {suffix}, {' and '.join(found)}: choose one by"
            f' edgeroute.register("{suffix}", "{found[0]}")'
        )
    if not found:
        raise PolicyError(f"there is no runtime for {suffix}: {nearest(suffix, suffixes())}")
    return found[0]


def class_of(suffix: str) -> Any:
    """The class for a suffix, imported.

    Raises:
        PolicyError: as `target_of`, or the module has no such class.
        RuntimeMissing: the module, or one that it imports, is not installed.
    """
    target = target_of(suffix)
    module, _, path = target.partition(":")
    try:
        found: Any = imported(module)
    except ImportError as e:
        raise RuntimeMissing(f"the runtime for {suffix}, {target}, cannot be imported: {e}") from e
    for name in path.split("."):
        found = getattr(found, name, None)
    if not callable(found):
        raise PolicyError(f"the runtime for {suffix} is registered as {target}, and {module} has no class {path}")
    return found


@cache
def _installed() -> dict[str, tuple[str, ...]]:
    """Suffix -> targets, of the installed packages' entry points; looked for once, when no other runtime fits."""
    from importlib.metadata import entry_points

    found: dict[str, tuple[str, ...]] = {}
    for point in entry_points(group=GROUP):
        suffix = f".{point.name.removeprefix('.').lower()}"
        target = f"{point.module}:{point.attr}"
        if target not in found.get(suffix, ()):
            found[suffix] = (*found.get(suffix, ()), target)
    return found


# Resolves the `edge=` argument (a path, a model or a callable) to an edge model.


def load(edge: Any, **options: Any) -> EdgeModel:
    """The model for a path (options are passed to its runtime's class), a callable, or an object that is already a model.

    Raises:
        PolicyError: no runtime for the suffix, a runtime that does not take the options, or an unsupported type.
        RuntimeMissing: the runtime's module cannot be imported.
    """
    if isinstance(edge, str | PathLike):
        suffix = suffix_of(edge)
        if suffix is None:
            raise PolicyError(
                f"no runtime for {str(edge)!r}: expected a file that ends in {', '.join(suffixes())}; another one is added by "
                'edgeroute.register(".suffix", "package.module:Class")'
            )
        made = class_of(suffix)
        try:
            model: EdgeModel = made(edge, **options)
        except EdgerouteError:
            raise
        except (TypeError, ValueError) as e:
            raise PolicyError(f"the runtime for {suffix}, {made.__name__}, does not take what it is given: {e}") from e
        checked(model)
        return model
    if isinstance(edge, type) and callable(vars(edge).get("run")):
        raise PolicyError(f"edge= takes a model, and {edge.__name__} is a class: pass {edge.__name__}(...)")
    if is_model(edge):
        checked(edge)
        return edge  # type: ignore[no-any-return]
    if callable(edge):
        return CallableModel(edge)
    raise PolicyError(f"edge= takes a path, a model or a callable, not {type(edge).__name__}")


# Variants: edge models for the same task, of which one runs at a time.


class Variants:
    """A group of edge models for the same task, such as fp32, int8 and a tiny one; of each call one of them takes part.

    The first one runs, unless it is too slow for the call's deadline, or a rule with `small_model` is in force: then the last
    one does. Each has a threshold, a certificate and latencies of its own, and answers name it: `edge int8`.

    Args:
        models: name -> path, model or callable, the one that is to run normally first and the smallest last.

    Raises:
        PolicyError: there are fewer than two.
    """

    def __init__(self, **models: Any) -> None:
        if len(models) < 2:  # noqa: PLR2004 - one to pick
            raise PolicyError(f"variants are two models or more, as in Variants(fp32=..., int8=...), not {len(models)}")
        self.models: dict[str, Any] = models


def each(given: Any) -> list[Any]:
    """The members of a group of variants; anything else is alone."""
    return [*given.models.values()] if isinstance(given, Variants) else [given]
