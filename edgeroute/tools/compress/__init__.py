"""Smaller models: quantised and pruned, measured before and after on a part of the data that was not used for it."""

from edgeroute.tools.compress.measure import Layer, Measured, Result
from edgeroute.tools.compress.pruning import prune
from edgeroute.tools.compress.quantizing import quantize

__all__ = ["Layer", "Measured", "Result", "prune", "quantize"]
