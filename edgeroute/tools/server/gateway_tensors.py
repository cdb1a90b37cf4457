"""`/v2/...`: the Open Inference Protocol over a router of tensors: rows in, a label, its confidence and source for each out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from edgeroute.cloud.openinference import LENGTH, NAMES
from edgeroute.core.words import clean
from edgeroute.edge.card import Array, Card
from edgeroute.edge.members import member
from edgeroute.edge.tensors import row_shape
from edgeroute.errors import BadInput, ModelError
from edgeroute.router.build import Snapshot, edges_of
from edgeroute.system.process import json_dumps, plain
from edgeroute.tools.server import protocol
from edgeroute.tools.server.completions import REASON, Routing, confidence_of, headers_of
from edgeroute.tools.server.faults import AGAIN
from edgeroute.tools.server.gateway_requests import missing
from edgeroute.tools.server.guard import LEFT, Calls, options, plain_body, unless_left
from edgeroute.tools.server.protocol import reply
from edgeroute.types import Answer, TensorSpec

MOST_ROWS = 1024
"""Rows of one request; each is routed by itself."""
OUTPUTS = (
    TensorSpec("label", "object", (-1,)),
    TensorSpec("confidence", "float32", (-1,)),
    TensorSpec("source", "object", (-1,)),
    TensorSpec("degraded", "bool", (-1,)),
    TensorSpec("reason", "object", (-1,)),
)
"""Of every answer. A label is text, or JSON where a model gives something else; a missing confidence is NaN, null in JSON."""
_LENGTH = LENGTH.lower().encode()


class Tensors:
    """The router's model: what its first edge takes, as far as that says so.

    Raises:
        HTTPException: 404, from each handler, for another model or version, or where no edge takes tensors.
    """

    def __init__(self, routing: Routing, calls: Calls, names: Collection[str], max_json_bytes: int) -> None:
        self.routing, self.calls, self.names, self.max_json_bytes = routing, calls, names, max_json_bytes
        self._of: tuple[Snapshot | None, tuple[TensorSpec, ...]] = (None, ())

    async def server(self, _: Request) -> Response:
        """About the gateway."""
        return reply({"name": "edgeroute-gateway", "version": protocol.VERSION, "extensions": ["binary_tensor_data"]})

    async def live(self, _: Request) -> Response:
        """It lives."""
        return reply({"live": True})

    async def ready(self, _: Request) -> Response:
        """It listens, so it is ready: a cloud that is away is what a router is for."""
        return reply({"ready": True})

    async def model(self, request: Request) -> Response:
        """The model's metadata."""
        name = self._named(request.scope)
        return reply(protocol.describe(name, "edgeroute_router", await self._inputs(), OUTPUTS))

    async def model_ready(self, request: Request) -> Response:
        """Whether the model takes requests."""
        name = self._named(request.scope)
        await self._inputs()
        return reply({"name": name, "ready": True})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """POST .../infer: plain ASGI, as `serve` has it."""
        name, headers = self._named(scope), dict(scope["headers"])
        plain_body(headers)
        wanted = options(scope["headers"], self.routing.rules)
        inputs = await self._inputs()
        with self.calls.bodies.one() as held:
            body = await held.read(headers.get(b"content-length", b""), receive)
            if body is None:
                return
            length = None if (given := headers.get(_LENGTH)) is None else given.decode("latin-1")
            if protocol.json_size(body, length) > self.max_json_bytes:
                raise HTTPException(
                    413, f"the JSON has more than {self.max_json_bytes} bytes: send tensors of this size as binary"
                )
            ask = await self.calls.parse(body, partial(_read, length=length, inputs=inputs))
            rows = _rows(ask.feed)
            with self.calls.place():
                work = self.routing.infer_many(rows, wanted) if len(rows) > 1 else self._one(rows[0], wanted)
                answers = await unless_left(work, receive)
            if answers is LEFT:
                return
            made = protocol.write(ask, _outputs(answers), name)
            about = headers_of(answers[0]) if len(answers) == 1 else {}
            await Response(made.body, headers={**about, **made.headers})(scope, receive, send)

    async def _one(self, row: Any, wanted: Any) -> list[Answer[Any]]:
        return [await self.routing.infer(row, wanted)]

    def _named(self, scope: Scope) -> str:
        name, which = scope["path_params"]["name"], scope["path_params"].get("version", protocol.VERSION)
        if name not in self.names:
            raise missing(name, self.names)
        if which != protocol.VERSION:
            raise HTTPException(404, f"{name} has no version {clean(which, 40)!r}, only {protocol.VERSION}")
        return str(name)

    async def _inputs(self) -> tuple[TensorSpec, ...]:
        """What a request has; a policy that was reloaded may have another model."""
        snapshot = self.routing.router.engine.snapshot
        if self._of[0] is not snapshot:
            models = [backend.model for _, backend in edges_of(snapshot)]
            try:
                self._of = snapshot, await self.calls.aside(partial(_inputs_of, models[0])) if models else ()
            except ModelError as e:
                if not self._of[1]:  # else they are as before the policy was read again: the router answers without its edge
                    raise HTTPException(503, f"what the edge takes is not known: {clean(e)}", AGAIN) from e
        if not self._of[1]:
            raise HTTPException(404, "this router takes no tensors by name, as far as its edge model says: chats are at /v1")
        return self._of[1]


def _inputs_of(model: Any) -> tuple[TensorSpec, ...]:
    """What the caller gives a model, with the axis that counts the rows in front; it is loaded once for that."""
    if not member(model, "inputs") and (load := member(model, "load")) is not None:
        load()
    card: Card = member(model, "card") or Card()
    states = {one.input for one in card.state}
    found = []
    for spec in member(model, "inputs"):
        said = card.of(spec.name)
        if spec.name in states or (said is not None and said.value is not None):
            continue
        if said is not None and said.preprocess is not None:
            given = said.preprocess.accepts
            found.append(TensorSpec(spec.name, given.dtype, (-1, *given.shape[1:])))
        else:
            batch = None if not spec.shape else 0 if said is None else said.batch
            found.append(TensorSpec(spec.name, spec.dtype, (-1, *row_shape(spec, batch))))
    return tuple(found) if all(spec.dtype in NAMES for spec in found) else ()


def _read(body: bytes, length: str | None, inputs: Sequence[TensorSpec]) -> protocol.Ask:
    return protocol.read(body, length, inputs, OUTPUTS)


def _rows(feed: Mapping[str, Array]) -> list[Any]:
    """The router's inputs: an array each, or, of several tensors, name -> array."""
    counts = {len(array) for array in feed.values()}
    if len(counts) != 1 or not 0 < (count := counts.pop()) <= MOST_ROWS:
        raise BadInput(f"send the same number of rows in each input, 1 to {MOST_ROWS}")
    if len(feed) == 1:
        return list(next(iter(feed.values())))
    return [{name: array[i] for name, array in feed.items()} for i in range(count)]


def _outputs(answers: Sequence[Answer[Any]]) -> dict[str, Array]:
    sure = [confidence_of(answer) for answer in answers]
    return {
        "label": _texts([_label(answer.value) for answer in answers]),
        "confidence": np.array([np.nan if one is None else one for one in sure], np.float32),
        "source": _texts([answer.source for answer in answers]),
        "degraded": np.array([answer.degraded for answer in answers], bool),
        "reason": _texts([clean(answer.reason, REASON) for answer in answers]),
    }


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json_dumps(plain(value)).decode()


def _texts(texts: list[str]) -> Array:
    found = np.empty(len(texts), object)
    found[:] = texts
    return found
