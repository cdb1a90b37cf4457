"""POST .../infer: handles one request from body to reply."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgeroute.cloud.openinference import LENGTH
from edgeroute.errors import BadInput
from edgeroute.serve import protocol
from edgeroute.serve.batching import Tensors
from edgeroute.serve.served import Served, find

_LENGTH = LENGTH.lower().encode()


class Infer:
    """Plain ASGI, which allows streaming the body, and detecting that the client disconnects while its request waits."""

    def __init__(self, served: Mapping[str, Served], max_body_bytes: int) -> None:
        self.served, self.max_body_bytes = served, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the request, queues it, and sends the reply."""
        model = find(self.served, scope)
        headers = dict(scope["headers"])
        body = await self._body(headers.get(b"content-length", b""), receive)
        if body is None:
            return
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise BadInput("the body is compressed, which this server does not read: send it as it is")
        length = headers.get(_LENGTH)
        ask = protocol.read(body, None if length is None else length.decode("latin-1"), model.inputs, model.outputs)
        done = model.submit(ask)
        watch = asyncio.create_task(_withdraw(done, receive))
        try:
            results = await done
        except asyncio.CancelledError:
            if watch.done():
                return  # the client has disconnected
            raise
        finally:
            watch.cancel()
        reply = protocol.write(ask, results, model.name)
        await Response(reply.body, headers=reply.headers)(scope, receive, send)

    async def _body(self, announced: bytes, receive: Receive) -> bytes | None:
        """The whole body; None: the client disconnected."""
        parts: list[bytes] = []
        size, more = int(announced) if announced.isdigit() else 0, True
        self._check(size)
        size = 0
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._check(size)
            more = message.get("more_body", False)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check(self, size: int) -> None:
        if size > self.max_body_bytes:
            raise HTTPException(413, f"the body has more than {self.max_body_bytes} bytes: send fewer rows at a time")


async def _withdraw(done: asyncio.Future[Tensors], receive: Receive) -> None:
    """Cancels a request when its client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    done.cancel()
