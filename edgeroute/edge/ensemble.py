"""Several small models as one: how far they agree is the confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeroute.confidence.learned import agreement
from edgeroute.edge.load import load
from edgeroute.errors import BadReply, PolicyError
from edgeroute.types import EdgeModel, StopToken


class Ensemble:
    """Asks each model, and answers with the class that their mean softmax finds the likeliest.

    Models that were trained apart err apart, so their agreement tells right from wrong where each of them is sure of itself.

    Args:
        models: two or more classifiers of the same classes: paths, models or callables, which give logits or probabilities.
        votes: the confidence is by their predicted classes alone, one minus the entropy of the votes. Else it is the largest
            mean softmax.
        name: what answers call it.

    Raises:
        PolicyError: there are not two, they name their classes differently, or one gives no logits.
    """

    kind = "answers"

    def __init__(self, models: Sequence[Any], *, votes: bool = False, name: str = "ensemble") -> None:
        self.models: list[EdgeModel] = [load(model) for model in models]
        if len(self.models) < 2:  # noqa: PLR2004 - who should it agree with?
            raise PolicyError(f"an ensemble has two models or more, not {len(self.models)}")
        if len(known := {m.labels for m in self.models if m.labels}) > 1:
            raise PolicyError("the models of an ensemble have the same labels in the same order, and these have not")
        if wrong := [m.name for m in self.models if m.kind not in {"logits", "probabilities"}]:
            raise PolicyError(f"an ensemble needs logits or probabilities, and {', '.join(wrong)} gives something else")
        self.name, self.votes = name, votes
        self.labels = next(iter(known), None)

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> list[Any]:
        """(value, agreement) of each input.

        Raises:
            BadReply: the models give different numbers of classes.
        """
        outputs = [_logits(model, model.run(inputs, cancel)) for model in self.models]
        if len({array.shape for array in outputs}) > 1:
            raise BadReply(f"the models of the ensemble give outputs {' and '.join(str(list(a.shape)) for a in outputs)}")
        logits = np.stack(outputs)
        sure = agreement(logits, votes=self.votes)
        p = np.exp(logits - logits.max(-1, keepdims=True))
        best = (p / p.sum(-1, keepdims=True)).mean(0).argmax(-1)
        return [(int(i) if self.labels is None else self.labels[i], float(c)) for i, c in zip(best, sure, strict=True)]

    def load(self) -> None:
        """Loads each of them."""
        for model in self.models:
            if hasattr(model, "load"):
                model.load()

    def close(self) -> None:
        """Frees each of them."""
        for model in self.models:
            if hasattr(model, "close"):
                model.close()


def _logits(model: EdgeModel, outputs: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Of shape [n, classes]."""
    array = np.asarray(next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs, np.float64)
    if array.ndim != 2:  # noqa: PLR2004 - a batch of rows
        raise BadReply(f"{model.name} gives outputs {list(array.shape)}, and not a row of numbers for each input")
    if model.kind == "logits":
        return array
    with np.errstate(divide="ignore"):
        return np.log(array)
