"""Labels: the names of a model's classes, and which of them a model means."""

from __future__ import annotations

from collections.abc import Iterable, KeysView, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any

import numpy as np

from edgeroute.confidence.forms import form_of, plain
from edgeroute.errors import BadReply, PolicyError


def label_names(labels: Iterable[Any] | None) -> tuple[Any, ...] | None:
    """Labels in any container that has an order, numpy's too, as a tuple of plain values; None and an empty one: there are none.

    Raises:
        PolicyError: it has no order, as a set, or no items, or these are lists themselves.
    """
    if labels is None:
        return None
    unordered = isinstance(labels, AbstractSet) and not isinstance(labels, KeysView)
    found: list[Any] | None = None
    if not unordered and not isinstance(labels, str | bytes | Mapping):
        with suppress(TypeError):  # it has no items
            found = [plain(label) for label in labels]
    if found is None or any(isinstance(name, list | dict | set) for name in found):
        raise PolicyError(f"labels= takes a list with a name for each class, in order, not {form_of(labels)}")
    return tuple(found) or None


class Labels:
    """The names of classes, in order.

    Args:
        labels: as for `label_names`.
        name: of the model, in messages.
    """

    def __init__(self, labels: Iterable[Any] | None, name: str) -> None:
        self.labels, self._name = label_names(labels), name

    def at(self, index: int, classes: int) -> Any:
        """The label of class number `index` of so many; without labels the number.

        Raises:
            BadReply: there are not so many labels.
        """
        labels = self.labels
        if labels is None:
            return index
        if len(labels) != classes:
            raise BadReply(f"{classes} outputs, but {len(labels)} labels: these outputs are not this model's")
        return labels[index]

    def same(self, value: Any) -> Any:
        """The label that is the same as text, as "9" is 9; the value itself if there is none."""
        if self.labels is None or not isinstance(value, str | int) or value in self.labels:
            return value
        return next((label for label in self.labels if str(label) == str(value)), value)

    def named(self, value: Any) -> Any:
        """The label that a model means with this: the same, the same as text, or the one with this number.

        Raises:
            BadReply: it is none of them.
        """
        labels = self.labels
        if labels is None or (label := self.same(value)) in labels:
            return value if labels is None else label
        if isinstance(value, int) and 0 <= value < len(labels):
            return labels[value]
        raise BadReply(f"{self._name} gives a label that is none of its {len(labels)}")

    def meant(self, value: Any) -> Any:
        """The same of an answer's value, perhaps an array of one label, as `predict` gives it; other values are no labels."""
        if isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind in "biuU":
            value = value.reshape(-1)[0].item()
        return self.named(value) if isinstance(value, str | int) else value
