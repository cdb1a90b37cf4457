"""Decoding of a model's raw outputs to predictions: value, confidence, outputs.

The kind of the outputs says what they are:

    logits                a number for each class, before the softmax; one number: a binary classifier's, before the sigmoid
    probabilities         a number for each class, after the softmax or sigmoid; or a mapping from class to probability
    logprobs              natural logarithms of the probabilities; or, beside an output of tokens, one for each token of a text
    label+probabilities   the class and the probabilities of all classes, as scikit-learn's models give them
    top                   numbers of the best classes beside scores, as TopK gives them: no confidence, except by a custom score
    top+probabilities     the same, with scores that are probabilities, or their natural logarithms
    multilabel            a probability for each of several labels that may all apply, after a sigmoid each
    value                 a number or an array, as a regression gives them: no confidence, except by a custom score
    boxes                 a detector's boxes, scores and classes (`edgeroute.confidence.detector_boxes`)
    ctc                   a number for each class and step [steps, classes], as models of speech and written text give them
    answers               (value, confidence), or (text, log-probabilities of its tokens), or a `Prediction` with the outputs too

Without a kind, outputs are read by their form: tuples as answers, integers and texts as labels, one float as a value, an output
of labels beside one of probabilities as `label+probabilities`, boxes beside scores as `boxes`, and other floats as logits. A
model whose first row is from 0 and sums to 1 gives probabilities from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from math import ceil, inf, log
from sys import float_info
from typing import Any, Final, Literal, get_args

import numpy as np

import edgeroute.confidence.output_forms_labels_and_comparison as forms
from edgeroute.confidence.detector_boxes import RULES, are_rows_of_boxes, boxes_without_batch, have_boxes, read_boxes
from edgeroute.confidence.scores import ARRAYS, NAN, ROWS, SCORES, SMALL, Array, Score, Unscored, quantile
from edgeroute.core.error_codes_and_texts import failure_text
from edgeroute.core.walk import Prediction, new
from edgeroute.errors import BadReply, EdgerouteError, ModelError, PolicyError, nearest
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.sanitised_logs_and_contained_errors import Failures

logger = logging.getLogger("edgeroute")
# Kinds of model outputs.
Kind = Literal["logits", "probabilities", "logprobs", "label+probabilities", "top", "top+probabilities", "multilabel", "value",
               "boxes", "ctc", "answers"]  # fmt: skip
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
CLASSES: Final = ("logits", "probabilities", "logprobs")  # kinds with a number for each class
# Doubts about numbers that are read as logits, and what to write.
MANY: Final = 'read as a logit for each class, by their form alone: give labels, or kind="logits", or "value" for a regression'
SHARES: Final = (
    'numbers from 0 to 1 that do not sum to 1, and are read as logits, by their form alone: write kind = "multilabel" in its '
    'card or in Python if each is the probability of a label, or "logits"'
)
SMALLEST: Final = float_info.min  # in place of a probability of 0, of which a logarithm is taken
SEVERAL: Final = ("label+probabilities", "top", "top+probabilities")  # kinds of several outputs that are numbers
LIMITED: Final = ("probabilities", "logprobs", "multilabel")  # kinds whose numbers have limits


def checked_kind(kind: str | None) -> str | None:
    """Return the kind if it is one of `KINDS`, or None.

    Raises:
        PolicyError: it is neither.
    """
    if kind is not None and kind not in KINDS:
        raise PolicyError(f"there is no kind of outputs {kind!r}: {nearest(kind, KINDS)}")
    return kind


def checked_rule(rule: str) -> str:
    """Return the rule if it is a rule for a detector that finds nothing.

    Raises:
        PolicyError: it is not.
    """
    if rule not in RULES:
        raise PolicyError(f"there is no none_found {rule!r}: {nearest(str(rule), RULES)}")
    return rule


def bounded(score: str | Score) -> bool:
    """Return True if confidences by this score are from 0 to 1. False for `energy`, and for functions."""
    return isinstance(score, str) and score != "energy"


class Reader:
    """Decoder of model outputs to predictions (value, confidence, outputs), which settles their kind by the first, and checks it.

    Args:
        score: a name from `SCORES`, or any `f(outputs of one input) -> float`.
        labels: class index -> value; None: the value is the index, or the label that the model gives.
        kind: kind of the outputs, one of `KINDS`; None: by their form, see above.
        name: name of the model or function, in messages.
        none_found: confidence of a picture in which a detector finds nothing: see `edgeroute.confidence.detector_boxes`.
        blank: class of the blank in outputs of the kind `ctc`; -1: the last.
        output_name: returns the name of the output that is read, once known; an embedding's has no classes. Empty: it has none.

    Raises:
        PolicyError: unknown score, kind or rule, or the score cannot be computed from that kind.
    """

    doubt = ""  # in words, of numbers that were read as logits, and may be an embedding or several labels; empty: none
    # Class of the exception for outputs that cannot be an answer: a fault of the model on the device.
    wrong: type[EdgerouteError] = ModelError

    def __init__(
        self, score: str | Score = "msp", *, labels: Iterable[Any] | None = None, kind: str | None = None,
        name: str = "the model", none_found: str = "defer", blank: int = 0, output_name: Callable[[], str] = str
    ) -> None:  # fmt: skip
        if isinstance(score, str) and score not in SCORES:
            raise PolicyError(f"there is no score {score!r}: expected one of {', '.join(SCORES)}, or a function of the outputs")
        self.score, self.name, self.blank, self.output_name = score, name, blank, output_name
        self._names = forms.Labels(labels, name)
        self.labels = self._names.labels
        self.none_found = checked_rule(none_found)
        row = score if isinstance(score, str) and score in ROWS else "msp"
        self._row, self._array = ROWS[row], ARRAYS[row]
        self._custom: Score | None = score if callable(score) else None
        self.failures = Failures()
        self._bounded = bounded(score)
        self.settle(checked_kind(kind))
        fast = kind in {None, "logits"} and isinstance(score, str) and self.labels is not None
        self._fast = len(self.labels or ()) if fast and 1 < len(self.labels or ()) <= SMALL else 0
        self._simple = 0  # number of classes of the usual case, known once outputs have been seen; 0: there is no usual case

    def settle(self, kind: str | None) -> None:
        """Set the kind of all later outputs, and what follows from it for reading them; None: by their form.

        Raises:
            PolicyError: the score cannot be computed from that kind.
        """
        if self.score == "energy" and kind in {*SEVERAL, *LIMITED}:
            given = "the best scores alone" if kind == "top" else "probabilities"
            raise PolicyError(f"the energy score needs logits of all classes, and this model gives {given}")
        self.kind = kind
        # True if the score takes logits; where the model gives probabilities, their logarithms serve as logits.
        self._of_logits = getattr(self.score, "of_logits", False)
        self._logits = kind in {"probabilities", "label+probabilities"} and self._of_logits
        self._special = {
            "label+probabilities": self._labelled_prediction, "value": self._value, "top": self._top,
            "top+probabilities": self._top, "boxes": self._decoded, "ctc": self._decoded, "multilabel": self._decoded,
        }.get(kind or "")  # fmt: skip
        # True once outputs have been checked for probabilities that are taken for logits.
        self._seen = kind not in {None, "logits"}

    def read_one(self, outputs: Any) -> Prediction:
        """Return the prediction for outputs of one input, with their batch axis of length 1.

        A detector's outputs for one picture may lack the batch axis. Without a kind, the first outputs may settle it.

        Raises:
            BadReply: the number of outputs differs from 1.
        """
        if self._simple and type(outputs) is np.ndarray and outputs.shape == (1, self._simple):  # the usual case
            row = outputs[0]
            z = row.tolist()
            top = max(z)
            if (sure := self._row(z, top)) == sure:  # false for NaN
                return new(Prediction, (self.labels[z.index(top)], sure, row))  # type: ignore[index]
        if type(outputs) is list and len(outputs) == 1:  # of a callable
            return self.read_answer(outputs[0])
        return self.read_many(outputs, 1)[0]

    def read_many(self, outputs: Any, count: int) -> list[Prediction]:
        """Return the predictions for outputs of `count` inputs along the first axis; of one picture, boxes may lack it.

        Raises:
            BadReply: the number of outputs differs.
        """
        if type(outputs) is np.ndarray and outputs.ndim and len(outputs) == count:  # the usual case
            return list(map(self.read_answer, outputs))
        if count == 1 and boxes_without_batch(self.kind, outputs):
            return [self.read_answer(outputs)]
        _check_count(outputs, count)
        return [self.read_answer(_row(outputs, i)) for i in range(count)]

    def read_answer(self, row: Any) -> Prediction:
        """Return the prediction for one input's outputs, without batch axis: array, list, number, or the first output by name.

        Takes (value, confidence) and a `Prediction` too. Raises BadReply, PolicyError or `wrong` for what cannot be an answer.
        """
        if self._special is not None:
            return self._special(row.outputs if type(row) is Prediction and type(row.outputs) is forms.ByClass else row)
        if type(row) is tuple:
            return self._pair(row)
        if type(row) is Prediction:
            value, sure, outputs = row
            return self._pair((value, sure), outputs)
        first = row
        if type(row) is not np.ndarray and isinstance(row, Mapping):  # the first saves a call of `abc`
            if (outputs := self._mapping(row)) is not None:
                return outputs
            first = next(iter(row.values()), None)
        z = first.tolist() if isinstance(first, np.ndarray) else first
        if not isinstance(z, list) or not 0 < len(z) <= SMALL or type(z[0]) is not float:
            return self._large(row, first)
        if z is first and not all(type(v) is float for v in z):  # a list may have anything in it
            return self._large(row, first)
        return self._classes(row, z, first)

    def _classes(self, row: Any, z: list[float], first: Any) -> Prediction:
        """Return the prediction for a number for each class, or for the only one.

        Numbers that cannot be of the kind, or NaN, give an `Unscored`; the first outputs are checked.
        """
        if not self._seen:
            self._check_first(z, first, row)
        kind = self.kind
        if len(z) == 1 and kind not in {*CLASSES, "multilabel"}:
            return self._regression(row, z[0])
        if kind in LIMITED and self._custom is None and (wrong := forms.out_of_range(kind, min(z), max(z), first)) is not None:
            best = z.index(max(z)) if len(z) > 1 else int(z[0] > 0.5)  # noqa: PLR2004 - the second of two classes
            return Prediction(self._names.at(best, max(len(z), 2)), wrong, row)
        if len(z) == 1:
            z = forms.binary(z[0], kind)
        elif kind == "probabilities":
            z = [log(p) if p > 0 else forms.TINY if p == 0 else NAN for p in z]
        top = max(z)
        sure = self._row(z, top) if self._custom is None else self._custom_score(z if self._logits else row)
        value = self._names.at(z.index(top), len(z))
        return Prediction(value, sure, row) if sure == sure else _unscored_prediction(value, sure, row, first)  # noqa: PLR0124 - NaN

    def _check_first(self, z: list[float], first: Any, row: Any) -> None:
        """Check the first outputs: probabilities become the kind, or log one warning if they are taken for logits.

        Marks the outputs as seen, and takes the fast path for arrays of one axis. Logs and stores a doubt about logits. Raises
        `wrong` for an embedding.
        """
        doubt = self.check_embedding(z, isinstance(row, Mapping) and not self.output_name()) if len(z) > 1 else ""
        likely = forms.looks_like_probabilities(z)
        if self.kind is None and not likely and forms.sum_to_one(z):  # perhaps after a softmax: the next row tells
            return
        slack = forms.SUM_SLACK if getattr(first, "dtype", None) == np.float16 else forms.SURE_SLACK
        if likely and self.kind is None and self.score != "energy" and abs(sum(z) - 1) < slack:
            logger.info("%s gives numbers from 0 that sum to 1: they are read as probabilities", self.name)
            self.settle("probabilities")
            return
        self._seen = True
        self._simple = self._fast if isinstance(first, np.ndarray) and first.ndim == 1 else 0
        if likely:
            logger.warning("%s", forms.probabilities_warning(self.name))
        elif self.kind is None and self._custom is None and len(z) > 1 and 0 < min(z) <= max(z) < 1:
            doubt = SHARES
        if doubt and not self.doubt and "logit" not in self.output_name().lower():
            self.doubt = doubt
            logger.warning("%s gives %s", self.name, doubt)

    def check_embedding(self, z: list[float] | None = None, is_named: bool = False) -> str:
        """Raise `wrong` if the output is an embedding by its name or numbers, without a kind, labels or a custom score.

        Return a doubt if it may be one, by how many numbers it has, unless a function has named it in a mapping (`is_named`).
        """
        if self.kind is not None or self.labels is not None or self._custom is not None:
            return ""
        name = self.output_name()
        if forms.is_embedding(name) or (z is not None and forms.has_length_1(z)):
            by = f"{name!r}, by its name" if forms.is_embedding(name) else "numbers with a norm of 1:"
            raise self.wrong(
                f'{self.name} gives {by} an embedding and not a number for each class: write kind = "value" in '
                'the policy or the output of its card; or "logits", if it is one'
            )
        many = z is not None and len(z) >= forms.LONG and not (is_named or forms.sum_to_one(z))
        return f"{len(z or ())} numbers, which are {MANY}" if many else ""

    def _large(self, row: Any, first: Any) -> Prediction:
        """Return the prediction for outputs that are no short row of floats: boxes, labels, a number, or a long row of classes.

        Empty outputs, other shapes and types are the value themselves, without confidence unless by a custom score. Empty outputs
        beside labels raise BadReply.
        """
        array = forms.as_array(first)
        if boxes_without_batch(self.kind, first) or (self.kind is None and are_rows_of_boxes(array, self.labels)):
            return self._decoded(first)
        array = forms.along_one_axis(array, self.kind if self.kind in CLASSES else None) if array.dtype.kind == "f" else array
        if array.dtype.kind in "biuUS" and not (self.kind in CLASSES and array.ndim == 1 and array.dtype.kind in "biu"):
            return self._label(row, first, array)
        if not array.size and self.labels is not None:
            raise BadReply(f"0 outputs, but {len(self.labels)} labels: these outputs are not this model's")
        if array.ndim == 0 and array.dtype.kind == "f":
            return self._regression(row, float(array)) if self.kind not in CLASSES else self._classes(row, [float(array)], first)
        if array.ndim != 1 or array.dtype.kind not in "fiub" or not array.size:
            # not a classifier's outputs: the value is the raw output, and only a custom score, or those of its parts, apply
            return Prediction(row, self._custom_score(row) if self._custom is not None else forms.least_score(row), row)
        if array.dtype.name in {"int8", "uint8"} and self.kind != "probabilities" and self._custom is None:
            value = self._names.at(int(array.argmax()), array.size) if array.size > 1 else None
            return Prediction(value, Unscored(forms.UNSCALED), row)
        if len(array) <= SMALL:
            return self._classes(row, [float(v) for v in array.tolist()], first)
        if not self._seen:
            self._check_first([float(v) for v in array.tolist()], first, row)
        if self._custom is not None and not self._logits:
            sure = self._custom_score(row)
        elif self._custom is None and (wrong := forms.out_of_range(self.kind, array.min(), array.max(), array)) is not None:
            sure = wrong
        else:
            with np.errstate(all="ignore"):
                z = np.log(array) if self.kind == "probabilities" else array
                sure = float(self._array(z)) if self._custom is None else self._custom_score(z)
        value = self._names.at(int(array.argmax()), array.size)
        return Prediction(value, sure, row) if sure == sure else _unscored_prediction(value, sure, row, array)  # noqa: PLR0124 - NaN

    def _regression(self, row: Any, value: float) -> Prediction:
        """Return the prediction for one float: a regression's value, without confidence unless by a custom score.

        Raise `wrong` if there are labels.
        """
        if self.labels is not None:
            raise self.wrong(
                f"{self.name} gives one number, and there are {len(self.labels)} labels. If it is a binary classifier write "
                'kind = "probabilities" (after the sigmoid) or "logits" (before it), and two labels; if it is a value, no labels'
            )
        return Prediction(value, self._custom_score(row), row)

    def _label(self, row: Any, first: Any, array: Array) -> Prediction:
        """Return the prediction for integers, bools and texts: labels, which are never taken for scores.

        Several are the value as they are; raises `wrong` for several integers where there are labels but no custom score.
        """
        sure = self._custom_score(row)
        if array.size != 1:
            if self.labels is not None and array.dtype.kind in "biu" and self._custom is None:
                raise self.wrong(
                    f"{self.name} gives {array.size} integers, which are read as labels and never as scores; "
                    'if they are one for each class, write kind = "logits" or "probabilities"'
                )
            return Prediction(row, sure, row)
        as_given = array.ndim == 0 and not hasattr(first, "dtype") and self.labels is None
        return Prediction(row if as_given else self._names.named(array.reshape(-1)[0].item()), sure, row)

    def _value(self, row: Any) -> Prediction:
        """Return the prediction for a regression: a float if it is one number, else the array; a tuple is (value, confidence).

        Without confidence unless by a custom score.
        """
        first = next(iter(row.values()), None) if isinstance(row, Mapping) else row
        if type(first) is tuple:
            return self._pair(first)
        array = forms.as_array(first)
        value = array.reshape(-1)[0].item() if array.size == 1 and array.dtype.kind in "fiub" else first
        return Prediction(value, self._custom_score(row), row)

    def _mapping(self, row: Mapping[Any, Any]) -> Prediction | None:
        """Return the prediction for named outputs whose names or forms tell their kind; None to read the first output.

        These are boxes with scores, classes with probabilities, tokens with log-probabilities if that is the kind, and a label
        with probabilities.
        """
        if self.kind is None and have_boxes(row):
            return self._decoded(row)
        if self.kind is None and self._custom is None and (sure := forms.least_score(row)) is not None:
            return Prediction(row, sure, row)
        if self.kind in {None, "probabilities"} and len(row) > 1 and forms.is_by_class(row):
            p = list(row.values())
            if self.kind is not None or forms.sum_to_one(p) or (type(row) is forms.ByClass and not 0 < sum(p) < inf):
                return self._by_class(row, row)
            if type(row) is forms.ByClass or (not self._seen and self._custom is None and 0 <= min(p) <= max(p) <= 1):
                raise self.wrong(
                    f"{self.name} gives numbers from 0 to 1 by name, which do not sum to 1: write CallableModel(model, "
                    'kind="multilabel") for several labels at once, else "probabilities", or "value" for the first'
                )
            self._seen = True  # no probabilities: a later row may be from 0 to 1 by chance
            return None
        if self.kind == "logprobs" and (tokens := forms.tokens_and_logprobs(row)) is not None:
            value, logprobs = tokens
            wrong = forms.out_of_range("logprobs", min(logprobs, default=0), max(logprobs, default=0), logprobs)
            sure = wrong or quantile(logprobs)
            return Prediction(forms.plain(value), sure if self._custom is None else self._custom_score(row), row)
        parts = forms.label_and_probabilities(row) if self.kind is None and len(row) > 1 else None
        known = parts is not None and (isinstance(parts[1], Mapping) or forms.sum_to_one(forms.as_array(parts[1]).tolist()))
        return self._labelled_prediction(row) if known else None

    def _labelled_prediction(self, row: Any) -> Prediction:
        """Return the prediction for a label and the probabilities of all classes; the label is the value.

        Probabilities out of range give an `Unscored`. Raises `wrong` for outputs without a label or probabilities, BadReply for a
        label that is none of the labels.
        """
        parts = forms.label_and_probabilities(_by_name(row))
        if parts is None:
            form = forms.form_of(row)
            raise self.wrong(f"{self.name} gives {form}, and its kind is label+probabilities: set output or another kind")
        label, p = parts
        if self.labels is not None and len(self.labels) < len(p):
            self._names.at(0, len(p))
        read = self._by_class(p, row) if isinstance(p, Mapping) else self._from_probabilities(forms.as_array(p), row)
        return Prediction(self._names.named(forms.plain(label)), read.confidence, row)

    def _top(self, row: Any) -> Prediction:
        """Return the prediction for numbers of the best classes and their scores: the class of the best score.

        If the scores are probabilities, what they lack of the sum of 1 belongs to other classes, none of which is likelier.
        Outputs of another form are a value. Raises BadReply if there are labels, and none for that class.
        """
        arrays = {key: np.atleast_1d(forms.along_one_axis(forms.as_array(v), self.kind)) for key, v in _by_name(row).items()}
        parts = forms.tokens_and_logprobs(arrays)
        if parts is None or parts[0].dtype.kind not in "iu" or not parts[0].size:
            return Prediction(row, self._custom_score(row), row)
        (best, z), count = parts, len(self.labels or ())
        if not np.isfinite(z.max()):
            return _unscored_prediction(None, NAN, row, z)
        place = int(best[z.argmax()])
        value = self._names.at(place, count if 0 <= place < count else place + 1)
        p = np.exp(z) if z.max() <= 0 else z
        if self.kind == "top" or self._custom is not None:
            logits = z if self.kind == "top" else np.log(np.maximum(p, SMALLEST))
            return Prediction(value, self._custom_score(logits.tolist() if self._of_logits else row), row)
        if not z.any():  # probabilities that were rounded to 0; or the logarithm of 1, which looks alike
            return Prediction(value, Unscored("its best score is 0, which may be a probability or a logarithm"), row)
        rest, least = 1 - float(p.sum()), max(float(np.sort(p)[-2:][0]), forms.SUM_SLACK)
        others = ceil(min(rest, 1) / least) if rest > forms.SUM_SLACK else 0
        return self._from_probabilities(np.append(p, np.full(others, rest) / others), row)._replace(value=value)

    def _from_probabilities(self, p: Array, row: Any) -> Prediction:
        """Return the prediction for probabilities [classes], with the class number as value.

        A single one is that of class 1 of two. Any out of range get an `Unscored`, unless the score is custom.
        """
        wrong = forms.out_of_range("probabilities", p.min(), p.max(), p) if p.size and self._custom is None else None
        if wrong is not None:
            return Prediction(int(p.argmax()), wrong, row)
        z = [log(v) if v > 0 else forms.TINY if v == 0 else NAN for v in p.tolist()]
        if len(z) == 1:
            z = forms.binary(float(p[0]), "probabilities")
        sure = self._row(z, max(z)) if self._custom is None else self._custom_score(z if self._of_logits else row)
        return Prediction(z.index(max(z)), sure, row)

    def _by_class(self, p: Mapping[Any, Any], row: Any) -> Prediction:
        """Return the prediction for a mapping from class to probability: the most likely class, as a label, and the confidence.

        Raises BadReply if it is none of the labels.
        """
        names = list(p)
        read = self._from_probabilities(np.array([float(v) for v in p.values()]), row)
        return Prediction(self._names.named(forms.plain(names[read.value])), read.confidence, row)

    def _decoded(self, row: Any) -> Prediction:
        """Return the prediction for a detector's outputs, several labels or a sequence, by the kind; None: boxes.

        Of several labels a single probability is a binary classifier's, and outputs of another form are a value.
        """
        first = next(iter(row.values()), None) if isinstance(row, Mapping) else row

        def wrong(text: str) -> Exception:
            """Return the exception for outputs that cannot be read."""
            return self.wrong(f"{self.name} {text}")

        if self.kind == "ctc":
            value, sure = forms.read_sequence(first, self._names, self.blank, wrong)
        elif self.kind == "multilabel":
            named = forms.is_by_class(row) and len(row) > 1  # of an estimator
            p = np.array([*row.values()]) if named else forms.along_one_axis(forms.as_array(first))
            if p.size == 1 and p.dtype.kind == "f":
                return self._classes(row, p.reshape(-1).tolist(), first)
            if p.ndim != 1 or p.dtype.kind != "f" or not p.size:
                return self._value(row)
            value, sure = forms.read_labels(p, forms.Labels([*row], self.name) if named and self.labels is None else self._names)
        else:
            value, sure = read_boxes(row, self.labels, self.none_found, wrong)
        return Prediction(value, self._custom_score(row) if self._custom is not None else sure, row)

    def _pair(self, row: tuple[Any, ...], outputs: Any = None) -> Prediction:
        """Return the prediction for (value, confidence), read from `outputs`; None: from the pair itself.

        A custom score overrides the given confidence. Raises PolicyError for a tuple of another length, `wrong` for an impossible
        confidence, and BadReply for a value that is none of the labels.
        """
        if len(row) != 2:  # noqa: PLR2004 - a pair
            raise PolicyError(f"{self.name} gives (value, confidence) or a number for each class, not a tuple of {len(row)}")
        value, sure = row
        if hasattr(type(value), "__array__") and getattr(value, "ndim", None) == 0:  # of numpy, torch and others
            value = forms.as_array(value).item()
        value = value if self.labels is None else self._names.meant(value)
        outputs = row if outputs is None else outputs
        if self._custom is not None:
            return Prediction(value, self._custom_score(outputs), outputs)
        if (type(sure) is float and 0.0 <= sure <= 1.0) or isinstance(sure, Unscored):
            return new(Prediction, (value, sure, outputs))
        sure, wrong = forms.confidence(sure, bounded=self._bounded)
        if wrong:
            raise self.wrong(f"{self.name} gives {wrong}")
        return Prediction(value, sure, outputs)

    def _custom_score(self, outputs: Any) -> float | None:
        """Return the custom score; None if there is none, or it is None.

        If it fails, log that and return an `Unscored`: there is an answer all the same.
        """
        if self._custom is None:
            return None
        try:
            sure = call_contained(self._custom, outputs)
            return None if sure is None else float(sure)
        except Exception as e:  # noqa: BLE001 - it is logged, and said in the reason
            self.failures.log("the score", e)
            return Unscored(f"the score failed: {failure_text(e)}")


def _unscored_prediction(value: Any, sure: float | None, row: Any, numbers: Any) -> Prediction:
    """Return the prediction of a classifier whose confidence is NaN.

    Without a value, and with an `Unscored`, if its numbers are not finite.
    """
    if isinstance(sure, Unscored) or np.isfinite(forms.as_array(numbers)).all():
        return Prediction(value, sure, row)
    return Prediction(None, Unscored("its outputs hold NaN or infinity, or are all minus infinity"), row)


def _row(outputs: Any, i: int) -> Any:
    """Return the outputs of input number i. A number without axes is the only input's."""
    if type(outputs) is dict:
        return {name: _row(array, i) for name, array in outputs.items()}
    return outputs[i] if getattr(outputs, "ndim", 1) else outputs


def _by_name(row: Any) -> Mapping[Any, Any]:
    """Return several outputs by their names, or by their numbers if they have none; {} for a single one."""
    return row if isinstance(row, Mapping) else dict(enumerate(row if forms.several(row) else ()))


def _check_count(outputs: Any, count: int) -> None:
    """Raise BadReply for outputs whose first axis does not count the inputs: a row of them would belong to no input."""
    parts = outputs.values() if type(outputs) is dict else (outputs,)
    try:
        length = min(len(part) if getattr(part, "ndim", 1) else 1 for part in parts)  # a number without axes is one input's
        if length == count:
            return
        description = f"{length} outputs"
    except TypeError:  # an array that has no axes
        description = "an output without axes"
    raise BadReply(
        f"{count} inputs gave {description}: where another axis than the first counts the inputs, or none, the model's card "
        'says so, as in "output": {"batch": "none"}'
    )
