"""Quantisation and pruning of model files, measured before and after on examples that were not used for it."""

from edgeroute.tools.compress.measure import Layer, Measured, Result
from edgeroute.tools.compress.pruning import prune
from edgeroute.tools.compress.quantizing import quantize

__all__ = ["Layer", "Measured", "Result", "prune", "quantize"]
