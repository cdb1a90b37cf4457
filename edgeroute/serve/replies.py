"""JSON replies, and the mapping of errors to statuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from edgeroute.errors import BadInput, ModelError
from edgeroute.serve.batching import Full
from edgeroute.serve.protocol import dumps


def reply(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON reply."""
    return Response(dumps(data), status, headers, "application/json")


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    return reply({"error": message}, status, headers)


async def _http(request: Request, e: HTTPException) -> Response:
    message, path = e.detail, request.url.path
    if e.status_code == 405:  # noqa: PLR2004 - HTTP's own number
        message = f"{path} does not take {request.method}, only {(e.headers or {}).get('Allow', 'others')}"
    elif message == "Not Found":  # Starlette's text
        message = f"there is nothing at {path}: a model is at /v2/models/NAME, and takes POST at /v2/models/NAME/infer"
    return _error(e.status_code, message, e.headers)


async def _bad(_: Request, e: BadInput) -> Response:
    return _error(400, f"bad request: {e}")


async def _full(_: Request, e: Full) -> Response:
    return _error(503, str(e), {"Retry-After": "1", **e.headers})


async def _failed(_: Request, e: ModelError) -> Response:
    return _error(500, f"the server's model failed, the request keeps the protocol: {e}")


async def _unforeseen(_: Request, e: Exception) -> Response:
    return _error(500, f"a fault of the server, not of the request: {type(e).__name__}; its log has the rest")


FAULTS: dict[Any, Any] = {HTTPException: _http, BadInput: _bad, Full: _full, ModelError: _failed, Exception: _unforeseen}
"""Exception -> its handler."""
