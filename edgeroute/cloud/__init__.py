"""Cloud endpoints: one protocol per file, without I/O; `http` carries them."""

from edgeroute.cloud.json_api import PlainJson
from edgeroute.cloud.openinference import OpenInference

__all__ = ["OpenInference", "PlainJson"]
