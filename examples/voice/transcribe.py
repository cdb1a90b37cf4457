"""Speech to text on the device: Moonshine's tiny English model, whose files are in the wheel of moonshine-voice."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

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
READINGS, FAR = 6, 2.0
"""So many readings of an utterance are looked for; what is so much less likely than they are (as a logarithm) is not followed."""
LEAST_S, MOST_S = 0.3, 30.0
"""Seconds of audio that the model takes; of longer audio the first part is transcribed."""


class Beginning(NamedTuple):
    """Tokens that may have been said, and the logarithm of their probability."""

    likelihood: float
    tokens: list[int]


class Words(NamedTuple):
    """What was said, as far as the model can tell."""

    text: str
    confidence: float
    """The geometric mean of its tokens' probabilities, 0 to 1; 0 where there are none."""
    likelihood: float = 1.0
    """The product of these probabilities."""
    others: tuple[Words, ...] = ()
    """Other readings of the same audio, the likeliest first."""


class Transcriber:
    """Encoder that runs once, and decoder that runs once a token, each time with what it knew before. Thread-safe."""

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

    def __call__(self, audio: Samples) -> Words:
        """Return the words of float32 [samples] at 16 kHz, and other readings of it; none: it is too short to have any.

        The READINGS likeliest beginnings go on, token by token (a beam search).
        """
        audio = audio[: round(MOST_S * RATE)]
        if len(audio) < LEAST_S * RATE:
            return Words("", 0.0, 0.0)
        mask = np.ones((1, len(audio)), np.int64)
        (hidden,) = self._encoder.run(None, {"input_values": audio[None].astype(np.float32), "attention_mask": mask})
        length, known = hidden.shape[1] * STRIDE, self._nothing
        going: list[Beginning] = [Beginning(0.0, [])]
        ended: list[Beginning] = []
        for number in range(round(len(audio) / RATE * TOKENS_A_SECOND) + 2):
            given = {
                "encoder_hidden_states": np.repeat(hidden, len(going), 0),
                "encoder_attention_mask": np.ones((len(going), length), np.int64),
                "input_ids": np.array([one.tokens[-1:] or [BEGIN] for one in going]),
                "use_cache_branch": np.array([number > 0]),
            }
            logits, *present = self._decoder.run(None, {**given, **known})
            new = dict(zip(self._nothing, present, strict=True))
            if number:  # what it has of the encoder comes with the first token alone
                new |= {name: state for name, state in known.items() if ".encoder." in name}
            going, parents, more = _longer(going, logits[:, -1].astype(np.float64))
            ended = sorted(ended + more, key=lambda one: -one.likelihood)[:READINGS]
            if not going or (ended and going[0].likelihood < ended[-1 if len(ended) == READINGS else 0].likelihood - FAR):
                break
            known = {name: state[parents] for name, state in new.items()}
        readings = [self._words(one) for one in ended or going[:1]]
        return readings[0]._replace(others=tuple(readings[1:]))

    def _words(self, read: Beginning) -> Words:
        text = b"".join(self._tokens[token] for token in read.tokens).decode(errors="replace").replace("\u2581", " ").strip()
        return Words(text, float(np.exp(read.likelihood / (len(read.tokens) + 1))), float(np.exp(read.likelihood)))


def _longer(going: list[Beginning], logits: Any) -> tuple[list[Beginning], list[int], list[Beginning]]:
    """Return the likeliest beginnings with one more token, the index of what each goes on from, and those that have ended.

    One that ends in a threefold repetition has ended, without the repeats. `logits` is changed.

    Args:
        going: beginnings.
        logits: float64 [beginnings, tokens], what may follow each.
    """
    logits -= logits.max(1, keepdims=True)
    total = np.array([[one.likelihood] for one in going]) + logits - np.log(np.exp(logits).sum(1, keepdims=True))
    longer, parents, ended = [], [], []
    for at in np.argsort(-total, axis=None)[: 2 * READINGS]:
        parent, token = divmod(int(at), total.shape[1])
        likelihood, tokens = float(total[parent, token]), going[parent].tokens
        if token == END:
            ended.append(Beginning(likelihood, tokens))
        elif len(longer) < READINGS:
            tokens = [*tokens, token]
            if repeated := repetition(tokens):  # it ends here
                ended.append(Beginning(likelihood, tokens[: -repeated * (MOST_TIMES - 1)]))
            else:
                longer.append(Beginning(likelihood, tokens))
                parents.append(parent)
    return longer, parents, ended


def repetition(tokens: list[int]) -> int:
    """Return the length of what ends these tokens three times in a row, at least four tokens long; 0: nothing does."""
    for length in range(LEAST_TOKENS, len(tokens) // MOST_TIMES + 1):
        if tokens[-length * MOST_TIMES :] == tokens[-length:] * MOST_TIMES:
            return length
    return 0


def _session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _tokens(data: bytes) -> list[bytes]:
    """Return the tokens of a file that has, for each, its length and its bytes; a length of 128 or more is in two bytes."""
    found, at = [], 0
    while at < len(data):
        length, at = data[at], at + 1
        if length >= 128:  # noqa: PLR2004 - the high bit
            length, at = (length - 128) + 128 * data[at], at + 1
        found.append(data[at : at + length])
        at += length
    return found
