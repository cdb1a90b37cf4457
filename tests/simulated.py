"""Another system, simulated: this Python without the modules and names that Windows or macOS lacks, and with Windows' rules of files.

As a program (`python simulated.py win32`) it imports every module, and uses each feature and each command once. As a plugin of
pytest (`SIMULATED=win32 pytest -p simulated ...`) it does that to the tests of that run.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.abc
import io
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
NAMES = {
    os: "fork forkpty register_at_fork getuid geteuid getgid fchown chown O_NOFOLLOW O_DIRECTORY O_CLOEXEC posix_fallocate pread "
    "pwrite preadv pwritev fdatasync getpgid killpg setsid mkfifo statvfs getloadavg",
    time: "clock_gettime clock_gettime_ns CLOCK_MONOTONIC CLOCK_REALTIME CLOCK_BOOTTIME",
    socket: "AF_UNIX AF_NETLINK NETLINK_ROUTE SO_REUSEPORT",
    signal: "SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGKILL SIGPIPE",
    select: "poll epoll",
    selectors: "PollSelector EpollSelector",
}
MAC_NAMES = {time: "CLOCK_BOOTTIME", socket: "AF_NETLINK NETLINK_ROUTE", os: "O_DIRECT", select: "epoll"}
USED = (
    "asyncio anyio anyio._backends._asyncio concurrent.futures.process filelock h11 httptools http.client logging.handlers "
    "matplotlib.pyplot multiprocessing.popen_spawn_posix multiprocessing.resource_tracker multiprocessing.util numpy onnxruntime orjson "
    "PIL.Image pydantic_settings rich.console rich.progress rich.table shutil sqlite3 ssl starlette.applications "
    "subprocess tenacity typer typer.rich_utils urllib.request uuid uvicorn uvicorn.protocols.http.h11_impl uvicorn.lifespan.on yaml"
)
"""What others have written for their systems is imported before: names that only Python uses stay."""
FORBIDDEN = set('<>:"|?*')


class _Gone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def take_away(system: str, root: Path) -> None:
    """Makes this process one on `system`, win32 or darwin; files below `root` follow Windows' rules there."""
    for name in USED.split():
        with contextlib.suppress(ImportError):
            __import__(name)
    if system == "win32":
        for name in MODULES:
            sys.modules.pop(name, None)
        sys.meta_path.insert(0, _Gone())
        _windows_files(str(root.resolve()) + os.sep)
    for module, names in (NAMES if system == "win32" else MAC_NAMES).items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on; it was made for a system that has `sched_getaffinity`
        os.process_cpu_count = os.cpu_count
    if system == "win32":
        socket.socketpair = _socketpair
        socket.SO_EXCLUSIVEADDRUSE = socket.SO_REUSEADDR  # an option that this kernel knows in its place
        asyncio.ProactorEventLoop = asyncio.SelectorEventLoop
        io._WindowsConsoleIO = type("_WindowsConsoleIO", (), {})  # private: Python looks for it on Windows
    sys.platform = system


def _socketpair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def _windows_files(root: str) -> None:
    """Below `root` no name has a character that Windows forbids, and what is open here cannot be renamed, replaced or removed."""

    def hook(event, args):
        if event not in {"open", "os.rename", "os.remove", "os.mkdir", "os.link"}:
            return
        for given in args[: 2 if event in {"os.rename", "os.link"} else 1]:
            if not isinstance(given, str | os.PathLike):
                continue
            path = os.path.normpath(Path.cwd() / given)
            if path.startswith(root):
                if FORBIDDEN & set(path[len(root) :]):
                    raise OSError(22, "The filename, directory name, or volume label syntax is incorrect", path)
                if event in {"os.rename", "os.remove"} and path in _open():
                    raise PermissionError(
                        13, "The process cannot access the file because it is being used by another process", path
                    )

    sys.addaudithook(hook)


def _open() -> set[str]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(str(link.readlink()))
    return found


if os.environ.get("SIMULATED") and __name__ != "__main__":
    take_away(os.environ["SIMULATED"], Path(os.environ["SIMULATED_ROOT"]))


# ----------------------------------------------------------------------------------------------- as a program
LONG = 120.0


def unsure(_):
    return "a", 0.2


def imports():
    """Every module can be imported."""
    import edgeroute

    wrong = []
    for module in pkgutil.walk_packages(edgeroute.__path__, "edgeroute."):
        beside = ".export.programs." in module.name or module.name == "edgeroute.sklearn"  # they run beside other packages
        if not module.name.endswith("__main__") and not beside:
            try:
                __import__(module.name)
            except BaseException as e:  # noqa: BLE001 - each is told
                wrong.append(f"{module.name}: {type(e).__name__}: {e}")
    assert not wrong, wrong


def infer():
    from edgeroute import Router

    with Router(unsure, lambda _: ("b", 0.9), threshold=0.8) as router:
        assert router.infer(1).value == "b"
        assert [a.value for a in router.infer_many([1, 2])] == ["b", "b"]
        assert [a.value for a in router.refine(1)] == ["a", "b"]


def deadline():
    from edgeroute import Router

    over = threading.Event()
    try:
        with Router(unsure, lambda _: (over.wait(LONG), ("b", 0.9))[1], threshold=0.8) as router:
            answer = router.infer(1, deadline=0.5)
            assert (answer.value, answer.degraded) == ("a", True)
            over.set()
    finally:
        over.set()


def asyncio_():
    import asyncio

    from edgeroute import AsyncRouter, PlainJson
    from edgeroute.testing import CannedServer, http_reply

    async def run(url):
        async with AsyncRouter(unsure, PlainJson(url), threshold=0.8) as router:
            return (await router.infer(1)).value

    with CannedServer(http_reply(b'{"value": "b", "confidence": 0.9}')) as server:
        assert asyncio.run(run(server.url)) == "b"


def a_cloud_over_http():
    from edgeroute import PlainJson, Router
    from edgeroute.testing import CannedServer, http_reply

    with CannedServer(http_reply(b'{"value": "b", "confidence": 0.9}')) as server:
        with Router(unsure, PlainJson(server.url), threshold=0.8) as router:
            assert [router.infer(1).value for _ in range(2)] == ["b", "b"]
        url = server.url
    with Router(unsure, PlainJson(url), threshold=0.8) as router:
        answer = router.infer(1)
        assert answer.degraded
        assert "refused" in answer.reason, answer.reason


def state():
    from edgeroute import Router

    for _ in range(2):
        with Router(unsure, lambda _: ("b", 0.9), threshold=0.8, state="state", trace="trace.jsonl") as router:
            assert [router.infer(i).value for i in range(10)] == ["b"] * 10
    assert Path("state/state.db").exists()
    assert Path("state/egress.jsonl").exists()
    assert len(Path("trace.jsonl").read_bytes().splitlines()) == 20


def journal():
    """It is rotated, and what another process has cut off is ended first."""
    from edgeroute.stores.json_lines_and_process_locks import Journal, read

    logs = [Journal("journal.jsonl", max_bytes=60, keep=100) for _ in range(2)]
    for i in range(50):
        logs[i % 2].append({"i": i})
    with Path("journal.jsonl").open("ab") as file:
        file.write(b'{"i": 50')
    logs[0].append({"i": 51})
    for log in logs:
        log.close()
    assert [r["i"] for r in read("journal.jsonl")] == [*range(50), 51]
    assert len([*Path().glob("journal.jsonl.[0-9]*")]) > 2


def outbox():
    from edgeroute import Outbox, Router, Unreachable
    from edgeroute.testing import FakeCloud

    came, late = threading.Event(), []
    cloud = FakeCloud([Unreachable("x"), ("dog", 0.9)])
    box = Outbox("state/outbox.db", spread_s=0)
    with Router(unsure, cloud, threshold=0.8, offline="queue", outbox=box) as router:
        router.on_late(lambda answer: (late.append(answer.value), came.set()))
        answer = router.infer(1)
        assert answer.degraded
        assert came.wait(LONG)
        assert late == ["dog"]


def one_process_delivers():
    from edgeroute.stores.json_lines_and_process_locks import ProcessLock

    one, two = ProcessLock(Path("it.deliver")), ProcessLock(Path("it.deliver"))
    assert one.take()
    assert one.take()
    assert not two.take()
    assert (one.held, two.held) == (True, False)
    one.leave()
    assert two.take(LONG)
    two.leave()


def breaker():
    from edgeroute import Router, Unreachable
    from edgeroute.testing import FakeCloud

    with Router(unsure, FakeCloud([Unreachable("x")]), threshold=0.8) as router:
        codes = [router.infer(1).reason_code for _ in range(5)]
        assert codes[-1] == "breaker", codes
        lines = router.check().lines
    assert any(f"{sys.platform} does not report when the network is back" in text for text in lines), lines


def cache():
    from edgeroute import Cache, PlainJson, Router
    from edgeroute.testing import CannedServer, http_reply

    with CannedServer(http_reply(b'{"value": "b", "confidence": 0.9}')) as server:
        for disk, first in ((None, "cloud"), ("cache.db", "cloud"), ("cache.db", "cache")):
            with Router(unsure, PlainJson(server.url), threshold=0.8, cache=Cache(disk=disk)) as router:
                assert [router.infer(1).source for _ in range(2)] == [first, "cache"]


def a_corrupt_file():
    """It is set aside, though a reader has it open; and where another connection has, that is said."""
    from edgeroute import StoreError
    from edgeroute.stores.sqlite_file_and_key_values import Database

    database = Database(Path("corrupt.db"), "CREATE TABLE IF NOT EXISTS t (x)", durable=True)
    with database.transaction() as connection:
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 1000,)] * 100)
    assert database.read("SELECT count(*) FROM t", ()) == [(100,)]
    database.close()
    Path("corrupt.db").write_bytes(b"no database" * 1000)
    with contextlib.suppress(StoreError), database.transaction():
        pass
    with database.transaction() as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    database.close()
    assert Path("corrupt.db.corrupt-1").exists()


def battery():
    import logging

    from both import flat  # it imports edgeroute, for the system that is simulated by then

    from edgeroute import Options, Reading, Router, Rule

    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("edgeroute").addHandler(handler)
    try:
        with Router(
            unsure, lambda _: ("b", 0.9), threshold=0.8, options=Options(rules=[Rule("battery", "only_edge", 0.2)])
        ) as router:
            assert router.infer(1).value == "b"
            lines = router.check().lines
    finally:
        logging.getLogger("edgeroute").removeHandler(handler)
    assert any("rule of battery: " in text and "never applies" in text for text in said), said
    assert any("rule of battery: " in text and "never applies" in text for text in lines), lines
    own = {"sensors": lambda: Reading(0.1, None), "rules": [Rule("battery", "only_edge", 0.2)]}
    with Router(unsure, lambda _: ("b", 0.9), **flat(threshold=0.8, **own)) as router:
        assert router.infer(1).value == "a"
        assert not any("never applies" in text for text in router.check().lines)


def policy():
    import numpy as np
    import tiny

    from edgeroute import Router

    tiny.linear(Path("edge.onnx"), card={"labels": ["a", "b", "c"]})
    Path("policy.toml").write_text('threshold = 0.5\nstate = "state"\n[edge]\npath = "edge.onnx"\n', encoding="utf-8")
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(600, 4)).astype(np.float32) * 5
    np.savez("data.npz", images=inputs, labels=inputs[:, :3].argmax(1))
    np.save("one.npy", inputs[0])
    with Router.from_policy("policy.toml") as router:
        assert router.infer(inputs[0]).value in {"a", "b", "c"}


def calibrate():
    import numpy as np

    from edgeroute.confidence import calibrate as run

    rng = np.random.default_rng(1)
    assert run(rng.random(2000), rng.random(2000) > 0.01, max_error=0.05).n == 2000


def run(*args):
    """The exit code and the output of a command."""
    from edgeroute.tools.cli.app import app

    said = io.StringIO()
    system = sys.platform
    if args[0] == "simulate":  # it starts processes, as Python does on the real system
        sys.platform = "linux"
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = app([*args], standalone_mode=False)
    finally:
        sys.platform = system
    return code or 0, said.getvalue()


COMMANDS = (
    "--help",
    "check -p policy.toml",
    "decide -p policy.toml one.npy",
    "infer -p policy.toml one.npy --json",
    "calibrate -p policy.toml -d data.npz --max-error 5%",
    "evaluate -p policy.toml -d data.npz --no-cloud --report report.html",
    "replay trace.jsonl -p policy.toml",
    "status --state state",
    "egress --state state",
    "outbox list --state state",
    "outbox export --state state --out exported.jsonl",
    "outbox retry --all --state state",
    "outbox drop --all-dead --state state",
    "schema",
    "simulate fleet --devices 100 --length 2m",
)


def commands():
    for command in COMMANDS:
        code, said = run(*command.split())
        assert code == 0, (command, code, said)
        assert said, command


def serve():
    """It answers, until SIGINT."""
    from http.client import HTTPConnection

    from edgeroute.tools.server.serve import serve as run

    seen = []

    def ask(url):
        try:
            connection = HTTPConnection(url.removeprefix("http://"), timeout=LONG)
            connection.request("GET", "/v2/models/edge")
            seen.append(json.load(connection.getresponse())["name"])
            connection.close()
        finally:
            signal.raise_signal(signal.SIGINT)

    run(["edge.onnx"], port=0, on_ready=lambda url: threading.Thread(target=ask, args=(url,)).start())
    assert seen == ["edge"]


FEATURES = (
    imports, infer, deadline, asyncio_, a_cloud_over_http, journal, one_process_delivers, state, outbox, breaker, cache, a_corrupt_file,
    battery, policy, calibrate, commands, serve,
)  # fmt: skip


def main() -> int:
    """Tries all features; each is told in a line."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        take_away(sys.argv[1], Path(folder))
        fine = [tried(feature) for feature in FEATURES]
        os.chdir("/")
    return 0 if all(fine) else 1


def tried(feature) -> bool:
    """Whether it works; tells so."""
    try:
        feature()
    except BaseException:  # noqa: BLE001 - each is told
        print("BAD", feature.__name__, traceback.format_exc(), flush=True)
        return False
    print("ok", feature.__name__, flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
