"""Replay of a recorded trace under another policy, network, battery or thermal course, in virtual time."""

from edgeroute.tools.replay.recorded_requests_and_statistics import Numbers, Recording, collect, read
from edgeroute.tools.replay.replay_setup_and_result import Change, Gated, Replay, Setup
from edgeroute.tools.replay.simulated_calls_and_environment import NETWORKS, THERMAL, Battery
from edgeroute.tools.replay.trace_replay import replay

__all__ = [
    "NETWORKS", "THERMAL", "Battery", "Change", "Gated", "Numbers", "Recording", "Replay", "Setup", "collect", "read", "replay",
]  # fmt: skip
