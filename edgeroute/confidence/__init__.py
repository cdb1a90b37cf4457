"""Confidence scores, learned scores, and calibration of a deferral threshold with a guarantee (a certificate)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgeroute.confidence.output_reader import KINDS, Reader
from edgeroute.confidence.scores import SCORES, agreement, energy, entropy, margin, msp, quantile
from edgeroute.system.imports import import_tool

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import Certificate, NotEnough
    from edgeroute.confidence.first_tokens import Prefix
    from edgeroute.confidence.input_score import InputScore
    from edgeroute.confidence.learned_features import text_features
    from edgeroute.confidence.learned_score import Learned, prompt_features
    from edgeroute.tools.measure.calibration import calibrate, crossfit
    from edgeroute.tools.measure.curve import Area, deferral_curve, measured_area
    from edgeroute.tools.measure.fitting import auto, fit, fit_text
    from edgeroute.tools.measure.independence import overlap, sketch

_MODULE_OF = {
    **dict.fromkeys(("Certificate", "NotEnough"), "certificate"),
    "text_features": "learned_features",
    "InputScore": "input_score",
    "Learned": "learned_score",
    "Prefix": "first_tokens",
    "prompt_features": "learned_score",
}
_TOOL_OF = {
    **dict.fromkeys(("Area", "measured_area"), "measure.curve"),
    **dict.fromkeys(("calibrate", "crossfit"), "measure.calibration"),
    "deferral_curve": "measure.curve",
    **dict.fromkeys(("auto", "fit", "fit_text"), "measure.fitting"),
    **dict.fromkeys(("overlap", "sketch"), "measure.independence"),
}

__all__ = [
    "KINDS",
    "SCORES",
    "Area",
    "Certificate",
    "InputScore",
    "Learned",
    "NotEnough",
    "Prefix",
    "Reader",
    "agreement",
    "auto",
    "calibrate",
    "crossfit",
    "deferral_curve",
    "energy",
    "entropy",
    "fit",
    "fit_text",
    "margin",
    "measured_area",
    "msp",
    "overlap",
    "prompt_features",
    "quantile",
    "sketch",
    "text_features",
]


def __getattr__(name: str) -> Any:
    """Import the module of a public name at its first use: a router needs no calibration."""
    if name in _TOOL_OF:
        module = import_tool(_TOOL_OF[name])
    elif name in _MODULE_OF:
        module = import_module(f"edgeroute.confidence.{_MODULE_OF[name]}")
    else:
        raise AttributeError(f"module 'edgeroute.confidence' has no attribute {name!r}")
    value = globals()[name] = getattr(module, name)
    return value
