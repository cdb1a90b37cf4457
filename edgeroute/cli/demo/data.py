"""Data of the demo: the shipped models with their validation split, and test images."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeroute.confidence.scores import msp
from edgeroute.errors import BadInput

Array = np.ndarray[Any, np.dtype[Any]]
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


class Images(NamedTuple):
    """Test images; no parameter is chosen on them."""

    images: Array
    """uint8 [n, 28, 28]."""
    labels: Array
    """[n], class indices."""
    which: str
    """Their source."""


class Validation(NamedTuple):
    """Results of both models on images outside the training and test sets."""

    confidence: Array
    """[n], of the edge, by the score msp."""
    edge_right: Array
    cloud_right: Array


def test_images(folder: Path, given: Path | None) -> Images:
    """All 10,000 images from `given`, or from Debian's dataset-fashion-mnist; else the sample in `folder`.

    Raises:
        BadInput: `given` does not contain them.
    """
    home = given or DEBIAN
    if given is not None or (home / IMAGES).exists():
        return Images(read_idx(home / IMAGES), read_idx(home / LABELS), f"the Fashion-MNIST test images in {home}")
    with np.load(folder / "sample.npz") as sample:
        which = "the Fashion-MNIST test images that edgeroute brings (all 10,000: apt install dataset-fashion-mnist, or --data)"
        return Images(sample["images"], sample["labels"], which)


def validation(folder: Path) -> Validation:
    """Computed from both models' logits, stored beside them."""
    with np.load(folder / "validation.npz") as kept:
        edge, cloud, labels = kept["edge_logits"], kept["cloud_logits"], kept["labels"]
    return Validation(msp(edge), edge.argmax(1) == labels, cloud.argmax(1) == labels)


def read_idx(path: Path) -> Array:
    """Reads an IDX file, uint8 of the stored shape: 0, 0, 8 for uint8, the number of axes, their sizes (big-endian), the values.

    Raises:
        BadInput: the file is missing, or not in this format.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
        if raw[:3] != b"\0\0\x08":
            raise ValueError("it does not begin like one")  # noqa: TRY301 - said below, with the path
        shape = np.frombuffer(raw, ">u4", raw[3], 4)
        return np.frombuffer(raw, np.uint8, offset=4 + shape.nbytes).reshape(tuple(map(int, shape)))
    except FileNotFoundError as e:
        raise BadInput(f"{path} is not there: it is expected to be Fashion-MNIST's own file") from e
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as e:
        raise BadInput(f"{path} is not a gzipped IDX file of bytes: {e}") from e
