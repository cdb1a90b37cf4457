"""Models that come with edgeroute, by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.system.imports import folder

if TYPE_CHECKING:
    import numpy as np

NAMES = ("fashion",)


class Pair(NamedTuple):
    """A small model, a large one, and data to try them on."""

    edge: Path
    """The small model, for `Router(edge=...)`."""
    cloud: Path
    """The large one; `edgeroute serve` serves it."""
    sample: Path
    """An .npz file of inputs that neither model was trained on: `images`, `labels`."""
    validation: Path
    """An .npz file of both models' outputs on other inputs: `edge_logits`, `cloud_logits`, `labels`."""

    @property
    def coreml(self) -> Path:
        """The small model as a package for Core ML."""
        return self.edge.with_name("edge.mlpackage")

    @property
    def images(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The sample's inputs; read anew each time."""
        return self._sample("images")

    @property
    def labels(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The sample's classes, as indices; read anew each time."""
        return self._sample("labels")

    def _sample(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        import numpy as np

        with np.load(self.sample) as found:
            return found[name]  # type: ignore[no-any-return]


def fashion() -> Pair:
    """Clothing in 28x28 grey pixels, uint8, ten classes; 1,000 images.

    Raises:
        ModelMissing: this installation has no models.
    """
    home = folder("models", "fashion", has="cloud.onnx")
    return Pair(home / "edge.int8.onnx", home / "cloud.onnx", home / "sample.npz", home / "validation.npz")
