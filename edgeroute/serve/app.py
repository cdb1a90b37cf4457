"""ASGI application: its routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edgeroute.errors import PolicyError
from edgeroute.serve.bodies import Bodies, OneLength
from edgeroute.serve.infer import Infer
from edgeroute.serve.measured import Measured, Metrics
from edgeroute.serve.replies import FAULTS, reply
from edgeroute.serve.served import Served, find
from edgeroute.types import EdgeModel


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
    """Makes the application that serves these models by name, each in version 1.

    Args:
        models: loaded here, so that one that cannot be served fails before the server listens. Each says what it takes
            (`inputs`), as ONNX models do by themselves; see `EdgeMembers`.
        max_batch: rows of several requests merged into one run.
        queue: requests that may wait for one model; further ones get 503 and Retry-After.
        max_body_bytes: of a request; a larger one gets 413.
        max_json_bytes: of the JSON in it, which takes several times its size when it is parsed; more gets 413.
        max_bodies_bytes: of all requests in progress; one that exceeds it gets 503 and Retry-After.
        body_timeout_s: within which a request's body must have come; later it gets 408.
        metrics: whether there is `/metrics`, for Prometheus.
        logs: whether each inference is logged, to `edgeroute.requests`, with its client's id of it.

    Raises:
        PolicyError: no models, one that does not say what it takes, duplicate names, a name that does not fit into a path, a
            limit below 1.
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
        yield
        for one in served.values():
            one.close()
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
        middleware.insert(0, Middleware(Measured, served=served, metrics=counted, logs=logs))
        routes += [Route("/metrics", counted.page)] if counted else []
    application = Starlette(routes=routes, exception_handlers=FAULTS, middleware=middleware, lifespan=lifespan)
    application.router.redirect_slashes = False
    application.state.served = served
    return application


class _Pages:
    """Handlers of GET requests."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        self.served = served
        try:
            self.version = version("edgeroute")
        except PackageNotFoundError:  # run from a source tree
            self.version = "0"

    async def server(self, _: Request) -> Response:
        return reply({"name": "edgeroute-serve", "version": self.version, "extensions": ["binary_tensor_data"]})

    async def live(self, _: Request) -> Response:
        return reply({"live": True})

    async def ready(self, _: Request) -> Response:
        return reply({"ready": True})

    async def model(self, request: Request) -> Response:
        return reply(find(self.served, request.scope).described(request.path_params["name"]))

    async def model_ready(self, request: Request) -> Response:
        return reply({"name": find(self.served, request.scope).name, "ready": True})

    async def stats(self, request: Request) -> Response:
        return reply({"model_stats": [find(self.served, request.scope).stats()]})
