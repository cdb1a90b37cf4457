# ruff: noqa: I001 - two names in a line
# The public names for type checkers: those of `_HOMES` in `__init__.py`, where they are imported at their first use.

from edgeroute.cloud.function_backend_and_reply_checks import Function as Function
from edgeroute.cloud.grpc import OpenInferenceGrpc as OpenInferenceGrpc
from edgeroute.cloud.egress_consent_and_redaction import Egress as Egress
from edgeroute.cloud.json_api import PlainJson as PlainJson
from edgeroute.cloud.openai import OpenAIChat as OpenAIChat
from edgeroute.cloud.openinference import OpenInference as OpenInference
from edgeroute.confidence.score_before_run import InputScore as InputScore
from edgeroute.confidence.first_tokens import Prefix as Prefix
from edgeroute.core.device_rules import Reading as Reading, Rule as Rule
from edgeroute.core.spending_limits import Limits as Limits
from edgeroute.core.stream_walk import Piece as Piece, Restart as Restart
from edgeroute.edge.callable_model import CallableModel as CallableModel
from edgeroute.edge.coreml import CoreMLModel as CoreMLModel
from edgeroute.edge.runtimes_variants_ensemble import Ensemble as Ensemble
from edgeroute.edge.litert import LiteRTModel as LiteRTModel
from edgeroute.edge.llama import LlamaModel as LlamaModel
from edgeroute.edge.local_server_client import LocalServer as LocalServer
from edgeroute.edge.onnx import OnnxModel as OnnxModel
from edgeroute.edge.runtimes_variants_ensemble import Variants as Variants, register as register
from edgeroute.errors import (
    BadInput as BadInput,
    BadReply as BadReply,
    CatalogError as CatalogError,
    Closed as Closed,
    CloudError as CloudError,
    DeadlineExceeded as DeadlineExceeded,
    EdgerouteError as EdgerouteError,
    Held as Held,
    MayNotLeave as MayNotLeave,
    ModelError as ModelError,
    ModelMissing as ModelMissing,
    NoAnswer as NoAnswer,
    PolicyError as PolicyError,
    Refused as Refused,
    RuntimeMissing as RuntimeMissing,
    StoreError as StoreError,
    TimedOut as TimedOut,
    Unreachable as Unreachable,
)
from edgeroute.http.messages_addresses_and_secrets import Secret as Secret
from edgeroute.observe.device_sensors_and_sampler import DeviceSensors as DeviceSensors
from edgeroute.observe.stats_and_status_types import Stats as Stats, Status as Status
from edgeroute.record.instrument_interface import Instrument as Instrument
from edgeroute.record.opentelemetry import OpenTelemetry as OpenTelemetry
from edgeroute.record.prometheus import Prometheus as Prometheus, metrics as metrics
from edgeroute.record.structured_logging import RequestLog as RequestLog
from edgeroute.record.trace import Trace as Trace
from edgeroute.router.async_router import AsyncRouter as AsyncRouter
from edgeroute.core.policy_egress_and_options import Options as Options
from edgeroute.router.live.speech_segments import BargeIn as BargeIn, Utterance as Utterance
from edgeroute.router.live.frames import FrameUpdate as FrameUpdate
from edgeroute.router.part_hooks_and_dispatch import Part as Part
from edgeroute.router.router import Router as Router
from edgeroute.router.streams_sessions_chats import AsyncStream as AsyncStream, Stream as Stream
from edgeroute.stores.cache import Cache as Cache, Semantic as Semantic
from edgeroute.stores.outbox import Outbox as Outbox
from edgeroute.trials.audit_setting_and_drift_monitor import Audit as Audit
from edgeroute.trials.trial_setting import Trial as Trial
from edgeroute.types import Answer as Answer, EdgeModel as EdgeModel, Prediction as Prediction, StopToken as StopToken
from edgeroute import models as models

__version__: str
