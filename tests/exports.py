"""Models for exports, and a Triton that serves one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
import real_servers
import tiny
from onnx import TensorProto, helper

WEIGHTS = np.random.default_rng(0).normal(size=(3 * 8 * 8, 4)).astype(np.float32)
EVIL = 'doors "x"\n} evil: \'\'\' """ \\ ${a} é'
"""A name that would end quotes of any language, if it stood in one."""
PICTURE = {
    "name": EVIL, "description": "a: b\n'''\"\"\" \\ {{ x }} %s",
    "input": {"name": "image", "dtype": "float32", "shape": [-1, 3, 8, 8], "layout": "CHW"},
    "preprocess": {"dtype": "uint8", "shape": [8, 8, 3], "layout": "HWC", "resize": 10, "crop": 8, "scale": 1 / 255,
                   "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "output": {"name": "logits", "kind": "logits"}, "labels": ["a\nb", 'c"} ', "é", "d: - x"],
}  # fmt: skip


def pictures(path, card=None, batch="n"):
    """image [n, 3, 8, 8] -> logits [n, 4]."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    io = [value("image", TensorProto.FLOAT, [batch, 3, 8, 8])], [value("logits", TensorProto.FLOAT, [batch, 4])]
    tiny.save(path, nodes, *io, [("w", WEIGHTS)])
    path.with_suffix(".json").write_text(json.dumps(PICTURE if card is None else card))
    return path


def columns(path):
    """a [2, n], b [2, n], and a constant number of times: total [2, n] = (a + b) * times; the second axis counts the inputs."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["sum", "times"], ["total"])]
    given = [value(name, TensorProto.FLOAT, [2, "n"]) for name in "ab"] + [value("times", TensorProto.FLOAT, [])]
    tiny.save(path, nodes, given, [value("total", TensorProto.FLOAT, [2, "n"])])
    axis = [{"name": name, "batch": 1} for name in "ab"]
    card = {"inputs": [*axis, {"name": "times", "value": 3}], "output": {"batch": 1}, "name": path.stem}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


def slow(path, turns=400_000):
    """x [n, 1] -> y [n, 2]: x and 0, after some tenths of a second."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Identity", ["at"], ["next"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("at", TensorProto.FLOAT, ["n", 1])],
        [value("go_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, ["n", 1])],
    )
    nodes = [
        helper.make_node("Loop", ["turns", "yes", "x"], ["same"], body=body),
        helper.make_node("MatMul", ["same", "w"], ["y"]),
    ]
    constants = [("turns", np.array(turns)), ("yes", np.array(True)), ("w", np.array([[1.0, 0.0]], np.float32))]
    io = [value("x", TensorProto.FLOAT, ["n", 1])], [value("y", TensorProto.FLOAT, ["n", 2])]
    return tiny.save(path, nodes, *io, constants)


def jpeg(shape, seed=0, format="JPEG", **options):  # noqa: A002 - Pillow's word
    """The file of a picture of that shape."""
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, *shape[2:]), np.uint8)
    image.fromarray(noise).resize(shape[1::-1]).save(out, format, **options)
    return out.getvalue()


@contextlib.contextmanager
def triton(repository, folder):
    """Triton with that repository -> its origin, and where its log is."""
    home = real_servers.ENVIRONMENTS / "triton"
    if not (home / "made").exists():
        pytest.skip("no environment for triton: make server-triton")
    argv, env, (http, _) = real_servers.triton_command(home, folder, repository, "--exit-on-error=false")
    log = folder / "log"
    with log.open("wb") as out:
        env = {**real_servers.environment(), **env}
        process = subprocess.Popen(argv, env=env, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
    try:
        until = monotonic() + real_servers.STARTS_S
        while get(f"http://127.0.0.1:{http}/v2/health/live")[0] != 200:
            assert process.poll() is None, log.read_text(errors="replace")[-4000:]
            assert monotonic() < until, log.read_text(errors="replace")[-4000:]
            sleep(0.1)  # between looks at a process that starts
        yield f"http://127.0.0.1:{http}", log
    finally:
        real_servers.end(process)


PATIENT = {"RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "5", "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "20"}
"""Ray's time limits on a busy machine."""


class Ray:
    """Ray Serve with an exported application, in a network namespace of its own; `status` is what its controller says."""

    def __init__(self, app, home, namespace, url, temporary):
        self.url, self.status, self._changed = url, {}, threading.Condition()
        self._enter = ["ip", "netns", "exec", namespace]
        self._home, self.namespace, self.log = home, namespace, temporary / "log"
        own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(temporary), **PATIENT}
        self._env = {**real_servers.environment(), **own}
        options = ["--head", "--num-cpus=8", "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats"]
        with self.log.open("wb") as out:
            for _ in range(4):  # it gives itself half a minute, which a busy machine may exceed
                if not self._run("ray", "start", *options, stdout=out, stderr=out).wait(real_servers.STARTS_S):
                    break
                for pid in self._pids():  # `ray stop` would end those of others, too
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self.process = self._run(
                "serve", "run", "serve.yaml", "--address", "127.0.0.1:6379", cwd=app, stdout=out, stderr=subprocess.STDOUT
            )

    def _run(self, program, *args, **more):
        return subprocess.Popen([*self._enter, self._home / "bin" / program, *args], env=self._env, **more)

    def watch(self):
        """Follows the controller's status, in a thread that ends with it."""
        script = real_servers.HERE / "ray_status.py"
        self.watcher = self._run("python", script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        def follow():
            for line in self.watcher.stdout:
                with self._changed:
                    self.status = json.loads(line)
                    self._changed.notify_all()

        self._thread = threading.Thread(target=follow)
        self._thread.start()

    def wait(self, deployment, states, within_s=180.0):
        """Waits until the replicas of a deployment are in these states, as {"RUNNING": 2}."""
        with self._changed:
            there = self._changed.wait_for(lambda: self.status.get(deployment) == states, within_s)
        assert there, (deployment, states, self.status, self.log.read_text(errors="replace")[-3000:])

    def replicas(self, deployment):
        """The processes of a deployment's replicas, as {application}:{deployment}."""
        title = f"ray::ServeReplica:{deployment}".encode()
        return [pid for pid in self._pids() if Path("/proc", str(pid), "cmdline").read_bytes().startswith(title)]

    def _pids(self):
        """All processes in the namespace."""
        argv = ["ip", "netns", "pids", self.namespace]
        return [int(pid) for pid in subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.split()]

    def close(self):
        """Ends the programs of this class; those of Ray end with the namespace."""
        for one in (self.watcher, self.process):
            real_servers.end(one)
        self._thread.join()
        self.watcher.stdout.close()


@contextlib.contextmanager
def ray(app, models):
    """Ray Serve with an exported application, once all its models are loaded."""
    home = real_servers.ENVIRONMENTS / "ray"
    if not (home / "made").exists():
        pytest.skip("no environment for ray: make server-ray")
    with contextlib.ExitStack() as stack:
        temporary = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="er", ignore_cleanup_errors=True))
        )  # short, for sockets
        namespace = stack.enter_context(real_servers.network_namespace())
        door = real_servers.Door(namespace, 8000)
        stack.callback(door.close)
        running = Ray(app, home, namespace, door.url, temporary)
        running.watch()
        stack.callback(running.close)
        until = monotonic() + real_servers.STARTS_S
        for name in models:
            while get(f"{door.url}/v2/models/{name}/ready")[0] != 200:
                text = running.log.read_text(errors="replace")[-4000:]
                assert running.process.poll() is None, text
                assert monotonic() < until, text
                sleep(0.2)  # between looks at a process that starts
        yield running


def get(url):
    """-> status, JSON of the reply; 0: nobody is there."""
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return reply.status, json.loads(reply.read() or b"null")
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode(errors="replace")
    except OSError:
        return 0, None


def infer_bytes(url, name, files):
    """Sends files as the BYTES input of that name -> status, outputs by name, or the error."""
    raw = b"".join(len(one).to_bytes(4, "little") + one for one in files)
    tensor = {"name": name, "datatype": "BYTES", "shape": [len(files), 1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/infer", head + raw, headers), timeout=30) as reply:
            said = json.loads(reply.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())["error"]
    return 200, {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in said["outputs"]}
