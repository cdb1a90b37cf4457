"""The voice detector: silero-vad's ONNX model, run as it is, without torch."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported
import onnxruntime

WINDOW = 512
CONTEXT = 64


class SileroVad:
    """The probability of speech in each window of one stream, for `Router.audio(vad=..., window=512)` at 16 kHz.

    The model keeps a state from window to window, and sees the last 64 samples of the window before.
    """

    def __init__(self) -> None:
        package = find_spec("silero_vad")  # found, but not imported: its __init__ wants torch
        if package is None or package.origin is None:
            raise SystemExit("silero-vad is not installed: pip install --no-deps silero-vad")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = Path(package.origin).parent / "data" / "silero_vad.onnx"
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._rate = np.array(16_000, np.int64)
        self._state: NDArray[Any] = np.zeros((2, 1, 128), np.float32)
        self._before: NDArray[Any] = np.zeros(CONTEXT, np.float32)

    def __call__(self, window: NDArray[Any]) -> float:
        """The probability of speech in float32 [512]."""
        heard = np.concatenate([self._before, window])[None]
        probability, self._state = self._session.run(None, {"input": heard, "state": self._state, "sr": self._rate})
        self._before = window[-CONTEXT:]
        return float(probability[0, 0])
