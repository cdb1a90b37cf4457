"""Evaluation of a threshold (`Evaluation`) on examples (`Examples`): accuracy, deferral, latency and cost, with intervals.

Shares are 0..1. Doubts about the cloud as the reference, and score bins for the calibration error, are here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from itertools import chain, pairwise
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeroute.confidence.binomial_tests import RISK, Floats, Ints, upper_bound
from edgeroute.confidence.certificate import Certificate
from edgeroute.confidence.output_forms_labels_and_comparison import Labels, equal, form_of, label_form, labels_by_form, plain
from edgeroute.confidence.output_reader import Reader
from edgeroute.core.error_codes_and_texts import error_text
from edgeroute.core.policy_egress_and_options import Terms
from edgeroute.errors import BadInput
from edgeroute.tools.measure.deferral_curve import Area, deferral_curve, measured_area
from edgeroute.tools.measure.independence_and_overlap import overlap_beyond_chance

# Examples: answers of edge and cloud to the same inputs.

Bools = NDArray[np.bool_]


class Examples(NamedTuple):
    """Answers, labels, latency and cost of n inputs, in order."""

    score: Floats  # [n], the edge's confidence by the policy's score; NaN: none
    edge: list[Any]  # the edge's answers: labels, or class indices if the model has no labels
    cloud: list[Any] | None  # the cloud's answers; None: not called
    labels: list[Any] | None  # ground truth, in the same form; None: unknown
    outputs: Floats | None = None  # [n, classes], the edge's raw outputs; None: not rows of equal length
    edge_s: Floats | None = None  # [n], edge latency, seconds; NaN, or None for all: not measured
    cloud_s: Floats | None = None  # [n], cloud latency, seconds; NaN, or None for all: not measured
    sent_bytes: int = 0  # total bytes of request bodies to the cloud
    received_bytes: int = 0
    usd: float = 0.0  # total cost of the cloud calls by the endpoint's terms, dollars
    groups: list[Any] | None = None  # scene, user or session of each; None: they are independent
    notes: tuple[str, ...] = ()  # notes on answers in another form than the labels
    numbers: Sequence[int] | None = None  # index of each among the inputs; None: none is left out

    @property
    def edge_correct(self) -> Bools | None:
        """[n], True where the edge's answer is the label; None: no labels."""
        return None if self.labels is None else _same(self.edge, self.labels)

    @property
    def cloud_correct(self) -> Bools | None:
        """[n], True where the cloud's answer is the label; None: no labels, or no cloud answers."""
        return None if self.labels is None or self.cloud is None else _same(self.cloud, self.labels)

    @property
    def agree(self) -> Bools | None:
        """[n], True where edge and cloud agree; None: no cloud answers."""
        return None if self.cloud is None else _same(self.edge, self.cloud)


def _same(left: list[Any], right: list[Any]) -> Bools:
    """Return [n], True where two answers are equal by `is_right`; raise BadInput if they cannot be compared."""
    return np.array([is_right(a, b) for a, b in zip(left, right, strict=True)], bool)


def is_right(answer: Any, label: Any) -> bool:
    """Return True if an answer equals a label in the same spelling; for arrays: all elements, and the shapes.

    Mappings, lists and tuples are compared by their parts. Raises BadInput if they cannot be compared.
    """
    if type(answer) in _PLAIN and type(label) in _PLAIN:
        return bool(answer == label)
    try:
        return equal(answer, label)
    except Exception as e:
        raise BadInput(
            f"answers cannot be compared, {form_of(answer)} with {form_of(label)} ({error_text(e)}): let the model answer with "
            "texts, numbers, arrays, or mappings and lists of them"
        ) from e


def check_comparable(answers: Sequence[Any]) -> None:
    """Raise BadInput if answers cannot be compared, as far as one of each type shows, with a copy of itself."""
    for answer in {type(answer): answer for answer in answers}.values():
        try:
            copied = deepcopy(answer)
        except Exception:  # noqa: BLE001, S112 - of any library; the cloud's answers will show it
            continue
        is_right(answer, copied)


# End of a note on labels that were known before, without their number.
EXTENDED = (
    " were known before: if examples were added because of an earlier result, this is a further test with a risk of its own; "
    "valid are a number of examples set beforehand, a part of the risk for each result (sure=), and audits, at every look"
)


def is_missing(label: Any, *, blank: bool = False) -> bool:
    """Return True for None, NaN, and values as pandas.NA that are neither true nor false; with `blank` for empty text, too."""
    try:
        bool(label)
    except TypeError:
        return True
    except Exception:  # noqa: BLE001 - of several elements, in the words of any library
        return False
    unknown = label is None or (isinstance(label, float | np.floating) and bool(np.isnan(label)))
    return unknown or (blank and is_blank(label))


def is_blank(label: Any) -> bool:
    """Return True for a text without a character, but for white space."""
    return isinstance(label, str | bytes) and not label.strip()


def answer_names(reader: Reader, answers: Sequence[Any] = ()) -> Sequence[Any] | None:
    """Return the names of the classes where each answer is one; None: there are none, or answers are lists or texts of them."""
    made_of_them = reader.kind in {"boxes", "multilabel", "ctc"} or any(isinstance(answer, list) for answer in answers)
    return None if made_of_them else reader.labels


class LabelReader:
    """Converter of labels to the values that a model with these class names returns.

    A number is the class of that name, as 5 is "5", and only without one the class at that index. Labels that are read by name
    though their index is another class, and others of the same examples that can only be indices, do not go together.

    Args:
        names: names of the classes; None: there are none, or answers are made of them.
    """

    def __init__(self, names: Sequence[Any] | None) -> None:
        self.names, self._known = names, Labels(names, "the edge model")
        self._values: dict[tuple[type, Any], Any] = {}  # of each number so far
        self._named: tuple[Any, str] | None = None  # a label read by its name that would be another class by its index
        self._index: tuple[Any, str] | None = None  # a label that can only be an index
        self._only_name = False  # True if some number is no index

    def __call__(self, label: Any, i: int) -> Any:
        """Return the value for label number `i`; without names, and for lists, the label itself, a whole float as int.

        Raises BadInput if it is not a class, missing or NaN, or if labels before it were read in the other way.
        """
        if is_missing(label):
            raise BadInput(f"label {i} is {label!r}: give each input a label, or none")
        names = self.names
        if names is None or isinstance(label, list):
            return int(label) if isinstance(label, float | np.number) and _is_whole(label) else label
        if isinstance(label, str | bytes):
            value = self._known.same(label)
            if value not in names:
                raise BadInput(f"label {i} is {label!r}, and the edge model answers {', '.join(map(str, names))}")
            form = label_form(label) or ""
            if form.isdecimal() and not self._is_index_of(int(form[:20]), value):
                self._note_reading(i, named=(label, repr(value)))
            return value
        if not isinstance(label, int | float | np.number):
            raise BadInput(f"label {i} is {label!r}, and the edge model's classes are numbers 0 to {len(names) - 1}")
        key = type(label), label
        if key not in self._values:
            self._values[key] = self._of_number(label, i)
        return self._values[key]

    def notes(self) -> list[str]:
        """Return a note if numbers were read by name, and could be indices of other classes."""
        if self._named is None or self._only_name or not self._values:
            return []
        number, name = self._named
        text = (
            f"labels are numbers that are names of classes and also indices of others: {number!r} is taken for the class {name}"
        )
        return [f"{text}; where indices are meant, give the names"]

    def _of_number(self, label: Any, i: int) -> Any:
        """Return the value that a number means, by name or by index; raise BadInput as `__call__`."""
        names = self.names or ()
        number, is_index = plain(label), _is_whole(label) and 0 <= label < len(names)
        value = self._known.same(number)
        if value in names:
            self._only_name = self._only_name or not is_index
            if not (is_index and self._is_index_of(int(number), value)):
                self._note_reading(i, named=(number, repr(value)))
            return value
        if not is_index:
            raise BadInput(f"label {i} is {label!r}, and the edge model's classes are numbers 0 to {len(names) - 1}")
        self._note_reading(i, index=(number, repr(names[int(number)])))
        return names[int(number)]

    def _is_index_of(self, index: int, value: Any) -> bool:
        """Return True if the class at an index has this name."""
        names = self.names or ()
        return index < len(names) and label_form(names[index]) == label_form(value)

    def _note_reading(self, i: int, named: tuple[Any, str] | None = None, index: tuple[Any, str] | None = None) -> None:
        """Store how label number `i` was read; raise BadInput if labels were read by name, and others can only be indices."""
        self._named, self._index = self._named or named, self._index or index
        if self._named is not None and self._index is not None:
            raise BadInput(
                f"label {i}: some labels are names of classes ({self._named[0]!r}, whose index is another), and others can only "
                f"be indices ({self._index[0]!r}, of the class {self._index[1]}): write each as the name of its class"
            )


def label_values(labels: Sequence[Any], names: Sequence[Any] | None, n: int, notes: list[str] | None = None) -> list[Any]:
    """Convert n labels to the values a model with these class names returns, by `LabelReader`; append its notes to `notes`.

    Raises BadInput if there are not n labels, or one is not a class, missing or NaN, or may be a name or an index.
    """
    if len(labels) != n:
        raise BadInput(f"there are {n} inputs and {len(labels)} labels")
    read = LabelReader(names)
    values = [read(label, i) for i, label in enumerate(labels)]
    if notes is not None:
        notes += read.notes()
    return values


def _is_whole(number: Any) -> bool:
    """Return True if a number is whole; infinities are not."""
    return bool(-np.inf < number < np.inf and number == int(number))


class LabelMatcher:
    """Replacement of answers and labels by the first spelling of their form; others are unchanged.

    Labels have one form if they differ in spelling alone, as 1, 1.0 and "1". A form that several of the known labels have, as "A"
    and "a", tells none of them: these match only as they are spelt, but for white space. Of unknown names, several spellings are
    several labels if two sides agree on them other than by chance.

    Args:
        names: names of the edge's classes, which are the known labels and the spellings; None: unknown.
        edge: [n], the edge's answers.
        cloud: [n], the cloud's answers; None: not called. Without names, the edge's, and then these, are the spellings.
        labels: [n], ground truth, the known labels if there are no names; None: unknown, so what both edge and cloud answer is.

    Attributes:
        ambiguous: form -> spellings, of several known labels.
    """

    def __init__(
        self, names: Sequence[Any] | None, edge: Sequence[Any], cloud: Sequence[Any] | None, labels: Sequence[Any] | None = None
    ) -> None:
        known, answers = names if names is not None else labels, [edge] if cloud is None else [edge, cloud]
        spelt = set[str].intersection(*map(_spellings, answers)) if known is None else _spellings(known)
        by_form: dict[str | None, list[str]] = {}
        for spelling in sorted(spelt):
            by_form.setdefault(label_form(spelling), []).append(spelling)
        pairs = [] if names is not None else [answers] if labels is None else [[labels, side] for side in answers]
        apart = names is not None or any(_agree_on_spelling(*pair) for pair in pairs if len(pair) > 1)
        self.ambiguous = {form: spellings for form, spellings in by_form.items() if apart and len(spellings) > 1}
        self._by_key: dict[str | None, Any] = {} if names is None else labels_by_form(names)
        if names is None:
            for answer in chain(*answers):
                self._by_key.setdefault(self.key(answer), answer)
            self._by_key.pop(None, None)

    def __call__(self, value: Any) -> Any:
        """Return the first spelling of the value's form, or the value."""
        return self._by_key.get(self.key(value), value)

    def key(self, value: Any) -> str | None:
        """Return what is compared of a label: its form, or its spelling if labels share the form; None: it is no label."""
        form = label_form(value)
        return _spelling(value) if form in self.ambiguous else form


def _spelling(value: Any) -> str:
    """Return the text of a label without outer or repeated white space."""
    value = plain(value)
    text = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes | bytearray) else str(value)
    return " ".join(text.split())


def _agree_on_spelling(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Return True if two sides that have several spellings of a form agree on the spelling other than by chance.

    Then these are different labels; if they were ways to write one, it would be chance, within three standard deviations.
    """
    by_form: dict[str, list[tuple[str, str]]] = {}
    for a, b in zip(one, other, strict=True):
        form = label_form(a)
        if form is not None and form == label_form(b):
            by_form.setdefault(form, []).append((_spelling(a), _spelling(b)))
    count, equal, expected = 0, 0, 0.0
    for pairs in by_form.values():
        left, right = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
        if min(len(left), len(right)) > 1:
            count, equal = count + len(pairs), equal + sum(a == b for a, b in pairs)
            expected += sum(times * right[spelling] for spelling, times in left.items()) / len(pairs)
    return abs(equal - expected) > 3 * sqrt(expected * (1 - expected / max(count, 1)))


def _spellings(values: Iterable[Any]) -> set[str]:
    """Return the spellings of those values that are labels."""
    return {_spelling(value) for value in values if label_form(value) is not None}


_PLAIN = (str, int, bool)  # types whose `==` is a bool. Anything else may be an array, and takes ten times as long.


# Doubts about the cloud as the reference of a guarantee: a loss against a cloud that is wrong is easily kept.

COMPARED = 20  # least number of examples for a doubt


def reference_doubts(edge: Floats | Bools, cloud: Floats | Bools, groups: Ints | None = None) -> list[str]:
    """Return warnings about a cloud that is never right, on the same examples as the edge, or less often beyond noise.

    The noise is that of a sign test, 97.5 %. Empty if there is nothing to warn of.

    Args:
        edge: [n], correctness of the edge, 0..1.
        cloud: [n], correctness of the cloud.
        groups: [n], numbers of groups, each of which counts once; None: each example counts.
    """
    difference = cloud.astype(np.float64) - edge
    if groups is not None:
        difference = np.bincount(groups, difference).astype(np.float64)
    better, worse = int(np.count_nonzero(difference > 0)), int(np.count_nonzero(difference < 0))
    if len(cloud) >= COMPARED and not cloud.any():
        return [f"the cloud is right in none of the {len(cloud):,} examples: is the same compared with the same?"]
    wrong = int(np.count_nonzero(cloud < 1))
    if wrong >= COMPARED and (edge == cloud).all():
        return [f"edge and cloud are wrong on the same {wrong:,} examples, and right on all others: are they one model?"]
    if better < worse and upper_bound(better, better + worse, 0.025) < 0.5:  # noqa: PLR2004 - half of those that differ
        rates = f"{cloud.mean() * 100:.1f} % right, the edge {edge.mean() * 100:.1f} %"
        return [f"the cloud is worse than the edge: {rates}. A loss against it guarantees little: check what it answers"]
    return []


def chance_doubts(examples: Examples) -> list[str]:
    """Return a warning about labels of one class, or a cloud that is no better than its answers, shuffled (Cohen's kappa <= 0).

    Empty without labels or cloud answers, and for few examples.
    """
    right = examples.cloud_correct
    if right is None or len(right) < COMPARED:
        return []
    labels, answers = (Counter(map(str, values or ())) for values in (examples.labels, examples.cloud))
    chance = sum(count * answers[label] for label, count in labels.items()) / len(right) ** 2
    if len(labels) == 1:
        return [f"all {len(right):,} labels are the same: nothing is known of inputs with another"]
    if right.mean() > chance + 1e-9:
        return []
    rates = f"{right.mean() * 100:.1f} % right, and its answers at random {chance * 100:.1f} %"
    return [f"the cloud is no better than chance: {rates}"]


# Proportions with exact confidence intervals, score bins, and expected calibration error.


class Share(NamedTuple):
    """Proportion, `found` of `of`, with its 95 % confidence interval low..high (Clopper and Pearson, 1934)."""

    found: int
    of: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """Proportion, 0..1; NaN for 0 of 0."""
        return self.found / self.of if self.of else float("nan")


def share(flags: Bools, risk: float = RISK) -> Share:
    """Return the proportion of true values, with its two-sided interval at level 1 - risk; 0 to 1 for none."""
    count, of = int(np.count_nonzero(flags)), flags.size
    return Share(count, of, 1 - upper_bound(of - count, of, risk / 2), upper_bound(count, of, risk / 2))


class Bin(NamedTuple):
    """Bin of examples with similar scores."""

    score: float  # mean score
    right: Share


def bins(score: Floats, right: Bools, most: int = 15) -> list[Bin]:
    """Return up to `most` equal-mass bins, by ascending score. Tied scores share a bin; NaN is excluded; [] without scores."""
    known = ~np.isnan(score)
    score, right = score[known], right[known]
    order = np.argsort(score, kind="stable")
    score, right = score[order], right[order]
    cuts = np.searchsorted(score, score[np.arange(1, most) * score.size // most]) if score.size else np.empty(0, int)
    parts = np.unique(np.concatenate([[0], cuts, [score.size]]))
    return [Bin(float(score[i:j].mean()), share(right[i:j])) for i, j in pairwise(parts)]


def calibration_error(groups: list[Bin]) -> float:
    """Return the expected calibration error (ECE): size-weighted mean of abs(score - accuracy); NaN without bins."""
    n = sum(part.right.of for part in groups)
    return sum(part.right.of * abs(part.score - part.right.value) for part in groups) / n if n else float("nan")


Line = tuple[Floats, Floats]  # deferral rate [k], ascending, and accuracy [k]
QUANTILES = (0.5, 0.9, 0.99)


class Names(NamedTuple):
    """Names of the parts of an evaluation. Empty or None: unknown."""

    edge: str = ""  # edge model
    cloud: str = ""  # Endpoint
    score: str = ""
    policy: str = ""  # policy file
    data: str = ""  # examples file
    date: str = ""  # date of the measurement, YYYY-MM-DD
    edge_bytes: int | None = None  # size of the model file


class Class(NamedTuple):
    """Results of one class. None: unknown."""

    name: str
    n: int
    edge: float | None  # accuracy of the edge alone; without labels, here and below: agreement with the cloud
    cloud: float | None
    cascade: float | None
    deferral: float


class Cost(NamedTuple):
    """Cost of one input on each side."""

    what: str  # seconds, usd or joules
    edge: float | None  # None: unknown
    cloud: float

    @property
    def break_even(self) -> float | None:
        """Deferral rate below which the cascade costs less than the cloud alone; 0 or less: never; None: unknown.

        The edge is always paid, the cloud only when deferred: 1 - edge / cloud.
        """
        return None if self.edge is None or self.cloud <= 0 else 1 - self.edge / self.cloud

    def together(self, deferral: float) -> float | None:
        """Return the mean cost of one input of the cascade at this deferral rate; None if the edge's is unknown."""
        return None if self.edge is None else self.edge + deferral * self.cloud


class Evaluation(NamedTuple):
    """Examples evaluated with a threshold: accuracy of each side and of the cascade, deferrals, curve, classes, latency, cost."""

    examples: Examples
    threshold: float  # edge answers with at least this score are accepted; inf: every input is deferred
    thresholds: Mapping[str, float] = {}  # predicted class -> its own threshold; empty: one for all
    certificate: Certificate | None = None  # source of the thresholds; None: none
    uncalibrated: str = ""  # reason why the certificate does not apply to this setup; empty: it applies
    names: Names = Names()
    terms: Terms = Terms()  # prices of the cloud
    edge_usd: float | None = None  # cost of an input on the edge, dollars; None: unknown
    edge_joules: float | None = None
    accept_unsure: bool = False  # True accepts an answer without a score
    # Results of the arms of the router's trials in operation so far; empty: there are none.
    arms: tuple[Mapping[str, Any], ...] = ()
    # Threshold of each of several edge models together, whose score is 1 where one accepts; empty: one edge model.
    ladder: tuple[float, ...] = ()

    @property
    def n(self) -> int:
        """Number of examples, at least one."""
        return len(self.examples.edge)

    @property
    def labelled(self) -> bool:
        """True if there are labels. Without labels, correct means: agrees with the cloud."""
        return self.examples.labels is not None

    @property
    def accepted(self) -> Bools:
        """[n], True where the edge's answer is accepted: by the threshold of its class, if it has one, else by the general one.

        An answer without a score is accepted only with `accept_unsure`.
        """
        score = self.examples.score
        least: Any = self.threshold
        if self.thresholds:
            least = np.array([self.thresholds.get(str(value), self.threshold) for value in self.examples.edge])
        return np.where(np.isnan(score), self.accept_unsure, score >= least)

    @property
    def deferral(self) -> Share:
        """Deferral rate with its confidence interval."""
        return share(~self.accepted)

    @property
    def edge_right(self) -> Bools | None:
        """[n], correctness of the edge; None: neither labels nor cloud answers."""
        return self.examples.edge_correct if self.labelled else self.examples.agree

    @property
    def cloud_right(self) -> Bools | None:
        """[n], correctness of the cloud; None: no cloud answers."""
        if self.examples.cloud is None:
            return None
        return self.examples.cloud_correct if self.labelled else np.ones(self.n, bool)

    @property
    def cascade_right(self) -> Bools | None:
        """[n], correctness of the cascade; None: unknown."""
        edge, cloud = self.edge_right, self.cloud_right
        return None if edge is None or cloud is None else np.where(self.accepted, edge, cloud)

    def accuracy(self) -> dict[str, Share]:
        """Return the accuracy of edge, cloud, cascade (both together) and accepted edge answers, without unknown ones."""
        edge, accepted = self.edge_right, self.accepted
        correctness = {
            "edge": edge,
            "cloud": self.cloud_right,
            "cascade": self.cascade_right,
            "accepted": None if edge is None else edge[accepted],
        }
        return {name: share(right) for name, right in correctness.items() if right is not None and right.size}

    def curve(self) -> Line | None:
        """Return accuracy over deferral rate for every global threshold; None if correctness is unknown.

        Without the cloud: accuracy of the answers not deferred (selective accuracy).
        """
        edge, cloud, score = self.edge_right, self.cloud_right, self.examples.score
        if edge is None:
            return None
        if cloud is not None:
            full_curve = deferral_curve(score, edge, cloud)
            return full_curve.deferred, full_curve.accuracy
        order = np.argsort(np.where(np.isnan(score), -np.inf, score), kind="stable")
        rising = score[order]
        first = np.flatnonzero(np.append(True, (rising[1:] != rising[:-1]) & ~np.isnan(rising[1:])))
        accepted = self.n - first
        return first / self.n, edge[order][::-1].cumsum()[accepted - 1] / accepted

    def area(self) -> Area | None:
        """Return the area under the score's deferral curve, 0 random and 1 an oracle; None if correctness is unknown.

        None also for several edge models together. Without the cloud it is measured by the edge's errors.
        """
        edge, cloud = self.edge_right, self.cloud_right
        if edge is None or self.ladder:
            return None
        return measured_area(self.examples.score, edge, np.ones(self.n) if cloud is None else cloud)

    @property
    def seen_before(self) -> float:
        """Estimate of the share of examples that the certificate was calibrated on, 0..1: they are no evidence."""
        made = self.certificate
        if made is None:
            return 0.0
        rows = [table for table in (self.examples.score, self.examples.outputs) if table is not None]
        return max(overlap_beyond_chance(made.examples, table, made.n) for table in rows)

    @property
    def doubts(self) -> list[str]:
        """Warnings that the cloud is never right, worse than the edge beyond noise, or no better than chance.

        Empty without labels or the cloud's answers.
        """
        edge, cloud = self.edge_right, self.cloud_right
        if edge is None or cloud is None or not self.labelled:
            return []
        return [*reference_doubts(edge, cloud), *chance_doubts(self.examples)]

    def oracle(self) -> Line | None:
        """Return `curve` of an oracle that knows which side is correct and defers the gains first; None without cloud answers."""
        edge, cloud = self.edge_right, self.cloud_right
        if edge is None or cloud is None:
            return None
        gained, lost = (np.count_nonzero(cloud & ~edge), np.count_nonzero(edge & ~cloud))
        best = edge.mean() + gained / self.n
        return np.array([0, gained, self.n - lost, self.n]) / self.n, np.array([edge.mean(), best, best, cloud.mean()])

    def classes(self) -> list[Class]:
        """Return results per class, sorted by name: by label.

        Without labels, or with per-class thresholds, by predicted class.
        """
        labels = self.examples.labels if self.examples.labels is not None and not self.thresholds else self.examples.edge
        names, index = np.unique(np.array([str(label) for label in labels]), return_inverse=True)
        counts = np.bincount(index)

        def shares(values: Bools | None) -> list[Any]:
            """Return the share of true values in each class."""
            return [None] * len(names) if values is None else (np.bincount(index, values) / counts).tolist()

        rights = map(shares, (self.edge_right, self.cloud_right, self.cascade_right))
        columns = (names.tolist(), counts.tolist(), *rights, shares(~self.accepted))
        return [Class(*row) for row in zip(*columns, strict=True)]

    def seconds(self) -> dict[str, Floats]:
        """Return the measured latencies per input, sorted: edge, cloud, and cascade (the sum where deferred).

        The cascade uses only inputs with both measured, accepted or not: else it would be biased towards fast ones.
        """
        edge, cloud = self.examples.edge_s, self.examples.cloud_s
        latencies = {} if edge is None else {"edge": edge}
        if edge is not None and cloud is not None:
            latencies |= {"cloud": cloud, "cascade": np.where(self.accepted, edge + 0 * cloud, edge + cloud)}
        finite = {leg: np.sort(times[~np.isnan(times)]) for leg, times in latencies.items()}
        return {leg: times for leg, times in finite.items() if times.size}

    def latency(self) -> dict[str, tuple[float, ...]]:
        """Return leg -> its latency in seconds at `QUANTILES`."""
        return {leg: tuple(np.quantile(times, QUANTILES).tolist()) for leg, times in self.seconds().items()}

    def costs(self) -> list[Cost]:
        """Return the costs per input: median seconds, mean usd and joules, each where the cloud's is above 0.

        Empty without the cloud.
        """
        if self.examples.cloud is None:
            return []
        times, terms = self.latency(), self.terms
        megabytes = (self.examples.sent_bytes + self.examples.received_bytes) / self.n / 1e6
        joules = terms.joules_per_call + terms.joules_per_mb * megabytes
        costs = [Cost("seconds", times["edge"][0], times["cloud"][0])] if {"edge", "cloud"} <= set(times) else []
        costs += [Cost("usd", self.edge_usd, self.examples.usd / self.n), Cost("joules", self.edge_joules, joules)]
        return [cost for cost in costs if cost.cloud > 0]
