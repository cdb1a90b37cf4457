"""Open Inference Protocol under `/v2` of the gateway: rows of tensors in; label, confidence and source of each answer out."""

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
from edgeroute.core.error_codes import clean
from edgeroute.edge.input_tensors import row_shape
from edgeroute.edge.model_attributes import member
from edgeroute.edge.model_card import Array, Card
from edgeroute.errors import BadInput, ModelError
from edgeroute.router.policy_snapshot import Snapshot, edges_of
from edgeroute.system.process import json_dumps, to_json_types
from edgeroute.system.workers import failing
from edgeroute.tools.server import oip_messages as protocol
from edgeroute.tools.server.access import AGAIN, Calls, options, plain_body
from edgeroute.tools.server.completion_format import REASON, Routing, confidence_of, headers_of
from edgeroute.tools.server.gateway_requests import missing
from edgeroute.tools.server.oip_messages import reply
from edgeroute.tools.server.web_service import LEFT, unless_left
from edgeroute.types import Answer, TensorSpec

MOST_ROWS = 1024
"""Most rows of one request; each is routed by itself."""
OUTPUTS = (
    TensorSpec("label", "object", (-1,)),
    TensorSpec("confidence", "float32", (-1,)),
    TensorSpec("source", "object", (-1,)),
    TensorSpec("degraded", "bool", (-1,)),
    TensorSpec("reason", "object", (-1,)),
)
"""Outputs of every answer. A label is text, or JSON of any other value; a missing confidence is NaN, null in JSON."""
_LENGTH = LENGTH.lower().encode()


class Tensors:
    """Handlers of `/v2`: metadata of the router's model, and inference.

    The model takes the inputs that the first edge model declares.

    Raises:
        HTTPException: 404, from each handler, for another model or version, or where no edge takes tensors.
    """

    def __init__(self, routing: Routing, calls: Calls, names: Collection[str], max_json_bytes: int) -> None:
        self.routing, self.calls, self.names, self.max_json_bytes = routing, calls, names, max_json_bytes
        self._cache: tuple[Snapshot | None, tuple[TensorSpec, ...]] = (None, ())

    async def server(self, _: Request) -> Response:
        """Describe the gateway."""
        return reply({"name": "edgeroute-gateway", "version": protocol.VERSION, "extensions": ["binary_tensor_data"]})

    async def live(self, _: Request) -> Response:
        """Answer that the gateway is alive."""
        return reply({"live": True})

    async def ready(self, _: Request) -> Response:
        """Answer that the gateway is ready, with the threads beside it that fail: requests are answered without them.

        A cloud that is down does not matter: the router covers that.
        """
        return reply({"ready": True, **({"failing": names} if (names := failing()) else {})})

    async def model(self, request: Request) -> Response:
        """Describe the model's inputs and outputs."""
        name = self._model_name(request.scope)
        return reply(protocol.describe(name, "edgeroute_router", await self._inputs(), OUTPUTS))

    async def model_ready(self, request: Request) -> Response:
        """Answer that the model takes requests; raise 404 or 503."""
        name = self._model_name(request.scope)
        await self._inputs()
        return reply({"name": name, "ready": True})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle POST .../infer: read the request, route each row, and reply; nothing if the client disconnects.

        Raises:
            HTTPException: 404, 413, 415, 429 or 503, before anything is routed.
            BadInput: the request, or an option in a header, is invalid.
        """
        name, headers = self._model_name(scope), dict(scope["headers"])
        plain_body(headers)
        wanted = options(scope["headers"], self.routing.rules)
        inputs = await self._inputs()
        with self.calls.bodies.open_body() as held:
            body = await held.read(headers.get(b"content-length", b""), receive)
            if body is None:
                return
            length = None if (raw_length := headers.get(_LENGTH)) is None else raw_length.decode("latin-1")
            if protocol.json_size(body, length) > self.max_json_bytes:
                raise HTTPException(413, f"the JSON has more than {self.max_json_bytes} bytes: send such tensors as binary")
            ask = await self.calls.parse(body, partial(protocol.read, length=length, inputs=inputs, outputs=OUTPUTS))
            rows = _rows(ask.feed)
            with self.calls.place(scope):
                work = self.routing.infer_many(rows, wanted) if len(rows) > 1 else self._one(rows[0], wanted)
                answers = await unless_left(work, receive)
            if answers is LEFT:
                return
            response = protocol.write(ask, _outputs(answers), name)
            origin = headers_of(answers[0]) if len(answers) == 1 else {}
            await Response(response.body, headers={**origin, **response.headers})(scope, receive, send)

    async def _one(self, row: Any, wanted: Any) -> list[Answer[Any]]:
        """Route a single row and return its answer in a list."""
        return [await self.routing.infer(row, wanted)]

    def _model_name(self, scope: Scope) -> str:
        """Return the model name of a path; raise 404 for an unknown name or version."""
        name, which = scope["path_params"]["name"], scope["path_params"].get("version", protocol.VERSION)
        if name not in self.names:
            raise missing(name, self.names)
        if which != protocol.VERSION:
            raise HTTPException(404, f"{name} has no version {clean(which, 40)!r}, only {protocol.VERSION}")
        return str(name)

    async def _inputs(self) -> tuple[TensorSpec, ...]:
        """Return the inputs that a request must have, cached for the policy in force; raise 404 or 503 without any.

        Loads the first edge model in a thread if needed. If that fails after a reload, the former inputs stay.
        """
        snapshot = self.routing.router.engine.snapshot
        if self._cache[0] is not snapshot:
            models = [backend.model for _, backend in edges_of(snapshot)]
            try:
                self._cache = snapshot, await self.calls.in_thread(partial(_inputs_of, models[0])) if models else ()
            except ModelError as e:
                if not self._cache[1]:  # else the former inputs hold: the router answers without its edge
                    raise HTTPException(503, f"the inputs of the edge model are unknown: {clean(e)}", AGAIN) from e
        if not self._cache[1]:
            raise HTTPException(404, "this router's edge model declares no tensors by name: send chats to /v1")
        return self._cache[1]


def _inputs_of(model: Any) -> tuple[TensorSpec, ...]:
    """Return the inputs that a caller sends for a model, with the axis of rows first.

    Loads the model if it declares no inputs yet. State and constant inputs are left out. Empty if an input is of no type that the
    protocol has.
    """
    if not member(model, "inputs") and (load := member(model, "load")) is not None:
        load()
    card: Card = member(model, "card") or Card()
    states = {state.input for state in card.state}
    accepted = []
    for spec in member(model, "inputs"):
        field = card.of(spec.name)
        if spec.name in states or (field is not None and field.value is not None):
            continue
        if field is not None and field.preprocess is not None:
            prepared = field.preprocess.accepts
            accepted.append(TensorSpec(spec.name, prepared.dtype, (-1, *prepared.shape[1:])))
        else:
            batch = None if not spec.shape else 0 if field is None else field.batch
            accepted.append(TensorSpec(spec.name, spec.dtype, (-1, *row_shape(spec, batch))))
    return tuple(accepted) if all(spec.dtype in NAMES for spec in accepted) else ()


def _rows(feed: Mapping[str, Array]) -> list[Any]:
    """Split a request's tensors into one router input per row: an array, or name -> array if there are several tensors.

    Raises:
        BadInput: the tensors differ in their rows, or these are not 1 to 1024.
    """
    counts = {len(array) for array in feed.values()}
    if len(counts) != 1 or not 0 < (count := counts.pop()) <= MOST_ROWS:
        raise BadInput(f"send the same number of rows in each input, 1 to {MOST_ROWS}")
    if len(feed) == 1:
        return list(next(iter(feed.values())))
    return [{name: array[i] for name, array in feed.items()} for i in range(count)]


def _outputs(answers: Sequence[Answer[Any]]) -> dict[str, Array]:
    """Return the answers as output tensors, one row each; a missing confidence is NaN."""
    confidences = [confidence_of(answer) for answer in answers]
    return {
        "label": np.array([_label(answer.value) for answer in answers], object),
        "confidence": np.array([np.nan if x is None else x for x in confidences], np.float32),
        "source": np.array([answer.source for answer in answers], object),
        "degraded": np.array([answer.degraded for answer in answers], bool),
        "reason": np.array([clean(answer.reason, REASON) for answer in answers], object),
    }


def _label(value: Any) -> str:
    """Return an answer's value as text; any other value as JSON."""
    return value if isinstance(value, str) else json_dumps(to_json_types(value)).decode()
