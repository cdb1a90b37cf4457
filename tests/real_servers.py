"""Real inference servers, each in its own environment (`make server-NAME`), on loopback; they serve `servers/contract.py`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from netns import within

from edgeroute.testing import http_reply
from edgeroute.tools.contracts.canned_server import Listener

HERE = Path(__file__).parent / "servers"
ENVIRONMENTS = Path(os.environ.get("SERVERS", HERE.parents[1] / ".servers"))
STARTS_S = 300.0
sys.path.insert(0, str(HERE))

import contract  # noqa: E402 - it is beside the servers' programs, which import it, too


class Server(NamedTuple):
    """A server that runs."""

    name: str
    http: str
    """Its origin, as in http://127.0.0.1:8000."""
    grpc: str
    """Likewise of its gRPC port; empty: it has none."""
    process: subprocess.Popen
    log: Path


@contextlib.contextmanager
def real_server(name, folder, **options):
    """Starts the server of that name, with its files in the folder, waits until it is ready, and ends it at last."""
    home = ENVIRONMENTS / name
    if not (home / "made").exists():
        pytest.skip(f"no environment for {name}: make server-{name}")
    argv, env, ports = _STARTERS[name](home, folder, **options)
    log = folder / "log"
    with contextlib.ExitStack() as stack:
        if name == "ray":
            namespace = stack.enter_context(network_namespace())
            argv = ["ip", "netns", "exec", namespace, *argv]
            ports = urlsplit(stack.enter_context(Door(namespace, ports[0])).url).port, 0
        with log.open("wb") as out:
            process = subprocess.Popen(argv, env={**environment(), **env}, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        stack.callback(end, process)
        http, grpc = (f"http://127.0.0.1:{port}" if port else "" for port in ports)
        server = Server(name, http, grpc, process, log)
        _ready(server)
        yield server


def environment():
    """This process's, without what would lead a server's Python astray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV", "VIRTUAL_ENV"))}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1"}


def _ready(server):
    until = monotonic() + STARTS_S
    waiting = {f"{server.http}/v2/models/{model}/ready" for model in contract.MODELS}
    while waiting:
        if server.process.poll() is not None or monotonic() > until:
            pytest.fail(f"{server.name} did not start:\n{server.log.read_text(errors='replace')[-4000:]}")
        for url in sorted(waiting):
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
                if reply.status == 200:
                    waiting.discard(url)
        sleep(0.1)  # between looks at a process that starts


def end(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count):
    """Ports of loopback that nothing listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [sock.getsockname()[1] for sock in sockets]


def _triton(home, folder, *, python=None, also=None):
    models = {**contract.MODELS, **contract.BRAIN, **(also or {})}
    for name, (_, inputs, outputs) in models.items():
        for version in contract.VERSIONS.get(name, ("1",)):
            at = folder / "models" / name / version
            at.mkdir(parents=True)
            shutil.copy(HERE / "triton_model.py", at / "model.py")
            shutil.copy(HERE / "contract.py", at)
        (folder / "models" / name / "config.pbtxt").write_text(_config(name, inputs, outputs))
    options = ("--model-control-mode=explicit", *(f"--load-model={name}" for name in models))
    return triton_command(home, folder, folder / "models", *options, python=python)


def triton_command(home, folder, repository, *options, python=None):
    """How Triton is started with that model repository -> arguments, environment, ports of HTTP and gRPC."""
    site = home / "lib/python3.11/site-packages"
    backend = folder / "backends/python"
    backend.mkdir(parents=True)
    for file in (site / "pytriton/tritonserver/backends/python").iterdir():
        (backend / file.name).symlink_to(file)
    stub = backend / "triton_python_backend_stub"
    shutil.copy(site / "pytriton/tritonserver/python_backend_stubs/3.11/triton_python_backend_stub", stub)
    stub.chmod(0o755)
    http, grpc, metrics = ports = free_ports(3)
    library = subprocess.run(
        [home / "bin/python", "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout.strip()  # fmt: skip
    argv = [
        site / "pytriton/tritonserver/bin/tritonserver", f"--model-repository={repository}",
        f"--backend-directory={folder / 'backends'}", "--allow-gpu-metrics=false", *options,
        "--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        "--metrics-address=127.0.0.1", f"--metrics-port={metrics}",
    ]  # fmt: skip
    env = {  # the Python backend takes the environment of the first python3 in the path, and the library of the interpreter
        "LD_LIBRARY_PATH": f"{library}:{site / 'nvidia_pytriton.libs'}",
        "PATH": f"{python or home / 'bin'}:{os.environ['PATH']}",
    }
    return argv, env, ports[:2]


def _config(name, inputs, outputs):
    def tensors(kind, given):
        return "\n".join(
            f'{kind} [{{ name: "{one}" data_type: TYPE_{"STRING" if datatype == "BYTES" else datatype} dims: [{width}] }}]'
            for one, (datatype, width) in given.items()
        )

    queue = "{ default_queue_policy { max_queue_size: 1 } }" if name == "queued" else "{ }"
    return (
        f'name: "{name}"\nbackend: "python"\nmax_batch_size: 64\nversion_policy {{ all {{ }} }}\ndynamic_batching {queue}\n'
        f"{tensors('input', inputs)}\n{tensors('output', outputs)}\n"
    )


def _mlserver(home, folder):
    http, grpc, metrics = free_ports(3)
    settings = {
        "host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0, "debug": False,
        "use_structured_logging": False,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    for name in contract.MODELS:
        for version in contract.VERSIONS.get(name, ("1",)):
            at = folder / f"{name}-{version}"
            at.mkdir()
            model = {"name": name, "implementation": "mlserver_model.ContractModel", "parameters": {"version": version}}
            (at / "model-settings.json").write_text(json.dumps(model))
    return [home / "bin/mlserver", "start", str(folder)], {"PYTHONPATH": str(HERE)}, (http, grpc)


def _kserve(home, folder):
    ports = free_ports(2)
    return [home / "bin/python", HERE / "kserve_app.py", *map(str, ports)], {}, ports


def _ray(home, folder):
    inside = folder / "r"
    return (
        [home / "bin/python", HERE / "ray_app.py", "8000", inside],
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_raylet_start_wait_time_s": "240",
            "PYTHONPATH": str(HERE),
        },
        (8000, 0),
    )


@contextlib.contextmanager
def network_namespace():
    """A network namespace with loopback alone: Ray listens on every address that there is."""
    name = f"edgeroute-ray-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"Ray listens on every address, and no network namespace can be made here: {made.stderr.strip()}")
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        left = subprocess.run(["ip", "netns", "pids", name], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        for number in left:  # what Ray had started, and left behind
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)
        subprocess.run(["ip", "netns", "delete", name], check=False)


class Door(Listener):
    """A port of this machine's loopback that leads to one of the namespace's."""

    def __init__(self, namespace, port):
        self._namespace, self._port = namespace, port
        super().__init__(None)

    async def _serve(self, reader, writer):
        sock = within(self._namespace, lambda: socket.create_connection(("127.0.0.1", self._port)))
        sock.setblocking(False)
        far_reader, far_writer = await asyncio.open_connection(sock=sock)
        await _both_ways(reader, writer, far_reader, far_writer)


class Front(Listener):
    """What stands before a server: TLS that ends here, and a token that has to be in the first request of a connection.

    Args:
        port: of the server, on loopback.
        tls: of this side; None: plain.
        token: expected as `Authorization: Bearer ...`, of HTTP/1.1; None: none.
    """

    def __init__(self, port, tls=None, token=None):
        self._to, self._token = port, token
        super().__init__(tls)

    async def _serve(self, reader, writer):
        first = await reader.read(1 << 16)
        if self._token is not None and f"bearer {self._token}".encode().lower() not in first.lower():
            writer.write(http_reply(b'{"error": "unauthorized"}', status=401))
            await writer.drain()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        far_writer.write(first)
        await _both_ways(reader, writer, far_reader, far_writer)


class Proxy(Listener):
    """An HTTP proxy, for CONNECT alone.

    Attributes:
        asked: first lines of requests.
    """

    def __init__(self):
        self.asked = []
        super().__init__(None)

    async def _serve(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head.split(b"\r\n")[0].decode())
        host, _, port = self.asked[-1].split(" ")[1].rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await _both_ways(reader, writer, far_reader, far_writer)


async def _both_ways(reader, writer, far_reader, far_writer):
    ways = [asyncio.ensure_future(_copy(*way)) for way in ((reader, far_writer), (far_reader, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        far_writer.transport.abort()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def _copy(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


_STARTERS = {"triton": _triton, "kserve": _kserve, "mlserver": _mlserver, "ray": _ray}
