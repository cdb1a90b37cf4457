"""A gateway on uvicorn in a thread, as the command runs it, and what is sent to it byte by byte."""

from __future__ import annotations

import contextlib
import json
import socket
import threading

import uvicorn

from edgeroute.tools.server.gateway import app
from edgeroute.tools.server.uvicorn_with_client_limits import Connection

HELLO = [{"role": "user", "content": "hello"}]
CHAT = {"model": "edgeroute", "messages": HELLO}
LONG = 120.0


@contextlib.contextmanager
def serving(router, grace_s=5, **options):
    """-> its URL; `options` as of `app`. The router is closed at the end, by the application."""
    with hosting(app(router, **options), grace_s) as url:
        yield url


@contextlib.contextmanager
def hosting(application, grace_s=5):
    """-> the URL of an application."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, http=Connection, log_config=None, ws="none", timeout_graceful_shutdown=grace_s)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def connected(url):
    """A connection to it."""
    host, _, port = url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=LONG)


def post(path, body, *lines, host="localhost", kind="application/json"):
    """The bytes of a request."""
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [
        f"POST {path} HTTP/1.1",
        f"Host: {host}",
        f"Content-Length: {len(text)}",
        *([f"Content-Type: {kind}"] if kind else []),
        *lines,
    ]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + text


def raw(url, *parts):
    """What it replies to these bytes until it closes the connection."""
    with connected(url) as connection:
        for part in parts:
            connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def events(text):
    """The data of server-sent events, decoded but for the last, which is `[DONE]`."""
    data = [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]
