"""Labels: the names of a model's classes, and the label that a model's output means."""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any

import numpy as np

from edgeroute.confidence.forms import form_of, plain
from edgeroute.errors import BadReply, PolicyError


def label_names(labels: Iterable[Any] | None) -> tuple[Any, ...] | None:
    """Return labels in any ordered container as a tuple of plain values; None for None and for an empty container.

    Raises:
        PolicyError: the container has no order, as a set, or no items, or its items are lists themselves.
    """
    if labels is None:
        return None
    unordered = isinstance(labels, AbstractSet) and not isinstance(labels, KeysView)
    names: list[Any] | None = None
    if not unordered and not isinstance(labels, str | bytes | Mapping):
        with suppress(TypeError):  # it has no items
            names = [plain(label) for label in labels]
    if names is None or any(isinstance(name, list | dict | set) for name in names):
        raise PolicyError(f"labels= takes a list with a name for each class, in order, not {form_of(labels)}")
    return tuple(names) or None


class Labels:
    """Names of classes, in order.

    Args:
        labels: see `label_names`.
        name: name of the model, in messages.
    """

    def __init__(self, labels: Iterable[Any] | None, name: str) -> None:
        self.labels, self._name = label_names(labels), name

    def at(self, index: int, classes: int) -> Any:
        """Return the label of class number `index` of so many; without labels the number.

        Raises:
            BadReply: the number of labels differs from `classes`.
        """
        labels = self.labels
        if labels is None:
            return index
        if len(labels) != classes:
            raise BadReply(f"{classes} outputs, but {len(labels)} labels: these outputs are not this model's")
        return labels[index]

    def same(self, value: Any) -> Any:
        """Return the label that is the same as text, as "9" is 9; the value itself if there is none."""
        if self.labels is None or not isinstance(value, str | int) or value in self.labels:
            return value
        return next((label for label in self.labels if str(label) == str(value)), value)

    def named(self, value: Any) -> Any:
        """Return the label that a model means by a value: an equal one, one equal as text, or the one with this number.

        Raises:
            BadReply: the value is none of them.
        """
        labels = self.labels
        if labels is None or (label := self.same(value)) in labels:
            return value if labels is None else label
        if isinstance(value, int) and 0 <= value < len(labels):
            return labels[value]
        raise BadReply(f"{self._name} gives a label that is not among its {len(labels)} labels")

    def meant(self, value: Any) -> Any:
        """Return the label that an answer's value means, which may be an array of one label, as `predict` gives it.

        A value that is neither text nor integer is returned unchanged.
        """
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "biuU":
            value = value.reshape(-1)[0].item()
        return self.named(value) if isinstance(value, str | int) else value
