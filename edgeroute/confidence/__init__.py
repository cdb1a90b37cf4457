"""Confidence scores, learned scores, and calibration of a deferral threshold with a guarantee (a certificate)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgeroute.confidence.output_reader import KINDS, Reader
from edgeroute.confidence.scores import SCORES, agreement, energy, entropy, margin, msp, quantile
from edgeroute.system.late_imports_and_plugins import import_tool

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate, NotEnough
    from edgeroute.confidence.first_tokens import Prefix
    from edgeroute.confidence.learned_score_features import text_features
    from edgeroute.confidence.learned_scores_and_blends import Learned
    from edgeroute.confidence.prompt_features_and_word_weights import prompt_features
    from edgeroute.confidence.score_before_run import InputScore
    from edgeroute.tools.measure.deferral_curve import Area, deferral_curve, measured_area
    from edgeroute.tools.measure.independence_and_overlap import overlap, sketch
    from edgeroute.tools.measure.score_fitting import auto, fit, fit_text
    from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate, crossfit

# Module of `edgeroute.tools.measure` -> its public names.
_TOOLS_OF = {
    "threshold_calibration_and_crossfit": ("calibrate", "crossfit"),
    "deferral_curve": ("Area", "deferral_curve", "measured_area"),
    "score_fitting": ("auto", "fit", "fit_text"), "independence_and_overlap": ("overlap", "sketch"),
}  # fmt: skip
# Module of this package -> its public names that are imported at their first use.
_NAMES_OF = {
    "certificate": ("Certificate", "NotEnough"), "score_before_run": ("InputScore",), "learned_scores_and_blends": ("Learned",),
    "learned_score_features": ("text_features",), "prompt_features_and_word_weights": ("prompt_features",),
    "first_tokens": ("Prefix",),
}  # fmt: skip

__all__ = [
    "KINDS", "SCORES", "Area", "Certificate", "InputScore", "Learned", "NotEnough", "Prefix", "Reader", "agreement", "auto",
    "calibrate", "crossfit", "deferral_curve", "energy", "entropy", "fit", "fit_text", "margin", "measured_area", "msp",
    "overlap", "prompt_features", "quantile", "sketch", "text_features",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import the module of a public name at its first use: a router needs no calibration. Stores it in the module."""
    tool = next((module for module, names in _TOOLS_OF.items() if name in names), "")
    home = next((module for module, names in _NAMES_OF.items() if name in names), "")
    if not tool and not home:
        raise AttributeError(f"module 'edgeroute.confidence' has no attribute {name!r}")
    module = import_tool(f"measure.{tool}") if tool else import_module(f"edgeroute.confidence.{home}")
    value = globals()[name] = getattr(module, name)
    return value
