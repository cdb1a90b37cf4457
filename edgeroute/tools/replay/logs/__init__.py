"""Foreign logs: requests that two models answered, read from what others record, and paired."""

from edgeroute.tools.replay.logs.pairs import FORMATS, Pairs, Price, Read, read_pairs

__all__ = ["FORMATS", "Pairs", "Price", "Read", "read_pairs"]
