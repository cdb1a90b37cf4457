"""`edgeroute quantize` and `prune`: smaller models of users' own ones, measured before and after."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tiny
from commands import cli
from onnx import TensorProto, helper, numpy_helper

from edgeroute import BadInput, ModelError, ModelMissing, OnnxModel, PolicyError, RuntimeMissing, StoreError, models
from edgeroute.edge import runtimes_variants_ensemble as runtimes
from edgeroute.edge.model_card import Card
from edgeroute.tools import compress
from edgeroute.tools.compress import measurement as measure
from edgeroute.tools.compress import onnx_graphs_and_result_files as graph
from edgeroute.tools.compress import prune, quantize

EXPORTED = Path(__file__).parent / "exported"
F = TensorProto.FLOAT
value, node = helper.make_tensor_value_info, helper.make_node


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Times are measured, and none is asserted: a few runs will do."""
    monkeypatch.setattr(measure, "RUNS", 12)


def without(monkeypatch, *packages):
    """These packages cannot be imported, nor any module in them that was imported before."""
    for name in [*packages, *(one for one in sys.modules if one.partition(".")[0] in packages)]:
        monkeypatch.setitem(sys.modules, name, None)


def save(path, nodes, inputs, outputs, weights, *, opset=17, name="m", more=()):
    made = helper.make_graph(nodes, name, inputs, outputs, [numpy_helper.from_array(a, n) for n, a in weights.items()])
    opsets = [helper.make_opsetid("", opset), *more]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=8), path)
    return path


def cnn(path, *, channels=16, opset=17, zero_from=None, batch="n", end="Flatten", seed=0):
    """x [n, 1, 8, 8] -> logits [n, 3]: two convolutions, one of them depthwise, normalised and pooled, and two dense layers.

    zero_from: channels from this one on have zero weights everywhere, so that nothing depends on them.
    """
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(0, 1 / np.sqrt(max(1, np.prod(shape[1:]))), shape).astype(np.float32)  # noqa: E731
    c = channels
    weights = {
        "w1": draw(c, 1, 3, 3), "b1": draw(c), "scale": np.abs(draw(c)) + 0.5, "shift": draw(c), "mean": np.zeros(c, np.float32),
        "var": np.ones(c, np.float32), "wd": draw(c, 1, 3, 3), "bd": draw(c), "gate": draw(c, 1, 1), "w2": draw(2 * c, c, 3, 3),
        "b2": draw(2 * c), "w3": draw(2 * c * 16, 24), "b3": draw(24), "w4": draw(3, 24), "b4": draw(3),
    }  # fmt: skip
    if zero_from is not None:
        for name, start in {"w1": 1, "b1": 1, "shift": 1, "wd": 1, "bd": 1, "gate": 1, "w2": 2, "b2": 2}.items():
            weights[name][zero_from * start :] = 0
        weights["w3"][:, 12:] = 0
        weights["b3"][12:] = 0
    flat = {
        "Flatten": [node("Flatten", ["s"], ["f"])],
        "Reshape": [node("Reshape", ["s", "shape"], ["f"])],
    }[end]
    if end == "Reshape":
        weights["shape"] = np.array([0, 2 * c * 16], np.int64)
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1], name="first"),
        node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["n1"]),
        node("Sigmoid", ["n1"], ["sig"]), node("Mul", ["n1", "sig"], ["silu"]),
        node("Conv", ["silu", "wd", "bd"], ["d"], pads=[1, 1, 1, 1], group=c, name="deep"),
        node("Mul", ["d", "gate"], ["gated"]), node("Relu", ["gated"], ["r"]),
        node("Conv", ["r", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], name="second"), node("Relu", ["c2"], ["r2"]),
        node("MaxPool", ["r2"], ["s"], kernel_shape=[2, 2], strides=[2, 2]), *flat,
        node("Gemm", ["f", "w3", "b3"], ["g"], name="dense"), node("Relu", ["g"], ["h"]),
        node("Gemm", ["h", "w4", "b4"], ["logits"], transB=1, name="end"),
    ]  # fmt: skip
    return save(
        path, nodes, [value("x", F, [batch, 1, 8, 8])], [value("logits", F, [batch, 3])], weights, opset=opset
    )  # fmt: skip


@pytest.fixture
def images():
    """[80, 1, 8, 8]."""
    return np.random.default_rng(1).normal(size=(80, 1, 8, 8)).astype(np.float32)


def run(*args):
    """A command -> exit code, stdout, stderr."""
    return cli(*args, env={**os.environ, "COLUMNS": "200"})


def outputs(path, images):
    model = OnnxModel(path)
    return np.concatenate([model.run([x]) for x in images])


# -------------------------------------------------------------------------------------------------------------- quantise
@pytest.mark.slow
def test_the_shipped_model(tmp_path):
    """A residual network on real images: a quarter of the size, the same answers, a card that holds for the new file."""
    pair = models.fashion()
    shutil.copy(pair.cloud, tmp_path / "big.onnx")
    shutil.copy(pair.cloud.with_suffix(".json"), tmp_path / "big.json")
    np.savez(tmp_path / "data.npz", images=pair.images[:240], labels=pair.labels[:240])
    code, out, err = run("quantize", tmp_path / "big.onnx", "--data", tmp_path / "data.npz", "--keep-float", "1", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["after"]["path"] == str(tmp_path / "big.int8.onnx")
    assert told["after"]["bytes"] < 0.3 * told["before"]["bytes"]
    assert (told["used"], told["held_out"]) == (120, 120)
    assert told["after"]["agreement"] > 0.97
    assert told["before"]["accuracy"] > 0.9
    assert abs(told["before"]["accuracy"] - told["after"]["accuracy"]) < 0.03
    errors = [layer["error"] for layer in told["layers"]]
    assert errors == sorted(errors, reverse=True)
    assert [layer["note"] for layer in told["layers"]] == ["stays float"] + ["int8"] * (len(errors) - 1)
    assert "the last layer stays float" in err
    model = OnnxModel(tmp_path / "big.int8.onnx")
    model.load()
    before, after = Card.beside(tmp_path / "big.onnx"), model.card
    assert (after.labels, after.kind, after.name) == (before.labels, before.kind, before.name)
    assert after.sha256 == model.fingerprint != before.sha256
    assert "static int8, by edgeroute quantize on 120 examples, 1 layers kept float" in str(
        json.loads(after.path.read_text())["steps"]
    )
    assert {path.name for path in tmp_path.iterdir()} == {"big.onnx", "big.json", "big.int8.onnx", "big.int8.json", "data.npz"}


def test_the_table(tmp_path, images):
    """For people: both models, the layers, how many examples were used, and where it is."""
    cnn(tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", X=images, y=np.zeros(80, int))
    code, out, err = run("quantize", tmp_path / "m.onnx", "-d", tmp_path / "d.npz", "-o", tmp_path / "q.onnx")
    assert code == 0, err
    assert all(word in out for word in ("m.onnx", "q.onnx and q.json", "accuracy", "same answers", "second", "40 others"))


def test_what_is_int8_and_what_is_not(tmp_path, images):
    """Per channel; the last layer's weights, and what comes after it, are float, unless it is asked for too."""
    path = cnn(tmp_path / "m.onnx")

    def weights(made):
        return {t.name: (t.data_type, list(t.dims)) for t in onnx.load(made).graph.initializer}

    compress.quantize(path, images, out=tmp_path / "q.onnx")
    found = weights(tmp_path / "q.onnx")
    assert found["w4"][0] == F
    assert found["w2_quantized"] == (TensorProto.INT8, [32, 16, 3, 3])
    assert found["w2_scale"] == (F, [32])
    assert len(np.unique(outputs(tmp_path / "q.onnx", images))) > 200
    compress.quantize(path, images, out=tmp_path / "l.onnx", last=True)
    assert weights(tmp_path / "l.onnx")["w4_quantized"][0] == TensorProto.INT8
    assert len(np.unique(outputs(tmp_path / "l.onnx", images))) <= 256


def test_kept_layers_are_float(tmp_path, images):
    """The most sensitive ones, and the result is nearer to the original than without."""
    path = cnn(tmp_path / "m.onnx")
    all_of_it = compress.quantize(path, images, out=tmp_path / "q.onnx")
    kept = compress.quantize(path, images, out=tmp_path / "k.onnx", keep_float=2)
    names = [layer.name for layer in kept.layers if layer.note == "stays float"]
    assert names == [layer.name for layer in all_of_it.layers[:2]]
    assert kept.after.error < all_of_it.after.error
    every = compress.quantize(path, images, out=tmp_path / "e.onnx", keep_float=len(kept.layers))
    assert every.after.error < all_of_it.after.error  # what is left is of operators without weights, as activations are
    with pytest.raises(PolicyError, match=r"keep_float=9: the model has 4 layers that are quantised"):
        compress.quantize(path, images, out=tmp_path / "n.onnx", keep_float=9)


def test_activations(tmp_path, images):
    """uint8 by default; int8 is symmetric, so that every zero point is 0."""
    path = cnn(tmp_path / "m.onnx")
    compress.quantize(path, images, out=tmp_path / "u.onnx", sensitivity=False)
    compress.quantize(path, images, out=tmp_path / "s.onnx", sensitivity=False, activations="int8")
    compress.quantize(path, images, out=tmp_path / "r.onnx", sensitivity=False, reduce_range=True)

    def points(made):
        tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(made).graph.initializer}
        return [a for name, a in tensors.items() if name.endswith("zero_point") and a.ndim == 0], tensors["w2_quantized"]

    unsigned, weights = points(tmp_path / "u.onnx")
    assert {a.dtype for a in unsigned} == {np.dtype("uint8")}
    assert abs(weights).max() > 64
    signed, _ = points(tmp_path / "s.onnx")
    assert {a.dtype for a in signed} == {np.dtype("int8")}
    assert not any(signed)
    assert abs(points(tmp_path / "r.onnx")[1]).max() <= 64


def test_float16(tmp_path, images):
    """Half the size; inputs and outputs stay float32."""
    path = cnn(tmp_path / "m.onnx")
    result = compress.quantize(path, images, fp16=True)
    assert result.after.path == tmp_path / "m.fp16.onnx"
    assert result.after.bytes < 0.6 * result.before.bytes
    assert result.after.error < 0.01
    model = OnnxModel(result.after.path)
    model.load()
    assert (model.inputs[0].dtype, model.outputs[0].dtype) == ("float32", "float32")
    with pytest.raises(PolicyError, match="keep_float="):
        compress.quantize(path, images, out=tmp_path / "n.onnx", fp16=True, keep_float=1)


def test_the_applications_log_is_left_alone(tmp_path, images, caplog):
    """The quantiser's advice to itself is not in it, and no handler stays behind."""
    before = (logging.getLogger().level, [*logging.getLogger().handlers], [*logging.getLogger().filters])
    with caplog.at_level(logging.INFO):
        compress.quantize(cnn(tmp_path / "m.onnx"), images, sensitivity=False)
    assert (logging.getLogger().level, [*logging.getLogger().handlers], [*logging.getLogger().filters]) == before
    assert not [record for record in caplog.records if record.name == "root"]


def test_large_outputs(tmp_path):
    """Of pictures as outputs a part is kept and compared."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1]), node("Relu", ["a"], ["b"]),
        node("Conv", ["b", "v"], ["y"], pads=[1, 1, 1, 1]),
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 1, 3, 3)).astype(np.float32), "v": rng.normal(size=(3, 8, 3, 3)).astype(np.float32)}
    shape = [value("x", F, ["n", 1, 96, 96])], [value("y", F, ["n", 3, 96, 96])]
    path = save(tmp_path / "m.onnx", nodes, *shape, weights)
    (tmp_path / "m.json").write_text('{"output": {"name": "y", "kind": "value"}}')
    pictures = rng.normal(size=(8, 1, 96, 96)).astype(np.float32)
    original = measure.answers(OnnxModel(path), measure.examples_of(pictures, None))
    assert max(map(len, original.outputs)) <= measure.MOST
    assert 0 < compress.quantize(path, pictures, sensitivity=False).after.error < 0.1


@pytest.mark.parametrize("opset", [11, 12])
def test_an_old_opset(tmp_path, images, opset):
    """It is converted to the first that quantises per channel, and that is said."""
    result = compress.quantize(cnn(tmp_path / "m.onnx", opset=opset), images)
    assert any("converted to opset 13" in note for note in result.notes)
    assert result.after.agreement > 0.8


def test_a_fixed_batch_axis(tmp_path, images):
    """A model that takes one input at a time is calibrated so."""
    assert compress.quantize(cnn(tmp_path / "m.onnx", batch=1), images, sensitivity=False).after.agreement > 0.8


def test_several_inputs(tmp_path):
    """Their arrays are in the file by name."""
    rng = np.random.default_rng(0)
    weights = {"wa": rng.normal(size=(4, 8)).astype(np.float32), "wb": rng.normal(size=(3, 8)).astype(np.float32),
               "wc": rng.normal(size=(8, 2)).astype(np.float32)}  # fmt: skip
    nodes = [
        node("MatMul", ["a", "wa"], ["p"]), node("MatMul", ["b", "wb"], ["q"]), node("Add", ["p", "q"], ["s"]),
        node("Relu", ["s"], ["r"]), node("MatMul", ["r", "wc"], ["y"]),
    ]  # fmt: skip
    path = save(
        tmp_path / "m.onnx", nodes, [value("a", F, ["n", 4]), value("b", F, ["n", 3])], [value("y", F, ["n", 2])], weights
    )
    np.savez(tmp_path / "d.npz", a=rng.normal(size=(60, 4)).astype(np.float32), b=rng.normal(size=(60, 3)).astype(np.float32))
    code, out, err = run("quantize", path, "-d", tmp_path / "d.npz", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["after"]["agreement"] > 0.8
    assert len(told["layers"]) == 2
    np.savez(tmp_path / "d.npz", a=np.zeros((60, 4), np.float32))
    code, _, err = run("quantize", path, "-d", tmp_path / "d.npz", "--force")
    assert code == 1
    assert "'b'" in err


def test_preprocessing_of_the_card(tmp_path, images):
    """Examples are what callers give: pixels where the card says pixels. The new card has the same preprocessing."""
    path = cnn(tmp_path / "m.onnx")
    card = {
        "input": {"name": "x", "dtype": "float32", "shape": [-1, 1, 8, 8]},
        "preprocess": {"dtype": "uint8", "shape": [8, 8], "scale": 1 / 255, "mean": 0.5, "std": 0.25},
        "labels": ["a", "b", "c"],
        "steps": "by hand",
    }
    (tmp_path / "m.json").write_text(json.dumps(card))
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
    answers = ["abc"[at] for at in outputs(path, pixels).argmax(1)]
    result = compress.quantize(path, pixels, answers)
    assert result.before.accuracy == 1
    assert result.after.accuracy > 0.8
    made = json.loads(result.card.read_text())
    assert made["preprocess"] == card["preprocess"]
    assert made["steps"][0] == "by hand"
    numbers = compress.quantize(path, pixels, ["abc".index(name) for name in answers], out=tmp_path / "o.onnx")
    assert numbers.before.accuracy == 1
    with pytest.raises(BadInput):
        compress.quantize(path, pixels.astype(np.float32), out=tmp_path / "p.onnx")


def test_scikit_learns_perceptron(tmp_path):
    """Its biases are rows, and its answers labels beside probabilities."""
    shutil.copy(EXPORTED / "sk_mlp.onnx", tmp_path / "m.onnx")
    rows = np.random.default_rng(0).normal(size=(100, 4)).astype(np.float32)
    result = compress.quantize(tmp_path / "m.onnx", rows, last=True)
    assert result.after.agreement > 0.9
    assert result.after.error < 0.1


def test_a_regression(tmp_path):
    """Its answers are no classes: the difference of the outputs is what there is."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 16)).astype(np.float32), "v": rng.normal(size=(16, 1)).astype(np.float32)}
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    path = save(tmp_path / "m.onnx", nodes, [value("x", F, ["n", 4])], [value("y", F, ["n", 1])], weights)
    result = compress.quantize(path, rng.normal(size=(60, 4)).astype(np.float32), [1.0] * 60)
    assert (result.after.accuracy, result.after.agreement) == (None, None)
    assert 0 < result.after.error < 0.1


def test_external_data(tmp_path, images):
    """Weights beside the model stay beside it, in a file of the new model."""
    cnn(tmp_path / "s.onnx")
    onnx.save(onnx.load(tmp_path / "s.onnx"), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    result = compress.quantize(tmp_path / "m.onnx", images, sensitivity=False)
    assert len(OnnxModel(result.after.path).files) == 2
    assert result.before.bytes > (tmp_path / "m.bin").stat().st_size
    shutil.move(tmp_path / "m.bin", tmp_path / "gone")
    assert outputs(result.after.path, images[:2]).shape == (2, 3)


@pytest.mark.parametrize("name", ["sk_forest", "lightgbm", "sk_regression", "sk_binary"])
def test_nothing_to_quantise(tmp_path, name):
    """Trees and linear models have no layers: the error names what they have."""
    shutil.copy(EXPORTED / f"{name}.onnx", tmp_path / "m.onnx")
    model = OnnxModel(tmp_path / "m.onnx")
    model.load()
    rows = np.zeros((10, model.inputs[0].shape[-1]), np.float32)
    with pytest.raises(ModelError, match=r"has no Conv, ConvTranspose, Gemm, MatMul with weights, but "):
        compress.quantize(tmp_path / "m.onnx", rows)
    with pytest.raises(ModelError, match="nothing to prune"):
        compress.prune(tmp_path / "m.onnx", rows, sparsity=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_what_cannot_be_quantised(tmp_path, images, monkeypatch):
    """Each in one line that says whose fault it is; nothing is left behind."""
    path = cnn(tmp_path / "m.onnx")
    with pytest.raises(ModelMissing):
        compress.quantize(tmp_path / "none.onnx", images)
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(ModelError, match=r"text\.onnx"):
        compress.quantize(tmp_path / "text.onnx", images)
    with pytest.raises(ModelError, match=r"is quantised already, it has DequantizeLinear, QuantizeLinear"):
        compress.quantize(models.fashion().edge, models.fashion().images[:10], out=tmp_path / "q.onnx")
    with pytest.raises(BadInput, match="the data has 1 example:"):
        compress.quantize(path, images[:1])
    with pytest.raises(BadInput):
        compress.quantize(path, images[:, :, :4])
    with pytest.raises(PolicyError, match='activations= is "uint8" or "int8"'):
        compress.quantize(path, images, activations="int4")
    linear = save(
        tmp_path / "l.onnx", [node("MatMul", ["x", "w"], ["y"])], [value("x", F, ["n", 4])], [value("y", F, ["n", 2])],
        {"w": np.ones((4, 2), np.float32)},
    )  # fmt: skip
    with pytest.raises(ModelError, match="add --last"):
        compress.quantize(linear, np.ones((9, 4), np.float32))
    (tmp_path / "l.json").write_text('{"state": [{"input": "x", "output": "y"}]}')
    with pytest.raises(ModelError):
        compress.quantize(linear, np.ones((9, 4), np.float32))
    without(monkeypatch, "onnx")
    with pytest.raises(RuntimeMissing, match=r"pip install 'edgeroute\[quantize\]'"):
        compress.quantize(path, images)
    assert {file.name for file in tmp_path.iterdir()} == {"m.onnx", "text.onnx", "l.onnx", "l.json"}


@pytest.mark.parametrize("suffix", [".tflite", ".mlpackage"])
def test_other_formats_without_their_tools(tmp_path, images, suffix, monkeypatch):
    """The error names the tool."""
    without(monkeypatch, "ai_edge_quantizer", "coremltools")
    (tmp_path / f"m{suffix}").touch()
    with pytest.raises(RuntimeMissing, match=r"pip install (ai-edge-quantizer|coremltools)"):
        compress.quantize(tmp_path / f"m{suffix}", images)


def test_tflite(tmp_path):
    """By ai-edge-quantizer, where it is installed; ranges are the widest, so that no logit is cut off."""
    pytest.importorskip("ai_edge_quantizer")
    made = pytest.importorskip("tflite_models")
    if ".tflite" not in runtimes.suffixes():
        pytest.skip("there is no runtime for .tflite")
    rng = np.random.default_rng(0)
    g = made.Graph()
    x, h, y = g.tensor("x", [1, 16]), g.tensor("h", [1, 64]), g.tensor("logits", [1, 4])
    g.operator("FULLY_CONNECTED", [x, g.constant("w", rng.normal(size=(64, 16)) / 4), -1], [h], options="FullyConnectedOptions")
    g.operator("FULLY_CONNECTED", [h, g.constant("v", rng.normal(size=(4, 64)) / 8), -1], [y], options="FullyConnectedOptions")
    g.at.inputs, g.at.outputs = [x], [y]
    g.signature("serving_default", {"x": x}, {"logits": y})
    path = g.save(tmp_path / "m.tflite")
    np.savez(tmp_path / "d.npz", X=rng.normal(size=(60, 16)).astype(np.float32))
    code, out, err = run("quantize", path, "-d", tmp_path / "d.npz", "--json")
    assert code == 0, err
    after = json.loads(out)["after"]
    assert after["error"] < 0.1
    assert after["bytes"] < 0.7 * path.stat().st_size
    assert Card.beside(tmp_path / "m.int8.tflite").sha256


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # coremltools has some of its own
def test_core_ml(tmp_path):
    """By coremltools, where it is installed: its weights, on any system; it is measured where it runs, on macOS."""
    ct = pytest.importorskip("coremltools")
    from coremltools.converters.mil import Builder

    weights = np.random.default_rng(0).normal(size=(256, 64)).astype(np.float32)

    @Builder.program(input_specs=[Builder.TensorSpec(shape=(1, 64))])
    def program(x):
        return Builder.linear(x=x, weight=weights, name="logits")

    path = tmp_path / "m.mlpackage"
    ct.convert(program, convert_to="mlprogram", minimum_deployment_target=ct.target.iOS16).save(str(path))
    result = compress.quantize(path, np.zeros((4, 1, 64), np.float32))
    assert result.after.path == tmp_path / "m.int8.mlpackage"
    assert result.after.bytes < 0.8 * result.before.bytes
    assert result.after.median_s is not None or any("it was not run here" in note for note in result.notes)


# ----------------------------------------------------------------------------------------------------------------- files
def test_no_file_is_replaced_unasked(tmp_path, images):
    """Neither the original, nor another one, nor a card."""
    path = cnn(tmp_path / "m.onnx")
    with pytest.raises(PolicyError, match="is the original"):
        compress.quantize(path, images, out=path, overwrite=True)
    with pytest.raises(PolicyError, match=r"must end in \.onnx, too"):
        compress.quantize(path, images, out=tmp_path / "q.tflite")
    with pytest.raises(PolicyError, match="there is no folder"):
        compress.quantize(path, images, out=tmp_path / "no" / "q.onnx")
    (tmp_path / "m.int8.json").write_text("{}")
    with pytest.raises(PolicyError, match=r"m.int8.json exists already"):
        compress.quantize(path, images)
    assert compress.quantize(path, images, overwrite=True, sensitivity=False).card.read_text() != "{}"


@pytest.mark.parametrize("location", ["new.onnx.data", "new.onnx"])
def test_weights_of_the_original_are_not_replaced(tmp_path, images, location):
    """As of a model that was renamed after its export: the file beside it keeps the name that the new one's would get."""
    path = cnn(tmp_path / "whole.onnx")
    renamed = tmp_path / "old.onnx"
    onnx.save(onnx.load(str(path)), str(renamed), save_as_external_data=True, location=location, size_threshold=0)
    before = (tmp_path / location).read_bytes()
    for make in (partial(quantize, sensitivity=False), partial(prune, sparsity=0.5)):
        with pytest.raises(PolicyError, match="weights of the original"):
            make(renamed, images[:20], out=tmp_path / "new.onnx", overwrite=True)
    assert (tmp_path / location).read_bytes() == before


@pytest.mark.parametrize("count", [5, 50])
def test_one_label_for_each_example(tmp_path, images, count):
    """Fewer or more are those of other examples."""
    for make in (quantize, partial(prune, sparsity=0.5)):
        with pytest.raises(BadInput, match=f"{count} labels for 20 examples"):
            make(cnn(tmp_path / "a.onnx"), images[:20], [0] * count)


@pytest.mark.parametrize(("what", "number"), [*(("quantize", number) for number in range(4)), ("prune", 3)])
def test_a_wrong_input_is_named(tmp_path, what, number):
    """By its number in Python, by file and line on the command line; whichever part of the data it falls in."""
    path, rows = tiny.linear(tmp_path / "m.onnx"), [[0.1 * i, 0.2, 0.3, 0.4] for i in range(4)]
    rows[number] = [1.0, 2.0]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"x": row}) + "\n" for row in rows))
    make, options = (quantize, {}) if what == "quantize" else (prune, {"sparsity": 0.5})
    with pytest.raises(BadInput, match=f"^input {number}: x: expected"):
        make(path, [np.array(row, np.float32) for row in rows], **options)
    code, _, err = cli(what, path, "-d", tmp_path / "d.jsonl", *(["--sparsity", "50%"] if options else []))
    assert (code, f"d.jsonl:{number + 1}: x: expected" in err) == (1, True)


def test_labels_that_the_model_cannot_answer(tmp_path, images):
    """All of them: the caller's mistake, not an accuracy of 0; some: told, and wrong answers."""
    cnn(tmp_path / "m.onnx")
    out = {"out": tmp_path / "q.onnx", "sensitivity": False, "overwrite": True}
    for make in (quantize, lambda *args, sensitivity, **more: prune(*args, sparsity=0.5, **more)):
        with pytest.raises(BadInput, match=r"labels: 'cat' is no answer of the model \(its 3 classes have no names\)"):
            make(tmp_path / "m.onnx", images, ["cat"] * 80, **out)
        with pytest.raises(BadInput, match="labels: 7 is no answer"):
            make(tmp_path / "m.onnx", images, [7] * 80, **out)
        assert "40 labels count as wrong: 7 is no answer" in " ".join(make(tmp_path / "m.onnx", images, [0, 7] * 40, **out).notes)
        assert not [note for note in make(tmp_path / "m.onnx", images, [0, 2] * 40, **out).notes if "labels" in note]
    (tmp_path / "m.json").write_text(json.dumps({"labels": ["cat", "dog", "cow"]}))
    with pytest.raises(BadInput, match=r"'hen' is no answer of the model \('cat', 'dog', 'cow'\)"):
        quantize(tmp_path / "m.onnx", images, ["hen"] * 80, **out)
    assert not [note for note in quantize(tmp_path / "m.onnx", images, ["cat", 1] * 40, **out).notes if "labels" in note]
    np.savez(tmp_path / "d.npz", X=images, y=np.array(["hen"] * 80))
    code, _, err = run("quantize", tmp_path / "m.onnx", "-d", tmp_path / "d.npz", "-o", tmp_path / "r.onnx")
    assert code == 1
    assert "'hen' is no answer" in err
    assert not (tmp_path / "r.onnx").exists()


def test_a_full_disk(tmp_path, images, monkeypatch):
    """Nothing is left of it, and what was there before is as it was."""
    path = cnn(tmp_path / "m.onnx")
    compress.quantize(path, images, sensitivity=False)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("edgeroute.tools.compress.quantize_models.write_card", full)
    with pytest.raises(StoreError, match=r"^\S*m.int8.onnx cannot be written: No space left on device"):
        compress.quantize(path, images, sensitivity=False, overwrite=True)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("there", [True, False])
def test_weights_that_cannot_be_replaced(tmp_path, there):
    """The card before comes back, or the new one goes, so that the model before is still taken."""
    new = tmp_path / "new"
    new.mkdir()
    for name in ("m.json", "m.onnx.data", "m.onnx"):
        (new / name).write_text("new")
    (tmp_path / "m.onnx.data" / "held").mkdir(parents=True)
    if there:
        (tmp_path / "m.json").write_text("old")
    with pytest.raises(OSError, match="data"):
        graph.put(new, tmp_path / "m.onnx")
    assert [path.read_text() for path in tmp_path.glob("*.json")] == ["old"] * there
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("left", [1, 2])
def test_killed_between_card_weights_and_model(tmp_path, images, monkeypatch, left):
    """The new card refuses the old model when it is loaded, which is not run with new weights."""
    onnx.save(onnx.load(cnn(tmp_path / "s.onnx")), tmp_path / "m.onnx", save_as_external_data=True, location="m.bin")
    compress.quantize(tmp_path / "m.onnx", images, sensitivity=False)
    moved = []

    def killed(source, to):
        if len(moved) == left:
            raise KeyboardInterrupt
        moved.append(to.suffix)
        source.replace(to)

    monkeypatch.setattr(graph, "os", SimpleNamespace(replace=killed))
    with pytest.raises(KeyboardInterrupt):
        compress.quantize(tmp_path / "m.onnx", images, sensitivity=False, overwrite=True, activations="int8")
    assert moved == [".json", ".data"][:left]
    with pytest.raises(ModelError, match="is not the expected model"):
        OnnxModel(tmp_path / "m.int8.onnx").load()


# ----------------------------------------------------------------------------------------------------------------- prune
@pytest.mark.parametrize("end", ["Flatten", "Reshape"])
def test_channels_without_weights_go_and_nothing_changes(tmp_path, images, end):
    """Through normalisation, SiLU, a depthwise convolution, a gate, pooling and flattening: exactly those that do nothing."""
    path = cnn(tmp_path / "m.onnx", zero_from=8, end=end)
    result = compress.prune(path, images, sparsity=0.5, structured=True)
    assert {layer.name: layer.note for layer in result.layers} == {
        "first": "8 of 16 channels", "deep": "left whole: a Conv of this form", "second": "16 of 32 channels",
        "dense": "16 of 24 channels", "end": "as it was: the last layer",
    }  # fmt: skip
    assert np.allclose(outputs(path, images), outputs(result.after.path, images), atol=1e-5)
    assert result.after.bytes < 0.5 * result.before.bytes
    onnx.checker.check_model(str(result.after.path), full_check=True)


def test_channels_with_weights_go(tmp_path, images):
    """Those with the smallest weights, and the answers change; then it can be quantised."""
    path = cnn(tmp_path / "m.onnx")
    result = compress.prune(path, images, [0] * 80, sparsity=0.25, structured=True)
    sizes = {t.name: list(t.dims) for t in onnx.load(result.after.path).graph.initializer}
    assert (sizes["w1"], sizes["wd"], sizes["w2"], sizes["w3"]) == ([16, 1, 3, 3], [16, 1, 3, 3], [24, 16, 3, 3], [24 * 16, 24])
    original = numpy_helper.to_array(next(t for t in onnx.load(path).graph.initializer if t.name == "w2"))
    kept = numpy_helper.to_array(next(t for t in onnx.load(result.after.path).graph.initializer if t.name == "w2"))
    smallest = sorted(np.abs(original).sum((1, 2, 3)))[8]
    assert np.isclose(np.abs(kept).sum((1, 2, 3)).min(), smallest)
    assert 0 < result.after.error < 1
    assert compress.quantize(result.after.path, images, sensitivity=False).after.agreement > 0.7


def residual(path):
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 0.3, shape).astype(np.float32)
        for name, shape in {"a": (8, 1, 3, 3), "b": (8, 8, 3, 3), "c": (8, 8, 3, 3), "end": (8, 3)}.items()
    }
    nodes = [
        node("Conv", ["x", "a"], ["x1"], pads=[1, 1, 1, 1], name="stem"),
        node("Conv", ["x1", "b"], ["y"], pads=[1, 1, 1, 1], name="inner"), node("Relu", ["y"], ["z"]),
        node("Conv", ["z", "c"], ["x2"], pads=[1, 1, 1, 1], name="outer"), node("Add", ["x1", "x2"], ["sum"], name="join"),
        node("ReduceMean", ["sum"], ["m"], axes=[2, 3], keepdims=0), node("MatMul", ["m", "end"], ["logits"], name="end"),
    ]  # fmt: skip
    return save(path, nodes, [value("x", F, ["n", 1, 8, 8])], [value("logits", F, ["n", 3])], weights)


def test_channels_that_meet_others_stay(tmp_path, images):
    """At the end of a residual block: only those within it go, and it is said why the others do not."""
    result = compress.prune(residual(tmp_path / "m.onnx"), images, sparsity=0.5, structured=True)
    notes = {layer.name: layer.note for layer in result.layers}
    assert notes["inner"] == "4 of 8 channels"
    assert notes["stem"] == "left whole: its channels meet others at Add join"
    assert notes["outer"].startswith("left whole")
    assert outputs(result.after.path, images).shape == (80, 3)


def test_no_channels_to_remove(tmp_path):
    """A model whose layers are its outputs: the error has each layer's reason."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="one"),
        node("Softmax", ["h"], ["p"], name="soft"),
        node("MatMul", ["p", "v"], ["y"], name="two"),
    ]
    weights = {"w": np.ones((4, 4), np.float32), "v": np.ones((4, 2), np.float32)}
    path = save(tmp_path / "m.onnx", nodes, [value("x", F, ["n", 4])], [value("y", F, ["n", 2])], weights)
    with pytest.raises(
        ModelError, match=r"no channels to remove: one: left whole: Softmax soft reads its channels; two: as it was"
    ):
        compress.prune(path, np.ones((9, 4), np.float32), sparsity=0.5, structured=True)


def test_weights_become_zero(tmp_path, images):
    """The smallest of each layer, but for the last; the file keeps its size, and packs better."""
    path = cnn(tmp_path / "m.onnx")
    result = compress.prune(path, images, sparsity=0.6)
    arrays = {t.name: numpy_helper.to_array(t) for t in onnx.load(result.after.path).graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for name in ("w1", "wd", "w2", "w3"):
        assert abs((arrays[name] == 0).mean() - 0.6) < 0.01
        assert np.abs(original[name][arrays[name] == 0]).max() <= np.abs(arrays[name][arrays[name] != 0]).min()
    assert np.array_equal(arrays["w4"], original["w4"])
    assert abs(result.after.bytes - result.before.bytes) < 100
    assert result.after.packed_bytes < 0.7 * result.before.packed_bytes


TUNE = '''
import numpy as np, onnx
from onnx import numpy_helper

def again(path, inputs, labels):
    """Fits the last layer's bias to the labels' frequencies: no training worth its name, but it writes the file."""
    assert len(inputs) == len(labels) == 40
    model = onnx.load(path)
    bias = next(t for t in model.graph.initializer if t.name == "b4")
    bias.CopyFrom(numpy_helper.from_array(np.array([9, 0, 0], np.float32), "b4"))
    onnx.save(model, path)

def forgets(path, inputs, labels):
    model = onnx.load(path)
    for t in model.graph.initializer:
        if t.name.startswith("w"):
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) + np.float32(1e-3), t.name))
    onnx.save(model, path)

def fails(path, inputs, labels):
    open("there is no such file")

def breaks(path, inputs, labels):
    with open(path, "w") as file:
        file.write("no model")
'''


def test_fine_tuning(tmp_path, images, monkeypatch):
    """A function of the user's is given the file and the half of the data that does not measure; its result is measured."""
    monkeypatch.chdir(tmp_path)
    Path("tune_it.py").write_text(TUNE)
    path = cnn(tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", X=images, y=np.zeros(80, int))
    args = ["prune", path, "-d", tmp_path / "d.npz", "-s", "50%", "--json", "--force"]
    code, out, err = run(*args, "--finetune", "tune_it:again")
    assert code == 0, err
    told = json.loads(out)
    assert (told["used"], told["held_out"], told["after"]["accuracy"]) == (40, 40, 1)
    assert "fine-tuned" in (tmp_path / "m.pruned.json").read_text()
    code, out, err = run(*args, "--finetune", "tune_it:forgets")
    assert code == 0
    assert "0.0 % of the weights are zero, not 50.0 %" in err
    code, _, err = run(*args, "--finetune", "tune_it:breaks")
    assert code == 2
    assert "m.pruned.onnx" in err
    code, _, err = run(*args, "--finetune", "tune_it:fails")
    assert code == 2
    assert "the function that fine-tunes failed: FileNotFoundError" in err
    code, _, err = run(*args, "--finetune", "tune_it:no")
    assert code == 2
    assert "is no function in Python" in err
    sys.modules.pop("tune_it")


@pytest.mark.parametrize(
    ("sparsity", "message"), [(0, "sparsity="), (1, "less than 1"), (1.5, "sparsity="), ("half", "sparsity=")]
)
def test_wrong_sparsities(tmp_path, images, sparsity, message):
    """More than none, and not everything."""
    with pytest.raises(PolicyError, match=message):
        compress.prune(cnn(tmp_path / "m.onnx"), images, sparsity=sparsity)


def test_weights_among_the_inputs(tmp_path, images):
    """Older exporters list them there: they are constants all the same."""
    model = onnx.load(cnn(tmp_path / "s.onnx"))
    model.graph.input.extend([value(t.name, t.data_type, list(t.dims)) for t in model.graph.initializer])
    model.ir_version = 3
    onnx.save(model, tmp_path / "m.onnx")
    assert compress.quantize(tmp_path / "m.onnx", images, sensitivity=False).after.agreement > 0.8
    assert compress.prune(tmp_path / "m.onnx", images, sparsity=0.25, structured=True).after.bytes


def test_nodes_without_names():
    """They get names, also where two have the same."""
    made = helper.make_model(helper.make_graph([node("Relu", ["x"], ["y"], name="Relu_1"), node("Relu", ["y"], ["z"]), node("Relu", ["z"], ["w"], name="a"), node("Relu", ["w"], ["v"], name="a")], "g", [], []))  # fmt: skip
    graph.name_nodes(made)
    assert len({n.name for n in made.graph.node}) == 4
