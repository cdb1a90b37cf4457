"""Runs the application on uvicorn."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeroute.edge.load import load
from edgeroute.errors import PolicyError, RuntimeMissing
from edgeroute.types import EdgeModel

if TYPE_CHECKING:
    from edgeroute.serve.served import Served

try:
    import uvicorn

    from edgeroute.serve.app import app
    from edgeroute.serve.notify import Notify
    from edgeroute.serve.watch import watch
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[serve]'") from e


def serve(
    models: Sequence[str | Path | EdgeModel],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    threads: int = 1,
    max_batch: int = 32,
    queue: int = 256,
    max_body_bytes: int = 64 << 20,
    max_json_bytes: int = 16 << 20,
    max_bodies_bytes: int = 256 << 20,
    body_timeout_s: float = 30.0,
    on_ready: Callable[[str], object] | None = None,
) -> int:
    """Serves models until SIGTERM or SIGINT, then finishes requests in progress, for at most 5 s.

    Returns the number of that signal; 0 in a thread, which hears of none. A service manager, such as systemd, is told when it is
    ready, that it is alive while its models answer, and that it stops.

    Args:
        models: paths of model files, each with its card beside it if there is one; `module:name` of a model or a function in
            Python; or models.
        host: to listen on; the default accepts only this machine. There is no authentication.
        port: 0 selects a free one.
        threads: per run of a model file.
        max_batch: rows of several requests merged into one run.
        queue: requests that may wait for one model.
        max_body_bytes: of a request.
        max_json_bytes: of the JSON in it.
        max_bodies_bytes: of all requests in progress.
        body_timeout_s: within which a request's body must have come.
        on_ready: called with the URL, once it is listening.

    Raises:
        PolicyError: it cannot listen there, there is no such module or name, or as `app`.
        ModelError: a model cannot be loaded.
    """
    application = app(
        [named(model, threads) for model in models],
        max_batch=max_batch, queue=queue, max_body_bytes=max_body_bytes, max_json_bytes=max_json_bytes,
        max_bodies_bytes=max_bodies_bytes, body_timeout_s=body_timeout_s,
    )  # fmt: skip
    config = uvicorn.Config(
        application,
        http="h11",  # the parser whose limits and refusals are tested, whatever else is installed
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=75,  # seconds; a router may call rarely, and a new connection costs it round trips
        timeout_graceful_shutdown=5,
    )
    with _listen(host, port) as listener, _signals() as heard:
        at = listener.getsockname()
        url = f"http://[{at[0]}]:{at[1]}" if listener.family == socket.AF_INET6 else f"http://{at[0]}:{at[1]}"
        _Server(config, on_ready, url, heard, application.state.served.values()).run([listener])
    return heard[0] if heard else 0


def named(model: str | Path | EdgeModel, threads: int = 1) -> EdgeModel:
    """The model at a path, or by its name in Python, `module:name`.

    Raises:
        PolicyError: there is none.
        ModelError: it cannot be made.
    """
    if not isinstance(model, str | Path):
        return load(model)
    found = _NAMED.fullmatch(str(model))
    if found is None:
        return load(model, **({} if threads == 1 else {"threads": threads}))
    sys.path.insert(0, str(Path.cwd()))
    try:
        thing: Any = importlib.import_module(found[1])
        for part in found[2].split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError) as e:
        raise PolicyError(f"{model} is no model in Python: {e}") from e
    finally:
        sys.path.pop(0)
    return load(thing)


_NAMED = re.compile(r"([^\W\d]\w+(?:\.\w+)*):([^\W\d]\w*(?:\.\w+)*)")
"""A letter and a colon are a drive, and no module."""


class _Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        on_ready: Callable[[str], object] | None,
        url: str,
        heard: list[int],
        served: Iterable[Served],
    ) -> None:
        super().__init__(config)
        self._on_ready, self._url, self._heard, self._served = on_ready, url, heard, served
        self._notify = Notify()
        self._watch: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._heard:  # before uvicorn listened to signals
            self.should_exit = True
        elif self.started:
            if self._notify:
                self._watch = asyncio.create_task(watch(self._served, self._notify))
            if self._on_ready is not None:
                self._on_ready(self._url)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        with self._notify:  # which says that it stops
            pass
        await super().shutdown(sockets)


def _listen(host: str, port: int) -> socket.socket:
    # The protocol is explicit because asyncio sets TCP_NODELAY only then; without it replies wait for an ACK.
    listener: socket.socket | None = None
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        if os.name == "posix":  # elsewhere it would share the port with another server
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as e:
        if listener is not None:
            listener.close()
        raise PolicyError(f"cannot listen on {host}:{port}: {e}; choose another host or port, 0 for a free one") from e
    return listener


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects signals that come before uvicorn listens, and those that it raises again at its end, which would end more."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = {sig: signal.signal(sig, lambda number, _: heard.append(number)) for sig in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for sig, was in before.items():
            signal.signal(sig, was)
