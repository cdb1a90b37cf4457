"""Cloud endpoints: one protocol per file, without I/O; `http` carries them."""

from edgeroute.cloud.openinference import OpenInference
from edgeroute.cloud.plain import PlainJson

__all__ = ["OpenInference", "PlainJson"]
