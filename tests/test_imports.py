"""Imports on first use: Ctrl-C, signal handlers, forks and other imports in the middle of one."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny
from both import GOOD, LONG
from draws import slow

from edgeroute.system import late_imports_and_plugins as imports
from edgeroute.testing import CannedServer

PRELUDE = """
import os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # it may be ignored where the tests run in the background
import numpy as np
from edgeroute import OnnxModel, PlainJson, Router
slow, path, port = sys.argv[1:]
router = Router(OnnxModel(path), PlainJson(f"http://127.0.0.1:{port}", max_concurrent=2), threshold=1.0)
x = np.array([0, 2, 1, 5], np.float32)

class Finder:
    hits = 0
    @staticmethod
    def find_spec(name, *_):
        if name == slow:
            Finder.hits += 1
            if Finder.hits == 1:
                meanwhile()

sys.meta_path.insert(0, Finder)
"""
LAZY = pytest.mark.parametrize(
    "module", ["edgeroute.cloud.endpoint_client", *slow("httptools", "tenacity.asyncio", "onnxruntime")]
)


def says(tmp_path, body, module, name="program.py"):
    """What a program with that body says; it is killed if it waits."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), str(tmp_path)])}
    program = tmp_path / name
    program.write_text(PRELUDE + body)
    with CannedServer(GOOD) as server:
        command = [sys.executable, str(program), module, str(tiny.linear(tmp_path / "m.onnx")), str(server.port)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=2 * LONG)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@LAZY
def test_ctrl_c_while_the_first_call_imports(tmp_path, module):
    """It ends that call alone: the cloud, and the model, are there afterwards, for other routers too."""
    body = """
def meanwhile():
    os.kill(os.getpid(), signal.SIGINT)

try:
    print(router.infer(x).value)
except KeyboardInterrupt:
    print("interrupted")
for _ in range(4):
    print(router.infer(x).value)
with Router(OnnxModel(path), PlainJson(f"http://127.0.0.1:{port}"), threshold=1.0) as other:
    print(other.infer(x, deadline=30).value, Finder.hits)
"""
    assert says(tmp_path, body, module) == ["interrupted", *["cloud"] * 5, "1"]


@LAZY
def test_a_signal_handler_that_asks_while_the_first_call_imports(tmp_path, module):
    """Both are answered."""
    body = """
signal.signal(signal.SIGUSR1, lambda *_: print(router.infer(x).value))
def meanwhile():
    os.kill(os.getpid(), signal.SIGUSR1)

print(router.infer(x).value)
"""
    assert says(tmp_path, body, module) == ["cloud", "cloud"]


@pytest.mark.parametrize("module", ["httptools", "tenacity.asyncio"])
def test_a_signal_handler_that_asks_in_an_import_of_the_application(tmp_path, module):
    """Of a module that the client needs as well: it does not wait for what waits for it."""
    body = """
signal.signal(signal.SIGUSR1, lambda *_: print("asked", router.infer(x) is not None))
def meanwhile():
    os.kill(os.getpid(), signal.SIGUSR1)

__import__(slow)
print(router.infer(x).value)
"""
    assert says(tmp_path, body, module) == ["asked", "True", "cloud"]


def test_an_application_that_asks_as_it_is_imported(tmp_path):
    """Its own import is under way in the same thread."""
    (tmp_path / "application.py").write_text("import __main__\nprint(__main__.router.infer(__main__.x).value)\n")
    assert says(tmp_path, "import application\n", "none") == ["cloud"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@LAZY
def test_a_signal_handler_that_forks_while_the_first_call_imports(tmp_path, module):
    """Parent and child answer."""
    body = """
parent = os.getpid()
def forks(*_):
    global child
    child = os.fork()

signal.signal(signal.SIGUSR1, forks)
def meanwhile():
    os.kill(os.getpid(), signal.SIGUSR1)

value = router.infer(x).value
if os.getpid() != parent:
    signal.alarm(30)
    print(value, router.infer(x).value, flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1], value)
"""
    assert says(tmp_path, body, module) == ["cloud", "cloud", "0", "cloud"]


def test_a_thread_that_cannot_be_started(monkeypatch, tmp_path):
    """The import is done here."""
    (tmp_path / "seldom.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no thread")))
    assert imports.import_late("seldom") is sys.modules.pop("seldom")


def test_a_module_that_is_not_there():
    """That is said, as by `import`."""
    for _ in range(2):
        with pytest.raises(ImportError):
            imports.import_late("edgeroute_has_no_such_module")
