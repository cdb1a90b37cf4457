"""Starts the prototypes, each in a process of its own, and shows them on one page: `make show`.

python examples/show/main.py                 the page; Ctrl-C ends it, and all that it has started
python examples/show/main.py --start ar demo starts these at once; --start alone: all that are set up
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, NamedTuple

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from framed import LONG_S, Window

from edgeroute.tools.state_colours_and_marks import STATES, css

ROOT = Path(__file__).resolve().parents[2]
PAGE = Path(__file__).with_name("page.html")
PRINTED = re.compile(r"http://127\.0\.0\.1:\d+/?(?:#[\w=-]+)?(?=[\s;,.)]|$)")
"""The address that a prototype prints once its page is there."""
KEPT, PATIENCE_S, ENDS = 2, 5.0, (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""Lines of a log; seconds after which a signal is followed by a stronger one; signals that end the show."""
ENDING = threading.Event()
RULES = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
    "frame-src 'self' http://127.0.0.1:*; frame-ancestors 'none'"
)


class Prototype(NamedTuple):
    """Row of prototypes.toml, which says what each field is."""

    title: str
    seconds: int
    says: str
    command: list[str]
    needs: str = ""
    result: str = ""
    refuses: bool = False
    variables: Mapping[str, str] = MappingProxyType({})


with Path(__file__).with_name("prototypes.toml").open("rb") as _file:
    PROTOTYPES = {name: Prototype(**row) for name, row in tomllib.load(_file).items()}


class Running:
    """Process of a prototype, or none yet. It leads a group of its own, so that what it starts ends with it.

    Args:
        what: the prototype.
        folder: for what it keeps while it runs.
        show: the address of the show.
    """

    def __init__(self, what: Prototype, folder: Path, show: str) -> None:
        self.what, self._folder, self._show = what, folder, show
        self._process: subprocess.Popen[str] | None = None
        self._lines, self._url, self._port = deque[str](maxlen=KEPT), "", 0
        self._window: Window | None = None
        self._lock, self.closed = threading.Lock(), False

    def start(self) -> None:
        """Start its process on free ports, in its own group, and a thread that reads it; nothing if it runs or is not set up."""
        with self._lock:
            if self.closed or not self._ready() or (self._process is not None and self._process.poll() is None):
                return
            with socket.socket() as one, socket.socket() as other:
                ports = [free.bind(("127.0.0.1", 0)) or free.getsockname()[1] for free in (one, other)]
            given = {"port": ports[0], "beside": ports[1], "folder": self._folder, "python": sys.executable}
            variables = {name: value.format(**given) for name, value in self.what.variables.items()}
            self._port = given["port"] if "{port}" in self.what.variables.values() else 0
            self._lines, self._url = deque(maxlen=KEPT), ""
            path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            self._process = subprocess.Popen(  # noqa: S603 - the table's commands
                [word.format(**given) for word in self.what.command], cwd=ROOT, start_new_session=True, text=True,
                errors="replace", env={**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **variables},
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            threading.Thread(target=self._read, args=[self._process, self._lines], daemon=True).start()

    def _read(self, process: subprocess.Popen[str], lines: deque[str]) -> None:
        """Keep the last lines of a process, without what is secret in an address, and its address; end its window with it.

        A page that refuses to be framed gets a window that passes it on.
        """
        assert process.stdout is not None
        window = None
        for line in process.stdout:
            if line.strip():
                lines.append(re.sub(r"#\S*", "", line.strip())[:300])
            if (found := PRINTED.search(line)) and not self._url and process is self._process and not self._port:
                if self.what.refuses:
                    window = self._window = Window(found[0], self._show)
                self._url = window.url if window else found[0]
        if window:
            window.close()

    def stop(self, *, wait: bool = True) -> None:
        """Send its group SIGINT, as Ctrl-C does, then SIGTERM and SIGKILL, each after 5 s; without `wait` the first one alone.

        Also closes its window.
        """
        with self._lock:
            process = self._process
            if self._window is not None:
                self._window.close()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                if process is None or process.poll() is not None:
                    break
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                if not wait:
                    return
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE_S)
            if process is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it has started, and not ended
                process.wait()

    def _ready(self) -> bool:
        return not self.what.needs or (ROOT / self.what.needs).exists()

    def result(self) -> Path | None:
        """Return the file that the program has written, once it has ended well."""
        file = ROOT / self.what.result
        return file if self.what.result and self._process is not None and self._process.poll() == 0 and file.is_file() else None

    def state(self, name: str) -> dict[str, Any]:
        """Return what the page shows of it, as JSON values; tries to connect to its port if its address is not known yet."""
        process, url = self._process, self._url
        if self._port and not url:
            with socket.socket() as tried:
                url = self._url = "" if tried.connect_ex(("127.0.0.1", self._port)) else f"http://127.0.0.1:{self._port}/"
        code = None if process is None else process.poll()
        if process is None:
            state = "ready" if self._ready() else "not set up"
        elif code is None:
            state = "runs" if url else "starts"
        elif self.result() is not None:
            state, url = "done", f"/result/{name}"
        else:
            state, url = f"has ended with {code}", ""
        log = [*self._lines] if self._ready() else [f"make {self.what.needs}    sets it up"]
        return {"state": state, "url": url, "log": log, "pid": None if process is None or code is not None else process.pid}


class Show(ThreadingHTTPServer):
    """Server of the page, on 127.0.0.1. Other users of this machine reach it, too, so the page's address has a key.

    Args:
        port: 0 for any that is free.
        folder: for what the prototypes keep while they run.
    """

    daemon_threads = True

    def __init__(self, port: int, folder: Path) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.key = secrets.token_urlsafe(24)
        self.running = {name: Running(what, folder / name, self.url) for name, what in PROTOTYPES.items()}

    def service_actions(self) -> None:
        """End the program after a signal whose exit was lost: Python drops what is raised in a finalizer."""
        if ENDING.is_set():
            sys.exit(0)

    def close(self) -> None:
        """End the server, and all that it has started; waits for that."""
        self.server_close()
        for one in self.running.values():
            one.closed = True
            one.stop(wait=False)
        for one in self.running.values():
            one.stop()


class Handler(BaseHTTPRequestHandler):
    """Replies to browsers on this machine; without the key, or from another origin, nothing is told, started or stopped."""

    server: Show
    timeout = LONG_S

    def do_GET(self) -> None:
        """Reply with the page, the states, or a result; 403 to other origins, and for states without the key; 404 for others."""
        kind, _, name = self.path.strip("/").partition("/")
        if not kind and self.headers["Host"] == f"localhost:{self.server.server_port}":
            self._reply(307, Location=f"{self.server.url}/")  # the frames are for that origin; a browser keeps the key
        elif not self._own() or (kind == "state" and not self._has_key()):
            self._reply(403)
        elif not kind:
            table = {name: {"title": one.title, "says": one.says, "seconds": one.seconds} for name, one in PROTOTYPES.items()}
            states = [[state.word, state.mark, state.meaning] for state in STATES.values()]
            text = PAGE.read_text(encoding="utf-8").replace("/*PALETTE*/", css())
            text = text.replace('"TABLE"', json.dumps(table)).replace('"STATES"', json.dumps(states))
            self._reply(200, text, "text/html", RULES)
        elif kind == "state":
            self._reply(200, json.dumps({name: one.state(name) for name, one in self.server.running.items()}), "application/json")
        elif kind == "result" and name in self.server.running and (file := self.server.running[name].result()):
            self._reply(200, file.read_text(encoding="utf-8"), "text/html", "sandbox allow-scripts")
        else:
            self._reply(404)

    def do_POST(self) -> None:
        """Start or stop a prototype, and reply 204; 403 without the key or from another origin, 404 for no such one."""
        action, _, name = self.path.strip("/").partition("/")
        if not self._own() or self.headers["Origin"] != self.server.url or not self._has_key():
            self._reply(403)
        elif action not in {"start", "stop"} or name not in self.server.running:
            self._reply(404)
        else:
            one = self.server.running[name]
            one.start() if action == "start" else one.stop()
            self._reply(204)

    def _own(self) -> bool:
        """Return False for a foreign page whose name leads here."""
        return f"http://{self.headers['Host']}" == self.server.url

    def _has_key(self) -> bool:
        return secrets.compare_digest((self.headers["Show-Key"] or "").encode(), self.server.key.encode())

    def _reply(
        self, status: int, text: str = "", kind: str = "text/plain", rules: str = "default-src 'none'", **more: str
    ) -> None:
        """Send a reply of text, with its rules for the browser; a browser that has gone does not matter."""
        self.send_response(status)
        for name, value in (("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(text.encode()))),
                            ("Content-Security-Policy", rules), ("Cache-Control", "no-store"), *more.items()):  # fmt: skip
            self.send_header(name, value)
        with suppress(ConnectionError):  # the browser has gone
            self.end_headers()
            self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Print nothing of a request."""


def end(*_: object) -> None:
    """End the program at the first signal; further ones do not disturb the end."""
    for number in ENDS:
        signal.signal(number, signal.SIG_IGN)
    ENDING.set()
    sys.exit(0)


def main(arguments: list[str]) -> None:
    """Serve the page, start what is asked for, and end all of it at the end.

    Raises:
        SystemExit: the page cannot have its port.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8900, help="of the page; 0: any that is free")
    parser.add_argument("--start", nargs="*", choices=PROTOTYPES, help="start these at once; without names all")
    given = parser.parse_args(arguments)
    for number in ENDS:
        signal.signal(number, end)
    with TemporaryDirectory() as folder:
        try:
            show = Show(given.port, Path(folder))
        except (OSError, OverflowError) as e:
            raise SystemExit(f"the page cannot have port {given.port}: {e}. --port 0 takes any that is free") from e
        try:
            print(f"open {show.url}/#key={show.key} (Ctrl-C ends it, and all that it has started)", flush=True)
            for name in PROTOTYPES if given.start == [] else given.start or ():
                show.running[name].start()
            show.serve_forever()
        finally:
            show.close()


if __name__ == "__main__":
    main(sys.argv[1:])
