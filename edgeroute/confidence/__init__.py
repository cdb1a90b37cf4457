"""Confidence scores, learned scores, and calibration of a deferral threshold with a guarantee (a certificate)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgeroute.confidence.reader import KINDS, Reader
from edgeroute.confidence.scores import SCORES, agreement, energy, entropy, margin, msp, quantile

if TYPE_CHECKING:
    from edgeroute.confidence.area import Area, measured_area
    from edgeroute.confidence.calibration import calibrate, crossfit
    from edgeroute.confidence.certificate import Certificate, NotEnough
    from edgeroute.confidence.curve import deferral_curve
    from edgeroute.confidence.features import text_features
    from edgeroute.confidence.fitting import auto, fit, fit_text
    from edgeroute.confidence.independence import overlap, sketch
    from edgeroute.confidence.input_score import InputScore
    from edgeroute.confidence.learned import Learned
    from edgeroute.confidence.prefix import Prefix
    from edgeroute.confidence.tables import prompt_features

_HOMES = {
    **dict.fromkeys(("Area", "measured_area"), "area"),
    **dict.fromkeys(("calibrate", "crossfit"), "calibration"),
    **dict.fromkeys(("Certificate", "NotEnough"), "certificate"),
    "deferral_curve": "curve",
    "text_features": "features",
    **dict.fromkeys(("auto", "fit", "fit_text"), "fitting"),
    **dict.fromkeys(("overlap", "sketch"), "independence"),
    "InputScore": "input_score",
    "Learned": "learned",
    "Prefix": "prefix",
    "prompt_features": "tables",
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
    """Imports the calibration modules lazily: a router does not need them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgeroute.confidence' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"edgeroute.confidence.{_HOMES[name]}"), name)
    return value
