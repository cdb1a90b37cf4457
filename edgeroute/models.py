"""Models that come with edgeroute, by name, with data to try them on. Reads the package's files; downloads nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeroute.system.late_imports_and_plugins import package_folder

if TYPE_CHECKING:
    import numpy as np

NAMES = ("fashion",)  # names of the functions below, each of which returns a pair of models


class Pair(NamedTuple):
    """Files of a small model, a large one, and data to try them on.

    Attributes:
        edge: the small model, for `Router(edge=...)`.
        cloud: the large model, which `edgeroute serve` serves.
        sample: an .npz file of inputs that neither model was trained on: arrays `images` and `labels`.
        validation: an .npz file of both models' outputs on other inputs: arrays `edge_logits`, `cloud_logits` and `labels`.
    """

    edge: Path
    cloud: Path
    sample: Path
    validation: Path

    @property
    def coreml(self) -> Path:
        """The small model as an .mlpackage for Core ML."""
        return self.edge.with_name("edge.mlpackage")

    @property
    def images(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The sample's inputs, read from the file on each access: uint8 of shape (1000, 28, 28)."""
        return self._sample("images")

    @property
    def labels(self) -> np.ndarray[Any, np.dtype[Any]]:
        """The sample's classes, read from the file on each access: class indices of shape (1000,)."""
        return self._sample("labels")

    def _sample(self, name: str) -> np.ndarray[Any, np.dtype[Any]]:
        """Return one array of the sample file, read anew."""
        import numpy as np

        with np.load(self.sample) as arrays:
            return arrays[name]  # type: ignore[no-any-return]


def fashion() -> Pair:
    """Return the files of two classifiers of clothing: 28x28 grey pixels, uint8, ten classes, with 1,000 images.

    Raises:
        ModelMissing: this installation has no models.
    """
    home = package_folder("models", "fashion", has="cloud.onnx")
    return Pair(home / "edge.int8.onnx", home / "cloud.onnx", home / "sample.npz", home / "validation.npz")
