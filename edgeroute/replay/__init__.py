"""Replay: a recorded trace under another policy, network, battery or thermal course, in virtual time."""

from edgeroute.replay.device import THERMAL, Battery
from edgeroute.replay.network import NETWORKS
from edgeroute.replay.numbers import Numbers
from edgeroute.replay.records import Recording, collect, read
from edgeroute.replay.result import Change, Gated, Replay
from edgeroute.replay.run import replay
from edgeroute.replay.setup import Setup

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
