"""ONNX Runtime through Java, in a real Java with pyjnius: the library's classes are stand-ins that check how they are called.

They are in `java/`, and refuse what the library does not document. Each test is a process of its own, since a Java cannot be ended.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
JAVAC = shutil.which("javac")
LONG = 120

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.skipif(
        JAVAC is None or find_spec("jnius") is None, reason="there is no javac, or no pyjnius: the calls of Java are not tried"
    ),
]

PRELUDE = """
import gc, os, sys, threading
import jnius_config
jnius_config.set_classpath(sys.argv[1])
from pathlib import Path
import numpy as np
from jnius import autoclass
import edgeroute
from edgeroute import BadInput, ModelError, Router, RuntimeMissing, StopToken
from java_onnx import JavaOnnxModel
from edgeroute.testing import edge_contract

def model(*lines):
    path = Path(f"{len(os.listdir())}.onnx")
    path.write_text("\\n".join(lines))
    return path

def raises(kind, says, f):
    try:
        f()
    except kind as e:
        assert says in str(e) and "\\n" not in str(e), str(e)
    else:
        raise AssertionError(f"it did not raise {kind.__name__}")

def opened():
    return autoclass("ai.onnxruntime.OnnxTensor").open.get(), autoclass("ai.onnxruntime.OrtSession").open.get()

one = model("in x FLOAT -1 3", "out y FLOAT -1 3")
x = np.array([1, 2, 3], np.float32)
"""


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """The stand-ins, compiled."""
    folder = tmp_path_factory.mktemp("classes")
    sources = sorted(map(str, (ROOT / "java").rglob("*.java")))
    subprocess.run([JAVAC, "-d", str(folder), *sources], check=True, timeout=LONG)
    return folder


def run(folder, classes, body):
    """Runs that in a process with Java."""
    program = folder / "program.py"
    program.write_text(PRELUDE + body)
    home = Path(JAVAC).resolve().parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT.parent), str(ROOT.parent / "examples"), os.environ.get("PYTHONPATH", "")]),
        "JAVA_HOME": str(home),
    }
    done = subprocess.run(
        [sys.executable, str(program), str(classes)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_keeps_the_contract(tmp_path, classes):
    """Also with two threads; but for a fork, which no Java survives. Nothing of Java's is left open."""
    body = """
edge_contract(JavaOnnxModel(one, threads=3), [x, x[::-1].copy()], bad=["text", None], fork=False)
assert autoclass("ai.onnxruntime.OrtSession$SessionOptions").threads == 3
gc.collect()  # errors that the contract has caught refer to it
assert opened() == (0, 0), opened()
m = JavaOnnxModel(one)
assert m.run([x, x]).tolist() == [[2, 4, 6]] * 2
assert opened() == (0, 1)
m.close()
assert opened() == (0, 0)
"""
    run(tmp_path, classes, body)


def test_a_router_runs_it_for_all_onnx_files(tmp_path, classes):
    """Once it is registered."""
    body = """
edgeroute.register(".onnx", "java_onnx:JavaOnnxModel")
with Router(one, threshold=0.1) as router:
    assert router.check().ok, router.check().lines
    assert router.infer(x).value == 2
    assert router.infer(x, deadline=30).value == 2
"""
    run(tmp_path, classes, body)


def test_types_and_shapes(tmp_path, classes):
    """Integers, bytes and truths come through as they are; what Java cannot carry is refused as the model is loaded."""
    body = """
m = JavaOnnxModel(model("in a INT64 -1", "in b UINT8 -1 2 2", "in c BOOL -1 2", "out d INT64 -1", "out e UINT8 -1 2 2", "out f BOOL -1 2"))
feed = {"a": np.int64(-(2**40)), "b": np.array([[0, 255], [7, 1]], np.uint8), "c": np.array([True, False])}
found = m.run([feed, feed])
assert {k: (v.dtype.name, v.shape) for k, v in found.items()} == {"d": ("int64", (2,)), "e": ("uint8", (2, 2, 2)), "f": ("bool", (2, 2))}
assert found["d"].tolist() == [-(2**40)] * 2 and found["e"][1].tolist() == feed["b"].tolist() and found["f"][0].tolist() == [True, False]
assert found["e"].flags.writeable
only = JavaOnnxModel(model("in a FLOAT -1 3", "out d FLOAT -1 3", "out e FLOAT -1 3"), output="e")
assert only.run([x]).tolist() == [[2, 4, 6]]
raises(ModelError, "its input s is a STRING, which cannot be passed", JavaOnnxModel(model("in s STRING 1", "out y FLOAT 1")).load)
raises(ModelError, "its output y is a sequence or mapping", JavaOnnxModel(model("in x FLOAT 1", "out y MAP")).load)
assert opened() == (0, 2), opened()
"""
    run(tmp_path, classes, body)


def test_what_goes_wrong(tmp_path, classes):
    """By whose fault it is: the file's, the input's, the run's; and a run that is stopped while it runs."""
    body = """
raises(ModelError, "ONNX Runtime for Java cannot load", JavaOnnxModel(model("garbage")).load)
raises(ModelError, "there is no model at", JavaOnnxModel("gone.onnx").load)
m = JavaOnnxModel(one)
raises(BadInput, "expected [3] float32", lambda: m.run([np.zeros(4, np.float32)]))
autoclass("ai.onnxruntime.OrtSession").hang = True
stop = StopToken()
begun = threading.Timer(0.05, stop)
begun.start()
raises(ModelError, "terminate flag", lambda: m.run([x], stop))
autoclass("ai.onnxruntime.OrtSession").hang = False
stop()  # late: its run has ended
assert m.run([x], StopToken()).tolist() == [[2, 4, 6]]
child = os.fork()
if not child:
    try:
        raises(ModelError, "this process was forked", lambda: m.run([x]))
    except BaseException:
        os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert m.run([x]).tolist() == [[2, 4, 6]]
"""
    run(tmp_path, classes, body)


def test_without_the_library(tmp_path, classes):
    """What the app has to have is named."""
    body = 'raises(RuntimeMissing, "add com.microsoft.onnxruntime:onnxruntime-android to the app", JavaOnnxModel(one).load)'
    empty = tmp_path / "empty"
    empty.mkdir()
    run(tmp_path, empty, body)
