"""`serve()`, which runs model files as an HTTP server on uvicorn, and its ASGI application. There is no authentication.

Routes: inference, health, metadata, counts, and with `metrics` Prometheus. Readiness runs each model on zeros, unless it has run
since the last probe.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

from edgeroute.cloud.oip_tensors import NAMES, TEXTS
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.edge.runtimes_variants_ensemble import load
from edgeroute.errors import BadInput, EdgerouteError, ModelError, PolicyError, RuntimeMissing
from edgeroute.record.prometheus import Page, check_installed
from edgeroute.system.numeric_loopback_check import is_loopback
from edgeroute.tools.event_loop_thread import DaemonThread
from edgeroute.tools.import_by_module_and_name import is_python_name, python_object
from edgeroute.types import EdgeModel

try:
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edgeroute.tools.server import access_limits_call_options as access
    from edgeroute.tools.server import oip_requests_media_routes as protocol
    from edgeroute.tools.server.asgi_lifespan_and_errors import LEFT, unless_left
    from edgeroute.tools.server.batching_and_tensor_models import EDGES, Batcher, Tensors, make_zeros, tensor_model
    from edgeroute.tools.server.oip_requests_media_routes import TEXT, VERSION, Ask, Files, reply
    from edgeroute.tools.server.systemd_notices import BEATS, Notify
    from edgeroute.tools.server.uvicorn_with_client_limits import run as host_run
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[serve]'") from e

# A served model.


def platform_of(model: EdgeModel) -> str:
    """Return the platform in a model's metadata: its runtime, and the suffix of its file, or else its class's name."""
    runtime = member(model, "settings").get("runtime", "edgeroute")
    path = member(model, "path")
    return f"{runtime}_{type(model).__name__.lower() if path is None else Path(path).suffix.removeprefix('.')}"


class Served:
    """Served model: its metadata, its decoders of files and its batch queue; loaded at construction.

    Raises:
        ModelError: the model cannot be loaded, or has inputs that are no numbers.
    """

    def __init__(self, model: EdgeModel, *, max_batch: int, queue: int) -> None:
        self.model = tensor_model(model)
        self.name, self.inputs, only = self.model.name, self.model.inputs, self.model.only
        self.outputs = tuple(spec for spec in self.model.outputs if only in (None, spec.name))
        if odd := [spec.name for spec in self.inputs if spec.dtype not in {*NAMES, TEXT}]:
            raise ModelError(f"{self.name} cannot be served: its inputs {odd} are neither numbers nor texts")
        self.decoders = {spec.name: protocol.Decoder(spec, self.model.card) for spec in self.inputs}
        self.about = protocol.describe(model.name, platform_of(model), self.inputs, self.outputs)
        if parameters := {key: value for key in ("labels", "kind") if (value := member(model, key)) not in (None, "answers")}:
            self.about["parameters"] = parameters
        self.batcher = Batcher(self.model, self.outputs, max_batch=max_batch, queue=queue)

    def submit(self, ask: Ask) -> asyncio.Future[Tensors]:
        """Queue a request and return at once the future of its outputs; see `Batcher.submit`.

        A model that takes the edge's answers gets those of the request's parameter.

        Raises:
            BadInput: its inputs differ in their number of rows, have no rows, or the edge's answers are no JSON list of as many.
            Full: the model's queue is full.
        """
        if self.model.takes_edge:
            first = next(iter(ask.feed.values()))
            answers = protocol.edge_answers(ask.edges, len(first) if first.ndim else 1)
            ask = ask._replace(feed={**ask.feed, EDGES: answers})
        if not self.batcher.merges:
            return self.batcher.submit(ask.feed, 1)
        rows = {len(array) for array in ask.feed.values()}
        if len(rows) != 1 or 0 in rows:
            raise BadInput(f"the inputs have {sorted(rows)} rows: send the same number for each, at least 1")
        return self.batcher.submit(ask.feed, rows.pop())

    def decoded_bytes(self, ask: Ask) -> int | None:
        """Return the bytes that the request's files make once decoded (0 where shapes do not tell); None without files."""
        sizes = [self.decoders[name].bytes * len(data.data) for name, data in ask.feed.items() if isinstance(data, Files)]
        return sum(sizes) if sizes else None

    def decode_files(self, ask: Ask) -> Ask:
        """Return the request with its files decoded to arrays. Slow: call it in a thread.

        Raises:
            BadInput: a file is no such file, or does not fit the model.
            RuntimeMissing: the library that reads it is not installed.
        """
        feed = {name: self.decoders[name](data) if isinstance(data, Files) else data for name, data in ask.feed.items()}
        return ask._replace(feed=feed)

    def metadata_as(self, name: str) -> dict[str, Any]:
        """Return the metadata under that name: the model's own, or for `NAME-encoded` with files where it takes pictures."""
        if name == self.name:
            return self.about
        files = {"datatype": TEXTS, "shape": [-1, 1]}
        takes = [{**tensor, **files} if self.decoders[tensor["name"]].pictures else tensor for tensor in self.about["inputs"]]
        return {**self.about, "name": name, "inputs": takes}

    def close(self) -> None:
        """Shut down the model's threads without waiting for the run in progress. The model itself is not freed."""
        self.batcher.close()
        self.model.close()

    def stats(self) -> dict[str, Any]:
        """Return counts since the start, in the protocol's form: inferences are rows, executions are runs of the model."""
        b = self.batcher
        requests = {"success": {"count": b.requests}, "fail": {"count": b.failed}}
        counts = {"inference_count": b.rows, "execution_count": b.runs, "inference_stats": requests}
        return {"name": self.name, "version": VERSION, **counts}


def find_model(served: Mapping[str, Served], scope: Scope) -> Served:
    """Return the served model that a request's path names; `NAME-encoded` is the model NAME if it takes picture files.

    Raises:
        HTTPException: 404, for an unknown name or version.
    """
    name, version = scope["path_params"]["name"], scope["path_params"].get("version", VERSION)
    plain = name.removesuffix(protocol.ENCODED)
    if name not in served and plain in served and any(decoder.pictures for decoder in served[plain].decoders.values()):
        name = plain
    if name not in served:
        raise HTTPException(404, f"there is no model {name!r} here, only {', '.join(sorted(served))}")
    if version != VERSION:
        raise HTTPException(404, f"{name} has no version {version!r}, only {VERSION}")
    return served[name]


# Watchdog: checks that each served model still answers, and notifies the service manager.


async def watch(served: Iterable[Served], notify: Notify) -> None:
    """Run each model on zeros, notify the service manager that the service is ready, then that it is alive while all answer.

    Runs until cancelled, 3 times a watchdog period; returns once ready if the manager has no watchdog. The first runs may take
    any time. Models that do not answer are named in the manager's status line, and no notice of life is sent. A model that fails
    on zeros is only required to end its run. Runs for clients count: under load nothing is added to them.
    """
    probes = [_Probe(model) for model in served]
    for probe in probes:
        await probe.run(None)
    notify.ready(f"serving {', '.join(probe.served.name for probe in probes)}")
    if notify.watchdog_s is None:
        return
    period = notify.watchdog_s / BEATS
    while True:
        alive = await asyncio.gather(*(probe.run(period) for probe in probes))
        dead = [probe.served.name for probe, answers in zip(probes, alive, strict=True) if not answers]
        if dead:
            notify.status(f"no answer from {', '.join(dead)}")
        else:
            notify.alive()
        await asyncio.sleep(period)


class _Probe:
    """Health probe of one served model, which runs it on zeros."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.zeros = make_zeros(served.name, served.inputs)
        self.takes_zeros: bool | None = None
        self._runs = -1

    async def run(self, seconds: float | None) -> bool:
        """Return True if the model has run since the last probe, or ends a run now, within so many seconds; None: any time.

        Queues a run on zeros unless other runs have succeeded. The first call records in `takes_zeros` whether the model takes
        zeros.
        """
        runs, self._runs = self._runs, self.served.batcher.runs
        if self.takes_zeros and runs != self._runs:
            return True
        answered = False
        with suppress(asyncio.TimeoutError):
            answered = await asyncio.wait_for(self._answer(), seconds)
        if self.takes_zeros is None:
            self.takes_zeros = answered
        alive = answered or self.served.batcher.runs != self._runs
        self._runs = self.served.batcher.runs
        return alive

    async def _answer(self) -> bool:
        """Run the model on zeros, waiting for the queue; return False if it fails, unless it takes no zeros, as known."""
        try:
            await self.served.submit(Ask(self.zeros, [], None))
        except EdgerouteError:
            return self.takes_zeros is False
        return True


# Handler of POST .../infer.

LARGE = 1 << 16  # bytes from which a body is parsed, or a reply encoded, in a thread, so that the event loop is not blocked


class Infer:
    """POST handler of inference requests: parses and decodes them in threads, queues them, and replies with the model's load.

    Plain ASGI, which allows streaming the body, and detecting that the client disconnects while its request waits.
    """

    def __init__(self, served: Mapping[str, Served], bodies: access.Bodies, max_json_bytes: int) -> None:
        self.served, self.bodies, self.max_json_bytes = served, bodies, max_json_bytes
        self._decoder = DaemonThread("edgeroute-serve-decode")  # one thread: a picture takes up to hundreds of megabytes
        self._parser = DaemonThread("edgeroute-serve-json")  # one thread: parsed JSON takes several times its size

    def close(self) -> None:
        """Shut down the threads without waiting."""
        self._decoder.shutdown(wait=False)
        self._parser.shutdown(wait=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the request, queue it at its model, and send the reply with the model's load; nothing if the client left."""
        model = find_model(self.served, scope)
        headers = dict(scope["headers"])
        with access.Body(self.bodies, headers) as held:
            body = await held.read(receive)
            if body is not None:
                reply = await self._answer(model, headers, body, receive, held)
                if reply is not None:
                    await Response(reply.body, headers={**reply.headers, **model.batcher.load()})(scope, receive, send)

    async def _answer(
        self, model: Served, headers: Mapping[bytes, bytes], body: bytes, receive: Receive, held: access.Body
    ) -> protocol.Reply | None:
        """Parse, decode and run a request; return the encoded reply, or None if the client disconnected, whose run is withdrawn.

        Large bodies, files and replies are handled in threads; decoded files count towards the body's memory.

        Raises:
            BadInput: the body is compressed or invalid.
            HTTPException: 413 if JSON or files are too large, 501 if the library for the files is missing, 503 if memory is
                short.
            Full: the model's queue is full.
            ModelError: the model failed.
        """
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise BadInput("the body is compressed, which this server does not read: send it as it is")
        length, size = protocol.json_part(headers, body, self.max_json_bytes)
        read = partial(protocol.read, body, length, model.inputs, model.outputs, model.decoders)
        slow = len(body) if any(spec.dtype == TEXT for spec in model.inputs) else size  # texts are split one by one
        ask = read() if slow < LARGE else await asyncio.get_running_loop().run_in_executor(self._parser, read)
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
LONGEST = 100  # most characters of the id that a client gives its request


class Metrics:
    """Prometheus collector: counts and durations of requests for these models, in a registry of its own.

    Raises:
        RuntimeMissing: `prometheus_client` is not installed.
    """

    def __init__(self, served: Mapping[str, Served]) -> None:
        check_installed()
        from prometheus_client import CollectorRegistry, Histogram

        self._served, self._registry = served, CollectorRegistry()
        self.durations = Histogram(
            "edgeroute_serve_request_duration_seconds", "Time from a request's head to the end of its reply", ["model", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(self)

    def describe(self) -> tuple[()]:
        """Return no descriptions: `collect` finds the metrics at each scrape."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Return the metrics of all models now: counts, as `/v2/models/NAME/stats` has them, and the lengths of their queues."""
        page = Page()
        for name, model in self._served.items():
            batcher = model.batcher
            page.counter("serve_inferences", "Rows that a model answered", batcher.rows, model=name)
            page.counter("serve_runs", "Runs of a model, each of one or more rows", batcher.runs, model=name)
            for result, count in (("success", batcher.requests), ("fail", batcher.failed)):
                page.counter("serve_requests", "Requests that reached a model", count, model=name, result=result)
            page.gauge("serve_waiting", "Requests that wait for a model", batcher.waiting, model=name)
        return page.collect()

    def page(self, request: Request) -> Response:
        """Render the metrics in the format that the scraper accepts; refuse requests of web pages.

        Raises:
            HTTPException: 403 for a page of another site, or 421 on a loopback address for a page whose own name resolves to it.
        """
        headers = dict(request.scope["headers"])
        if access.of_a_page(headers):
            raise HTTPException(403, "there are no metrics for web pages: ask with a program", access.CLOSE)
        server = request.scope.get("server") or ("", None)
        if is_loopback(server[0]) and not access.is_named(headers.get(b"host", b"").decode("latin-1"), {"localhost"}):
            raise HTTPException(421, "ask for the metrics on this machine by its address, or as localhost", access.CLOSE)
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
        """Record a request's duration and status in the metrics, and log both with its Idempotency-Key, each if it is enabled.

        A model that is not served has an empty name in both; `NAME-encoded` counts as NAME.
        """
        named = scope.get("path_params", {}).get("name", "")
        model = named if named in self._served else named.removesuffix("-encoded")
        model = model if model in self._served else ""
        if self._metrics is not None:
            self._metrics.durations.labels(model, str(status)).observe(seconds)
        if self._logs:
            raw = next((value for name, value in scope["headers"] if name == b"idempotency-key"), b"")
            key = clean(raw.decode("latin-1"), LONGEST)
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
    """Load the models and build the ASGI application that serves them by name, each in version 1.

    It stops its threads at its end. The models stay loaded, for the caller to close. There is no authentication.

    Args:
        models: loaded here, so that an unsuitable one fails before the server listens. Each declares its `inputs`, as ONNX models
            do by themselves; see `EdgeMembers`. One without `outputs` is run on zeros.
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
        """Stop the threads of the models and of the parser at the end of the application, without waiting."""
        yield
        for model in served.values():
            model.close()
        infer.close()

    infer = Infer(served, access.Bodies(max_body_bytes, max_bodies_bytes, body_timeout_s), max_json_bytes)
    pages = _Pages(served)
    routes = protocol.routes(
        "edgeroute-serve", infer, {"": pages.model, "/ready": pages.model_ready, "/stats": pages.stats}
    )  # fmt: skip
    middleware = [Middleware(access.OneLength)]
    if metrics or logs:
        counted = Metrics(served) if metrics else None
        middleware.insert(0, Middleware(RequestLog, served=served, metrics=counted, logs=logs))
        routes += [Route("/metrics", counted.page)] if counted else []
    handlers = access.error_handlers("a model is at /v2/models/NAME, and takes POST at /v2/models/NAME/infer", {}, "/v2")
    application = Starlette(routes=routes, exception_handlers=handlers, middleware=middleware, lifespan=lifespan)
    application.router.redirect_slashes = False
    application.state.served = served
    return application


class _Pages:
    """GET handlers of a model's metadata, readiness and counts."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.served = served

    async def model(self, request: Request) -> Response:
        """Describe a model; raise 404 if unknown."""
        return reply(find_model(self.served, request.scope).metadata_as(request.path_params["name"]))

    async def model_ready(self, request: Request) -> Response:
        """Answer that a model is ready; raise 404 if unknown."""
        return reply({"name": find_model(self.served, request.scope).name, "ready": True})

    async def stats(self, request: Request) -> Response:
        """Return a model's counts; raise 404 if unknown."""
        return reply({"model_stats": [find_model(self.served, request.scope).stats()]})


def serve(
    models: Sequence[str | Path | EdgeModel],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    threads: int = 1,
    on_ready: Callable[[str], object] | None = None,
    **options: Any,
) -> int:
    """Serve models until SIGTERM, SIGINT or SIGHUP; then finish requests in progress for at most 5 s. Blocks.

    Returns the number of that signal; 0 in a thread, which receives no signals. Notifies a service manager, such as systemd, when
    it is ready, alive while its models answer, and stopping.

    Args:
        models: paths of model files, each with its card beside it if there is one; `module:name` of a model or a function in
            Python; or models.
        host: address to listen on; the default accepts only this machine. There is no authentication.
        port: port to listen on; 0 selects a free one.
        threads: threads per run of a model file.
        on_ready: called with the URL once the server listens.
        options: passed to `app`: limits, such as `max_batch`, and `metrics` and `logs`.

    Raises:
        PolicyError: the address cannot be listened on, a module or name does not exist, or `app` refuses a model.
        ModelError: a model cannot be loaded.
    """
    application = app([named_model(model, threads) for model in models], **options)
    return host_run(application, host, port, partial(watch, application.state.served.values()), on_ready)


def named_model(model: str | Path | EdgeModel, threads: int = 1) -> EdgeModel:
    """Return the model at a path, the one that a name in Python, `module:name`, has, or a model as it is.

    The module is imported, also from the current folder. threads: for a run of a model file.

    Raises:
        PolicyError: there is no such module or name.
        ModelError: the model cannot be created.
    """
    if not isinstance(model, str | Path):
        return load(model)
    if is_python_name(str(model)):
        return load(python_object(str(model), "model"))
    return load(model, **({} if threads == 1 else {"threads": threads}))
