"""POST .../infer: handles one request from body to reply."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgeroute.cloud.openinference import LENGTH
from edgeroute.errors import BadInput, RuntimeMissing
from edgeroute.serve import protocol
from edgeroute.serve.batching import Tensors
from edgeroute.serve.bodies import Bodies, Body
from edgeroute.serve.served import Served, find

_LENGTH = LENGTH.lower().encode()
LARGE = 1 << 16
"""Bytes from which a body is parsed, or a reply written, in a thread: the event loop goes on meanwhile."""


class Infer:
    """Plain ASGI, which allows streaming the body, and detecting that the client disconnects while its request waits."""

    def __init__(self, served: Mapping[str, Served], bodies: Bodies, max_json_bytes: int) -> None:
        self.served, self.bodies, self.max_json_bytes = served, bodies, max_json_bytes
        self._decoder = ThreadPoolExecutor(1, "edgeroute-serve-decode")  # one: a picture takes hundreds of megabytes at most
        self._parser = ThreadPoolExecutor(1, "edgeroute-serve-json")  # one: parsed JSON takes several times its size

    def close(self) -> None:
        """Ends the threads."""
        self._decoder.shutdown(wait=False)
        self._parser.shutdown(wait=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the request, queues it, and sends the reply."""
        model = find(self.served, scope)
        headers = dict(scope["headers"])
        with self.bodies.one() as held:
            body = await held.read(headers.get(b"content-length", b""), receive)
            if body is not None:
                reply = await self._answer(model, headers, body, receive, held)
                if reply is not None:
                    await Response(reply.body, headers={**reply.headers, **model.batcher.load()})(scope, receive, send)

    async def _answer(
        self, model: Served, headers: Mapping[bytes, bytes], body: bytes, receive: Receive, held: Body
    ) -> protocol.Reply | None:
        """The reply; None: the client disconnected."""
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise BadInput("the body is compressed, which this server does not read: send it as it is")
        length = None if (given := headers.get(_LENGTH)) is None else given.decode("latin-1")
        size = protocol.json_size(body, length)
        if size > self.max_json_bytes:
            raise HTTPException(413, f"the JSON has more than {self.max_json_bytes} bytes: send tensors of this size as binary")
        read = partial(protocol.read, body, length, model.inputs, model.outputs, model.decoders)
        ask = read() if size < LARGE else await asyncio.get_running_loop().run_in_executor(self._parser, read)
        if (decoding := model.decoded_bytes(ask)) is not None:
            held.grow(decoding)
            try:
                ask = await asyncio.get_running_loop().run_in_executor(self._decoder, model.decoded, ask)
            except RuntimeMissing as e:
                raise HTTPException(501, f"this server cannot read such files: {e}") from e
        done = model.submit(ask)
        watch = asyncio.create_task(_withdraw(done, receive))
        try:
            results = await done
        except asyncio.CancelledError:
            if watch.done():
                return None  # the client has disconnected
            raise
        finally:
            watch.cancel()
        write = partial(protocol.write, ask, results, model.name)
        small = sum(array.nbytes for array in results.values()) < LARGE
        return write() if small else await asyncio.get_running_loop().run_in_executor(self._parser, write)


async def _withdraw(done: asyncio.Future[Tensors], receive: Receive) -> None:
    """Cancels a request when its client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass
    done.cancel()
