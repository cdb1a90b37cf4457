"""A small HTTP server for this machine alone: the metrics, and the live page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import MappingProxyType
from typing import Any, NamedTuple

HOSTS = frozenset({"127.0.0.1", "localhost"})
"""Names by which it is asked. Another one may be a web page's own name, which was made to lead to this machine."""
SILENT_S = 10.0
"""A connection that says nothing for so long ends."""


class Reply(NamedTuple):
    """Body of a reply with status 200."""

    body: bytes
    content_type: str
    headers: Mapping[str, str] = MappingProxyType({})


Asked = Callable[[str, Message], "Reply | None"]
"""Answers a path, given the headers; None: there is nothing of that name."""


@contextmanager
def answering(port: int, get: Asked, post: Asked | None = None) -> Iterator[str]:
    """Serve on loopback, in a thread; yield the address without a path, and stop at the end of the block.

    `get` and `post` give a reply for a path, or None for 404. `post` is called for requests of its own pages alone, since a page
    of another site could press buttons. Requests under another host's name get 403.

    Raises:
        SystemExit: the port is taken, or is no port.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = SILENT_S

        def do_GET(self) -> None:
            """Answer a question."""
            self._answer(get)

        def do_POST(self) -> None:
            """Press a button."""
            origin = self.headers.get("Origin")
            if origin is not None and origin != f"http://{self.headers.get('Host')}":
                self.send_error(403, "This is for the page itself")
                return
            self._answer(post)

        def _answer(self, asked: Asked | None) -> None:
            if self.headers.get("Host", "").partition(":")[0].lower() not in HOSTS:
                self.send_error(403, "This is for this machine")
                return
            reply = asked and asked(self.path.partition("?")[0], self.headers)
            if reply is None:
                self.send_error(404)
                return
            self.send_response(200)
            for name, value in {
                "Content-Type": reply.content_type,
                "Content-Length": str(len(reply.body)),
                "Cache-Control": "no-store",
                **reply.headers,
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *_: Any) -> None:
            """Log nothing."""

    try:
        listening = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as e:
        raise SystemExit(f"cannot listen on 127.0.0.1:{port}: {e}; choose another --port, 0 for a free one") from None
    with listening as server:
        thread = Thread(target=server.serve_forever, name="http")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
