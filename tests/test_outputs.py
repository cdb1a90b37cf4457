"""What models and functions return, in every form: read rightly, or refused with what to write."""

import io
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import routes
from both import LONG, Tasks, Threads
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute import BadReply, CallableModel, Function, ModelError, PlainJson, PolicyError, Prediction, Router
from edgeroute.cloud.function_backend_and_reply_checks import ReplyReader
from edgeroute.confidence import KINDS, Reader
from edgeroute.confidence.scores import Unscored
from edgeroute.testing import CannedServer, http_reply

pytestmark = pytest.mark.pure


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def make(request):
    """A router of either kind."""
    return request.param


class Tensor:
    """A tensor of PyTorch that is part of a gradient, on a GPU, or of bfloat16: no array can be made of it as it is."""

    def __init__(self, numbers, *, left=("detach", "cpu", "float")):
        self.numbers, self.left, self.shape, self.ndim = numbers, left, numbers.shape, numbers.ndim

    def __array__(self, *args, **options):
        if self.left:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        return self.numbers

    def __getattr__(self, name):
        if name not in {"detach", "cpu", "float"}:
            raise AttributeError(name)
        numbers = self.numbers.astype(np.float32) if name == "float" else self.numbers
        return lambda: Tensor(numbers, left=[step for step in self.left if step != name])

    def is_floating_point(self):
        """Return True for float numbers."""
        return self.numbers.dtype.kind == "f"

    def element_size(self):
        """Return the bytes of a number: of bfloat16, two."""
        return 2 if "float" in self.left else self.numbers.itemsize


class Scalar:
    """A tensor of no dimensions, as PyTorch's are: it has `ndim` and becomes a float."""

    ndim, shape = 0, ()

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return self.value


@pytest.mark.parametrize(
    ("given", "sure"),
    [
        (0.9, 0.9), (1, 1.0), (True, 1.0), (np.float32(0.5), 0.5), (np.array(0.25), 0.25), (np.float64(0), 0.0), (Decimal("0.9"), 0.9),
        (Fraction(1, 4), 0.25), (Scalar(0.75), 0.75), (None, None), (1 + 1e-9, 1.0), (-1e-9, 0.0), ([-0.1, -0.1], math.exp(-0.1)),
        (np.array([-0.1]), math.exp(-0.1)), ((0.0, 0.0), 1.0),
    ],
)  # fmt: skip
def test_what_is_a_confidence(given, sure):
    """One number of any type, None, or the log-probabilities of a text's tokens."""
    for reader in (Reader(), ReplyReader()):
        found = reader.read_answer(("cat", given)).confidence
        assert found is None if sure is None else found == pytest.approx(sure)
        assert found is None or type(found) is float


@pytest.mark.parametrize(
    "given",
    ["0.9", b"0.9", np.array([0.9]), np.array([[0.9]]), [0.9], {"p": 0.9}, {0.9}, object(), np.array(["0.9"]), 95, -0.5, 1e9],
)
def test_what_is_no_confidence(make, given):
    """The function is named, and the cloud asked; without one the caller has the error. What was given is not quoted."""

    def vision(_):
        return "cat", given

    with make(vision, lambda _: "dog", threshold=0.8) as router:
        for deadline in (None, LONG):
            answer = router.infer(1, deadline=deadline)
            assert (answer.value, answer.source) == ("dog", "cloud")
            assert "vision gives" in routes.error(answer, "edge")
    with make(vision, threshold=0.8) as router, pytest.raises(ModelError, match=r"vision gives .* confidence"):
        router.infer(1)
    with make(lambda _: ("edge", 0.1), vision, threshold=0.8) as router:
        answer = router.infer(1)
        assert (answer.value, answer.source, answer.degraded) == ("edge", "edge", True)


def test_nan_is_no_confidence(make):
    """It is none, and the policy says what that means."""
    with make(lambda _: ("cat", np.float32("nan")), lambda _: "dog", threshold=0.8) as router:
        assert router.infer(1).source == "cloud"
    with make(lambda _: np.float32([np.nan] * 3), no_confidence="accept", threshold=0.8) as router:
        answer = router.infer(1)
        assert (answer.value, answer.confidence) == (None, None)
        assert "NaN" in answer.reason


def test_scores_that_are_not_from_0_to_1(make):
    """Energy is not, and a score of one's own need not be."""
    for score in ("energy", lambda _: 5.0):
        with make(lambda _: ("cat", 5.0), threshold=4.0, score=score) as router:
            assert router.infer(1).confidence == 5.0


@pytest.mark.parametrize("threshold", [80, -1, 1.01, [0.5, 80], -0.1])
def test_thresholds_that_no_confidence_can_be_compared_with(threshold):
    """Refused when the router is made; infinity is never reached, which may be wanted."""
    edge = [lambda _: ("a", 0.5)] * (2 if isinstance(threshold, list) else 1)
    with pytest.raises(PolicyError, match="confidences by msp are from 0 to 1"):
        Router(edge, lambda _: "b", threshold=threshold)
    Router(edge, lambda _: "b", threshold=math.inf).close()
    Router(edge, lambda _: "b", threshold=80 if not isinstance(threshold, list) else threshold, score="energy").close()


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        (21.7, 21.7), (np.float32(21.5), 21.5), (np.array(21.5), 21.5), (np.array([21.5]), 21.5), (np.array([[21.5]]), 21.5),
        (7, 7), (np.int64(7), 7), (np.array([7]), 7), (np.array([[7]]), 7), ("cat", "cat"), (np.str_("cat"), "cat"),
        (np.array(["cat"]), "cat"), (np.array(["cat"], object), "cat"), (np.bool_(True), True),
    ],
)  # fmt: skip
def test_single_values(make, returned, value):
    """A regression's number, a label as a number, a label as a text: the value itself, without a confidence, and never the class 0."""
    with make(lambda _: returned, threshold=0.8, no_confidence="accept") as router:
        answer = router.infer(1)
    assert (answer.value, answer.confidence, type(answer.value)) == (value, None, type(value))


@pytest.mark.parametrize(
    "returned", [np.array([3, 1, 2]), [3, 1, 2], np.array([[3], [1]]), ["a", "b"], {}, [], [[1.0, 2.0], [3.0]]]
)
def test_what_is_left_as_it_is(returned):
    """Integers are never taken for scores, and what has no form that is known is the value."""
    read = Reader().read_answer(returned)
    assert read.value is returned
    assert read.confidence is None


def test_a_prediction_has_its_own_outputs():
    """In rows and at the end of a stream: the value, its confidence or log-probabilities, and what the answer has as its outputs."""

    class Told:
        name = "told"

        def run(self, inputs, cancel=None):
            return [Prediction("ab", [-0.1, -0.1], {"whole": x}) for x in inputs]

        def stream(self, x, cancel=None):
            yield "a"
            yield "b"
            return Prediction("ab", 0.75, {"whole": x})

    with Router(Told(), lambda x: "cloud", threshold=0.5) as router:
        answer = router.infer(1)
        assert (answer.value, answer.confidence, answer.outputs) == ("ab", pytest.approx(math.exp(-0.1)), {"whole": 1})
        with router.stream(2) as stream:
            assert list(stream) == ["a", "b"]
        assert (stream.answer.value, stream.answer.confidence, stream.answer.outputs) == ("ab", 0.75, {"whole": 2})
    assert Reader(lambda outputs: outputs["whole"]).read_one([Prediction("ab", 0.1, {"whole": 0.9})]).confidence == 0.9


def test_integers_are_scores_only_by_their_kind():
    """As quantised models give them: those of 8 bits tell no scale, so that they give the class and no confidence."""
    for row in (np.array([1, 9, 2], np.uint8), np.array([-100, 20, 3], np.int8)):
        read = Reader(kind="logits", labels=["a", "b", "c"]).read_answer(row)
        assert (read.value, type(read.confidence)) == ("b", Unscored)
        assert "let its graph end in DequantizeLinear" in read.confidence.why
        assert Reader(kind="logits", labels=["a", "b", "c"]).read_answer(row.astype(np.int32)).confidence > 0.9
        with pytest.raises(ModelError, match='write kind = "logits"'):
            Reader(labels=["a", "b", "c"]).read_answer(row)


@pytest.mark.parametrize(
    "wrap", [lambda p: p, lambda p: p[None], lambda p: p.tolist(), lambda p: {"p": p}, lambda p: {0: 0.1, 1: 0.7, 2: 0.2}]
)
def test_rows_of_probabilities(wrap):
    """In an array, with a batch axis or without, in a list, under a name, or by class."""
    p = np.array([0.1, 0.7, 0.2])
    read = Reader(kind="probabilities", labels=("a", "b", "c")).read_answer(wrap(p))
    assert (read.value, read.confidence) == ("b", pytest.approx(0.7))


@pytest.mark.parametrize(
    ("kind", "row", "value"),
    [
        ("probabilities", np.array([1.0, 5.0, 2.0]), 1), ("probabilities", [-0.5, 0.2, 0.9], 2), ("probabilities", np.array([1.5]), 1),
        ("probabilities", {"cat": 70.0, "dog": 30.0}, "cat"), ("probabilities", np.array([-0.5]), 0), ("probabilities", 2.0, 1),
        ("probabilities", np.arange(100.0), 99), ("label+probabilities", {"label": 1, "p": np.array([3.0, 5.0])}, 1),
        ("label+probabilities", {"label": 1, "p": {0: 3.0, 1: 5.0}}, 1), ("logprobs", np.array([1.0, 5.0]), 1),
        ("logprobs", np.array([21.7]), 1), ("logprobs", np.arange(100.0), 99), ("logprobs", {"t": np.array([7]), "p": np.array([1.5])}, 7),
    ],
)  # fmt: skip
def test_numbers_that_are_not_of_their_kind_give_no_confidence(make, kind, row, value):
    """They would give a wrong one, of up to 1. The reason says what is wrong, and the class is still the largest."""
    with make(CallableModel(lambda _: row, kind=kind), lambda _: "cloud", threshold=0.1) as router:
        answer = router.infer(1)
        assert answer.source == "cloud"
        assert routes.judged(answer)[:2] == ("below", None)
        assert kind.removeprefix("label+") in answer.reason
    with make(CallableModel(lambda _: row, kind=kind), threshold=0.1, no_confidence="accept") as router:
        assert router.infer(1).value == value


def test_quantised_probabilities_have_any_scale():
    """Integers of 0 to 255, say; and a sum of floats may be a rounding off 1."""
    assert Reader(kind="probabilities").read_answer(np.array([0, 51, 204], np.uint8))[:2] == (2, pytest.approx(0.8))
    assert Reader(kind="probabilities").read_answer(np.array([0.0, 1.0005]))[:2] == (1, pytest.approx(1))


def test_a_mapping_from_class_to_probability():
    """Is one if its numbers sum to 1; else it is the value."""
    assert Reader().read_answer({"cat": 0.25, "dog": 0.75})[:2] == ("dog", pytest.approx(0.75))
    assert Reader().read_answer({"label": 3, "score": 0.7})[:2] == ({"label": 3, "score": 0.7}, None)


def test_probabilities_by_class_beside_a_label():
    """Of a cloud's answer all are checked, and fit names for the classes."""
    for labels in (None, ["cat", "dog"]):
        reader = ReplyReader(kind="label+probabilities", labels=labels)
        assert reader.read_answer({"label": "dog", "p": {"cat": 0.1, "dog": 0.9}})[:2] == ("dog", pytest.approx(0.9))
        with pytest.raises(BadReply, match="NaN"):
            reader.read_answer({"label": "cat", "p": {"cat": 0.9, "dog": np.nan}})


def test_probabilities_of_a_tree():
    """Are 0 and 1 alone: they are read beside a label, and are no reason for a warning where they may be logits."""
    read = Reader().read_answer({"label": np.array([1]), "probabilities": np.array([0.0, 1.0, 0.0])})
    assert (read.value, read.confidence) == (1, pytest.approx(1.0))
    assert Reader().read_answer({"cat": 0.0, "dog": 1.0})[:2] == ("dog", 1.0)


def test_a_label_and_probabilities():
    """As a mapping, a tuple or a list; the label counts, and not the largest."""
    p = np.array([0.1, 0.7, 0.2])
    for row in (
        {"label": np.array([2]), "p": p},
        (np.int64(2), p),
        [2, p],
        {"p": p, "label": 2},
        {"label": 2, "p": {0: 0.1, 1: 0.7, 2: 0.2}},
    ):
        read = Reader(kind="label+probabilities").read_answer(row)
        assert (read.value, read.confidence) == (2, pytest.approx(0.7))
        assert Reader(kind="label+probabilities", labels=["a", "b", "c"]).read_answer(row).value == "c"
        assert Reader(kind="label+probabilities", labels=["0", "1", "2"]).read_answer(row).value == "2"
    for row in (p, 3, {"p": p}, {"label": 2}, (1, 2, 3), None):
        with pytest.raises(ModelError, match=r"its kind is label\+probabilities"):
            Reader(kind="label+probabilities", name="m").read_answer(row)
        with pytest.raises(BadReply):
            ReplyReader(kind="label+probabilities").read_answer(row)
    for labels, why in ((["a", "b", "c"], "not among its 3"), (["a", "b"], "3 outputs, but 2 labels")):
        with pytest.raises(BadReply, match=why):
            Reader(kind="label+probabilities", labels=labels).read_answer({"label": 7, "p": p})


@pytest.mark.parametrize("form", [lambda a: a, lambda a: a[None], lambda a: a[:, None, None], lambda a: a.tolist()])
def test_the_best_classes(form):
    """By name or as a pair, as torch.topk gives it: the class number, or its label, even if that is a number itself."""
    p, best = np.array([0.6, 0.3, 0.05]), np.array([4, 2, 0])
    for row in ({"best": form(best), "p": form(p)}, (form(p), form(best)), {"p": form(np.log(p)), "best": form(best)}):
        for score, sure in (("msp", 0.6), ("margin", 0.3)):
            assert Reader(score, kind="top+probabilities").read_answer(row)[:2] == (4, pytest.approx(sure))
        assert Reader(kind="top").read_answer(row)[:2] == (4, None)
        for kind in ("top", "top+probabilities"):
            assert Reader(kind=kind, labels=["4", "3", "2", "1", "0"]).read_answer(row).value == "0"
            with pytest.raises(BadReply, match="5 outputs, but 3 labels"):
                Reader(kind=kind, labels=["a", "b", "c"]).read_answer(row)


@pytest.mark.parametrize(
    ("p", "sure"),
    [([1.0], 1.0), ([0.4], 0.4), ([-0.1, -9.0], 0.905), ([1.0, 0.0], 1.0), ([0.5, 1e-12], 0.5), ([1e-5, 1e-5], 0.001)],
)
def test_how_sure_the_best_class_is(p, sure):
    """Its own probability, or that of its logarithm, whatever is left for others."""
    read = Reader(kind="top+probabilities").read_answer({"p": np.array(p), "best": np.arange(len(p))})
    assert (read.value, read.confidence) == (0, pytest.approx(sure, abs=2e-3))


def test_a_best_score_of_zero():
    """May be a probability that was rounded, or the logarithm of 1, so it is no confidence; and NaN is no class."""
    read = Reader(kind="top+probabilities").read_answer
    answer = read({"p": np.zeros(1), "best": np.array([3])})
    assert (answer.value, type(answer.confidence)) == (3, Unscored)
    for kind in ("top", "top+probabilities"):
        answer = Reader(kind=kind).read_answer({"p": np.full(3, np.nan), "best": np.array([4, 2, 1])})
        assert (answer.value, type(answer.confidence)) == (None, Unscored)


def test_a_score_of_the_best_alone():
    """One that takes logits is given those of the best classes, or the logarithms of their probabilities."""
    seen = []

    def score(logits):
        seen.append(logits)
        return 0.9

    score.of_logits = True
    for kind, best in (("top", [3.0, 1.0]), ("top+probabilities", [0.6, 0.25])):
        read = Reader(score, kind=kind).read_answer((np.array(best), np.array([4, 2])))
        assert (read.value, read.confidence) == (4, 0.9)
    assert seen == [[3.0, 1.0], pytest.approx(np.log([0.6, 0.25]).tolist())]
    with pytest.raises(PolicyError, match="the best scores alone"):
        Reader("energy", kind="top")


@pytest.mark.parametrize("labels", [None, [*"abcde"]])
def test_a_cloud_function_that_gives_the_best(make, labels):
    """As `torch.topk` does, a pair; or by name."""
    for reply in ((np.array([0.6, 0.3]), np.array([4, 2])), {"p": np.array([0.6, 0.3]), "best": np.array([4, 2])}):
        cloud = Function(lambda _, reply=reply: reply, kind="top+probabilities", labels=labels)
        with make(lambda _: (0, 0.1), cloud, threshold=0.5, mode="only_cloud") as router:
            answer = router.infer(1)
            assert (answer.value, answer.confidence) == (4 if labels is None else "e", pytest.approx(0.6, abs=1e-3))


@pytest.mark.parametrize("p", [[3.0, -1e9], [np.inf, 0.0], [np.nan, 0.5], [1.0, -np.inf], [70.0, 20.0]])
def test_scores_that_are_no_probabilities_of_the_best_classes(make, p):
    """Give no confidence, whatever they are."""
    with make(
        CallableModel(lambda _: {"p": np.array(p), "best": np.array([4, 2])}, kind="top+probabilities"),
        lambda _: "cloud",
        threshold=0.1,
    ) as router:
        assert router.infer(1).source == "cloud"


@pytest.mark.parametrize(
    "row",
    [
        {"p": np.array([0.6, 0.4]), "best": np.array([4])}, {"p": np.array([0.6, 0.4])}, np.array([0.6, 0.4]), 0.6, None, "cat",
        {"p": np.ones((4, 2)), "best": np.ones((4, 2), int)}, {"p": np.array([0.6, 0.4]), "best": np.array([4.0, 2.0])},
        {"p": np.array([]), "best": np.array([], int)}, {"p": np.array([0.6, 0.4]), "best": np.array(["a", "b"])},
    ],
)  # fmt: skip
def test_other_outputs_than_the_best_classes(row):
    """Are a value, without a confidence."""
    for kind in ("top", "top+probabilities"):
        assert Reader(kind=kind).read_answer(row)[:2] == (row, None)
        assert Reader(lambda _: 0.5, kind=kind).read_answer(row).confidence == 0.5


def test_a_number_of_a_class_that_no_label_has():
    """From a server, say: no label is taken from the end."""
    with pytest.raises(BadReply):
        ReplyReader(kind="top", labels=["a", "b"]).read_answer({"p": np.array([0.6]), "best": np.array([-1])})


def test_values():
    """Of `kind="value"`: one number as a float, else the array; a score of one's own applies."""
    assert Reader(kind="value").read_answer(np.array([1.5]))[:2] == (1.5, None)
    assert Reader(kind="value").read_answer({"y": np.array([[2.5]])}).value == 2.5
    assert Reader(kind="value").read_answer(np.array([1.0, 2.0])).value.tolist() == [1.0, 2.0]
    assert Reader(lambda row: 0.5, kind="value").read_answer(np.array([1.0, 2.0])).confidence == 0.5
    assert Reader(kind="value").read_answer((1.5, 0.9))[:2] == (1.5, 0.9)


def test_log_probabilities_of_classes():
    """Of a log-softmax, as they are; of one number for the second of two classes."""
    logp = np.log([0.1, 0.7, 0.2])
    assert Reader(kind="logprobs").read_answer(logp)[:2] == (1, pytest.approx(0.7))
    assert Reader(kind="logprobs").read_answer(np.array([math.log(0.25)]))[:2] == (0, pytest.approx(0.75))


BOXES = np.array([[0, 0, 1, 1], [1, 1, 2, 2.0]])


@pytest.mark.parametrize(
    ("row", "labels", "found"),
    [
        ({"boxes": BOXES, "scores": np.array([0.6, 0.9]), "labels": np.array([0, 1])}, None, [(1, 0.9), (0, 0.6)]),
        ({"detection_boxes": BOXES[None], "detection_scores": np.array([[0.6, 0.9]]), "detection_classes": np.array([[0.0, 1.0]])},
         ["cat", "dog"], [("dog", 0.9), ("cat", 0.6)]),
        ({"boxes": BOXES, "conf": np.array([0.6, 0.9])}, None, [(0, 0.9), (0, 0.6)]),
        ({"boxes": BOXES, "scores": np.array([0.6, 0.9]), "classes": np.array([0, 1]), "num_detections": np.array([1.0])}, None, [(0, 0.6)]),
        (np.array([[0, 0, 1, 1, 0.6, 0], [1, 1, 2, 2, 0.9, 1]]), None, [(1, 0.9), (0, 0.6)]),
        ({"output": np.array([[[0, 0, 1, 1, 0.6, 0]]])}, ["cat"], [("cat", 0.6)]),
        ({"boxes": BOXES, "scores": np.array([0.1, 0.2]), "labels": np.array([0, 1])}, None, []),
        ({"boxes": np.zeros((0, 4)), "scores": np.zeros(0), "labels": np.zeros(0, int)}, None, []),
        (np.zeros((0, 6)), None, []),
    ],
)  # fmt: skip
def test_boxes(row, labels, found):
    """In the forms that detectors are exported with."""
    read = Reader(kind="boxes", labels=labels).read_answer(row)
    assert [(b["label"], b["score"]) for b in read.value] == found
    assert read.confidence == (0.0 if not found else pytest.approx(min(score for _, score in found)))


@pytest.mark.parametrize(
    "row",
    [
        np.zeros((3, 5)), np.zeros(6), {"a": np.zeros((2, 4)), "b": np.zeros(2)}, {"boxes": BOXES, "scores": np.array([0.5])},
        {"boxes": BOXES, "scores": np.array([5.0, 0.1]), "labels": np.zeros(2)}, {"boxes": BOXES[:, :3], "scores": np.zeros(2)},
        {"boxes": BOXES, "scores": np.array([0.9, np.nan]), "labels": np.zeros(2)},
        {"boxes": BOXES, "scores": np.array([0.9, 0.9]), "labels": np.array([0, 7])}, None, "boxes", 3,
    ],
)  # fmt: skip
def test_what_are_no_boxes(row):
    """An error, on the device and of a cloud, and never a detection."""
    with pytest.raises(ModelError):
        Reader(kind="boxes", labels=["cat"], name="detector").read_answer(row)
    with pytest.raises(BadReply):
        ReplyReader(kind="boxes", labels=["cat"]).read_answer(row)


@pytest.mark.parametrize("row", [[(0, 0, 9, 9, 0.9, "dog")], np.array([[0, 0, 9, 9, 0.9, None]], object)])
def test_a_class_as_text_among_numbers_of_boxes(row):
    """The error says what else than numbers may be given; such a list is read."""
    with pytest.raises(ModelError, match=r'text or what else is no number \(then give a list of {"label"'):
        Reader(kind="boxes").read_answer(row)
    listed = [{"label": "dog", "score": 0.9, "box": [0, 0, 9, 9]}]
    assert Reader(kind="boxes").read_answer(listed).value[0]["label"] == "dog"


def test_the_kinds_are_the_same_everywhere():
    """In Python, in the policy and in the page about them."""
    from typing import get_args

    from edgeroute.policy.model_and_endpoint_sections import Kind

    assert get_args(Kind) == KINDS
    for make in (
        lambda kind: CallableModel(len, kind=kind),
        lambda kind: Function(len, kind=kind),
        lambda kind: Reader(kind=kind),
    ):
        for kind in (*KINDS, None):
            make(kind)
        with pytest.raises(PolicyError, match='did you mean "probabilities"'):
            make("probabilites")


P = np.array([[0.25, 0.75]])


@pytest.mark.parametrize(
    "row",
    [
        {"label": np.array([1]), "p": P}, {"label": np.array([1]), "p": [{0: 0.25, 1: 0.75}]}, {"p": P, "label": np.array([1])},
        {"label": 1, "p": [[0.25, 0.75]]},
    ],
)  # fmt: skip
def test_a_label_and_probabilities_with_a_batch_axis(row):
    """As scikit-learn's `predict` and `predict_proba` give them for one input, by their form and by their kind."""
    for kind in (None, "label+probabilities"):
        assert Reader(kind=kind).read_answer(row)[:2] == (1, pytest.approx(0.75))
    assert Reader(kind="label+probabilities").read_answer(tuple(row.values()))[:2] == (1, pytest.approx(0.75))


@pytest.mark.parametrize("n", [2, 0])
def test_boxes_with_a_batch_axis(n):
    """Of 1, as a function that runs a detector gives them: the same with their kind and without."""
    row = {"boxes": BOXES[None, :n], "scores": np.array([[0.6, 0.9]])[:, :n], "labels": np.array([[0, 1]])[:, :n]}
    told, found = Reader(kind="boxes").read_answer(row), Reader().read_answer(row)
    assert found[:2] == told[:2]
    assert len(found.value) == n


def test_one_box_without_any_axis():
    """As `squeeze` leaves it: its sides are no logits."""
    row = {"boxes": np.array([0, 0, 9, 9.0]), "scores": np.array(0.9), "labels": np.array(1)}
    for kind in (None, "boxes"):
        read = Reader(kind=kind).read_answer(row)
        assert ([(one["label"], one["score"]) for one in read.value], read.confidence) == ([(1, 0.9)], 0.9)


@pytest.mark.parametrize("labels", [np.array(["a", "b"]), ["a", "b"], ("a", "b"), iter(["a", "b"]), {"a": 0, "b": 1}.keys()])
def test_labels_in_any_container(labels):
    """numpy's, too. Text alone is no list of labels, and a set has no order: its first name would be another in each process."""
    assert CallableModel(len, labels=labels).labels == ("a", "b")
    for wrong in ("ab", {"a": 1}, {"a", "b"}, frozenset("ab"), 3, np.array("a"), [["a"], ["b"]], np.array([["a", "b"]])):
        with pytest.raises(PolicyError, match="a name for each class, in order"):
            CallableModel(len, labels=wrong)
    assert CallableModel(len, labels=np.array([3, 7])).labels == (3, 7)
    assert CallableModel(len, labels=np.array([])).labels is None


def test_a_label_with_a_confidence_is_looked_up_as_one_without():
    """By its text, else by its number; one that is none of them is an error. An API's numbers are none: it has names."""
    read = Reader(labels=["9", "8", "7"], name="m")
    for meant, label in ((9, "9"), ("8", "8"), (2, "7"), (np.int64(2), "7"), (True, "8")):
        assert read.read_answer((meant, 0.9))[:2] == (label, 0.9)
        assert read.read_answer(np.array(meant)).value == label
    for none in (3, "x", -1):
        for row in ((none, 0.9), np.array(none)):
            with pytest.raises(BadReply, match="not among its 3"):
                read.read_answer(row)
    with pytest.raises(BadReply, match="none of the 3 labels"):
        ReplyReader(labels=["9", "8", "7"]).read_answer((2, 0.9))


def test_a_label_in_an_array_of_its_own():
    """As scikit-learn's `predict` gives it."""
    assert Reader(labels=["9", "8", "7"]).read_answer((np.array([2]), 0.9)).value == "7"


def test_a_prediction_is_an_answer(make):
    """Of a plain function as of a generator; and of one that is awaited."""
    with make(lambda _: Prediction("cat", np.float32(0.5), None), threshold=0.5) as router:
        assert (router.infer(1).value, router.infer(1).confidence) == ("cat", 0.5)

    async def see(_):
        return Prediction("cat", 0.5, None)

    with Tasks(see, threshold=0.5) as router:
        assert (router.infer(1).value, router.infer(1).confidence) == ("cat", 0.5)


def test_a_function_has_a_score_and_a_rule_of_its_own(make):
    """As a model file has."""

    def nothing(_):
        return {"boxes": BOXES, "scores": np.array([0.1, 0.2]), "labels": np.array([0, 1])}

    for rule, sure in ((None, 0), ("accept", 1), ("score", 0.8)):
        with make(CallableModel(nothing, none_found=rule), threshold=0.5) as router:
            assert router.infer(1).confidence == pytest.approx(sure)
    with pytest.raises(PolicyError, match='did you mean "accept"'):
        CallableModel(nothing, none_found="acept")
    with make(CallableModel(lambda _: np.array([1.0, 5.0, 5.0]), score="margin"), threshold=0.5) as router:
        assert router.infer(1).confidence == pytest.approx(0)


def test_a_threshold_of_numpy(make):
    """Is a number, too."""
    with make(lambda _: ("cat", 0.9), lambda _: "dog", threshold=np.float32(0.5)) as router:
        assert router.infer(1).source == "edge"


def test_both_sides_compare_equal(make):
    """A cloud's 9 is the edge's "9", as a number of numpy's, of JSON or of a function."""
    labels = [str(i) for i in range(10)]
    edge = CallableModel(lambda _: ("9", 0.1), labels=labels)
    with CannedServer(http_reply(b'{"value": 9, "confidence": 0.9}')) as server:
        for cloud in (
            lambda _: np.int64(9),
            lambda _: 9,
            lambda _: (np.int64(9), 0.9),
            lambda _: np.array([9]),
            PlainJson(server.url),
        ):
            with make(edge, cloud, threshold=0.8) as router:
                answer = router.infer(1)
                assert (answer.value, answer.source) == ("9", "cloud"), answer.reason


def test_a_function_that_gives_probabilities_is_read_as_such(make, caplog):
    """Whichever side it is on, from its first row on; a kind that says logits warns once."""
    caplog.set_level("INFO", "edgeroute")
    for edge, cloud in ((lambda _: np.array([0.1, 0.9]), None), (lambda _: ("a", 0.0), lambda _: np.array([0.1, 0.9]))):
        caplog.clear()
        with make(edge, cloud, threshold=0.5) as router:
            assert [round(router.infer(1).confidence, 2) for _ in range(3)] == [0.9] * 3
        assert len([r for r in caplog.records if "are read as probabilities" in r.getMessage()]) == 1
    with make(CallableModel(lambda _: np.array([0.1, 0.9]), kind="logits"), threshold=0.5) as router:
        assert [round(router.infer(1).confidence, 2) for _ in range(3)] == [0.69] * 3
    assert len([r for r in caplog.records if "gives probabilities" in r.getMessage()]) == 1


plain = st.one_of(
    st.none(), st.booleans(), st.integers(-300, 300), st.floats(width=32), st.text(max_size=3), st.binary(max_size=3),
    st.sampled_from([np.float32(0.5), np.int64(3), np.array([0.5, 0.5]), np.array([[1.0, 2.0]]), np.array([]), np.array(["a"]), object()]),
)  # fmt: skip
anything = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.tuples(inner), st.tuples(inner, inner), st.tuples(inner, inner, inner),
        st.dictionaries(st.sampled_from(["label", "p", "boxes", "scores", "num"]), inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=draws(300), deadline=None)
@given(
    anything, st.sampled_from([*KINDS, None]), st.sampled_from([None, ("a", "b"), (1, 2)]), st.sampled_from([Reader, ReplyReader])
)
def test_whatever_comes(result, kind, labels, reader):
    """It is a prediction with a confidence from 0 to 1, NaN or None, or an error of ours: nothing else."""
    try:
        read = reader(kind=kind, labels=labels).read_answer(result)
    except (ModelError, BadReply, PolicyError):
        return
    assert read.confidence is None or math.isnan(read.confidence) or 0 <= read.confidence <= 1


def test_a_tensor_of_torch(make):
    """Is read as its numbers are, and as a value it is Python's: of a gradient, a GPU or bfloat16 there is no array as it is."""
    z = np.float32([0.0, 3.0])
    whole = Tensor(np.array(1), left=["detach", "cpu"])
    for edge in (lambda x: Tensor(z), lambda x: Tensor(z[None]), lambda x: {"logits": Tensor(z)}, lambda x: (whole, 0.95)):
        with make(edge, threshold=0.9) as router:
            answer = router.infer(1)
        assert (answer.value, type(answer.value), answer.confidence) == (1, int, pytest.approx(0.95, abs=0.01))


def test_a_tensor_of_double_precision_keeps_it():
    with Router(lambda x: Tensor(np.array([0.1]), left=["detach", "cpu"]), None) as router:
        assert router.infer(1).value == pytest.approx(0.1, rel=1e-12)


class Careless:
    """An object of which each missing attribute raises KeyError."""

    def __getattr__(self, name):
        raise KeyError(name)


@pytest.mark.parametrize("given", [io.BytesIO(b"a picture"), (Careless(), 0.9)])
def test_what_is_no_tensor_is_the_value_as_it_is(make, given):
    """A file has `detach`, too."""
    with make(lambda x: given, None, mode="only_edge") as router:
        assert router.infer(1).value is (given[0] if type(given) is tuple else given)


def test_numbers_by_name_that_are_no_probabilities_once_are_none_later(make):
    """A function's first output is its value: rows that happen to be from 0 to 1 are no reason to refuse them."""
    with make(lambda x: {"temperature": x, "humidity": 0.4}, None) as router:
        assert [router.infer(x).value for x in (21.5, 0.3)] == [21.5, 0.3]
    with make(lambda x: {"temperature": x, "humidity": 0.4}, threshold=0.5, score=lambda out: 0.8) as router:
        assert (router.infer(0.3).value, router.infer(0.3).confidence) == (0.3, 0.8)  # a score reads them itself
