"""`edgeroute serve` as a service: what it tells the service manager, by a real process and a socket in place of systemd's."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import tiny
from draws import slow

from edgeroute.tools.server.systemd_notices import Notify

ROOT = Path(__file__).parents[1]
UNIT = ROOT / "examples" / "edgeroute.service"
LONG = 60
HANGS = """
import os, socket, threading
import numpy as np
from edgeroute import CallableModel
from edgeroute.types import TensorSpec

def run(x):
    if os.path.exists({flag!r}):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as here:
            here.sendto(b"ODD", {manager!r})
        {what}
    return x[:2] * 2

model = CallableModel(run, inputs=[TensorSpec("x", "float32", (-1, 4))])
"""

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX") or os.name != "posix", reason="sd_notify is of Unix")


class Manager:
    """In place of systemd."""

    def __init__(self, name):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + name[1:] if name[0] == "@" else name)
        self.socket.settimeout(LONG)
        self.name = name

    def hears(self):
        """The next message, without the status."""
        while True:
            lines = self.socket.recv(4096).decode().split("\n")
            if told := [line for line in lines if not line.startswith("STATUS=")]:
                return told


@pytest.fixture(params=["path", pytest.param("abstract", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux's"))])
def manager(request, tmp_path):
    one = Manager(str(tmp_path / "notify") if request.param == "path" else f"@edgeroute-{tmp_path.name}-{os.getpid()}")
    yield one
    one.socket.close()


@contextlib.contextmanager
def served(model, manager, folder, usec="900000"):
    """A real server under the manager."""
    environment = {
        **os.environ, "NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": usec,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "edgeroute", "serve", str(model), "--port", "0"], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def test_ready_alive_and_stopping(tmp_path, manager):
    """In that order; the end is that of a signal."""
    with served(tiny.linear(tmp_path / "m.onnx"), manager, tmp_path) as process:
        assert manager.hears() == ["READY=1"]
        assert [manager.hears() for _ in range(3)] == [["WATCHDOG=1"]] * 3
        process.send_signal(signal.SIGTERM)
        heard = manager.hears()
        while heard == ["WATCHDOG=1"]:
            heard = manager.hears()
        assert heard == ["STOPPING=1"]
        out, err = process.communicate(timeout=LONG)
        assert (process.returncode, err) == (0, "")
        assert "serving http" in out


@pytest.mark.parametrize("what", ["threading.Event().wait()", *slow("raise RuntimeError('the accelerator is gone')")])
def test_a_model_that_no_longer_answers_is_not_alive(tmp_path, what):
    """It hangs, or fails at each input that it took before: the signs of life end, and come back with the answers."""
    flag = tmp_path / "flag"
    manager = Manager(str(tmp_path / "notify"))
    (tmp_path / "odd.py").write_text(HANGS.format(flag=str(flag), what=what, manager=manager.name))
    with contextlib.closing(manager.socket), served("odd:model", manager, tmp_path):
        assert manager.hears() == ["READY=1"]
        assert manager.hears() == ["WATCHDOG=1"]
        flag.touch()
        for text in (b"ODD", b"no answer from"):
            while text not in manager.socket.recv(4096):
                pass
        manager.socket.settimeout(1.5)  # several periods: what comes in them is that there is no answer
        with contextlib.suppress(TimeoutError):
            for _ in range(5):
                assert b"WATCHDOG=1" not in manager.socket.recv(4096)
        manager.socket.settimeout(LONG)
        if what.startswith("raise"):
            flag.unlink()
            while manager.hears() == ["ODD"]:
                pass


def test_it_is_not_ready_before_the_model_has_run(tmp_path):
    """Its first run may compile for minutes."""
    flag = tmp_path / "flag"
    flag.touch()
    slow = f"for _ in iter(lambda: os.path.exists({str(flag)!r}), False): threading.Event().wait(0.01)"
    manager = Manager(str(tmp_path / "notify"))
    text = HANGS.format(flag=str(flag), what=slow, manager=manager.name)
    (tmp_path / "odd.py").write_text(text + "model.outputs = (TensorSpec('y', 'float32', (-1, 2)),)\n")
    with contextlib.closing(manager.socket), served("odd:model", manager, tmp_path) as process:
        assert "serving" in process.stdout.readline()  # it listens
        assert manager.hears() == ["ODD"]
        manager.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            manager.socket.recv(4096)
        manager.socket.settimeout(LONG)
        flag.unlink()
        assert manager.hears() == ["READY=1"]


def test_an_app_of_ones_own(tmp_path):
    """It says itself that it is alive, at most three times a period."""
    manager = Manager(str(tmp_path / "notify"))
    environment = {"NOTIFY_SOCKET": manager.name, "WATCHDOG_USEC": "3600000000", "WATCHDOG_PID": str(os.getpid()), "OTHER": "1"}
    with contextlib.closing(manager.socket):
        with Notify(environment) as notify:
            assert environment == {"OTHER": "1"}
            assert (bool(notify), notify.watchdog_s) == (True, 3600)
            notify.ready("two\nlines")
            for _ in range(100):
                notify.alive()
        heard = [manager.socket.recv(4096).decode() for _ in range(3)]
        assert heard == ["READY=1\nSTATUS=two lines", "WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize(
    ("environment", "there", "period"),
    [
        ({}, False, None),
        ({"WATCHDOG_USEC": "1000000"}, False, None),
        ({"NOTIFY_SOCKET": "{}"}, True, None),
        ({"NOTIFY_SOCKET": "{}", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, True, None),
        ({"NOTIFY_SOCKET": "{}", "WATCHDOG_USEC": "x"}, True, None),
        ({"NOTIFY_SOCKET": "{}", "WATCHDOG_USEC": "1500000"}, True, 1.5),
        ({"NOTIFY_SOCKET": "{}", "WATCHDOG_USEC": "0"}, True, None),
        ({"NOTIFY_SOCKET": "{}", "WATCHDOG_USEC": "9" * 400}, True, None),
        ({"NOTIFY_SOCKET": "{}", "WATCHDOG_USEC": "9" * 5000}, True, None),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, False, None),
        ({"NOTIFY_SOCKET": "@\ud800"}, False, None),
        ({"NOTIFY_SOCKET": "/gone/notify"}, False, None),
    ],
)
def test_what_the_environment_says(tmp_path, environment, there, period):
    """Without a manager, or with one that asks for nothing, nothing is sent; and nothing fails."""
    manager = Manager(str(tmp_path / "notify"))
    with contextlib.closing(manager.socket):
        with Notify({key: value.format(manager.name) for key, value in environment.items()}) as notify:
            assert (bool(notify), notify.watchdog_s) == (there, period)
            notify.ready("a model's name with \ud800 in it")
            notify.alive()
        notify.alive()


def test_a_manager_that_is_gone_or_does_not_read(tmp_path, caplog):
    """The service goes on."""
    manager = Manager(str(tmp_path / "notify"))
    with Notify({"NOTIFY_SOCKET": manager.name}) as notify:
        thread = threading.Thread(target=lambda: [notify.ready() for _ in range(10_000)])  # more than fit into its queue
        thread.start()
        thread.join(LONG)
        assert not thread.is_alive()
        manager.socket.close()
        notify.ready()
    assert "the notice READY=1 did not reach the service manager" in caplog.text


@pytest.mark.skipif(not UNIT.exists(), reason="the examples are not here")
def test_the_unit(tmp_path):
    """systemd finds nothing wrong with it, and it is what the server does: ready by a message, and a watchdog."""
    text = UNIT.read_text()
    assert re.search(r"^Type=notify$", text, re.MULTILINE)
    assert re.search(r"^WatchdogSec=\d+$", text, re.MULTILINE)
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("there is no systemd-analyze")
    program = tmp_path / "edgeroute"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace("/opt/edgeroute/bin/edgeroute", str(program)))
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False, timeout=LONG)
    told = [line for line in (done.stdout + done.stderr).splitlines() if "edgeroute" in line]
    assert (done.returncode, told) == (0, [])
