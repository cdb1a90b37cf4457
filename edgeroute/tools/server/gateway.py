"""`gateway()`, which runs a router as an HTTP server on uvicorn, and its ASGI application: APIs of OpenAI and Anthropic, tensors.

Also `router_of`, `metrics_page` and health. At its end the application closes the router.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import gmtime, strftime, time
from typing import Any, NamedTuple

import numpy as np

from edgeroute.cloud.oip_tensors import NAMES
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.edge.input_checks_and_stacking import row_shape
from edgeroute.edge.llama import LlamaModel
from edgeroute.edge.llama_in_process_engines import INSTALL, SERVES_OTHERS
from edgeroute.edge.model_card import Array, Card
from edgeroute.errors import BadInput, Closed, EdgerouteError, ModelError, PolicyError, RuntimeMissing, check_number
from edgeroute.policy import load
from edgeroute.record.instrument_interface import Instrument
from edgeroute.record.prometheus import Measured, Prometheus, check_installed, metrics, of_router
from edgeroute.router.async_router import AsyncRouter
from edgeroute.router.policy_snapshot import Snapshot, edges_of
from edgeroute.router.pool_calls_and_task_legs import submit_call
from edgeroute.router.private_conversations_and_digest_store import SCOPE
from edgeroute.router.router import Router
from edgeroute.system.json_codec_and_short_repr import json_dumps, to_json_types
from edgeroute.system.numeric_loopback_check import is_loopback
from edgeroute.types import Answer, TensorSpec

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute, Route
    from starlette.types import Receive, Scope, Send

    from edgeroute.tools.server import access_limits_call_options as access
    from edgeroute.tools.server import anthropic_messages as messages
    from edgeroute.tools.server import oip_requests_media_routes as protocol
    from edgeroute.tools.server import openai_chat_completions as openai
    from edgeroute.tools.server import openai_embeddings as embedding
    from edgeroute.tools.server import openai_responses_and_store as responses
    from edgeroute.tools.server.asgi_lifespan_and_errors import LEFT, unless_left
    from edgeroute.tools.server.oip_requests_media_routes import reply
    from edgeroute.tools.server.uvicorn_with_client_limits import notify_alive, run
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[serve]'") from e

MOST_ROWS = 1024  # most rows of one request; each is routed by itself
# Outputs of every answer. A label is text, or JSON of any other value; a missing confidence is NaN, null in JSON.
OUTPUTS = (
    TensorSpec("label", "object", (-1,)),
    TensorSpec("confidence", "float32", (-1,)),
    TensorSpec("source", "object", (-1,)),
    TensorSpec("degraded", "bool", (-1,)),
    TensorSpec("reason", "object", (-1,)),
)


class Tensors:
    """Handlers of `/v2`: metadata of the router's model, and inference.

    The model takes the inputs that the first edge model declares.

    Raises:
        HTTPException: 404, from each handler, for another model or version, or where no edge takes tensors.
    """

    def __init__(self, routing: openai.Routing, calls: access.Calls, names: Collection[str], max_json_bytes: int) -> None:
        self.routing, self.calls, self.names, self.max_json_bytes = routing, calls, names, max_json_bytes
        self._cache: tuple[Snapshot | None, tuple[TensorSpec, ...]] = (None, ())
        self._look: tuple[Snapshot | None, asyncio.Future[tuple[TensorSpec, ...]] | None] = (None, None)  # one for all requests

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
        access.plain_body(headers)
        wanted = access.parse_options(scope["headers"], self.routing.rules)
        inputs = await self._inputs()
        with access.Body(self.calls.bodies, headers) as held:
            body = await held.read(receive)
            if body is None:
                return
            length, _ = protocol.json_part(headers, body, self.max_json_bytes)
            ask = await self.calls.parse(body, partial(protocol.read, length=length, inputs=inputs, outputs=OUTPUTS))
            rows = _rows(ask.feed)
            with self.calls.place(scope):
                work = self.routing.infer_many(rows, wanted) if len(rows) > 1 else self._one(rows[0], wanted)
                answers = await unless_left(work, receive)
            if answers is LEFT:
                return
            response = protocol.write(ask, _outputs(answers), name)
            origin = openai.headers_of(openai.origin_of(answers[0])) if len(answers) == 1 else {}
            await Response(response.body, headers={**origin, **response.headers})(scope, receive, send)

    async def _one(self, row: Any, wanted: Any) -> list[Answer[Any]]:
        """Route a single row and return its answer in a list."""
        return [await self.routing.infer(row, wanted)]

    def _model_name(self, scope: Scope) -> str:
        """Return the model name of a path; raise 404 for an unknown name or version."""
        name, which = scope["path_params"]["name"], scope["path_params"].get("version", protocol.VERSION)
        if name not in self.names:
            raise openai.missing(name, self.names)
        if which != protocol.VERSION:
            raise HTTPException(404, f"{name} has no version {clean(which, 40)!r}, only {protocol.VERSION}")
        return str(name)

    async def _inputs(self) -> tuple[TensorSpec, ...]:
        """Return the inputs that a request must have, cached for the policy in force.

        Otherwise looks at the first edge model in a thread for edges, and loads it if needed. If that fails after a reload, the
        former inputs stay.

        Raises:
            HTTPException: 404, if no edge takes tensors by name; 503, if the model cannot be loaded.
        """
        snapshot = self.routing.router.engine.snapshot
        if self._cache[0] is not snapshot:
            models = [backend.model for _, backend in edges_of(snapshot)]
            try:
                self._cache = snapshot, await self._looked(snapshot, models[0]) if models else ()
            except ModelError as e:
                if not self._cache[1]:  # else the former inputs hold: the router answers without its edge
                    raise HTTPException(503, f"the inputs of the edge model are unknown: {clean(e)}", access.AGAIN) from e
        if not self._cache[1]:
            raise HTTPException(404, "this router's edge model declares no tensors by name: send chats to /v1")
        return self._cache[1]

    async def _looked(self, snapshot: Snapshot, model: Any) -> tuple[TensorSpec, ...]:
        """Return the inputs of a policy's model, which is looked at once for all requests: one that is cancelled ends no look.

        Raises:
            HTTPException: 503, if there is no thread for it.
            ModelError: the model cannot be loaded.
        """
        look = self._look[1]
        if look is None or self._look[0] is not snapshot or look.done():
            look = submit_call(self.routing.router.engine.edge_threads.submit, partial(_inputs_of, model))
            if look is None:
                raise HTTPException(503, "there is no thread for the edge model: try again later", access.AGAIN)
            self._look = snapshot, look
        return await asyncio.shield(look)


def _inputs_of(model: Any) -> tuple[TensorSpec, ...]:
    """Return the inputs that a caller sends for a model, with the axis of rows first, before the card's preprocessing.

    Loads the model if it declares no inputs yet. State and constant inputs are left out. Empty if an input is of no type that the
    protocol has, and for a language model, which takes no tensors and need not be loaded for that.
    """
    if isinstance(model, LlamaModel):
        return ()
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
    return tuple(accepted) if all(spec.dtype in {*NAMES, protocol.TEXT} for spec in accepted) else ()


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
    confidences = [openai.confidence_of(answer) for answer in answers]
    return {
        "label": np.array([openai.text_of(answer, {}) for answer in answers], object),
        "confidence": np.array([np.nan if x is None else x for x in confidences], np.float32),
        "source": np.array([answer.source for answer in answers], object),
        "degraded": np.array([answer.degraded for answer in answers], bool),
        "reason": np.array([clean(answer.reason, openai.REASON) for answer in answers], object),
    }


# `/v1/...`: OpenAI's APIs, and Anthropic's of messages.

log = logging.getLogger("edgeroute")
BURST = 4  # pieces sent in a row before other tasks run, such as the one that notices a client's disconnect
# Headers of a stream; the last one keeps proxies from buffering it.
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}


class Dialect(NamedTuple):
    """API of chats: its requests and replies."""

    read: Callable[[Mapping[str, Any]], openai.CompletionRequest]  # validates a parsed body
    reply: Callable[[openai.CompletionRequest], Any]  # returns a builder of the reply, as `openai_completions.Completion`


class Completions:
    """POST handler for chat and text completions, responses and messages, whole or as events, within limits.

    Plain ASGI, so that a client's disconnect cancels its request.
    """

    def __init__(self, routing: openai.Routing, calls: access.Calls, dialect: Dialect) -> None:
        self.routing, self.calls, self.dialect = routing, calls, dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the request, ask the router, and send the reply, whole or as a stream; nothing if the client disconnects.

        Raises:
            HTTPException: 413 or 415 for the body, 429 if all places are taken, and as `Body.read`.
            BadInput: the body, or an option in a header, is invalid.
        """
        headers = dict(scope["headers"])
        access.plain_body(headers)
        wanted = access.parse_options(scope["headers"], self.routing.rules)
        with access.Body(self.calls.bodies, headers) as held:
            body = await held.read(receive)
            if body is None:
                return
            request = await self.calls.parse(body, lambda text: self.dialect.read(openai.parse_json(text)))
            del body
            if request.earlier:
                held.grow(request.earlier, "the messages that it continues")
            if request.scope and SCOPE.get() not in {b"", request.scope}:
                raise BadInput("x-edgeroute-conversation is another one than that of the response which this request continues")
            SCOPE.set(access.OfRequest(request.scope) if request.scope else SCOPE.get())
            with self.calls.place(scope):
                respond = self._stream if request.stream else self._whole
                await unless_left(respond(request, wanted, send), receive)

    async def _whole(self, request: openai.CompletionRequest, wanted: access.Options, send: Send) -> None:
        """Ask the router, then send the whole reply with status 200, and the answer's origin in headers.

        Errors are raised before it is sent.
        """
        answer = await self.routing.infer(request.x, wanted)
        whole = self.dialect.reply(request).body(answer)
        await _send_json(send, whole, openai.headers_of(whole["edgeroute"]))

    async def _stream(self, request: openai.CompletionRequest, wanted: access.Options, send: Send) -> None:
        """Send the answer as server-sent events, with its side and leg in headers.

        Waits for the first piece before the head is sent: until then an error is raised, and gets a status; later it becomes the
        last event, and is logged unless it is edgeroute's. Lets other tasks run after each 4 pieces.
        """
        completion, begun, sent = self.dialect.reply(request), False, 0
        try:
            async with self.routing.stream(request.x, wanted) as stream:
                async for piece in self.routing.pieces(stream):
                    opening = b""
                    if not begun:
                        begun = True
                        await send(_head({**EVENTS, **self.routing.source(stream)}))
                        opening = completion.begin()
                    if part := opening + completion.piece(piece):  # in one: each send is a chunk and a system call
                        await send(_part(part))
                        sent += 1
                        if not sent % BURST:
                            await asyncio.sleep(0)
                for part in completion.end(stream.answer):
                    await send(_part(part))
        except Exception as e:
            if not begun:
                raise
            if not isinstance(e, EdgerouteError):
                log.exception("a stream failed")
            await send(_part(completion.error(access.http_fault(e))))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Embeddings(Completions):
    """POST handler for embeddings: while a long reply is written, other requests are served between its parts."""

    async def _whole(self, request: openai.CompletionRequest, wanted: access.Options, send: Send) -> None:
        """Ask the router, then send the whole reply with status 200, and the answer's origin in headers.

        Errors are raised before it is sent.
        """
        answer = await self.routing.infer(request.x, wanted)
        parts = []
        for part in self.dialect.reply(request).parts(answer):
            parts.append(part)
            await asyncio.sleep(0)
        await _send_parts(send, parts, openai.headers_of(openai.origin_of(answer)))


class TokenCount(Completions):
    """POST handler that estimates the tokens of a request for `/v1/messages`; nothing is asked."""

    async def _whole(self, request: openai.CompletionRequest, wanted: access.Options, send: Send) -> None:  # noqa: ARG002 - as above
        """Send the estimate as JSON, whole even if the request asks for a stream."""
        await _send_json(send, messages.count_tokens(request))

    _stream = _whole  # a client may send `stream`, as with its message


async def _send_json(send: Send, data: Any, headers: Mapping[str, str] | None = None) -> None:
    """Send a whole reply of status 200 with data as JSON, and further headers."""
    await _send_parts(send, [json_dumps(data, to_json_types)], headers)


async def _send_parts(send: Send, parts: Sequence[bytes], headers: Mapping[str, str] | None = None) -> None:
    """Send a whole reply of status 200, JSON in parts, and further headers."""
    size = sum(map(len, parts))
    await send(_head({"content-type": "application/json", "content-length": str(size), **(headers or {})}))
    for part in parts[:-1]:
        await send(_part(part))
    await send({"type": "http.response.body", "body": parts[-1]})


def _head(headers: dict[str, str]) -> dict[str, Any]:
    """Return the ASGI message that starts a reply of status 200."""
    raw = [(name.encode("ascii"), text.encode("ascii")) for name, text in headers.items()]
    return {"type": "http.response.start", "status": 200, "headers": raw}


def _part(body: bytes) -> dict[str, Any]:
    """Return the ASGI message with a part of the body."""
    return {"type": "http.response.body", "body": body, "more_body": True}


class Models:
    """GET handlers that list the router's model names."""

    def __init__(self, names: Collection[str]) -> None:
        created = int(time())
        about = {"object": "model", "created": created, "owned_by": "edgeroute"}  # OpenAI's object of a model; then Anthropic's
        about |= {"type": "model", "created_at": strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(created))}
        self._about = {name: {"id": name, "display_name": name, **about} for name in names}

    async def all(self, _: Request) -> Response:
        """Describe all names."""
        return reply({"object": "list", "data": [*self._about.values()]})

    async def describe_model(self, request: Request) -> Response:
        """Describe one name; raise 404 if it is unknown."""
        name = request.path_params["name"]
        if name not in self._about:
            raise openai.missing(name, self._about)
        return reply(self._about[name])


# The application and its routes.

NAME = "edgeroute"


def _text_routes(routing: openai.Routing, calls: access.Calls, of_client: Mapping[str, Any]) -> list[Route]:
    """Return the routes of OpenAI's and Anthropic's APIs of texts, and a store of responses behind them.

    Args:
        routing: calls of the router.
        calls: limits of the requests in progress.
        of_client: the names of the model, and the keys that clients may send (`names` and `allow` of `openai.read_request`).
    """
    stored = responses.StoredResponses()
    message = Dialect(partial(messages.read_request, **of_client), messages.MessageReply)
    dialects = {
        "chat/completions": Dialect(partial(openai.read_request, chat=True, **of_client), openai.Completion),
        "completions": Dialect(partial(openai.read_request, chat=False, **of_client), openai.Completion),
        "responses": Dialect(
            partial(responses.read_request, **of_client, stored=stored), partial(responses.ResponseReply, stored=stored)
        ),
        "messages": message,
    }

    async def delete_response(request: Request) -> Response:
        """Delete a stored response; raise 404 for one that is not stored."""
        if not stored.delete(identity := request.path_params["id"]):
            raise HTTPException(404, "there is no such response here")
        return reply({"id": identity, "object": "response", "deleted": True})

    return [
        *(Route(f"/v1/{path}", Completions(routing, calls, dialect), methods=["POST"]) for path, dialect in dialects.items()),
        Route("/v1/responses/{id}", delete_response, methods=["DELETE"]),
        Route("/v1/messages/count_tokens", TokenCount(routing, calls, message), methods=["POST"]),
    ]


def app(
    router: AsyncRouter[Any],
    *,
    names: Iterable[str] = (),
    token: str | None = None,
    hosts: Iterable[str] = (),
    max_concurrent: int = 64,
    max_body_bytes: int = 32 << 20,
    max_json_bytes: int = 16 << 20,
    max_bodies_bytes: int = 128 << 20,
    body_timeout_s: float = 30.0,
    metrics: bool = False,
    allow: Collection[str] = (),
    embeddings: AsyncRouter[Any] | None = None,
    routes: Iterable[BaseRoute] = (),
) -> Starlette:
    """Build the ASGI application that serves a router. The application closes the routers when it shuts down.

    Args:
        router: a router for asyncio.
        names: names of its model, beside `edgeroute`.
        token: the token that clients send as `Authorization: Bearer TOKEN`; None: no token is needed.
        hosts: names accepted in the header `Host`, beside `localhost` and addresses.
        max_concurrent: requests in progress; a further one gets 429.
        max_body_bytes: bytes of a body; a larger one gets 413.
        max_json_bytes: bytes of the JSON in a request with tensors; more gets 413.
        max_bodies_bytes: bytes of all bodies in progress; a request that exceeds them gets 503 and Retry-After.
        body_timeout_s: time for a request's body to arrive; later it gets 408.
        metrics: True serves `/metrics` for Prometheus, under the same access rules as the other paths.
        allow: keys of a request that clients may send, and with any value, beside those in `openai_completions.KEYS`.
        embeddings: router of one model, for `/v1/embeddings`; may be `router`. None: there is no such path. It gets the private
            conversations of `router`, so that a private turn of a chat stays here, too.
        routes: further routes under the same access rules. With any, pages that the gateway itself serves may ask it, and other
            sites' pages may link to `/`.

    Raises:
        PolicyError: a name that does not fit into a path, a token that a header cannot have, a limit below 1, a key in `allow`
            that the gateway handles itself, or a router of embeddings with several models.
        RuntimeMissing: metrics need the extra `prometheus`.
    """
    check_router(router, "app() takes an AsyncRouter")
    if embeddings is not None:
        check_router(embeddings, "embeddings= takes an AsyncRouter")
    limits = {
        "max_concurrent": max_concurrent, "max_body_bytes": max_body_bytes, "max_json_bytes": max_json_bytes,
        "max_bodies_bytes": max_bodies_bytes,
    }  # fmt: skip
    for what, value in limits.items():
        check_number(what, value, least=1, whole=True)
    check_number("body_timeout_s", body_timeout_s, above=True)
    names_all = tuple(dict.fromkeys((NAME, *names)))
    for name in names_all:
        if not name or not name.isprintable() or {*"/?#%"} & {*name}:
            raise PolicyError(f"{name!r} cannot be a model's name: it is empty, or has what a path cannot have")
    if token is not None:
        access.checked_token(token)
    if taken := {*openai.OURS} & {*allow}:
        raise PolicyError(f"allow has {', '.join(sorted(taken))}, which the gateway handles itself: leave that out")
    calls = access.Calls(access.Bodies(max_body_bytes, max_bodies_bytes, body_timeout_s), max_concurrent)
    routing, models = openai.Routing(router), Models(names_all)
    tensors = Tensors(routing, calls, names_all, max_json_bytes)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        """Close the router and the parser thread at the end of the application."""
        try:
            yield
        finally:
            calls.close()
            for each in {router, embeddings or router}:
                await each.close()

    own, of_client = [*routes], dict[str, Any](names=names_all, allow=allow)
    all_routes: list[BaseRoute] = [
        *own, *_text_routes(routing, calls, of_client), Route("/v1/models", models.all),
        Route("/v1/models/{name}", models.describe_model),
        *protocol.routes("edgeroute-gateway", tensors, {"": tensors.model, "/ready": tensors.model_ready}),
    ]  # fmt: skip
    if embeddings is not None:
        embedding.check_one_model(embeddings.engine.snapshot)
        embeddings.engine.private = router.engine.private  # a private turn of a chat stays on this path, too
        vectors = Dialect(partial(embedding.read_request, **of_client), embedding.EmbeddingReply)
        handler = Embeddings(embedding.EmbeddingRouting(embeddings), calls, vectors)
        all_routes.append(Route("/v1/embeddings", handler, methods=["POST"]))
    if metrics:
        all_routes.append(Route("/metrics", metrics_page(router)))
    guard = Middleware(access.Guard, hosts=tuple(hosts), token=token, links=("/",) if own else (), own_pages=bool(own))
    layers = [Middleware(access.OwnContext), guard]
    application = Starlette(routes=all_routes, exception_handlers=access.HANDLERS, middleware=layers, lifespan=lifespan)
    application.router.redirect_slashes = False
    application.state.calls = calls
    return application


def metrics_page(router: Measured) -> Callable[[Request], Response]:
    """Return a GET handler that renders one router's metrics, in the format that the scraper accepts.

    It is no coroutine function, so that Starlette calls it in a thread: it may wait for the outbox's file.

    Raises:
        RuntimeMissing: `prometheus_client` is not installed.
    """
    check_installed()  # raise now, not at the first scrape

    def page(request: Request) -> Response:
        """Render the metrics."""
        rendered = metrics(router, request.headers.get("accept", ""))
        return Response(rendered.body, headers={"Content-Type": rendered.content_type, "Cache-Control": "no-store"})

    return page


PORT = 8484


def gateway(
    policy: str | Path | AsyncRouter[Any],
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token_env: str | None = None,
    hosts: Iterable[str] = (),
    names: Iterable[str] = (),
    on_ready: Callable[[str], object] | None = None,
    metrics: bool = False,
    instruments: Sequence[Instrument] = (),
    **limits: Any,
) -> int:
    """Serve a router until SIGTERM, SIGINT or SIGHUP; then finish requests in progress for at most 5 s, and close the router.

    Returns the number of that signal; 0 in a thread, which receives no signals. Notifies a service manager, such as systemd, when
    it is ready, alive and stopping. Reloads a policy file that changes.

    Blocks. Logs a warning for each endpoint that cannot be asked, as a secret is missing. Meanwhile models of llama.cpp in this
    process run isolated, in processes of their own, unless their `isolate` is False.

    Args:
        policy: the path of a policy file, whose name without suffix becomes a name of the model; or a router, which is closed,
            too.
        host: address to listen on; the default accepts only this machine. Any other needs a token.
        port: port to listen on; 0 selects a free one.
        token_env: the environment variable with the token that clients send as their API key.
        hosts: names accepted in the header `Host`, beside `localhost` and addresses.
        names: names of the model, beside `edgeroute`.
        on_ready: called with the URL once the server listens.
        metrics: True serves `/metrics` for Prometheus, as does a policy or router with a `Prometheus` instrument.
        instruments: added to those of the policy file.
        limits: passed to `app`.

    Raises:
        PolicyError: the address cannot be listened on, the token is missing, or the policy is invalid.
        ModelError: the policy's model file is missing.
        RuntimeMissing: metrics need the extra `prometheus`, or a GGUF model a package with llama.cpp.
    """
    token = None if token_env is None else access.token_of(token_env)
    if token is None and not _is_loopback(host):
        raise PolicyError(f"{host} can be reached from other machines: give --token-env NAME, or listen on 127.0.0.1")
    router: Any = policy
    limits["names"], routers = [*names], list[AsyncRouter[Any]]()
    SERVES_OTHERS.set()
    try:
        if isinstance(policy, str | Path):
            router, limits = of_policy(policy, limits, routers, metrics=metrics, instruments=instruments)
        check_router(router, "gateway() takes a policy's path or an AsyncRouter")
        routers = [*{router, limits.get("embeddings") or router}]
        for each in routers:
            _check_llama(each.engine.snapshot)
            for line in _unsendable(each.engine.snapshot):  # the gateway still serves: the edge answers without it
                log.warning("%s; start the gateway again once it is", line)
        application = app(router, token=token, hosts=hosts, metrics=metrics or of_router(router) is not None, **limits)
        return run(application, host, port, partial(notify_alive, "serving a router"), on_ready)
    finally:
        SERVES_OTHERS.clear()
        for each in routers:
            if not each.engine.closed:  # the application never started
                asyncio.run(each.close())


def check_router(router: Any, takes: str) -> None:
    """Raise PolicyError, whose text begins with what the caller `takes`, unless it is an AsyncRouter; Closed if it is closed."""
    if not isinstance(router, AsyncRouter):
        hint = ": make an AsyncRouter of the same arguments" if isinstance(router, Router) else ""
        raise PolicyError(f"{takes}, not a {type(router).__name__}{hint}")
    if router.engine.closed:
        raise Closed("the router is closed: make another AsyncRouter")


def of_policy(
    policy: str | Path,
    given: Mapping[str, Any],
    built: list[AsyncRouter[Any]],
    *,
    metrics: bool = False,
    instruments: Sequence[Instrument] = (),
) -> tuple[AsyncRouter[Any], dict[str, Any]]:
    """Build the routers of a policy file; return the first, and the other arguments of `app`: those given, and the file's.

    The file's are `allow` and `embeddings` of its `[gateway]`, unless these are given, and its name without suffix as another one
    of the model.

    Args:
        policy: the path of the file.
        given: arguments of `app` that the program gives.
        built: gets each router as soon as it is there, so that the caller can close it if a later step fails.
        metrics: as of `router_of`.
        instruments: added to those of each file.

    Raises:
        PolicyError, ModelError, RuntimeMissing: as `router_of`.
    """
    path, section = Path(policy), load(Path(policy)).gateway
    built.append(router_of(path, metrics=metrics, instruments=instruments))
    stem = [path.stem] if path.stem.isprintable() and not {*"/?#%"} & {*path.stem} else []
    terms = {"allow": section.allow if section else (), **given, "names": [*given.get("names", ()), *stem]}
    if section is not None and section.embeddings is not None and "embeddings" not in given:
        other = path.parent / section.embeddings
        if other != path:
            built.append(router_of(other, instruments=instruments))
        terms["embeddings"] = built[-1]
    return built[0], terms


def router_of(policy: str | Path, *, metrics: bool = False, instruments: Sequence[Instrument] = ()) -> AsyncRouter[Any]:
    """Build the asyncio router of a policy file, which is reloaded when the file changes.

    Args:
        policy: the path of the file.
        metrics: True adds a `Prometheus` instrument unless the file has one.
        instruments: added to those of the file.

    Raises:
        PolicyError: the policy is invalid.
        ModelError: its model file is missing.
        RuntimeMissing: metrics need the extra `prometheus`.
    """
    telemetry = load(Path(policy)).telemetry if metrics else None
    more = [*instruments, *([Prometheus()] if metrics and not (telemetry and telemetry.prometheus) else [])]
    return AsyncRouter.from_policy(policy, watch=True, **({"instruments": more} if more else {}))


def _check_llama(snapshot: Snapshot) -> None:
    """Raise RuntimeMissing if there is a GGUF model and no package with llama.cpp, which only its first run would show."""
    gguf = any(str(member(backend.model, "path")).lower().endswith(".gguf") for _, backend in edges_of(snapshot))
    if gguf and not any(find_spec(package) for package in ("xllamacpp", "llama_cpp")):
        raise RuntimeMissing(INSTALL)


def _unsendable(snapshot: Snapshot) -> list[str]:
    """Return a line for each endpoint whose headers cannot be made, as a secret is not set. Reads the secrets; sends nothing."""
    lines = []
    for cloud in snapshot.clouds:
        address: Any = getattr(getattr(cloud, "endpoint", None), "address", None)
        if address is not None:
            try:
                address.headers()
            except PolicyError as e:
                lines.append(f"{cloud.name} cannot be asked: {e}")
    return lines


def _is_loopback(host: str) -> bool:
    """Resolve a host name; return True if all its addresses are loopback addresses, or it does not resolve."""
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return True  # listening there reports the error
    return all(is_loopback(str(address[0])) for *_, address in infos)
