"""A page on which each utterance lights up stage by stage, and from which sentences are said; for browsers on this device."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from dialogue import Dialogue, Reply, Step
from matrix import NOISES, VOICES, Case, noisy
from sound import NoSound, Samples, chunks, spoken

from edgeroute.tools.state_colours_and_marks import STATES, css

OWN = {"127.0.0.1", "localhost"}
"""Names under which a browser may ask: another would be a foreign page whose name leads here."""
RULES = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; frame-ancestors http://127.0.0.1:* http://localhost:*",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}
SITES = {None, "none", "same-origin"}
"""What a browser says of the page that asks, in `Sec-Fetch-Site`: none, or this one."""
DIGITS = 9
"""Of a number in a request, at most."""
MOST_EVENTS, MOST_BROWSERS, MOST_WAITING = 300, 16, 20
"""Events that a page gets that is opened later; pages at a time; sentences that wait to be said."""
MOST_BYTES, MOST_TEXT = 4_000, 200
"""Of a request, and characters of a sentence."""
BEAT_S = 10.0
"""So often a page is told something, so that one that has gone is noticed."""


class Page:
    """Server of the page, on 127.0.0.1 in threads of its own.

    Args:
        dialogue: whose steps are shown; its `trace` is set.
        port: 0 for any that is free.

    Raises:
        OSError: the port is not to be had.
    """

    def __init__(self, dialogue: Dialogue, port: int = 0) -> None:
        self._home = dialogue.home
        dialogue.trace = self.step
        self._events: deque[tuple[int, str]] = deque(maxlen=MOST_EVENTS)
        self._number, self._changed, self._closed = 0, threading.Condition(), False
        self._browsers = threading.BoundedSemaphore(MOST_BROWSERS)
        self._asked: Queue[Samples | None] = Queue(MOST_WAITING)
        page = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 60.0

            def do_GET(self) -> None:
                page.get(self)

            def do_POST(self) -> None:
                page.post(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End the server, the browsers' events and the sentences to come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with suppress(Full):
            self._asked.put_nowait(None)
        self._server.shutdown()
        self._server.server_close()

    def step(self, step: Step) -> None:
        """Show what has become known about an utterance."""
        self._tell(step._asdict())

    def show(self, reply: Reply | str) -> None:
        """Show a reply, or a note, and what the skills act upon after it."""
        if isinstance(reply, Reply):
            names = "kind", "heard", "unheard", "text", "reason", "final", "skill", "state"
            self._tell({"stage": "reply", **{name: getattr(reply, name) for name in names}})
        else:
            self._tell({"stage": "note", "text": reply})
        running = [{"kind": one.kind, "name": one.name, "ends": one.ends.timestamp()} for one in self._home.running()]
        self._tell({"stage": "home", "running": running, "items": self._home.items, "volume": self._home.volume})

    def sentences(self) -> Iterator[Samples]:
        """Yield what the page's box says, as it is said, until the page is closed."""
        while (samples := self._asked.get()) is not None:
            yield samples

    def beside(self, microphone: Iterable[Any]) -> Iterator[Any]:
        """Yield the chunks of a microphone, and what the page's box says in place of them."""
        for chunk in microphone:
            yield chunk
            with suppress(Empty):
                if (samples := self._asked.get_nowait()) is not None:
                    yield from ((own * 32767).astype(chunk.dtype) for own in chunks([samples]))

    def _tell(self, event: dict[str, Any]) -> None:
        """Number an event, keep the latest 300, and wake the browsers' threads."""
        with self._changed:
            self._number += 1
            self._events.append((self._number, json.dumps(event)))
            self._changed.notify_all()

    def get(self, request: BaseHTTPRequestHandler) -> None:
        """Answer with the page, or with its events for as long as it is open, 16 browsers at a time.

        Others get 403 (another site or host), 404, 400 or 503.
        """
        if not _own(request):
            _refuse(request, 403)
        elif request.path == "/":
            _send(request, _html(), "text/html; charset=utf-8")
        elif request.path != "/events":
            _refuse(request, 404)
        elif not _same(request):
            _refuse(request, 403)
        elif len(request.headers.get("Last-Event-ID", "")) > DIGITS:
            _refuse(request, 400)
        elif not self._browsers.acquire(blocking=False):
            _refuse(request, 503)
        else:
            try:
                request.send_response(200)
                request.send_header("Content-Type", "text/event-stream")
                request.send_header("Cache-Control", "no-store")
                request.end_headers()
                self._feed(request)
            except OSError:
                pass  # it was closed
            finally:
                self._browsers.release()

    def _feed(self, request: BaseHTTPRequestHandler) -> None:
        """Write the events after the browser's last one as they come, and a sign of life each 10 s, until the page ends."""
        last = request.headers.get("Last-Event-ID", "0")
        seen = int(last) if last.isascii() and last.isdigit() else 0
        if seen > self._number:  # of another run
            seen = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda seen=seen: self._closed or self._number > seen, BEAT_S)
                if self._closed:
                    return
                new = [(number, event) for number, event in self._events if number > seen]
            text = "".join(f"id: {number}\ndata: {event}\n\n" for number, event in new) or ": still here\n\n"
            request.wfile.write(text.encode())
            request.wfile.flush()
            seen = new[-1][0] if new else seen

    def post(self, request: BaseHTTPRequestHandler) -> None:
        """Render a sentence that the page asks for, and queue it to be heard; a page of another site may not.

        A wrong one gets 400, and 503 if too many wait or espeak-ng is missing.
        """
        length = request.headers.get("Content-Length", "")
        origin = f"http://{request.headers.get('Host')}"
        if not _own(request) or not _same(request) or request.headers.get("Origin") != origin:
            _refuse(request, 403)
        elif len(length) > DIGITS:
            _refuse(request, 400)
        elif request.path != "/say" or not length.isascii() or not length.isdigit() or int(length) > MOST_BYTES:
            _refuse(request, 404)
        else:
            try:
                samples = _rendered(json.loads(request.rfile.read(int(length))))
                self._asked.put_nowait(samples)
            except (ValueError, TypeError, KeyError, RecursionError):
                _refuse(request, 400)
            except (Full, NoSound) as e:
                _send(request, str(e) or "Too many sentences wait to be said.", "text/plain; charset=utf-8", 503)
            else:
                _send(request, "", "text/plain; charset=utf-8")


def _rendered(given: Any) -> Samples:
    """Return a sentence in a voice and a noise of the script.

    Raises:
        ValueError, TypeError, KeyError: there is no such voice or noise, or the text is none.
    """
    text, voice, noise = given["text"], given["voice"], given["noise"]
    known = voice in VOICES and noise in {*NOISES, "none"}
    if not known or not isinstance(text, str) or not 0 < len(text.strip()) <= MOST_TEXT:
        raise ValueError("no such sentence")
    return spoken(text, voice) if noise == "none" else noisy(Case(text, voice, noise, "", ""))


def _html() -> str:
    """Return the page with the palette, and the voices and noises that it offers."""
    states = {name: [state.mark, state.meaning] for name, state in STATES.items()}
    known = {"states": states, "voices": VOICES, "noises": ["none", *NOISES]}
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return text.replace("/* palette */", css()).replace('"known"', json.dumps(known).replace("<", "\\u003c"))


def _own(request: BaseHTTPRequestHandler) -> bool:
    return request.headers.get("Host", "").rpartition(":")[0] in OWN


def _same(request: BaseHTTPRequestHandler) -> bool:
    """Return whether no page of another site asks: such pages may open or frame this page, but not what it shows."""
    return request.headers.get("Sec-Fetch-Site") in SITES


def _refuse(request: BaseHTTPRequestHandler, status: int) -> None:
    _send(request, "", "text/plain; charset=utf-8", status)


def _send(request: BaseHTTPRequestHandler, text: str, kind: str, status: int = 200) -> None:
    """Send a reply of text; a browser that has gone does not matter."""
    data = text.encode()
    with suppress(OSError):  # it has gone
        request.send_response(status)
        for name, value in {**RULES, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)
