"""Smaller models: quantised and pruned, measured before and after on a part of the data that was not used for it."""

from edgeroute.compress.pruning import prune
from edgeroute.compress.quantizing import quantize
from edgeroute.compress.result import Layer, Measured, Result

__all__ = ["Layer", "Measured", "Result", "prune", "quantize"]
