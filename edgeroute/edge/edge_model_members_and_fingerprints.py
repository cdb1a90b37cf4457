"""Members of edge models: their documentation, defaults and checks; the model's fingerprint; changes of its files since its load.

No other file looks for members.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from enum import Enum
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np

from edgeroute.core.error_codes_and_texts import UNIDENTIFIED
from edgeroute.errors import PolicyError, check_number
from edgeroute.system.files_and_lock_waits import file_stamp, sha256
from edgeroute.system.read_and_check_signatures import is_async
from edgeroute.types import EdgeModel, StopToken, TensorSpec


class EdgeMembers(EdgeModel, Protocol):
    """All members of an edge model that edgeroute reads.

    A member that a model lacks, or that is None, has the default named here.

    Attributes:
        labels: class index -> value. Default: the value is the index, or the label that the model returns.
        kind: kind of the outputs, one of `edgeroute.confidence.KINDS`. Default: recognised by their form.
        grounds: text that says by which sign of the file the kind is known; `check` shows it. Default: it was given, or is
            unknown.
        output: name of the output that is read. Default: all of them.
        score: confidence score for this model. Default: the router's.
        check: check of an answer's structure before it may be accepted, as `edgeroute.edge.answer_structure_checks` has them.
        none_found: rule for a detector that finds nothing: see `edgeroute.confidence.detector_boxes`. Default: defer.
        path: file or folder of the model; a router whose model lacks its file cannot be made. Default: the model has none.
        files: further files or folders that the outputs depend on, such as the card. For fingerprints and `reload`. Default:
            none.
        settings: everything else that the outputs depend on: providers, precision, plain functions, models that it calls. For
            fingerprints. Values are plain data, functions and edge models. Reading this may load the model. Default: nothing
            else.
        version: text that the model's author changes whenever its outputs change. For fingerprints. It stands for functions and
            objects among the settings, which have no identity across processes. Default: `path`, `files` and `settings` identify
            the model.
        release: version of a catalog, for models from a catalog: set by `edgeroute.catalog`, never by a runtime. Default: none.
        card: model card (`edgeroute.edge.model_card.Card`). Default: none.
        inputs: specifications of the inputs, with the batch axis, once the model is loaded. For `edgeroute serve`. Default:
            unknown.
        outputs: specifications of the outputs, with the batch axis, once the model is loaded. Default: unknown.
        parallel: most runs at a time; a further run waits for its turn. Default: any number.
        closes_after_runs: True if `close` may be called during runs, which hold what they need. Default: `close` is called after
            the last run.
        downgraded: how the model runs otherwise than requested, once it is loaded; `check` shows it. Default: it runs as
            requested.
        stateful: True if the model keeps a state from one input to the next, and so runs in a session only. Default: as its card
            states.
        placement: text that states which parts of the model run on which hardware, once it is loaded; `check` shows it. Default:
            unknown.
    """

    labels: tuple[Any, ...] | None = None
    kind: str | None = None
    grounds: str = ""
    output: str | None = None
    score: Any = None
    check: Any = None
    none_found: str = "defer"
    path: str | PathLike[str] | None = None
    files: Sequence[str | PathLike[str]] = ()
    settings: Mapping[str, Any] = {}
    version: str | None = None
    release: Any = None
    card: Any = None
    inputs: Sequence[TensorSpec] = ()
    outputs: Sequence[TensorSpec] = ()
    parallel: int | None = None
    closes_after_runs: bool = False
    downgraded: str | None = None
    stateful: bool = False
    placement: str | None = None

    def run_one(self, x: Any, cancel: StopToken | None = None) -> Any:
        """Return `run([x], cancel)` by a faster way: its cost is part of each call's. Default: `run`."""

    def stream(self, x: Any, cancel: StopToken | None = None) -> Generator[Any, None, Any] | AsyncGenerator[Any, None]:
        """Yield the answer to one input in pieces. Default: one piece, from `run_one`.

        A generator returns the confidence, the log-probabilities of the answer's tokens, or a `Prediction` of the whole; an
        asynchronous generator may yield that as its last item.
        """

    def run_feed(self, feed: dict[str, Any]) -> Any:
        """Run tensors by name, as in `inputs`, with the batch axis: for `edgeroute serve`. Default: `run` on the rows.

        If the method has a second parameter, that is the stop token, or None, as for `run`.
        """

    def run_escalated(self, inputs: list[Any], edges: Sequence[Mapping[str, Any] | None]) -> Any:
        """Run as `run` does, with the edge's answer to each input, as clients with `send_edge` send it; None: a client sent none.

        `edgeroute serve` calls it in place of `run`. Default: answers that come are ignored.
        """

    def load(self) -> Any:
        """Load the model, unless it is loaded; `run` does so by itself. A plain function, called from any thread."""

    def close(self) -> Any:
        """Free the model; a later run loads it again, and a second call does nothing.

        A plain function, called from any thread.
        """


# Names of the optional members.
Name: TypeAlias = Literal[
    "card", "check", "close", "closes_after_runs", "downgraded", "files", "grounds", "inputs", "kind", "labels", "load",
    "none_found", "output", "outputs", "parallel", "path", "placement", "release", "run_escalated", "run_feed", "run_one",
    "score", "settings", "stateful", "stream", "version",
]  # fmt: skip
# Optional members that are methods.
_METHODS: tuple[Name, ...] = ("close", "load", "run_escalated", "run_feed", "run_one", "stream")
# Optional member of an edge model -> its value for a model that lacks it; `EdgeMembers` documents them.
DEFAULTS: Mapping[Name, Any] = {name: None if name in _METHODS else getattr(EdgeMembers, name) for name in get_args(Name)}


def member(model: EdgeModel, name: Name) -> Any:
    """Return an optional member of a model, or its default if the model lacks it or has None.

    A falsy value is returned itself.
    """
    value = getattr(model, name, None)
    return DEFAULTS[name] if value is None else value


def counts_runs(model: EdgeModel) -> bool:
    """Return True if the model's runs are counted: it has `parallel`, or a `close` that does not wait for runs."""
    if member(model, "parallel") is not None:
        return True
    return member(model, "close") is not None and not member(model, "closes_after_runs")


def feed_of(model: EdgeModel) -> Callable[[dict[str, Any], StopToken | None], Any] | None:
    """Return the model's `run_feed` as a function of tensors and a stop token; None: the model has none.

    The token is passed on only if `run_feed` takes one.
    """
    run: Callable[..., Any] | None = member(model, "run_feed")
    if run is None:
        return None
    try:
        inspect.signature(run).bind({}, None)
    except (TypeError, ValueError):  # it takes the tensors alone; or a native function does not say what it takes
        return lambda feed, _: run(feed)
    return run


def is_model(thing: object) -> bool:
    """Return True if an object has a `run` to be called, and is no class."""
    return callable(getattr(thing, "run", None)) and not isinstance(thing, type)


def files(model: EdgeModel) -> list[Path]:
    """Return the paths of the files and folders that the model's outputs depend on, the model's own first. Reads none."""
    further = member(model, "files")
    listed = [further] if isinstance(further, str | Path) else [*further]  # a single one is meant as one
    return [Path(path) for path in (member(model, "path"), *listed) if path is not None]


def stamps(model: EdgeModel) -> tuple[Any, ...]:
    """Return (path, stamp) of the model's files and folders, to detect that a model on disk has changed since it was loaded."""
    return tuple((path.absolute(), file_stamp(path)) for path in files(model))


class LoadedFiles:
    """Comparison of models in memory, now and later, with their files at the time it is made. Reads the files then.

    Contents are compared where loading takes the SHA-256, else times and sizes. Models without `loaded_stamp` are those of other
    packages, and not watched.

    Args:
        models: the models.
        of: returns the fingerprint of a file or a folder; of a file, its SHA-256.
    """

    __slots__ = ("_seen",)

    def __init__(self, models: Sequence[EdgeModel], of: Of) -> None:
        parts = [part for model in models for part in (model, *(model.models if is_ensemble(model) else ()))]  # type: ignore[attr-defined]
        watched: list[Any] = [part for part in parts if hasattr(part, "loaded_stamp")]
        self._seen = [(m, m.loaded_stamp if not m.in_memory else None, (file_stamp(m.path),), of(m.path)) for m in watched]

    def __call__(self) -> str:
        """Return which file was replaced before it was loaded; empty: none. Reads no files."""
        for model, before, stamp, content in self._seen:
            if model.loaded_stamp is before:
                continue  # it was not loaded since
            by_content = getattr(model, "fingerprint", None) is not None and not model.path.is_dir()
            if model.fingerprint != content if by_content else model.loaded_stamp != stamp:
                return f"the file of {model.name} was replaced before it was loaded"
        return ""

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (str, self())  # a plan that is pickled has no models


def is_ensemble(model: EdgeModel) -> bool:
    """Return True if a model consists of several, listed as `models`."""
    return isinstance(getattr(model, "models", None), list)


def has_async_runs(model: EdgeModel) -> bool:
    """Return True if the model's runs are awaited.

    Raises:
        PolicyError: some runs are `async def` and some are not, or `load`, `close` or another method is.
    """
    runs = {"run": model.run, "run_one": member(model, "run_one"), "stream": member(model, "stream")}
    async_by_name = {name: is_async(run) for name, run in runs.items() if run is not None}
    if len({*async_by_name.values()}) > 1:
        asynchronous, plain = ([name for name, is_one in async_by_name.items() if is_one is wanted] for wanted in (True, False))
        raise PolicyError(f"{model_text(model)}: {', '.join(asynchronous)} async, {', '.join(plain)} not: make all async or none")
    for name in ("load", "close", "run_escalated", "run_feed"):
        if is_async(member(model, name)):
            raise PolicyError(f"{model_text(model)}: {name} is async def, and is called from threads: make it a plain def")
    return async_by_name["run"]


def check_model(model: EdgeModel) -> None:
    """Check a model's name, and the types of its methods, `parallel` and `version`, before its first run.

    Raises:
        PolicyError: there is no name, or a member has the wrong type; the message names it.
    """
    name = getattr(model, "name", None)
    if not isinstance(name, str) or not name:
        raise PolicyError(f"{type(model).__name__} has a run but no name: give it one, or pass a model file's path or a function")
    for method in _METHODS:
        if not callable(member(model, method) or check_model):
            raise PolicyError(f"{name}: {method} is a {type(member(model, method)).__name__}, and no method")
    if (parallel := member(model, "parallel")) is not None:
        check_number(f"{name}: parallel", parallel, least=1, whole=True)
    if not isinstance(version := member(model, "version"), str | None):
        raise PolicyError(f'{name}: version is text, as in version="{version}", and not a {type(version).__name__}')


def model_text(model: EdgeModel) -> str:
    """Return the model's name for a message, as in `the edge 'tiny'`."""
    return f"the edge {model.name!r}"


# Fingerprint of an edge model: all that its outputs depend on, in one text.

Of: TypeAlias = Callable[[Any], str]  # function that returns the fingerprint of a file, a folder or a callable


def fingerprint(model: EdgeModel, of: Of, of_callable: Of | None = None) -> str:
    """Return a fingerprint of a model's class, files, settings, labels and kind of outputs, the same in each process.

    Functions and objects in the settings count by their fingerprints, or, beside a `version`, by their names alone. Without a
    version and anything else that identifies the model, or with a setting that has no identity, the text begins with
    `UNIDENTIFIED`, and differs each time. A model with neither version, files nor settings is identified as a callable.

    Args:
        model: the model.
        of: returns the fingerprint of a file, a folder or a callable.
        of_callable: returns that of a callable in the settings; None: `of`, or with a version the name.

    Raises:
        OSError: a file cannot be read.
        PolicyError: the settings are no mapping.
    """
    settings, version = member(model, "settings"), member(model, "version")
    if not isinstance(settings, Mapping):
        raise PolicyError(f"{model_text(model)}: settings is a mapping of names to values, and not a {type(settings).__name__}")
    paths = files(model)
    of_callable = of_callable or (of if version is None else _name)
    if version is None and not paths and not settings:
        return of_callable(model)
    kind = type(model)
    parts = [
        f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}",
        *map(of, paths),
        _text("version", version),
        _value_text(settings, of, of_callable),
        repr((member(model, "labels"), member(model, "kind"), member(model, "output"), member(model, "none_found"))),
    ]
    return _digest(parts) or of(model)


def callable_fingerprint(function: Any, version: str | None, of: Of) -> str:
    """Return the fingerprint of a callable: by its version and name if it has a version, else by `of`."""
    return of(function) if version is None else _digest([_name(function), _text("version", version)])


def _digest(parts: list[str]) -> str:
    """Return the first part and a SHA-256 over all parts; empty if a part has no identity across processes."""
    if any(UNIDENTIFIED in part for part in parts):
        return ""
    h = sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        h.update(b"%d:" % len(data) + data)
    return f"{parts[0]} {h.hexdigest()}"


def _name(thing: Any) -> str:
    """Return the module and the qualified name of an object, or of its class.

    A local variable's or lambda's name is not unique.
    """
    kind = type(thing)
    module = getattr(thing, "__module__", None) or kind.__module__
    return f"{module}.{getattr(thing, '__qualname__', kind.__qualname__)}"


def _text(tag: str, value: object) -> str:
    """Return `tag repr(value)`."""
    return f"{tag} {value!r}"


def _value_text(value: Any, of: Of, of_callable: Of) -> str:
    """Return a value of the settings as a text that is the same in each process.

    Text and numbers count with their type; a set's order and a mapping's do not count. An edge model becomes its fingerprint, and
    any other object what `of_callable` returns.
    """
    part = partial(_value_text, of=of, of_callable=of_callable)
    if isinstance(value, Enum):
        return _text(type(value).__qualname__, value.name)
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return _text(type(value).__name__, value)
    if isinstance(value, PathLike):
        return _text("path", fspath(value))
    if isinstance(value, np.generic | np.ndarray) and not value.dtype.hasobject:
        return _text("array", (value.dtype.str, value.shape, sha256(value.tobytes()).hexdigest()))
    if isinstance(value, Mapping):
        return _text("mapping", sorted((part(k), part(v)) for k, v in value.items()))
    if isinstance(value, list | tuple):
        return _text("list", [*map(part, value)])
    if isinstance(value, set | frozenset):
        return _text("set", sorted(map(part, value)))
    return fingerprint(value, of, of_callable) if is_model(value) else of_callable(value)
