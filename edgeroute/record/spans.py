"""Attributes of spans and metrics, by OpenTelemetry's conventions for HTTP clients, RPC clients and generative AI. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from edgeroute.core.codes import Failure
from edgeroute.errors import Refused
from edgeroute.record.instruments import AttemptBegan, AttemptEnded

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
"""Those that HTTP knows; another one is `_OTHER`."""
OPERATIONS = {"/chat/completions": "chat", "/completions": "text_completion", "/embeddings": "embeddings"}
"""End of a path of OpenAI's API -> what is asked for."""
Attributes = dict[str, Any]


def to(began: AttemptBegan) -> Attributes:
    """Where an attempt goes, without what differs from call to call."""
    sending = began.sending
    parts = urlsplit(sending.origin)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found: Attributes = {"server.address": parts.hostname or "", "server.port": port}
    if sending.protocol == "grpc":
        service, _, method = sending.path.strip("/").rpartition("/")
        return found | {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    method = sending.method if sending.method in METHODS else "_OTHER"
    return found | {"http.request.method": method, "url.scheme": parts.scheme}


def asked(began: AttemptBegan) -> Attributes:
    """What of a language model is asked for; empty: it is none."""
    operation = _operation(began.sending.path)
    if not operation or began.sending.protocol == "grpc" or not began.sending.model:
        return {}
    return {"gen_ai.operation.name": operation, "gen_ai.provider.name": "openai", "gen_ai.request.model": began.sending.model}


def sent(began: AttemptBegan) -> tuple[str, Attributes]:
    """The name of an attempt's span, and its attributes as it begins."""
    where, text = to(began), asked(began)
    found = {**where, **text, "edgeroute.leg": began.target}
    if "rpc.system" in where:
        return f"{where['rpc.service']}/{where['rpc.method']}", found
    found["url.full"] = began.sending.origin + began.sending.path.partition("?")[0]
    if began.again:
        found["http.request.resend_count"] = began.again
    name = f"{text['gen_ai.operation.name']} {text['gen_ai.request.model']}" if text else where["http.request.method"]
    return name, found


def attempted(ended: AttemptEnded, began: AttemptBegan | None) -> Attributes:
    """An attempt's attributes as it ends."""
    found: Attributes = {}
    if began is not None and began.sending.protocol == "http":
        found = {"http.request.body.size": ended.sent_bytes, "http.response.body.size": ended.received_bytes}
        if ended.status is not None:
            found["http.response.status_code"] = ended.status
    if ended.tokens is not None:
        found |= {"gen_ai.usage.input_tokens": ended.tokens.prompt, "gen_ai.usage.output_tokens": ended.tokens.answer}
    return found | wrong(ended)


def wrong(ended: AttemptEnded) -> Attributes:
    """The type of an attempt's error; empty: it had none."""
    if ended.cancelled:
        return {"error.type": "cancelled"}
    return {} if ended.error is None else {"error.type": error_type(ended.error)}


def error_type(error: BaseException | None) -> str:
    """An error's HTTP status; or its code; or its class. Never its text."""
    if isinstance(error, Refused):
        return str(error.status)
    return Failure.of(error).code or ("_OTHER" if error is None else type(error).__qualname__)


def language(model: str, outputs: Any) -> Attributes:
    """What of a language model was asked for on the device, and its tokens; empty: these are no outputs of one."""
    choices = outputs.get("choices") if isinstance(outputs, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        return {}
    operation = "chat" if "message" in choices[0] else "text_completion"
    found: Attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "edgeroute", "gen_ai.request.model": model}
    usage = outputs.get("usage")
    for name, attribute in (("prompt_tokens", "input"), ("completion_tokens", "output")):
        count = usage.get(name) if isinstance(usage, Mapping) else None
        if isinstance(count, int) and not isinstance(count, bool):
            found[f"gen_ai.usage.{attribute}_tokens"] = count
    return found


def _operation(path: str) -> str:
    return next((operation for end, operation in OPERATIONS.items() if path.endswith(end)), "")
