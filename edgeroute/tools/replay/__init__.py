"""Replay of a recorded trace under another policy, network, battery or thermal course, in virtual time."""

from edgeroute.tools.replay.gate import NETWORKS
from edgeroute.tools.replay.records import Numbers, Recording, collect, read
from edgeroute.tools.replay.result import Change, Gated, Replay
from edgeroute.tools.replay.run import replay
from edgeroute.tools.replay.script import THERMAL, Battery
from edgeroute.tools.replay.setup import Setup

__all__ = [
    "NETWORKS",
    "THERMAL",
    "Battery",
    "Change",
    "Gated",
    "Numbers",
    "Recording",
    "Replay",
    "Setup",
    "collect",
    "read",
    "replay",
]
