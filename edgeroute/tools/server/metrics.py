"""`/metrics`: the router's metrics, for Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from edgeroute.record.prometheus import Measured, installed, metrics


class Metrics:
    """GET of the metrics of one router.

    Raises:
        RuntimeMissing: `prometheus_client` is not installed.
    """

    def __init__(self, router: Measured) -> None:
        installed()  # what is missing is said now, not at the first scrape
        self.router = router

    def page(self, request: Request) -> Response:
        """The metrics. No coroutine function: so it is called in a thread, as it may wait for the outbox's file."""
        found = metrics(self.router, request.headers.get("accept", ""))
        return Response(found.body, headers={"Content-Type": found.content_type, "Cache-Control": "no-store"})
