"""ASGI application: its routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route

from edgeroute.errors import PolicyError, check_number
from edgeroute.gateway.calls import Calls
from edgeroute.gateway.faults import HANDLERS
from edgeroute.gateway.guard import Guard, checked
from edgeroute.gateway.openai import Completions, Models
from edgeroute.gateway.routing import Routing
from edgeroute.gateway.tensors import Tensors
from edgeroute.router.aio import AsyncRouter
from edgeroute.serve.bodies import Bodies

NAME = "edgeroute"


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
) -> Starlette:
    """Makes the application that serves a router, which it closes at its end.

    Args:
        router: one for asyncio.
        names: of it as a model, beside `edgeroute`.
        token: what clients send as `Authorization: Bearer TOKEN`; None: there is none.
        hosts: names in the header `Host`, beside `localhost` and addresses.
        max_concurrent: requests in progress; a further one gets 429.
        max_body_bytes: of a request; a larger one gets 413.
        max_json_bytes: of the JSON of a request with tensors; more gets 413.
        max_bodies_bytes: of all requests in progress; one that exceeds it gets 503 and Retry-After.
        body_timeout_s: within which a request's body must have come; later it gets 408.
        metrics: whether there is `/metrics`, for Prometheus; who may ask is as for the other paths.

    Raises:
        PolicyError: a name that does not fit into a path, a token that a header cannot have, a limit below 1.
    """
    limits = {
        "max_concurrent": max_concurrent, "max_body_bytes": max_body_bytes, "max_json_bytes": max_json_bytes,
        "max_bodies_bytes": max_bodies_bytes,
    }  # fmt: skip
    for what, value in limits.items():
        check_number(what, value, least=1, whole=True)
    check_number("body_timeout_s", body_timeout_s, above=True)
    called = tuple(dict.fromkeys((NAME, *names)))
    for name in called:
        if not name or not name.isprintable() or {*"/?#%"} & {*name}:
            raise PolicyError(f"{name!r} cannot be a model's name: it is empty, or has what a path cannot have")
    if token is not None:
        checked(token)
    calls = Calls(Bodies(max_body_bytes, max_bodies_bytes, body_timeout_s), max_concurrent)
    routing, models = Routing(router), Models(called)
    tensors = Tensors(routing, calls, called, max_json_bytes)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            calls.close()
            await router.close()

    routes = [
        Route("/v1/chat/completions", Completions(routing, calls, called, chat=True), methods=["POST"]),
        Route("/v1/completions", Completions(routing, calls, called, chat=False), methods=["POST"]),
        Route("/v1/models", models.all),
        Route("/v1/models/{name}", models.one),
        Route("/v2", tensors.server),
        Route("/v2/health/live", tensors.live),
        Route("/v2/health/ready", tensors.ready),
    ]
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            Route(f"{base}/infer", tensors, methods=["POST"]),
            Route(base, tensors.model),
            Route(f"{base}/ready", tensors.model_ready),
        ]
    if metrics:
        from edgeroute.gateway.metrics import Metrics

        routes.append(Route("/metrics", Metrics(router).page))
    guard = Middleware(Guard, hosts=tuple(hosts), token=token)
    application = Starlette(routes=routes, exception_handlers=HANDLERS, middleware=[guard], lifespan=lifespan)
    application.router.redirect_slashes = False
    application.state.calls = calls
    return application
