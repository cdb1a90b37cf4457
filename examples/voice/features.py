"""Log-mel features of about one second of speech, in plain numpy: what the command models take.

    audio -> 8 kHz -> the 1.04 s around its centre of energy -> 64 frames of 32 ms, every 16 ms -> 32 mel bands -> log

Recordings at other rates are resampled; what the clip's loudest band is, is 1, whatever the volume.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeroute import BadInput

Array = np.ndarray[Any, np.dtype[Any]]

RATE = 8_000  # samples a second
WINDOW, HOP = 256, 128  # samples of a frame, and from one to the next
FRAMES, MELS = 64, 32
SAMPLES = (FRAMES - 1) * HOP + WINDOW
LOW_HZ, HIGH_HZ = 60.0, 3_900.0
FLOOR = 1e-5
"""Power, as a share of the clip's loudest, below which nothing counts: 50 dB."""
VERSION = "1"
"""Changes with the features: models and certificates belong to one."""


def _filters() -> Array:
    """Return the filters, float32 [129, 32]: triangular bands, evenly spaced on the mel scale."""
    mel_low, mel_high = (2595 * np.log10(1 + hz / 700) for hz in (LOW_HZ, HIGH_HZ))
    edges = 700 * (10 ** (np.linspace(mel_low, mel_high, MELS + 2) / 2595) - 1)
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    hz = (np.arange(WINDOW // 2 + 1) * RATE / WINDOW)[:, None]
    return np.maximum(0, np.minimum((hz - left) / (middle - left), (right - hz) / (right - middle))).astype(np.float32)


FILTERS, HANN = _filters(), np.hanning(WINDOW).astype(np.float32)


def resample(audio: Array, rate: int) -> Array:
    """Return audio at 8 kHz: float32 [samples] at `rate`, 8 kHz or more -> float32 [samples * 8000 / rate].

    A windowed sinc takes away what is above 3.7 kHz, and linear interpolation finds the samples in between.

    Raises:
        BadInput: for a rate below 8 kHz.
    """
    if rate == RATE:
        return audio
    if rate < RATE:
        raise BadInput(f"audio at {rate} Hz has too little of speech: record at 8 kHz or more, best at 16")
    reach = 32 * rate // RATE
    at = np.arange(-reach, reach + 1)
    sinc = np.sinc(2 * 3_700 / rate * at) * np.hamming(len(at))
    smooth = np.convolve(np.pad(audio, reach), sinc / sinc.sum(), "valid")
    return np.interp(np.arange(0, len(audio), rate / RATE), np.arange(len(audio)), smooth).astype(np.float32)


def centred(audio: Array) -> Array:
    """Return the 1.04 s around the centre of energy, zeros where there is none: float32 [samples] at 8 kHz -> float32 [8320]."""
    energy = np.square(audio, dtype=np.float64)
    total = energy.sum()
    middle = int((energy * np.arange(len(audio))).sum() / total) if total > 0 else len(audio) // 2
    padded = np.pad(audio, SAMPLES // 2)
    part = padded[middle : middle + SAMPLES]
    return np.pad(part, (0, SAMPLES - len(part)))


def log_mel(audio: Array, rate: int = RATE) -> Array:
    """Return the features of one utterance: float32 [samples], -1..1, mono, at `rate` -> float32 [1, 64, 32], -1..1.

    1 is the loudest band of the clip, -1 is 50 dB below it: how loud the clip is does not matter.

    Raises:
        BadInput: for audio that is not one row of finite floats, or at less than 8 kHz.
    """
    audio = np.asarray(audio)
    if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating) or not len(audio):
        raise BadInput(f"audio is float32 [samples], mono, -1..1: got {audio.dtype} {list(audio.shape)}")
    if not np.isfinite(audio).all():
        raise BadInput("audio has NaN or infinity in it")
    clip = centred(resample(audio.astype(np.float32) - np.float32(audio.mean()), rate))
    frames = np.lib.stride_tricks.sliding_window_view(clip, WINDOW)[::HOP] * HANN
    power = np.square(np.abs(np.fft.rfft(frames))).astype(np.float32) @ FILTERS
    level = np.log10(power / (power.max() + 1e-12) + FLOOR)
    return (level / 2.5 + 1).astype(np.float32)[None]
