"""Input of the small model, by `bands` from a window: the energies of frequency bands, and how spiky the signal is."""

from __future__ import annotations

from typing import Any

import numpy as np
from machine import LSB, WINDOW

Array = np.ndarray[Any, np.dtype[Any]]
BANDS = 16
"""For each axis, from 6 Hz to 1600 Hz, each wider than the one before."""
FEATURES = 3 * (BANDS + 1)
_EDGES = np.unique(np.geomspace(4, WINDOW // 2, BANDS + 1).round().astype(int))
_HANN = np.hanning(WINDOW).astype(np.float32)[:, None]


def bands(raw: Array) -> Array:
    """Return float32 [..., 51] of windows, int16 [..., 2048, 3] counts: log10 of energies in g^2, and of each axis' kurtosis."""
    g = raw.astype(np.float32) * np.float32(LSB)
    g -= g.mean(-2, keepdims=True)
    power = np.abs(np.fft.rfft(g * _HANN, axis=-2)) ** 2 / WINDOW
    energy = np.add.reduceat(power[..., : WINDOW // 2, :], _EDGES[:-1], axis=-2)
    steps = np.diff(g, axis=-2)  # in which low frequencies, and so the shaft, count little
    kurtosis = (steps**4).mean(-2, keepdims=True) / ((steps**2).mean(-2, keepdims=True) ** 2 + 1e-12)
    found = np.concatenate([np.log10(energy + 1e-6), np.log10(kurtosis + 0.1)], axis=-2)
    return np.swapaxes(found, -1, -2).reshape(*raw.shape[:-2], FEATURES).astype(np.float32)
