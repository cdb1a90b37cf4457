"""`edgeroute inspect`: what a model takes and gives, what of it is certain, guessed and open, and the card that it writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from both import LONG, running
from commands import cli
from onnx import TensorProto, helper
from PIL import Image

from edgeroute import OnnxModel, Options, Router, register
from edgeroute.edge.model_card import Card
from edgeroute.testing import CannedServer, fresh_runtimes, http_reply
from edgeroute.tools.inspect.guess_outputs import batch_of, guess_outputs, named_classes
from edgeroute.tools.inspect.input_guesses_and_trial_tensors import describe, pairs
from edgeroute.tools.server.serve import app as served
from edgeroute.types import TensorSpec

HERE = Path(__file__).parent / "exported"
EXPECTED = json.loads((HERE / "expected.json").read_text())
INPUTS = np.array(EXPECTED.pop("inputs"), np.float32)
F, INT, U = TensorProto.FLOAT, TensorProto.INT64, TensorProto.UINT8
value, node = helper.make_tensor_value_info, helper.make_node
RED = np.zeros((32, 32, 3), np.uint8)
RED[..., 0] = 255


def run(*args, **env):
    """The command -> exit code, stdout, stderr."""
    return cli("inspect", *args, env={**os.environ, "COLUMNS": "80", **env})


def look(*args):
    """What it finds, as JSON."""
    code, out, err = run(*args, "--json")
    assert code == 0, (out, err)
    return json.loads(out)


def found(report, about):
    return next(one for one in report["findings"] if one["about"] == about)


def copied(name, folder):
    path = folder / f"{name}.onnx"
    path.write_bytes((HERE / f"{name}.onnx").read_bytes())
    return path


def graph(path, nodes, x, y, constants=()):
    """A model x -> y, (dtype, shape) each."""
    return tiny.save(path, nodes, [value("x", *x)], [value("y", *y)], constants)


def means(path, shape, axes, dtype=F, name="logits", after=()):
    """x -> the means of its channels, under that name."""
    nodes = [node("Cast", ["x"], ["f"], to=F), node("ReduceMean", ["f"], ["m"], axes=axes, keepdims=0)]
    nodes += [node(after, ["m"], [name], axis=-1) if after else node("Identity", ["m"], [name])]
    return tiny.save(path, nodes, [value("x", dtype, shape)], [value(name, F, [*shape[:-3], 3])])


# ------------------------------------------------------------------------------------------------------- exported models
@pytest.mark.parametrize("name", EXPECTED)
def test_the_card_of_a_real_model_is_right(name, tmp_path):
    """For each of them the written card loads, and every answer is the original's; the first is shown."""
    path, known = copied(name, tmp_path), EXPECTED[name]
    rows = INPUTS[:, :3] if name == "sk_regression" else INPUTS
    np.savez(tmp_path / "x.npz", images=rows)
    report = look(path, "--sample", tmp_path / "x.npz", "--write")
    kind = "value" if name == "sk_regression" else "label+probabilities"
    sure = "certain" if name == "sk_regression" else "likely"  # by its operator
    assert (found(report, "output.kind")["says"], found(report, "output.kind")["sure"]) == (kind, sure)
    (shown,) = report["sample"]["answers"]
    first = known["values"][0]
    assert shown["value"] == (pytest.approx(first, abs=1e-4) if kind == "value" else first)
    card = Card.read(tmp_path / f"{name}.json")
    assert (card.kind, card.sha256) == (kind, report["sha256"])
    with Router(path, threshold=0.5, options=Options(no_confidence="accept")) as router:
        assert router.check().ok
        answers = [router.infer(x) for x in rows]
    if kind == "value":
        assert [a.value for a in answers] == pytest.approx(known["values"], abs=1e-4)
    else:
        assert [a.value for a in answers] == known["values"]
        assert [a.confidence for a in answers] == pytest.approx(known["confidences"], abs=2e-5)


# --------------------------------------------------------------------------------------------------------------- outputs
def classes(path, last, **more):
    """x [n, 4] -> y, by that node."""
    return graph(path, [node(last, ["x"], ["y"], **more)], (F, ["n", 4]), (F, ["n", 4]))


@pytest.mark.parametrize(
    ("last", "more", "kind", "sure"),
    [
        ("Softmax", {"axis": -1}, "probabilities", "certain"),
        ("LogSoftmax", {"axis": -1}, "logprobs", "certain"),
        ("Sigmoid", {}, "multilabel", "certain"),
        ("Neg", {}, "logits?", "open"),
    ],
)
def test_the_kind_by_the_last_operator(tmp_path, last, more, kind, sure):
    """A softmax, its logarithm and a sigmoid show; other numbers do not, and are not claimed to be anything."""
    path = classes(tmp_path / "m.onnx", last, **more)
    report = look(path, "--write")
    one = found(report, "output.kind")
    assert (one["says"], one["sure"]) == (kind, sure)
    assert Card.beside(path).kind == (None if sure == "open" else kind)
    assert bool(one["write"]) == (sure == "open")
    with Router(path, threshold=0.5) as router:
        assert router.check().ok
        assert router.infer(np.array([0, 0, 9, 0], np.float32)).value == {"Neg": 0, "Sigmoid": [2]}.get(last, 2)


def test_a_kind_is_open_where_the_output_is(tmp_path):
    """A mask that could be boxes, beside another output: no card says that it is, and the line to write names the output."""
    value = helper.make_tensor_value_info
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[1], keepdims=1), node("MatMul", ["m", "w"], ["a"]), node("Sigmoid", ["a"], ["s"]),
        node("Reshape", ["s", "size"], ["mask"]), node("Neg", ["m"], ["other"]),
    ]  # fmt: skip
    read = [value("mask", F, ["n", 16, 128]), value("other", F, ["n", 1])]
    constants = [("w", np.ones((1, 2048), np.float32)), ("size", np.array([-1, 16, 128]))]
    path = tiny.save(tmp_path / "m.onnx", nodes, [value("x", F, ["n", "t"])], read, constants)
    one = found(look(path, "--write"), "output.kind")
    assert (one["says"], one["sure"], one["write"]) == ("value?", "open", '"output": {"name": "mask", "kind": "boxes"}')
    assert "output" not in json.loads(path.with_suffix(".json").read_text())


def test_names_that_are_not_read_are_not_written(tmp_path):
    """Three names in the file of a detector with five classes: the card has neither, so that the model runs with it."""
    array = np.array([[[0, 0, 9, 9, 0.9, 4], [1, 1, 5, 5, 0.2, 0]]], np.float32)
    nodes = [node("ReduceSum", ["x"], ["s"], keepdims=0), node("Mul", ["s", "zero"], ["z"]), node("Add", ["z", "array"], ["y"])]
    value = helper.make_tensor_value_info
    path = tiny.save(
        tmp_path / "m.onnx", nodes, [value("x", F, [1, 4])], [value("y", F, [1, 2, 6])],
        [("array", array), ("zero", np.array(0, np.float32))],
    )  # fmt: skip
    model = onnx.load(path)
    helper.set_model_props(model, {"names": "['a', 'b', 'c']"})
    onnx.save(model, path)
    report = look(path, "--write")
    assert [found(report, about)["says"] for about in ("output.kind", "labels")] == ["boxes?", "a, b, c?"]
    assert report["card"].keys() == {"sha256", "input"}
    with Router(path, threshold=0) as router:
        assert router.check().ok
        assert router.infer(np.zeros(4, np.float32)).value


def spec(name, dtype="float32", shape=(-1, 4)):
    return TensorSpec(name, dtype, shape)


BOXES = {"boxes": np.ones((2, 4)), "scores": np.array([0.9, 0.1]), "classes": np.array([1, 0])}


@pytest.mark.parametrize(
    ("specs", "row", "kind", "sure"),
    [
        ([spec("logits")], {"logits": np.array([1.0, -2, 3, 4])}, "logits", "likely"),
        ([spec("embedding")], {"embedding": np.array([1.0, -2, 3, 4])}, "value", "likely"),
        ([spec("y", shape=(-1, 1))], {"y": np.array([17.5])}, "value", "likely"),
        ([spec("y", shape=(-1, 1))], {"y": np.array([0.5])}, "value?", "open"),
        ([spec("logit", shape=(-1, 1))], {"logit": np.array([17.5])}, "value?", "open"),
        ([spec("y", shape=(-1, 84, 8400))], {"y": np.full((84, 8400), 2.0)}, "value?", "open"),
        ([spec("y", shape=(-1, 84, 8400))], {"y": np.full((84, 8400), 1.0)}, "value?", "open"),
        ([spec("y", shape=(-1, 84, 8400))], {"y": np.vstack([np.full((4, 8400), 9.0), np.ones((80, 8400))])}, "boxes", "likely"),
        ([spec("y", shape=(1, 5, 6))], {"y": np.array([[0, 0, 9, 9, 0.5, 3.0]] * 5)}, "boxes", "likely"),
        ([spec("y", shape=(1, 5, 6))], {"y": np.array([[0, 0, 9, 9, 0.5, 3.5]] * 5)}, "value?", "open"),
        ([spec(name) for name in BOXES], BOXES, "boxes", "likely"),
        ([spec("t", "int64"), spec("p")], {"t": np.array([5, 7]), "p": np.array([-1.0, -2.0])}, "logprobs", "likely"),
        ([spec("l", "int64", (-1,)), spec("s")], {"l": np.array(3), "s": np.array([1.0, -2, 3])}, "?", "open"),
        ([spec("y", "int64")], {"y": np.array([1, 2, 3, 4])}, "?", "open"),
        ([spec("l", "int64"), spec("a"), spec("b")], {"l": np.array(1), "a": np.float32(0.3), "b": np.float32(0.7)},
         "label+probabilities", "likely"),
        ([spec("y")], {"y": {"a": 0.25, "b": 0.75}}, "probabilities", "likely"),
    ],
)  # fmt: skip
def test_the_kind_of_a_row(specs, row, kind, sure):
    """By names and forms; where neither tells, it is open, with what to write."""
    one = next(f for f in guess_outputs(specs, [row, row]) if f.about == "output.kind")
    assert (one.says, one.sure) == (kind, sure)
    assert one.grounds
    assert sure == "likely" or one.write


def test_labels_need_no_kind():
    """Integers and texts alone are labels."""
    for label in (np.array(3), np.array(["cat"], object)):
        (one,) = guess_outputs([spec("y", "int64", (-1,))], [{"y": label}])
        assert (one.about, one.says, one.sure) == ("output", "a label", "certain")


def test_the_best_scores_alone():
    """The file tells by its operator that they are no embedding."""
    (one,) = guess_outputs([spec("v")], [{"v": np.array([5.5, 0.3])}], "value", "since TopK makes them")
    assert "embedding" not in one.grounds


def test_which_output_is_read(tmp_path):
    """The one whose name says probabilities; and where no name tells, that is said."""
    nodes = [node("Neg", ["x"], ["s"]), node("Softmax", ["s"], ["probs"], axis=-1)]
    path = tiny.save(
        tmp_path / "m.onnx", nodes, [value("x", F, ["n", 3])], [value("s", F, ["n", 3]), value("probs", F, ["n", 3])]
    )
    report = look(path)
    assert report["card"]["output"] == {"name": "probs", "kind": "probabilities"}
    report = look(tiny.two_inputs(tmp_path / "two.onnx"))
    one = found(report, "output.name")
    assert (one["sure"], one["write"]) == ("open", '"output": {"name": "total"}  (or another)')
    assert "name" not in report["card"].get("output", {})


def test_names_of_classes_in_the_file():
    """A list or a mapping by number, as JSON or as Python writes it, of the right length; anything else is none."""
    assert named_classes({"names": "{0: 'cat', 1: 'dog'}"}, 2) == ("names", ["cat", "dog"])
    assert named_classes({"labels": '["cat", "dog"]'}, None) == ("labels", ["cat", "dog"])
    for bad in (
        "{0: 'cat', 1: 'dog'}",
        "{0: 'cat', 2: 'dog', 3: 'cow'}",
        "[1, 2, 3]",
        "(" * 5000,
        "-" * 50000 + "1",
        "import os",
        "{",
    ):
        assert named_classes({"names": bad}, 3) is None


# ---------------------------------------------------------------------------------------------------------------- inputs
def test_a_float_picture_is_asked_about(tmp_path):
    """The layout is in the card; the scale is not, but the sample shows what each usual one gives."""
    path = means(tmp_path / "m.onnx", ["n", 3, 32, 32], [2, 3], name="probs", after="Softmax")
    Image.fromarray(RED).save(tmp_path / "red.png")
    report = look(path, "--sample", tmp_path / "red.png", "--write")
    assert found(report, "inputs.x.layout")["says"] == "a colour picture, CHW"
    asked = found(report, "inputs.x.preprocess")
    assert asked["sure"] == "open"
    lines = asked["write"].split("\n")
    assert len(lines) == 4
    card = json.loads((tmp_path / "m.json").read_text())
    assert card["input"] == {"name": "x", "shape": [-1, 3, 32, 32], "dtype": "float32", "layout": "CHW"}
    shown = {one["way"]: one for one in report["sample"]["answers"]}
    assert list(shown) == ["0 to 1", "ImageNet's mean and std", "-1 to 1", "0 to 255"]
    assert {one["value"] for one in shown.values()} == {0}
    assert shown["0 to 1"]["confidence"] == pytest.approx(np.e / (np.e + 2), abs=1e-4)
    with Router(path, threshold=0.5) as router:  # as it is, the tensor is the caller's
        assert router.infer(np.ones((3, 32, 32), np.float32)).confidence == pytest.approx(1 / 3, abs=1e-3)
    said = json.loads("{" + lines[0].partition("  (")[0] + "}")  # and a line that it says to write is one
    (tmp_path / "m.json").write_text(json.dumps({**card, **said}))
    with Router(path, threshold=0.5) as router:
        assert router.infer(RED).confidence == pytest.approx(shown["0 to 1"]["confidence"])


def test_pixels_are_turned_as_the_sample_shows(tmp_path):
    """A uint8 model with the colours first, a picture with the colours last: the card transposes; without a sample nothing does."""
    path = means(tmp_path / "m.onnx", [1, 3, 32, 32], [2, 3], U)
    np.save(tmp_path / "red.npy", RED)
    assert "preprocess" not in look(path)["card"]["input"]
    report = look(path, "--sample", tmp_path / "red.npy", "--write")
    assert report["card"]["input"]["preprocess"] == {"dtype": "uint8", "shape": [32, 32, 3], "layout": "HWC"}
    assert report["sample"]["answers"][0]["value"] == 0
    with Router(path, threshold=0.5) as router:
        answer = router.infer(RED)
        assert (answer.value, answer.confidence) == (0, pytest.approx(1.0))


def test_a_picture_of_another_size_is_a_question(tmp_path):
    """The sample is stretched for the run; the card does not claim that it should be."""
    path = means(tmp_path / "m.onnx", [1, 32, 32, 3], [1, 2], U)
    Image.fromarray(np.repeat(RED, 2, axis=1)).save(tmp_path / "red.png")
    report = look(path, "--sample", tmp_path / "red.png")
    assert found(report, "inputs.x.preprocess.resize")["sure"] == "open"
    assert "preprocess" not in report["card"]["input"]
    assert report["sample"]["answers"][0]["value"] == 0


@pytest.mark.parametrize(
    ("shape", "dtype", "layout"),
    [
        ((-1, 3, 224, 224), "float32", "CHW"),
        ((-1, 224, 224, 3), "float32", "HWC"),
        ((-1, 3, -1, -1), "float32", "CHW"),
        ((1, 1, 28, 28), "float32", "CHW"),
        ((-1, 28, 28), "uint8", "HW"),
        ((-1, 32, 32, 4), "uint8", "HWC"),
        ((-1, 4, 32, 32), "float32", None),
        ((-1, 28, 28), "float32", None),
        ((-1, 3, 224, 3), "float32", None),
        ((-1, -1, -1, -1), "float32", None),
        ((-1, 1, 1, 128), "float32", None),
        ((-1, 3, 224, 224), "int64", None),
        ((-1, 4), "float32", None),
        ((-1,), "float32", None),
        ((), "float32", None),
    ],
)
def test_which_tensors_are_pictures(shape, dtype, layout):
    """By dtype, channels and sides; what has several readings is none of them."""
    (guess,) = describe([spec("x", dtype, shape)], [])
    assert guess.layout == layout
    assert guess.findings or not shape


def test_a_tensor_without_a_batch_axis(tmp_path):
    """A picture by itself: the card says that there is none, and one picture at a time is answered."""
    path = means(tmp_path / "m.onnx", [3, 32, 32], [1, 2], name="probs", after="Softmax")
    report = look(path, "--write")
    assert report["card"]["input"]["batch"] == "none"
    with Router(path, threshold=0.1) as router:
        assert router.infer(np.transpose(RED, (2, 0, 1)).astype(np.float32)).value == 0


def test_an_output_whose_second_axis_counts_the_inputs(tmp_path):
    """Found by running it with several, and written."""
    nodes = [node("Transpose", ["x"], ["y"], perm=[1, 0])]
    path = graph(tmp_path / "m.onnx", nodes, (F, ["n", 4]), (F, [4, "n"]))
    report = look(path, "--write")
    assert report["card"]["output"]["batch"] == 1
    with Router(path, threshold=0.1) as router:
        assert [a.value for a in router.infer_many(list(np.eye(4, dtype=np.float32)))] == [0, 1, 2, 3]
    assert batch_of({"y": np.ones((1, 4))}, {"y": np.ones((3, 4))}, 3) == 0
    assert batch_of({"y": np.ones(4)}, {"y": np.ones(4)}, 3) == "none"
    assert batch_of({"a": np.ones((1, 4)), "b": np.ones((4, 1))}, {"a": np.ones((3, 4)), "b": np.ones((4, 3))}, 3) is None


def voice(path):
    """x [n, t], state [1, n, 4], sr -> output [n, 1], stateN: their sum, and the state with one more."""
    nodes = [
        node("ReduceSum", ["input", "one"], ["total"], keepdims=1),
        node("ReduceSum", ["state", "ends"], ["kept"], keepdims=0),
        node("Unsqueeze", ["kept", "one"], ["column"]),
        node("Cast", ["sr"], ["rate"], to=F),
        node("Mul", ["column", "rate"], ["more"]),
        node("Add", ["total", "more"], ["output"]),
        node("Add", ["state", "step"], ["stateN"]),
    ]
    constants = [("one", np.array([1])), ("ends", np.array([0, 2])), ("step", np.array(1.0, np.float32))]
    inputs = [value("input", F, ["n", "t"]), value("state", F, [1, "n", 4]), value("sr", INT, [])]
    return tiny.save(path, nodes, inputs, [value("output", F, ["n", 1]), value("stateN", F, [None, None, None])], constants)


def test_a_model_with_a_state(tmp_path):
    """The pair is found by its names; a number without axes is asked for, and taken from the sample that has it."""
    path = voice(tmp_path / "v.onnx")
    report = look(path)
    assert report["card"]["state"] == [{"input": "state", "output": "stateN"}]
    assert found(report, "inputs.sr")["sure"] == "open"
    assert "sr was assumed to be 16000" in report["notes"]
    np.save(tmp_path / "x.npy", np.ones(8, np.float32))
    code, out, _ = run(path, "--sample", tmp_path / "x.npy", "--json")
    assert code == 1
    assert "cannot be run without sr" in json.loads(out)["sample"]["answers"][0]["error"]
    np.savez(tmp_path / "x.npz", input=np.ones((1, 8), np.float32), sr=np.array(10))
    report = look(path, "--sample", tmp_path / "x.npz", "--write")
    assert report["sample"]["answers"] == [{"way": "as it is", "value": 8.0, "confidence": None}]
    assert {"name": "sr", "shape": [], "dtype": "int64", "value": 10} in report["card"]["inputs"]
    with Router(path, threshold=0.5, options=Options(no_confidence="accept")) as router, router.session() as session:
        assert [session.infer(np.ones(8, np.float32)).value for _ in range(3)] == [8.0, 48.0, 88.0]


@pytest.mark.parametrize(
    ("given", "kept", "sure"),
    [
        (("state", (2, 1, 8)), ("stateN", (-1, -1, -1)), "likely"),
        (("h", (2, 1, 8)), ("hn", (2, 1, 8)), "likely"),
        (("h0", (2, 1, 8)), ("hn", (2, 1, 8)), "likely"),
        (("past_key_values.0.key", (1, 8, -1, 64)), ("present.0.key", (1, 8, -1, 64)), "likely"),
        (("past_key_values.0.key", (-1, 8, -1, 64)), ("present.0.key", (-1, 8, -1, 64)), "open"),
        (("hidden_in", (1, 8)), ("hidden_out", (1, 8)), "likely"),
        (("image_in", (1, 8)), ("image_out", (1, 8)), "open"),
        (("a", (1, 8)), ("b", (1, 8)), None),
        (("input", (1, 8)), ("output", (1, 8)), None),
        (("state", (2, 1, 8)), ("stateN", (2, 1, 9)), None),
    ],
)  # fmt: skip
def test_which_outputs_are_fed_back(given, kept, sure):
    """By name, dtype and shape; equal shapes alone are no grounds."""
    x = spec("x")
    pair = pairs([x, spec(given[0], shape=given[1])], [spec("y"), spec(kept[0], shape=kept[1])])
    assert [one.sure for one in pair] == ([] if sure is None else [sure])
    assert pairs([spec(given[0], shape=given[1])], [spec(kept[0], shape=kept[1])]) == [], "something has to be given"


def test_several_inputs(tmp_path):
    """A sample has them by their names, one row or several."""
    path = tiny.two_inputs(tmp_path / "m.onnx")
    np.savez(tmp_path / "x.npz", a=np.array([[1, 2], [5, 6]], np.float32), b=np.array([[1, 1], [1, 9]], np.float32))
    report = look(path, "--sample", tmp_path / "x.npz", "--index", "1", "--write")
    assert report["sample"]["answers"][0]["value"] == 1
    assert [one["name"] for one in report["card"]["inputs"]] == ["a", "b"]
    with Router(path, threshold=0.1) as router:
        assert router.infer({"a": np.zeros(2, np.float32), "b": np.array([3, 1], np.float32)}).value == 0


# ----------------------------------------------------------------------------------------------------- cards and the page
def test_a_card_that_is_there(tmp_path):
    """It is used for the sample, never written over without --force, and a wrong one is told."""
    path = classes(tmp_path / "m.onnx", "Softmax", axis=-1)
    np.save(tmp_path / "x.npy", np.array([0, 0, 9, 0], np.float32))
    card = tmp_path / "m.json"
    card.write_text(json.dumps({"labels": ["a", "b", "c", "d"], "output": {"kind": "probabilities"}}))
    before = card.read_text()
    code, _, err = run(path, "--write")
    assert code == 2
    assert "--force" in err
    assert card.read_text() == before
    report = look(path, "--sample", tmp_path / "x.npy")
    assert [(one["way"], one["value"]) for one in report["sample"]["answers"]] == [
        ("with the card that is there", "c"),
        ("as it is", 2),
    ]
    card.write_text('{"output": {"knd": 1}}')
    report = look(path, "--write", "--force")
    assert "is there, and wrong" in report["card_there"]
    assert Card.read(card).kind == "probabilities"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.json", "m.onnx", "x.npy"], "nothing is left over"


def test_a_link_is_not_written_through(tmp_path):
    """Where NAME.json is a link that leads nowhere, nothing appears there."""
    path = classes(tmp_path / "m.onnx", "Softmax", axis=-1)
    (tmp_path / "m.json").symlink_to(tmp_path / "elsewhere.json")
    assert run(path, "--write")[0] == 2
    assert not (tmp_path / "elsewhere.json").exists()
    look(path, "--write", "--force")
    assert not (tmp_path / "m.json").is_symlink()


def test_a_narrow_terminal(tmp_path, monkeypatch):
    """No line of prose is longer than 40 characters; only hashes, paths and JSON are not broken."""
    path = means(tmp_path / "m.onnx", ["n", 3, 32, 32], [2, 3], name="probs", after="Softmax")
    np.save(tmp_path / "x.npy", np.ones((3, 32, 32), np.float32))
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(path.name, "--sample", "x.npy", COLUMNS="40")
    assert code == 0
    prose = out.partition("the card that --write")[0].splitlines()
    assert [line for line in prose if len(line) > 40 and " " in line.strip()] == []
    assert "as it is: 0, confidence 0.3333" in out
    for title in ("inputs", "outputs", "guessed, with good grounds", "open: yours to say", "how it ran"):
        assert title in out.splitlines()


def test_ascii(tmp_path):
    """Names of any letters, and control characters, are printed on a stream that takes ASCII alone."""
    nodes = [node("Identity", ["größe\x1b[31m"], ["名前"])]
    path = tiny.save(tmp_path / "m.onnx", nodes, [value("größe\x1b[31m", F, ["n", 4])], [value("名前", F, ["n", 4])])
    code, out, err = cli("inspect", path, env={**os.environ, "COLUMNS": "40"}, encoding="ascii")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    assert "gr\\xf6\\xdfe" in out
    assert look(path, "--write")["card"]["input"]["name"] == "größe\x1b[31m"
    with Router(path, threshold=0.1) as router:
        assert router.infer(np.array([0, 1, 0, 0], np.float32)).value == 1


def test_a_device_is_no_model(tmp_path):
    """Nor is a pipe, which would be waited for, for ever: neither is read, wherever a model file is."""
    from edgeroute import ModelError
    from edgeroute.edge import gguf_format as gguf
    from edgeroute.edge.model_card import sha256_of

    path = tmp_path / "device.gguf"
    path.symlink_to(os.devnull)
    for read in (gguf.read, sha256_of):
        with pytest.raises(ModelError, match=r"device\.gguf cannot be read: it is no regular file"):
            read(path)


# --------------------------------------------------------------------------------------------------------------- hostile
def test_files_that_are_no_model(tmp_path):
    """Each is refused in one line, with the code of a wrong model; nothing is written."""
    (tmp_path / "broken.onnx").write_bytes((HERE / "sk_plain.onnx").read_bytes()[:200])
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "m.tflite").write_bytes(b"")
    (tmp_path / "folder.onnx").mkdir()
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate((1 << 31) + 1)
    os.mkfifo(tmp_path / "pipe.onnx")
    for name in ("broken", "text", "empty", "folder", "huge", "pipe", "missing"):
        code, out, err = run(tmp_path / f"{name}.onnx", "--write")
        assert (code, out) == (2, ""), name
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
    assert run(tmp_path / "m.tflite")[0] == 2
    assert not list(tmp_path.glob("*.json"))


def test_a_model_that_does_not_end(tmp_path):
    """Its run on zeros is stopped; what the file says is told all the same."""
    report = look(tiny.endless(tmp_path / "m.onnx"), "--timeout", "300ms")
    assert "does not run on zeros: a run did not end" in report["notes"][0]
    assert found(report, "output.kind")["sure"] == "open"


def test_ctrl_c_during_a_run(tmp_path):
    """It ends with 130, and nothing is aborted: the run is told to stop, and waited for."""
    path = tiny.endless(tmp_path / "m.onnx")
    code = (
        "import sys; from edgeroute.tools.cli import inspect_by_runs_and_guessed_card as f; real = f.Model.run\n"
        "def run(self, feed): print('go', flush=True); return real(self, feed)\n"
        f"f.Model.run = run; sys.argv = ['edgeroute', 'inspect', {str(path)!r}, '--timeout', '1h']\n"
        "from edgeroute.__main__ import main; main()"
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what is started in the background would ignore it
    try:
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "go\n"
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=LONG) == ("", "")
            assert process.returncode == 130
    finally:
        signal.signal(signal.SIGINT, before)


class Doubles:
    """A runtime of one's own, which takes no card."""

    labels = kind = None

    def __init__(self, path):
        self.path, self.name = path, "doubles"
        self.inputs = self.outputs = (spec("x", shape=(-1, 2)),)

    def run(self, inputs, cancel=None):
        """A batch."""
        return np.stack([2 * x for x in inputs])

    def run_feed(self, feed):
        """Tensors."""
        return 2 * feed["x"]


@pytest.fixture
def doubles():
    """A runtime of one's own is registered meanwhile."""
    with fresh_runtimes():
        register(".dbl", "test_inspect:Doubles")
        yield


@pytest.mark.usefixtures("doubles")
def test_a_runtime_of_ones_own(tmp_path):
    """Its model is looked at likewise; a card is written only where the runtime takes one."""
    path = tmp_path / "m.dbl"
    path.write_bytes(b"2")
    np.save(tmp_path / "x.npy", np.array([1, 4], np.float32))
    report = look(path, "--sample", tmp_path / "x.npy")
    assert report["sample"]["answers"][0]["value"] == 1
    assert found(report, "output.kind")["says"] == "logits?"
    code, _, err = run(path, "--write")
    assert (code, "does not take" in err) == (2, True)
    assert not (tmp_path / "m.json").exists()


class Endless(Doubles):
    """One whose runs do not end, and cannot be stopped."""

    def run_feed(self, feed):
        """Waits for ever."""
        threading.Event().wait()


def test_a_run_that_cannot_be_stopped(tmp_path, monkeypatch):
    """Is left behind: what is known is told all the same, and the command ends well."""
    (tmp_path / "m.dbl").write_bytes(b"2")
    code = (
        "import sys; sys.path[:0] = [sys.argv[2]]\n"
        "import edgeroute; edgeroute.register('.dbl', 'test_inspect:Endless')\n"
        "sys.argv = ['edgeroute', 'inspect', sys.argv[1], '--timeout', '10ms', '--json']\n"
        "from edgeroute.__main__ import main; main()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "m.dbl"), str(HERE.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a run did not end within" in json.loads(done.stdout)["notes"][0]


def test_odd_models(tmp_path):
    """Without inputs, of very many outputs, of very long names: each is told, and its card is one."""
    none = tiny.save(
        tmp_path / "none.onnx", [node("Identity", ["c"], ["y"])], [], [value("y", F, [1, 2])], [("c", np.ones((1, 2), "f"))]
    )
    assert look(none, "--write")["inputs"] == []
    names = [f"y{i}{'z' * 500}" for i in range(300)]
    nodes = [node("Identity", ["x"], [name]) for name in names]
    path = tiny.save(tmp_path / "many.onnx", nodes, [value("x", F, ["n", 4])], [value(name, F, ["n", 4]) for name in names])
    report = look(path, "--write")
    assert len(report["outputs"]) == 300
    code, out, _ = run(path)
    assert code == 0
    assert "and 240 more: --json" in out
    assert max(map(len, out.splitlines())) < 100


def test_a_sample_that_does_not_fit(tmp_path):
    """Code 1, as for any wrong input, with what the model takes."""
    path = copied("sk_plain", tmp_path)
    np.save(tmp_path / "x.npy", np.ones(5, np.float32))
    code, out, _ = run(path, "--sample", tmp_path / "x.npy")
    assert code == 1
    assert "expected [4] float32" in " ".join(out.split())
    for wrong in ("none.npy", "x.txt"):
        code, out, err = run(path, "--sample", tmp_path / wrong)
        assert (code, out) == (1, ""), wrong
        assert err.startswith("error: ")


# ------------------------------------------------------------------------------------------------------------- endpoints
def test_an_endpoint(tmp_path):
    """A model behind `serve`: the kind by names without a sample, by values with one, and the lines for the policy."""
    np.savez(tmp_path / "x.npz", images=INPUTS)
    models = [OnnxModel(HERE / f"{name}.onnx") for name in ("sk_zipmap", "sk_texts")]
    with running(served(models)) as client:
        for name in ("sk_zipmap", "sk_texts"):
            url = f"{client.base_url}/v2/models/{name}"
            report = look(url)
            assert found(report, "output.kind")["grounds"].startswith("by their names")
            assert report["sample"] is None
            assert report["policy"]["cloud"] == {"url": url, "kind": "label+probabilities"}
            report = look(url, "--sample", tmp_path / "x.npz", "--index", 1)
            (shown,) = report["sample"]["answers"]
            assert shown["value"] == EXPECTED[name]["values"][1]
            assert shown["confidence"] == pytest.approx(EXPECTED[name]["confidences"][1], abs=2e-5)
        code, _, err = run(f"{client.base_url}/v2/models/none")
        assert (code, "404" in err) == (3, True)
        code, _, err = run(url, "--write")
        assert code == 2
        assert "[cloud]" in err


def speaking(metadata, reply=None):
    """A server with that metadata, which gives that reply to inputs."""

    def answer(request):
        head = request.split(b"\r\n")[0]
        body = reply if head.startswith(b"POST") else {} if b"/ready " in head else metadata
        return http_reply(json.dumps(body).encode(), headers=[("Content-Type", "application/json")])

    return CannedServer(answer)


def tensor(name, datatype="FP32", shape=(-1, 4)):
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def test_nothing_is_sent_without_a_sample(tmp_path):
    """Only its metadata is asked for; with a sample one request has that sample in it, once."""
    np.save(tmp_path / "x.npy", np.array([1, 2, 3, 4], np.float32))
    reply = {"outputs": [{**tensor("probs", shape=(1, 2)), "data": [0.25, 0.75]}]}
    with speaking({"inputs": [tensor("x")], "outputs": [tensor("probs", shape=(-1, 2))]}, reply) as server:
        url = f"{server.url}/v2/models/m"
        look(url)
        assert {request.split(b" ")[0] for request in server.requests} == {b"GET"}
        report = look(url, "--sample", tmp_path / "x.npy")
        assert report["sample"]["answers"] == [{"way": "as it is", "value": 1, "confidence": pytest.approx(0.75)}]
        posts = [request for request in server.requests if request.startswith(b"POST")]
        assert len(posts) == 1
        assert b"[1.0,2.0,3.0,4.0]" in posts[0].replace(b" ", b"")
        np.save(tmp_path / "x.npy", np.ones(5, np.float32))
        code, _, err = run(url, "--sample", tmp_path / "x.npy")
        assert (code, "expected [4] float32" in err) == (1, True)
        assert len([request for request in server.requests if request.startswith(b"POST")]) == 1, "what does not fit is not sent"


def test_a_detector_behind_an_endpoint(tmp_path):
    """Its outputs have no batch axis, which their names excuse."""
    np.save(tmp_path / "x.npy", np.array([1, 2, 3, 4], np.float32))
    tensors = [tensor("boxes"), tensor("scores", shape=[-1]), tensor("labels", "INT64", [-1])]
    data = {"boxes": ([2, 4], [0, 0, 9, 9, 1, 1, 2, 2]), "scores": ([2], [0.25, 0.75]), "labels": ([2], [7, 8])}
    reply = {"outputs": [{**one, "shape": data[one["name"]][0], "data": data[one["name"]][1]} for one in tensors]}
    with speaking({"inputs": [tensor("x")], "outputs": tensors}, reply) as server:
        report = look(f"{server.url}/v2/models/m", "--sample", tmp_path / "x.npy")
    assert report["policy"]["cloud"]["kind"] == "boxes"
    (shown,) = report["sample"]["answers"]
    assert shown["value"] == [{"label": 8, "score": 0.75, "box": [1.0, 1.0, 2.0, 2.0]}]
    assert shown["confidence"] == 0.75


def test_an_endpoint_that_lies(tmp_path, monkeypatch):
    """Names that are odd, or show something of the key, are not quoted; a reply that contradicts the metadata is refused."""
    monkeypatch.setenv("CLOUD_KEY", "correct-horse-battery")
    odd = [tensor("horse"), tensor("<b>odd\x1b[31m")]
    with speaking({"inputs": odd, "outputs": [tensor("battery", shape=(1, 2**30, 2**30)), tensor("y\n", "BYTES")]}) as server:
        for more in (["--json"], []):
            code, out, err = run(f"{server.url}/v2/models/m", "--key-env", "CLOUD_KEY", *more)
            assert (code, err) == (0, "")
            assert not any(word in out for word in ("horse", "battery", "odd", "\x1b"))
            assert "whose name is not quoted" in " ".join(out.split())
        assert any(b"correct-horse-battery" in request for request in server.requests)
    np.save(tmp_path / "x.npy", np.array([1, 2, 3, 4], np.float32))
    reply = {"outputs": [{**tensor("y", shape=(1, 3)), "data": [1, 2, 3]}]}
    with speaking({"inputs": [tensor("x")], "outputs": [tensor("y", shape=(-1, 2))]}, reply) as server:
        code, out, err = run(f"{server.url}/v2/models/m", "--sample", tmp_path / "x.npy")
        assert (code, out) == (3, "")
        assert "another shape" in err
    for metadata in ({}, [], {"inputs": 7}, {"inputs": [{"name": "x"}]}, {"inputs": [tensor("x", shape=[0])]}):
        with speaking(metadata) as server:
            code, out, err = run(f"{server.url}/v2/models/m")
            assert (code, out) == (3, ""), metadata
            assert "the protocol's" in err


def test_an_endpoint_that_is_down():
    """One line, and the code of a cloud that cannot be reached; of wrong usage where the key is not set."""
    code, out, err = run("http://127.0.0.1:9/v2/models/m")
    assert (code, out) == (3, "")
    assert err.startswith("error: http://127.0.0.1:9")
    code, out, err = run("http://127.0.0.1:9/v2/models/m", "--key-env", "NOT_SET_ANYWHERE")
    assert (code, out) == (2, "")
    assert "NOT_SET_ANYWHERE, which is not set" in err
