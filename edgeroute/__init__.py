"""edgeroute: hybrid edge-cloud inference routing. A small model runs on the device and defers uncertain inputs to the cloud."""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # type checkers know the name; `typing` takes longer to import than all else here
if TYPE_CHECKING:
    from typing import Any

    from edgeroute.cloud.backend import Function
    from edgeroute.cloud.grpc import OpenInferenceGrpc
    from edgeroute.cloud.guard import Egress
    from edgeroute.cloud.json_api import PlainJson
    from edgeroute.cloud.openai import OpenAIChat
    from edgeroute.cloud.openinference import OpenInference
    from edgeroute.confidence.input_score import InputScore
    from edgeroute.confidence.prefix import Prefix
    from edgeroute.core.rules import Reading, Rule
    from edgeroute.core.spending import Limits
    from edgeroute.core.stream import Piece, Restart
    from edgeroute.edge.callable import CallableModel
    from edgeroute.edge.coreml import CoreMLModel
    from edgeroute.edge.ensemble import Ensemble
    from edgeroute.edge.java_onnx import JavaOnnxModel
    from edgeroute.edge.litert import LiteRTModel
    from edgeroute.edge.llama import LlamaModel
    from edgeroute.edge.local_server import LocalServer
    from edgeroute.edge.members import EdgeMembers
    from edgeroute.edge.onnx import OnnxModel
    from edgeroute.edge.runtimes import Variants, register
    from edgeroute.errors import (
        BadInput,
        BadReply,
        CatalogAway,
        CatalogError,
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
        Unfit,
        Unreachable,
    )
    from edgeroute.http.messages import Secret
    from edgeroute.observe.sensors import DeviceSensors
    from edgeroute.observe.stats import ArmStats, AuditStats, CloudArmStats, LegStats, Stats, Status
    from edgeroute.record.instruments import AttemptBegan, AttemptEnded, Instrument, RequestBegan, RequestEnded
    from edgeroute.record.opentelemetry import OpenTelemetry
    from edgeroute.record.prometheus import Prometheus, metrics
    from edgeroute.record.request_log import RequestLog
    from edgeroute.record.trace import Trace
    from edgeroute.router.aio import AsyncRouter
    from edgeroute.router.arguments import Options
    from edgeroute.router.conversation import AsyncConversation, Conversation
    from edgeroute.router.live.audio import AudioStats, BargeIn, Utterance
    from edgeroute.router.live.frames import FrameStats, FrameUpdate
    from edgeroute.router.live.tasks import AsyncAudio, AsyncFrames
    from edgeroute.router.live.updates import Audio, Frames
    from edgeroute.router.preflight import Check, Decision
    from edgeroute.router.router import Router
    from edgeroute.router.streams import AsyncStream, Stream
    from edgeroute.stores.cache import Cache, Semantic
    from edgeroute.stores.outbox import Late, Outbox
    from edgeroute.tools.measure.report.results import CalibrationResult, EvaluationResult
    from edgeroute.trials.drift import Audit
    from edgeroute.trials.settings import AB, CloudArms
    from edgeroute.types import Answer, Cancel, EdgeModel, Prediction, StopToken, TensorSpec

__version__ = "0.1.0"

_HOMES = {
    "AB": "trials.settings",
    "AsyncRouter": "router.aio",
    "Options": "router.arguments",
    "Secret": "http.messages",
    "OpenAIChat": "cloud.openai",
    "OpenInference": "cloud.openinference",
    "OpenInferenceGrpc": "cloud.grpc",
    "PlainJson": "cloud.json_api",
    "CallableModel": "edge.callable",
    "CoreMLModel": "edge.coreml",
    "Ensemble": "edge.ensemble",
    "JavaOnnxModel": "edge.java_onnx",
    "EdgeMembers": "edge.members",
    "LlamaModel": "edge.llama",
    "LocalServer": "edge.local_server",
    "register": "edge.runtimes",
    "Variants": "edge.runtimes",
    "Egress": "cloud.guard",
    "Function": "cloud.backend",
    "Limits": "core.spending",
    "DeviceSensors": "observe.sensors",
    "Reading": "core.rules",
    "Rule": "core.rules",
    "LiteRTModel": "edge.litert",
    "OnnxModel": "edge.onnx",
    "InputScore": "confidence.input_score",
    "Piece": "core.stream",
    "Prefix": "confidence.prefix",
    "Restart": "core.stream",
    "Router": "router.router",
    "Trace": "record.trace",
    **dict.fromkeys(("Audio", "Frames"), "router.live.updates"),
    **dict.fromkeys(("AsyncAudio", "AsyncFrames"), "router.live.tasks"),
    **dict.fromkeys(("AudioStats", "BargeIn", "Utterance"), "router.live.audio"),
    **dict.fromkeys(("FrameStats", "FrameUpdate"), "router.live.frames"),
    **dict.fromkeys(("AsyncStream", "Stream"), "router.streams"),
    **dict.fromkeys(("AsyncConversation", "Conversation"), "router.conversation"),
    **dict.fromkeys(("CalibrationResult", "EvaluationResult"), "tools.measure.report.results"),
    "Audit": "trials.drift",
    **dict.fromkeys(("AttemptBegan", "AttemptEnded", "Instrument", "RequestBegan", "RequestEnded"), "record.instruments"),
    "OpenTelemetry": "record.opentelemetry",
    **dict.fromkeys(("Prometheus", "metrics"), "record.prometheus"),
    "RequestLog": "record.request_log",
    "Status": "observe.stats",
    **dict.fromkeys(("Cache", "Semantic"), "stores.cache"),
    **dict.fromkeys(("Late", "Outbox"), "stores.outbox"),
    **dict.fromkeys(("Check", "Decision"), "router.preflight"),
    **dict.fromkeys(("ArmStats", "CloudArmStats"), "observe.stats"),
    "CloudArms": "trials.settings",
    **dict.fromkeys(("AuditStats", "LegStats", "Stats"), "observe.stats"),
    **dict.fromkeys(("Answer", "Cancel", "EdgeModel", "Prediction", "StopToken", "TensorSpec"), "types"),
    **dict.fromkeys(
        (
            "BadInput", "BadReply", "CatalogAway", "CatalogError", "Closed", "CloudError", "DeadlineExceeded", "EdgerouteError",
            "Held", "MayNotLeave", "ModelError", "ModelMissing", "NoAnswer", "PolicyError", "Refused", "RuntimeMissing",
            "StoreError", "TimedOut", "Unfit", "Unreachable",
        ),
        "errors",
    ),
}  # fmt: skip

__all__ = [
    "AB",
    "Answer",
    "ArmStats",
    "AsyncAudio",
    "AsyncConversation",
    "AsyncFrames",
    "AsyncRouter",
    "AsyncStream",
    "AttemptBegan",
    "AttemptEnded",
    "Audio",
    "AudioStats",
    "Audit",
    "AuditStats",
    "BadInput",
    "BadReply",
    "BargeIn",
    "Cache",
    "CalibrationResult",
    "CallableModel",
    "Cancel",
    "CatalogAway",
    "CatalogError",
    "Check",
    "Closed",
    "CloudArmStats",
    "CloudArms",
    "CloudError",
    "Conversation",
    "CoreMLModel",
    "DeadlineExceeded",
    "Decision",
    "DeviceSensors",
    "EdgeMembers",
    "EdgeModel",
    "EdgerouteError",
    "Egress",
    "Ensemble",
    "EvaluationResult",
    "FrameStats",
    "FrameUpdate",
    "Frames",
    "Function",
    "Held",
    "InputScore",
    "Instrument",
    "JavaOnnxModel",
    "Late",
    "LegStats",
    "Limits",
    "LiteRTModel",
    "LlamaModel",
    "LocalServer",
    "MayNotLeave",
    "ModelError",
    "ModelMissing",
    "NoAnswer",
    "OnnxModel",
    "OpenAIChat",
    "OpenInference",
    "OpenInferenceGrpc",
    "OpenTelemetry",
    "Options",
    "Outbox",
    "Piece",
    "PlainJson",
    "PolicyError",
    "Prediction",
    "Prefix",
    "Prometheus",
    "Reading",
    "Refused",
    "RequestBegan",
    "RequestEnded",
    "RequestLog",
    "Restart",
    "Router",
    "Rule",
    "RuntimeMissing",
    "Secret",
    "Semantic",
    "Stats",
    "Status",
    "StopToken",
    "StoreError",
    "Stream",
    "TensorSpec",
    "TimedOut",
    "Trace",
    "Unfit",
    "Unreachable",
    "Utterance",
    "Variants",
    "__version__",
    "metrics",
    "register",
]


def __getattr__(name: str) -> Any:
    """Imports public names lazily, on first access."""
    if name == "models":
        return import_module("edgeroute.models")
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeroute' has no attribute {name!r}")
    home = _HOMES[name]
    if home.startswith("tools."):
        from edgeroute.system.imports import tool

        module = tool(home.removeprefix("tools."))
    else:
        module = import_module(f"edgeroute.{home}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
