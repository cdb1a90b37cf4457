"""A page in the browser: each frame as a JPEG over a WebSocket, and beside it what is drawn over it, as JSON."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from overlay import Drawn, jpeg
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

OWN = ["127.0.0.1", "localhost"]
"""Names under which a browser may ask: another would be a foreign page whose name leads here."""
LAST_S = 2.0
"""So long a browser may take to get what it lacks as the page ends."""
RULES = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'",
    "Cache-Control": "no-store",
}


class Page:
    """Serves the page on 127.0.0.1, in a thread of its own. Who is slow to receive gets fewer frames, each the newest.

    Args:
        port: 0 for any that is free.

    Raises:
        OSError: the port is not to be had.
        RuntimeError: the server did not start.
    """

    def __init__(self, port: int = 0) -> None:
        self._newest: tuple[str, bytes] | None = None
        self._waiting: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready, self._closed, self._unseen = threading.Event(), False, threading.Event()
        self._unseen.set()  # by any browser
        routes = [Route("/", _page), WebSocketRoute("/frames", self._feed)]
        guard = Middleware(TrustedHostMiddleware, allowed_hosts=OWN)
        app = Starlette(routes=routes, middleware=[guard], lifespan=self._lifespan)
        listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        config = uvicorn.Config(app, log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=2)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._run, args=[listener], daemon=True)
        self.thread.start()
        self._ready.wait()
        if self._loop is None:
            raise RuntimeError("the page's server did not start; what it printed says why")

    def show(self, drawn: Drawn) -> bool:
        """Sends it to all browsers that look. -> whether to go on."""
        self._newest = json.dumps(drawn.told()), jpeg(drawn.frame)
        self._ring()
        return self.thread.is_alive()

    def close(self) -> None:
        """Ends the server, once browsers have got the last frame, which stays on the page; slow ones are not waited for long."""
        self._closed = True
        self._ring()
        self._unseen.wait(LAST_S)
        self.server.should_exit = True
        self.thread.join()

    def _run(self, listener: socket.socket) -> None:
        try:
            self.server.run(sockets=[listener])
        finally:
            listener.close()
            self._ready.set()  # so that nobody waits for what has failed

    def _ring(self) -> None:
        def ring() -> None:
            for one in self._waiting:
                one.set()

        assert self._loop is not None, "it runs"
        with suppress(RuntimeError):  # the server has ended by itself, and its loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(ring)

    async def _feed(self, browser: WebSocket) -> None:
        if browser.headers.get("origin", "") != f"http://{browser.headers['host']}":
            await browser.close()  # a page of another site would see through this camera
            return
        await browser.accept()
        changed, sent = asyncio.Event(), None
        changed.set()
        self._waiting.add(changed)
        self._unseen.clear()
        try:
            while not (self._closed and self._newest is sent):
                await changed.wait()
                changed.clear()
                newest = self._newest
                if newest is not None and newest is not sent:
                    sent = newest
                    await browser.send_text(newest[0])
                    await browser.send_bytes(newest[1])
            await browser.close()
        except WebSocketDisconnect:
            pass
        finally:
            self._waiting.discard(changed)
            if not self._waiting:
                self._unseen.set()

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        yield


async def _page(_: Request) -> Response:
    return HTMLResponse(Path(__file__).with_name("page.html").read_text(encoding="utf-8"), headers=RULES)
