"""Execution providers of ONNX Runtime: names, options, what runs where, and downgrades.

What needs a provider that this onnxruntime lacks is skipped. OpenVINO runs on any x86 CPU, in an environment of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tiny
from onnx import TensorProto, helper, numpy_helper

from edgeroute import ModelError, OnnxModel, PolicyError, Router, models
from edgeroute.edge.onnx import open_session
from edgeroute.edge.onnx_provider_options import CPU, KINDS, Provider, parse_providers, schema
from edgeroute.testing import edge_contract

ort = pytest.importorskip("onnxruntime")
EXPORTED = Path(__file__).parent / "exported"
OPENVINO = "OpenVINOExecutionProvider"


def openvino(test):
    """Marks a test as one that runs on OpenVINO."""
    there = OPENVINO in ort.get_available_providers()
    return pytest.mark.matrix(pytest.mark.skipif(not there, reason="this onnxruntime has no OpenVINO")(test))


@pytest.fixture
def model(tmp_path):
    return tiny.linear(tmp_path / "m.onnx")


@pytest.fixture
def fashion():
    return models.fashion().edge


def from_text(path: Path, *nodes) -> Path:
    """A model that begins with an operator that OpenVINO has not: x, text [n, 2] -> e -> ... -> y [n, 2]; w is a matrix."""
    encode = helper.make_node(
        "LabelEncoder", ["x"], ["e"], domain="ai.onnx.ml", keys_strings=["a", "b"], values_floats=[1.0, 2.0], default_float=0.0
    )
    graph = helper.make_graph(
        [encode, *nodes],
        "text",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["n", 2])],
        [helper.make_tensor_value_info("y" if nodes else "e", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(np.eye(2, dtype=np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


# ----------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("cpu", [CPU]),
        (["cpu"], [CPU]),
        (["CPUExecutionProvider"], [CPU]),
        (["tensorrt", "cuda", "cpu"], ["TensorrtExecutionProvider", "CUDAExecutionProvider", CPU]),
        ({"name": "qnn"}, ["QNNExecutionProvider"]),
        (("tensorrt", {"fp16": True}), ["TensorrtExecutionProvider"]),
        ([("tensorrt", {"fp16": True}), {"name": "cpu"}], ["TensorrtExecutionProvider", CPU]),
        (["AcmeExecutionProvider"], ["AcmeExecutionProvider"]),
        ([Provider(CPU)], [CPU]),
    ],
)
def test_names(given, names):
    """A name, a table or a pair, one or several; ONNX Runtime's own names too, and those of providers that edgeroute has not."""
    assert [one.name for one in parse_providers(given)] == names


def test_a_model_takes_what_another_one_has(model):
    """What was parsed is taken as it is."""
    one = OnnxModel(model, providers=[("openvino", {"precision": "fp32"}), "cpu"])
    assert OnnxModel(model, providers=one.providers).providers == one.providers


@pytest.mark.parametrize("given", [None, 3, 1.5, object])
def test_providers_that_are_no_list(model, given):
    with pytest.raises(PolicyError, match=r'providers are a list of names, as in \["cpu"\], not'):
        parse_providers(given)
    with pytest.raises(PolicyError, match=r"^providers: "):
        OnnxModel(model, providers=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "at least one provider"),
        (["cdua"], 'no provider "cdua": did you mean "cuda"'),
        (["TensorRT"], 'did you mean "tensorrt"'),
        (["CudaExecutionProvider"], 'did you mean "CUDAExecutionProvider"'),
        (["cpu", "cpu"], "CPUExecutionProvider is there twice"),
        (["cpu", "CPUExecutionProvider"], "is there twice"),
        ([7], "a provider is a name"),
        ([{"fp16": True}], "a provider is a name"),
        ([("tensorrt", {"fp61": True})], 'tensorrt has no option "fp61": did you mean "fp16"'),
        ([("tensorrt", {"fp16": "yes"})], "tensorrt: fp16: expected true or false, found 'yes'"),
        ([("tensorrt", {"fp16": 1})], "true or false"),
        ([("tensorrt", {"device": -1})], "tensorrt: device: expected a whole number"),
        ([("tensorrt", {"engine_cache": ""})], "the path of a folder"),
        ([("openvino", {"precision": "fp61"})], "openvino: precision: found 'fp61': did you mean \"fp16\""),
        ([("openvino", {"precision": ["fp16"]})], "openvino: precision: found"),
        ([("openvino", {"device": 0})], "openvino: device: expected text"),
        ([("cpu", {"fp16": True})], 'cpu has no option "fp16"'),
        ([("cpu", {"options": 1})], "options is a table of ONNX Runtime's own options"),
        ([("CUDAExecutionProvider", {"use_tf32": None})], "use_tf32: expected text, a number, true or false"),
    ],
)
def test_what_is_no_provider(model, given, message):
    """It is refused when the model is made, with the nearest that is one."""
    with pytest.raises(PolicyError, match=r"^providers: ") as e:
        OnnxModel(model, providers=given)
    assert message in str(e.value)
    assert "\n" not in str(e.value)


# --------------------------------------------------------------------------------------------------------------- options
def asked(*given):
    return dict(one.native(1) for one in parse_providers(given))


def test_options_are_those_of_onnx_runtime(tmp_path):
    """By the names that its documentation has: checked here as texts, since most of these providers run on other hardware."""
    assert asked({"name": "tensorrt", "fp16": True, "int8": False, "engine_cache": tmp_path, "device": 1}) == {
        "TensorrtExecutionProvider": {
            "trt_fp16_enable": "1", "trt_int8_enable": "0", "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(tmp_path), "device_id": "1",
        }
    }  # fmt: skip
    assert asked(("cuda", {"tf32": False})) == {"CUDAExecutionProvider": {"use_tf32": "0"}}
    assert asked(("openvino", {"device": "gpu.1", "precision": "fp16", "engine_cache": "c"})) == {
        OPENVINO: {"device_type": "GPU.1", "precision": "FP16", "cache_dir": "c", "num_of_threads": "1"}
    }
    assert asked(("coreml", {"compute_units": "cpu_and_ne", "format": "mlprogram", "static_shapes": True})) == {
        "CoreMLExecutionProvider": {
            "MLComputeUnits": "CPUAndNeuralEngine", "ModelFormat": "MLProgram", "RequireStaticInputShapes": "1",
        }
    }  # fmt: skip
    assert asked(("qnn", {"backend": "htp", "fp16": True, "performance": "burst"})) == {
        "QNNExecutionProvider": {"backend_type": "htp", "enable_htp_fp16_precision": "1", "htp_performance_mode": "burst"}
    }
    assert asked("nnapi", "cpu") == {"NnapiExecutionProvider": {}, CPU: {}}


def test_threads_are_the_models_unless_the_provider_has_its_own():
    """Providers with threads of their own get the model's number, which onnxruntime does not tell them."""
    assert parse_providers("xnnpack")[0].native(3)[1] == {"intra_op_num_threads": "3"}
    assert parse_providers(("xnnpack", {"threads": 2}))[0].native(3)[1] == {"intra_op_num_threads": "2"}
    assert parse_providers(("openvino", {"options": {"num_of_threads": 4}}))[0].native(3)[1] == {"num_of_threads": "4"}
    assert parse_providers("OpenVINOExecutionProvider")[0].native(3)[1] == {"num_of_threads": "3"}


def test_options_by_their_own_names():
    """In `options` under a short name; directly under a full name. They are passed on, and count."""
    one = parse_providers(("tensorrt", {"fp16": True, "options": {"trt_max_workspace_size": 2**30, "trt_dla_enable": True}}))[0]
    assert one.options == {"trt_fp16_enable": "1", "trt_max_workspace_size": str(2**30), "trt_dla_enable": "1"}
    two = parse_providers(("TensorrtExecutionProvider", one.options))[0]
    assert two.options == one.options
    assert two.output_options == one.options


def test_what_changes_outputs_is_in_the_fingerprint(model):
    """Precision and device do; the cache's folder, threads and the GPU's number do not."""

    def settings(*given):
        return OnnxModel(model, providers=given).settings["providers"]

    assert settings("cpu") == [CPU]
    assert settings(("tensorrt", {"engine_cache": "a", "device": 1}), "cpu") == settings("tensorrt", "cpu")
    assert settings(("tensorrt", {"fp16": True})) != settings("tensorrt")
    assert settings(("tensorrt", {"fp16": True})) != settings(("tensorrt", {"int8": True}))
    assert settings(("openvino", {"precision": "fp16"})) != settings(("openvino", {"precision": "fp32"}))
    assert settings(("openvino", {"threads": 2})) == settings("openvino")
    assert settings(("qnn", {"options": {"soc_model": "60"}})) != settings("qnn")


def test_the_schema_has_every_option():
    """What an editor proposes for a provider is what is taken."""
    jsonschema = schema()["items"]["anyOf"]
    tables = {
        one["properties"]["name"]["const"]: one for one in jsonschema if "const" in one.get("properties", {}).get("name", {})
    }
    assert {short: {*table["properties"]} for short, table in tables.items()} == {
        short: {"name", "options", *kind.options} for short, kind in KINDS.items()
    }
    json.dumps(schema())


def test_a_policy_has_tables(tmp_path, model):
    """Relative folders start from the policy's."""
    (tmp_path / "p.toml").write_text(
        '[edge]\npath = "m.onnx"\non_downgrade = "record"\n'
        'providers = [{ name = "tensorrt", fp16 = true, engine_cache = "engines" }, "cpu"]\n'
    )
    with Router.from_policy(tmp_path / "p.toml") as router:
        made = router.engine.snapshot.backends[0].model
        assert made.providers[0].options["trt_engine_cache_path"] == str(tmp_path / "engines")
        assert "asked for TensorrtExecutionProvider, CPUExecutionProvider, running on CPUExecutionProvider" in str(router.check())


# ----------------------------------------------------------------------------------- what a session is opened with: a fake
class Fake:
    """No onnxruntime, but what `open_session` calls of it: it records what it is asked for, and can refuse or leave out providers."""

    def __init__(self, *there, refuses=(), leaves_out=(), nodes=None):
        self.there, self.refuses, self.leaves_out, self.nodes, self.asked = [*there], refuses, leaves_out, nodes, []

    def get_available_providers(self):  # noqa: D102 - onnxruntime's
        return self.there

    def SessionOptions(self):  # noqa: D102, N802 - onnxruntime's
        return SimpleNamespace(add_session_config_entry=lambda key, value: None)

    def InferenceSession(self, path, options, providers, enable_fallback):  # noqa: D102, N802 - onnxruntime's
        self.asked.append(providers)
        assert enable_fallback == 0
        if any(name in self.refuses for name, _ in providers):
            raise RuntimeError("cannot\ncompile")
        running = [name for name, _ in providers if name not in self.leaves_out]
        session = SimpleNamespace(get_providers=lambda: [*running, *([] if CPU in running else [CPU])])
        if self.nodes is not None:
            parts = [
                SimpleNamespace(ep_name=name, get_nodes=lambda n=n: [SimpleNamespace(name="", op_type=f"Op{n}")] * n)
                for name, n in self.nodes.items()
            ]
            session.get_provider_graph_assignment_info = lambda: parts
        return session


TRT, CUDA = "TensorrtExecutionProvider", "CUDAExecutionProvider"
JETSON = parse_providers([("tensorrt", {"fp16": True}), "cuda", "cpu"])


def test_the_engine_cache_is_made_and_passed(tmp_path):
    """With its parents; one that cannot be made is said."""
    ort = Fake(TRT, CPU, nodes={TRT: 3})
    providers = parse_providers([("tensorrt", {"engine_cache": tmp_path / "a" / "b"})])
    open_session(ort, Path("m"), providers, threads=1, strict=True)
    assert (tmp_path / "a" / "b").is_dir()
    assert ort.asked == [[(TRT, {"trt_engine_cache_path": str(tmp_path / "a" / "b"), "trt_engine_cache_enable": "1"})]]
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"the folder for what a provider compiles, .*file.x, cannot be made"):
        open_session(
            ort, Path("m"), parse_providers([("tensorrt", {"engine_cache": tmp_path / "file" / "x"})]), threads=1, strict=False
        )


def test_as_asked():
    """The first takes nodes, whatever the others take: no downgrade."""
    made = open_session(Fake(TRT, CUDA, CPU, nodes={TRT: 5, CPU: 2}), Path("m"), JETSON, threads=1, strict=True)
    assert made.downgraded is None
    assert made.placement() == f"5 of 7 nodes on {TRT}, 2 on {CPU} (Op2)"


@pytest.mark.parametrize(
    ("fake", "text", "used"),
    [
        (Fake(CUDA, CPU, nodes={CUDA: 5}), f"asked for {TRT}, {CUDA}, {CPU}, running on {CUDA}, {CPU}", [CUDA]),
        (Fake(TRT, CUDA, CPU, leaves_out=[TRT], nodes={CPU: 5}), f"running on {CUDA}, {CPU}", [CPU]),
        (
            Fake(TRT, CUDA, CPU, nodes={CUDA: 4, CPU: 1}),
            f"{TRT} takes none of the 5 nodes: running on {CUDA}, {CPU}",
            [CUDA, CPU],
        ),
        (Fake(TRT, CUDA, CPU, refuses=[TRT], nodes={CUDA: 5}), f"running on {CUDA}, {CPU}", [CUDA]),
        (Fake(TRT, CUDA, CPU, refuses=[TRT, CUDA]), f"running on {CPU}", [CPU]),
        (Fake(CPU), f"running on {CPU}", [CPU]),
    ],
)
def test_downgrades(fake, text, used):
    """Not in the build, not loaded, without a node, or unable to run the model: an error, or recorded with what is left."""
    with pytest.raises(ModelError) as e:
        open_session(fake, Path("m"), JETSON, threads=1, strict=True)
    assert "\n" not in str(e.value)
    made = open_session(fake, Path("m"), JETSON, threads=1, strict=False)
    assert text in made.downgraded
    assert [one.name for one in made.used(JETSON)] == used


def test_a_model_that_nothing_can_load():
    """With a downgrade allowed too: the error is that of the CPU."""
    with pytest.raises(ModelError, match=r"cannot load m: cannot$"):
        open_session(Fake(TRT, CPU, refuses=[TRT, CPU]), Path("m"), parse_providers(["tensorrt", "cpu"]), threads=1, strict=False)


def test_an_onnxruntime_that_does_not_say_where_nodes_run():
    """Before 1.24: what is loaded counts, and `check` says that the rest is not known."""
    made = open_session(Fake(TRT, CUDA, CPU), Path("m"), JETSON, threads=1, strict=True)
    assert made.downgraded is None
    assert "from 1.24 on" in made.placement()
    assert made.used(JETSON) == [*JETSON]


# ------------------------------------------------------------------------------------------------------- on the real thing
def test_cpu_alone_says_no_more_than_before(model):
    """No placement where nothing but the CPU was asked for."""
    edge = OnnxModel(model)
    with Router(edge=edge) as router:
        assert "node" not in str(router.check())


def test_a_full_name_that_nobody_has(model):
    """It is asked for, and the error lists what there is."""
    with pytest.raises(ModelError, match=r"AcmeExecutionProvider is not in this onnxruntime, which has .*CPUExecutionProvider"):
        OnnxModel(model, providers="AcmeExecutionProvider").load()


@openvino
def test_openvino_runs_the_shipped_model(fashion):
    """Every node is its own, and its answers are those of the CPU provider."""
    x = np.random.default_rng(0).integers(0, 256, (50, 28, 28)).astype(np.uint8)
    edge, cpu = OnnxModel(fashion, providers=[("openvino", {"precision": "fp32"}), "cpu"]), OnnxModel(fashion)
    with Router(edge=edge) as router:
        assert f"38 of 38 nodes on {OPENVINO}" in str(router.check())
    assert edge.downgraded is None
    ours, theirs = (model.run([*x]) for model in (edge, cpu))
    assert np.abs(ours - theirs).max() < 0.2
    assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.95
    assert edge.settings["providers"] == [[OPENVINO, {"precision": "FP32"}], CPU]


@openvino
def test_openvino_keeps_the_contract(model):
    """As any edge model: many threads, cancels, and closing in the middle of a run; but for a fork, after which it may hang."""
    edge_contract(
        OnnxModel(model, providers="openvino"),
        [np.array([1, 2, 0, 3], np.float32), np.array([0, 1, 5, 2], np.float32)],
        bad=["text"],
        fork=False,
    )


@openvino
def test_openvino_takes_no_node(tmp_path):
    """It is loaded and has nothing to do: a downgrade all the same, and the fingerprint is that of the CPU."""
    path = from_text(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=rf"{OPENVINO} takes none of the 1 nodes: running on {CPU}"):
        OnnxModel(path, providers=["openvino", "cpu"]).load()
    edge = OnnxModel(path, providers=["openvino", "cpu"], on_downgrade="record")
    with Router(edge=edge) as router:
        assert f"1 of 1 nodes on {CPU}" in str(router.check())
        assert "takes none" in str(router.check())
    assert edge.settings["providers"] == [CPU]


@openvino
def test_openvino_takes_a_part(tmp_path):
    """What runs elsewhere is named, by operator."""
    matrix, softmax = helper.make_node("MatMul", ["e", "w"], ["m"]), helper.make_node("Softmax", ["m"], ["y"])
    path = from_text(tmp_path / "m.onnx", matrix, softmax)
    edge = OnnxModel(path, providers=["openvino", "cpu"])
    edge.load()
    assert edge.downgraded is None
    assert edge.placement == f"2 of 3 nodes on {OPENVINO}, 1 on {CPU} (LabelEncoder)"


@openvino
@pytest.mark.parametrize("options", [{"device": "npu"}, {"precision": "fp16"}, {"options": {"nonsense": "1"}}])
def test_openvino_refuses(fashion, options, capfd):
    """A device that is not there, a precision that it has not, an option that it does not know: never quietly the CPU."""
    with pytest.raises(ModelError):
        OnnxModel(fashion, providers=[("openvino", options), "cpu"]).load()
    edge = OnnxModel(fashion, providers=[("openvino", options), "cpu"], on_downgrade="record")
    edge.load()
    assert f"running on {CPU}" in edge.downgraded
    assert capfd.readouterr().out == ""  # onnxruntime's own fallback would print there


@openvino
def test_openvino_that_cannot_run_the_model():
    """It fails at loading; with a downgrade allowed, the next one runs it."""
    path = EXPORTED / "sk_mlp.onnx"
    with pytest.raises(ModelError, match=f"cannot load .* on {OPENVINO}"):
        OnnxModel(path, providers=["openvino", "cpu"]).load()
    edge = OnnxModel(path, providers=["openvino", "cpu"], on_downgrade="record")
    edge.run([np.zeros(4, np.float32)])
    assert f"running on {CPU}" in edge.downgraded


@openvino
def test_openvino_caches_what_it_compiled(fashion, tmp_path):
    """In the folder that is named."""
    OnnxModel(fashion, providers=[("openvino", {"engine_cache": tmp_path / "cache"})]).load()
    assert [*(tmp_path / "cache").iterdir()]
