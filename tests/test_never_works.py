"""What can never work is no `ready`: `check` says it in a line with what to write, and ends with 1."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from both import Threads, makes, sure, unsure, wait_for
from commands import cli
from onnx import TensorProto, helper
from tiny import linear, save

from edgeroute import (
    BadInput,
    CallableModel,
    Egress,
    Function,
    Limits,
    OnnxModel,
    OpenAIChat,
    OpenInference,
    Options,
    PlainJson,
    PolicyError,
    Reading,
    Router,
    Rule,
    Trial,
    Variants,
)
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.cli.command_runner import FAILED

pytestmark = pytest.mark.pure

make = makes()
LABELS = ("a", "b", "c")
PRICED = Function(sure, usd_per_call=0.01, joules_per_call=2.0)


def never(router):
    """The lines of problems; without one it is ready."""
    result = router.check()
    said = [line.removeprefix("! ") for line in result.lines if line.startswith("! ")]
    assert result.ok == (not said), result
    return said


@contextlib.contextmanager
def endpoint(shape, *, labels=None, classes=3, **options):
    """An endpoint whose server describes an input x of this shape."""
    about = {
        "name": "large",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, *shape]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, classes]}],
        **({} if labels is None else {"parameters": {"labels": json.dumps(labels)}}),
    }
    with CannedServer(http_reply(json.dumps(about).encode())) as server:
        yield OpenInference(f"{server.url}/v2/models/large", binary=False, **options)


@pytest.fixture
def small(tmp_path):
    """A model of three classes."""
    return linear(tmp_path / "small.onnx", card={"labels": [*LABELS], "output": {"kind": "logits"}})


LIMITS = [
    (Limits(usd_per_day=5.0), sure, "usd_per_day = 5 never applies: no endpoint has a price. Write one beside its url, such as usd_per_call"),
    (Limits(usd_per_day=5.0), Function(sure, usd_per_mb=1.0), "usd_per_day = 5 never applies"),
    (Limits(joules_per_hour=5.0), sure, "joules_per_hour = 5 never applies"),
    (Limits(usd_per_day=0.005), PRICED, "is never called: a call takes at least 0.01, and usd_per_day = 0.005. Write more"),
    (Limits(joules_per_hour=1.0), PRICED, "a call takes at least 2, and joules_per_hour = 1"),
    (Limits(usd_per_day=0.0), PRICED, "and usd_per_day = 0."),
    (Limits(calls_per_minute=0.5), PRICED, "a call takes at least 1, and calls_per_minute = 0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("limits", "cloud", "said"), LIMITS)
def test_limits(make, limits, cloud, said):
    """One that nothing counts under, and one below the price of a call, which the call itself then shows."""
    router = make(unsure, cloud, threshold=0.5, limits=limits)
    (line,) = never(router)
    assert said in line
    assert (router.infer(1).source == "cloud") == ("never applies" in line)


@pytest.mark.parametrize(
    "limits", [Limits(usd_per_day=0.01), Limits(joules_per_hour=2.0), Limits(mb_per_day=1.0), Limits(calls_per_minute=1)]
)
def test_limits_of_one_call(make, limits):
    """Are enough, and the call is made."""
    router = make(unsure, PRICED, threshold=0.5, limits=limits)
    assert never(router) == []
    assert router.infer(1).source == "cloud"


def test_a_limit_beside_endpoints_without_a_price(make):
    """Is said of those that are not counted, which may be free: it is ready."""
    named = [Function(sure, name="own"), Function(sure, name="hosted", usd_per_call=0.01)]
    result = make(unsure, named, threshold=0.5, limits=Limits(usd_per_day=5.0, joules_per_hour=3.0)).check()
    assert not result.ok, "no endpoint has a price in joules"
    result = make(unsure, named, threshold=0.5, limits=Limits(usd_per_day=5.0)).check()
    assert result.ok
    assert not [line for line in result.lines if line.startswith("!")]
    (line,) = [line for line in result.lines if line.startswith("usd_per_day = 5 does not count calls of own, without a price")]
    assert line.split(": ")[1].startswith("write usd_per_call")
    for clouds, limits in ((named, Limits(mb_per_day=3)), (named[1:], Limits(usd_per_day=5.0))):
        assert never(make(unsure, clouds, threshold=0.5, limits=limits)) == []


@pytest.mark.parametrize(
    ("prices", "said"),
    [
        ((0, 0), "Write usd_per_million_input_tokens and usd_per_million_output_tokens beside its url, or"),
        ((1, 0), "usd_per_day does not count the tokens of cloud's answers: write usd_per_million_output_tokens too"),
        ((1, 2), None),
    ],
)
def test_a_limit_beside_a_language_model(make, prices, said):
    """Whose prices are those of tokens: the line names both, and half of them is said to be half."""
    with CannedServer(http_reply(b'{"data": [{"id": "gpt"}]}')) as server:
        names = ("usd_per_million_input_tokens", "usd_per_million_output_tokens")
        chat = OpenAIChat(f"{server.url}/v1", model="gpt", **dict(zip(names, prices, strict=True)))
        check = make(unsure, chat, threshold=0.5, limits=Limits(usd_per_day=5.0)).check()
    assert check.ok == (prices != (0, 0))
    lines = [line for line in check.lines if "usd_per" in line]
    assert [said in line for line in lines] == ([] if said is None else [True])


def test_a_rule_without_a_reading(make):
    """Is said to be of no effect on this machine; others may have a battery."""
    options = Options(
        sensors=lambda: Reading(memory_available=0.5), rules=[Rule("battery", "only_edge", 0.2), Rule("memory", "only_edge", 0.1)]
    )
    result = make(unsure, sure, threshold=0.5, options=options).check()
    assert result.ok
    (line,) = [line for line in result.lines if "rule of battery" in line]
    assert not line.startswith("!")
    assert "never applies" in line


def test_a_limit_of_a_router_that_sends_nothing(make):
    """Is no problem: it applies to calls with another mode."""
    assert never(make(unsure, sure, threshold=0.5, mode="only_edge", limits=Limits(usd_per_day=5.0))) == []
    assert never(make(unsure, limits=Limits(usd_per_day=5.0))) == []


def test_the_price_of_tokens(make):
    """Is that of the shortest text and the whole answer that is allowed."""
    models = http_reply(b'{"data": [{"id": "gpt"}]}')
    with CannedServer(models) as server:
        plain = PlainJson(server.url, usd_per_mb=1.0)
        for limits in (Limits(mb_per_day=0.0), Limits(usd_per_day=0.0)):
            assert "is never called" in never(make(unsure, plain, threshold=0.5, limits=limits))[0]
        chat = OpenAIChat(f"{server.url}/v1", model="gpt", max_tokens=1000, usd_per_million_output_tokens=10.0)
        (line,) = never(make(unsure, chat, threshold=0.5, limits=Limits(usd_per_day=0.005)))
        assert "is never called: a call takes at least 0.01" in line
        assert never(make(unsure, chat, threshold=0.5, limits=Limits(usd_per_day=0.02))) == []


@pytest.mark.parametrize(("given", "said"), [
    ({"threshold": 0.0}, "every answer of edge passes its threshold, 0. No input goes on unless it fails"),
    ({"threshold": float("inf")}, "no answer of edge reaches its threshold, inf (it defers all)"),
    ({"threshold": float("inf"), "score": "energy"}, "no answer of edge reaches its threshold, inf (it defers all)"),
    ({"threshold": 0.0, "mode": "shadow"}, "every answer of edge passes"),
])  # fmt: skip
def test_thresholds(make, given, said):
    """That all pass, or none."""
    (line,) = never(make(unsure, sure, **given))
    assert said in line


@pytest.mark.parametrize(("threshold", "passes"), [(0.3, True), (1 / 3, True), (0.34, False), (1.0, False)])
def test_a_threshold_below_that_of_a_guess(make, small, threshold, passes):
    """One of three classes has at least a third."""
    router = make(small, lambda x: ("a", 0.9), threshold=threshold)
    lines = never(router)
    assert [("with 3 classes a confidence is at least 0.333" in line) for line in lines] == [True] * passes
    assert router.infer(np.zeros(4, np.float32)).source == ("edge" if passes else "cloud")


def test_classes_that_only_a_run_shows(make, tmp_path):
    """Count without labels and kind; other scores begin at 0."""
    model = linear(tmp_path / "bare.onnx", classes=10)
    assert "with 10 classes" in never(make(model, sure, threshold=0.1))[0]
    assert never(make(model, sure, threshold=0.1, score="margin")) == []
    assert never(make(CallableModel(lambda x: [0.0] * 4, labels=[*"abcd"], kind="logits"), sure, threshold=0.25)) != []
    assert never(make(CallableModel(lambda x: ("a", 0.1), labels=[*"abcd"]), sure, threshold=0.25)) == []  # may be below


def test_the_last_edge(make):
    """Has a threshold that decides nothing, where no cloud follows; the first one's counts."""
    assert never(make([unsure, sure], threshold=[0.5, 0.0])) == []
    (line,) = never(make([unsure, sure], threshold=[0.0, 0.5]))
    assert "every answer of" in line
    assert never(make(unsure, threshold=0.0)) == []
    assert never(make(unsure, sure, threshold=0.0, mode="prefer_cloud")) == []


@pytest.mark.parametrize(
    ("model", "floor"),
    [
        ({"kind": "multilabel"}, 0.5), ({"kind": "boxes", "none_found": "accept"}, 0.5), ({"kind": "boxes"}, 0.0),
        ({"kind": "multilabel", "score": lambda outputs: 0.1}, 0.0),
    ],
)  # fmt: skip
def test_decisions_have_a_confidence_of_at_least_a_half(make, model, floor):
    """Of labels and boxes, which each are or are not: no threshold up to it defers any."""
    for threshold in (0.5, 0.51):
        lines = never(make(CallableModel(lambda x: [0.5], **model), sure, threshold=threshold))
        assert ["passes its threshold, 0.5: a confidence is at least 0.5." in line for line in lines] == (
            [True] if threshold <= floor else []
        )


def test_variants_and_trials(make, small):
    """Variants of one model are one step; a model on trial whose answers are shown has a threshold as the edge has."""
    variants = Variants(s=str(small), l=str(small))
    assert never(make(variants, threshold=0.0)) == []
    assert len(never(make(variants, sure, threshold=0.0))) == 2
    assert len(never(make([variants, small], threshold=[0.0, 0.0, 0.5]))) == 2
    trial = Trial(edge=str(small), share=0.5, threshold=0.0)
    (line,) = never(make(small, sure, threshold=0.5, trial=trial))
    assert line.startswith("every answer of edge-trial passes")


def test_an_edge_without_confidence(make, tmp_path):
    """By its kind, or by what it gives for zeros; not where such answers are accepted, or a score is given."""
    model = linear(tmp_path / "value.onnx", classes=1)
    text = "edge gives no confidence, so each input goes on: write "
    for edge in (model, OnnxModel(model, kind="value"), CallableModel(lambda x: 1.5, kind="value")):
        (line,) = never(make(edge, sure, threshold=0.5))
        assert text in line
        assert ("kind in its card" in line) == (edge == model)
        assert 'or no_confidence = "accept"' in line
        assert never(make(edge, sure, threshold=0.5, no_confidence="accept")) == []
        assert never(make(edge, sure, threshold=0.5, score=lambda outputs: 0.4)) == []
        assert never(make(edge)) == []
    assert make(model, sure, threshold=0.5).infer(np.ones(4, np.float32)).source == "cloud"


@pytest.mark.parametrize("answer", ["a", ("a", None), ["a", 0.9], np.array([1.5]), {"label": "a"}])
def test_a_function_that_gave_no_confidence(make, answer):
    """Before its first call nobody knows; then `check` says it, until an answer has a confidence."""
    for accepted in ({}, {"no_confidence": "accept"}):
        router = make(lambda x: ("a", 0.9) if x == 3 else answer, sure, threshold=0.5, **accepted)
        assert never(router) == []
        assert "is ready (what it answers is known after its first call" in str(router.check())
        router.infer(1)
        router.infer_many([2])
        if not accepted:
            (line,) = never(router)
            assert line.startswith(
                "edge has given 2 answers, all without a confidence, so that each input went on: return (value, "
            )
        router.infer(3)
        assert never(router) == []


def test_answers_that_fail_their_check_are_not_without_confidence(make):
    """A structure that is wrong is another fault."""
    router = make(CallableModel(lambda x: ("a", 0.9), check=lambda value: "wrong"), sure, threshold=0.5)
    router.infer(1)
    assert never(router) == []


@pytest.mark.parametrize("name", ["usd_per_day", "mb_per_day", "calls_per_minute"])
def test_a_limit_without_a_cloud(make, name):
    """Nothing could count under it, which is told and no problem: a fleet's owner orders limits for all devices. Energy is the edge's, too."""
    result = make(sure, limits=Limits(**{name: 1.0, "joules_per_hour": 1.0})).check()
    assert result.ok
    assert [line for line in result.lines if "never applies" in line] == [f"{name} = 1 never applies: there is no cloud"]


@pytest.mark.parametrize(("axes", "ctc"), [((5,), True), ((5, 4), False)])
@pytest.mark.parametrize("operator", ["Identity", "Softmax", "Sigmoid"])
def test_maps_are_no_classes(make, tmp_path, operator, axes, ctc):
    """`check` says that they are a value, whatever their last operator; only steps with classes may be a sequence."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, *axes]) for name in "xy")
    router = make(
        OnnxModel(save(tmp_path / "map.onnx", [helper.make_node(operator, ["x"], ["y"])], [x], [y])), sure, threshold=0.5
    )
    (line,) = never(router)
    assert ('kind = "ctc"' in line, "write score=" in line) == (ctc, not ctc)
    assert ("(its outputs are read as a value without confidence" in str(router.check())) == (operator != "Identity")


def test_the_first_of_several_outputs_has_no_confidence(make, tmp_path):
    """Another may have the classes: all are named."""
    x, *outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", n]) for name, n in (("x", 3), ("age", 1), ("sex", 2))
    )
    nodes = [helper.make_node("Slice", ["x", "begin", end, "axis"], [name]) for end, name in (("one", "age"), ("two", "sex"))]
    slices = [(name, np.array([n])) for name, n in (("begin", 0), ("one", 1), ("two", 2), ("axis", 1))]
    path = save(tmp_path / "two.onnx", nodes, [x], outputs, slices)
    (line,) = never(make(OnnxModel(path), sure, threshold=0.5))
    assert "write output and kind in its card if one of age, sex has a number for each class" in line
    assert never(make(OnnxModel(path, output="sex", kind="logits"), sure, threshold=0.6)) == []


def test_fewer_labels_than_classes(make):
    """Of a model that gives its label beside the probabilities: the classes without a label would be errors."""
    row = {"label": np.array(0), "probabilities": np.array([0.5, 0.3, 0.2])}
    for labels, degraded in ((["a", "b"], True), (["a", "b", "c"], False), (["a", "b", "c", "d"], False)):
        router = make(CallableModel(lambda x: row, labels=labels, kind="label+probabilities"), lambda x: "b", threshold=0.1)
        assert (router.infer(1).source == "cloud") == degraded


def test_an_edge_without_confidence_at_any_size(make, tmp_path):
    """It is run on zeros of some size; outputs that do not fit that size prove nothing."""
    value = helper.make_tensor_value_info
    x, y = value("x", TensorProto.FLOAT, ["n", "steps"]), value("y", TensorProto.FLOAT, ["n", "steps", 1])
    path = save(
        tmp_path / "steps.onnx", [helper.make_node("Unsqueeze", ["x", "axes"], ["y"])], [x], [y], [("axes", np.array([2]))]
    )
    assert never(make(OnnxModel(path), sure, threshold=0.5))[0].startswith("edge gives no confidence, so each input goes on")
    rows = save(tmp_path / "rows.onnx", [helper.make_node("Reshape", ["x", "four"], ["y"])], [x], [value("y", 1, ["n", 4])],
                [("four", np.array([-1, 4]))])  # fmt: skip
    router = make(OnnxModel(rows), sure, threshold=0.5)
    assert never(router) == []
    assert "its outputs were not checked: for zeros of one size, 1 inputs gave 4 outputs" in str(router.check())


def test_several_outputs_that_nothing_names(make, tmp_path):
    """The first would be classes by its form alone: no good ground, so that `output` and `kind` are to be written."""
    value, node = helper.make_tensor_value_info, helper.make_node
    outputs = [value(name, TensorProto.FLOAT, ["n", 6]) for name in ("points", "flag")]
    path = save(
        tmp_path / "points.onnx", [node("Neg", ["x"], ["points"]), node("Abs", ["x"], ["flag"])],
        [value("x", TensorProto.FLOAT, ["n", 6])], outputs,
    )  # fmt: skip
    (said,) = never(make(OnnxModel(path), sure, threshold=0.5))
    assert said.startswith("edge has 2 outputs, of which points is read as a number for each class, by its form alone")
    assert never(make(OnnxModel(path, output="points", kind="logits"), sure, threshold=0.5)) == []


def test_many_numbers_that_may_be_an_embedding(make, tmp_path):
    """Without a name of one: the kind, or the labels, say that each number is of a class."""
    value = helper.make_tensor_value_info
    x, y = value("x", TensorProto.FLOAT, ["n", 64]), value("y", TensorProto.FLOAT, ["n", 64])
    path = save(tmp_path / "many.onnx", [helper.make_node("Neg", ["x"], ["y"])], [x], [y])
    (said,) = never(make(OnnxModel(path), sure, threshold=0.5))
    assert said.startswith("edge gives 64 numbers, which are read as a logit for each class, by their form alone")
    for known in (OnnxModel(path, labels=map(str, range(64))), OnnxModel(path, kind="logits")):
        assert never(make(known, sure, threshold=0.5)) == []


def test_many_numbers_of_a_function(make, caplog):
    """Its first answer tells: one warning is logged, and `check` has the line, as that of a file."""
    numbers = np.random.default_rng(0).normal(size=384).astype(np.float32)
    router = make(lambda _: numbers, sure, threshold=0.5)
    assert never(router) == []
    router.infer(1)
    router.infer_many([2, 3])
    (record,) = caplog.records
    assert "gives 384 numbers, which are read as a logit for each class, by their form alone" in record.getMessage()
    (said,) = never(router)
    assert said.startswith("edge gives 384 numbers, which are read as a logit for each class, by their form alone")
    caplog.clear()
    for known in (CallableModel(lambda _: numbers, labels=map(str, range(384))), CallableModel(lambda _: numbers, kind="logits")):
        router = make(known, sure, threshold=0.0001)
        router.infer(1)
        assert never(router) == []
    assert not caplog.records


def test_inputs_whose_first_axes_differ(make, tmp_path):
    """Cannot count the same inputs: a card says which do."""
    value = helper.make_tensor_value_info
    inputs = [value("x", TensorProto.FLOAT, [1, 4]), value("state", TensorProto.FLOAT, [2, 1, 4])]
    path = save(tmp_path / "m.onnx", [helper.make_node("Add", ["x", "state"], ["y"])], inputs, [value("y", 1, [2, 1, 4])])
    assert (
        "the input state is [2, 1, 4]: its first axis counts the inputs" in never(make(OnnxModel(path), sure, threshold=0.5))[0]
    )


def test_times_after_the_deadline(make):
    """Never come."""
    first, second = never(make(unsure, sure, threshold=0.5, deadline=1.0, hedge_after=1.0, first_token=2.0))
    assert first.startswith("hedge_after = 1 s never applies: the deadline is 1 s")
    assert second.startswith("first_token = 2 s never applies")
    assert never(make(unsure, sure, threshold=0.5, deadline=1.0, hedge_after="p90")) == []


def test_rules_by_which_nothing_leaves(make):
    """With no edge that could answer."""
    nothing = Egress(may_leave=[])
    assert "nothing may leave this device by its rules" in never(make(None, sure, egress=nothing))[0]
    assert never(make(unsure, sure, threshold=0.5, mode="only_cloud", egress=nothing)) != []
    assert never(make(unsure, sure, threshold=0.5, egress=nothing)) == []
    assert never(make(None, sure, egress=Egress(may_leave=["public"]))) == []


def test_an_endpoint_that_cannot_read_the_inputs(make, small):
    """Of another shape, or kind; a view or a redaction may make another input of it."""
    text = "cloud cannot read what edge reads: "
    with endpoint([8]) as cloud:
        (line,) = never(make(small, cloud, threshold=0.5))
        assert line.startswith(text)
        assert "expected [8] float32, got [4] float32" in line
        assert never(make(small, cloud, threshold=0.5, views={"cloud": lambda x: np.zeros(8)})) == []
        assert never(make(small, cloud, threshold=0.5, egress=Egress(redact=lambda x, _: np.zeros(8)))) == []
        assert never(make(unsure, cloud, threshold=0.5)) == []  # nobody knows what it takes
    with endpoint([4]) as cloud:
        assert never(make(small, cloud, threshold=0.5)) == []
    with CannedServer(http_reply(b'{"data": [{"id": "gpt"}]}')) as server:
        chat = OpenAIChat(f"{server.url}/v1", model="gpt")
        assert never(make(small, chat, threshold=0.5))[0].startswith(text)
        assert never(make(small, PlainJson(server.url), threshold=0.5)) == []
        assert never(make(small, PlainJson(server.url, body='{{"x": {input|json}}}'), threshold=0.5)) == []
        assert never(make(small, PlainJson(server.url, encode=fails), threshold=0.5)) == []  # zeros need not be its input
        text_in = PlainJson(server.url, body='{{"text": {input}}}')
        assert "takes text or a number, not an array" in never(make(small, text_in, threshold=0.5))[0]


@pytest.mark.parametrize("shape", [["n"], ["n", 1]])
def test_a_cloud_that_takes_texts_reads_what_a_text_model_reads(make, tmp_path, shape):
    """The sample input of a tensor of texts is a text."""
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.STRING, shape)  # noqa: E731
    model = save(tmp_path / "text.onnx", [helper.make_node("Identity", ["x"], ["y"])], [value("x")], [value("y")])
    with CannedServer(http_reply(b'{"data": [{"id": "gpt"}]}')) as server:
        lines = never(make(model, OpenAIChat(f"{server.url}/v1", model="gpt"), threshold=0.5))
    assert [line for line in lines if "cannot read" in line] == []


def fails(x):
    """Refuse any input."""
    raise BadInput("patient-4711")


def test_an_axis_of_any_size(make, tmp_path):
    """Has the size that the endpoint takes."""
    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", None, None])  # noqa: E731
    model = save(tmp_path / "any.onnx", [helper.make_node("Identity", ["x"], ["y"])], [value("x")], [value("y")])
    edge = OnnxModel(model)
    edge.load()
    for shape, fits in (([5, 7], True), ([-1, 7], True), ([5], False), ([5, 7, 3], False)):
        with endpoint(shape) as cloud:
            lines = [line for line in never(make(edge, cloud, threshold=0.5)) if "cannot read" in line]
            assert (lines == []) == fits, shape


def test_the_callers_input_counts(make, tmp_path):
    """And not the tensor that the card makes of it."""
    card = {
        "labels": [*LABELS],
        "input": {"name": "x", "dtype": "float32", "shape": [-1, 4]},
        "preprocess": {"dtype": "uint8", "shape": [2, 2], "scale": 0.5},
    }
    model = linear(tmp_path / "picture.onnx", card=card)
    with endpoint([4]) as cloud:
        (line,) = never(make(model, cloud, threshold=0.5))
        assert "expected [4] float32, got [2, 2] uint8. Give the endpoint a card=" in line
    with endpoint([4], card=model.with_suffix(".json")) as cloud:
        assert never(make(model, cloud, threshold=0.5)) == []


LABELLED = [
    (["c", "b", "a"], {}, "cloud has the labels in another order, not those by which its outputs are read"),
    (["x", "y", "z", "w"], {}, "cloud has the labels 4 of its own, not those"),
    (["A", " b", "c"], {}, ""),
    (None, {"classes": 10}, "cloud gives 10 numbers, and there are 3 labels"),
    (None, {"labels_": ["x", "y", "z"]}, "cloud and edge have no label in common, so they never agree"),
    (["x", "y", "z"], {"labels_": ["a", "b", "c"]}, ""),
    (None, {"classes": 4, "labels_": ["v", "x", "y", "z"]}, ""),  # another question, as a diagnosis behind an alarm
    (["c", "b", "a"], {"labels_": ["a", "b", "c"]}, "in another order"),
    (["x", "y", "z", "a"], {"classes": 4, "labels_": ["x", "y", "z", "a"]}, ""),
]


@pytest.mark.parametrize(("served", "more", "said"), LABELLED)
def test_labels(make, small, served, more, said):
    """Of the server, of the endpoint, and of the edge."""
    given = {"labels": more["labels_"]} if "labels_" in more else {}
    about = {
        "name": "large",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, more.get("classes", 3)]}],
        "parameters": {} if served is None else {"labels": json.dumps(served)},
    }
    with CannedServer(http_reply(json.dumps(about).encode())) as server:
        cloud = OpenInference(f"{server.url}/v2/models/large", binary=False, **given)
        lines = never(make(small, cloud, threshold=0.5))
    assert [said in line for line in lines] == ([True] if said else [])


@pytest.fixture
def policy(tmp_path, small):
    """A policy file that works."""
    file = tmp_path / "policy.toml"
    file.write_text('threshold = 0.5\n[edge]\npath = "small.onnx"\n')
    return file


@pytest.mark.parametrize("kind", [Router, Threads])
def test_a_policy_that_was_refused(kind, policy):
    """Is said until one is taken; the one before stays in force."""
    with kind.from_policy(policy) as router:
        good = policy.read_text()
        policy.write_text(good.replace("0.5", "7"))
        with pytest.raises(PolicyError):
            router.reload()
        (line,) = never(router)
        assert line.startswith(f"the policy on disk was refused, and the one before is in force: {policy}")
        policy.write_text(good)
        router.reload()
        assert never(router) == []


def test_a_watched_policy_that_was_refused(policy):
    """By the thread that watches it, too."""
    with Router.from_policy(policy, watch=True) as router:
        good = policy.read_text()
        policy.write_text(good.replace("0.5", "7"))
        wait_for(lambda: "the policy on disk was refused" in str(router.check()))
        policy.write_text(good)
        wait_for(lambda: router.check().ok)


def test_the_command(policy, monkeypatch):
    """Ends with 1, as it does by what the environment overrides."""
    assert cli("check", "-p", policy)[0] == 0
    policy.write_text(policy.read_text() + '[cloud]\nurl = "http://127.0.0.1:9/v2/models/large"\n[limits]\nusd_per_day = 5\n')
    code, out, _ = cli("check", "-p", policy, "--json")
    said = json.loads(out)
    assert (code, said["ok"]) == (FAILED, False)
    assert any(line.startswith("! usd_per_day = 5 never applies") for line in said["lines"])
    monkeypatch.setenv("EDGEROUTE_CLOUD__USD_PER_CALL", "9")
    code, out, _ = cli("check", "-p", policy)
    assert code == FAILED
    assert "a call takes at least 9, and usd_per_day = 5" in out


def test_the_command_takes_the_policy_with_and_without_its_option(policy):
    """And one of them."""
    assert cli("check", policy) == cli("check", "-p", policy) == cli("check", "--policy", policy)
    assert cli("check", policy)[0] == 0
    for given in ([], [policy, "-p", policy]):
        code, _, err = cli("check", *given)
        assert (code, "one policy is needed" in err) == (2, True)
    assert cli("check", policy.with_name("none.toml"))[0] == 2


@pytest.mark.parametrize("shape", [(1, None, 4), (2, None, 4)])
@pytest.mark.parametrize("names", [("state", "stateN"), ("h", "h_out"), ("h0", "hn")])
def test_a_state_that_the_card_does_not_mention(make, tmp_path, shape, names):
    """It would be dropped after each run. `inspect` writes it, and a caller who gives it names it in the card."""
    value, node = helper.make_tensor_value_info, helper.make_node
    state, following = names
    path = save(
        tmp_path / "voice.onnx", [node("Neg", ["x"], ["y"]), node("Add", [state, state], [following])],
        [value("x", 1, [None, 3]), value(state, 1, shape)], [value("y", 1, [None, 3]), value(following, 1, shape)],
    )  # fmt: skip
    card = path.with_suffix(".json")
    for given in ({}, {"input": {"name": "x"}}, {"input": {"name": "x", "batch": 0}, "output": {"name": "y", "kind": "logits"}}):
        card.write_text(json.dumps(given or {"name": "voice"}))
        lines = [line for line in make(OnnxModel(path)).check().lines if line.startswith("! ") and "is a state" in line]
        assert len(lines) == 1
        assert f"{state} is a state by its name, and {following} the next one: `edgeroute inspect MODEL --write`" in lines[0]
    card.write_text(json.dumps({"inputs": [{"name": "x"}, {"name": state, "batch": 1}], "output": {"name": "y"}}))
    assert "is a state" not in str(make(OnnxModel(path)).check())
    assert cli("inspect", path, "--write", "--force")[0] == 0
    assert json.loads(card.read_text())["state"] == [{"input": state, "output": following}]
    assert make(OnnxModel(path, kind="logits")).check().ok


@pytest.mark.parametrize("numbers", [2, 31])
@pytest.mark.parametrize("made", ["LinearRegressor", "TreeEnsembleRegressor", "plain"])
def test_a_regression_of_several_numbers_is_no_classifier(make, tmp_path, numbers, made):
    """A regressor of ONNX gives a value; where nothing tells, it is not ready until the kind is written."""
    value, attributes = helper.make_tensor_value_info, {}
    weights = np.random.default_rng(0).normal(size=(4, numbers)).astype("f")
    if made == "LinearRegressor":
        attributes = {"coefficients": weights.T.reshape(-1).tolist(), "intercepts": [3.0] * numbers, "targets": numbers}
    elif made == "TreeEnsembleRegressor":
        leaves = range(numbers)
        attributes = {
            "n_targets": numbers, "nodes_treeids": [0], "nodes_nodeids": [0], "nodes_featureids": [0], "nodes_modes": ["LEAF"],
            "nodes_values": [0.0], "nodes_truenodeids": [0], "nodes_falsenodeids": [0], "target_ids": [*leaves],
            "target_treeids": [0] * numbers, "target_nodeids": [0] * numbers, "target_weights": [float(i) for i in leaves],
        }  # fmt: skip
    if attributes:
        nodes = [helper.make_node(made, ["x"], ["y"], domain="ai.onnx.ml", **attributes)]
    else:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "three"], ["y"])]
    path = save(
        tmp_path / "m.onnx", nodes, [value("x", 1, [None, 4])], [value("y", 1, [None, numbers])],
        [] if attributes else [("w", weights), ("three", np.float32(3))], domains=("", "ai.onnx.ml"),
    )  # fmt: skip
    (line,) = never(make(path, sure, threshold=0.6))
    assert ("gives no confidence" if attributes else 'kind="logits", or "value" for a regression') in line
    answer = make(path, sure, threshold=0.6).infer(np.ones(4, "f"))
    assert not attributes or answer.source == "cloud"
    assert never(make(OnnxModel(path, kind="value"), sure, threshold=0.6, no_confidence="accept")) == []
    assert never(make(OnnxModel(path, kind="logits"), sure, threshold=0.99)) == []


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_numbers_from_0_to_1_of_a_function(make, caplog, labels, side):
    """May be several labels: it is logged once, and `check` says it of the edge."""
    shares = np.array([0.9, 0.2, 0.7])
    edge = CallableModel(lambda _: shares, labels=labels) if side == "edge" else unsure
    cloud = Function(lambda _: shares, labels=labels) if side == "cloud" else sure
    router = make(edge, cloud, threshold=0.95)
    assert never(router) == []
    for _ in range(2):
        router.infer(1)
    assert caplog.text.count('write kind = "multilabel"') == 1
    if side == "edge":
        (line,) = never(router)
        assert 'write kind = "multilabel" in its card or in Python' in line
    given = make(CallableModel(lambda _: shares, labels=LABELS, kind="multilabel"), sure, threshold=0.6)
    assert given.infer(1).value == ["a", "c"]
    assert never(given) == []


@pytest.mark.parametrize("batch", [True, False])
def test_boxes_of_a_function_with_a_batch_axis(make, batch):
    """A detector's outputs as its session gives them: the kind is recognised with the axis of the batch, and without."""
    boxes, raw = np.zeros((300, 6), "f"), np.zeros((6, 8400), "f")
    boxes[0], raw[:, 0] = [10, 10, 50, 60, 0.9, 2], [30, 30, 20, 20, 0.8, 0.1]
    for output, confidence in ((boxes, 0.9), (raw, 0.8)):
        edge = CallableModel(
            lambda _, output=output: output[None] if batch else output, labels=("a", "b", "c")[: 3 - (output is raw)]
        )
        answer = make(edge, sure, threshold=0.7).infer(1)
        assert answer.source == "edge"
        assert answer.confidence == pytest.approx(confidence)
        assert len(answer.value) == 1


def test_a_classifier_of_scikit_learn(make):
    """Its classes tell the least confidence and the labels, and its columns what a cloud has to read."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows = np.random.default_rng(0).normal(size=(90, 4))
    clf = linear_model.LogisticRegression().fit(rows, np.array(["no", "yes", "maybe"] * 30))
    assert never(make(clf, sure, threshold=0.5)) == []
    (line,) = never(make(clf, sure, threshold=0.3))
    assert "with 3 classes a confidence is at least 0.333" in line
    with endpoint([8]) as cloud:
        assert any("cannot read what edge reads" in line for line in never(make(clf, cloud, threshold=0.5)))
    with endpoint([4], labels=LABELS) as cloud:
        assert any("no label in common" in line for line in never(make(clf, cloud, threshold=0.5)))
    chat = never(make(clf, OpenAIChat("http://127.0.0.1:9/v1", model="m"), threshold=0.5))
    assert any("expected a prompt" in line for line in chat)


def test_the_best_classes_without_probabilities_have_no_confidence(make):
    """The kind `top` never has one, so that is known before the first call."""
    (line,) = never(make(CallableModel(lambda _: 1, kind="top"), sure, threshold=0.5))
    assert "gives no confidence" in line


@pytest.mark.parametrize("answer", [[191.2, 36.5], np.array([191.2, 36.5]), (np.array([191.2, 36.5]), 0.7)])
@pytest.mark.parametrize("form", ["function", "kind"])
def test_a_cloud_behind_a_regression_gives_values(make, answer, form):
    """Numbers are no classes where the edge gives none, unless the cloud has a kind of its own."""
    edge = CallableModel(lambda _: np.array([1.0, 2.0]), kind="value")
    given = make(edge, Function(lambda _: answer, kind="value" if form == "kind" else None), threshold=0.8).infer(1)
    assert given.source == "cloud"
    assert [*given.value] == [191.2, 36.5]
    assert given.confidence == (0.7 if type(answer) is tuple else None)
    logits = make(edge, Function(lambda _: np.array([0.0, 5.0]), kind="logits"), threshold=0.8).infer(1)
    assert logits.value == 1


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 6))])
def test_a_cloud_behind_a_detector_may_find_nothing(make, nothing):
    """Where the kind of either says that it is one."""
    boxes = [{"box": [0.0, 0.0, 9.0, 9.0], "score": 0.5, "label": "dog"}]
    answer = make(CallableModel(lambda _: boxes, kind="boxes"), lambda _: nothing, threshold=0.8).infer(1)
    assert (answer.source, answer.value) == ("cloud", [])
    answer = make(lambda _: boxes, lambda _: nothing, threshold=0.8).infer(1)
    assert answer.degraded
    assert make(lambda _: boxes, Function(lambda _: nothing, kind="boxes"), threshold=0.8).infer(1).value == []
