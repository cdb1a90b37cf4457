"""Handler of the gateway's `/metrics`, for Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from edgeroute.record.prometheus import Measured, check_installed, metrics


class Metrics:
    """GET handler that renders one router's metrics.

    Raises:
        RuntimeMissing: `prometheus_client` is not installed.
    """

    def __init__(self, router: Measured) -> None:
        check_installed()  # raise now, not at the first scrape
        self.router = router

    def page(self, request: Request) -> Response:
        """Render the metrics in the format that the scraper accepts.

        No coroutine function, so that Starlette calls it in a thread: it may wait for the outbox's file.
        """
        rendered = metrics(self.router, request.headers.get("accept", ""))
        return Response(rendered.body, headers={"Content-Type": rendered.content_type, "Cache-Control": "no-store"})
