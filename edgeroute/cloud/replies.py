"""Checks of what an endpoint, or a function as the cloud, has answered: nonsense never replaces an edge answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgeroute.confidence.boxes import boxes_without_batch
from edgeroute.confidence.forms import as_array
from edgeroute.confidence.labels import Labels
from edgeroute.confidence.reader import CLASSES, Reader
from edgeroute.confidence.unscored import Unscored
from edgeroute.core.walk import Prediction
from edgeroute.errors import BadReply

SLACK = 0.01
"""By how much a probability may exceed 1: some servers round."""


class ReplyReader(Reader):
    """A reader of a cloud's outputs, which refuses what cannot be an answer.

    That is: no value (null), NaN, infinity, logits that are all minus infinity, probabilities outside 0..1, no outputs at
    all; and where there are labels, a value that is none of them, or outputs of another rank. With a score of the caller's
    own, outputs may have any structure.
    """

    wrong = BadReply
    served: Callable[[], tuple[Any, ...] | None] | None = None
    """The labels that the server has, once it has said so: for where nobody else has given any."""

    def many(self, outputs: Any, count: int) -> list[Prediction]:
        """As of `Reader`."""
        if self.labels is None and self.served is not None and (labels := self.served()) is not None:
            self._names = Labels(labels, self.name)
            self.labels = self._names.labels
        return super().many(outputs, count)

    def _read(self, row: Any) -> Prediction:
        if type(row) is Prediction:
            self._check_pair(row.value, row.confidence)
        elif type(row) is tuple and self.kind != "label+probabilities":
            if len(row) == 2:  # noqa: PLR2004 - a pair
                self._check_pair(*row)
        elif self.kind == "boxes" or (boxes_without_batch(self.kind, row)):
            pass  # none found is an answer; its form is checked as it is read
        elif type(row) is np.ndarray:  # the usual case
            self._check_row(row)
        else:
            for part in row.values() if isinstance(row, Mapping) and self.kind == "label+probabilities" else [_first(row)]:
                self._check_row(part)
        return super()._read(row)

    def _check_pair(self, value: Any, sure: Any) -> None:
        if value is None:
            raise BadReply("the answer has no value (null)")
        self._check_confidence(sure)
        structured = not isinstance(value, str | int | float | np.generic)
        if self.labels is None or (structured and self._custom is not None):
            return
        if structured or self._names.same(_item(value)) not in self.labels:
            raise BadReply(f"the answer, {_kind(value)}, is none of the {len(self.labels)} labels")

    def _check_confidence(self, sure: Any) -> None:
        """A confidence is a finite number, or the finite log-probabilities of tokens; None: there is none."""
        if sure is None or isinstance(sure, Unscored):
            return
        try:
            known = np.isfinite(np.asarray(sure, np.float64)).all()
        except (TypeError, ValueError, OverflowError):  # none is chained: its text quotes the value
            known = None
        if known is None:
            if self._custom is None:
                raise BadReply(f"the answer's confidence is {type(sure).__name__}, not a number")
            return
        if not known:
            raise BadReply("the answer's confidence is NaN or infinity")

    def _check_row(self, row: Any) -> None:
        plain = type(row) is np.ndarray and row.dtype.kind != "O"
        array = row if plain else as_array(list(row.values()) if isinstance(row, Mapping) else row)
        if not array.size:
            raise BadReply("0 outputs, which say nothing")
        if array.ndim == 2 and len(array) == 1:  # noqa: PLR2004 - with its batch axis
            array = array[0]
        numbers = array.ndim == 1 and array.dtype.kind in "fiub"
        labelled = array.size == 1 and array.dtype.kind in "biuUS" and self.kind not in CLASSES  # a label, which is looked up
        if self.labels is not None and self._custom is None and not numbers and not labelled and self.kind != "value":
            raise BadReply(f"outputs of {array.ndim} dimensions, but {len(self.labels)} labels: a number each was expected")
        if array.dtype.kind not in "fiub" or not (numbers or array.dtype.kind == "f"):
            return
        low, high = np.minimum.reduce(array, None), np.maximum.reduce(array, None)  # as `min` and `max`, without their calls
        if not (low == low and abs(high) < np.inf):  # noqa: PLR0124 - false for NaN, and for minus infinity as the highest
            raise BadReply("the outputs hold NaN or infinity, or are all minus infinity")
        if self.kind == "probabilities" and not (low >= 0 < high <= 1 + SLACK):
            raise BadReply("the outputs are no probabilities, which are from 0 to 1")


def _first(row: Any) -> Any:
    return next(iter(row.values()), None) if isinstance(row, Mapping) else row


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _kind(value: Any) -> str:
    """What a value is, without quoting it: it may be an echo of the input."""
    return f"text of {len(value)} characters" if isinstance(value, str) else f"of type {type(value).__name__}"
