"""Labels on demand: few are read, and the threshold is that of all labels, exactly; through both routers, with what people answer."""

from __future__ import annotations

import asyncio
import itertools
import threading
import warnings
from contextlib import closing

import numpy as np
import pytest
from both import LONG, Tasks, Threads
from draws import slow

from edgeroute import AsyncRouter, BadInput, CallableModel, EdgerouteError, Function, PolicyError
from edgeroute.confidence import NotEnough, calibrate

pytestmark = pytest.mark.pure

BOTH = pytest.mark.parametrize("kind", [Threads, Tasks])
N = 600


def outcomes(rng, n, levels):
    """Scores, which may tie or be missing, what was right of edge and cloud, and where they agree."""
    score = rng.random(n)
    score = np.round(score * levels) / levels if levels else score
    harm, win = rng.choice([0.02, 0.1, 0.3]), rng.choice([0, 0.01, 0.05])
    bad = rng.random(n) < harm * (1 - score)
    good = ~bad & (rng.random(n) < win)
    both = ~bad & ~good & (rng.random(n) < 0.1)
    score[rng.random(n) < rng.choice([0, 0.1])] = np.nan
    return score, ~(bad | both), ~(good | both), ~(bad | good | (both & (rng.random(n) < 0.6)))


@pytest.mark.parametrize("more", ["", "groups", "per_class"])
def test_the_threshold_is_that_of_all_labels(more):
    """In every draw, by each test, with ties, groups and classes; labels are read in order of the scores, and none twice."""
    compared = 0
    for seed, n, eps in itertools.product(range(4), (300, 1500) if more else (300, 1500, 4500), (0.01, 0.05)):
        rng = np.random.default_rng([seed, n])
        score, edge, cloud, agree = outcomes(rng, n, [0, 20, 200][seed % 3])
        given = {"groups": rng.integers(0, n // 2, n), "per_class": rng.integers(0, 3, n).tolist()}
        options = {"max_loss": eps, "notes": [], **({more: given[more]} if more else {})}
        rows_read = []

        def read(rows, rows_read=rows_read, right=cloud * 1.0 - edge):
            rows_read.extend(rows.tolist())
            return right[rows]

        try:
            full = calibrate(score, edge, cloud, agree=agree, **options)
        except NotEnough:
            continue
        found = calibrate(score, agree, read=read, **options)
        assert (found.threshold, found.thresholds, found.method) == (full.threshold, full.thresholds, full.method)
        assert (found.deferral_rate, found.disagreement, found.agreement) == (full.deferral_rate, full.disagreement, False)
        assert len(set(rows_read)) == len(rows_read) <= np.count_nonzero(~agree)
        assert not agree[rows_read].any()
        if not more:
            assert (np.diff(score[rows_read]) <= 0).all()
            # nothing beyond the first block that fails
            assert not rows_read or score[rows_read].min() >= score[score < full.threshold].max(initial=-1)
        compared += 1
    assert compared > 8


def classes(n, seed=0):
    """Answers of edge and cloud, right ones, and confidences: of n inputs, which are their indices."""
    rng = np.random.default_rng(seed)
    confidence, right = 1 - rng.random(n) * 0.9, rng.integers(0, 4, n)
    edge = np.where(rng.random(n) < (1 - confidence) * 0.3, (right + 1) % 4, right)
    cloud = np.where(rng.random(n) < 0.03, (right + 2) % 4, right)
    return confidence, edge, cloud, right


CONFIDENCE, EDGE, CLOUD, RIGHT = classes(N)
WORDS = ["ant", "bee", "a cat", "dog"]


def parts_of_router(names=WORDS, cloud_names=WORDS, **more):
    """An edge and a cloud whose inputs are numbers of rows."""
    edge = CallableModel(lambda i: (names[EDGE[i]], float(CONFIDENCE[i])), version="1", **more)
    return edge, Function(lambda i: (cloud_names[CLOUD[i]], 1.0), version="1")


def router_of(kind, *args, **more):
    """A router of them."""
    return kind(*parts_of_router(*args, **more), threshold=0.5)


def right(i):
    """The right answer to an input."""
    return WORDS[RIGHT[i]]


X = list(range(N))


@BOTH
def test_a_model_without_a_version_is_named_before_the_first_label(kind, caplog):
    """By `check`, and by `calibrate` in the log: no certificate would hold."""
    text = "the edge model cannot be identified: give version="
    before = []
    edge, cloud = lambda i: (WORDS[EDGE[i]], float(CONFIDENCE[i])), parts_of_router()[1]
    with closing(kind(edge, cloud, threshold=0.5)) as router:
        assert sum(text in line for line in router.check().lines) == 1
        router.calibrate(X, label=lambda i: before.append(text in caplog.text) or right(i), max_loss=0.05)
    assert all(before)
    with closing(router_of(kind)) as router:
        assert not any("version=" in line for line in router.check().lines)


@BOTH
def test_a_function_is_asked_only_for_what_counts(kind):
    """It gets the inputs on which edge and cloud differ, the surest first, and what it says makes the threshold of all labels."""
    asked = []
    with closing(router_of(kind)) as router:
        full = router.calibrate(X, [right(i) for i in X], max_loss=0.05)
        found = router.calibrate(X, label=lambda i: asked.append(i) or right(i), max_loss=0.05)
        assert found.certificate.threshold == full.certificate.threshold
        assert asked
        assert all(EDGE[i] != CLOUD[i] for i in asked)
        assert (np.diff(CONFIDENCE[asked]) <= 0).all()
        assert found.labels_read == len(asked) == found.as_dict()["labels_read"] < np.count_nonzero(EDGE != CLOUD)
        assert found.labels == {i: right(i) for i in asked}
        assert f"{len(asked)} labels read" in repr(found)
        assert any(note.startswith(f"{len(asked)} labels were read") for note in found.notes)
        assert "accuracy of edge and cloud together" in found.certificate.guarantee
        assert found.certificate.accuracy == {}  # known of some examples alone
        assert found.html()
        half = router.calibrate(X, found.labels, label=right, max_loss=0.05, every=2)
        assert set(half.labels) >= set(asked)
        assert all(label == right(i) for i, label in half.labels.items())


@BOTH
def test_what_was_labelled_is_not_lost(kind):
    """An exception carries the labels so far: with them as y, nobody is asked twice; a list may have blanks, too."""
    asked = []

    def tires(i):
        if len(asked) == 5:
            raise KeyError("tired")
        asked.append(i)
        return right(i)

    with closing(router_of(kind)) as router:
        full = router.calibrate(X, [right(i) for i in X], max_loss=0.05)
        with pytest.raises(KeyError) as raised:
            router.calibrate(X, label=tires, max_loss=0.05)
        known = raised.value.labels
        assert known == {i: right(i) for i in asked}
        if hasattr(raised.value, "__notes__"):
            assert "goes on from the labels so far: 5" in raised.value.__notes__[0]
        later = []
        found = router.calibrate(X, known, label=lambda i: later.append(i) or right(i), max_loss=0.05)
        assert found.certificate.threshold == full.certificate.threshold
        assert not set(later) & set(asked)
        assert found.labels_read == len(later) + 5
        blanks = [found.labels.get(i, [None, float("nan")][i % 2]) for i in X]
        again = router.calibrate(X, blanks, label=lambda _: 1 / 0, max_loss=0.05)
        assert again.certificate.threshold == full.certificate.threshold


def test_more_examples_extend_what_is_labelled():
    """The walk over the union reads the labels of before, and asks for the others: the threshold is that of the union."""
    asked = []
    with closing(router_of(Threads)) as router:
        first = router.calibrate(X[:400], label=right, max_loss=0.05)
        found = router.calibrate(X, first.labels, label=lambda i: asked.append(i) or right(i), max_loss=0.05)
        full = router.calibrate(X, [right(i) for i in X], max_loss=0.05)
    assert found.certificate.threshold == full.certificate.threshold
    assert not set(asked) & set(first.labels)
    assert "a further test with a risk of its own" in repr(found)
    assert not any("a further test" in text for text in (repr(first), repr(full)))


class Missing:
    """As pandas.NA: neither true nor false."""

    def __repr__(self):
        return "Missing()"

    def __eq__(self, other):
        return self

    def __ne__(self, other):
        return self

    def __hash__(self):
        return 7

    def __bool__(self):
        raise TypeError("boolean value of NA is ambiguous")


@pytest.mark.parametrize("unknown", [None, float("nan"), np.float32("nan"), Missing(), "", " ", np.str_("")], ids=repr)
def test_what_nobody_knows_counts_as_lost(unknown):
    """The threshold is that of labels by which the cloud alone is right there."""
    with closing(router_of(Threads)) as router:
        worst = router.calibrate(
            X, [WORDS[CLOUD[i]] if i % 3 == 0 and EDGE[i] != CLOUD[i] else right(i) for i in X], max_loss=0.05
        )
        found = router.calibrate(X, label=lambda i: unknown if i % 3 == 0 else right(i), max_loss=0.05)
        nobody = router.calibrate(X, label=lambda _: unknown, max_loss=0.05)
    assert found.certificate.threshold == worst.certificate.threshold
    assert any("unknown" in note for note in found.notes)
    assert nobody.certificate.threshold >= found.certificate.threshold


@pytest.mark.parametrize("blank", ["", None, Missing()], ids=repr)
def test_blanks_among_known_labels_are_asked_for(blank):
    """In a list as in a mapping; without a function they are refused."""
    known = [blank if i % 2 else right(i) for i in X]
    with closing(router_of(Threads)) as router:
        full = router.calibrate(X, [right(i) for i in X], max_loss=0.05)
        found = router.calibrate(X, dict(enumerate(known)), label=right, max_loss=0.05)
        assert found.certificate.threshold == full.certificate.threshold
        assert found.certificate.threshold == router.calibrate(X, known, label=right, max_loss=0.05).certificate.threshold
        with pytest.raises(BadInput, match="give each input a label, or none"):
            router.calibrate(X, known, max_loss=0.05)


def test_an_empty_answer_is_a_label():
    """Where a model answers so, as one that finds nothing does."""
    names = ["", *WORDS[1:]]
    with closing(router_of(Threads, names, names)) as router:
        full = router.calibrate(X, [names[c] for c in RIGHT], max_loss=0.05)
        found = router.calibrate(X, label=lambda i: names[RIGHT[i]], max_loss=0.05)
    assert found.certificate.threshold == full.certificate.threshold
    assert not any("unknown" in note for note in found.notes)


def too_few(_):
    """Labels that do not fit their inputs."""
    return ["ant"]


too_few.batched = True


def test_labels_in_lists():
    """A function that is marked takes lists, of inputs that are all needed, whatever it says: no more labels are read."""
    sizes = []

    def many(inputs):
        sizes.append(len(inputs))
        return np.array([right(i) for i in inputs])

    many.batched = True
    with closing(router_of(Threads)) as router:
        each, found = (router.calibrate(X, label=f, max_loss=0.05) for f in (right, many))
        assert found.labels == each.labels
        assert sum(sizes) == found.labels_read > len(sizes)
        assert all(type(label) is str for label in found.labels.values())
        with pytest.raises(BadInput, match="returned 1 labels for"):
            router.calibrate(X, label=too_few, max_loss=0.05)


@pytest.mark.parametrize(
    ("names", "cloud_names", "label", "noted"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], lambda i: np.int64(RIGHT[i]), False),
        ([0, 1, 2, 3], ["0", "1", "2", "3"], lambda i: RIGHT[i], False),
        ([0, 1, 2, 3], [0, 1, 2, 3], lambda i: f" {RIGHT[i]} ", True),
        (WORDS, WORDS, lambda i: np.str_(right(i).upper().replace(" ", "  ")), True),
        (WORDS, [f"{word}." for word in WORDS], lambda i: np.array([right(i)]), False),
    ],
)
def test_labels_in_another_form(names, cloud_names, label, noted):
    """Numpy's numbers, text in place of numbers, case and spaces: the same threshold, with a note where the form differs."""
    with closing(router_of(Threads, names, cloud_names)) as router:
        full = router.calibrate(X, [names[c] for c in RIGHT], max_loss=0.05)
        found = router.calibrate(X, label=label, max_loss=0.05)
    assert found.certificate.threshold == full.certificate.threshold
    assert any("in another form than" in note for note in found.notes) == noted


SPELLINGS = [str, str.upper, lambda name: f" {name} ", lambda name: f"{name}.", lambda name: f'"{name}"']
FEW = [(False, False, True), (True, True, False)]
MIXED = [*FEW, *slow(*((mixed,) for mixed in itertools.product([False, True], repeat=3) if mixed not in FEW))]


@pytest.mark.parametrize("mixed", MIXED)
@pytest.mark.parametrize("more", [{}, *slow({"per_class": True})])
def test_several_spellings_of_a_label(mixed, more):
    """Of edge, cloud and labels, in any mixture: the thresholds of full labels, and no question about equal answers."""
    thresholds = set()
    for seed in range(2):
        rng = np.random.default_rng(seed)
        confidence, *sides = classes(400, seed)
        edge, cloud, labels = (
            [SPELLINGS[rng.integers(len(SPELLINGS)) if mix else 0](WORDS[c]) for c in side]
            for side, mix in zip(sides, mixed, strict=True)
        )
        asked = []
        with closing(
            Threads(
                CallableModel(lambda i, edge=edge, sure=confidence: (edge[i], float(sure[i])), version="1"),
                Function(lambda i, cloud=cloud: (cloud[i], 1.0), version="1"),
                threshold=0.5,
            )
        ) as router:
            full = router.calibrate(range(400), labels, max_loss=0.1, **more).certificate
            found = router.calibrate(
                range(400), label=lambda i, asked=asked, labels=labels: asked.append(i) or labels[i], max_loss=0.1, **more
            ).certificate
        assert (found.threshold, found.thresholds) == (full.threshold, full.thresholds)
        assert all(sides[0][i] != sides[1][i] for i in asked)
        thresholds |= {full.threshold, *full.thresholds.values()}
    assert any(0 < threshold < 1 for threshold in thresholds)


def test_named_classes_that_differ_in_case():
    """They stay two classes, with full labels and on demand; without names, too, with a note."""
    names = ["us", "US", "a cat", "dog"]
    for options, noted in (({"labels": names}, False), ({}, True)):
        with closing(router_of(Threads, names, names, **options)) as router:
            full = router.calibrate(X, [names[c] for c in RIGHT], max_loss=0.05)
            found = router.calibrate(X, label=lambda i: names[RIGHT[i]], max_loss=0.05)
        assert found.certificate.threshold == full.certificate.threshold
        assert any("'US' and 'us' are different labels" in note for note in full.notes) == noted
        assert full.certificate.accuracy["edge"] == pytest.approx(np.mean(EDGE == RIGHT))


@pytest.mark.parametrize(
    ("label", "text"),
    [
        (lambda _: "Katze", r"none of the label function's \d+ answers \('Katze'\) is ever one of the labels"),
        (
            lambda _: 7,
            r"the answer of the label function \(7\) is not one of the labels \('a cat'\): it gives numbers, and the labels are text",
        ),
        (lambda _: [1, 2], r"it gives arrays, and the labels are text"),
    ],
)
def test_labels_that_no_answer_is(label, text):
    """Edge and cloud would both be wrong everywhere, and nothing lost: an error, which has the labels."""
    with closing(router_of(Threads)) as router, pytest.raises(BadInput, match=text) as raised:
        router.calibrate(X, label=label, max_loss=0.05)
    assert raised.value.labels


def test_few_labels_that_no_answer_is():
    """Also the error where so few are read that it could be chance: nothing else shows that the labels are of these answers."""
    differ = [i for i in X if EDGE[i] != CLOUD[i]]
    few = [i for i in X if i not in differ[3:]]
    with closing(router_of(Threads)) as router:
        with pytest.raises(BadInput, match=r"none of the label function's 3 answers \('Katze'\) is ever one of the labels"):
            router.calibrate(few, label=lambda _: "Katze", max_loss=0.05)
        found = router.calibrate(few, label=lambda i: "Katze" if i == differ[0] else right(i), max_loss=0.05)
        assert found.labels_read == 3


@BOTH
@pytest.mark.parametrize("more", [{"groups": [i // 2 for i in X]}, {"per_class": True}])
def test_groups_and_classes(kind, more):
    """The thresholds are those of all labels."""
    with closing(router_of(kind)) as router:
        full = router.calibrate(X, [right(i) for i in X], max_loss=0.1, **more).certificate
        found = router.calibrate(X, label=right, max_loss=0.1, **more).certificate
    assert (found.threshold, found.thresholds, found.groups) == (full.threshold, full.thresholds, full.groups)


def test_labels_of_named_classes():
    """A number is a class index, and another name is refused at once."""
    with closing(router_of(Threads, labels=WORDS)) as router:
        full = router.calibrate(X, RIGHT, max_loss=0.05)
        found = router.calibrate(X, label=lambda i: RIGHT[i], max_loss=0.05)
        assert found.certificate.threshold == full.certificate.threshold
        with pytest.raises(BadInput, match=r"^label \d+ is 'Katze', and the edge model answers ant, bee, a cat, dog") as raised:
            router.calibrate(X, label=lambda _: "Katze", max_loss=0.05)
        assert raised.value.labels == {}


def test_inputs_that_are_left_out():
    """Labels stay with their inputs where the cloud fails on some, and where an edge before keeps some."""

    def cloud(i):
        if i in {3, 400}:
            raise ValueError("no answer")
        return WORDS[CLOUD[i]], 1.0

    asked = []
    edges = [
        CallableModel(lambda i: (WORDS[EDGE[i]], float(i % 7 == 0)), version="1", name="first"),
        CallableModel(lambda i: (WORDS[EDGE[i]], float(CONFIDENCE[i])), version="1"),
    ]
    with closing(Threads(edges, Function(cloud, version="1"), threshold=[0.5, 0.5])) as router:
        full = router.calibrate(X, [right(i) for i in X], max_loss=0.05, edge=1)
        found = router.calibrate(X, label=lambda i: asked.append(i) or right(i), max_loss=0.05, edge=1)
    assert found.certificate.threshold == full.certificate.threshold
    assert found.labels == {i: right(i) for i in asked}
    assert all(i % 7 and EDGE[i] != CLOUD[i] for i in asked)


def test_other_tasks_go_on_while_somebody_thinks():
    """The function runs in a thread beside the event loop."""
    answered = threading.Event()

    def slow(i):
        assert answered.wait(LONG)
        return right(i)

    async def run():
        async with AsyncRouter(*parts_of_router(), threshold=0.5) as router:
            calibration = asyncio.ensure_future(router.calibrate(X, label=slow, max_loss=0.05))
            await router.infer(1)
            answered.set()
            return await calibration

    assert asyncio.run(run()).labels_read


def test_a_cloud_that_is_worse_than_the_edge():
    """All labels are read, and the certificate says that it guarantees little."""
    with closing(router_of(Threads)) as router:
        found = router.calibrate(X, label=lambda i: WORDS[EDGE[i]], max_loss=0.05)
    assert found.labels_read == np.count_nonzero(EDGE != CLOUD)
    (doubt,) = found.certificate.doubts
    assert doubt.startswith(f"of the {found.labels_read} labels read, the cloud is right in none")
    assert doubt in found.notes


def test_labels_of_other_inputs():
    """Labels that neither edge nor cloud gave, in most cases, are doubted: by them the edge loses nothing."""
    rng = np.random.default_rng(0)
    edge, cloud = rng.integers(0, 10, (2, N)).tolist()
    with closing(Threads(CallableModel(lambda i: (edge[i], i / N), version="1"), lambda i: cloud[i], threshold=0.5)) as router:
        found = router.calibrate(range(N), label=lambda i: rng.integers(10), max_loss=0.2)
        right = router.calibrate(range(N), label=lambda i: cloud[i] if i % 3 else edge[i], max_loss=0.2)
    (doubt,) = found.certificate.doubts
    assert "are neither's answer" in doubt
    assert doubt in found.notes
    assert right.certificate.doubts == ()


def test_nothing_differs():
    """Nobody is asked; with one example there is too little, as ever."""
    same = CallableModel(lambda i: ("ant", float(CONFIDENCE[i])), version="1")
    with closing(Threads(same, Function(lambda _: ("ant", 1.0), version="1"), threshold=0.5)) as router:
        found = router.calibrate(X, label=lambda _: 1 / 0, max_loss=0.05)
        assert (found.labels_read, found.labels, found.certificate.deferral_rate) == (0, {}, 0)
        with pytest.raises(PolicyError), warnings.catch_warnings():
            router.calibrate(X[:1], label=lambda _: 1 / 0, max_loss=0.05)


async def later(i):
    """Labels that somebody would have to wait for."""
    return right(i)


@pytest.mark.parametrize(
    ("y", "options", "text"),
    [
        (None, {"max_error": 0.05}, "label= is for max_loss"),
        (None, {"max_defer": 0.5}, "label= is for max_loss"),
        (None, {"max_loss": 0.05, "score": "auto"}, "label= is for max_loss"),
        (None, {"max_loss": 0.05, "label": ["ant"] * N}, "takes a function"),
        (None, {"max_loss": 0.05, "label": later}, "takes a plain function"),
        ({N: "ant"}, {"max_loss": 0.05}, f"y has a label for input {N}, and the last input is {N - 1} at most"),
        ({"ant": 0}, {"max_loss": 0.05}, "y has a label for input 'ant'"),
        ({0: "ant"}, {"max_loss": 0.05, "label": None}, "y must hold a label for each input"),
    ],
)
def test_what_cannot_be_asked(y, options, text):
    """One line says why."""
    with closing(router_of(Threads)) as router, pytest.raises(EdgerouteError, match=text):
        router.calibrate(X, y, **{"label": right, **options})
