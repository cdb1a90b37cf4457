"""Ensemble of edge models, whose agreement is the confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np

from edgeroute.confidence.scores import agreement
from edgeroute.edge.members import has_async_runs, member
from edgeroute.edge.runs import runs_of
from edgeroute.edge.runtimes import load
from edgeroute.errors import BadReply, PolicyError
from edgeroute.types import EdgeModel, StopToken


class Ensemble:
    """Edge model that runs several models, and predicts the class with the largest mean softmax probability.

    Independently trained models make different errors, so their agreement separates right from wrong answers even where each
    model is overconfident (deep ensembles: Lakshminarayanan et al., 2017).

    Args:
        models: two or more classifiers with the same classes: paths, models or callables, returning logits or probabilities.
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
        if wrong := [m.name for m in self.models if member(m, "kind") not in {None, "logits", "probabilities"}]:
            raise PolicyError(f"an ensemble needs logits or probabilities, and {', '.join(wrong)} gives something else")
        self.name, self.votes = name, votes
        self.labels = next(iter(known), None)
        self.settings: Mapping[str, Any] = {"votes": votes, "models": self.models}
        self.version = version
        self._runs = [runs_of(model) for model in self.models]

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Any]:
        """Run all models on the inputs, one model after the other; return (value, confidence) for each input.

        Raises:
            BadReply: the models' outputs differ in shape, or are not [n, classes].
        """
        if not inputs:
            return []
        outputs = []
        for model, runs in zip(self.models, self._runs, strict=True):
            with nullcontext() if runs is None else runs.one(cancel):
                outputs.append(_logits(model, model.run(inputs, cancel)))
        if len({array.shape for array in outputs}) > 1:
            raise BadReply(f"the models of the ensemble give outputs {' and '.join(str(list(a.shape)) for a in outputs)}")
        logits = np.stack(outputs)
        sure = agreement(logits, votes=self.votes)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        best = (p / p.sum(-1, keepdims=True)).mean(0).argmax(-1)
        return [(int(i) if self.labels is None else self.labels[i], float(c)) for i, c in zip(best, sure, strict=True)]

    def load(self) -> None:
        """Load all models."""
        for model in self.models:
            if (load_it := member(model, "load")) is not None:
                load_it()

    def close(self) -> None:
        """Close all models, each after its last run."""
        for model, runs in zip(self.models, self._runs, strict=True):
            if (close := member(model, "close")) is not None:
                (close if runs is None else runs.close)()


def _logits(model: EdgeModel, outputs: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the outputs as logits [n, classes]: of probabilities their logarithms.

    Raises:
        BadReply: they are not [n, classes].
    """
    array = np.asarray(next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs, np.float64)
    if array.ndim != 2:  # noqa: PLR2004 - a batch of rows
        raise BadReply(f"{model.name} gives outputs {list(array.shape)}, and not a row of numbers for each input")
    if member(model, "kind") in {None, "logits"}:
        return array
    with np.errstate(divide="ignore"):
        return np.log(array)
