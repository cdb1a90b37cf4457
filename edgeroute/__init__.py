"""edgeroute: hybrid edge-cloud inference routing. A small model runs on the device and defers uncertain inputs to the cloud.

`edgeroute.__all__` begins with the 25 names that most programs need, from `Router` to `CloudError`;
the others follow in alphabetical order. `dir()` sorts them all.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers know the name; `typing` takes longer to import than all else here
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

# Name -> module from which the name is imported at its first use. Type checkers read `__init__.pyi`; a test compares them.
_HOMES = {
    "Router": "router.router", "AsyncRouter": "router.async_router", "Answer": "types",
    "Options": "core.policy_egress_and_options",
    "OnnxModel": "edge.onnx", "LiteRTModel": "edge.litert", "LlamaModel": "edge.llama", "CallableModel": "edge.callable_model",
    "OpenInference": "cloud.openinference", "OpenAIChat": "cloud.openai", "PlainJson": "cloud.json_api",
    "Function": "cloud.function_backend_and_reply_checks", "Secret": "http.messages_addresses_and_secrets",
    "Rule": "core.device_rules",
    "Egress": "cloud.egress_consent_and_redaction", "Limits": "core.spending_limits", "Cache": "stores.cache",
    "Outbox": "stores.outbox", "Audit": "trials.audit_setting_and_drift_monitor", "Trace": "record.trace",
    "EdgerouteError": "errors", "BadInput": "errors",
    "NoAnswer": "errors", "PolicyError": "errors", "CloudError": "errors", "AsyncStream": "router.streams_sessions_chats",
    "BadReply": "errors", "BargeIn": "router.live.speech_segments", "CatalogError": "errors", "Closed": "errors",
    "CoreMLModel": "edge.coreml", "DeadlineExceeded": "errors", "DeviceSensors": "observe.device_sensors_and_sampler",
    "EdgeModel": "types", "Ensemble": "edge.runtimes_variants_ensemble", "FrameUpdate": "router.live.frames", "Held": "errors",
    "InputScore": "confidence.score_before_run", "Instrument": "record.instrument_interface",
    "LocalServer": "edge.local_server_client", "MayNotLeave": "errors", "ModelError": "errors", "ModelMissing": "errors",
    "OpenInferenceGrpc": "cloud.grpc",
    "OpenTelemetry": "record.opentelemetry", "Part": "router.part_hooks_and_dispatch", "Piece": "core.stream_walk",
    "Prediction": "types",
    "Prefix": "confidence.first_tokens", "Prometheus": "record.prometheus", "Reading": "core.device_rules", "Refused": "errors",
    "RequestLog": "record.structured_logging", "Restart": "core.stream_walk", "RuntimeMissing": "errors",
    "Semantic": "stores.cache", "Stats": "observe.stats_and_status_types", "Status": "observe.stats_and_status_types",
    "StopToken": "types", "StoreError": "errors", "Stream": "router.streams_sessions_chats", "TimedOut": "errors",
    "Trial": "trials.trial_setting", "Unreachable": "errors", "Utterance": "router.live.speech_segments",
    "Variants": "edge.runtimes_variants_ensemble",
    "metrics": "record.prometheus", "register": "edge.runtimes_variants_ensemble",
}  # fmt: skip

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604 - of texts


def __getattr__(name: str) -> Any:
    """Import a public name at its first use.

    Raises:
        AttributeError: there is no such name.
    """
    if name == "models":
        return import_module("edgeroute.models")
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeroute' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"edgeroute.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
