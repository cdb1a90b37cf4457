"""The larger model, which says what is wrong: `edgeroute serve diagnosis:model`.

It knows the bearing's geometry and the faults of forty other machines, and hears the whole window. It does not know this machine:
that does the small model beside it, whose answer it is sent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from bands import bands
from machine import INNER, KINDS, LSB, OUTER, RATE, WINDOW

from edgeroute import CallableModel
from edgeroute.types import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
WEIGHTS = Path(__file__).parent / "models" / "diagnosis.npz"
ORDERS = (0.5, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9, 10)
"""Multiples of the shaft's frequency at which the spectrum is read."""
KNOCKS = (1.0, 2.0, *(k * OUTER for k in (1, 2, 3)), *(k * INNER for k in (1, 2, 3)), INNER - 1, INNER + 1)
"""Likewise of the envelope, in which knocks are seen whatever they make ring."""
PADDED = 4 * WINDOW
_BIN_HZ = RATE / PADDED
_SHAFT_HZ = (22.0, 26.5)
_ENVELOPE_HZ = (10.0, 400.0)
_RINGS_FROM_HZ = 500.0
_MOST = 4.0
"""Log-odds by which the small model's answer counts at most."""
_HANN = np.hanning(WINDOW)[:, None]


def features(raw: Array) -> Array:
    """Return the features of a window, int16 [2048, 3], as float32: lines of the shaft, knocks of the bearing, and `bands`."""
    g = raw.astype(np.float64) * LSB
    g -= g.mean(0)
    spectrum = np.abs(np.fft.rfft(g * _HANN, PADDED, axis=0))
    low, high = (round(hz / _BIN_HZ) for hz in _SHAFT_HZ)
    shaft_hz = (low + int(spectrum[low:high].sum(1).argmax())) * _BIN_HZ
    lines = _around(spectrum, np.array(ORDERS) * shaft_hz)

    seen = envelope_spectrum(g, round(_RINGS_FROM_HZ * WINDOW / RATE), WINDOW // 2)
    floor = np.median(seen[slice(*(round(hz / _BIN_HZ) for hz in _ENVELOPE_HZ))]) + 1e-9
    knocks = _around(seen[:, None], np.array(KNOCKS) * shaft_hz)[:, 0] / floor
    return np.concatenate([np.log10(lines + 1e-3).ravel(), np.log10(knocks + 1e-3), bands(raw)]).astype(np.float32)


def envelope_spectrum(signal: Array, low: int, high: int) -> Array:
    """Return how often what rings between two lines of the spectrum becomes louder. signal: [samples, axes]; 4 times as fine."""
    whole = np.fft.fft(signal, axis=0)
    whole[:low] = whole[high:] = 0  # only what rings, and only positive frequencies: the result's square is the envelope's
    envelope = (np.abs(np.fft.ifft(whole, axis=0)) ** 2).sum(1)
    return np.abs(np.fft.rfft((envelope - envelope.mean()) * np.hanning(len(signal)), 4 * len(signal)))


def _around(spectrum: Array, hz: Array) -> Array:
    """Return the highest value near each frequency: the shaft's is known to a bin alone, and multiples of it less well."""
    places = np.round(hz / _BIN_HZ).astype(int)
    return np.max([spectrum[np.clip(places + off, 0, len(spectrum) - 1)] for off in range(-4, 5)], axis=0)


@cache
def weights() -> Sequence[Array]:
    """Mean and deviation of the features, and the weights and biases of each layer."""
    with np.load(WEIGHTS) as file:
        return [file[name] for name in file.files]


def layers(x: Array, parameters: Sequence[Array]) -> Array:
    """Return the logits [..., kinds] of a perceptron. x: [..., features]; parameters: mean, deviation, weights and biases."""
    mean, deviation, *rest = parameters
    x = (x - mean) / deviation
    for i in range(0, len(rest), 2):
        x = (np.maximum(x, 0) if i else x) @ rest[i] + rest[i + 1]
    return x


def diagnose(raw: Array, edge: Mapping[str, Any] | None) -> Array:
    """Return the logits, float32 [kinds], of a window, int16 [2048, 3]. edge: what the small model answered, if it was sent.

    The small model knows what this machine is like when it is well, so how sure it is of that counts for and against `healthy`.
    """
    logits = layers(features(raw), weights())
    if edge is not None and edge.get("outputs") is not None:
        normal, *other = (float(value) for value in edge["outputs"])
        logits[0] += np.clip(normal - np.logaddexp.reduce(other), -_MOST, _MOST) / 2
    return logits.astype(np.float32)


model = CallableModel(
    diagnose,
    name="diagnosis",
    version="1",
    takes_edge=True,
    labels=KINDS,
    kind="logits",
    inputs=[TensorSpec("raw", "int16", (-1, WINDOW, 3))],
    outputs=[TensorSpec("logits", "float32", (-1, len(KINDS)))],
)
