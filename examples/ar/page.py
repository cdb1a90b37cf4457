"""A page in the browser: frames as JPEG over a WebSocket, and what is read in them, as JSON; the browser sends its camera's."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from overlay import Drawn, jpeg, replaced
from sources import Camera
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from edgeroute.tools import state_colours_and_marks as palette

OWN = ["127.0.0.1", "localhost"]  # names under which a browser may ask: another would be a foreign page whose name leads here
LAST_S = 2.0  # so long a browser may take to get what it lacks as the page ends
MOST_BYTES = 4 << 20  # of a frame of the browser's camera
NAMES: tuple[palette.StateName, ...] = ("edge", "cloud", "waiting", "degraded", "private")
RULES = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; frame-ancestors http://127.0.0.1:* http://localhost:*",
    "Cache-Control": "no-store",
}


class Page:
    """Serves the page on 127.0.0.1, in a thread of its own. Who is slow to receive gets fewer frames, each the newest.

    Args:
        port: 0 for any that is free.
        camera: what takes the frames of the browser's camera; None: it is not asked for.

    Raises:
        OSError: the port is not to be had.
        RuntimeError: the server did not start.
    """

    def __init__(self, port: int = 0, camera: Camera | None = None) -> None:
        self._camera, self._cut, self._away = camera, None, False
        self._newest: Drawn | None = None
        self._pictured: tuple[Drawn | None, bytes] = None, b""
        self._waiting: set[asyncio.Event] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready, self._closed, self._unseen = threading.Event(), False, threading.Event()
        self._unseen.set()  # by any browser
        routes = [Route("/", _page), WebSocketRoute("/frames", self._feed)]
        guard = Middleware(TrustedHostMiddleware, allowed_hosts=OWN)
        app = Starlette(routes=routes, middleware=[guard], lifespan=self._lifespan)
        listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        config = uvicorn.Config(
            app, log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=2, ws_max_size=MOST_BYTES
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self._run, args=[listener], daemon=True)
        self.thread.start()
        self._ready.wait()
        if self._loop is None:
            raise RuntimeError("the page's server did not start; what it printed says why")

    def switch(self, cut: Callable[[bool], object]) -> None:
        """Offer a switch that cuts the cloud off: `cut(True)` is called as it is set, and `cut(False)` as it is set back."""
        self._cut = cut

    def show(self, drawn: Drawn) -> bool:
        """Sends it to all browsers that look. -> whether to go on."""
        self._newest = drawn
        self._ring()
        return self.thread.is_alive()

    def close(self) -> None:
        """End the server, once browsers have got the last frame, which stays on the page; wait 2 s at most for slow ones."""
        self._closed = True
        self._ring()
        self._unseen.wait(LAST_S)
        self.server.should_exit = True
        self.thread.join()
        if self._camera is not None:
            self._camera.off()  # no browser can, and who waits for its frames would wait until it counts as away

    def _run(self, listener: socket.socket) -> None:
        """Serve on that socket until the end, and close it; release who waits for the start, also if it has failed."""
        try:
            self.server.run(sockets=[listener])
        finally:
            listener.close()
            self._ready.set()  # so that nobody waits for what has failed

    def _ring(self) -> None:
        """Wake all browsers' tasks on the server's loop; nothing if the server has ended."""

        def ring() -> None:
            for one in self._waiting:
                one.set()

        assert self._loop is not None, "it runs"
        with suppress(RuntimeError):  # the server has ended by itself, and its loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(ring)

    async def _feed(self, browser: WebSocket) -> None:
        """Send a browser each newest picture, with its words and the switches as JSON, until it goes or the page ends.

        A page of another site is closed at once, as it would see through this camera.
        """
        if browser.headers.get("origin", "") != f"http://{browser.headers['host']}":
            await browser.close()  # a page of another site would see through this camera
            return
        await browser.accept()
        changed, sent = asyncio.Event(), None
        changed.set()
        self._waiting.add(changed)
        self._unseen.clear()
        listens = asyncio.create_task(self._listen(browser, changed))
        try:
            while not listens.done() and not (self._closed and self._newest is sent):
                await changed.wait()
                changed.clear()
                newest = self._newest
                if newest is not None and newest is not sent:
                    sent = newest
                    picture = await run_in_threadpool(self._picture, newest)
                    await browser.send_text(json.dumps({**newest.told(), **self._switches()}))
                    await browser.send_bytes(picture)
            if not listens.done():
                await browser.close()
        except WebSocketDisconnect:
            pass
        finally:
            listens.cancel()
            self._waiting.discard(changed)
            if not self._waiting:
                self._unseen.set()

    async def _listen(self, browser: WebSocket, changed: asyncio.Event) -> None:
        """Take what the browser sends until it goes: frames of its camera, and how the switches stand."""
        try:
            while (got := await browser.receive())["type"] != "websocket.disconnect":
                with suppress(ValueError, TypeError, AttributeError, RecursionError):  # no frame, and no switch: ignored
                    await self._take(got)
        finally:
            changed.set()

    async def _take(self, got: Any) -> None:
        """Use what a browser sends: a frame for the camera, the camera's end, or a switch of the link, called in a thread."""
        if got.get("bytes") is not None and self._camera is not None:
            await run_in_threadpool(self._camera.put, got["bytes"])
            return
        told = json.loads(got.get("text") or "{}")
        if told.get("camera") is False and self._camera is not None:
            self._camera.off()
        if isinstance(told.get("cut"), bool) and self._cut is not None:
            self._away = told["cut"]
            await run_in_threadpool(self._cut, self._away)

    def _switches(self) -> dict[str, Any]:
        """Return how the switches stand; None: there is none."""
        return {"cut": None if self._cut is None else self._away, "camera": None if self._camera is None else self._camera.on}

    def _picture(self, drawn: Drawn) -> bytes:
        """Return a JPEG: what the device reads, and beside it the answer; kept for other browsers until the next."""
        if self._pictured[0] is not drawn:
            device = replaced(drawn.frame, drawn.device, "edge")
            self._pictured = drawn, jpeg(np.hstack([device, replaced(drawn.frame, drawn.words, drawn.state)]), 80)
        return self._pictured[1]

    @asynccontextmanager
    async def _lifespan(self, _: Any) -> AsyncIterator[None]:
        """Note the server's loop, and release who waits for the start."""
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        yield


async def _page(_: Request) -> Response:
    """Return the page with the states' colours and meanings in it."""
    states = {name: {"mark": palette.STATES[name].mark, "meaning": palette.STATES[name].meaning} for name in NAMES}
    states["waiting"]["meaning"] = "the cloud is being asked; its answer comes in place of this one"
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return HTMLResponse(text.replace("/*palette*/", palette.css()).replace("{/*states*/}", json.dumps(states)), headers=RULES)
