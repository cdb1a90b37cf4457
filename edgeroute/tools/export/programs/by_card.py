"""An ONNX model run as its card says. Written by `edgeroute export`, which it does not need.

Arrays or files of pictures go in, outputs come out; `model.json` in the model's folder says all that is particular to it.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

Array = Any
"""A numpy array."""
FORMATS = ("JPEG", "PNG", "WEBP")
MODES = {0: "L", 1: "L", 3: "RGB", 4: "RGBA"}
"""Channels -> Pillow's mode; 0: an array without an axis for them."""
MOST_PIXELS = 1 << 26
"""Of a picture that is decoded, or was resized."""
MOST_SCANS = 100
"""Of a JPEG: each of a progressive one's goes over the whole picture, and usual ones have ten."""
MOST_FILES = 1024
"""Files of one request, where the pictures' size is known; otherwise it is one."""
DATATYPES = {"object": "BYTES", "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64"}
"""numpy dtype -> datatype of the Open Inference Protocol; those of integers are their names in capitals."""


class BadInput(ValueError):
    """The caller's input does not fit the model."""


class Said:
    """What `model.json` says of a model, without the model."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about: dict[str, Any] = json.loads((self.folder / "model.json").read_text(encoding="utf-8"))
        self.inputs: list[dict[str, Any]] = self.about["inputs"]
        self.outputs: list[dict[str, Any]] = self.about["outputs"]

    def metadata(self, name: str) -> dict[str, Any]:
        """The metadata of the Open Inference Protocol, with the labels and the kind of output as parameters."""

        def tensors(specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{"name": s["name"], "datatype": datatype(s["dtype"]), "shape": [-1, *s["shape"]]} for s in specs]

        told = {key: self.about[key] for key in ("labels", "kind", "description", "sha256") if self.about.get(key)}
        about = {"name": name, "versions": ["1"], "platform": "onnxruntime", "parameters": told}
        return {**about, "inputs": tensors(self.inputs), "outputs": tensors(self.outputs)}


class Model(Said):
    """The model, loaded.

    Args:
        folder: of `model.json` and the model file that it names.
        threads: for one run; 0: as ONNX Runtime thinks right.
        gpu: number of the GPU to run on; None: the processor.
        most: rows of one run at most, where the model takes any number.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1, gpu: int | None = None, most: int = 1024) -> None:
        import onnxruntime

        super().__init__(folder)
        self.most = most
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if gpu is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu}))
        self.session = onnxruntime.InferenceSession(str(self.folder / self.about["file"]), options, providers=providers)
        self.names = [one["name"] for one in self.outputs]
        self.constants = {name: np.asarray(one["value"], one["dtype"]) for name, one in self.about["constants"].items()}

    def run(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Arrays [n, ...] as callers give them, by name -> outputs [n, ...] by name.

        Raises:
            BadInput: their numbers of rows differ.
        """
        counts = {len(array) for array in feed.values()}
        if len(counts) != 1 or 0 in counts:
            raise BadInput(f"the inputs have {sorted(counts)} rows: send the same number for each, at least 1")
        n, size = counts.pop(), self.about["size"] or self.most
        if n <= size and self.about["size"] is None:
            return self._run(feed)
        parts = [self._group(feed, at, size) for at in range(0, n, size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.names}

    def run_many(self, feeds: list[dict[str, Array]]) -> list[dict[str, Array] | Exception]:
        """What `run` gives for each of several requests: those of one shape run together, and one that fails costs no other."""
        found: list[Any] = [None] * len(feeds)
        groups: dict[Any, list[int]] = {}
        for i, feed in enumerate(feeds):
            rows = len(next(iter(feed.values())))
            alike = rows > 0 and all(len(array) == rows for array in feed.values())
            shapes = tuple((name, array.dtype.kind, array.shape[1:]) for name, array in feed.items())
            groups.setdefault(shapes if alike else i, []).append(i)
        for members in groups.values():
            try:
                if len(members) == 1:
                    found[members[0]] = self.run(feeds[members[0]])
                    continue
                outputs = self.run({one["name"]: np.concatenate([feeds[i][one["name"]] for i in members]) for one in self.inputs})
            except Exception as e:  # noqa: BLE001 - the caller's, whatever it is
                for i in members:
                    found[i] = e if len(members) == 1 else self.run_many([feeds[i]])[0]
                continue
            at = 0
            for i in members:
                n = len(next(iter(feeds[i].values())))
                found[i] = {name: array[at : at + n] for name, array in outputs.items()}
                at += n
        return found

    def try_zeros(self) -> None:
        """Runs a row of zeros, where its shape is known; raises what the run does."""
        if all(-1 not in one["shape"] and one["dtype"] != "object" for one in self.inputs):
            self.run({one["name"]: np.zeros((1, *one["shape"]), one["dtype"]) for one in self.inputs})

    def _group(self, feed: dict[str, Array], at: int, size: int) -> dict[str, Array]:
        """The outputs of so many rows; for a model that takes no other number, what is missing is the last row again."""
        group = {name: array[at : at + size] for name, array in feed.items()}
        n = len(next(iter(group.values())))
        full = group
        if n < size and self.about["size"] is not None:
            full = {name: np.concatenate([array, *[array[-1:]] * (size - n)]) for name, array in group.items()}
        return {name: array[:n] for name, array in self._run(full).items()}

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        given = {one["name"]: tensor(feed[one["name"]], one) for one in self.inputs}
        outputs = self.session.run(self.names, {**given, **self.constants})
        axis: int | None = self.about["batch"]
        return {
            name: np.asarray(output)[None] if axis is None else np.moveaxis(output, axis, 0)
            for name, output in zip(self.names, outputs, strict=True)
        }


def datatype(dtype: str) -> str:
    """The protocol's name of a numpy dtype."""
    return DATATYPES.get(dtype, dtype.upper())


def tensor(x: Array, one: dict[str, Any]) -> Array:
    """Arrays of callers [n, ...] -> the model's tensor: axes arranged, scaled, normalised."""
    to = one["tensor"]
    batch, axes = to["batch"], one["axes"]
    if x.dtype == object:
        x = np.array([text.decode() if isinstance(text, bytes) else str(text) for text in x.reshape(-1)], object).reshape(x.shape)
    if one["flat"] is not None:
        x = x.reshape(len(x), *one["flat"])
    elif axes is not None:
        there = [i + 1 for i in axes if i is not None]
        x = x.transpose(0, *there, *(i for i in range(1, x.ndim) if i not in there))
        sizes = iter(x.shape[1:])
        x = x.reshape(len(x), *(1 if i is None else next(sizes) for i in axes))
    x = x[0] if batch is None else np.moveaxis(x, 0, batch)
    if to["dtype"] == "object":
        return x
    x = np.ascontiguousarray(x).astype(to["dtype"])
    if one["factor"] is not None:
        x *= np.asarray(one["factor"], to["dtype"])
        x += np.asarray(one["offset"], to["dtype"])
    return x


def pictures(files: Array, picture: dict[str, Any]) -> Array:
    """The files of pictures as uint8 [n, height, width(, channels)].

    Raises:
        BadInput: as `decoded`; none, or too many for one request; or they differ in size.
    """
    most = 1 if -1 in (picture["height"], picture["width"]) else MOST_FILES
    if not 0 < files.size <= most:
        raise BadInput(f"{files.size} pictures came: send 1 to {most} at a time")
    made = [decoded(bytes(one), picture) for one in files.reshape(-1)]
    if len({one.shape for one in made}) > 1:
        raise BadInput("the pictures of one request differ in size: send one at a time")
    return np.stack(made)


def decoded(data: bytes, picture: dict[str, Any]) -> Array:
    """The file of a picture as uint8 [height, width(, channels)], turned the right way up, resized and cropped.

    Raises:
        BadInput: it is no such file, is too large, or has another size and the card says no way to fit it.
    """
    from PIL import Image, ImageOps

    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MOST_SCANS:  # within a scan no byte of 255 is followed by that
        raise BadInput(f"a JPEG of more than {MOST_SCANS} scans, which takes too long")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        size = image.width * image.height
    except Exception as e:
        raise BadInput(f"these {len(data)} bytes are no picture that can be read ({', '.join(FORMATS)})") from e
    if size > MOST_PIXELS:
        raise BadInput(f"a picture of {image.height} x {image.width} is too large")
    raw = [str(tile[3][0] if isinstance(tile[3], tuple) else tile[3]) for tile in getattr(image, "tile", ()) if tile[3]]
    if image.mode.startswith(("I", "F")) or any(";16" in mode for mode in raw):
        raise BadInput("a picture of more than 8 bits a channel: convert it, its scale is yours to say")
    try:
        upright: Any = ImageOps.exif_transpose(image)
    except Exception as e:
        raise BadInput(f"these {len(data)} bytes are no picture that can be read ({', '.join(FORMATS)})") from e
    channels = picture["channels"]
    fitted = _fitted(upright if upright.mode == MODES[channels] else upright.convert(MODES[channels]), picture)
    array: Array = np.asarray(fitted)
    return array[..., None] if channels == 1 else array


def _fitted(image: Any, picture: dict[str, Any]) -> Any:
    """The image in the size that is wanted."""
    from PIL import Image

    def fits() -> bool:
        return picture["height"] in (-1, image.height) and picture["width"] in (-1, image.width)

    if fits():
        return image
    to, crop = picture["resize"], picture["crop"]
    if to is not None:
        width, height = image.size
        if not isinstance(to, int):
            height, width = to
        elif width <= height:
            width, height = to, max(1, to * height // width)
        else:
            width, height = max(1, to * width // height), to
        if width * height > MOST_PIXELS:
            raise BadInput(f"a picture of {image.height} x {image.width} would be resized to {height} x {width}: too large")
        image = image.resize((width, height), getattr(Image.Resampling, picture["filter"].upper()))
    if crop is not None:
        height, width = crop
        if image.height < height or image.width < width:
            raise BadInput(f"{height} x {width} cannot be cut out of a picture of {image.height} x {image.width}")
        top, left = round((image.height - height) / 2), round((image.width - width) / 2)
        image = image.crop((left, top, left + width, top + height))
    if not fits():
        raise BadInput(f"expected a picture of {picture['height']} x {picture['width']}, got {image.height} x {image.width}")
    return image
