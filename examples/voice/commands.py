"""Spoken commands: from audio to a digit, "zero" to "nine", or "other", by a small model on the device and a larger one.

    with Router(commands.edge(), commands.cloud(), threshold=0.8) as router:
        answer = router.infer(audio)            # float32 [samples], mono, at 16 kHz

What both take is `features.log_mel` of the audio; a router on the model files themselves, as by a policy, is given that.
"""

from __future__ import annotations

from pathlib import Path

from features import VERSION, Array, log_mel

from edgeroute import CallableModel, OnnxModel

MODELS = Path(__file__).resolve().parent / "models"
OTHER = "other"
"""What is no digit: another word, noise, silence."""


def edge(rate: int = 16_000) -> CallableModel:
    """Return the int8 model, from audio at `rate` to its label; the confidence is the label's probability."""
    return _from_audio(MODELS / "digits.int8.onnx", rate)


def cloud(rate: int = 16_000) -> CallableModel:
    """Return the larger one.

    It may as well run on a server: `edgeroute serve models/digits-large.onnx`, which takes `log_mel`.
    """
    return _from_audio(MODELS / "digits-large.onnx", rate)


def _from_audio(path: Path, rate: int) -> CallableModel:
    """Return the model in that file as one that takes audio."""
    model = OnnxModel(path)

    def recognise(audio: Array) -> Array:
        """Audio: float32 [samples], mono, -1..1, about one second -> float32 [labels], logits."""
        return model.run_one(log_mel(audio, rate))[0]

    version = f"{model.card.sha256} features {VERSION}"
    return CallableModel(recognise, name=model.name, labels=model.labels, kind="logits", version=version)
