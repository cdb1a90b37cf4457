"""`/v1/...`: OpenAI's API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from functools import partial
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgeroute.errors import EdgerouteError
from edgeroute.gateway.asked import Asked, asked, missing, parsed
from edgeroute.gateway.calls import Calls, plain_body, unless_left
from edgeroute.gateway.completions import Completion, event_of, headers_of
from edgeroute.gateway.faults import fault_of
from edgeroute.gateway.options import Options, options
from edgeroute.gateway.routing import Routing
from edgeroute.serve.replies import reply
from edgeroute.system import json_dumps, plain

log = logging.getLogger("edgeroute")
BURST = 4
"""Pieces that are sent before others have their turn, if so many are there: among them what notices that the client has left."""
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}
"""Headers of a stream; the last one is for proxies that would gather it."""


class Completions:
    """POST of a chat, or of a text to be continued: plain ASGI, so that a client that leaves ends its route."""

    def __init__(self, routing: Routing, calls: Calls, names: Collection[str], *, chat: bool) -> None:
        self.routing, self.calls, self.names, self.chat = routing, calls, names, chat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the request, asks the router, and replies."""
        headers = dict(scope["headers"])
        plain_body(headers)
        wanted = options(scope["headers"], self.routing.rules)
        with self.calls.bodies.one() as held:
            body = await held.read(headers.get(b"content-length", b""), receive)
            if body is None:
                return
            found = asked(await self.calls.parse(body, parsed), chat=self.chat, names=self.names)
            del body
            with self.calls.place():
                answered = self._stream if found.stream else self._whole
                await unless_left(answered(found, wanted, send), receive)

    async def _whole(self, found: Asked, wanted: Options, send: Send) -> None:
        answer = await self.routing.infer(found.x, wanted)
        body = json_dumps(Completion(found).whole(answer), plain)
        told = {"content-type": "application/json", "content-length": str(len(body)), **headers_of(answer)}
        await send(_head(told))
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, found: Asked, wanted: Options, send: Send) -> None:
        """The first piece is waited for before the head is sent: until then an error has its own status."""
        made, begun, sent = Completion(found), False, 0
        try:
            async with self.routing.stream(found.x, wanted) as stream:
                async for piece in self.routing.pieces(stream):
                    if not begun:
                        begun = True
                        await send(_head({**EVENTS, **self.routing.source(stream)}))
                        await send(_part(made.begin()))
                    if part := made.piece(piece):
                        await send(_part(part))
                        sent += 1
                        if not sent % BURST:
                            await asyncio.sleep(0)
                assert stream.answer is not None, "a stream that ends has one"
                for part in made.end(stream.answer):
                    await send(_part(part))
        except Exception as e:
            if not begun:
                raise
            if not isinstance(e, EdgerouteError):
                log.exception("a stream failed")
            await send(_part(event_of(fault_of(e).openai())))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def _head(headers: dict[str, str]) -> dict[str, Any]:
    raw = [(name.encode("ascii"), text.encode("ascii")) for name, text in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


class Models:
    """GET of the models: the router, by its names."""

    def __init__(self, names: Collection[str]) -> None:
        self.names, self._about = names, partial(_model, created=int(time()))

    async def all(self, _: Request) -> Response:
        """The list."""
        return reply({"object": "list", "data": [self._about(name) for name in self.names]})

    async def one(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        if name not in self.names:
            raise missing(name, self.names)
        return reply(self._about(name))


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "edgeroute"}
