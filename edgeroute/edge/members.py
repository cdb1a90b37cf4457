"""The members of edge models, and how they are read: no other place asks whether a model has one."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from enum import Enum
from functools import partial
from hashlib import sha256
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from edgeroute.core.words import UNIDENTIFIED
from edgeroute.errors import PolicyError, check_number
from edgeroute.system.process import file_stamp
from edgeroute.types import EdgeModel, StopToken, TensorSpec


class EdgeMembers(EdgeModel, Protocol):
    """All members of an edge model that edgeroute reads. One that a model lacks, or that is None, has the default named here."""

    @property
    def labels(self) -> tuple[Any, ...] | None:
        """Class index -> value. Default: the value is the index, or the label that the model gives."""

    @property
    def kind(self) -> str | None:
        """What the outputs are, one of `edgeroute.confidence.KINDS`. Default: read by their form."""

    @property
    def output(self) -> str | None:
        """The output that is read. Default: all of them."""

    @property
    def score(self) -> Any:
        """The score for this model. Default: the router's."""

    @property
    def none_found(self) -> str:
        """Of a detector: see `edgeroute.confidence.boxes`. Default: defer."""

    @property
    def path(self) -> str | PathLike[str] | None:
        """The model's file or folder; there is no router without it. Default: it has none."""

    @property
    def files(self) -> Sequence[str | PathLike[str]]:
        """Further files or folders that its outputs depend on, such as its card. For fingerprints and `reload`. Default: none."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What else its outputs depend on: providers, precision, plain functions, models that it calls. For fingerprints.

        Values are plain data, functions and edge models. Read once the model is to be identified: it may be loaded for that.
        Default: nothing else.
        """

    @property
    def version(self) -> str | None:
        """Changed by its author whenever its outputs change. For fingerprints; default: `path`, `files` and `settings` tell all.

        It is in place of functions and objects among the settings, which have no identity across processes.
        """

    @property
    def release(self) -> Any:
        """Which version of a catalog it is; set by `edgeroute.catalog`, and nothing that a runtime has. Default: none."""

    @property
    def card(self) -> Any:
        """The model's card (`edgeroute.edge.card.Card`). Default: none."""

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        """What it takes, once it is loaded, with the batch axis. For `edgeroute serve`. Default: unknown."""

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        """What it gives, likewise. Default: unknown."""

    @property
    def parallel(self) -> int | None:
        """How many of its runs may go at a time; a further one waits for its turn. Default: any number."""

    @property
    def closes_after_runs(self) -> bool:
        """Whether `close` may be called during runs, which keep what they need. Default: it is called after the last run."""

    @property
    def downgraded(self) -> str | None:
        """How it runs otherwise than it was asked to, once it is loaded; `check` shows it. Default: it runs as asked."""

    @property
    def stateful(self) -> bool:
        """Whether it keeps a state from one input to the next, and so runs in a session only. Default: as its card says."""

    @property
    def placement(self) -> str | None:
        """Which parts of it run on which hardware, once it is loaded; `check` shows it. Default: it is not said."""

    def run_one(self, x: Any, cancel: StopToken | None = None) -> Any:
        """`run([x], cancel)`, by a shorter way: its cost is part of each call's. Default: `run`."""

    def stream(self, x: Any, cancel: StopToken | None = None) -> Generator[Any, None, Any] | AsyncGenerator[Any, None]:
        """The answer to one input in pieces. Default: one piece, from `run_one`.

        A generator returns the confidence, the log-probabilities of the answer's tokens, or a `Prediction` of the whole; an
        asynchronous one may yield that as its last.
        """

    def run_feed(self, feed: dict[str, Any]) -> Any:
        """Runs tensors as in `inputs`, by name, with the batch axis: for `edgeroute serve`. Default: `run` on the rows.

        A second parameter of it is given the stop token, or None, as that of `run` is.
        """

    def run_escalated(self, inputs: list[Any], edges: Sequence[Mapping[str, Any] | None]) -> Any:
        """As `run`, with the edge's answer to each input, as clients with `send_edge` send it; None: there is none.

        For `edgeroute serve`, in place of `run`. Default: answers that come are ignored.
        """

    def load(self) -> Any:
        """Loads the model, if it is not loaded; `run` does so by itself. A plain function, called from any thread."""

    def close(self) -> Any:
        """Frees the model; a later run loads it again, and a second call does nothing. A plain function, likewise."""


Name: TypeAlias = Literal[
    "card", "close", "closes_after_runs", "downgraded", "files", "inputs", "kind", "labels", "load", "none_found", "output",
    "outputs", "parallel", "path", "placement", "release", "run_escalated", "run_feed", "run_one", "score", "settings",
    "stateful", "stream", "version",
]  # fmt: skip
DEFAULTS: Mapping[Name, Any] = {
    "card": None, "close": None, "closes_after_runs": False, "downgraded": None, "files": (), "inputs": (), "kind": None,
    "labels": None, "load": None, "none_found": "defer", "output": None, "outputs": (), "parallel": None, "path": None,
    "placement": None, "release": None, "run_escalated": None, "run_feed": None, "run_one": None, "score": None, "settings": {},
    "stateful": False, "stream": None, "version": None,
}  # fmt: skip
"""Optional member of an edge model -> its value for a model that lacks it; `EdgeMembers` documents them."""
_METHODS: tuple[Name, ...] = ("close", "load", "run_escalated", "run_feed", "run_one", "stream")


def member(model: EdgeModel, name: Name) -> Any:
    """An optional member of a model; its default if the model lacks it or has None."""
    found = getattr(model, name, None)
    return DEFAULTS[name] if found is None else found


def feed_of(model: EdgeModel) -> Callable[[dict[str, Any], StopToken | None], Any] | None:
    """Its `run_feed` as a function of tensors and a stop token, which it is given if it takes one; None: it has none."""
    run: Callable[..., Any] | None = member(model, "run_feed")
    if run is None:
        return None
    try:
        inspect.signature(run).bind({}, None)
    except (TypeError, ValueError):  # it takes the tensors alone; or a native function does not say what it takes
        return lambda feed, _: run(feed)
    return run


def is_model(thing: object) -> bool:
    """Whether it has a `run` to be called, and is no class."""
    return callable(getattr(thing, "run", None)) and not isinstance(thing, type)


def files(model: EdgeModel) -> list[Path]:
    """The files and folders that its outputs depend on: the model's first."""
    further = member(model, "files")
    listed = [further] if isinstance(further, str | Path) else [*further]  # a single one is meant as one
    return [Path(path) for path in (member(model, "path"), *listed) if path is not None]


def stamps(model: EdgeModel) -> tuple[Any, ...]:
    """Those files with their times and sizes: once this is another, the model on disk may be another one than was loaded."""
    return tuple((path.absolute(), file_stamp(path)) for path in files(model))


def awaited(function: Any) -> bool:
    """Whether calling it gives a coroutine or an asynchronous generator: it is an `async def`, or its `__call__` is."""
    while isinstance(function, partial):
        function = function.func
    called = getattr(function, "__call__", None)  # noqa: B004 - an object's method may be a coroutine function
    return any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in (function, called))


def is_awaited(model: EdgeModel) -> bool:
    """Whether its runs are awaited.

    Raises:
        PolicyError: some are and some are not, or `load` or `close` would be.
    """
    runs = {"run": model.run, "run_one": member(model, "run_one"), "stream": member(model, "stream")}
    said = {name: awaited(run) for name, run in runs.items() if run is not None}
    if len({*said.values()}) > 1:
        asynchronous, plain = ([name for name, is_one in said.items() if is_one is wanted] for wanted in (True, False))
        raise PolicyError(
            f"{named(model)}: {' and '.join(asynchronous)} {'is' if len(asynchronous) == 1 else 'are'} async def,"
            f" {' and '.join(plain)} {'is' if len(plain) == 1 else 'are'} not: make all of them async def, or none"
        )
    for name in ("load", "close", "run_escalated", "run_feed"):
        if awaited(member(model, name)):
            raise PolicyError(f"{named(model)}: {name} is async def, and is called from threads: make it a plain def")
    return said["run"]


def checked(model: EdgeModel) -> None:
    """Checks what can be wrong with a model before its first run.

    Raises:
        PolicyError: a member has the wrong type; the message says which.
    """
    name = getattr(model, "name", None)
    if not isinstance(name, str) or not name:
        raise PolicyError(
            f"{type(model).__name__} has a run but no name, so it is no edge model: pass a model file's path, a function f(x),"
            " or an object with a name and run(inputs, cancel)"
        )
    for method in _METHODS:
        if not callable(member(model, method) or checked):
            raise PolicyError(f"{name}: {method} is a {type(member(model, method)).__name__}, and no method")
    if (parallel := member(model, "parallel")) is not None:
        check_number(f"{name}: parallel", parallel, least=1, whole=True)
    if not isinstance(version := member(model, "version"), str | None):
        raise PolicyError(f'{name}: version is text, as in version="{version}", and not a {type(version).__name__}')


def named(model: EdgeModel) -> str:
    """The model, in a message."""
    return f"the edge {model.name!r}"


# Fingerprint of an edge model: all that its outputs depend on, in one text.

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
