"""ASGI application of `edgeroute serve`: inference, health, metadata and metrics of models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from time import monotonic
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeroute.cloud.openinference import LENGTH
from edgeroute.errors import BadInput, PolicyError, RuntimeMissing
from edgeroute.system.addresses import is_loopback
from edgeroute.system.workers import failing
from edgeroute.tools.server import oip_messages as protocol
from edgeroute.tools.server.access import LEFT, is_named, of_a_page, unless_left
from edgeroute.tools.server.body_reader import CLOSE, Bodies, Body, OneLength
from edgeroute.tools.server.oip_messages import FAULTS, reply
from edgeroute.tools.server.served_models import Served, find_model
from edgeroute.types import EdgeModel

# Handler of POST .../infer.

_LENGTH = LENGTH.lower().encode()
LARGE = 1 << 16
"""Bytes from which a body is parsed, or a reply encoded, in a thread, so that the event loop is not blocked."""


class Infer:
    """POST handler of inference requests.

    Plain ASGI, which allows streaming the body, and detecting that the client disconnects while its request waits.
    """

    def __init__(self, served: Mapping[str, Served], bodies: Bodies, max_json_bytes: int) -> None:
        self.served, self.bodies, self.max_json_bytes = served, bodies, max_json_bytes
        self._decoder = ThreadPoolExecutor(1, "edgeroute-serve-decode")  # one thread: a picture takes up to hundreds of megabytes
        self._parser = ThreadPoolExecutor(1, "edgeroute-serve-json")  # one thread: parsed JSON takes several times its size

    def close(self) -> None:
        """Shut down the threads without waiting."""
        self._decoder.shutdown(wait=False)
        self._parser.shutdown(wait=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the request, queue it at its model, and send the reply with the model's load; nothing if the client left."""
        model = find_model(self.served, scope)
        headers = dict(scope["headers"])
        with self.bodies.open_body() as held:
            body = await held.read(headers.get(b"content-length", b""), receive)
            if body is not None:
                reply = await self._answer(model, headers, body, receive, held)
                if reply is not None:
                    await Response(reply.body, headers={**reply.headers, **model.batcher.load()})(scope, receive, send)

    async def _answer(
        self, model: Served, headers: Mapping[bytes, bytes], body: bytes, receive: Receive, held: Body
    ) -> protocol.Reply | None:
        """Parse, decode and run a request; return the encoded reply, or None if the client disconnected.

        Large bodies, files and replies are handled in threads; decoded files count towards the body's memory.

        Raises:
            BadInput: the body is compressed or invalid.
            HTTPException: 413 if JSON or files are too large, 501 if the library for the files is missing.
        """
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise BadInput("the body is compressed, which this server does not read: send it as it is")
        length = None if (raw := headers.get(_LENGTH)) is None else raw.decode("latin-1")
        size = protocol.json_size(body, length)
        if size > self.max_json_bytes:
            raise HTTPException(413, f"the JSON has more than {self.max_json_bytes} bytes: send tensors of this size as binary")
        read = partial(protocol.read, body, length, model.inputs, model.outputs, model.decoders)
        ask = read() if size < LARGE else await asyncio.get_running_loop().run_in_executor(self._parser, read)
        if (decoding := model.decoded_bytes(ask)) is not None:
            held.grow(decoding)
            try:
                ask = await asyncio.get_running_loop().run_in_executor(self._decoder, model.decode_files, ask)
            except RuntimeMissing as e:
                raise HTTPException(501, f"this server cannot read such files: {e}") from e
        results = await unless_left(model.submit(ask), receive)
        if results is LEFT:
            return None
        write = partial(protocol.write, ask, results, model.name)
        small = sum(array.nbytes for array in results.values()) < LARGE
        return write() if small else await asyncio.get_running_loop().run_in_executor(self._parser, write)


# Metrics for Prometheus, and a log record for each request.

log = logging.getLogger("edgeroute.requests")
LONGEST = 100
"""Most characters of the id that a client gives its request."""


class Metrics:
    """Prometheus collector: counts and durations of requests for these models, in a registry of its own.

    Raises:
        RuntimeMissing: `prometheus_client` is not installed.
    """

    def __init__(self, served: Mapping[str, Served]) -> None:
        try:
            from prometheus_client import CollectorRegistry, Histogram
        except ImportError as e:
            raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[prometheus]'") from e
        self._served, self._registry = served, CollectorRegistry()
        self._durations = Histogram(
            "edgeroute_serve_request_duration_seconds", "Time from a request's head to the end of its reply", ["model", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(self)

    def observe(self, model: str, status: int, seconds: float) -> None:
        """Record the duration of a request. `model` is empty if the path named no model of this server.

        Its time series begins with the first request.
        """
        self._durations.labels(model, str(status)).observe(seconds)

    def describe(self) -> tuple[()]:
        """Return no descriptions: `collect` finds the metrics at each scrape."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield the counts of the models, as `/v2/models/NAME/stats` has them, and their queue lengths."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        inferences = CounterMetricFamily("edgeroute_serve_inferences", "Rows that a model answered", labels=["model"])
        runs = CounterMetricFamily("edgeroute_serve_runs", "Runs of a model, each of one or more rows", labels=["model"])
        requests = CounterMetricFamily("edgeroute_serve_requests", "Requests that reached a model", labels=["model", "result"])
        waiting = GaugeMetricFamily("edgeroute_serve_waiting", "Requests that wait for a model", labels=["model"])
        for name, model in self._served.items():
            batcher = model.batcher
            inferences.add_metric([name], batcher.rows)
            runs.add_metric([name], batcher.runs)
            requests.add_metric([name, "success"], batcher.requests)
            requests.add_metric([name, "fail"], batcher.failed)
            waiting.add_metric([name], batcher.waiting)
        yield from (inferences, runs, requests, waiting)

    def page(self, request: Request) -> Response:
        """Render the metrics; refuse requests of web pages.

        Raises:
            HTTPException: 403 for a page of another site, or 421 on a loopback address for a page whose own name resolves to it.
        """
        headers = dict(request.scope["headers"])
        if of_a_page(headers):
            raise HTTPException(403, "there are no metrics for web pages: ask with a program", CLOSE)
        server = request.scope.get("server") or ("", None)
        if is_loopback(server[0]) and not is_named(headers.get(b"host", b"").decode("latin-1"), {"localhost"}):
            raise HTTPException(421, "ask for the metrics on this machine by its address, or as localhost", CLOSE)
        from prometheus_client.exposition import choose_encoder

        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encoder(self._registry), headers={"Content-Type": content_type, "Cache-Control": "no-store"})


class RequestLog:
    """ASGI middleware that records each inference request after its end, in metrics and in the log.

    Args:
        app: the application behind it.
        served: the models, by name.
        metrics: counts of the requests; None: they are not counted.
        logs: True logs each request to `edgeroute.requests`: model, status, duration, and the id that its client gave it as
            `Idempotency-Key`, as edgeroute's routers do.
    """

    def __init__(self, app: ASGIApp, served: Mapping[str, Served], metrics: Metrics | None, *, logs: bool) -> None:
        self.app, self._served, self._metrics, self._logs = app, served, metrics, logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; record it afterwards if it is a POST, also if it fails or the client disconnects (499)."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        begun, status = monotonic(), 499  # nginx's status for a client that disconnects before its reply

        async def send_noting_status(message: Message) -> None:
            """Pass a message on and note the reply's status."""
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_noting_status)
        finally:
            self._record(scope, status, monotonic() - begun)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Count a request and log it with its client's id, each if asked for; an unknown model has no name."""
        named = scope.get("path_params", {}).get("name", "")
        model = named if named in self._served else named.removesuffix("-encoded")
        model = model if model in self._served else ""
        if self._metrics is not None:
            self._metrics.observe(model, status, seconds)
        if self._logs:
            key = next((value for name, value in scope["headers"] if name == b"idempotency-key"), b"").decode("latin-1")[:LONGEST]
            fields = {"model": model, "status": status, "latency_s": round(seconds, 6), **({"request": key} if key else {})}
            log.info("%s: %d", model or "no model", status, extra=fields)


# The application and its routes.


def app(
    models: Iterable[EdgeModel],
    *,
    max_batch: int = 32,
    queue: int = 256,
    max_body_bytes: int = 64 << 20,
    max_json_bytes: int = 16 << 20,
    max_bodies_bytes: int = 256 << 20,
    body_timeout_s: float = 30.0,
    metrics: bool = False,
    logs: bool = False,
) -> Starlette:
    """Load the models and build the ASGI application that serves them by name, each in version 1; it closes them at its end.

    Args:
        models: loaded here, so that an unsuitable one fails before the server listens. Each declares its `inputs`, as ONNX models
            do by themselves; see `EdgeMembers`.
        max_batch: rows of several requests merged into one run.
        queue: requests that may wait for one model; further ones get 503 and Retry-After.
        max_body_bytes: bytes of a body; a larger one gets 413.
        max_json_bytes: bytes of the JSON in it, which takes several times its size when it is parsed; more gets 413.
        max_bodies_bytes: bytes of all bodies in progress; a request that exceeds them gets 503 and Retry-After.
        body_timeout_s: time for a request's body to arrive; later it gets 408.
        metrics: True serves `/metrics` for Prometheus.
        logs: True logs each inference to `edgeroute.requests`, with the id that its client gave it.

    Raises:
        PolicyError: no models, a model without declared inputs, duplicate names, a name that does not fit into a path, a limit
            below 1.
        ModelError: a model cannot be loaded, or has non-numeric tensors.
        RuntimeMissing: metrics need the extra `prometheus`.
    """
    if min(max_batch, queue, max_body_bytes, max_json_bytes, max_bodies_bytes) < 1 or not body_timeout_s > 0:
        raise PolicyError("max_batch, queue and the sizes must be at least 1, and body_timeout_s more than 0")
    served: dict[str, Served] = {}
    for model in models:
        if not model.name or "/" in model.name or model.name in served:
            raise PolicyError(f"{model.name!r} cannot be served: names must differ and have no slash; a model's card can name it")
        served[model.name] = Served(model, max_batch=max_batch, queue=queue)
    if not served:
        raise PolicyError("no model to serve: name one at least")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        """Close the models at the end of the application."""
        yield
        for model in served.values():
            model.close()
        infer.close()

    infer = Infer(served, Bodies(max_body_bytes, max_bodies_bytes, body_timeout_s), max_json_bytes)
    pages = _Pages(served)
    routes = [Route("/v2", pages.server), Route("/v2/health/live", pages.live), Route("/v2/health/ready", pages.ready)]
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            Route(f"{base}/infer", infer, methods=["POST"]),
            Route(base, pages.model),
            Route(f"{base}/ready", pages.model_ready),
            Route(f"{base}/stats", pages.stats),
        ]
    middleware = [Middleware(OneLength)]
    if metrics or logs:
        counted = Metrics(served) if metrics else None
        middleware.insert(0, Middleware(RequestLog, served=served, metrics=counted, logs=logs))
        routes += [Route("/metrics", counted.page)] if counted else []
    application = Starlette(routes=routes, exception_handlers=FAULTS, middleware=middleware, lifespan=lifespan)
    application.router.redirect_slashes = False
    application.state.served = served
    return application


class _Pages:
    """GET handlers: server metadata, health, model metadata, and counts."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.served = served
        try:
            self.version = version("edgeroute")
        except PackageNotFoundError:  # run from a source tree
            self.version = "0"

    async def server(self, _: Request) -> Response:
        """Describe the server."""
        return reply({"name": "edgeroute-serve", "version": self.version, "extensions": ["binary_tensor_data"]})

    async def live(self, _: Request) -> Response:
        """Answer that the server is alive."""
        return reply({"live": True})

    async def ready(self, _: Request) -> Response:
        """Answer that the server is ready, whatever its models do, with the threads of models that fail."""
        return reply({"ready": True, **({"failing": names} if (names := failing()) else {})})

    async def model(self, request: Request) -> Response:
        """Describe a model; raise 404 if unknown."""
        return reply(find_model(self.served, request.scope).metadata_as(request.path_params["name"]))

    async def model_ready(self, request: Request) -> Response:
        """Answer that a model is ready; raise 404 if unknown."""
        return reply({"name": find_model(self.served, request.scope).name, "ready": True})

    async def stats(self, request: Request) -> Response:
        """Return a model's counts; raise 404 if unknown."""
        return reply({"model_stats": [find_model(self.served, request.scope).stats()]})
