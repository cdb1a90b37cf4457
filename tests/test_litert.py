"""TFLite models, on each runtime that is installed: LiteRT, tflite-runtime (which .ci/run has in an environment of its own)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import routes
from both import LONG, running
from commands import cli
from draws import slow

from edgeroute import (
    BadInput,
    DeadlineExceeded,
    LiteRTModel,
    ModelError,
    ModelMissing,
    OnnxModel,
    OpenInference,
    Options,
    PolicyError,
    Router,
    RuntimeMissing,
    StopToken,
)
from edgeroute import policy as policies
from edgeroute.edge import litert
from edgeroute.edge import runtime_base as model_file
from edgeroute.edge.model_card import sha256_of
from edgeroute.edge.runtimes_variants_ensemble import load
from edgeroute.edge.tflite_format import read_contents
from edgeroute.testing import edge_contract
from edgeroute.types import TensorSpec

models = pytest.importorskip(
    "tflite_models", reason="LiteRT, with whose schema the models are written, is not installed", exc_type=ImportError
)

NUMPY = int(np.__version__.partition(".")[0])
THERE = [name for name, package in litert.RUNTIMES.items() if find_spec(package) and not (name == "tflite" and NUMPY > 1)]
X = np.array([1, 2, 3, 0.5], np.float32)


@pytest.fixture(params=THERE)
def runtime(request):
    return request.param


@pytest.fixture
def make(runtime, tmp_path):
    """A model by the name of its writer."""

    def made(write, *, card=None, name="model", **options):
        told = {key: options.pop(key) for key in ("weights", "dtype", "batch", "per_channel") if key in options}
        if write is models.two_inputs and "named" in options:
            told["signature"] = options.pop("named")
        path = write(tmp_path / f"{name}.tflite", **told)
        if card is not None:
            path.with_suffix(".json").write_text(json.dumps(card))
        return LiteRTModel(path, runtime=runtime, **options)

    return made


def cloud(_):
    return "cloud"


# --- runs


def test_floats(make):
    """One input and several, of any number; what it takes is known once it is loaded."""
    weights = np.arange(12.0).reshape(4, 3)
    model = make(models.linear, weights=weights)
    assert np.array_equal(model.run_one(X), [X @ weights])
    assert np.allclose(model.run([X, 2 * X, X]), [X @ weights, 2 * X @ weights, X @ weights])
    assert np.array_equal(model.run_one(X[None]), [X @ weights])
    assert model.inputs == (TensorSpec("x", "float32", (-1, 4)),)
    assert model.outputs == (TensorSpec("logits", "float32", (-1, 3)),)
    assert np.array_equal(model.run_feed({"x": np.stack([X, X])}), model.run([X, X]))
    with Router(model, cloud, threshold=0.0, score="msp") as router:
        assert [answer.value for answer in router.infer_many([X, -X])] == [2, 0]
        assert router.check().lines[0].endswith("is ready")


@pytest.mark.parametrize(
    ("write", "options"),
    [(models.linear, {}), (models.linear, {"batch": 2}), (models.static, {}), (models.static, {"dtype": "uint8"})],
)
def test_the_contract(make, write, options):
    """Of floats, of a fixed number at a time, and of quantised ones: as any edge model."""
    model = make(write, **options)
    edge_contract(model, [X, np.array([0, 1, 0, 2], np.float32)], bad=["text", None, X[:3], np.array([1, 2, 3, 4])[:, None]])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_quantised_inputs_and_outputs(make, dtype):
    """Floats are quantised, and elements in the model's own dtype are taken as they are; outputs are floats."""
    model = make(models.static, dtype=dtype)
    zero = {"int8": -20, "uint8": 128, "int16": 0}[dtype]
    elements = np.rint(X / 0.05 + zero).astype(dtype)
    assert model.run_one(X).dtype == np.float32
    assert np.allclose(model.run_one(X), [X[:3]], atol=1e-6)
    assert np.array_equal(model.run_one(elements), model.run_one(X))
    assert np.array_equal(model.run_one(X.tolist()), model.run_one(X))
    assert np.array_equal(model.run_one(X.astype(np.float64)), model.run_one(X))
    assert np.array_equal(model.run([elements, X, elements]), model.run([X, X, X])), "the one beside the other"
    assert np.array_equal(model.run_feed({"x": elements[None]}), model.run_one(X))
    assert np.array_equal(model.run_feed({"x": X[None]}), model.run_one(X))
    assert model.outputs[0].dtype == "float32"
    if dtype != "int16":
        assert np.allclose(model.run_one(X * 1000), [[(127 - -20 if dtype == "int8" else 255 - 128) * 0.05] * 3], atol=0.6), (
            "the nearest"
        )
    for run in (model.run_one, lambda x: model.run([X, x]), lambda x: model.run_feed({"x": x[None]})):
        with pytest.raises(BadInput, match="NaN"):
            run(np.array([np.nan, 1, 2, 3], np.float32))
    with pytest.raises(BadInput, match="cannot be read as an array"):
        model.run_one([[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("end", "scale", "zero"), [(None, 0.05, 3), ("SOFTMAX", 1 / 256, -128), ("LOG_SOFTMAX", 1 / 16, 127)])
def test_a_classifier_in_integers_is_as_sure_as_in_floats(tmp_path, runtime, dtype, end, scale, zero):
    """All of it, from the input to the output, within what rounding costs."""
    rng, g = np.random.default_rng(1), models.Graph()
    weights, rows = rng.normal(size=(4, 3)).astype(np.float32), rng.uniform(-3, 3, (40, 4)).astype(np.float32)
    step = float(np.abs(weights).max() / 127)
    x = g.tensor("x", [-1, 4], dtype, scale=3 / 127, zero=0 if dtype == "int8" else 128)
    at = x if dtype == "int8" else g.tensor("elements", [-1, 4], "int8", scale=3 / 127)
    if dtype == "uint8":
        g.operator("QUANTIZE", [x], [at], options="QuantizeOptions")
    w, b = (
        g.constant("w", np.rint(weights.T / step), "int8", scale=step),
        g.constant("b", np.zeros(3), "int32", scale=step * 3 / 127),
    )
    y = g.tensor("logits", [-1, 3], "int8", scale=0.05, zero=3)
    g.operator("FULLY_CONNECTED", [at, w, b], [y], options="FullyConnectedOptions", version=4)
    if end:
        y, inside = g.tensor("p", [-1, 3], "int8", scale=scale, zero=zero), y
        g.operator(end, [inside], [y], version=2, **({"options": "SoftmaxOptions", "beta": 1.0} if end == "SOFTMAX" else {}))
    if dtype == "uint8":
        y, inside = g.tensor("pixels", [-1, 3], "uint8", scale=scale, zero=zero + 128), y
        g.operator("QUANTIZE", [inside], [y], options="QuantizeOptions")
    g.at.inputs, g.at.outputs = [x], [y]
    p = np.exp(rows @ weights)
    p /= p.sum(1, keepdims=True)
    clear = np.diff(np.sort(p), axis=1)[:, -1] > 0.1
    with Router(LiteRTModel(g.save(tmp_path / "m.tflite"), runtime=runtime)) as router:
        assert router.check().ok
        answers = router.infer_many(list(rows))
        assert [a.confidence for a in answers] == pytest.approx(p.max(1).tolist(), abs=0.03)
        assert np.array([a.value for a in answers])[clear].tolist() == p.argmax(1)[clear].tolist()


def test_a_card_says_what_a_quantised_input_takes(make):
    """In the model's own dtype, it takes that alone; as float32, numbers, also after preprocessing."""
    own = make(models.static, card={"input": {"name": "x", "dtype": "int8", "shape": [-1, 4]}})
    assert np.allclose(own.run_one(np.array([0, 20, -20, 1], np.int8)), [[1, 2, 0]], atol=1e-6)
    assert own.inputs[0].dtype == "int8"
    with pytest.raises(BadInput, match="expected int8, got float32"):
        own.run_one(X)
    card = {
        "input": {"name": "x", "dtype": "float32", "shape": [-1, 4]},
        "preprocess": {"dtype": "uint8", "shape": [4], "scale": 0.5},
    }
    scaled = make(models.static, card=card, name="scaled")
    assert np.allclose(scaled.run_one(np.array([1, 2, 4, 0], np.uint8)), [[0.5, 1, 2]], atol=1e-6)
    wrong = make(models.static, card={"input": {"name": "x", "dtype": "int64", "shape": [-1, 4]}}, name="wrong")
    with pytest.raises(ModelError, match="its card describes the input 'x' as int64"):
        wrong.load()


def test_pixels_are_what_they_are(make):
    """An input in uint8 is described as uint8, as pictures are, and takes floats all the same."""
    model = make(models.static, dtype="uint8")
    model.load()
    assert model.inputs == (TensorSpec("x", "uint8", (-1, 4)),)
    with Router(model, cloud, threshold=0.0) as router:
        assert router.infer(np.array([128, 200, 130, 0], np.uint8)).value == 1


def test_weights_in_int8_and_activations_in_float(make, runtime):
    """LiteRT computes them right; tflite-runtime does not, and refuses them."""
    weights = np.random.default_rng(0).normal(size=(64, 10)) * np.logspace(0, 2, 10)
    x = np.random.default_rng(1).normal(size=64).astype(np.float32)
    for per_channel in (True, False):
        model = make(models.dynamic_range, weights=weights, per_channel=per_channel)
        if runtime == "litert":
            assert np.abs(model.run_one(x) - x @ weights).max() < 0.03 * np.abs(x @ weights).max()
        else:
            with pytest.raises(
                ModelError, match=r"FULLY_CONNECTED.* tflite-runtime computes wrong: quantise it statically, or use LiteRT"
            ):
                model.load()


def test_a_recurrent_operator_with_weights_in_int8(tmp_path):
    """Is one of those that tflite-runtime computes wrong, by its own name."""
    for code in ("RNN", "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_LSTM"):
        g = models.Graph()
        x, y = g.tensor("x", [1, 4]), g.tensor("y", [1, 3])
        g.operator(code, [x, g.constant("w", np.eye(3, 4) * 127, "int8", scale=1 / 127)], [y])
        g.at.inputs, g.at.outputs = [x], [y]
        assert read_contents(g.save(tmp_path / "m.tflite").read_bytes()).dynamic_range == (code,)


@pytest.mark.parametrize("before", [None, "SOFTMAX"])
def test_the_best_classes(tmp_path, runtime, before):
    """Of TOPK_V2, as of ONNX's TopK: the class, and its probability behind a softmax."""
    g = models.Graph()
    x, p, k = g.tensor("x", [-1, 4]), g.tensor("p", [-1, 4]), g.constant("k", 2, "int32")
    scores, best = g.tensor("scores", [-1, 2]), g.tensor("best", [-1, 2], "int32")
    if before:
        g.operator(before, [x], [p], options="SoftmaxOptions", beta=1.0)
    g.operator("TOPK_V2", [p if before else x, k], [scores, best], options="TopKV2Options")
    g.at.inputs, g.at.outputs = [x], [scores, best]
    model = LiteRTModel(g.save(tmp_path / "m.tflite"), runtime=runtime, labels=["a", "b", "c", "d"])
    with Router(model, threshold=0.0, options=Options(no_confidence="accept")) as router:
        answers = router.infer_many([X, X[::-1].copy()])
    sure = np.exp(X).max() / np.exp(X).sum()
    assert [answer.value for answer in answers] == ["c", "b"]
    assert [answer.confidence for answer in answers] == ([pytest.approx(sure, abs=1e-5)] * 2 if before else [None] * 2)


def test_several_inputs_and_outputs_by_name(make):
    """By the names of the signature, in whatever order it has them; without one by those of the tensors."""
    rows = [{"a": [1.0, 2.0], "b": [3.0, 5.0]}, {"a": [0.0, 0.0], "b": [1.0, 1.0]}]
    model = make(models.two_inputs)
    out = model.run(rows)
    assert {name: value.tolist() for name, value in out.items()} == {
        "total": [[4, 7], [1, 1]],
        "difference": [[-2, -3], [-1, -1]],
    }
    assert make(models.two_inputs, output="difference").run_one(rows[0]).tolist() == [[-2, -3]]
    with pytest.raises(BadInput, match="the input 'b' is missing"):
        model.run_one({"a": [1.0, 2.0]})
    with pytest.raises(ModelError, match="there is no input 'b'"):
        model.run_feed({"a": np.zeros((1, 2), np.float32)})
    with pytest.raises(ModelError, match="has no output 'sum', named in policy or card: it has total, difference"):
        make(models.two_inputs, output="sum").load()
    plain = make(models.two_inputs, named=False, name="plain")
    assert plain.run_one({"serving_a:0": [1.0, 2.0], "serving_b:0": [3.0, 5.0]})["Partitioned:0"].tolist() == [[4, 7]]


def test_names_that_several_tensors_have(tmp_path, runtime):
    """Each output is read; a tensor that goes in and comes out has the name of either side."""
    g = models.Graph()
    x, y = g.tensor("x", [1, 2]), g.tensor("same", [1, 2])
    z = g.tensor("same", [1, 2])
    g.operator("NEG", [x], [y])
    g.operator("ADD", [x, x], [z], options="AddOptions")
    g.at.inputs, g.at.outputs = [x], [y, z, x]
    path = g.save(tmp_path / "same.tflite")
    out = LiteRTModel(path, runtime=runtime).run_one(np.array([1, 2], np.float32))
    assert [value.tolist() for value in out.values()] == [[[-1, -2]], [[2, 4]], [[1, 2]]]
    g.signature("serving_default", {"given": x}, {"negative": y, "double": z, "as it is": x})
    signed = LiteRTModel(g.save(path), runtime=runtime)
    assert [*signed.run_one(np.array([1, 2], np.float32))] == ["negative", "double", "as it is"]
    assert signed.inputs[0].name == "given"


def test_signatures_of_other_subgraphs(make):
    """One of several has to be named."""
    x = np.array([1, -2], np.float32)
    assert make(models.two_signatures, signature="negative").run_one(x).tolist() == [[-1, 2]]
    double = make(models.two_signatures, signature="double")
    assert double.run([x, -x]).tolist() == [[2, -4], [-2, 4]]
    edge_contract(double, [x, -x])
    with pytest.raises(ModelError, match="several: say which by signature=: its signatures are negative, double"):
        make(models.two_signatures).load()
    with pytest.raises(ModelError, match="none of the name 'half': its signatures are negative, double"):
        make(models.two_signatures, signature="half").load()


def test_a_fixed_batch(make):
    """So many at a time; where the model lets it be another, as many as there are."""
    fixed = make(models.linear, batch=4)
    assert fixed.run([X] * 5).shape == (5, 3)
    assert fixed.run_one(X).shape == (1, 3)
    assert fixed.load().idle[0].shapes == [(4, 4)]
    free = make(models.linear, name="free")
    assert free.run([X] * 5).shape == (5, 3)
    assert free.load().idle[0].shapes == [(5, 4)]
    with pytest.raises(ModelError, match="failed to run"):
        fixed.run_feed({"x": np.zeros((2, 4), np.float32)})
    assert fixed.run_one(X).shape == (1, 3), "as before"


def test_an_axis_that_has_no_size_before_the_first_run(make):
    """The size that the file has for it may be one that the model does not run with."""
    model = make(models.halves, card={"output": {"batch": "none"}})
    model.load()
    assert model.inputs == (TensorSpec("x", "float32", (1, -1)),)
    assert model.run_one(X).tolist() == [[[1, 2], [3, 0.5]]]
    assert model.run_one(np.arange(6, dtype=np.float32)).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    with pytest.raises(ModelError, match="failed to run"):
        model.run_one(X[:3])
    assert model.run_one(X).tolist() == [[[1, 2], [3, 0.5]]]


# --- one interpreter for each run


def test_runs_at_the_same_time_have_an_interpreter_each(make, monkeypatch):
    """One that is in use is no other's; afterwards they wait for the next runs."""
    model = make(models.linear)
    model.load()
    both, begun = threading.Barrier(4), litert.LockedInterpreter.run

    def meets(self, *given):
        both.wait(LONG)
        return begun(self, *given)

    monkeypatch.setattr(litert.LockedInterpreter, "run", meets)
    results = [None] * 4
    threads = [threading.Thread(target=lambda i=i: results.__setitem__(i, model.run([X * i, X]))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert [result[0].tolist() for result in results] == [(X * i)[:3].tolist() for i in range(4)]
    assert len(model.load().idle) == 4
    monkeypatch.undo()
    model.run_one(X)
    assert len(model.load().idle) == 4


def test_a_run_that_fails_costs_its_interpreter(make, monkeypatch):
    """What state it is in is not known."""
    model = make(models.linear)
    session = model.load()
    (worker,) = session.idle
    monkeypatch.setattr(worker, "invoke", lambda: (_ for _ in ()).throw(RuntimeError("out of\nmemory")))
    with pytest.raises(ModelError, match=r"model failed to run: out of$"):
        model.run_one(X)
    assert not session.idle
    assert model.run_one(X).shape == (1, 3)


def test_outputs_stay_as_they_are(make):
    """They are the caller's, whatever runs later."""
    model = make(models.linear)
    first = model.run_one(X)
    model.run_one(2 * X)
    assert first.tolist() == [X[:3].tolist()]


def test_a_stopped_run_does_not_begin(make):
    """An interpreter cannot be stopped; a run whose stop came first does nothing."""
    model, stop = make(models.linear), StopToken()
    model.load()
    stop()
    for run in (lambda: model.run_one(X, stop), lambda: model.run([X, X], stop)):
        with pytest.raises(ModelError, match="was stopped before it started"):
            run()


def test_closing_frees_it_after_the_last_run(make):
    """A later run loads it again, from the file as it is then."""
    model = make(models.linear)
    first = model.load()
    model.close()
    model.close()
    models.linear(model.path, weights=np.eye(4, 3) * 5)
    assert model.run_one(X).tolist() == [(5 * X[:3]).tolist()]
    assert model.load() is not first


def test_a_new_interpreter_runs_the_bytes_that_were_checked(make):
    """Also when the file is another one by then."""
    model = make(models.linear)
    session = model.load()
    models.linear(model.path, weights=np.eye(4, 3) * 5)
    session.idle.clear()
    assert model.run_one(X).tolist() == [X[:3].tolist()]


# --- state


def sums(session, *inputs):
    return [session.infer(np.asarray(x, np.float32)).outputs.tolist() for x in inputs]


def test_a_state_in_variables_is_one_for_each_session(make):
    """The interpreter that has it is the session's; without a session it is the caller's fault."""
    model = make(models.total, kind="value")
    with Router(model) as router:
        assert "only in a session" in router.check().lines[0]
        with router.session() as one, router.session() as other:
            assert sums(one, [1, 2], [1, 2]) == [[1, 2], [2, 4]]
            assert sums(other, [5, 5]) == [[5, 5]]
            assert sums(one, [1, 0]) == [[3, 4]]
            one.reset()
            assert sums(one, [1, 1]) == [[1, 1]]
            assert [a.outputs.tolist() for a in other.infer_many([np.ones(2, np.float32)] * 2)] == [[6, 6], [7, 7]]
        with pytest.raises(BadInput, match=r"use a session"):
            router.infer(np.ones(2, np.float32))


def test_a_state_that_has_gone_on_without_its_session(make, monkeypatch):
    """A run that was left behind has moved the interpreter on: the session is told so, asks the cloud, and begins anew."""
    model, run, gate, ran = make(models.total), litert.LockedInterpreter.run, threading.Event(), threading.Event()
    ones = np.ones(2, np.float32)

    def late(*given):
        gate.wait(LONG)
        out = run(*given)
        ran.set()
        return out

    with Router(model, cloud, threshold=0.0) as router, router.session() as session:
        assert session.infer(ones).source == "edge"
        monkeypatch.setattr(litert.LockedInterpreter, "run", late)
        with pytest.raises(DeadlineExceeded):
            session.infer(ones, mode="only_edge", deadline=0.2)
        monkeypatch.undo()
        gate.set()
        assert ran.wait(LONG)
        for _ in range(2):
            lost = session.infer(ones)
            assert lost.source == "cloud"
            assert "an abandoned run may have changed its state: call the session's reset()" in routes.error(lost, "edge")
        session.reset()
        again = session.infer(ones)
        assert (again.source, again.outputs.tolist()) == ("edge", [1, 1])


def test_a_state_in_tensors(make):
    """Outside a session each run begins anew, whatever ran before it; in a session it goes on."""
    model = make(models.last_two, kind="value")
    runs = [np.array([1, 0], np.float32), np.array([0, 2], np.float32), np.array([4, 0], np.float32)]
    assert [model.run_one(x).tolist() for x in runs] == [[[1]], [[2]], [[4]]]
    assert model.run(runs).tolist() == [[1], [2], [4]]
    with Router(model) as router:
        with router.session() as session:
            assert sums(session, *runs) == [[1], [3], [6]]
        assert router.infer(runs[1]).outputs.tolist() == [2]


def test_a_state_that_a_card_describes(make):
    """An output that is fed back is the session's, as for any runtime; it may be pooled."""
    card = {"state": [{"input": "before", "output": "after"}], "output": {"kind": "value"}}
    model = make(models.rolling, card=card)
    with Router(model) as router, router.session() as session:
        assert sums(session, [1, 1], [2, 2], [3, 3]) == [[1, 1], [3, 3], [5, 5]]


def test_a_quantised_state_that_a_card_describes(make):
    """It begins with numbers of 0, and comes back as the elements that it was, also with another scale."""
    card = {"state": [{"input": "before", "output": "after"}], "output": {"kind": "value"}}
    with Router(make(models.rolling, card=card, dtype="int8")) as router, router.session() as session:
        assert np.allclose(sums(session, [1, 1], [2, 2], [3, 3]), [[1, 1], [3, 3], [5, 5]], atol=0.06)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no fork")
def test_a_child_goes_on_with_a_copy_of_the_state(make):
    """The parent's is as it was."""
    model = make(models.total, kind="value")
    with Router(model) as router, router.session() as session:
        assert sums(session, [1, 1]) == [[1, 1]]
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                told = sums(session, [1, 1], [1, 1])
            except BaseException as e:  # noqa: BLE001 - the parent reads it
                told = repr(e)
            os.write(write, json.dumps(told).encode())
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as told:
            assert json.loads(told.read()) == [[2, 2], [3, 3]]
        os.waitpid(child, 0)
        assert sums(session, [1, 1]) == [[2, 2]]


# --- delegates


def test_delegates_of_the_runtime(make):
    """XNNPACK is its own choice; without it the outputs are the same."""
    for delegate in (None, "none", "xnnpack", ["xnnpack"]):
        model = make(models.linear, delegate=delegate)
        assert model.run_one(X).tolist() == [X[:3].tolist()]
        assert model.downgraded is None
        assert model.parallel is None
    assert make(models.linear, delegate="none").settings != make(models.linear).settings


def test_xnnpack_that_takes_nothing(make):
    """What is asked for and does not run is an error, or a note."""
    with pytest.raises(ModelError, match="xnnpack runs none of the operators of"):
        make(models.last_two, delegate="xnnpack").load()
    noted = make(models.last_two, delegate="xnnpack", on_downgrade="record")
    noted.load()
    assert "running on the CPU" in noted.downgraded
    assert noted.settings["delegates"] == []


@pytest.mark.parametrize(
    ("delegate", "says"),
    [
        (
            "edgetpu",
            r"the delegate (libedgetpu\S+|edgetpu\.dll) cannot be loaded: .*\. Install it \(of Coral: apt-get install libedgetpu1-std\)",
        ),
        (
            "/nowhere/libgpu_delegate.so",
            r"the delegate /nowhere/libgpu_delegate\.so cannot be loaded: .* give its absolute path, or leave",
        ),
    ],
)
def test_a_delegate_that_is_not_there(make, delegate, says):
    """Nothing runs without it unasked."""
    model = make(models.linear, delegate=delegate)
    with pytest.raises(ModelError, match=says):
        model.load()
    assert model.parallel == 1, "a device has one run at a time"
    with Router(model, cloud, threshold=0.5) as router:
        found = router.check()
        assert not found.ok
        assert "cannot be loaded" in found.lines[0]
    noted = make(models.linear, delegate=delegate, on_downgrade="record")
    assert noted.run_one(X).tolist() == [X[:3].tolist()]
    with Router(noted, cloud, threshold=0.5) as router:
        assert "cannot be loaded" in router.check().lines[0]
        assert "running on the CPU" in router.check().lines[0]
    assert noted.settings["delegates"] == []


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A real delegate, of a kind that options choose: one that takes no operator, or finds no device."""
    path = tmp_path_factory.mktemp("delegate") / "libtest_delegate.so"
    source = path.with_suffix(".c")
    source.write_text(DELEGATE)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path, source], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no C compiler: {e}")
    return str(path)


DELEGATE = """
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
struct delegate { void *data; int (*prepare)(void *, struct delegate *); void *from, *to, *free_buffer; int64_t flags; void *opaque; };
static int prepare(void *context, struct delegate *self) { return 0; }
void *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
    for (size_t i = 0; i < count; i++)
        if (!strcmp(keys[i], "device") && strcmp(values[i], "0")) { report("no such device"); return NULL; }
    struct delegate *made = calloc(1, sizeof *made);
    made->prepare = prepare;
    return made;
}
void tflite_plugin_destroy_delegate(void *self) { free(self); }
"""


def test_a_library_that_takes_no_operator(make, library):
    """The model would run on the CPU, and nobody would know."""
    with pytest.raises(
        ModelError, match=r"libtest_delegate\.so runs none of the operators of .*: compile the model for it, or leave"
    ):
        make(models.linear, delegate=library).load()
    noted = make(models.linear, delegate=Path(library), on_downgrade="record", delegate_options={"device": 0})
    assert noted.run_one(X).tolist() == [X[:3].tolist()]
    assert noted.downgraded.endswith("running on the CPU")
    edge_contract(noted, [X, -X])


def test_a_library_that_finds_no_device(make, library):
    """What it says is told."""
    with pytest.raises(ModelError, match=r"the delegate .*libtest_delegate\.so does not start: no such device"):
        make(models.linear, delegate=library, delegate_options={"device": 3}).load()


@pytest.mark.skipif(sys.platform != "linux", reason="the library's name")
def test_a_library_that_is_no_delegate(make):
    """It says so."""
    with pytest.raises(ModelError, match=r"libm\.so\.6 is a library, and no delegate of TFLite"):
        make(models.linear, delegate="libm.so.6").load()


def test_a_model_for_the_edge_tpu(make):
    """Without its delegate it says which; another custom operator is named."""
    with pytest.raises(ModelError, match='is compiled for the Edge TPU: give delegate="edgetpu"'):
        make(models.custom).load()


def test_an_operator_that_the_runtime_lacks(tmp_path, runtime):
    """It is named."""
    path = models.custom(tmp_path / "m.tflite", "MyOwnOperator")
    with pytest.raises(ModelError, match=r"cannot load .*m\.tflite: Encountered unresolved custom op: MyOwnOperator"):
        LiteRTModel(path, runtime=runtime).load()


# --- bad input


def test_a_missing_model(tmp_path, runtime):
    """It is the file that is missing."""
    with pytest.raises(ModelMissing, match="there is no model at"):
        LiteRTModel(tmp_path / "none.tflite", runtime=runtime).load()
    with pytest.raises(ModelError):
        LiteRTModel(tmp_path, runtime=runtime).load()


def test_a_truncated_model(make):
    """At any length: refused before the runtime sees it, of which one would crash the process."""
    model = make(models.static, dtype="uint8")
    data = model.path.read_bytes()
    for size in range(len(data)):
        with pytest.raises(ValueError, match="it is truncated or damaged" if size >= 8 else "no .tflite file"):
            read_contents(data[:size])
    model.path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"cannot load .*model\.tflite: it is truncated or damaged"):
        model.load()


def test_a_model_whose_weights_go_on_behind_its_end(make):
    """A length that the file does not have."""
    weights = np.random.default_rng(3).normal(size=(4, 3))
    model = make(models.linear, weights=weights)
    data = bytearray(model.path.read_bytes())
    at = data.index(weights.T.astype(np.float32).tobytes())
    data[at - 4 : at] = (len(data)).to_bytes(4, "little")
    model.path.write_bytes(data)
    with pytest.raises(ModelError, match="it is truncated or damaged"):
        model.load()


def test_a_model_that_is_replaced_while_it_is_loaded(make, monkeypatch):
    """What runs is what was compared with the expected sha256."""
    model = make(models.linear)

    def replaced(path, _):
        found = sha256_of(path)
        models.linear(path, weights=np.eye(4, 3) * 5)
        return found

    monkeypatch.setattr(model_file, "checked_sha256", replaced)
    with pytest.raises(ModelError, match="was replaced while it was loaded: load it again"):
        model.load()
    monkeypatch.undo()
    assert model.run_one(X).tolist() == [(5 * X[:3]).tolist()]


def test_a_foreign_model(make, fashion):
    """Another format, an empty file, and text."""
    model = make(models.linear)
    for data in (
        (fashion / "edge.int8.onnx").read_bytes(),
        b"",
        b"TFL3",
        b"\0\0\0\0TFL3" + b"\xff" * 50,
        b"not a model" * 9,
    ):
        model.path.write_bytes(data)
        with pytest.raises(ModelError, match=r"it is no \.tflite file|truncated or damaged"):
            model.load()


def test_a_model_that_is_too_large(make, tmp_path, runtime):
    """More bytes than a flatbuffer may have, and tensors that no memory holds."""
    with pytest.raises(ModelError, match=r"has a tensor of 8,796,093,022,208 bytes, and this device a memory of"):
        make(models.huge).load()
    with pytest.raises(ModelError, match=r"has a tensor of 2,199,023,255,552 bytes, and this device a memory of"):
        make(models.huge, dtype="int8").load()
    big = tmp_path / "big.tflite"
    with big.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(ModelError, match=r"has 2,147,483,648 bytes, and a \.tflite file has at most 2,147,483,647"):
        LiteRTModel(big, runtime=runtime).load()


def test_a_damaged_model(make, runtime):
    """Single bits, anywhere: an error or a model, and never another exception. LiteRT looks at all of the file itself."""
    if runtime != "litert":
        pytest.skip("tflite-runtime trusts a file whose parts are all there")
    model = make(models.static)
    data, random = model.path.read_bytes(), np.random.default_rng(5)
    for _ in range(200):
        broken = bytearray(data)
        for at in random.integers(len(data), size=3):
            broken[at] ^= 1 << random.integers(8)
        model.path.write_bytes(broken)
        try:
            model.close()
            model.load()
            model.run_one(X)
        except (ModelError, BadInput):
            pass


@pytest.mark.parametrize("what", [{"tensors": 4000, "axes": 4000}, {"codes": 4000, "letters": 40_000}, {"axes": 100_000}])
def test_parts_that_are_read_again_and_again(what):
    """A small file whose offsets all lead to one large part is refused, before time and memory grow with their product."""
    data = models.repeated(**what)
    with pytest.raises(ValueError, match="damaged"):
        read_contents(data)


def test_a_model_without_inputs(make):
    """Loads, and gives what it says; an input for it is the caller's mistake."""
    model = make(models.without_inputs)
    np.testing.assert_array_equal(model.run_feed({}), [[-1, -2]])
    with pytest.raises(BadInput):
        model.run_one(X)


def test_a_card_of_another_model(make):
    """By its sha256, or by what it says of the inputs."""
    with pytest.raises(ModelError, match="is not the expected model: its sha256 is"):
        make(models.linear, card={"sha256": "0" * 64}).load()
    with pytest.raises(ModelError, match="its card describes the input 'image', the file has"):
        make(models.linear, card={"input": {"name": "image"}}).load()
    with pytest.raises(ModelError, match=r"its card describes the input 'x' as \[-1, 5\]"):
        make(models.linear, card={"input": {"name": "x", "shape": [-1, 5]}}).load()


def test_a_card_of_one_format(tmp_path, runtime):
    """`NAME.tflite.json` goes before `NAME.json`, which may be that of a model in another format."""
    path = models.linear(tmp_path / "m.tflite")
    path.with_suffix(".json").write_text(json.dumps({"sha256": "0" * 64}))
    Path(f"{path}.json").write_text(json.dumps({"labels": ["a", "b", "c"]}))
    model = LiteRTModel(path, runtime=runtime)
    assert model.labels == ("a", "b", "c")
    assert model.run_one(X).shape == (1, 3)
    assert model.files == [Path(f"{path}.json")]


@pytest.mark.parametrize("options", [{"runtime": "tensorflow"}, {"on_downgrade": "silent"}, {"kind": "cat"}, {"provider": "cpu"}])
def test_arguments_that_cannot_be(tmp_path, options):
    """They are the policy's fault, before anything is loaded."""
    with pytest.raises(PolicyError):
        load(tmp_path / "m.tflite", **options)


# --- which runtime


def test_numpy_2_with_tflite_runtime(tmp_path, monkeypatch):
    """It would import, and then fail with a SystemError: said before."""
    package = tmp_path / "tflite_runtime"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "interpreter.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tflite_runtime", raising=False)
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(RuntimeMissing, match=r"tflite-runtime needs numpy 1, not 2\.1\.0: pip install 'numpy<2'"):
        LiteRTModel(models.linear(tmp_path / "m.tflite"), runtime="tflite").load()


def test_no_runtime(tmp_path, monkeypatch):
    """What to install is said; a router of it asks the cloud."""
    monkeypatch.setattr(litert, "find_spec", lambda _: None)
    path = models.linear(tmp_path / "m.tflite")
    with pytest.raises(
        RuntimeMissing, match=r"neither LiteRT nor tflite-runtime is installed: pip install 'edgeroute\[litert\]'"
    ):
        LiteRTModel(path).load()
    with pytest.raises(RuntimeMissing, match=r"tflite-runtime is not installed: pip install 'edgeroute\[tflite\]'"):
        LiteRTModel(path, runtime="tflite").load()
    with Router(path, cloud, threshold=0.5) as router:
        assert router.infer(X).value == "cloud"


def test_it_is_part_of_the_fingerprint(make, runtime):
    """The runtime that it runs on, delegates, the signature and the output; not threads."""
    plain = make(models.two_signatures, signature="double")
    with (
        Router(plain, cloud, threshold=0.5) as router,
        Router(make(models.two_signatures, signature="double", threads=2), cloud, threshold=0.5) as same,
    ):
        first = router.fingerprints()
        assert same.fingerprints()["edge"] == first["edge"]
    assert plain.settings["runtime"] == runtime
    for options in (
        {"signature": "negative"},
        {"signature": "double", "delegate": "none"},
        {"signature": "double", "output": "y"},
    ):
        with Router(make(models.two_signatures, **options), cloud, threshold=0.5) as other:
            assert other.fingerprints()["edge"] != first["edge"]


def test_the_one_that_is_installed(tmp_path):
    """LiteRT if there are both."""
    model = LiteRTModel(models.linear(tmp_path / "m.tflite"))
    assert model.settings["runtime"] == ("litert" if find_spec("ai_edge_litert") else "tflite")
    assert model.run_one(X).shape == (1, 3)


def test_it_brings_no_other_runtime(tmp_path):
    """A router of a .tflite model imports neither ONNX Runtime nor PyTorch, and the package nothing of this early."""
    path = models.linear(tmp_path / "m.tflite")
    code = (
        "import sys, edgeroute, numpy as np\n"
        "assert 'edgeroute.edge.litert' not in sys.modules\n"
        f"with edgeroute.Router({str(path)!r}, lambda x: 'cloud', threshold=0.0) as router:\n"
        "    assert 'ai_edge_litert' not in sys.modules and 'tflite_runtime' not in sys.modules\n"
        "    router.infer(np.ones(4, np.float32))\n"
        "assert not {'onnxruntime', 'onnx', 'torch', 'tensorflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# --- labels in the zip behind a model


def with_zip(path, files, how="a", **options):
    """The same model with these files in a zip behind it: added to the file, or made apart and put behind it."""
    apart = path if how == "a" else path.with_suffix(".zip")
    with zipfile.ZipFile(apart, how) as archive:
        for name, text in files:
            archive.writestr(name, text, **options)
    if how == "w":
        path.write_bytes(path.read_bytes() + apart.read_bytes())
    return path


def labels_of(path):
    """The labels in the card that `inspect` prints; None: it has none."""
    code, out, _ = cli("inspect", path, "--json")
    assert code in {0, 1}
    return json.loads(out)["card"].get("labels")


@pytest.mark.parametrize("how", ["a", *slow("w")])
def test_labels_in_the_zip_behind_a_model(fashion, tmp_path, how):
    """As TFLite's metadata has them: `inspect` writes them into its card, and a model without it gives numbers."""
    (path := tmp_path / "m.tflite").write_bytes((fashion / "edge.int8.tflite").read_bytes())
    names = [f"class {i}" for i in range(10)]
    files = [("TFLITE_METADATA", b"M001"), ("labels.txt", "\ufeff" + "\r\n".join(names) + "\r\n"), ("vocab.txt", "a")]
    assert labels_of(with_zip(path, files, how)) == names
    assert LiteRTModel(path).labels is None


@pytest.mark.parametrize(
    ("files", "options"),
    [
        ([("labels.txt", "a\nb")], {}), *slow(
            ([("labels.txt", "a\nb\nc\nd")], {}), ([("labels.txt", "a\n\nc")], {}), ([("labels.txt", "a\nb\nb")], {}),
            ([("labels.txt", "a\nb\x1b[2J\nc")], {}), ([("labels.txt", b"a\nb\n\xff")], {}), ([("labels.txt", "")], {}),
            ([("labels.txt", "a\nb\nc"), ("labels-de.txt", "x\ny\nz")], {}), ([("../labels.txt", "a\nb\nc")], {}),
            ([("vocab.txt", "a\nb\nc")], {}), ([], {}),
            ([("labels.txt", "a\nb\nc" + " " * (1 << 20))], {"compress_type": zipfile.ZIP_DEFLATED}),
        ),
    ],
)  # fmt: skip
def test_other_files_in_the_zip_behind_a_model(make, files, options):
    """Are no labels: they are not one file of one word for each class, or not of plain text, or too large."""
    assert labels_of(with_zip(make(models.linear).path, files, **options)) is None


@pytest.mark.slow
def test_a_label_file_that_lies_about_its_size(make):
    """No more of it is unpacked than a label file may have, whatever the zip says."""
    path = make(models.linear).path
    data = with_zip(path, [("labels.txt", b"a\n" * (50 << 20))], compress_type=zipfile.ZIP_DEFLATED).read_bytes()
    assert (100 << 20).to_bytes(4, "little") in data
    path.write_bytes(data.replace((100 << 20).to_bytes(4, "little"), (5).to_bytes(4, "little")))
    tracemalloc.start()
    try:
        assert labels_of(path) is None
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_damaged_zip_behind_a_model(make):
    """Has the labels, others or none; the model runs."""
    path, random = make(models.linear).path, np.random.default_rng(5)
    begin, read = path.stat().st_size, set()
    data = with_zip(path, [("labels.txt", "a\nb\nc")]).read_bytes()
    for _ in range(100):
        broken = bytearray(data[: random.choice([len(data), random.integers(begin, len(data))])])
        for at in random.integers(begin, len(data), size=2):
            broken[min(at, len(broken) - 1)] ^= 1 << random.integers(8)
        path.write_bytes(broken)
        read.add(str(labels_of(path)))
    assert {"None", "['a', 'b', 'c']"} <= read


# --- the shipped model


def test_the_shipped_model_answers_as_its_onnx_file_does(fashion, runtime):
    """The same integers in the same order: LiteRT's logits differ in the last digits, those of the kernels of 2023 a little."""
    pixels, labels = (np.load(fashion / "sample.npz")[name] for name in ("images", "labels"))
    here = LiteRTModel(fashion / "edge.int8.tflite", runtime=runtime)
    logits = here.run(list(pixels))
    assert here.labels == OnnxModel(fashion / "edge.int8.onnx").labels
    assert here.inputs == (TensorSpec("image", "uint8", (-1, 28, 28)),)
    if find_spec("onnxruntime"):
        there = OnnxModel(fashion / "edge.int8.onnx").run(list(pixels))
        assert np.abs(logits - there).max() < (0.2 if runtime == "tflite" else 1e-3)
        assert (logits.argmax(1) == there.argmax(1)).mean() >= 0.995
    assert (logits.argmax(1) == labels).mean() >= 0.92
    one = np.concatenate([here.run_one(x) for x in pixels[:20]])
    assert np.allclose(one, logits[:20], atol=1e-4)
    edge_contract(here, list(pixels[:3]), bad=[pixels[0] / 255, pixels[0, 0]])


# --- policies and commands


@pytest.fixture
def desk(tmp_path, monkeypatch, fashion):
    pytest.importorskip("typer")
    (tmp_path / "models").symlink_to(fashion)
    monkeypatch.chdir(tmp_path)
    np.savez("inputs.npz", images=np.load(fashion / "sample.npz")["images"][:40])
    return tmp_path


def edgeroute_command(*words, rc=0):
    code, out, err = cli(*words)
    assert code == rc, out + err
    return out


def test_a_policy_has_its_keys(desk):
    """Those of its class; what is not one is told with those there are."""
    path = desk / "policy.toml"
    path.write_text(
        'threshold = 0.5\n[edge]\npath = "models/edge.int8.tflite"\nthreads = 2\ndelegate = "none"\nscore = "models/edge.int8.score.json"\n[cloud]\nurl = "http://127.0.0.1:9/v2/models/x"\n'
    )
    (model,) = [target.make(desk) for target in policies.load(path).edge]
    assert (model.threads, model.delegates, callable(model.score)) == (2, ("none",), True)
    with Router.from_policy(path) as router:
        assert router.infer(np.load("inputs.npz")["images"][0], mode="only_edge").value == "Ankle boot"
    path.write_text('threshold = 0.5\n[edge]\npath = "models/edge.int8.tflite"\nproviders = ["cpu"]\n')
    with pytest.raises(
        PolicyError,
        match=r"edge\.providers: there is no such key: expected one of path, view, variant, group, runtime, threads, delegate",
    ):
        Router.from_policy(path)


def test_commands(desk):
    """`check`, `infer`, and `inspect` with `--write`."""
    (desk / "policy.toml").write_text('threshold = 0.5\nmode = "only_edge"\n[edge]\npath = "models/edge.int8.tflite"\n')
    assert "is ready" in edgeroute_command("check", "--policy", "policy.toml")
    lines = [
        json.loads(line) for line in edgeroute_command("infer", "--policy", "policy.toml", "--json", "inputs.npz").splitlines()
    ]
    assert len([line for line in lines if line.get("value")]) >= 40
    (desk / "own.tflite").write_bytes((desk / "models" / "edge.int8.tflite").read_bytes())
    told = json.loads(edgeroute_command("inspect", "own.tflite", "--write", "--json"))
    assert told
    assert json.loads(Path("own.json").read_text())["output"] == {"kind": "logits"}


def test_calibrate(desk):
    """A certificate of the model holds for a router of it, and not on plain kernels, which round otherwise."""
    policy = '[edge]\npath = "models/edge.int8.tflite"\n{more}[cloud]\nurl = "http://127.0.0.1:9/v2/models/x"\n'
    (desk / "policy.toml").write_text("threshold = 0.5\n" + policy.format(more=""))
    edgeroute_command(
        "calibrate", "--policy", "policy.toml", "--data", "models/sample.npz", "--max-defer", "30%", "--out", "c.json"
    )
    path = desk / "certified.toml"
    for more, holds in (("", True), ('delegate = "none"\n', False)):
        path.write_text('threshold = "c.json"\n' + policy.format(more=more))
        with Router.from_policy(path) as router:
            assert ("deferral <= 30" in router.check().lines[-1]) is holds, router.check().lines


def test_serve(desk):
    """As a server of the Open Inference Protocol, whose client is a router."""
    pytest.importorskip("starlette")
    from edgeroute.tools.server.serve import app, named_model

    pixels = np.load("inputs.npz")["images"]
    with running(app([named_model("models/edge.int8.tflite")])) as client:
        cloud = OpenInference(f"{client.base_url}/v2/models/fashion-edge")
        with Router(lambda _: ("edge", 0.0), cloud, threshold=0.9) as router:
            answers = [router.infer(x) for x in pixels[:5]]
    here = LiteRTModel("models/edge.int8.tflite")
    assert [a.source for a in answers] == ["cloud"] * 5
    assert np.allclose([a.outputs for a in answers], here.run(list(pixels[:5])), atol=1e-4)


def test_it_is_freed(make):
    """Interpreters that nobody has go with the model: no memory is left of a hundred of them."""
    psutil = pytest.importorskip("psutil")
    model = make(models.linear, weights=np.ones((512, 512)))
    for rounds in range(60):
        model.run_one(np.ones(512, np.float32))
        model.close()
        if rounds == 20:
            before = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss - before < 20 << 20
