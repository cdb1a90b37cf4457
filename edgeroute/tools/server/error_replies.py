"""Gateway errors as HTTP replies: status, headers and message, in OpenAI's form or the Open Inference Protocol's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from edgeroute.core.error_codes import Failure, clean
from edgeroute.errors import BadInput, Closed, CloudError, EdgerouteError, MayNotLeave, NoAnswer, PolicyError, Unfit
from edgeroute.tools.server.oip_messages import reply
from edgeroute.tools.server.web_service import retry_after_s

AGAIN = {"Retry-After": "1"}
KINDS: Mapping[int, str] = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Status -> OpenAI's type of error; others below 500 are `invalid_request_error`, and the rest `server_error`."""


class Fault(NamedTuple):
    """Error reply: status, message, machine-readable code and headers."""

    status: int
    message: str
    code: str
    headers: Mapping[str, str] = {}

    def openai(self) -> dict[str, Any]:
        """Return the body in OpenAI's form."""
        other = "invalid_request_error" if self.status < 500 else "server_error"  # noqa: PLR2004 - whose fault, by HTTP
        kind = KINDS.get(self.status, other)
        return {"error": {"message": self.message, "type": kind, "param": None, "code": self.code}}

    def oip(self) -> dict[str, Any]:
        """Return the body in the Open Inference Protocol's form."""
        return {"error": self.message}

    def reply(self, path: str) -> Response:
        """Return the reply: the Open Inference Protocol's form for paths under /v2, else OpenAI's."""
        return reply(self.oip() if path.startswith("/v2") else self.openai(), self.status, self.headers)


def fault_of(error: BaseException) -> Fault:
    """Translate an exception to its `Fault`; an unexpected exception becomes a 500 without details."""
    if isinstance(error, HTTPException):
        return Fault(error.status_code, clean(error.detail), CODES.get(error.status_code, "bad_request"), error.headers or {})
    if isinstance(error, BadInput | Unfit):
        return Fault(400, f"bad request: {clean(error)}", "bad_input")
    if isinstance(error, PolicyError):
        return Fault(400, f"the policy does not allow this request: {clean(error)}", "policy")
    if isinstance(error, MayNotLeave):
        return Fault(403, clean(error), "may_not_leave")
    if isinstance(error, NoAnswer | CloudError):
        return _fault_without_answer(error, [*error.errors.values()] if isinstance(error, NoAnswer) else [error])
    if isinstance(error, Closed):
        return Fault(503, "the gateway is shutting down: try again later", "closed", AGAIN)
    if isinstance(error, EdgerouteError):
        return Fault(500, clean(error), "model", {"x-should-retry": "false"})  # which OpenAI's clients read
    return Fault(500, f"a fault of the gateway, not of the request: {type(error).__name__}; its log has the rest", "internal")


def _fault_without_answer(error: EdgerouteError, errors: list[BaseException]) -> Fault:
    """Return the fault of a request that no leg answered: 503, Retry-After being the longest wait of a leg, 1 s to 1 h.

    400 if each leg refused this input, since another attempt would not change that.
    """
    if errors and all(isinstance(e, BadInput | Unfit) or Failure.of(e).of_the_input for e in errors):
        return Fault(400, f"bad request: {clean(error)}", "bad_input")
    return Fault(503, clean(error), "no_answer", {"Retry-After": str(retry_after_s(error))})


CODES: Mapping[int, str] = {
    401: "invalid_api_key", 403: "forbidden", 404: "not_found", 405: "method_not_allowed", 408: "body_timeout", 413: "too_large",
    415: "unsupported_media_type", 421: "unknown_host", 429: "busy", 503: "busy",
}  # fmt: skip


class Busy(HTTPException):
    """429: the most requests that are allowed at a time are in progress."""

    def __init__(self, most: int) -> None:
        super().__init__(429, f"{most} requests are in progress, and no more are taken at a time: try again later", AGAIN)


async def _http(request: Request, error: HTTPException) -> Response:
    """Reply to Starlette's HTTP errors, with clearer messages for a wrong method and an unknown path."""
    path, fault = request.url.path, fault_of(error)
    if error.status_code == 405:  # noqa: PLR2004 - HTTP's own number
        allowed = (error.headers or {}).get("Allow", "others")
        fault = fault._replace(message=f"{clean(path, 100)} does not take {request.method}, only {allowed}")
    elif error.detail == "Not Found":  # Starlette's text
        fault = fault._replace(message=f"there is nothing at {clean(path, 100)}: chats are at /v1, tensors at /v2/models/NAME")
    return fault.reply(path)


async def _other(request: Request, error: Exception) -> Response:
    """Reply to any other exception."""
    return fault_of(error).reply(request.url.path)


HANDLERS: dict[Any, Any] = {HTTPException: _http, EdgerouteError: _other, Exception: _other}
"""Exception -> its handler."""
