"""Speech to text on the device: Moonshine's tiny English model, whose files are in the wheel of moonshine-voice."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from sound import RATE, Samples

from edgeroute import ModelMissing

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported
import onnxruntime

BEGIN, END = 1, 2
TOKENS_A_SECOND = 6.5
"""More are not spoken: a model that repeats itself is stopped there."""
LEAST_TOKENS, MOST_TIMES = 4, 3
"""So many tokens that follow each other so often are a model that repeats itself, too."""
STRIDE = 384
"""Samples that one output of the encoder stands for."""
LEAST_S, MOST_S = 0.3, 30.0
"""Seconds of audio that the model takes; of longer audio the first part is transcribed."""


class Transcriber:
    """An encoder that runs once, and a decoder that runs once a token, each time with what it knew before. Thread-safe."""

    def __init__(self) -> None:
        package = find_spec("moonshine_voice")  # found, but not imported: its own library is not used
        if package is None or package.origin is None:
            raise ModelMissing("moonshine-voice, the transcriber, is missing: pip install --no-deps moonshine-voice==0.0.49")
        folder = Path(package.origin).parent / "assets" / "tiny-en"
        self._encoder, self._decoder = _session(folder / "encoder_model.ort"), _session(folder / "decoder_model_merged.ort")
        self._tokens = _tokens((folder / "tokenizer.bin").read_bytes())
        self._nothing = {
            given.name: np.zeros((1, given.shape[1], 0, given.shape[3]), np.float32)
            for given in self._decoder.get_inputs()
            if given.name.startswith("past_key_values")
        }

    def __call__(self, audio: Samples) -> str:
        """The words of float32 [samples] at 16 kHz; empty: it is too short to have any."""
        audio = audio[: round(MOST_S * RATE)]
        if len(audio) < LEAST_S * RATE:
            return ""
        mask = np.ones((1, len(audio)), np.int64)
        (hidden,) = self._encoder.run(None, {"input_values": audio[None].astype(np.float32), "attention_mask": mask})
        mask = np.ones((1, hidden.shape[1] * STRIDE), np.int64)
        fixed = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
        known, token, found = self._nothing, BEGIN, []
        for _ in range(round(len(audio) / RATE * TOKENS_A_SECOND) + 2):
            inputs = {**fixed, **known, "input_ids": np.array([[token]]), "use_cache_branch": np.array([bool(found)])}
            logits, *present = self._decoder.run(None, inputs)
            token = int(logits[0, -1].argmax())
            if token == END:
                break
            new = dict(zip(self._nothing, present, strict=True))
            if found:  # what it has of the encoder comes with the first token alone
                new |= {name: state for name, state in known.items() if ".encoder." in name}
            known = new
            found.append(token)
            if repeated := repetition(found):
                del found[-repeated * (MOST_TIMES - 1) :]
                break
        return b"".join(self._tokens[token] for token in found).decode(errors="replace").replace("\u2581", " ").strip()


def repetition(tokens: list[int]) -> int:
    """The length of what ends these tokens three times in a row; 0: nothing does."""
    for length in range(LEAST_TOKENS, len(tokens) // MOST_TIMES + 1):
        if tokens[-length * MOST_TIMES :] == tokens[-length:] * MOST_TIMES:
            return length
    return 0


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _tokens(data: bytes) -> list[bytes]:
    """The tokens of a file that has, for each, its length and its bytes; a length of 128 or more is in two bytes."""
    found, at = [], 0
    while at < len(data):
        length, at = data[at], at + 1
        if length >= 128:  # noqa: PLR2004 - the high bit
            length, at = (length - 128) + 128 * data[at], at + 1
        found.append(data[at : at + length])
        at += length
    return found
