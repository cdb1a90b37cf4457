"""The ONNX edge, on real files and the real runtime."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
from both import LONG
from onnx import TensorProto, helper
from tiny import save

from edgeroute import (
    BadInput,
    BadReply,
    ModelError,
    ModelMissing,
    OnnxModel,
    Options,
    PolicyError,
    Router,
    RuntimeMissing,
    StopToken,
)
from edgeroute.edge import runtime_base as model_file
from edgeroute.edge.runtimes_variants_ensemble import load

X = np.array([0.0, 2.0, 1.0, 5.0], np.float32)


@pytest.fixture
def model(tmp_path):
    return OnnxModel(tiny.linear(tmp_path / "m.onnx"))


def with_card(tmp_path, *, dtype="uint8", shape=(2, 2), **preprocess):
    card = {
        "name": "carded",
        "input": {"name": "x", "dtype": "float32", "shape": [-1, 4]},
        "preprocess": {"dtype": dtype, "shape": list(shape), **preprocess},
        "output": {"name": "logits", "kind": "logits"},
        "labels": ["a", "b", "c"],
    }
    return OnnxModel(tiny.linear(tmp_path / "c.onnx", card=card))


def test_it_gives_what_the_runtime_gives(model):
    """One input and a batch give the rows that a bare session gives, with the batch axis in front."""
    assert model.run([X]).tolist() == [[0, 2, 1]]
    assert model.run_one(X).tolist() == [[0, 2, 1]]
    assert model.run([X, X + 1]).tolist() == [[0, 2, 1], [1, 3, 2]]
    assert model.run([X[None]]).tolist() == [[0, 2, 1]], "a first axis of 1 may be there"
    assert [i.name for i in model.inputs] == ["x"]
    assert model.outputs[0].shape == (-1, 3)


def test_safe_conversions_are_made_and_others_refused(tmp_path, model):
    """Lists, wider floats and integers fit a float input; floats do not fit pixels, and objects fit nothing."""
    assert model.run([[0, 2, 1, 5]]).tolist() == [[0, 2, 1]]
    assert model.run([X.astype(np.float64)]).tolist() == [[0, 2, 1]]
    pixels = OnnxModel(tiny.linear(tmp_path / "u.onnx", dtype="uint8"))
    with pytest.raises(BadInput, match="expected uint8, got float32"):
        pixels.run([X])
    with pytest.raises(BadInput, match="object"):
        model.run([np.array([None] * 4)])


def test_integers_are_cast_where_they_fit(tmp_path):
    """An integer that the model's dtype has not is refused, and not wrapped; lists, as from JSON, have no dtype of their own."""
    pixels = OnnxModel(tiny.linear(tmp_path / "u.onnx", dtype="uint8"))
    row = pixels.run([np.array([0, 2, 1, 255], np.uint8)]).tolist()
    assert pixels.run([[0, 2, 1, 255]]).tolist() == pixels.run([np.array([0, 2, 1, 255], np.uint16)]).tolist() == row
    for wrong in ([0, 2, 1, 256], [0, 2, 1, -1], np.array([0, 2, 1, 256], np.uint16)):
        with pytest.raises(BadInput, match="x: the input holds an integer that uint8 has not: 0 to 255") as raised:
            pixels.run([wrong])
        assert raised.value.field == "x"
    with pytest.raises(BadInput, match="x: the input cannot be read as an array: its lists differ in length"):
        pixels.run([[[0], [2, 1], [0], [1]]])
    with pytest.raises(BadInput, match="expected uint8, got int64"):
        pixels.run([np.array([0, 2, 1, 255])])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros(3, np.float32), r"expected \[4\] float32, got \[3\]"),
        (np.zeros((2, 4), np.float32), r"got \[2, 4\]"),
        (np.zeros((0, 4), np.float32), r"got \[0, 4\]"),
        (np.array([0, np.nan, 0, 0], np.float32), "NaN"),
        (np.array([0, np.inf, 0, 0], np.float32), "NaN or infinity"),
        (np.array([0, np.inf, 0, 0]), "NaN or infinity"),
        (np.array([0, 1e300, 0, 0]), "a number too large for float32"),
        ("door.jpg", r"expected \[4\] float32, got str: give an array, or, .* a picture file's content"),
        (Path("door.jpg"), r"got \w*Path: give an array"),
        (b"\xff\xd8\xff", "got bytes: give an array"),
    ],
)
def test_wrong_input_is_the_callers_fault(model, x, message):
    """Shape, NaN and infinity are refused before the model runs, with what was expected and what came."""
    with pytest.raises(BadInput, match=message):
        model.run([x])


def test_masked_arrays(model):
    """What is masked is not there; the numbers beneath the mask were read. Without a mask they are arrays."""
    with pytest.raises(BadInput, match="x: a masked array: fill it"):
        model.run_one(np.ma.array(X, mask=[0, 0, 1, 0]))
    with pytest.raises(BadInput, match="x: a masked array: fill it"):
        model.run_one(np.ma.array(X.astype(object), mask=[0, 0, 1, 0]))
    assert (model.run_one(np.ma.array(X)) == model.run_one(X)).all()


def test_records_are_no_rows_of_numbers(model):
    """Their fields were taken for the numbers of a row, where one holds objects."""
    with pytest.raises(BadInput, match=r"expected \[4\] float32, got \[2\]"):
        model.run_one(np.array([(1.0, 2.0), (3.0, 4.0)], [("a", "f4"), ("b", "O")]))


def test_large_finite_values_are_fine(model):
    """A sum that overflows is not taken for infinity."""
    assert model.run([np.full(4, 3e38, np.float32)]).shape == (1, 3)


def test_rows_of_a_batch_must_agree(tmp_path):
    """A batch is one array: rows of different shapes are refused, and so is none at all."""
    with pytest.raises(BadInput, match="empty"):
        OnnxModel(tiny.linear(tmp_path / "m.onnx")).run([])
    open_axis = tmp_path / "open.onnx"
    value = tiny.helper.make_tensor_value_info
    tiny.save(
        open_axis,
        [tiny.helper.make_node("Identity", ["x"], ["y"])],
        [value("x", 1, ["n", "m"])],
        [value("y", 1, ["n", "m"])],
    )
    with pytest.raises(BadInput, match="differ in shape"):
        OnnxModel(open_axis).run([np.zeros(2, np.float32), np.zeros(3, np.float32)])


def test_several_inputs_and_outputs_go_by_name(tmp_path):
    """A mapping in, a mapping out; a missing name is said."""
    model = OnnxModel(tiny.two_inputs(tmp_path / "two.onnx"))
    a, b = np.float32([1, 2]), np.float32([10, 20])
    out = model.run([{"a": a, "b": b}] * 2)
    assert out["total"].tolist() == [[11, 22]] * 2
    assert out["difference"].tolist() == [[-9, -18]] * 2
    with pytest.raises(BadInput, match="'b' is missing; there is \\['a'\\]"):
        model.run([{"a": a}])
    with pytest.raises(BadInput, match="2 inputs"):
        model.run([a])


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "INT4"])
def test_types_that_numpy_does_not_have(tmp_path, kind):
    """Are refused as the model is loaded: bfloat16 fails in each run, and the bytes of float8 would be read as numbers."""
    value, told = helper.make_tensor_value_info, getattr(TensorProto, kind)
    x, y, z = value("x", TensorProto.FLOAT, ["n", 4]), value("y", told, ["n", 4]), value("z", TensorProto.FLOAT, ["n", 4])
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=told), helper.make_node("Identity", ["x"], ["z"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y, z]), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.save(model, tmp_path / "m.onnx")
    with Router(tmp_path / "m.onnx") as router:
        check = router.check()
    assert not check.ok
    assert f"numpy has no tensor({kind.lower()}) (output y)" in str(check)
    assert OnnxModel(tmp_path / "m.onnx", output="z").run_one(X).tolist() == [X.tolist()]


def across(path, shape, *nodes):
    """A model of x [n, 4] whose output has another axis, or none, that counts the inputs."""
    value = helper.make_tensor_value_info
    x, y = value("x", TensorProto.FLOAT, ["n", 4]), value("y", TensorProto.FLOAT, shape)
    return save(path, nodes, [x], [y], [("flat", np.array([-1]))])


@pytest.mark.parametrize(
    ("node", "shape", "wrong"),
    [
        (helper.make_node("Transpose", ["x"], ["y"]), [4, "n"], "1 inputs gave 4 outputs"),
        (helper.make_node("Reshape", ["x", "flat"], ["y"]), ["m"], "1 inputs gave 4 outputs"),
        (helper.make_node("ReduceMax", ["x"], ["y"], axes=[0], keepdims=0), [4], "1 inputs gave 4 outputs"),
    ],
)
def test_an_output_whose_first_axis_does_not_count_the_inputs(tmp_path, node, shape, wrong):
    """Its first row would be a part of the answer, and no answer: it is refused, for one input too, and told what to write."""
    path = across(tmp_path / "m.onnx", shape, node)
    with Router(path) as router:
        check = router.check()
        assert not check.ok
        assert wrong in str(check)
    for ask in (Router.infer, lambda router, x: router.infer_many([x])):
        with (
            Router(path, options=Options(no_confidence="accept")) as router,
            pytest.raises(BadReply, match=f"{wrong}: .*card says so"),
        ):
            ask(router, np.array([1, 2, 3, 9], np.float32))


def test_an_output_without_axes(tmp_path):
    """Is the only input's answer, as of a model that squeezes its batch axis; of several inputs it would be nobody's."""
    path = across(tmp_path / "m.onnx", [], helper.make_node("ReduceMax", ["x"], ["y"], keepdims=0))
    x = np.array([1, 2, 3, 9], np.float32)
    with Router(path, options=Options(no_confidence="accept")) as router:
        assert router.infer(x).value == pytest.approx(9)
        with pytest.raises(BadReply, match="3 inputs gave 1 outputs"):
            router.infer_many([x, x, x])


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"labels": ["a", "b"]}, "3 outputs, but 2 labels: give one for each class"),
        ({"kind": "label+probabilities"}, "its kind is label"),
        ({"kind": "boxes"}, r"m gives an output \[3\]: boxes are"),
        ({"kind": "probabilities"}, "m gives outputs of -1 to 5, and kind is probabilities"),
        ({"kind": "logprobs"}, "m gives outputs of up to 5, and kind is logprobs"),
    ],
)
def test_check_reads_what_zeros_give(tmp_path, options, wrong):
    """What would fail at each call, or give no confidence, is no model that is ready."""
    value = helper.make_tensor_value_info
    x, y = value("x", TensorProto.FLOAT, ["n", 3]), value("y", TensorProto.FLOAT, ["n", 3])
    path = save(
        tmp_path / "m.onnx", [helper.make_node("Add", ["x", "b"], ["y"])], [x], [y], [("b", np.array([-1, 5, 2], np.float32))]
    )
    with Router(OnnxModel(path, **options)) as router:
        check = router.check()
        assert not check.ok
        assert re.search(wrong, str(check)), str(check)
    with Router(OnnxModel(path, **options), score=lambda outputs: 1 / len(outputs)) as router:
        assert router.check().ok == ("kind" in options and options["kind"] in ("probabilities", "logprobs"))
    with Router(OnnxModel(path, labels=["a", "b", "c"])) as router:
        assert router.check().ok


def test_the_card_tells_the_axis_of_the_outputs(tmp_path):
    """Then such a model is read."""
    path = across(tmp_path / "m.onnx", [4, "n"], helper.make_node("Transpose", ["x"], ["y"]))
    path.with_suffix(".json").write_text('{"output": {"batch": 1}}')
    with Router(path) as router:
        assert router.infer(np.array([1, 2, 9, 3], np.float32)).value == 2


def test_one_input_may_be_a_mapping_too(model):
    """name -> array serves a model of one input as well."""
    assert model.run_one({"x": X}).tolist() == [[0, 2, 1]]
    with pytest.raises(BadInput, match="'x' is missing"):
        model.run_one({"y": X})


def test_the_card_preprocesses(tmp_path):
    """(x * scale - mean) / std, reshaped to the model's tensor; by the short way for one image and the long for many."""
    model = with_card(tmp_path, scale=1 / 255, mean=0.5, std=0.25)
    image = np.array([[0, 255], [51, 102]], np.uint8)
    expected = (np.float32([0, 1, 0.2]) - 0.5) / 0.25
    assert model.run_one(image)[0] == pytest.approx(expected, rel=1e-5)
    assert model.run([image, image])[1] == pytest.approx(expected, rel=1e-5)
    assert model.run_one(np.asfortranarray(image))[0] == pytest.approx(expected, rel=1e-5)
    assert model.run_one(image[None])[0] == pytest.approx(expected, rel=1e-5)
    assert (model.name, model.labels) == ("carded", ("a", "b", "c"))


@pytest.mark.parametrize(
    ("x", "message"), [(np.zeros((2, 2), np.float32), "expected uint8"), (np.zeros((3, 2), np.uint8), r"\[3, 2\]")]
)
def test_the_card_says_what_it_accepts(tmp_path, x, message):
    """Floats where the card says pixels would be silently wrong by a factor of 255: refused."""
    with pytest.raises(BadInput, match=message):
        with_card(tmp_path).run_one(x)


def test_channels_have_their_own_mean(tmp_path):
    """A mean and std for each channel apply along the second axis."""
    path = tmp_path / "ch.onnx"
    value = tiny.helper.make_tensor_value_info
    tiny.save(
        path, [tiny.helper.make_node("Identity", ["x"], ["y"])], [value("x", 1, ["n", 2, 1, 2])], [value("y", 1, ["n", 2, 1, 2])]
    )
    card = {
        "input": {"name": "x", "dtype": "float32", "shape": [-1, 2, 1, 2]},
        "preprocess": {"dtype": "uint8", "shape": [2, 1, 2], "mean": [1, 2], "std": [1, 4]},
    }
    path.with_suffix(".json").write_text(json.dumps(card))
    out = OnnxModel(path).run([np.array([[[3, 5]], [[6, 10]]], np.uint8)])
    assert out.tolist() == [[[[2, 4]], [[1, 2]]]]


# ------------------------------------------------------------------------------------------------------ files at fault
def test_a_missing_model(tmp_path):
    """No file: said at once by the router, and by the model when it loads."""
    with pytest.raises(ModelMissing, match=r"no model at .*gone\.onnx"):
        Router(edge=tmp_path / "gone.onnx")
    with pytest.raises(ModelMissing):
        OnnxModel(tmp_path / "gone.onnx").load()


def test_a_corrupt_model(tmp_path):
    """A file that is no model is the model's fault, in one line."""
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\x08\x07nonsense" * 20)
    with pytest.raises(ModelError, match="cannot load") as caught:
        OnnxModel(bad).load()
    assert "\n" not in str(caught.value)
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        OnnxModel(tmp_path / "folder.onnx").load()


def test_another_sha256(tmp_path):
    """A file that is not the one that the card or the policy names does not run; the right one does, in either case."""
    path = tiny.linear(tmp_path / "m.onnx", card={"sha256": "0" * 64})
    with pytest.raises(ModelError, match="not the expected model"):
        OnnxModel(path).run([X])
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    model = OnnxModel(path, sha256=right.upper())
    assert model.run([X]).shape == (1, 3)
    assert model.fingerprint == right


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("{", "not JSON"),
        ('{"labels": 3}', "not a model card"),
        ("[" * 100_000, "not JSON"),
        (
            '{"input": {"name": "x", "dtype": "08,x", "shape": [1]}, "preprocess": {"dtype": "uint8", "shape": [1]}}',
            "not a model card",
        ),
        (
            '{"input": {"name": "x", "dtype": "float32", "shape": [1]}, "preprocess": {"dtype": "uint8", "shape": [1e999]}}',
            "above any float",
        ),
        ('{"preprocess": {"dtype": "uint8", "shape": [4]}}', "not a model card"),
        (
            '{"input": {"name": "x", "dtype": "uint8", "shape": [-1, 4]}, "preprocess": {"dtype": "uint8", "shape": [4], "scale": 2}}',
            "gives floats",
        ),
        (
            '{"input": {"name": "y", "dtype": "float32", "shape": [-1, 4]}, "preprocess": {"dtype": "uint8", "shape": [4]}}',
            "describes the input",
        ),
        ('{"output": {"name": "probs"}}', "no output 'probs'"),
    ],
)
def test_a_wrong_card(tmp_path, card, message):
    """A card that is broken, or describes another model, is an error that names it."""
    path = tiny.linear(tmp_path / "m.onnx")
    (tmp_path / "m.json").write_text(card)
    with pytest.raises(ModelError, match=message):
        OnnxModel(path).load()


def test_a_card_elsewhere(tmp_path):
    """card= names one that is not beside the model; it must be there."""
    path = tiny.linear(tmp_path / "m.onnx")
    (tmp_path / "other.json").write_text('{"name": "other"}')
    assert OnnxModel(path, card=tmp_path / "other.json").name == "other"
    with pytest.raises(ModelMissing, match="no model card"):
        OnnxModel(path, card=tmp_path / "gone.json")


# ---------------------------------------------------------------------------------------------------------- the runtime
def test_a_provider_that_is_not_there(tmp_path):
    """By default an error that lists what there is; by policy a downgrade, recorded and told by check."""
    path = tiny.linear(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"NoSuchExecutionProvider is not in this onnxruntime, which has .*CPUExecutionProvider"):
        OnnxModel(path, providers=["NoSuchExecutionProvider"]).load()
    model = OnnxModel(path, providers=["NoSuchExecutionProvider"], on_downgrade="record")
    with Router(edge=model) as router:
        assert "asked for NoSuchExecutionProvider, running on CPUExecutionProvider" in str(router.check())
    assert model.downgraded


def test_a_provider_that_quietly_steps_aside(tmp_path, monkeypatch):
    """A provider that is listed but not used in the end is a downgrade too."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["GhostExecutionProvider", "CPUExecutionProvider"])
    model = OnnxModel(tiny.linear(tmp_path / "m.onnx"), providers=["GhostExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *a, providers, enable_fallback, real=onnxruntime.InferenceSession: real(*a, providers=["CPUExecutionProvider"]),
    )
    with pytest.raises(ModelError, match="asked for GhostExecutionProvider"):
        model.load()


def test_one_thread_by_default(model):
    """A busy device gets one intra-op thread unless told otherwise."""
    assert model.load().get_session_options().intra_op_num_threads == 1


def test_no_runtime(monkeypatch, model):
    """Without onnxruntime the error names the extra."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissing, match=r"edgeroute\[onnx\]"):
        model.load()


def test_telemetry_is_off_before_the_import(tmp_path):
    """The variable is set when onnxruntime is first imported, and nothing is written to the home folder."""
    path = tiny.linear(tmp_path / "m.onnx")
    code = (
        "import os, sys, numpy as np; from edgeroute import Router\n"
        f"Router(edge={str(path)!r}).infer(np.zeros(4, np.float32))\n"
        "print(os.environ['ORT_DISABLE_TELEMETRY'], 'onnxruntime' in sys.modules)"
    )
    home = tmp_path / "home"
    home.mkdir()
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.split() == ["1", "True"]
    assert list(home.iterdir()) == []


def test_telemetry_of_a_program_that_imported_it_first(tmp_path, monkeypatch, caplog):
    """It is disabled as far as it can be from here, which is logged once, with the variable to set."""
    ort, called = pytest.importorskip("onnxruntime"), []
    monkeypatch.setattr(ort, "disable_telemetry_events", lambda: called.append(True))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    for _ in range(2):
        OnnxModel(tiny.linear(tmp_path / "m.onnx")).load()
    assert called == [True]
    said = "the program imported onnxruntime first, so it may send telemetry to its maker: set ORT_DISABLE_TELEMETRY=1"
    assert [record.getMessage() for record in caplog.records] == [said]


def test_a_run_in_progress_is_stopped(tmp_path):
    """Cancelling ends a run that would otherwise never end."""
    model = OnnxModel(tiny.endless(tmp_path / "endless.onnx"))
    model.load()
    cancel, ended = StopToken(), []

    def run():
        try:
            model.run_one(np.zeros(1, np.float32), cancel)
        except ModelError as e:
            ended.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    cancel()
    thread.join(LONG)
    assert not thread.is_alive()
    assert "terminate" in str(ended[0])


def test_the_deadline_stops_the_edge_too(tmp_path):
    """At the deadline an edge run without end is ended, its worker is free again, and the cloud was not waited for."""
    from edgeroute import DeadlineExceeded

    router = Router(edge=tiny.endless(tmp_path / "endless.onnx"))
    router.check()
    with pytest.raises(DeadlineExceeded, match=r"edge .* 50 ms"):
        router.infer(np.zeros(1, np.float32), deadline=0.05)
    runner = router.engine.snapshot.backends[0]
    router.close()
    for thread in threading.enumerate():
        if thread.name.startswith("edgeroute-"):
            thread.join(LONG)
    assert runner.abandoned == 0


def test_close_frees_and_a_later_run_loads_again(model):
    """A closed model can be used again."""
    model.run([X])
    model.close()
    assert model.run([X]).shape == (1, 3)
    assert repr(model).startswith("OnnxModel(")


CLOSING = """
import sys, threading, numpy as np
from pathlib import Path
from edgeroute import Ensemble, OnnxModel, StopToken
sys.setswitchinterval(1e-6)
path = Path(sys.argv[1])
alone, members = OnnxModel(path), [OnnxModel(path), OnnxModel(path)]
together, x = Ensemble(members), np.array([0, 2, 1, 5], np.float32)
runs = [
    lambda: alone.run_one(x).tolist() == [[0, 2, 1]],
    lambda: alone.run_one(x, StopToken()).tolist() == [[0, 2, 1]],
    lambda: alone.run([x, x + 1]).tolist() == [[0, 2, 1], [1, 3, 2]],
    lambda: together.run([x])[0][0] == 1,
]
wrong, over = [], threading.Event()

def run(once):
    try:
        wrong.extend(None for _ in range(300) if not once())
    except BaseException as e:
        wrong.append(e)

def close(model):
    while not over.is_set():
        model.close()

running = [threading.Thread(target=run, args=[once]) for once in runs * 2]
closing = [threading.Thread(target=close, args=[model]) for model in (alone, together)]
for thread in running + closing:
    thread.start()
for thread in running:
    thread.join()
over.set()
for thread in closing:
    thread.join()
print(wrong)
"""


def test_a_model_is_never_closed_under_a_run(tmp_path):
    """Many threads run it while others close it again and again: the answers are right, and the process ends well."""
    command = [sys.executable, "-c", CLOSING, str(tiny.linear(tmp_path / "m.onnx"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_a_signal_handler_may_run_a_model_that_is_loading(model, monkeypatch):
    """In the same thread: it does not wait for itself."""
    import onnxruntime

    session, nested = onnxruntime.InferenceSession, []

    def interrupted(*args, **options):
        if not nested:
            nested.append(None)
            nested.append(model.run_one(X).tolist())
        return session(*args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", interrupted)
    assert model.run_one(X).tolist() == [[0, 2, 1]]
    assert nested[1] == [[0, 2, 1]]


# -------------------------------------------------------------------------------------------------------------- loading
def test_the_suffix_picks_the_runtime(tmp_path):
    """A path goes by its suffix; another suffix, or another thing, is refused with what is possible."""
    assert isinstance(load(tiny.linear(tmp_path / "m.onnx"), threads=2), OnnxModel)
    with pytest.raises(PolicyError, match=r"ends in .*\.onnx"):
        load("model.xyz")
    with pytest.raises(PolicyError, match="not int"):
        load(3)


def test_the_session_is_let_go_of_in_a_child(model):
    """What a forked child does first: the parent's session is set aside, never freed, and a run loads anew."""
    first = model.load()
    model.after_fork()
    assert model_file.UNFREED_SESSIONS[-1] is first
    assert model.run([X]).shape == (1, 3)
    model.after_fork()
    model.after_fork()  # of a child that never ran: nothing to set aside
