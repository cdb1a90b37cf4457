"""Quantisation and pruning of model files, measured before and after on examples that were not used for it."""

from edgeroute.tools.compress.measurement import Layer, Measured, Result
from edgeroute.tools.compress.prune_models import prune
from edgeroute.tools.compress.quantize_models import quantize

__all__ = ["Layer", "Measured", "Result", "prune", "quantize"]
