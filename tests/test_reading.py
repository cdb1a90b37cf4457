"""Outputs of real model files, read by `inspect`, `check`, the router and a client of `edgeroute serve` alike, against plain numpy."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import tiny
from both import Tasks, Threads, running, wait_for
from commands import cli
from draws import slow
from onnx import TensorProto, helper, numpy_helper

from edgeroute import (
    Audit,
    BadInput,
    BadReply,
    CallableModel,
    Function,
    ModelError,
    OnnxModel,
    OpenAIChat,
    OpenInference,
    Options,
    Router,
)
from edgeroute.cloud.function_backend_and_reply_checks import ReplyReader
from edgeroute.confidence import Reader
from edgeroute.confidence.output_forms_labels_and_comparison import same
from edgeroute.edge.onnx import last_operators, scales
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.export.triton_kserve_ray_exports import triton
from edgeroute.tools.server.serve import app

pytestmark = pytest.mark.pure

X = np.array([0.0, 2.0, -1.0, 0.5], np.float32)
MANY = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
LABELS = ["a", "b", "c", "d"]


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def make(request):
    """A router of either kind."""
    return request.param


def ending(path, *operators, output="y", size=4, card=None):
    """x [n, size] -> y, by operators one after the other."""
    names = ["x", *(f"t{i}" for i in range(len(operators) - 1)), output]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(operators)]
    value = helper.make_tensor_value_info
    tiny.save(path, nodes, [value("x", TensorProto.FLOAT, ["n", size])], [value(output, TensorProto.FLOAT, ["n", size])])
    if card is not None:
        path.with_suffix(".json").write_text(json.dumps(card))
    return path


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def says(path):
    """What `inspect` says of the kind."""
    code, out, err = cli("inspect", path, "--json")
    assert code == 0, err
    return next(f["says"] for f in json.loads(out)["findings"] if f["about"] == "output.kind")


def checked(model, *, ok=True):
    """The text of `check`, which is or is not ready."""
    with Router(model, threshold=0) as router:
        check = router.check()
    assert check.ok is ok
    return str(check)


@pytest.mark.parametrize(
    "operators", [["Softmax"], ["Softmax", "Identity"], ["Neg", "Softmax", "Identity", "Identity"], ["LogSoftmax"]]
)
def test_a_softmax_is_read_as_such(make, tmp_path, operators):
    """From its first answer on, and `check` and `inspect` say so."""
    path = ending(tmp_path / "m.onnx", *operators)
    p = softmax(-MANY if "Neg" in operators else MANY)
    assert "its outputs are read as" in checked(path)
    with make(path, threshold=0) as router:
        answers = router.infer_many(list(MANY))
        assert [a.value for a in answers] == p.argmax(1).tolist()
        assert [a.confidence for a in answers] == pytest.approx(p.max(1).tolist(), rel=1e-4)
        assert router.infer(MANY[0]).confidence == pytest.approx(p[0].max(), rel=1e-4)
    assert says(path) == ("logprobs" if "LogSoftmax" in operators else "probabilities")


def test_a_sigmoid_has_several_labels(make, tmp_path):
    """The value is the list of labels above .5; the confidence that of the least decided one."""
    path = ending(tmp_path / "m.onnx", "Sigmoid", card={"labels": LABELS})
    assert "multilabel" in checked(path)
    with make(path, threshold=0) as router:
        for x, answer in zip(MANY, router.infer_many(list(MANY)), strict=True):
            p = sigmoid(x)
            assert answer.value == [label for label, v in zip(LABELS, p, strict=True) if v > 0.5]
            assert answer.confidence == pytest.approx(float(np.maximum(p, 1 - p).min()), rel=1e-4)
    assert says(path) == "multilabel"


@pytest.mark.parametrize(("operator", "kind"), [("Softmax", "probabilities"), ("Identity", "logits"), ("Sigmoid", "multilabel")])
def test_classes_of_a_picture_along_further_axes(make, tmp_path, operator, kind):
    """[n, classes, 1, 1], as convolutions at the end give them, is a number for each class, on both sides."""
    value, node = helper.make_tensor_value_info, helper.make_node
    nodes = [node(operator, ["x"], ["p"]), node("Unsqueeze", ["p", "axes"], ["y"])]
    made = value("y", TensorProto.FLOAT, ["n", 4, 1, 1])
    path = tiny.save(tmp_path / "m.onnx", nodes, [value("x", TensorProto.FLOAT, ["n", 4])], [made], [("axes", np.array([2, 3]))])
    flat = ending(tmp_path / "flat.onnx", operator)
    assert says(path) == (kind if operator != "Identity" else "logits?")
    for labels in (None, LABELS):
        with (
            make(OnnxModel(path, labels=labels), threshold=0) as router,
            make(OnnxModel(flat, labels=labels), threshold=0) as same_,
        ):
            assert router.check().ok
            wanted, given = same_.infer_many(list(MANY)), router.infer_many(list(MANY))
            assert [a.value for a in given] == [a.value for a in wanted]
            assert [a.confidence for a in given] == pytest.approx([a.confidence for a in wanted])
        with running(app([OnnxModel(path, labels=labels)])) as client:
            router = make(None, OpenInference(f"{client.base_url}/v2/models/m"), mode="only_cloud")
            with router:
                assert [a.value for a in router.infer_many(list(MANY))] == [a.value for a in wanted]


@pytest.mark.parametrize("operators", [["Sigmoid", "Clip"], ["HardSigmoid"], ["HardSigmoid", "Reshape"]])
def test_other_ends_of_several_labels(tmp_path, operators):
    """Cut to a range, or by a cheaper sigmoid."""
    value, names = helper.make_tensor_value_info, ["x", *(f"t{i}" for i in range(len(operators) - 1)), "y"]
    more = {"Clip": ["low", "high"], "Reshape": ["shape"]}
    nodes = [helper.make_node(op, [names[i], *more.get(op, [])], [names[i + 1]]) for i, op in enumerate(operators)]
    constants = [("low", np.float32(0)), ("high", np.float32(1)), ("shape", np.array([-1, 4]))]
    path = tiny.save(
        tmp_path / "m.onnx",
        nodes,
        [value("x", TensorProto.FLOAT, ["n", 4])],
        [value("y", TensorProto.FLOAT, ["n", 4])],
        constants,
    )
    assert says(path) == "multilabel"
    with Router(path, threshold=0.6) as router:
        assert router.infer(np.array([3, -3, 3, 3], np.float32)).value == [0, 2, 3]


@pytest.mark.parametrize("output", ["y", "logits"])
def test_numbers_from_0_to_1_whose_kind_nothing_tells(tmp_path, output):
    """May be several labels, which a softmax would make unsure: not ready, until the kind is written, or a name says logits."""
    value, node = helper.make_tensor_value_info, helper.make_node
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "less"], [output])]
    given, made = [value("x", TensorProto.FLOAT, ["n", 4])], [value(output, TensorProto.FLOAT, ["n", 4])]
    path = tiny.save(tmp_path / "m.onnx", nodes, given, made, [("less", np.float32(0.9))])
    for edge, ok in (
        (OnnxModel(path), output == "logits"),
        (OnnxModel(path, labels=LABELS), output == "logits"),
        (OnnxModel(path, kind="multilabel"), True),
        (OnnxModel(path, kind="logits"), True),
        (OnnxModel(path, score=lambda _: 0.5), True),
    ):
        with Router(edge, lambda x: "cloud", threshold=0.9) as router:
            check = router.check()
            assert (check.ok, 'write kind = "multilabel" in its card' in str(check)) == (ok, not ok)


@pytest.mark.parametrize(("operator", "kind"), [("QLinearSigmoid", "multilabel"), ("QLinearSoftmax", "probabilities")])
def test_quantised_operators_of_onnx_runtime(tmp_path, operator, kind):
    """As those of ONNX: a quantised file ends in them and DequantizeLinear."""
    value, node = helper.make_tensor_value_info, helper.make_node
    more = {"opset": 13, "axis": -1} if operator == "QLinearSoftmax" else {}
    nodes = [
        node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        node(operator, ["q", "scale", "zero", "made", "low"], ["p"], domain="com.microsoft", **more),
        node("DequantizeLinear", ["p", "made", "low"], ["y"]),
    ]
    constants = {"scale": np.float32(0.05), "zero": np.uint8(128), "made": np.float32(1 / 256), "low": np.uint8(0)}
    graph = helper.make_graph(
        nodes, "m", [value("x", TensorProto.FLOAT, ["n", 4])], [value("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path := tmp_path / "m.onnx")
    assert says(path) == kind
    with Router(path, threshold=0) as router:
        answer = router.infer(X)
    p = sigmoid(X) if kind == "multilabel" else softmax(X)
    assert answer.confidence == pytest.approx(float(np.maximum(p, 1 - p).min() if kind == "multilabel" else p.max()), abs=0.02)


def test_rounded_probabilities(make, tmp_path):
    """Of 16 bits are read as probabilities; others whose sum is not quite 1 are not ready, and the line to write works."""
    value, node = helper.make_tensor_value_info, helper.make_node
    nodes = [node("Exp", ["x"], ["e"]), node("ReduceSum", ["e", "axes"], ["s"]), node("Div", ["e", "s"], ["p"])]
    x = np.random.default_rng(1).normal(size=40).astype(np.float32)
    for name, last in (("half", node("Cast", ["p"], ["y"], to=TensorProto.FLOAT16)), ("short", node("Mul", ["p", "c"], ["y"]))):
        kind = TensorProto.FLOAT16 if name == "half" else TensorProto.FLOAT
        path = tiny.save(
            tmp_path / f"{name}.onnx", [*nodes, last], [value("x", TensorProto.FLOAT, ["n", 40])], [value("y", kind, ["n", 40])],
            [("axes", np.array([1])), ("c", np.float32(0.9995))],
        )  # fmt: skip
        said = checked(path, ok=name == "half")
        assert ("read as probabilities" if name == "half" else '"kind": "probabilities" in the output of its card') in said
        assert says(path) == "probabilities"
        checked(OnnxModel(path, score=lambda p: float(p.max())))  # a score of one's own reads them by no kind
        with make(path if name == "half" else OnnxModel(path, kind="probabilities"), threshold=0) as router:
            assert router.check().ok
            assert router.infer(x).confidence == pytest.approx(softmax(x).max(), rel=0.01)


def test_a_single_sigmoid_is_a_binary_classifiers(tmp_path):
    """Its class number, or the label, with the probability of it."""
    for card, value in (({}, 1), ({"labels": ["ham", "spam"]}, "spam")):
        path = ending(tmp_path / "m.onnx", "Sigmoid", size=1, card=card)
        with Router(path, threshold=0) as router:
            answer = router.infer(np.array([3.0], np.float32))
            assert (answer.value, answer.confidence) == (value, pytest.approx(sigmoid(3.0), rel=1e-4))
        assert says(path) == "probabilities"


def test_check_says_how_a_single_sigmoid_is_read(tmp_path):
    """As one probability, not as several labels."""
    line = checked(ending(tmp_path / "m.onnx", "Sigmoid", size=1))
    assert "its outputs are read as the probability of the second of two classes, since Sigmoid makes them" in line
    assert "multilabel" not in line


def constant(path, *arrays):
    """A picture x -> these arrays, whatever the picture."""
    value, names = helper.make_tensor_value_info, [f"output{i}" for i in range(len(arrays))]
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0), helper.make_node("Mul", ["m", "zero"], ["z"])]
    nodes += [helper.make_node("Add", [f"c{i}", "z"], [name]) for i, name in enumerate(names)]
    constants = [("zero", np.float32(0)), *((f"c{i}", array) for i, array in enumerate(arrays))]
    outputs = [value(name, TensorProto.FLOAT, array.shape) for name, array in zip(names, arrays, strict=True)]
    return tiny.save(path, nodes, [value("x", TensorProto.FLOAT, [1, 8, 8, 1])], outputs, constants)


def test_boxes_by_their_form_are_said_to_be_boxes(tmp_path):
    """Raw ones in pixels; where it is open if there is an objectness, the line to write is for boxes."""
    rng = np.random.default_rng(0)
    boxes = rng.uniform(20, 300, (1, 4, 500)).astype(np.float32)
    raw = np.concatenate([boxes, rng.uniform(0, 0.3, (1, 3, 500)).astype(np.float32)], axis=1)
    raw[0, 5, 0] = 0.9
    path = constant(tmp_path / "raw.onnx", raw)
    assert "its outputs are read as boxes, by their form alone" in checked(path)
    with Router(path, lambda x: "cloud", threshold=0.5) as router:
        assert [box["label"] for box in router.infer(np.zeros((8, 8, 1), np.float32)).value] == [1]
    path = constant(tmp_path / "v5.onnx", raw.transpose(0, 2, 1))
    with Router(path, lambda x: "cloud", threshold=0.5) as router:
        assert 'write kind = "boxes" and labels in its card' in str(router.check())


@pytest.mark.parametrize("shapes", [[(1, 8, 200), (1, 4)], [(1, 320, 320)], [(1, 200, 8), (1, 4)], [(1, 8, 200)]])
def test_numbers_from_0_to_1_are_no_boxes(tmp_path, shapes):
    """A mask, or states of a layer: nothing is found in them with confidence, and `check` is not ready."""
    rng = np.random.default_rng(0)
    path = constant(tmp_path / "m.onnx", *(rng.uniform(0, 1, shape).astype(np.float32) for shape in shapes))
    with Router(path, lambda x: "cloud", threshold=0.5) as router:
        check = router.check()
        assert not check.ok
        assert "! edge gives no confidence, so each input goes on" in str(check)
        assert router.infer(np.zeros((8, 8, 1), np.float32)).source == "cloud"


def branches(path, operator, output="y", card=None):
    """x [n, 4] -> y by an operator in both branches of an If."""
    value = helper.make_tensor_value_info

    def branch(name):
        node, made = helper.make_node(operator, ["x"], [name]), value(name, TensorProto.FLOAT, ["n", 4])
        return helper.make_graph([node], name, [], [made])

    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0), helper.make_node("Greater", ["m", "zero"], ["more"])]
    nodes += [helper.make_node("If", ["more"], [output], then_branch=branch("then"), else_branch=branch("else"))]
    given, made = [value("x", TensorProto.FLOAT, ["n", 4])], [value(output, TensorProto.FLOAT, ["n", 4])]
    if card is not None:
        path.with_suffix(".json").write_text(json.dumps(card))
    return tiny.save(path, nodes, given, made, [("zero", np.float32(0))])


def test_a_graph_that_ends_in_an_if(tmp_path):
    """Does not tell its kind: `check` says what to write, unless numbers, the output's name or a card tell."""
    for operator in ("Sigmoid", "Identity", "LpNormalization"):
        for card in (None, {"labels": LABELS}):
            path = branches(tmp_path / f"{operator}{card is None}.onnx", operator, card=card)
            with Router(path, lambda x: "cloud", threshold=0.9) as router:
                check = router.check()
                assert not check.ok
                assert "! edge ends in an If, which does not tell what its output is" in str(check)
                assert 'write "output": {"kind": "logits"} in its card' in str(check)
    for path in (
        branches(tmp_path / "p.onnx", "Softmax"),
        branches(tmp_path / "n.onnx", "Identity", output="logits"),
        branches(tmp_path / "k.onnx", "Sigmoid", card={"output": {"kind": "multilabel"}}),
    ):
        with Router(path, lambda x: "cloud", threshold=0.9) as router:
            assert router.check().ok, path


def top(path, *operators, k=3, size=8, squeezed=False, **attributes):
    """x [n, size] -> the k best of the classes, by their scores, in float32, and their numbers, in int32."""
    names = ["x", *(f"t{i}" for i in range(len(operators)))]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(operators)]
    nodes += [helper.make_node("TopK", [names[-1], "k"], ["v", "i"], **attributes), helper.make_node("Identity", ["v"], ["w"])]
    last, shape = (["Squeeze", "one"], ["n"]) if squeezed else (["Identity"], ["n", k])
    nodes += [
        helper.make_node(last[0], ["w", *last[1:]], ["scores"]),
        helper.make_node(last[0], ["i", *last[1:]], ["j"]), helper.make_node("Cast", ["j"], ["best"], to=TensorProto.INT32),
    ]  # fmt: skip
    value = helper.make_tensor_value_info
    outputs = [value("scores", TensorProto.FLOAT, shape), value("best", TensorProto.INT32, shape)]
    constants = [("k", np.array([k])), *([("one", np.array([1]))] if squeezed else [])]
    return tiny.save(path, nodes, [value("x", TensorProto.FLOAT, ["n", size])], outputs, constants)


EIGHT = np.random.default_rng(1).normal(size=(9, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("before", "k"),
    [("Softmax", 3), *slow(("Softmax", 1), ("Softmax", 8), ("LogSoftmax", 1), ("LogSoftmax", 3), ("LogSoftmax", 8))],
)
def test_the_best_classes_and_their_probabilities(make, tmp_path, before, k):
    """The answer is the class, not the place among the best; the rest of the sum of 1 belongs to others. So over a server."""
    path = top(tmp_path / "m.onnx", before, k=k, squeezed=k == 1)
    p = np.sort(softmax(EIGHT))[:, ::-1]
    assert says(path) == "top+probabilities"
    assert "its outputs are read as top+probabilities, since TopK makes them" in checked(path)
    for labels, score in ((None, "msp"), ([*"abcdefgh"], "margin")):
        model, right = OnnxModel(path, labels=labels), [(labels or range(8))[i] for i in EIGHT.argmax(1)]
        expected = (p[:, 0] - (p[:, 1] if score == "margin" else 0)).tolist()
        with running(app([OnnxModel(path, labels=labels)])) as client:
            served = OpenInference(f"{client.base_url}/v2/models/m")
            for sides in ((model,), (None, served)):
                with make(*sides, threshold=0, score=score, mode="only_edge" if model in sides else "only_cloud") as router:
                    answers = [router.infer(EIGHT[0]), *router.infer_many(list(EIGHT))]
                assert [answer.value for answer in answers] == [right[0], *right]
                if score == "msp" or k > 1:  # of one alone the second is not known
                    assert [a.confidence for a in answers] == pytest.approx([expected[0], *expected], abs=1e-4)


@pytest.mark.parametrize("before", [[], ["Sigmoid"], ["Softmax", "Neg"]])
def test_the_best_classes_and_scores_that_are_no_probabilities(make, tmp_path, before):
    """The class is known, and how likely it is is not: `check` says so, and a score of one's own gets both outputs."""
    path, best = top(tmp_path / "m.onnx", *before), (-EIGHT if "Neg" in before else EIGHT).argmax(1).tolist()
    assert says(path) == "top"
    with Router(path, lambda _: "cloud", threshold=0.5) as router:
        check = router.check()
    assert not check.ok
    assert "gives no confidence, so each input goes on: write score=, a function of its outputs" in str(check)
    for labels in (None, [*"abcdefgh"]):
        with make(OnnxModel(path, labels=labels), threshold=0, no_confidence="accept") as router:
            answers = router.infer_many(list(EIGHT))
        assert [(a.value, a.confidence) for a in answers] == [((labels or range(8))[i], None) for i in best]
    with make(OnnxModel(path, score=lambda row: float(row["scores"][0] > row["scores"][1])), threshold=0.5) as router:
        answer = router.infer(EIGHT[0])
    assert (answer.value, answer.confidence) == (best[0], pytest.approx(1))


def test_two_outputs_that_are_not_of_one_topk(tmp_path):
    """Of two nodes, of the least scores, or beside a third: nothing tells that they are the best classes."""
    value, node = helper.make_tensor_value_info, helper.make_node
    nodes = [
        node("Softmax", ["x"], ["p"]), node("Neg", ["x"], ["m"]), node("Softmax", ["m"], ["q"]),
        node("TopK", ["p", "k"], ["scores", "i"]), node("TopK", ["q", "k"], ["v", "best"]),
    ]  # fmt: skip
    scores, best = value("scores", TensorProto.FLOAT, ["n", 3]), value("best", TensorProto.INT64, ["n", 3])
    given, k = [value("x", TensorProto.FLOAT, ["n", 8])], [("k", np.array([3]))]
    crossed = tiny.save(tmp_path / "crossed.onnx", nodes, given, [scores, best], k)
    more = [scores, value("i", TensorProto.INT64, ["n", 3]), value("p", TensorProto.FLOAT, ["n", 8])]
    for path in (
        crossed,
        tiny.save(tmp_path / "more.onnx", nodes, given, more, k),
        top(tmp_path / "least.onnx", "Softmax", largest=0),
    ):
        assert OnnxModel(path).kind is None, path


@pytest.mark.parametrize("attributes", [{"sorted": 0}, {"largest": 1, "sorted": 1}])
def test_the_best_classes_in_any_order(tmp_path, attributes):
    """The best one is that of the best score."""
    with Router(top(tmp_path / "m.onnx", "Softmax", k=5, **attributes), threshold=0) as router:
        assert [answer.value for answer in router.infer_many(list(EIGHT))] == EIGHT.argmax(1).tolist()


def test_the_best_scores_alone(make, tmp_path):
    """Tell no class, the least neither: they are a value, without a confidence."""
    least = top(tmp_path / "least.onnx", largest=0)
    model = onnx.load(least)
    for attribute in (attribute for node in model.graph.node for attribute in node.attribute if attribute.name == "largest"):
        attribute.ClearField("i")  # as writers do that leave a 0 out
    onnx.save(model, tmp_path / "unwritten.onnx")
    paths = least, tmp_path / "unwritten.onnx", top(tmp_path / "top.onnx"), top(tmp_path / "sigmoid.onnx", "Sigmoid")
    for path in paths:
        with make(OnnxModel(path, output="scores"), threshold=0, no_confidence="accept") as router:
            answer = router.infer(np.arange(2, 10).astype(np.float32))
        assert (answer.value.shape, answer.confidence) == ((3,), None)


@pytest.mark.parametrize("scores", [[3.0, -1.0], [-1.0, 3.0], [0.8, 0.1], [0.1, 0.8]])
def test_whole_numbers_beside_scores_are_no_classes(make, scores):
    """Those of a function may be anything, whatever the order of the scores."""
    with make(lambda _: {"logits": np.array(scores, np.float32), "ids": np.array([10, 20])}, threshold=0) as router:
        assert router.infer(0).value == int(np.argmax(scores))


def test_an_output_for_each_class(make, tmp_path):
    """As skl2onnx writes it with zipmap="columns": a label, and beside it the probabilities in an output each."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Softmax", ["x"], ["p"]), helper.make_node("ArgMax", ["p"], ["label"], axis=1, keepdims=0),
        helper.make_node("Split", ["p"], ["s0", "s1", "s2"], axis=1),
        *(helper.make_node("Squeeze", [f"s{i}", "one"], [f"i{i}"]) for i in range(3)),
    ]  # fmt: skip
    outputs = [value("label", TensorProto.INT64, ["n"]), *(value(f"i{i}", TensorProto.FLOAT, ["n"]) for i in range(3))]
    path = tiny.save(tmp_path / "m.onnx", nodes, [value("x", TensorProto.FLOAT, ["n", 3])], outputs, [("one", np.array([1]))])
    rows = MANY[:, :3]
    with make(OnnxModel(path, labels=["a", "b", "c"]), threshold=0) as router:
        answers = router.infer_many(list(rows))
    p = softmax(rows)
    assert [answer.value for answer in answers] == ["abc"[i] for i in p.argmax(1)]
    assert [answer.confidence for answer in answers] == pytest.approx(p.max(1).tolist(), abs=1e-5)
    assert says(path) == "label+probabilities"
    assert checked(OnnxModel(path))


def test_a_state_is_no_answer(tmp_path):
    """The only other output tells the kind, also as a number without axes for each input."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=0), helper.make_node("Sigmoid", ["m"], ["p"]),
        helper.make_node("Identity", ["h"], ["hn"]),
    ]  # fmt: skip
    given = [value("x", TensorProto.FLOAT, ["n", 4]), value("h", TensorProto.FLOAT, [1, 2])]
    path = tiny.save(
        tmp_path / "m.onnx", nodes, given, [value("p", TensorProto.FLOAT, ["n"]), value("hn", TensorProto.FLOAT, [1, 2])]
    )
    assert OnnxModel(path).kind is None
    assert says(path) == "probabilities"
    path.with_suffix(".json").write_text(json.dumps({"state": [{"input": "h", "output": "hn"}], "labels": ["no", "yes"]}))
    with Router(path, threshold=0) as router, router.session() as session:
        answer = session.infer(X)
    p = float(sigmoid(X.mean()))
    assert (answer.value, answer.confidence) == ("yes", pytest.approx(p, rel=1e-4))


def test_a_calibration_reads_as_the_router_does(tmp_path):
    """Logits, their softmax in a file, the best of it and that of a function have one threshold, and it counts."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32) * 3
    right = (x + rng.normal(size=x.shape)).argmax(1).tolist()
    edges = [
        ending(tmp_path / "logits.onnx", "Identity"), ending(tmp_path / "softmax.onnx", "Softmax"),
        top(tmp_path / "best.onnx", "Softmax", size=4, k=2),
        CallableModel(softmax, name="softmax", version="1"),
    ]  # fmt: skip
    thresholds = []
    for edge in edges:
        with Router(edge, lambda _: 0, threshold=0.5) as router:
            result = router.calibrate(list(x), right, max_error=0.2)
        thresholds.append(result.certificate.threshold)
        with Router(edge, lambda _: 0, threshold=result) as router:
            assert "certified" in str(router.check())
    assert thresholds == pytest.approx([thresholds[0]] * 4, rel=1e-4)
    assert thresholds[0] > 0.25


def test_boxes_over_a_server(make, tmp_path):
    """As on the device: by the server's metadata, the endpoint's own kind or its card, and one by one for a batch."""
    xywh, scores = yolo(600, 4)
    path, card = boxes_file(tmp_path / "m.onnx", np.concatenate([xywh, scores], 1).T), tmp_path / "m.json"
    card.write_text(json.dumps({"labels": LABELS, "output": {"kind": "boxes"}}))
    with Router(path, threshold=0) as router:
        own = router.infer(X)
    with running(app([OnnxModel(path)])) as client:
        url = f"{client.base_url}/v2/models/m"
        for endpoint in (OpenInference(url), OpenInference(url, kind="boxes", labels=LABELS), OpenInference(url, card=card)):
            with make(None, endpoint, mode="only_cloud") as router:
                for answer in (router.infer(X), *router.infer_many([X] * 2)):
                    assert (answer.value, answer.confidence) == (own.value, own.confidence)


@pytest.mark.parametrize("order", [("boxes", "scores", "classes"), ("scores", "classes", "boxes")])
@pytest.mark.parametrize("labels", [None, ["a", "b"]])
def test_boxes_over_a_server_that_names_no_kind(make, tmp_path, order, labels):
    """By the names of its outputs, as on the device and as `inspect` reads them, not the first output alone."""
    value, shapes = helper.make_tensor_value_info, {"boxes": [1, 3, 4], "scores": [1, 3], "classes": [1, 3]}
    nodes = [helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0), helper.make_node("Mul", ["m", "zero"], ["z"])]
    nodes += [helper.make_node("Add", [f"c_{name}", "z"], [name]) for name in order]
    constants = [("zero", np.float32(0)), ("c_boxes", np.array([[[0, 0, 9, 9]] * 3], np.float32))]
    constants += [("c_scores", np.array([[0.9, 0.2, 0.7]], np.float32)), ("c_classes", np.array([[1, 0, 0]], np.float32))]
    outputs = [value(name, TensorProto.FLOAT, shapes[name]) for name in order]
    path = tiny.save(tmp_path / "m.onnx", nodes, [value("x", TensorProto.FLOAT, [1, 4])], outputs, constants)
    with Router(OnnxModel(path, labels=labels), threshold=0) as router:
        own = router.infer(X)
    assert [box["label"] for box in own.value] == ([1, 0] if labels is None else ["b", "a"])
    with running(app([OnnxModel(path, labels=labels)])) as client:
        url = f"{client.base_url}/v2/models/m"
        assert says(url) == "boxes"
        with make(None, OpenInference(url), mode="only_cloud") as router:
            answer = router.infer(X)
            assert (answer.value, answer.confidence) == (own.value, own.confidence)
        one = OpenInference(url, output="scores", kind="multilabel", labels=["x", "y", "z"])
        with make(None, one, mode="only_cloud") as router:
            assert router.infer(X).confidence == pytest.approx(0.7)


def test_a_kind_that_is_given_counts(tmp_path):
    """In the card, in Python, and "logits" as well, of which `check` says that they are none."""
    path = ending(tmp_path / "m.onnx", "Softmax")
    assert OnnxModel(path).kind == "probabilities"
    assert OnnxModel(path, kind="logits").kind == "logits"
    with Router(OnnxModel(path, kind="logits"), threshold=0) as router:
        assert not router.check().ok
        assert router.infer(X).confidence < 0.5
    assert OnnxModel(ending(tmp_path / "c.onnx", "Sigmoid", card={"output": {"kind": "value"}})).kind == "value"
    assert OnnxModel(tmp_path / "none.onnx").kind is None


def test_logits_by_their_form_alone(tmp_path):
    """Are said to be so by `check`, unless the name of the output, labels or a kind say what they are."""
    alone = "read as logits, by their form alone"
    path = ending(tmp_path / "m.onnx", "Neg")
    assert alone in checked(OnnxModel(path))
    for known in (
        OnnxModel(path, labels=LABELS),
        OnnxModel(path, kind="logits"),
        ending(tmp_path / "n.onnx", "Neg", output="Logits"),
    ):
        assert alone not in checked(known)


def test_an_embedding_has_no_class(make, tmp_path):
    """Neither at `check` nor at a call, until its kind is written; the cloud is asked meanwhile."""
    for name in ("embedding", "pooler_output", "image_features", "last_hidden_state", "latentVector"):
        path = ending(tmp_path / "m.onnx", "Neg", output=name)
        assert 'write kind = "value"' in checked(path, ok=False)
        with make(path, lambda _: "cloud", threshold=0) as router:
            answer = router.infer(X)
            assert (answer.value, answer.source) == ("cloud", "cloud")
            assert "embedding" in answer.reason
        with make(path, threshold=0) as router, pytest.raises(ModelError, match="an embedding"):
            router.infer(X)
        with make(OnnxModel(path, kind="value"), threshold=0, options=Options(no_confidence="accept")) as router:
            assert router.infer(X).value.tolist() == (-X).tolist()
        checked(OnnxModel(path, kind="value"))
        assert says(path) == "value"
    with make(OnnxModel(path, labels=LABELS), threshold=0) as router:
        assert router.infer(X).value == "c", "labels tell that there are classes"
    with make(OnnxModel(path, score=lambda _: 0.7), threshold=0) as router:
        assert router.infer(X).confidence == pytest.approx(0.7)
    with make(ending(tmp_path / "f.onnx", "Neg", output="featured"), threshold=0) as router:
        assert router.infer(X).value == 2


def test_an_embedding_without_a_name(tmp_path):
    """Whose norm is 1, which logits do not have; `inspect` and a function's answers are read alike."""
    unit = np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    path = constant(tmp_path / "m.onnx", unit / np.linalg.norm(unit))
    assert says(path) == "value"
    assert "numbers with a norm of 1: an embedding" in checked(path, ok=False)
    for row, fine in ((unit[0] / np.linalg.norm(unit), False), (unit[0], True), (np.eye(64)[3], True), ([0.6, -0.8], True)):
        with Router(lambda x: x, lambda x: "cloud", threshold=0) as router:
            assert (router.infer(row).source == "edge") == fine


def test_an_embedding_behind_a_url(tmp_path):
    """Is one by the server's metadata: `check` and `inspect` say it before a call does."""
    path = ending(tmp_path / "m.onnx", "Neg", output="embedding")
    with running(app([OnnxModel(path)])) as client:
        url = f"{client.base_url}/v2/models/m"
        assert says(url) == "value"
        for endpoint, ok in ((OpenInference(url), False), (OpenInference(url, labels=LABELS), True)):
            with Router(None, endpoint, mode="only_cloud") as router:
                assert router.check().ok == ok


def free_axes(path, output="y"):
    """x [n, 3, h, w] -> output [n, 2], by a mean over the axes of any size."""
    value, node = helper.make_tensor_value_info, helper.make_node
    nodes = [node("ReduceMean", ["x"], ["m"], axes=[2, 3], keepdims=0), node("MatMul", ["m", "w"], [output])]
    given, read = value("x", TensorProto.FLOAT, ["n", 3, "h", "w"]), value(output, TensorProto.FLOAT, ["n", 2])
    return tiny.save(path, nodes, [given], [read], [("w", np.eye(3, 2, dtype=np.float32))])


@pytest.mark.parametrize("options", [{"labels": ["0"]}, {"kind": "boxes"}, {"kind": "ctc"}])
def test_a_model_of_any_size_is_checked(tmp_path, options):
    """By its declared classes, and by a run; a model that reads rightly is ready."""
    path = free_axes(tmp_path / "m.onnx")
    checked(OnnxModel(path, **options), ok=False)
    assert "not checked" not in checked(OnnxModel(path, labels=["a", "b"]))


@pytest.mark.parametrize(("labels", "ok"), [("ab", True), ("abc", True), ("abcde", False), ("a", False)])
def test_labels_of_steps_are_counted(tmp_path, labels, ok):
    """Of a sequence of any length, perhaps without the blank."""
    given, read = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "t", 3]) for name in "xy")
    path = tiny.save(tmp_path / "m.onnx", [helper.make_node("Neg", ["x"], ["y"])], [given], [read])
    checked(OnnxModel(path, kind="ctc", labels=list(labels)), ok=ok)


def test_labels_are_counted_without_a_run(tmp_path):
    """In a model that takes no size of zeros: by the classes that the file declares."""
    value, node = helper.make_tensor_value_info, helper.make_node
    path = tiny.save(
        tmp_path / "m.onnx", [node("Reshape", ["x", "shape"], ["r"]), node("ReduceMean", ["r"], ["y"], axes=[1], keepdims=0)],
        [value("x", TensorProto.FLOAT, ["n", "t"])], [value("y", TensorProto.FLOAT, ["n", 2])], [("shape", np.array([1, 7, 2]))],
    )  # fmt: skip
    checked(OnnxModel(path, labels=["a"]), ok=False)
    assert "its outputs were not checked: it was not run on zeros" in checked(OnnxModel(path, labels=["a", "b"]))


@pytest.mark.parametrize("output", ["sentence_embedding", "logits"])
def test_an_encoder_of_texts_of_any_length(tmp_path, output):
    """With two inputs, also where the mean over a mask of zeros is NaN."""
    value, node = helper.make_tensor_value_info, helper.make_node
    nodes = [
        node("Gather", ["table", "input_ids"], ["t"]), node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["m", "two"], ["m3"]), node("Mul", ["t", "m3"], ["tm"]), node("ReduceSum", ["tm", "one"], ["s"], keepdims=0),
        node("ReduceSum", ["m", "one"], ["c"], keepdims=1), node("Div", ["s", "c"], [output]),
    ]  # fmt: skip
    given = [value(name, TensorProto.INT64, ["batch", "seq"]) for name in ("input_ids", "attention_mask")]
    constants = [("table", np.ones((5, 64), np.float32)), ("one", np.array([1])), ("two", np.array([2]))]
    path = tiny.save(tmp_path / "m.onnx", nodes, given, [value(output, TensorProto.FLOAT, ["batch", 64])], constants)
    text = checked(path, ok=output == "logits")
    assert ("by its name an embedding" if output != "logits" else "NaN or infinity") in text


def test_the_scale_of_pixels_is_open(tmp_path):
    """Where a model takes a colour picture as floats and no card says how it is scaled; the model is ready all the same."""
    path, note = free_axes(tmp_path / "m.onnx"), "edge: x takes a colour picture as floats, and no preprocess in its card"
    assert note in checked(path)
    preprocess = {"dtype": "uint8", "shape": [3, -1, -1], "layout": "CHW", "scale": 0.5}
    model = {"name": "x", "dtype": "float32", "shape": [-1, 3, -1, -1], "layout": "CHW"}
    path.with_suffix(".json").write_text(json.dumps({"input": {**model, "preprocess": preprocess}}))
    assert note not in checked(path)
    assert note not in checked(ending(tmp_path / "n.onnx", "Neg"))
    assert note not in checked(lambda _: ("a", 0.5))


def test_a_hidden_state_is_a_value(tmp_path):
    """Also where no cloud is: `check` says so, and a custom score may judge an embedding."""
    value, node = helper.make_tensor_value_info, helper.make_node
    path = tiny.save(
        tmp_path / "m.onnx", [node("Gather", ["table", "ids"], ["last_hidden_state"])],
        [value("ids", TensorProto.INT64, ["n", "t"])], [value("last_hidden_state", TensorProto.FLOAT, ["n", "t", 8])],
        [("table", np.ones((5, 8), np.float32))],
    )  # fmt: skip
    assert "'last_hidden_state' is by its name an embedding, read as a value without confidence" in checked(path)
    for file in (ending(tmp_path / "e.onnx", "Neg", output="embedding"), free_axes(tmp_path / "f.onnx", "embedding")):
        checked(file, ok=False)
        checked(OnnxModel(file, score=lambda _: 0.7))


def normalised(path, way):
    """x [n, 4] -> y, divided by a norm in that way; the norm of x, where the way does not name another tensor."""
    node = helper.make_node
    sum_of_squares = [node("Mul", ["x", "x"], ["sq"]), node("ReduceSum", ["sq", "one"], ["s"], keepdims=1)]
    ways = {
        "LpNormalization": [node("LpNormalization", ["x"], ["y"], axis=-1)],
        "p = 1": [node("LpNormalization", ["x"], ["y"], p=1)],
        "ReduceL2": [node("ReduceL2", ["x"], ["s"], axes=[1]), node("Clip", ["s", "eps"], ["c"]), node("Shape", ["x"], ["size"]),
                     node("Expand", ["c", "size"], ["e"]), node("Div", ["x", "e"], ["y"])],
        "Sqrt": [*sum_of_squares, node("Sqrt", ["s"], ["r"]), node("Div", ["x", "r"], ["d"]), node("Identity", ["d"], ["y"])],
        "Reciprocal": [*sum_of_squares, node("Sqrt", ["s"], ["q"]), node("Reciprocal", ["q"], ["r"]), node("Mul", ["x", "r"], ["y"])],
        "sum": [*sum_of_squares, node("Div", ["x", "s"], ["y"])],
        "softmax": [node("Exp", ["x"], ["e"]), node("ReduceSum", ["e", "one"], ["s"]), node("Div", ["e", "s"], ["y"])],
        "of another": [node("Neg", ["x"], ["z"]), node("ReduceL2", ["x"], ["s"], axes=[1]), node("Div", ["z", "s"], ["y"])],
    }  # fmt: skip
    given, read = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    return tiny.save(path, ways[way], [given], [read], [("one", np.array([1])), ("eps", np.array(1e-9, np.float32))])


@pytest.mark.parametrize("way", ["LpNormalization", "ReduceL2", "Sqrt", "Reciprocal"])
def test_a_vector_of_length_1_is_an_embedding(make, tmp_path, way):
    """By the file alone: a value without a class, unless labels or a kind say otherwise."""
    path = normalised(tmp_path / "m.onnx", way)
    assert "read as value, since LpNormalization makes them" in checked(path)
    assert says(path) == "value"
    with make(path, threshold=0, options=Options(no_confidence="accept")) as router:
        answer = router.infer(X)
        assert (answer.value, answer.confidence) == (pytest.approx(X / np.linalg.norm(X)), None)
    with make(path, lambda _: "cloud", threshold=0) as router:
        assert router.infer(X).value == "cloud"
        assert not router.check().ok
    assert OnnxModel(path, labels=LABELS).kind is None
    assert OnnxModel(path, kind="logits").kind == "logits"


@pytest.mark.parametrize("way", ["p = 1", "sum", "softmax", "of another"])
def test_other_divisions_tell_no_kind(tmp_path, way):
    """Such as that of a softmax, or of cosines by the norm of the features."""
    assert OnnxModel(normalised(tmp_path / "m.onnx", way)).kind is None


def test_a_file_that_is_damaged_tells_no_kind(tmp_path):
    """At any length, and with any byte changed; `load` reports it."""
    path = ending(tmp_path / "m.onnx", "Neg", "Softmax")
    data, rng = path.read_bytes(), np.random.default_rng(0)
    assert last_operators(path) == {"y": "Softmax"}
    for size in range(len(data)):
        path.write_bytes(data[:size])
        assert last_operators(path) in ({}, {"y": "Softmax"})
    for _ in range(500):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(changed)
        assert isinstance(last_operators(path), dict)


# ------------------------------------------------------------------------------------------------------------- detectors
def boxes_file(path, array, name="output0"):
    """x [n, 4] -> the array, for each input."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0), helper.make_node("Mul", ["s", "zero"], ["z"]),
        helper.make_node("Add", ["z", "array"], [name]),
    ]  # fmt: skip
    value, array = helper.make_tensor_value_info, array[None].astype(np.float32)
    constants = [("array", array), ("zero", np.array(0, np.float32))]
    return tiny.save(
        path, nodes, [value("x", TensorProto.FLOAT, [1, 4])], [value(name, TensorProto.FLOAT, list(array.shape))], constants
    )


def reference(boxes, scores, classes):
    """What remains of boxes by a plain loop, best first: indices."""

    def overlap(a, b):
        w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        common = max(w, 0) * max(h, 0)
        return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)

    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(classes[i] != classes[j] or overlap(boxes[i], boxes[j]) <= 0.5 for j in kept):
            kept.append(i)
    return kept


def yolo(n, classes, seed=0):
    """Centres and sizes [n, 4], and scores [n, classes]: several boxes for each of a few objects, and noise."""
    rng = np.random.default_rng(seed)
    objects = rng.uniform(50, 590, (6, 2)).repeat(n // 6 + 1, 0)[:n]
    xywh = np.concatenate([objects + rng.normal(0, 4, (n, 2)), rng.uniform(40, 60, (n, 2))], 1)
    scores = rng.uniform(0, 0.2, (n, classes))
    sure = rng.choice(n, 40, replace=False)
    scores[sure, rng.integers(0, classes, 40)] = rng.uniform(0.5, 0.98, 40)
    return xywh.astype(np.float32), scores.astype(np.float32)


@pytest.mark.parametrize("version", ["v5", "v8"])
def test_a_yolo_before_suppression(tmp_path, version):
    """Boxes of each class are suppressed by themselves, as a plain loop does it."""
    xywh, scores = yolo(600, 4)
    if version == "v5":
        objectness = np.random.default_rng(1).uniform(0.8, 1, (600, 1)).astype(np.float32)
        array, scores = np.concatenate([xywh, objectness, scores], 1), scores * objectness
    else:
        array = np.concatenate([xywh, scores], 1).T
    corners = np.concatenate([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], 1)
    best, classes = scores.max(1), scores.argmax(1)
    kept = [i for i in reference(corners, best, classes) if best[i] >= 0.5]
    assert 6 < len(kept) < 40
    path = boxes_file(tmp_path / "m.onnx", array)
    with Router(OnnxModel(path, labels=LABELS), threshold=0) as router:
        assert router.check().ok
        answer = router.infer(X)
    assert [box["label"] for box in answer.value] == [LABELS[classes[i]] for i in kept]
    assert [box["score"] for box in answer.value] == pytest.approx([best[i] for i in kept], rel=1e-4)
    assert np.array([box["box"] for box in answer.value]) == pytest.approx(corners[kept], abs=1e-2)
    found = [v["score"] for v in answer.value]
    assert 0.5 <= answer.confidence <= min(found) + 1e-6
    assert Reader(kind="boxes", labels=LABELS).read_one(array[None]).value == answer.value
    assert Reader(kind="boxes").read_answer(array.astype(np.float64)).value[0]["label"] == classes[kept[0]]
    if version == "v8":
        assert says(path) == "boxes"


@pytest.mark.parametrize(("n", "labels"), [(600, [*LABELS, "one more"]), (99, LABELS)])
def test_a_yolo_that_its_labels_do_not_fit(n, labels):
    """More labels than it has classes would name them wrongly; of few boxes nothing tells which axis counts them."""
    xywh, scores = yolo(n, len(LABELS))
    with pytest.raises(ModelError, match=f"of at least 100 boxes and with {len(labels)} labels"):
        Reader(kind="boxes", labels=labels).read_one(np.concatenate([xywh, scores], 1).T[None])


def test_the_last_step_of_a_detector(tmp_path):
    """[1, 300, 6] as YOLOv10 and RT-DETR give it: read without a kind, as with it."""
    rng = np.random.default_rng(0)
    corners = np.sort(rng.uniform(0, 600, (300, 2, 2)), 1).reshape(300, 4)
    array = np.concatenate([corners, rng.uniform(0, 0.3, (300, 1)), rng.integers(0, 4, (300, 1))], 1)
    array[:2, 4] = 0.9, 0.7
    path = boxes_file(tmp_path / "m.onnx", array)
    for kind in (None, "boxes"):
        with Router(OnnxModel(path, labels=LABELS, kind=kind), threshold=0) as router:
            assert router.check().ok
            answer = router.infer(X)
        assert [(b["label"], round(b["score"], 3)) for b in answer.value] == [
            (LABELS[int(array[i, 5])], array[i, 4]) for i in (0, 1)
        ]
        assert answer.confidence == pytest.approx(float(np.maximum(array[:, 4], 1 - array[:, 4]).min()), rel=1e-4)
    assert says(path) == "boxes"


@pytest.mark.parametrize("reader", [Reader, ReplyReader])
def test_boxes_in_every_form(reader):
    """Of torchvision, of a pipeline, and edgeroute's own: the same answer, on both sides; empty ones are none found."""
    boxes, scores, classes = np.array([[0, 0, 9, 9], [1, 1, 5, 5.0]]), np.array([0.9, 0.2]), np.array([1, 0])
    vision = {"boxes": boxes, "labels": classes, "scores": scores}
    own = [{"label": int(c), "score": float(s), "box": b.tolist()} for b, s, c in zip(boxes, scores, classes, strict=True)]
    sides = ("xmin", "ymin", "xmax", "ymax")
    pipeline = [{**box, "box": dict(zip(sides, box["box"], strict=True))} for box in own]
    rows = np.concatenate([boxes, scores[:, None], classes[:, None]], 1)
    lists = {key: value.tolist() for key, value in vision.items()}
    for given in ([vision], vision, own, pipeline, rows, lists, [lists]):
        for kind in (None, "boxes"):
            read = reader(kind=kind).read_answer(given)
            assert read.value == [{"label": 1, "score": 0.9, "box": [0, 0, 9, 9]}], (given, kind)
            assert read.confidence == pytest.approx(0.8)
            assert reader(kind=kind, labels=["cat", "dog"]).read_answer(given).value[0]["label"] == "dog"
    assert reader(kind=None, labels=["cat", "dog"]).read_answer([{**own[0], "label": "dog"}]).value[0]["label"] == "dog"
    for none in ([], [{"boxes": np.zeros((0, 4)), "labels": np.zeros(0), "scores": np.zeros(0)}], np.zeros((0, 6))):
        assert reader(kind="boxes").read_answer(none)[:2] == ([], 0.0)
        assert reader(kind="boxes", none_found="accept").read_answer(none)[:2] == ([], 1.0)


def test_functions_on_both_sides_return_boxes(make):
    """Of torchvision or edgeroute's own form, with the other side's labels."""
    vision = [{"boxes": np.array([[0, 0, 9, 9.0]]), "labels": np.array([1]), "scores": np.array([0.6])}]
    own = [{"label": "dog", "score": 0.99, "box": [0, 0, 9, 9]}]
    with make(CallableModel(lambda _: vision, labels=["cat", "dog"]), lambda _: own, threshold=0.7) as router:
        assert router.infer(1).value == own
    with make(lambda _: ("edge", 0.1), lambda _: vision[0], threshold=0.7) as router:
        answer = router.infer(1)
        assert (answer.value[0]["label"], answer.confidence) == (1, pytest.approx(0.6))
    with make(lambda _: own, threshold=0.7) as router:
        assert [a.value for a in router.infer_many([1, 2, 3])] == [own] * 3


def test_boxes_with_masks_are_audited():
    """Equal values are those whose arrays are, too."""
    vision = {
        "boxes": np.array([[0, 0, 9, 9.0]]),
        "labels": np.array([0]),
        "scores": np.array([0.6]),
        "masks": np.ones((1, 4, 4)),
    }
    for other, disagreed in ((vision, 0), ({**vision, "masks": np.zeros((1, 4, 4))}, 1)):
        router = Router(lambda _: vision, lambda _, cloud=other: cloud, threshold=0.5, audit=Audit(share=1))
        with router:
            json.dumps(router.infer(1).as_dict())
            wait_for(lambda router=router: any(one.audited for one in router.stats().audits))
        (audits,) = router.stats().audits
        assert (audits.audited, audits.disagreed) == (1, disagreed)


def test_keypoints_and_masks_come_with_their_box():
    """By name, and in the columns behind the classes of a YOLO."""
    more = {"keypoints": np.ones((1, 17, 3)), "masks": np.ones((1, 1, 4, 4))}
    vision = {"boxes": np.array([[0, 0, 9, 9.0]]), "labels": np.array([0]), "scores": np.array([0.6]), **more}
    box = Reader().read_answer(vision).value[0]
    assert box["keypoints"].tolist() == more["keypoints"][0].tolist()
    assert box["mask"].shape == (1, 4, 4)
    array = np.zeros((56, 200), np.float32)
    array[:, 7] = [5, 5, 2, 2, 0.9, *range(51)]
    (found,) = Reader(kind="boxes", labels=["person"]).read_answer(array).value
    assert found["box"] == [4, 4, 6, 6]
    assert found["keypoints"] == np.arange(51.0).reshape(17, 3).tolist()
    (plain,) = Reader(kind="boxes", labels=["person"]).read_answer(array[:37]).value
    assert plain.keys() == {"label", "score", "box"}, "coefficients of masks are left out"


def test_arrays_that_are_no_boxes_stay_values():
    """Whatever has other numbers than sides, a score and a class, NaN among them."""
    rows = np.array([[0, 0, 9, 9, 0.9, 1], [4, 4, 8, 8, 0.2, 0]])
    for i, j, wrong in ((0, 4, 1.5), (0, 5, 0.5), (0, 5, -1), (0, 2, -1), (1, 0, np.nan)):
        array = rows.copy()
        array[i, j] = wrong
        read = Reader().read_answer(array)
        assert read.value is array
        assert read.confidence is None
    for shape in ((8, 50), (200, 84), (3, 200), (2, 3, 6)):
        assert Reader().read_answer(np.zeros(shape)).confidence is None
    for kind in ("boxes",):
        for array in (np.full((84, 8400), 2.0), np.full((84, 8400), np.nan), np.zeros((3, 200)), np.zeros(6)):
            with pytest.raises(ModelError):
                Reader(kind=kind).read_answer(array)
            with pytest.raises(BadReply):
                ReplyReader(kind=kind).read_answer(array)


def test_a_crowd_of_boxes_is_limited():
    """Noise that scores everywhere: at most 300 boxes."""
    rng = np.random.default_rng(0)
    array = np.concatenate([rng.uniform(0, 640, (2, 8400)), rng.uniform(1, 2, (2, 8400)), rng.uniform(0.6, 1, (80, 8400))])
    assert len(Reader().read_answer(array.astype(np.float32)).value) == 300


# ------------------------------------------------------------------------------------------- several labels and sequences
@pytest.mark.parametrize("reader", [Reader, ReplyReader])
def test_several_labels(reader):
    """None may apply; another number of labels, NaN and numbers that are no probabilities are no answer."""
    read = reader(kind="multilabel", labels=["a", "b"]).read_answer
    assert read(np.array([0.9, 0.2]))[:2] == (["a"], pytest.approx(0.8))
    assert read({"y": np.array([[0.4, 0.2]])})[:2] == ([], pytest.approx(0.6))
    assert read(np.array([0.0, 0.0]))[:2] == ([], 1.0)
    with pytest.raises(BadReply, match="3 outputs, but 2 labels"):
        read(np.array([0.1, 0.2, 0.3]))
    for wrong in ([5.0, 0.2], [-0.1, 0.2], [np.nan, 0.2]):
        if reader is ReplyReader:
            with pytest.raises(BadReply):
                read(np.array(wrong))
        else:
            assert np.isnan(read(np.array(wrong)).confidence)
    own = reader(lambda p: float(p[1]), kind="multilabel").read_answer(np.array([0.9, 0.25]))
    assert own[:2] == ([0], pytest.approx(0.25))


def test_an_array_after_a_sigmoid_is_a_value(tmp_path):
    """A mask, say: several labels have one axis."""
    assert Reader(kind="multilabel").read_answer(np.full((3, 3), 0.5)).confidence is None


WORD = [0, 1, 1, 0, 2, 2, 2, 0, 0, 2, 3, 0]
"""Best path of "abbc", with blanks."""


@pytest.mark.parametrize("reader", [Reader, ReplyReader])
@pytest.mark.parametrize("form", ["logits", "probabilities", "logprobs"])
def test_a_sequence(reader, form):
    """Repetitions and blanks go; the confidence is the quantile of what is left."""
    z = np.random.default_rng(0).normal(size=(len(WORD), 4))
    z[np.arange(len(WORD)), WORD] += 6
    p = softmax(z)
    rows = {"logits": z, "probabilities": p, "logprobs": np.log(p)}[form].astype(np.float32)
    emitted = [p[i].max() for i in (1, 4, 9, 10)]
    sure = pytest.approx(float(np.exp(np.quantile(np.log(emitted), 0.1))), rel=1e-3)
    for labels, value in (
        (None, [1, 2, 2, 3]),
        (["", "a", "b", "c"], "abbc"),
        (["a", "b", "c"], "abbc"),
        ([0, 10, 20, 30], [10, 20, 20, 30]),
    ):
        for given in (rows, rows[None], {"y": rows}):
            assert reader(kind="ctc", labels=labels).read_answer(given)[:2] == (value, sure)
    last = np.roll(rows, -1, axis=1)
    assert reader(kind="ctc", labels=["a", "b", "c"], blank=-1).read_answer(last)[:2] == ("abbc", sure)
    assert reader(lambda _: 0.3, kind="ctc").read_answer(rows).confidence == pytest.approx(0.3)
    silent = reader(kind="ctc", labels=["a", "b", "c"]).read_answer(rows[:1])
    assert (silent.value, silent.confidence) == ("", pytest.approx(p[0, 0], rel=1e-3))


@pytest.mark.parametrize(
    "given", [np.zeros(4), np.zeros((2, 3, 4)), np.zeros((0, 4)), np.full((3, 4), np.nan), np.ones((3, 4), int), "abc"]
)
def test_what_is_no_sequence(given):
    """Another form is an error, NaN no answer; labels have to fit."""
    if np.asarray(given).dtype.kind == "f" and np.isnan(given).any():
        assert Reader(kind="ctc").read_answer(given).value is None
    else:
        with pytest.raises(ModelError):
            Reader(kind="ctc", name="ocr").read_answer(given)
    with pytest.raises(BadReply):
        Reader(kind="ctc", labels=["a"]).read_answer(np.zeros((3, 4)))


def test_the_card_names_the_blank(tmp_path):
    """A text model's file with its card, over a router."""
    z = np.eye(4)[[3, 0, 0, 3, 1]] * 9
    path = boxes_file(tmp_path / "m.onnx", z)
    path.with_suffix(".json").write_text(json.dumps({"output": {"kind": "ctc", "blank": 3}, "labels": ["a", "b", "c"]}))
    with Router(path, threshold=0) as router:
        assert router.check().ok
        assert router.infer(X).value == "ab"


# ------------------------------------------------------------------------------------------------------------- endpoints
def test_the_servers_metadata_has_labels_and_kind(make, tmp_path):
    """A client with nothing but the URL reads what a router on the device reads."""
    path = ending(tmp_path / "m.onnx", "Sigmoid", card={"labels": LABELS})
    with Router(path, threshold=0) as router:
        own = [router.infer(x) for x in MANY]
    with running(app([OnnxModel(path)])) as client:
        url = f"{client.base_url}/v2/models/m"
        for endpoint in (OpenInference(url), OpenInference(url, binary=False)):
            with make(None, endpoint, mode="only_cloud") as router:
                answers = router.infer_many(list(MANY))
            assert [a.value for a in answers] == [a.value for a in own]
            assert [a.confidence for a in answers] == pytest.approx([a.confidence for a in own], rel=1e-4)
        assert says(url) == "multilabel"
        known = endpoint.known
        again = OpenInference(url)
        again.recall(json.loads(json.dumps(known)))
        assert (again.served_kind, again.served_labels) == ("multilabel", tuple(LABELS))
        with make(None, OpenInference(url, kind="value"), mode="only_cloud", options=Options(no_confidence="accept")) as router:
            assert router.infer(MANY[0]).value == pytest.approx(sigmoid(MANY[0]), rel=1e-4)


def test_the_card_of_an_endpoint_has_its_kind(tmp_path):
    """And names the output that is read."""
    card = tmp_path / "card.json"
    card.write_text(json.dumps({"output": {"name": "y", "kind": "probabilities"}, "labels": LABELS}))
    endpoint = OpenInference("http://localhost:1/v2/models/m", card=card)
    assert (endpoint.kind, endpoint.output, endpoint.labels) == ("probabilities", "y", tuple(LABELS))
    assert OpenInference("http://localhost:1/v2/models/m", card=card, kind="logits").kind == "logits"


@pytest.mark.parametrize("kind", ["nonsense", 5, None, ["boxes"], {"string_value": 5}])
def test_a_kind_that_nobody_knows_is_ignored(kind):
    """The server's metadata is not trusted."""
    from edgeroute.cloud.oip_endpoint_base import kind_in

    assert kind_in({"parameters": {"kind": kind}}) is None
    assert kind_in({"parameters": kind}) is None
    assert kind_in(kind) is None
    assert kind_in({"parameters": {"kind": {"string_value": "boxes"}}}) == "boxes"


def test_a_function_in_the_cloud_has_a_kind(make):
    """A softmax by itself is read from its first row on."""
    with make(
        lambda _: ("edge", 0.1), Function(lambda _: np.array([0.01, 0.98, 0.01]), labels=["a", "b", "c"]), threshold=0.5
    ) as router:
        answer = router.infer(1)
        assert (answer.value, answer.confidence) == ("b", pytest.approx(0.98))


# ------------------------------------------------------------------------------------------------------------------ texts
@pytest.mark.parametrize("shape", [[None], [None, 1]])
@pytest.mark.parametrize("mapping", [True, False])
def test_a_text_for_a_pipeline_of_scikit_learn(make, tmp_path, shape, mapping):
    """As a `str`, one or several, and in an array of one."""
    pytest.importorskip("skl2onnx")
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["good nice great", "bad awful", "nice film", "awful film bad"]
    pipe = make_pipeline(TfidfVectorizer(lowercase=False), LogisticRegression()).fit(texts, ["pos", "neg"] * 2)
    options = {id(pipe): {"zipmap": mapping}, TfidfVectorizer: {"locale": "C"}}
    path = tmp_path / "m.onnx"
    path.write_bytes(to_onnx(pipe, initial_types=[("text", StringTensorType(shape))], options=options).SerializeToString())
    new = ["a nice film", "bad bad", "great"]
    p = pipe.predict_proba(new)
    with make(path, threshold=0) as router:
        answers = [router.infer(new[0]), *router.infer_many(new[1:])]
        assert [a.value for a in answers] == pipe.predict(new).tolist()
        assert [a.confidence for a in answers] == pytest.approx(p.max(1).tolist(), rel=1e-4)
        for given in (np.array(new[0]), np.array([new[0]], object), [new[0]], {"text": new[0]}):
            assert router.infer(given).value == answers[0].value
        for wrong in (5.0, np.zeros(3), ["a", "b"], None):
            with pytest.raises((BadInput, ModelError)):
                router.infer(wrong)


@pytest.mark.parametrize("said", ["positive", "Positive.", " **Positive** ", '"positive"!', "POSITIVE:\n"])
def test_a_chat_model_behind_a_classifier(make, said):
    """Its text is the label that it means, without marks around it."""
    body = json.dumps({"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]}).encode()
    edge = CallableModel(lambda _: np.array([0.5, 0.5]), labels=["positive", "negative"])
    headers = [("Content-Type", "application/json")]
    with CannedServer(http_reply(body, headers=headers)) as server:
        cloud = OpenAIChat(server.url, model="m", retries=0, labels=["positive", "negative"])
        with make(edge, cloud, threshold=0.9) as router:
            answer = router.infer("a film")
    assert (answer.value, answer.source) == ("positive", "cloud"), answer.reason


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("Cat.", "cat", True), ("'cat'", "cat", True), ("9.", 9, True), ("9.5", 9.5, True), (".5", "5", False), ("-1", "1", False),
        ("C++", "c", False), ("...", "...", True), ("...", "!", False), ("a.b", "ab", False), ("cat?", "cat", False),
        ("**Cat**", "cat", True), ('"cat."', "`cat`.", True), ("A*", "A", False), ("5'", '5"', False), ("no!", "no", False),
        ("**a*", "a", False), ("'don't'", "don't", True), ("cat..", "cat", False), ('"A*"', "A*", True),
    ],
)  # fmt: skip
def test_marks_around_a_label(one, other, alike):
    """Quotes and stars on both sides and a final full stop do not count; all others do."""
    assert same(one, other) is alike


# --------------------------------------------------------------------------------------------------------------- TFLite
@pytest.mark.parametrize(
    ("operator", "kind", "quantised"),
    [
        ("SOFTMAX", "probabilities", False),
        ("SOFTMAX", "probabilities", True),
        ("LOGISTIC", "multilabel", False),
        ("L2_NORMALIZATION", "value", False),
        ("RELU", None, False),
    ],
)
def test_the_last_operator_of_a_tflite_file(make, tmp_path, operator, kind, quantised):
    """As that of an ONNX file, also behind a reshape or a quantisation."""
    pytest.importorskip("ai_edge_litert")
    from tflite_models import Graph

    from edgeroute import LiteRTModel

    g = Graph()
    x, y = g.tensor("x", [1, 4]), g.tensor("made", [1, 4])
    options = {"SOFTMAX": {"options": "SoftmaxOptions", "beta": 1.0}}.get(operator, {})
    g.operator(operator, [x], [y], **options)
    if quantised:
        y, inside = g.tensor("y", [1, 4], "int8", scale=1 / 256, zero=-128), y
        g.operator("QUANTIZE", [inside], [y], options="QuantizeOptions")
    g.at.inputs, g.at.outputs = [x], [y]
    path = g.save(tmp_path / "m.tflite")
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        assert LiteRTModel(path).kind in {None, kind}
    path.write_bytes(data)
    assert (LiteRTModel(path).kind, LiteRTModel(path, kind="value").kind) == (kind, "value")
    assert LiteRTModel(tmp_path / "none.tflite").kind is None
    if kind == "value":
        checked(LiteRTModel(path))
        assert LiteRTModel(path, labels=LABELS).kind is None
        return
    with make(path, threshold=0) as router:
        for x, answer in zip(MANY, router.infer_many(list(MANY)), strict=True):
            p = sigmoid(x) if operator == "LOGISTIC" else softmax(x if operator == "SOFTMAX" else np.maximum(x, 0))
            sure = float(np.maximum(p, 1 - p).min()) if operator == "LOGISTIC" else p.max()
            assert answer.confidence == pytest.approx(sure, abs=0.02 if quantised else 1e-4)
            assert answer.value == (np.flatnonzero(p > 0.5).tolist() if operator == "LOGISTIC" else p.argmax())


def test_what_takes_another_step_is_refused():
    """Boxes before their anchors, with the scores of all classes or of one, and quantised steps of a sequence."""
    offsets = np.random.default_rng(0).normal(size=(1, 1917, 4)).astype(np.float32)
    for scores in (np.full((1, 1917, 91), 0.1, np.float32), np.full((1, 1917, 1), 0.1, np.float32)):
        with pytest.raises(ModelError, match=r"1917 boxes before anchors and .*, with (91|1) scores each: export the model"):
            Reader(kind="boxes").read_answer({"boxes": offsets, "scores": scores})
    corners = np.sort(np.abs(offsets[0]).reshape(-1, 2, 2), 1).reshape(-1, 4)
    assert Reader(kind="boxes").read_answer({"boxes": corners, "scores": np.full(1917, 0.1)}).value == []
    with pytest.raises(ModelError, match="quantised numbers of an unknown scale: let its graph end in DequantizeLinear"):
        Reader(kind="ctc", name="ocr").read_answer(np.zeros((7, 5), np.uint8))


@pytest.mark.parametrize("softmax_in_file", [True, False])
@pytest.mark.parametrize("classes", [5, 97, 1000])
def test_a_quantised_sequence(make, tmp_path, classes, softmax_in_file):
    """In int8, by the file's own scale: the sums of rounded probabilities are not 1, and the confidence is as before."""
    pytest.importorskip("ai_edge_litert")
    from tflite_models import steps

    from edgeroute import LiteRTModel

    rng = np.random.default_rng(classes)
    z = rng.normal(size=(12, classes)).astype(np.float32)
    z[np.arange(12), rng.integers(0, classes, 12)] += 9
    float_read = Reader(kind="ctc").read_answer(z)
    path = steps(tmp_path / "m.tflite", z.shape, softmax=softmax_in_file)
    with make(LiteRTModel(path, kind="ctc"), threshold=0) as router:
        answer = router.infer(z)
        assert router.evaluate([z], [float_read.value]).accuracy["edge"].found == 1
    assert (answer.value, answer.confidence) == (float_read.value, pytest.approx(float_read.confidence, abs=0.02))
    checked(LiteRTModel(path, kind="ctc"))
    with Router(path, lambda x: "cloud", threshold=0.5) as router:
        assert 'kind = "ctc" in its card if its output has a number for each step and class' in str(router.check())


@pytest.mark.parametrize(("operators", "size"), [([], 4), (["Softmax"], 4), ([], 70)])
def test_quantised_numbers_without_a_scale(make, tmp_path, operators, size):
    """Give no confidence, `check` says what to write, and with that line the model is read rightly."""
    value = helper.make_tensor_value_info
    nodes = [*(helper.make_node(op, ["x"], ["p"]) for op in operators)]
    steps = (("Div", ["p" if operators else "x", "scale"]), ("Round", ["t0"]), ("Add", ["t1", "zero"]))
    nodes += [helper.make_node(op, before, [f"t{i}"]) for i, (op, before) in enumerate(steps)]
    nodes += [helper.make_node("Cast", ["t2"], ["y"], to=TensorProto.INT8)]
    scale, zero = map(np.float32, (1 / 250, -125) if operators else (0.05, 3))
    given, made = [value("x", TensorProto.FLOAT, ["n", size])], [value("y", TensorProto.INT8, ["n", size])]
    path = tiny.save(tmp_path / "m.onnx", nodes, given, made, [("scale", scale), ("zero", zero)])
    kind, x = "probabilities" if operators else "logits", np.resize(X, size)
    assert "let its graph end in DequantizeLinear" in checked(OnnxModel(path, kind=kind), ok=False)
    assert operators or "DequantizeLinear" in cli("inspect", path)[1]
    with make(OnnxModel(path, kind=kind), lambda _: "cloud", threshold=0) as router:
        assert router.infer(x).source == "cloud"
    model = OnnxModel(path)
    with make(CallableModel(lambda x: (model.run([x]) - float(zero)) * scale, kind=kind), threshold=0) as router:
        answer = router.infer(x)
    assert (answer.value, answer.confidence) == (softmax(x).argmax(), pytest.approx(softmax(x).max(), abs=0.01))


def quantised(path, dtype, *, form="initializers", softmax=False):
    """x [n, 4], elements -> y [n, 4], elements of x or of its softmax, as a quantiser leaves a file without its float ends."""
    node, low = helper.make_node, int(np.iinfo(dtype).min)
    kind = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8}[dtype]
    constants = {"xs": np.float32(0.02), "xz": np.array(low + 100, dtype), "ys": np.float32(1 / 256 if softmax else 0.03)}
    constants |= {"yz": np.array(low + (0 if softmax else 90), dtype), "one": np.array(100 * np.eye(4), np.int8)}
    constants |= {"os": np.float32(0.01), "oz": np.int8(0)}
    nodes = [
        node("DequantizeLinear", ["x", "xs", "xz"], ["f"]), node("Softmax" if softmax else "Identity", ["f"], ["p"]),
        node("QuantizeLinear", ["p", "ys", "yz"], ["q"]), node("Identity", ["q"], ["y"]),
    ]  # fmt: skip
    if form == "operators":
        nodes = [
            node("Transpose", ["x"], ["t"], perm=[0, 1]),
            node("QLinearMatMul", ["t", "xs", "xz", "one", "os", "oz", "ys", "yz"], ["y"]),
        ]
    made = [helper.make_tensor(name, {"float32": 1, "int8": 3, "uint8": 2}[a.dtype.name], a.shape, a.ravel()) for name, a in
            ((name, np.asarray(a)) for name, a in constants.items())]  # fmt: skip
    if form == "constants":
        nodes = [*(node("Constant", [], [tensor.name], value=tensor) for tensor in made), *nodes]
    elif form == "operators":  # whose bytes are raw, as numpy writes them
        made = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "m", [value("x", kind, ["n", 4])], [value("y", kind, ["n", 4])], [] if form == "constants" else made
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path, constants


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(
    ("form", "last"), [("initializers", True), ("initializers", False), ("constants", False), ("operators", False)]
)
def test_quantised_inputs_and_outputs(make, tmp_path, dtype, form, last):
    """Floats are quantised and outputs are floats, by scale and zero point in the file; elements are taken as they are."""
    path, known = quantised(tmp_path / "m.onnx", dtype, form=form, softmax=last)
    elements = (np.rint(X / known["xs"]) + known["xz"]).astype(dtype)
    near = pytest.approx(softmax(X) if last else X, abs=0.02)
    model = OnnxModel(path)
    assert [*model.run([X])[0]] == [*model.run([elements])[0]] == [*model.run_one(X)[0]] == near
    assert model.run([X, elements, X]).shape == (3, 4)
    checked(path)
    assert last is False or says(path) == "probabilities"
    with make(path, threshold=0) as router:
        answer = router.infer(X)
    assert (answer.value, answer.confidence) == (1, pytest.approx(softmax(X).max(), abs=0.02))
    with running(app([OnnxModel(path, kind=model.kind or "logits")])) as client:
        cloud = OpenInference(f"{client.base_url}/v2/models/m")
        with make(None, cloud, mode="only_cloud") as router:
            assert router.infer(elements if dtype == "uint8" else X).confidence == pytest.approx(answer.confidence, abs=1e-6)
    with pytest.raises(ModelError, match=r"of (x and )?y have a scale, which a server's callers do not know"):
        triton([path], tmp_path / "out")
    path.with_suffix(".json").write_text(json.dumps({"input": {"name": "x", "dtype": dtype, "shape": [-1, 4]}}))
    with pytest.raises(BadInput, match=f"expected {dtype}, got float32"):
        OnnxModel(path).run([X])


def test_a_scale_that_differs_or_is_damaged_is_none(tmp_path):
    """Two readers of an input with other scales, a scale for each channel, and any damage of the file leave elements as they are."""
    node, value = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("DequantizeLinear", ["x", "a"], ["f"]), node("DequantizeLinear", ["x", "b"], ["g"]), node("Add", ["f", "g"], ["t"]),
        node("Abs", ["t"], ["s"]),  # between them, as ONNX Runtime 1.23 fuses an addition that is quantised at once, and takes one scale then
        node("QuantizeLinear", ["s", "c", "z"], ["y"], axis=1),
    ]  # fmt: skip
    given, made = ([value(name, TensorProto.UINT8, ["n", 4])] for name in "xy")
    constants = [("a", np.float32(1)), ("b", np.float32(2)), ("c", np.ones(4, np.float32)), ("z", np.zeros(4, np.uint8))]
    model = OnnxModel(tiny.save(tmp_path / "m.onnx", nodes, given, made, constants))
    assert (model.run([np.arange(4, dtype=np.uint8)]).tolist(), model.quantised) == ([[0, 3, 6, 9]], {})
    path, _ = quantised(tmp_path / "q.onnx", "int8")
    data, rng = path.read_bytes(), np.random.default_rng(0)
    assert {*scales(path, {"x": "int8"}, {"y": "int8"})} == {"x", "y"}
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        assert isinstance(scales(path, {"x": "int8"}, {"y": "int8"}), dict)
    for _ in range(500):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(changed)
        assert isinstance(scales(path, {"x": "int8"}, {"y": "int8"}), dict)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1)])
def test_the_operator_that_decodes_a_detectors_boxes(make, tmp_path, order):
    """Names its outputs, whatever the file calls them, and in any order; a client of the served model reads the same."""
    pytest.importorskip("ai_edge_litert")
    from tflite_models import detector

    from edgeroute import LiteRTModel

    scores = np.full((20, 4), 0.05)
    scores[3, 2], scores[15, 1], scores[9, 3] = 0.9, 0.6, 0.4
    path, labels = detector(tmp_path / "m.tflite", scores, order=order), ["a", "b", "c"]
    assert says(path) == "boxes"
    checked(path)
    with make(LiteRTModel(path, labels=labels), threshold=0) as router:
        for own in (router.infer(X), *router.infer_many([X] * 2)):
            assert [box["label"] for box in own.value] == ["b", "a"]
            assert [box["score"] for box in own.value] == pytest.approx([0.9, 0.6])
            assert own.value[0]["box"] == pytest.approx([0.22 - 0.01, 0.4, 0.22 + 0.01, 0.6], abs=0.02)
            assert own.confidence == pytest.approx(0.6)
    with running(app([LiteRTModel(path, labels=labels)])) as client:
        cloud = OpenInference(f"{client.base_url}/v2/models/m")
        with make(None, cloud, mode="only_cloud") as router:
            assert router.infer(X).value == own.value


@pytest.mark.parametrize(("classes", "kind"), [(91, None), (91, "boxes"), (1, None), (1, "boxes")])
def test_a_detector_without_its_last_step(make, tmp_path, classes, kind):
    """The anchors are not in the file: `check` and `inspect` say so, and the line that they give works."""
    pytest.importorskip("ai_edge_litert")
    from tflite_models import detector

    from edgeroute import LiteRTModel

    path = detector(tmp_path / "m.tflite", np.full((200, classes), 0.3), step=False)
    line = 'write kind="value", score=lambda out: out["Identity_1"].max(), after a sigmoid'
    said = (
        f"200 boxes before anchors and non-maximum suppression, with {classes} scores each: export the model with that last step"
    )
    with make(LiteRTModel(path, kind=kind), lambda x: "cloud", threshold=0.5) as router:
        check = router.check()
        assert router.infer(X).source == "cloud"
    assert not check.ok
    assert f"{said}, or {line}" in str(check)
    assert said in " ".join(cli("inspect", path)[1].split())
    by_line = LiteRTModel(path, kind="value", score=lambda out: out["Identity_1"].max())
    with make(by_line, lambda x: "cloud", threshold=0.2) as router:
        assert router.check().ok
        assert router.infer(X).confidence == pytest.approx(0.3)


def test_a_softmax_at_each_step_is_no_classifiers(tmp_path):
    """`inspect` leaves the kind open, and `check` is not ready."""
    value = helper.make_tensor_value_info
    path = tiny.save(
        tmp_path / "m.onnx", [helper.make_node("Softmax", ["x"], ["y"], axis=-1)], [value("x", TensorProto.FLOAT, ["n", 6, 4])],
        [value("y", TensorProto.FLOAT, ["n", 6, 4])],
    )  # fmt: skip
    assert says(path) == "?"
    with Router(path, lambda x: "cloud", threshold=0.5) as router:
        assert 'write kind = "ctc" in its card' in str(router.check())
    checked(OnnxModel(path, kind="ctc"))
