"""Logs of other tools: requests that two models answered, read and paired, or a sample of those that one answered."""

from edgeroute.tools.replay.logs.answer_pairs_and_samples import FORMATS, Pairs, Price, Read, read_pairs

__all__ = ["FORMATS", "Pairs", "Price", "Read", "read_pairs"]
