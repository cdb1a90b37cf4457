"""Wake words: nothing is heard until somebody says one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from sound import RATE, Samples

from edgeroute import ModelMissing

WORDS = {"okay_nabu": "okay nah boo", "hey_jarvis": "hey jarvis", "alexa": "alexa", "hey_mycroft": "hey mycroft"}
"""And what espeak-ng says for them; the model of hey_jarvis does not hear it from espeak-ng."""
AWAKE_S = 6.0
"""How long after the wake word one may speak."""


class WakeWord:
    """Hears one of four wake words, with the int8 models in the wheel of pymicro-wakeword and its own TensorFlow Lite."""

    def __init__(self, word: str) -> None:
        try:
            from pymicro_wakeword import MicroWakeWord, MicroWakeWordFeatures, Model
        except ImportError as e:
            raise ModelMissing("pymicro-wakeword, the wake words, is missing: pip install pymicro-wakeword") from e
        self._features, self._model = MicroWakeWordFeatures(), MicroWakeWord.from_builtin(Model(word))

    def heard(self, chunk: Any) -> bool:
        """Return True if the word ends in this chunk, int16 [samples] or float32 from -1 to 1."""
        if chunk.dtype != np.int16:
            chunk = (np.clip(chunk, -1, 1) * 32767).astype(np.int16)
        found = [bool(self._model.process_streaming(one)) for one in self._features.process_streaming(chunk.tobytes())]
        return any(found)


def after(
    word: WakeWord,
    chunks: Iterable[Any],
    awake_s: float = AWAKE_S,
    listening: Callable[[], object] = lambda: print("(listening)"),
) -> Iterator[Samples]:
    """Yield the chunks, but for what nobody was addressed by: all that is not within `awake_s` of a wake word is silence.

    `listening` is called as it is heard.
    """
    left = 0
    for chunk in chunks:
        yield chunk if left > 0 else np.zeros_like(chunk)
        left -= len(chunk)
        if word.heard(chunk):
            if left <= 0:
                listening()
            left = round(awake_s * RATE)
