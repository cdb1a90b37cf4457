"""edgeroute: run a model on the edge, ask the cloud where it is not sure, and never do worse than the edge alone."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeroute.aio import AsyncRouter
    from edgeroute.cache import Cache, Semantic
    from edgeroute.checks import Check, Decision
    from edgeroute.cloud.base import Secret
    from edgeroute.cloud.openinference import OpenInference
    from edgeroute.cloud.plain import PlainJson
    from edgeroute.core.policy import Saver
    from edgeroute.core.spending import Limits
    from edgeroute.device import Reading
    from edgeroute.edge.callable import CallableModel
    from edgeroute.edge.ensemble import Ensemble
    from edgeroute.edge.onnx import OnnxModel
    from edgeroute.egress import Egress
    from edgeroute.errors import (
        BadInput,
        BadReply,
        Closed,
        CloudError,
        DeadlineExceeded,
        EdgerouteError,
        Held,
        MayNotLeave,
        ModelError,
        ModelMissing,
        NoAnswer,
        PolicyError,
        Refused,
        RuntimeMissing,
        StoreError,
        TimedOut,
        Unreachable,
    )
    from edgeroute.outbox import Late, Outbox
    from edgeroute.router import Router
    from edgeroute.runners import Function
    from edgeroute.stats import LegStats, Stats
    from edgeroute.streams import AsyncStream, Stream
    from edgeroute.trace import Trace
    from edgeroute.types import Answer, Cancel, EdgeModel, Prediction, TensorSpec
    from edgeroute.watch import Audit, AuditStats

__version__ = "0.1.0"

_HOMES = {
    "AsyncRouter": "aio",
    "Secret": "cloud.base",
    "OpenInference": "cloud.openinference",
    "PlainJson": "cloud.plain",
    "CallableModel": "edge.callable",
    "Ensemble": "edge.ensemble",
    "Egress": "egress",
    "Function": "runners",
    "Limits": "core.spending",
    "Reading": "device",
    "Saver": "core.policy",
    "OnnxModel": "edge.onnx",
    "Router": "router",
    "Trace": "trace",
    **dict.fromkeys(("AsyncStream", "Stream"), "streams"),
    **dict.fromkeys(("Audit", "AuditStats"), "watch"),
    **dict.fromkeys(("Cache", "Semantic"), "cache"),
    **dict.fromkeys(("Late", "Outbox"), "outbox"),
    **dict.fromkeys(("Check", "Decision"), "checks"),
    **dict.fromkeys(("LegStats", "Stats"), "stats"),
    **dict.fromkeys(("Answer", "Cancel", "EdgeModel", "Prediction", "TensorSpec"), "types"),
    **dict.fromkeys(
        (
            "BadInput", "BadReply", "Closed", "CloudError", "DeadlineExceeded", "EdgerouteError", "Held", "MayNotLeave",
            "ModelError", "ModelMissing", "NoAnswer", "PolicyError", "Refused", "RuntimeMissing", "StoreError", "TimedOut",
            "Unreachable",
        ),
        "errors",
    ),
}  # fmt: skip

__all__ = [
    "Answer",
    "AsyncRouter",
    "AsyncStream",
    "Audit",
    "AuditStats",
    "BadInput",
    "BadReply",
    "Cache",
    "CallableModel",
    "Cancel",
    "Check",
    "Closed",
    "CloudError",
    "DeadlineExceeded",
    "Decision",
    "EdgeModel",
    "EdgerouteError",
    "Egress",
    "Ensemble",
    "Function",
    "Held",
    "Late",
    "LegStats",
    "Limits",
    "MayNotLeave",
    "ModelError",
    "ModelMissing",
    "NoAnswer",
    "OnnxModel",
    "OpenInference",
    "Outbox",
    "PlainJson",
    "PolicyError",
    "Prediction",
    "Reading",
    "Refused",
    "Router",
    "RuntimeMissing",
    "Saver",
    "Secret",
    "Semantic",
    "Stats",
    "StoreError",
    "Stream",
    "TensorSpec",
    "TimedOut",
    "Trace",
    "Unreachable",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, and nothing before."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeroute' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"edgeroute.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
