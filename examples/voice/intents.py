"""Intents: from a sentence to what is wanted of 150 things, by a small model on the device and a larger one.

    with Router(intents.edge(), intents.cloud(), threshold=0.5) as router:
        answer = router.infer("set an alarm for six tomorrow")

What both take is `text_features.piece_ids` of the sentence; a router on the files themselves, as by a policy, is given that.
"""

from __future__ import annotations

from pathlib import Path

from text_features import VERSION, Array, piece_ids

from edgeroute import BadInput, CallableModel, OnnxModel

MODELS = Path(__file__).resolve().parent / "models"


def edge() -> CallableModel:
    """Return the small model, from a sentence to its intent; the confidence is low for what is none of the 150."""
    return _from_text(MODELS / "intents.int8.onnx")


def cloud() -> CallableModel:
    """Return the larger one.

    It may as well run on a server: `edgeroute serve models/intents-large.onnx`, which takes `piece_ids`.
    """
    return _from_text(MODELS / "intents-large.onnx")


def _from_text(path: Path) -> CallableModel:
    """Return the model in that file as one that takes a sentence; anything but text is a BadInput."""
    model = OnnxModel(path)

    def understand(text: str) -> Array:
        """-> float32 [intents], logits."""
        if not isinstance(text, str):
            raise BadInput(f"a sentence is text, not {type(text).__name__}")
        return model.run_one(piece_ids(text)[None])[0]

    version = f"{model.card.sha256} features {VERSION}"
    return CallableModel(understand, name=model.name, labels=model.labels, kind="logits", version=version)
