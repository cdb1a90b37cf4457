"""What a server of models tells of its requests: metrics for Prometheus, and a log record for each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from time import monotonic
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgeroute.errors import RuntimeMissing
from edgeroute.serve.asked import is_loopback, is_named, of_a_page
from edgeroute.serve.served import Served

log = logging.getLogger("edgeroute.requests")
CLOSE = {"Connection": "close"}
LONGEST = 100
"""Characters of the id that a client gives its request."""


class Metrics:
    """Counts and durations of requests for these models, in a registry of its own.

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

    def ended(self, model: str, status: int, seconds: float) -> None:
        """Counts a request; empty: of no model that there is."""
        self._durations.labels(model, str(status)).observe(seconds)

    def describe(self) -> tuple[()]:
        """Nothing: which there are is known at a scrape."""
        return ()

    def collect(self) -> Iterator[Any]:
        """The counts of the models, as `/v2/models/NAME/stats` has them, and their queues."""
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        inferences = CounterMetricFamily("edgeroute_serve_inferences", "Rows that a model answered", labels=["model"])
        runs = CounterMetricFamily("edgeroute_serve_runs", "Runs of a model, each of one or more rows", labels=["model"])
        requests = CounterMetricFamily("edgeroute_serve_requests", "Requests that reached a model", labels=["model", "result"])
        waiting = GaugeMetricFamily("edgeroute_serve_waiting", "Requests that wait for a model", labels=["model"])
        for name, one in self._served.items():
            batcher = one.batcher
            inferences.add_metric([name], batcher.rows)
            runs.add_metric([name], batcher.runs)
            requests.add_metric([name, "success"], batcher.requests)
            requests.add_metric([name, "fail"], batcher.failed)
            waiting.add_metric([name], batcher.waiting)
        yield from (inferences, runs, requests, waiting)

    def page(self, request: Request) -> Response:
        """GET of the metrics; web pages are refused.

        Raises:
            HTTPException: a page of another site asks, or, on this machine alone, one whose own name resolves to it.
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


class Measured:
    """ASGI middleware that tells of each request for an inference once it has ended.

    Args:
        app: what it measures.
        served: the models, by name.
        metrics: counts them; None: nobody does.
        logs: whether each is logged, to `edgeroute.requests`: model, status, duration, and the id that its client gave it as
            `Idempotency-Key`, as edgeroute's routers do.
    """

    def __init__(self, app: ASGIApp, served: Mapping[str, Served], metrics: Metrics | None, *, logs: bool) -> None:
        self.app, self._served, self._metrics, self._logs = app, served, metrics, logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes it on."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        begun, status = monotonic(), 499  # as others count a client that has left before its reply

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sent)
        finally:
            self._tell(scope, status, monotonic() - begun)

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        named = scope.get("path_params", {}).get("name", "")
        model = named if named in self._served else named.removesuffix("-encoded")
        model = model if model in self._served else ""
        if self._metrics is not None:
            self._metrics.ended(model, status, seconds)
        if self._logs:
            key = next((value for name, value in scope["headers"] if name == b"idempotency-key"), b"").decode("latin-1")[:LONGEST]
            fields = {"model": model, "status": status, "latency_s": round(seconds, 6), **({"request": key} if key else {})}
            log.info("%s: %d", model or "no model", status, extra=fields)
