"""Runtimes: the class that runs a model file, by its suffix; `load` of the argument `edge=`; groups of models.

`register` names the class of a suffix; `Variants` are models for one task, of which each call runs one; an `Ensemble` runs
several for each input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from os import PathLike, fspath
from pathlib import PurePath
from typing import Any

import numpy as np

from edgeroute.confidence.output_forms_labels_and_comparison import is_by_class
from edgeroute.confidence.scores import agreement
from edgeroute.edge.callable_model import CallableModel
from edgeroute.edge.edge_model_members_and_fingerprints import check_model, counts_runs, has_async_runs, is_model, member
from edgeroute.errors import BadReply, PolicyError, nearest
from edgeroute.system.late_imports_and_plugins import attribute, call_factory, import_tool, plugin_targets
from edgeroute.types import EdgeModel, Prediction, StopToken

# Suffix, or `http:` for a server on this device, -> `module:Class`.
BUILT_IN = {
    ".active": "edgeroute.catalog.installed_versions_and_active_loading:active_model",
    ".gguf": "edgeroute.edge.llama:LlamaModel",
    ".mlmodel": "edgeroute.edge.coreml:CoreMLModel",
    ".mlpackage": "edgeroute.edge.coreml:CoreMLModel",
    ".onnx": "edgeroute.edge.onnx:OnnxModel",
    ".tflite": "edgeroute.edge.litert:LiteRTModel",
    "http:": "edgeroute.edge.local_server_client:LocalServer",
}
SCHEMES = ("http:", "https:", "unix:")  # beginnings of addresses of servers
ACTIVE = ".active"  # suffix of the pointer file to a catalog's active model, whose own suffix picks the runtime
# Entry-point group by which an installed package registers its runtimes: `suffix = "module:Class"`, without the dot.
GROUP = "edgeroute.runtimes"
_TARGET = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")
_SUFFIX = re.compile(r"\.[^\s./\\][^\s/\\]*")
# Name of a model on a hub; only with its address may a path in it follow.
_HUB = re.compile(r"(hf://|https://(?:huggingface|hf)\.co/)?([\w-]+/[\w-]+(?:\.\d[\w-]*)*)(?(1)(?:/.*)?)")
_registered: dict[str, str] = {}  # suffix -> target, as `register` was called


def register(suffix: str, target: str) -> None:
    """Register the class that runs model files with this suffix, in place of any other, for this process.

    The class is imported when such a file is to be run, and called with the path; in a policy, `[edge]` then has the keyword
    arguments of its `__init__` as keys. An installed package need not call this: it has an entry point in the group
    `edgeroute.runtimes`.

    Args:
        suffix: such as ".tflite"; capitals do not count.
        target: such as "package.module:Class"; the class follows the protocol `EdgeModel`.

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
    """Remove all registered runtimes for the time of a block, and restore them after it. Entry points are searched anew.

    For tests: `edgeroute.testing` has it.
    """
    before = dict(_registered)
    _registered.clear()
    plugin_targets.cache_clear()
    try:
        yield
    finally:
        _registered.clear()
        _registered.update(before)
        plugin_targets.cache_clear()


def suffixes() -> list[str]:
    """Return all suffixes that have a runtime, sorted, those of installed packages too."""
    known = {*BUILT_IN, *_registered, *_plugin_runtimes()} - {ACTIVE}
    return sorted(suffix for suffix in known if suffix.startswith("."))


def is_address(edge: object) -> bool:
    """Return True if this is the address of a server, and no path."""
    return isinstance(edge, str) and edge.lower().startswith(SCHEMES)


def suffix_of(path: str | PathLike[str]) -> str | None:
    """Return the suffix by which the path has a runtime, the longest that fits; None: it has none.

    Built-in and registered suffixes go before those of installed packages. An address returns `http:`. A name that is only a
    suffix has none.
    """
    if is_address(path):
        return SCHEMES[0]
    name = PurePath(fspath(path)).name.lower()

    def longest(suffixes: Iterable[str]) -> str | None:
        """Return the longest of these suffixes that the name ends in; None: there is none."""
        return max((suffix for suffix in suffixes if name.endswith(suffix) and name != suffix), key=len, default=None)

    return longest({*BUILT_IN, *_registered} - {*SCHEMES}) or longest(_plugin_runtimes())


def target_of(suffix: str) -> str:
    """Return the class for a suffix as text, `module:Class`.

    Raises:
        PolicyError: there is none, or two installed packages have one.
    """
    if (target := _registered.get(suffix) or BUILT_IN.get(suffix)) is not None:
        return target
    targets = _plugin_runtimes().get(suffix, ())
    if len(targets) > 1:
        raise PolicyError(f"{' and '.join(targets)} run {suffix}: choose by edgeroute.register({suffix!r}, {targets[0]!r})")
    if not targets:
        raise PolicyError(f"there is no runtime for {suffix}: {nearest(suffix, suffixes())}")
    return targets[0]


def class_of(suffix: str) -> Any:
    """Import and return the class for a suffix.

    Raises:
        PolicyError: as `target_of`, or the module has no such class.
        RuntimeMissing: the module, or one that it imports, is not installed.
    """
    return attribute(target_of(suffix), f"the runtime for {suffix}")


def _plugin_runtimes() -> dict[str, tuple[str, ...]]:
    """Return suffix -> targets by the entry points of installed packages; searched once, when no other runtime fits."""
    targets_by_suffix: dict[str, tuple[str, ...]] = {}
    for name, targets in plugin_targets(GROUP).items():
        suffix = f".{name.removeprefix('.').lower()}"
        targets_by_suffix[suffix] = (*targets_by_suffix.get(suffix, ()), *targets)
    return targets_by_suffix


# The `edge=` argument (a path, a model or a callable) becomes an edge model.


def load(edge: Any, **options: Any) -> EdgeModel:
    """Return the edge model for a path, a callable, or an object that is a model already. The file itself is not read yet.

    A path's suffix picks the class, which is imported and called with the path and the options. A model and its members are
    checked; a callable, or a classifier with `predict_proba`, becomes a `CallableModel`.

    Args:
        edge: the path of a model file, the address of a server on this device, a model, or a function.
        options: arguments of the runtime's class, for a path alone.

    Raises:
        PolicyError: no runtime for the suffix, a runtime that does not take the options, options without a path, a class in place
            of a model, a PyTorch module, or another unsupported type.
        RuntimeMissing: the runtime's module cannot be imported.
    """
    if isinstance(edge, str | PathLike):
        if (step := step_of(str(edge))) is not None:
            raise PolicyError(f"no runtime for {str(edge)!r}: {step}")
        suffix = suffix_of(edge) or ""
        runtime = class_of(suffix)
        model: EdgeModel = call_factory(runtime, f"the runtime for {suffix}, {runtime.__name__}", edge, **options)
        check_model(model)
        return model
    if options:
        raise PolicyError(f"{', '.join(options)}: for the runtime of a path, and edge= is no path, but a {type(edge).__name__}")
    if isinstance(edge, type) and callable(vars(edge).get("run")):
        raise PolicyError(f"edge= takes a model, and {edge.__name__} is a class: pass {edge.__name__}(...)")
    if is_model(edge):
        check_model(edge)
        return edge  # type: ignore[no-any-return]
    if any(kind.__module__ == "torch.nn.modules.module" for kind in type(edge).__mro__):
        raise PolicyError(import_tool("inspect.conversion_advice").of_torch(type(edge)))
    if callable(edge) or hasattr(edge, "predict_proba"):
        return CallableModel(edge)
    raise PolicyError(f"edge= takes a path, a model or a callable, not {type(edge).__name__}")


def step_of(path: str) -> str | None:
    """Return the step that makes a runnable file of a file, a folder or a name on a hub; None: it has a runtime."""
    hub = _HUB.fullmatch(path)
    if hub is None and path.lower().startswith(SCHEMES[:2]) and path.lower().endswith((".onnx", ".tflite", ".gguf")):
        return "it is on a server: download it, and give the path of the file"
    if suffix_of(path) is not None and not (hub and hub[1]):
        return None
    return import_tool("inspect.conversion_advice").step(path, hub)  # type: ignore[no-any-return]


# Variants: edge models for the same task, of which each call runs one.


class Variants:
    """Group of edge models for the same task, such as fp32, int8 and a tiny one; each call runs one of them.

    The first one runs, unless it is too slow for the call's deadline, or a rule with `small_model` is in force: then the last
    one runs. Each has a threshold, a certificate and latencies of its own, and answers name it: `edge int8`.

    Args:
        models: name -> path, model or callable; the one for normal conditions first, the smallest last.

    Raises:
        PolicyError: there are fewer than two.
    """

    def __init__(self, **models: Any) -> None:
        if len(models) < 2:  # noqa: PLR2004 - one to pick
            raise PolicyError(f"variants are two models or more, as in Variants(fp32=..., int8=...), not {len(models)}")
        self.models: dict[str, Any] = models


def each(given: Any) -> list[Any]:
    """Return the models of a group of variants as a list, or a list of the only model."""
    return [*given.models.values()] if isinstance(given, Variants) else [given]


# Ensemble of edge models, whose agreement is the confidence.


class Ensemble:
    """Edge model that runs several models, and predicts the class with the largest mean softmax probability.

    Independently trained models make different errors, so their agreement separates right from wrong answers even where each
    model is overconfident (deep ensembles: Lakshminarayanan et al., 2017).

    Args:
        models: two or more classifiers with the same classes: paths, models, estimators with `predict_proba` or callables,
            returning logits or probabilities.
        votes: count the predicted classes only: the confidence is one minus the normalised entropy of the votes. Otherwise it is
            the largest mean softmax probability.
        name: in answers.
        version: as for `CallableModel`, for all its models together; None: each model is identified by itself.

    Raises:
        PolicyError: fewer than two models, differing labels, an `async def` model, or outputs that are neither logits nor
            probabilities.
    """

    kind = "answers"

    def __init__(self, models: Sequence[Any], *, votes: bool = False, name: str = "ensemble", version: str | None = None) -> None:
        self.models: list[EdgeModel] = [load(model) for model in models]
        if len(self.models) < 2:  # noqa: PLR2004 - agreement needs two
            raise PolicyError(f"an ensemble has two models or more, not {len(self.models)}")
        if asynchronous := ", ".join(m.name for m in self.models if has_async_runs(m)):
            raise PolicyError(f"an ensemble calls its models, and {asynchronous} would be awaited: make it a plain def")
        if len(known := {labels for m in self.models if (labels := member(m, "labels"))}) > 1:
            raise PolicyError("the models of an ensemble have the same labels in the same order, and these have not")
        if wrong := [m.name for m in self.models if member(m, "kind") not in {None, "logits", "logprobs", "probabilities"}]:
            raise PolicyError(f"an ensemble needs logits or probabilities, and {', '.join(wrong)} gives something else")
        self.name, self.votes, self.version = name, votes, version
        self.labels = next(iter(known), None)
        self.settings: Mapping[str, Any] = {"votes": votes, "models": self.models}
        from edgeroute.edge.concurrent_runs import runs_of

        self._runs = [runs_of(model) if counts_runs(model) else None for model in self.models]

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Any]:
        """Run all models on the inputs, one model after the other; return (value, confidence) for each input.

        The value is the class with the largest mean probability; the confidence is the models' agreement. [] for no inputs. Each
        model waits for its turn. The first estimator's classes become the labels if there are none.

        Raises:
            BadReply: the models' outputs differ in shape or classes, or are not [n, classes].
        """
        if not inputs:
            return []
        outputs = []
        for model, runs in zip(self.models, self._runs, strict=True):
            with nullcontext() if runs is None else runs.one(cancel):
                rows = model.run(inputs, cancel)
            rows = [x.outputs if type(x) is Prediction else x for x in rows] if isinstance(rows, list) else rows
            if by_class := isinstance(rows, list) and is_by_class(rows[0]):  # an estimator's
                self.labels = self.labels or tuple(rows[0])
                if {*rows[0]} != {*self.labels}:
                    raise BadReply(f"{model.name} has other classes than the models of the ensemble before it")
                rows = [[row[label] for label in self.labels] for row in rows]
            outputs.append(_logits(model, rows, probabilities=by_class or member(model, "kind") == "probabilities"))
        if len({array.shape for array in outputs}) > 1:
            raise BadReply(f"the models of the ensemble give outputs {' and '.join(str(list(a.shape)) for a in outputs)}")
        logits = np.stack(outputs)
        sure = agreement(logits, votes=self.votes)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        best = (p / p.sum(-1, keepdims=True)).mean(0).argmax(-1)
        return [(int(i) if self.labels is None else self.labels[i], float(c)) for i, c in zip(best, sure, strict=True)]

    def load(self) -> None:
        """Load all models. Models without a `load` are skipped."""
        for model in self.models:
            if (load_it := member(model, "load")) is not None:
                load_it()

    def close(self) -> None:
        """Close all models, each after its last run. Models without a `close` are skipped."""
        for model, runs in zip(self.models, self._runs, strict=True):
            if (close := member(model, "close")) is not None:
                (close if runs is None else runs.close)()


def _logits(model: EdgeModel, outputs: Any, *, probabilities: bool) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the outputs as logits [n, classes]: of probabilities their logarithms.

    Raises:
        BadReply: they are not [n, classes].
    """
    if isinstance(outputs, list) and any(type(row) is tuple and len(row) == 2 for row in outputs):  # noqa: PLR2004 - a pair
        raise BadReply(f"{model.name} gives a value and its confidence, and an ensemble needs a number for each class")
    array = np.asarray(next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs, np.float64)
    if array.ndim != 2:  # noqa: PLR2004 - a batch of rows
        raise BadReply(f"{model.name} gives outputs {list(array.shape)}, and not a row of numbers for each input")
    with np.errstate(divide="ignore"):
        return np.log(array) if probabilities else array
