"""Logs of other tools: requests that two models answered, read and paired."""

from edgeroute.tools.replay.logs.answer_pairs import FORMATS, Pairs, Price, Read, read_pairs

__all__ = ["FORMATS", "Pairs", "Price", "Read", "read_pairs"]
