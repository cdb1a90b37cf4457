"""What several tests share: the shipped models, a real server for them, and deadlines that pass on an event."""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from weakref import WeakSet

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # where several workers have the cores, numpy's threads wait for them in loops
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests that import onnxruntime themselves send nothing to its maker
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # tests that import grpc themselves are not told to

import pytest
from both import LONG, Due, Tasks, Threads, nothing_left
from draws import draws
from hypothesis import HealthCheck, settings

import edgeroute

settings.register_profile("patient", max_examples=draws(100), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")  # a busy machine is slow, and no property is about time


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Makes the asyncio half of tests slow whose subject is the same on both drivers."""
    for item in items:
        values = getattr(getattr(item, "callspec", None), "params", {}).values()
        if item.get_closest_marker("pure") and any(
            value is Tasks or (isinstance(value, str) and value == "asyncio") for value in values
        ):
            item.add_marker("slow")


_earlier = WeakSet()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Remembers the threads that earlier tests have left."""
    _earlier.clear()
    _earlier.update(set(threading.enumerate()) - {threading.current_thread()})


@pytest.fixture
def caplog(caplog):
    """What this test logs: a thread that an earlier one has left, and that ends late, is not heard."""

    def is_own(_record):
        return threading.current_thread() not in _earlier

    caplog.handler.addFilter(is_own)
    yield caplog
    caplog.handler.removeFilter(is_own)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Looks for no garbage meanwhile, and leaves what was collected out of it: tests that look for leaks do it often."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def fashion() -> Path:
    """The folder with the shipped pair: in the package where that is a wheel, else beside it."""
    package = Path(edgeroute.__file__).parent
    return next(f for home in (package, package.parent) if (f := home / "models" / "fashion").is_dir())


@pytest.fixture(scope="session")
def fashion_server(fashion):
    """`edgeroute serve` with the shipped cloud model, in a process of its own. -> its URL."""
    command = [sys.executable, "-m", "edgeroute", "serve", str(fashion / "cloud.onnx"), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield json.loads(process.stdout.readline())["ready"]
        process.terminate()
        process.wait(LONG)


@pytest.fixture(scope="session")
def right_server(tmp_path_factory):
    """`edgeroute serve` with a model that is always right: of x [n, 4] the largest of the first three. -> its URL."""
    import tiny

    weights = [[9, 0, 0], [0, 9, 0], [0, 0, 9], [0, 0, 0]]
    model = tiny.linear(tmp_path_factory.mktemp("cloud") / "big.onnx", weights=weights, card={"name": "right"})
    command = [sys.executable, "-m", "edgeroute", "serve", str(model), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield f"{json.loads(process.stdout.readline())['ready']}/v2/models/right"
        process.terminate()
        assert process.wait(LONG) == 0


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def kind(request):
    """Either router, behind the same blocking face."""
    return request.param


@pytest.fixture
def leaves_nothing(monkeypatch):
    """The test ends with the files, sockets and threads with which it began; no proxy is between."""
    with nothing_left(monkeypatch):
        yield


@pytest.fixture
def interruptible():
    """What is started hears SIGINT, though these tests may have been started where that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def due(monkeypatch):
    """Makes deadlines that pass when the test says so: see `Due`."""
    made = Due(monkeypatch)
    yield made
    made.end()


@pytest.fixture
def no_time_left(monkeypatch):
    """Whatever a call waits for until its deadline, be it a disk, is late at once; its legs have all the time that they have."""
    for module in ("router", "async_router"):
        monkeypatch.setattr(f"edgeroute.router.{module}.monotonic", lambda: math.inf)
