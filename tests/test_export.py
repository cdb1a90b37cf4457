"""Exports, without the servers that they are for: what is written, and that its programs do what the edge does."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import real_servers
import tiny
from commands import cli
from exports import EVIL, PICTURE, columns, jpeg, pictures
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeroute import BadInput, ModelError, OnnxModel, OpenInference, PolicyError
from edgeroute.edge.preprocessing import Picture
from edgeroute.http.messages_addresses_and_secrets import Reply
from edgeroute.tools.export.models_folders_and_templates import PROGRAMS, Subject, new_folder, server_name
from edgeroute.tools.export.programs.weighted_split import arm_of, checked_shares
from edgeroute.tools.export.triton_kserve_ray_exports import Batching, Cluster, object_name
from edgeroute.tools.export.triton_kserve_ray_exports import kserve as export_kserve
from edgeroute.tools.export.triton_kserve_ray_exports import ray as export_ray
from edgeroute.tools.export.triton_kserve_ray_exports import triton as export_triton

yaml = pytest.importorskip("yaml")
SKLEARN = Path(__file__).parent / "exported"


def program(name):
    """A program of the export, as it is where it runs: beside those that it imports."""
    if name not in sys.modules:
        sys.path.insert(0, str(PROGRAMS))
        try:
            spec = importlib.util.spec_from_file_location(name, PROGRAMS / f"{name}.py")
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(PROGRAMS))
    return sys.modules[name]


by_card, oip = program("by_card"), program("oip_messages")


@pytest.mark.parametrize("path", sorted(PROGRAMS.glob("*.py")), ids=lambda path: path.stem)
def test_programs_need_no_edgeroute(path):
    """They import what the server has, and each other."""
    tree = ast.parse(path.read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in names} - sys.stdlib_module_names
    servers = {"ray", "fastapi"} if path.stem == "ray_app" else {"triton_python_backend_utils"}
    assert roots <= {"numpy", "onnxruntime", "PIL", *(one.stem for one in PROGRAMS.glob("*.py")), *servers}


def card(layout="CHW", /, **preprocess):
    tensor = {"name": "image", "dtype": "float32", "shape": [-1, 3, 8, 8], **({"layout": layout} if layout else {})}
    return {"input": tensor, "preprocess": preprocess}


CARDS = {
    "as it is": {},
    "scaled": PICTURE,
    "colours in front": card(dtype="uint8", shape=[3, 8, 8], layout="CHW"),
    "one number": card(dtype="uint8", shape=[8, 8, 3], layout="HWC", scale=0.1, mean=3, std=7),
    "a row": card(None, dtype="float32", shape=[192], scale=2),
    "floats": card(None, dtype="float32", shape=[3, 8, 8], mean=[1, 2, 3], std=0.5),
    "to a length": card(dtype="uint8", shape=[8, 8, 3], layout="HWC", resize=[8, 8], filter="lanczos"),
}  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_an_exported_model_answers_as_the_edge_does(name, batch, tmp_path):
    """Bit for bit, whatever its card says and its batch axis is."""
    path = pictures(tmp_path / "model.onnx", CARDS[name], batch)
    export_triton([path], tmp_path / "out", names=["m"])
    there, here = by_card.Model(tmp_path / "out/m/1"), OnnxModel(path)
    here.load()
    rng = np.random.default_rng(0)
    spec = there.inputs[0]
    rows = [rng.integers(0, 255, spec["shape"]).astype(spec["dtype"]) for _ in range(5)]
    away = there.run({"image": np.stack(rows)})
    np.testing.assert_array_equal(away["logits"], here.run(rows))


def test_other_batch_axes_constants_several_inputs_and_texts(tmp_path):
    path = columns(tmp_path / "columns.onnx")
    export_triton([path, SKLEARN / "sk_texts.onnx"], tmp_path / "out", names=["columns", "texts"])
    there, here = by_card.Model(tmp_path / "out/columns/1"), OnnxModel(path)
    rows = [{"a": np.full(2, i, np.float32), "b": np.ones(2, np.float32)} for i in range(3)]
    feed = {name: np.stack([row[name] for row in rows]) for name in "ab"}
    np.testing.assert_array_equal(there.run(feed)["total"], here.run(rows))
    texts, model = by_card.Model(tmp_path / "out/texts/1"), OnnxModel(SKLEARN / "sk_texts.onnx")
    row = np.ones([1, *texts.inputs[0]["shape"]], texts.inputs[0]["dtype"])
    model.load()
    label = texts.run({texts.inputs[0]["name"]: row})[texts.names[0]]
    here = model.run([row[0]])
    assert list(label) == list(here[texts.names[0]] if isinstance(here, dict) else here)


def words(path):
    """word [n] -> number [n, 1]: 1 for "yes", 2 for "é", else 0."""
    value = helper.make_tensor_value_info
    encoder = helper.make_node(
        "LabelEncoder",
        ["word"],
        ["found"],
        domain="ai.onnx.ml",
        keys_strings=["yes", "é"],
        values_floats=[1.0, 2.0],
        default_float=0.0,
    )
    graph = helper.make_graph(
        [encoder], "words", [value("word", TensorProto.STRING, ["n", 1])], [value("found", TensorProto.FLOAT, ["n", 1])]
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    return path


def test_texts_go_in_as_bytes(tmp_path):
    """In binary and in JSON, as UTF-8, and to Triton as its strings."""
    export_triton([words(tmp_path / "words.onnx")], tmp_path / "out")
    model = by_card.Model(tmp_path / "out/words/1")
    texts = ["yes", "é", "no"]
    raw = b"".join(len(one.encode()).to_bytes(4, "little") + one.encode() for one in texts)
    tensor = {"name": "word", "datatype": "BYTES", "shape": [3, 1]}
    binary = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}]}).encode()
    plain = json.dumps({"inputs": [{**tensor, "data": texts}]}).encode()
    for body, length in ((binary + raw, str(len(binary))), (plain, None)):
        ask = oip.read(body, length, model.inputs, model.outputs)
        assert model.run(ask.feed)["found"].ravel().tolist() == [1, 2, 0]
    assert "data_type: TYPE_STRING" in (tmp_path / "out/words/config.pbtxt").read_text()


def test_a_model_without_a_batch_axis_has_rows_one_by_one(tmp_path):
    """And an input that the card leaves as the file has it."""
    path = tiny.two_inputs(tmp_path / "two.onnx")
    card = {"inputs": [{"name": name, "batch": "none"} for name in "ab"], "output": {"batch": "none"}}
    path.with_suffix(".json").write_text(json.dumps(card))
    export_triton([path], tmp_path / "out")
    model, here = by_card.Model(tmp_path / "out/two/1"), OnnxModel(path)
    rows = [{"a": np.full((3, 2), i, np.float32), "b": np.ones((3, 2), np.float32)} for i in range(4)]
    away = model.run({name: np.stack([row[name] for row in rows]) for name in "ab"})
    for name, array in here.run(rows).items():
        np.testing.assert_array_equal(away[name], array)


def test_a_request_that_fails_costs_no_other(tmp_path):
    """Requests of one shape run together; one of other rows or another shape is answered by itself."""
    export_triton([tiny.two_inputs(tmp_path / "two.onnx")], tmp_path / "out", names=["m"])
    model = by_card.Model(tmp_path / "out/m/1", most=3)
    ones = np.ones((2, 2), np.float32)
    found = model.run_many(
        [{"a": ones, "b": ones}, {"a": ones, "b": ones[:1]}, {"a": ones[:, :1], "b": ones}, {"a": 2 * ones, "b": ones}]
    )
    assert isinstance(found[1], by_card.BadInput)
    assert isinstance(found[2], dict | Exception)
    np.testing.assert_array_equal(found[0]["total"], 2 * ones)
    np.testing.assert_array_equal(found[3]["total"], 3 * ones)
    model.try_zeros()
    model.session = None  # as one that is broken, and not as a request is
    with pytest.raises(AttributeError):
        model.try_zeros()


@pytest.mark.parametrize("file", [
    jpeg((40, 20, 3)), jpeg((20, 41), format="PNG"), jpeg((8, 8, 3), format="WEBP"), jpeg((5, 5, 3)), b"", b"GIF89a", jpeg((8, 8, 4), format="PNG"),
    jpeg((12, 40, 3), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"),  # on its side
])  # fmt: skip
@pytest.mark.parametrize("picture", [
    Picture("x", 8, 8, 3, 10, (8, 8)), Picture("x", 8, 8, 1, (8, 8), None, "box"), Picture("x", -1, -1, 0), Picture("x", 8, 8, 4, None, (8, 8)),
])  # fmt: skip
def test_files_become_the_edges_arrays(file, picture):
    """Or are refused where the edge refuses them."""
    said = {**picture._asdict(), "resize": list(picture.resize) if isinstance(picture.resize, tuple) else picture.resize}
    try:
        here = picture(file)
    except BadInput:
        with pytest.raises(by_card.BadInput):
            by_card.decode(file, said)
    else:
        np.testing.assert_array_equal(by_card.decode(file, said), here)


def test_files_that_take_too_long_or_too_much_are_refused():
    """Before any is decoded, as the edge and `serve` refuse them."""
    sized, free = ({**Picture("x", size, size, 3)._asdict(), "resize": None} for size in (8, -1))
    good = jpeg((8, 8, 3))
    assert by_card.pictures(np.array([good] * 3, object), sized).shape == (3, 8, 8, 3)
    assert by_card.pictures(np.array([good], object), free).shape == (1, 8, 8, 3)
    for files, picture, said in (
        ([good] * 2, free, "2 pictures came: send 1 to 1"), ([], sized, "0 pictures"), ([good] * 1025, sized, "1025 pictures"),
        ([good[:-2] + b"\xff\xda\0\x02" * 101], sized, "more than 100 scans"),
    ):  # fmt: skip
        with pytest.raises(by_card.BadInput, match=said):
            by_card.pictures(np.array([*files, None], object)[:-1], picture)


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
def test_configurations_are_tritons_whatever_names_hold(backend, tmp_path):
    """By the definition of the format: no name, label or description ends its quotes."""
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    text_format = pytest.importorskip("google.protobuf.text_format")
    path = pictures(tmp_path / "evil.onnx")
    export_triton([path], tmp_path / "out", backend=backend, batching=Batching(8, 0.01, instances=2))
    name = server_name(EVIL)
    assert name == "doors-x-evil-a"
    found = {}
    for file in (tmp_path / "out").glob("*/config.pbtxt"):
        found[file.parent.name] = text_format.Parse(file.read_text(), config.ModelConfig())
        assert found[file.parent.name].name == file.parent.name
        assert (file.parent / "1").is_dir()
    wanted = {name, f"{name}-decode", f"{name}-encoded"} | (
        {f"{name}-onnx", f"{name}-prepare"} if backend == "onnxruntime" else set()
    )
    assert set(found) == wanted
    said = {key: one.string_value for key, one in found[name].parameters.items()}
    assert (said["name"], said["description"], json.loads(said["labels"])) == (EVIL, PICTURE["description"], PICTURE["labels"])
    runs = found[f"{name}-onnx" if backend == "onnxruntime" else name]
    assert list(runs.dynamic_batching.preferred_batch_size) == [2, 4, 8]
    assert runs.dynamic_batching.max_queue_delay_microseconds == 10_000
    assert runs.instance_group[0].count == 2
    tensor = runs.input[0]
    shape = (config.TYPE_FP32, [3, 8, 8]) if backend == "onnxruntime" else (config.TYPE_UINT8, [8, 8, 3])
    assert (tensor.data_type, list(tensor.dims)) == shape
    steps = found[f"{name}-encoded"].ensemble_scheduling.step
    last = name if backend == "python" else f"{name}-onnx"
    assert [step.model_name for step in steps] == [f"{name}-decode", *([f"{name}-prepare"] if backend != "python" else []), last]
    for before, after in itertools.pairwise(steps):
        assert set(after.input_map.values()) == set(before.output_map.values())
    assert (tmp_path / "out" / runs.name / "labels.txt").read_text().splitlines() == ["a b", 'c"} ', "é", "d: - x"]


def test_tritons_own_backend_has_the_files_tensors(tmp_path):
    """What is prepared in front of it is the tensor of the file; a fixed batch is not batched, and what needs a program is refused."""
    path = pictures(tmp_path / "m.onnx", batch=1)
    export_triton([path], tmp_path / "out", backend="onnxruntime", names=["m"])
    assert "max_batch_size: 0" in (tmp_path / "out/m-onnx/config.pbtxt").read_text()
    assert "dims: [1, 3, 8, 8]" in (tmp_path / "out/m-onnx/config.pbtxt").read_text()
    said = by_card.Description(tmp_path / "out/m-prepare/1")
    x, here = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8), OnnxModel(path)
    here.load()
    np.testing.assert_array_equal(by_card.tensor(x, said.inputs[0]), here.feed([x[0]])["image"])
    with pytest.raises(PolicyError, match="--backend python"):
        export_triton([columns(tmp_path / "c.onnx")], tmp_path / "other", backend="onnxruntime")


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    """A new folder, an empty one, or an earlier export with `force`; nothing else, and never half of it."""
    one, two = tiny.linear(tmp_path / "one.onnx"), tiny.linear(tmp_path / "two.onnx", size=5)
    out = tmp_path / "out"
    out.mkdir()
    export_triton([one], out)
    with pytest.raises(PolicyError, match="--force"):
        export_triton([two], out)
    export_triton([two], out, force=True)
    assert {path.name for path in out.iterdir()} == {"two", "Dockerfile", "edgeroute-export.json"}
    for force in (False, True):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine/thing").write_text("mine")
        with pytest.raises(PolicyError, match="no export of edgeroute"):
            export_triton([one], tmp_path / "mine", force=force)
        with pytest.raises(PolicyError, match="no folder"):
            export_triton([one], tmp_path / "mine/thing", force=force)
        (tmp_path / f"link{force}").symlink_to(out)
        with pytest.raises(PolicyError, match="link"):
            export_triton([one], tmp_path / f"link{force}", force=force)
    export = contextlib.ExitStack()
    folder = export.enter_context(new_folder(out, "triton", [], force=True))
    (folder / "half").write_text("half")
    assert not export.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert (out / "two").exists()
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of files are POSIX's")
def test_a_full_disk_leaves_nothing(tmp_path):
    """Where a file cannot be written to its end, there is no export, and one line says why."""
    path = tiny.linear(tmp_path / "m.onnx", size=20_000)
    limit = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); runpy.run_module('edgeroute', run_name='__main__')"
    argv = [sys.executable, "-c", limit, "export", "triton", path, "-o", tmp_path / "out"]
    done = subprocess.run(list(map(str, argv)), check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert {one.name for one in tmp_path.iterdir()} == {"m.onnx"}


def test_a_killed_export_is_none(tmp_path):
    """Killed with all its files written, it has put nothing in its place, and the next one is whole."""
    path = tiny.linear(tmp_path / "m.onnx")
    hang = (
        "import sys, time, edgeroute.tools.export.models_folders_and_templates as f; from edgeroute.tools.export.triton_kserve_ray_exports import triton\n"
        "f._sync = lambda folder: (print(folder, flush=True), time.sleep(600))\n"  # private: the moment before the rename
        "triton([sys.argv[1]], sys.argv[2])"
    )
    argv = [sys.executable, "-c", hang, str(path), str(tmp_path / "out")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        half = Path(process.stdout.readline().strip())
        process.kill()
    assert half.name.startswith(".out.")
    assert (half / "m/1/model.py").exists()
    assert not (tmp_path / "out").exists()
    export_triton([path], tmp_path / "out")
    assert by_card.Model(tmp_path / "out/m/1").names == ["logits"]


def test_models_that_are_not_exported(tmp_path):
    """Each with what to do, and without a trace."""
    path = pictures(tmp_path / "m.onnx")
    other = {**PICTURE, "sha256": "0" * 64}
    cases = [
        (other, "not the expected model"),
        ({"input": {"name": "images", "dtype": "float32", "shape": [-1, 3, 8, 8]}}, "describes the input 'images'"),
        ({**PICTURE, "labels": ["\ud800", "b", "c", "d"]}, "no Unicode"),
        ({**PICTURE, "name": "\ud800"}, "no Unicode"),
        ({"state": [{"input": "image", "output": "logits"}]}, "state"),
    ]
    for data, why in cases:
        path.with_suffix(".json").write_text(json.dumps(data))
        with pytest.raises(ModelError, match=why):
            export_triton([path], tmp_path / "out")
    path.with_suffix(".json").unlink()
    for name in ("../up", ".", "a/b", "", "a b", "x" * 64):
        with pytest.raises(PolicyError, match="no name for a server"):
            export_triton([path], tmp_path / "out", names=[name])
    with pytest.raises(PolicyError, match="would be called m"):
        export_triton([path, path], tmp_path / "out")
    path.with_suffix(".json").write_text(json.dumps(PICTURE))
    with pytest.raises(PolicyError, match="part called m-encoded"):
        export_triton([path, path], tmp_path / "out", names=["m", "m-encoded"])
    with pytest.raises(ModelError, match="ZipMap"):
        export_triton([SKLEARN / "sk_zipmap.onnx"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_weights_beside_the_model_go_along(tmp_path):
    path = tiny.linear(tmp_path / "in/m.onnx" if (tmp_path / "in").mkdir() is None else None, size=400)
    x = np.random.default_rng(0).normal(size=(3, 400)).astype(np.float32)
    here = OnnxModel(path).run(list(x))
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    for export, at in ((export_triton, "m/1"), (export_ray, "models/m")):
        export([path], tmp_path / export.__name__)
        there = by_card.Model(tmp_path / export.__name__ / at).run({"x": x})["logits"]
        np.testing.assert_allclose(there, here, rtol=1e-5, atol=1e-4)  # sums of 400 in float32, of weights that lie elsewhere
    (tmp_path / "in/w.bin").unlink()
    with pytest.raises(ModelError):
        export_triton([path], tmp_path / "out")


@pytest.mark.parametrize("binary", [True, False])
def test_the_protocol_of_the_ray_application_is_the_clients(binary, fashion, tmp_path):
    """What `OpenInference` sends is read, and what is written it decodes."""
    export_ray([fashion / "cloud.onnx"], tmp_path / "out", names=["m"])
    folder = tmp_path / "out/models/m"
    model = by_card.Model(folder)
    endpoint = OpenInference("http://127.0.0.1:1/v2/models/m", card=folder / "client.json", binary=binary)
    about = model.metadata("m")
    endpoint.recall({"inputs": [[t["name"], "uint8", t["shape"]] for t in about["inputs"]], "binary": binary})
    images = list(np.load(fashion / "sample.npz")["images"][:3])
    call = endpoint.encode(images)
    headers = {key.lower(): value for key, value in call.headers}
    ask = oip.read(call.body, headers.get(oip.LENGTH), model.inputs, model.outputs)
    np.testing.assert_array_equal(ask.feed["image"], images)
    found = model.run(ask.feed)
    told, body = oip.write(ask, found, "m")
    decoded = endpoint.decode(Reply(200, told, body), 3)
    np.testing.assert_array_equal(decoded, found[about["outputs"][0]["name"]])
    np.testing.assert_allclose(decoded, OnnxModel(fashion / "cloud.onnx").run(images), rtol=1e-5, atol=1e-4)  # in float32
    assert endpoint.labels == OnnxModel(fashion / "cloud.onnx").labels


def met(endpoint, platform="", parameters=None, config=b"", status=503):
    """Pings a server that says this of its model, and gives requests that status -> the paths by which its model was met."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    about = {"name": "m", "platform": platform, "inputs": [tensor], "outputs": [tensor], "parameters": parameters}
    replies = {"ready": Reply(200, {}, b""), "config": Reply(200, {}, config), "infer": Reply(status, {}, b"{}")}
    talk, asked = endpoint.ping(), []
    try:
        call = next(talk)
        while True:
            asked.append(call.path)
            call = talk.send(replies.get(call.path.rpartition("/")[2], Reply(200, {}, json.dumps(about).encode())))
    except StopIteration:
        return [path for path in asked if not path.endswith(("/ready", "/infer"))]


def test_labels_that_the_server_has():
    """In the metadata's parameters, or in Triton's configuration; kept with the metadata; nonsense is none."""
    where = "http://127.0.0.1:1/v2/models/m"
    endpoint = OpenInference(where)
    assert met(endpoint, "mlserver", {"labels": ["a", "b"]}, b"") == ["/v2/models/m"]
    assert endpoint.served_labels == ("a", "b")
    again = OpenInference(where)
    again.recall(json.loads(json.dumps(endpoint.known)))
    assert again.served_labels == ("a", "b")
    config = json.dumps({"parameters": {"labels": {"string_value": '["a", 2]'}}}).encode()
    triton = OpenInference(where)
    assert met(triton, "python", None, config) == ["/v2/models/m", "/v2/models/m/config"]
    assert triton.served_labels == ("a", 2)
    given_by_user = OpenInference(where, labels=["c", "d"])
    met(given_by_user, "python", None, config)
    assert given_by_user.labels == ("c", "d")
    for nonsense in ([], [None], [["a"]], "a", {"a": 1}, ["a" * 1001], ["a"] * 100_001, {"string_value": "["}, 7):
        met(endpoint, "", {"labels": nonsense}, b"")
        assert endpoint.served_labels is None
    for nonsense in (b"", b"[", b"[]", b"{}", b'{"parameters": []}'):
        met(triton, "python", None, nonsense)
        assert triton.served_labels is None


def test_a_busy_server_is_not_taken_for_one_of_json():
    """A fleet that meets an overloaded server would send it JSON for good."""
    endpoint = OpenInference("http://127.0.0.1:1/v2/models/m")
    for status, binary in ((503, None), (429, None), (503, None), (400, False)):
        met(endpoint, status=status)
        assert endpoint.binary is binary


INPUTS = [
    {"name": "x", "dtype": "uint8", "shape": [2, -1], "picture": None},
    {"name": "p", "dtype": "uint8", "shape": [2], "picture": {}},
]
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "p", "", "z"]) | st.none(), "datatype": st.sampled_from(["UINT8", "BYTES", "FP32"]) | st.integers(),
        "shape": st.lists(st.integers(-1, 3), max_size=3) | st.text(max_size=2) | st.just([10**30]), "data": st.lists(st.integers(-1, 300) | st.text(max_size=2), max_size=4),
        "parameters": st.none() | st.dictionaries(st.sampled_from(["binary_data_size", "content_type"]), st.integers(-1, 9) | st.just("base64"), max_size=2),
    },
)  # fmt: skip


@given(
    st.lists(tensors, max_size=3) | st.integers(), st.binary(max_size=12), st.sampled_from([None, "0", "-1", "9" * 30, "x", ""]) | st.just("right"),
)  # fmt: skip
def test_what_is_no_request_is_the_callers_fault(given_inputs, tail, length):
    body = json.dumps({"inputs": given_inputs}).encode()
    told = str(len(body)) if length == "right" else length
    try:
        ask = oip.read(body + tail, told, INPUTS, [{"name": "y"}])
    except by_card.BadInput:
        return
    assert set(ask.feed) == {"x", "p"}


def test_arms_are_stable_and_grow():
    """A key has one arm; whoever is in a canary stays in it while its share grows; shares come out."""
    keys = [str(i).encode() for i in range(4000)]
    before = {key for key in keys if arm_of("m", {"new": 0.05, "old": 0.95}, key) == "new"}
    after = {key for key in keys if arm_of("m", {"new": 0.5, "old": 0.5}, key) == "new"}
    assert before < after
    assert len(before) == pytest.approx(200, abs=60)
    three = [arm_of("m", {"a": 0.2, "b": 0.3, "c": 0.5}, key) for key in keys]
    assert [three.count(arm) for arm in "abc"] == pytest.approx([800, 1200, 2000], abs=150)
    assert {arm_of("m", {"new": 0.0, "old": 1.0}, key) for key in keys} == {"old"}
    assert after != {key for key in keys if arm_of("other", {"new": 0.5, "old": 0.5}, key) == "new"}
    for splits in ({"m": {"a": 0.5}}, {"m": {"a": -1, "b": 2}}, {"m": {"a": float("nan")}}, {"m": {"z": 1}}):
        with pytest.raises(ValueError, match="splits"):
            checked_shares(splits, {"a": 0, "b": 0})


def test_the_ray_application_says_what_was_asked_for(fashion, tmp_path):
    models = [fashion / "cloud.onnx", fashion / "edge.int8.onnx"]
    export_ray(
        models,
        tmp_path / "out",
        replicas=(1, 3),
        max_batch=8,
        models_per_replica=1,
        splits={"fashion": {"fashion-edge": 0.1, "fashion-large": 0.9}},
    )
    copied = {file.stem for file in (tmp_path / "out").glob("*.py")}
    assert copied == {"app", "by_card", "oip_messages", "weighted_split"}, "all that the application imports"
    config = yaml.safe_load((tmp_path / "out/serve.yaml").read_text())
    (application,) = config["applications"]
    ingress, served = application["deployments"]
    assert application["args"] == {
        "models": ["fashion-large", "fashion-edge"],
        "max_batch": 8,
        "wait_s": 0.002,
        "models_per_replica": 1,
    }
    assert ingress["user_config"]["splits"] == {"fashion": {"fashion-edge": 0.1, "fashion-large": 0.9}}
    scaling = served["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 3)
    assert ingress["max_ongoing_requests"] * ingress["num_replicas"] > 3 * scaling["target_ongoing_requests"]
    assert config["http_options"]["host"] == "127.0.0.1"
    other = tiny.linear(tmp_path / "other.onnx")
    with pytest.raises(PolicyError, match="differ in inputs, outputs or labels"):
        export_ray([models[0], other], tmp_path / "no", splits={"m": {"fashion-large": 0.5, "other": 0.5}})
    with pytest.raises(PolicyError, match="do not add up"):
        export_ray(models, tmp_path / "no", splits={"m": {"fashion-large": 0.5}})


@pytest.mark.parametrize("storage", [None, "s3://models/doors"])
def test_objects_of_kubernetes_are_valid(storage, tmp_path):
    """By the JSON schemas of Kubernetes; KServe's own by the fields that it has; names and memory fit."""
    validate = pytest.importorskip("kubernetes_validate").validate
    path = pictures(tmp_path / "m.onnx")
    export_kserve([path], tmp_path / "out", cluster=Cluster("reg.example/models/doors:1", gpu=1), storage=storage)
    objects = list(yaml.safe_load_all((tmp_path / "out/kubernetes.yaml").read_text()))
    assert [one["kind"] for one in objects] == ["Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"]
    for one in objects:
        validate(one, "1.30", strict=True)
    runtime, service = yaml.safe_load_all((tmp_path / "out/kserve.yaml").read_text())
    spec = runtime["spec"]
    validate(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x"},
            "spec": {key: spec[key] for key in ("containers", "volumes")},
        },
        "1.30",
        strict=True,
    )
    assert set(spec) == {"annotations", "supportedModelFormats", "protocolVersions", "containers", "volumes"}
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model.get("storageUri") == storage
    assert f"--model-repository={'/models' if storage is None else '/mnt/models'}" in spec["containers"][0]["args"]
    assert service["metadata"]["name"] == object_name(server_name(EVIL))
    assert (tmp_path / "out/repository" / server_name(EVIL) / "config.pbtxt").is_file()
    for bad in ("", "a b", "x\ny", "-x"):
        with pytest.raises(PolicyError, match="image"):
            export_kserve([path], tmp_path / "no", cluster=Cluster(bad))


@pytest.mark.parametrize(
    "given",
    [
        {"storage": "s3://user:hunter2@host/models"},
        {"storage": "s3://key:with/hunter2@host/models"},
        {"storage": "https://host/models?sig=hunter2"},
        {"storage": "https://host/models#hunter2"},
        {"storage": "s3:user:hunter2"},
        {"storage": "hunter2"},
        {"cluster": Cluster("user:hunter2@reg.example/doors:1")},
        {"cluster": Cluster("reg.example/doors@hunter2")},
    ],
)
def test_a_secret_in_an_address_is_refused_unquoted(given, tmp_path):
    """Nothing is written: the YAML of a cluster is read by many."""
    with pytest.raises(PolicyError, match=r"address|image") as error:
        export_kserve([tmp_path / "m.onnx"], tmp_path / "out", **{"cluster": Cluster("reg.example/doors:1"), **given})
    assert "hunter2" not in str(error.value)


def test_an_image_may_be_named_by_its_digest():
    Cluster(f"reg.example:5000/models/doors:1@sha256:{'0a' * 32}").check()


@pytest.mark.matrix
def test_kserve_knows_the_fields_of_its_objects(tmp_path):
    """By the classes of its SDK, down to those of Kubernetes."""
    home = real_servers.ENVIRONMENTS / "kserve"
    if not (home / "made").exists():
        pytest.skip("no environment for kserve: make server-kserve")
    export_kserve(
        [pictures(tmp_path / "m.onnx")], tmp_path / "out", cluster=Cluster("reg.example/x:1"), storage="s3://models/doors"
    )
    argv = [home / "bin/python", real_servers.HERE / "kserve_fields.py", tmp_path / "out/kserve.yaml"]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=120, env=real_servers.environment())
    assert (done.returncode, done.stdout.strip()) == (0, "2 objects []"), done.stderr


def test_memory_follows_the_weights(tmp_path, monkeypatch):
    one = Subject(tiny.linear(tmp_path / "m.onnx"))
    from edgeroute.tools.export.triton_kserve_ray_exports import BESIDE, memory_of

    monkeypatch.setattr(one, "files", lambda _: [(tmp_path / "m.onnx", None)] * 3)
    size = (tmp_path / "m.onnx").stat().st_size
    assert BESIDE <= memory_of([one], Batching(instances=1)) <= BESIDE + 6 * size + (1 << 20)


def test_commands(tmp_path, fashion):
    """Each in a line; the same in JSON; mistakes are usage."""
    model = fashion / "cloud.onnx"
    code, out, err = cli("export", "triton", model, "-o", tmp_path / "t", "--name", "shoes", "--max-batch", "8", "--wait", "5ms")
    assert (code, err) == (0, "")
    assert out.rstrip().endswith("as shoes")
    code, out, err = cli(
        "export",
        "ray",
        model,
        fashion / "edge.int8.onnx",
        "-o",
        tmp_path / "r",
        "--replicas",
        "1-3",
        "--split",
        "f=fashion-edge:5%,fashion-large:95%",
        "--json",
    )
    assert (code, [one["name"] for one in json.loads(out)["models"]]) == (0, ["fashion-large", "fashion-edge"]), err
    code, out, err = cli("export", "kserve", model, "-o", tmp_path / "k", "--image", "reg.example/f:1", "--gpu", "1")
    assert code == 0, err
    assert "KIND_GPU" in (tmp_path / "k/repository/fashion-large/config.pbtxt").read_text()
    assert "FROM ${BASE}\n" in (tmp_path / "k/repository/Dockerfile").read_text()
    assert "onnxruntime-gpu pillow" in (tmp_path / "k/repository/Dockerfile").read_text()
    for args in (
        ["triton", model, "-o", tmp_path / "t"], ["triton", tmp_path / "nothing.onnx", "-o", tmp_path / "n"],
        ["ray", model, "-o", tmp_path / "n", "--replicas", "4-1"], ["ray", model, "-o", tmp_path / "n", "--split", "a"],
        ["triton", fashion / "edge.int8.tflite", "-o", tmp_path / "n"],
    ):  # fmt: skip
        code, _, err = cli("export", *args)
        assert code == 2
        assert "Traceback" not in err
    assert not (tmp_path / "n").exists()
