"""Endpoints in the cloud: one protocol a file, each pure; `leg` carries them over HTTP."""

from edgeroute.cloud.openinference import OpenInference
from edgeroute.cloud.plain import PlainJson

__all__ = ["OpenInference", "PlainJson"]
