"""Fingerprint of an edge model: all that its outputs depend on, in one text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from hashlib import sha256
from os import PathLike, fspath
from typing import Any

import numpy as np

from edgeroute.core.codes import UNIDENTIFIED
from edgeroute.edge.members import files, is_model, member, named
from edgeroute.errors import PolicyError
from edgeroute.types import EdgeModel

Of = Callable[[Any], str]
"""The fingerprint of a file, a folder or a callable."""


def fingerprint(model: EdgeModel, of: Of, say: Of | None = None) -> str:
    """Fingerprint of its class, files, settings, labels and kind of outputs, the same in each process.

    A `version` stands for what its author knows and edgeroute cannot: of functions and objects in its settings it takes the
    names alone. Where neither a version nor anything else tells what the model is, or a setting has no identity, the text begins
    with `UNIDENTIFIED`, and is another one each time.

    Args:
        model: the model.
        of: of a file, a folder or a callable.
        say: of a callable in the settings; None: `of`.

    Raises:
        OSError: a file cannot be read.
        PolicyError: its settings are no mapping.
    """
    settings, version = member(model, "settings"), member(model, "version")
    if not isinstance(settings, Mapping):
        raise PolicyError(f"{named(model)}: settings is a mapping of names to values, and not a {type(settings).__name__}")
    paths = files(model)
    say = say or (of if version is None else _name)
    if version is None and not paths and not settings:
        return say(model)
    kind = type(model)
    parts = [
        f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}",
        *map(of, paths),
        _text("version", version),
        _said(settings, of, say),
        repr((member(model, "labels"), member(model, "kind"), member(model, "output"), member(model, "none_found"))),
    ]
    return _digested(parts) or of(model)


def versioned(function: Any, version: str | None, of: Of) -> str:
    """The fingerprint of a callable; with a version that, and its name."""
    return of(function) if version is None else _digested([_name(function), _text("version", version)])


def _digested(parts: list[str]) -> str:
    """One text of several: the first, and a hash over all of them; empty if one of them has no identity."""
    if any(UNIDENTIFIED in part for part in parts):
        return ""
    h = sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        h.update(b"%d:" % len(data) + data)
    return f"{parts[0]} {h.hexdigest()}"


def _name(thing: Any) -> str:
    kind = type(thing)
    module = getattr(thing, "__module__", None) or kind.__module__
    return f"{module}.{getattr(thing, '__qualname__', kind.__qualname__)}"


def _text(tag: str, value: object) -> str:
    return f"{tag} {value!r}"


def _said(value: Any, of: Of, say: Of) -> str:
    """A value of the settings in a form that is the same in each process."""
    if isinstance(value, Enum):
        return _text(type(value).__qualname__, value.name)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return _text(type(value).__name__, value)
    if isinstance(value, PathLike):
        return _text("path", fspath(value))
    if isinstance(value, np.generic | np.ndarray) and not value.dtype.hasobject:
        return _text("array", (value.dtype.str, value.shape, sha256(value.tobytes()).hexdigest()))
    if isinstance(value, Mapping):
        return _text("mapping", sorted((_said(k, of, say), _said(v, of, say)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return _text("list", [_said(one, of, say) for one in value])
    if isinstance(value, set | frozenset):
        return _text("set", sorted(_said(one, of, say) for one in value))
    return fingerprint(value, of, say) if is_model(value) else say(value)
