"""How sure a model is of its answer."""

from edgeroute.confidence.scores import SCORES, Reader, energy, entropy, margin, msp, quantile

__all__ = ["SCORES", "Reader", "energy", "entropy", "margin", "msp", "quantile"]
