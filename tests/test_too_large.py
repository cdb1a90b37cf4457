"""Models that this device has too little memory for: each runtime says so, and the next leg answers.

In a process of its own, whose memory is limited once all packages are imported.
"""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIMITED = """
import re, resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
home = Path(sys.argv[2])
def limit(mib):
    used = int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + (mib << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
def said(call):
    try:
        print("no error:", call())
    except Exception as e:
        print(f"{type(e).__name__}: {e}")
"""
ONNX = """
import onnx, onnxruntime
from onnx import TensorProto as T, helper
from edgeroute import OnnxModel, Router
Router(lambda x: 1).close()
weights = T(name="w", data_type=T.FLOAT, dims=[16384, 16384], data_location=T.EXTERNAL)
for key, value in (("location", "w.bin"), ("length", str(1 << 30))):
    weights.external_data.add(key=key, value=value)
with (home / "w.bin").open("wb") as file:
    file.truncate(1 << 30)
value = lambda name: helper.make_tensor_value_info(name, T.FLOAT, ["n", 16384])
made = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x")], [value("y")], [weights])
onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), home / "m.onnx")
x = np.zeros(16384, np.float32)
limit(300)
said(OnnxModel(home / "m.onnx").load)
with Router(home / "m.onnx", lambda x: "cloud", threshold=0.5) as router:
    print(router.infer(x).value)
"""
TFLITE = """
import tflite_models
from edgeroute.edge.litert import LiteRTModel
path = tflite_models.linear(home / "m.tflite")
LiteRTModel(path).load()
with path.open("r+b") as file:
    file.truncate(500 << 20)
limit(200)
said(LiteRTModel(path).load)
"""
GGUF = """
import tiny_gguf, xllamacpp
from edgeroute.edge.llama import LlamaModel
path = tiny_gguf.write(home / "m.gguf")
limit(300)
said(LlamaModel(path, context=40_000_000).load)
with path.open("r+b") as file:
    file.truncate(1 << 31)
said(LlamaModel(path).load)
"""
COREML = """
import shutil, coremltools.proto.Model_pb2
from edgeroute.edge.coreml import CoreMLModel
path = Path(shutil.copytree(sys.argv[3], home / "m.mlpackage"))
said(CoreMLModel(path).load)
for file in path.rglob("*.mlmodel"):
    with file.open("r+b") as opened:
        opened.truncate(300 << 20)
limit(100)
said(CoreMLModel(path).load)
"""
SHORT = "there is too little memory for it on this device"


def lines(program, tmp_path, *more):
    """What the program prints, which ends well."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + program, HERE, tmp_path, *more], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits by /proc")


def test_onnx(tmp_path):
    loaded, answer = lines(ONNX, tmp_path)
    assert loaded.startswith(f"ModelError: onnxruntime cannot load {tmp_path}/m.onnx: {SHORT} (")
    assert answer == "cloud"


@pytest.mark.slow
def test_tflite(tmp_path):
    pytest.importorskip("ai_edge_litert")
    (loaded,) = lines(TFLITE, tmp_path)
    assert loaded.startswith(f"ModelError: LiteRT cannot load {tmp_path}/m.tflite: {SHORT} (")


def test_gguf(tmp_path):
    """Its context, or the file itself."""
    pytest.importorskip("xllamacpp")
    pytest.importorskip("gguf")
    context, file = lines(GGUF, tmp_path)
    assert context.startswith("ModelError: llama.cpp")
    assert "too little memory for this context" in context
    assert file.endswith(f"cannot be read: Cannot allocate memory: {SHORT}")


@pytest.mark.slow
def test_core_ml(tmp_path):
    """Its description; the weights are read by macOS alone."""
    pytest.importorskip("coremltools")
    from test_coreml import FASHION

    well, large = lines(COREML, tmp_path, FASHION)
    assert well.startswith("RuntimeMissing: Core ML runs on macOS alone")
    assert large.startswith(f"ModelError: {tmp_path}/m.mlpackage ")
    assert SHORT in large
