"""Runner of an ONNX model with the preprocessing of its card. Copied by `edgeroute export`; needs no edgeroute.

`Model` runs the model; `tensor` prepares arrays, `pictures` decodes picture files. `model.json` in the model's folder is its
`Description`.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

Array = Any  # a numpy array
FORMATS = ("JPEG", "PNG", "WEBP")
MODES = {0: "L", 1: "L", 3: "RGB", 4: "RGBA"}  # channels -> Pillow's mode; 0: an array without an axis for them
MOST_PIXELS = 1 << 26  # most pixels of a picture, decoded or resized
MOST_SCANS = 100  # most scans of a JPEG: each scan of a progressive JPEG covers the whole picture, and usual ones have ten
MOST_FILES = 1024  # most files of one request where the pictures' size is known; otherwise the limit is one
# numpy dtype -> datatype of the Open Inference Protocol; integers have their names in capitals.
DATATYPES = {"object": "BYTES", "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64"}


class BadInput(ValueError):
    """Raised when a caller's input does not fit the model."""


class Description:
    """Description of a model from `model.json`, without the model."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.about: dict[str, Any] = json.loads((self.folder / "model.json").read_text(encoding="utf-8"))
        self.inputs: list[dict[str, Any]] = self.about["inputs"]
        self.outputs: list[dict[str, Any]] = self.about["outputs"]

    def metadata(self, name: str) -> dict[str, Any]:
        """Return the metadata of the Open Inference Protocol, with labels and output kind as parameters."""

        def tensors(specs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            """Return the metadata of tensors."""
            return [{"name": s["name"], "datatype": datatype(s["dtype"]), "shape": [-1, *s["shape"]]} for s in specs]

        parameters = {key: self.about[key] for key in ("labels", "kind", "description", "sha256") if self.about.get(key)}
        about = {"name": name, "versions": ["1"], "platform": "onnxruntime", "parameters": parameters}
        return {**about, "inputs": tensors(self.inputs), "outputs": tensors(self.outputs)}


class Model(Description):
    """Model loaded with ONNX Runtime.

    Args:
        folder: folder of `model.json` and the model file that it names.
        threads: threads of one run; 0: ONNX Runtime's choice.
        gpu: number of the GPU to run on; None: the processor.
        most: most rows of one run, where the model takes any number.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1, gpu: int | None = None, most: int = 1024) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, at import
        import onnxruntime

        super().__init__(folder)
        self.most = most
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers: list[Any] = ["CPUExecutionProvider"]
        if gpu is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu}))
        self.session = onnxruntime.InferenceSession(str(self.folder / self.about["file"]), options, providers=providers)
        self.names = [field["name"] for field in self.outputs]
        self.constants = {name: np.asarray(field["value"], field["dtype"]) for name, field in self.about["constants"].items()}

    def run(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Run the model on arrays [n, ...] by name, as callers send them, and return its outputs [n, ...] by name.

        Splits or pads the rows if the model takes a fixed number, or if there are too many.

        Raises:
            BadInput: the inputs differ in their number of rows, or have none.
        """
        counts = {len(array) for array in feed.values()}
        if len(counts) != 1 or 0 in counts:
            raise BadInput(f"the inputs have {sorted(counts)} rows: send the same number for each, at least 1")
        n, size = counts.pop(), self.about["size"] or self.most
        if n <= size and self.about["size"] is None:
            return self._run(feed)
        parts = [self._group(feed, start, size) for start in range(0, n, size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.names}

    def run_many(self, feeds: list[dict[str, Array]]) -> list[dict[str, Array] | Exception]:
        """Run several requests and return for each its outputs, views of shared arrays, or its exception, which is not raised.

        Requests of the same shape run together; if that fails, each runs alone, so that a bad one costs no other.
        """
        results: list[Any] = [None] * len(feeds)
        groups: dict[Any, list[int]] = {}
        for i, feed in enumerate(feeds):
            rows = len(next(iter(feed.values())))
            alike = rows > 0 and all(len(array) == rows for array in feed.values())
            shapes = tuple((name, array.dtype.kind, array.shape[1:]) for name, array in feed.items())
            groups.setdefault(shapes if alike else i, []).append(i)
        for members in groups.values():
            try:
                if len(members) == 1:
                    results[members[0]] = self.run(feeds[members[0]])
                    continue
                names = [spec["name"] for spec in self.inputs]
                outputs = self.run({name: np.concatenate([feeds[i][name] for i in members]) for name in names})
            except Exception as e:  # noqa: BLE001 - reported to its caller, whatever it is
                for i in members:
                    results[i] = e if len(members) == 1 else self.run_many([feeds[i]])[0]
                continue
            start = 0
            for i in members:
                n = len(next(iter(feeds[i].values())))
                results[i] = {name: array[start : start + n] for name, array in outputs.items()}
                start += n
        return results

    def try_zeros(self) -> None:
        """Run the model on a row of zeros, unless an input has an unknown size or takes texts; raises the errors of the run."""
        if all(-1 not in spec["shape"] and spec["dtype"] != "object" for spec in self.inputs):
            self.run({spec["name"]: np.zeros((1, *spec["shape"]), spec["dtype"]) for spec in self.inputs})

    def _group(self, feed: dict[str, Array], start: int, size: int) -> dict[str, Array]:
        """Run `size` rows from a start and return their outputs; a fixed size is filled with the last row, and cut off after."""
        group = {name: array[start : start + size] for name, array in feed.items()}
        n = len(next(iter(group.values())))
        full = group
        if n < size and self.about["size"] is not None:
            full = {name: np.concatenate([array, *[array[-1:]] * (size - n)]) for name, array in group.items()}
        return {name: array[:n] for name, array in self._run(full).items()}

    def _run(self, feed: dict[str, Array]) -> dict[str, Array]:
        """Prepare the inputs, run the model once with its constants, and return its outputs with the axis of rows first."""
        tensors = {spec["name"]: tensor(feed[spec["name"]], spec) for spec in self.inputs}
        outputs = self.session.run(self.names, {**tensors, **self.constants})
        axis: int | None = self.about["batch"]
        return {
            name: np.asarray(output)[None] if axis is None else np.moveaxis(output, axis, 0)
            for name, output in zip(self.names, outputs, strict=True)
        }


def datatype(dtype: str) -> str:
    """Return the protocol's name of a numpy dtype; "BYTES" for object."""
    return DATATYPES.get(dtype, dtype.upper())


def tensor(x: Array, spec: dict[str, Any]) -> Array:
    """Return a caller's array [n, ...] as the model's tensor: texts decoded, axes arranged, type converted, scaled."""
    to = spec["tensor"]
    batch, axes = to["batch"], spec["axes"]
    if x.dtype == object:
        x = np.array([text.decode() if isinstance(text, bytes) else str(text) for text in x.reshape(-1)], object).reshape(x.shape)
    if spec["flat"] is not None:
        x = x.reshape(len(x), *spec["flat"])
    elif axes is not None:
        used = [i + 1 for i in axes if i is not None]
        x = x.transpose(0, *used, *(i for i in range(1, x.ndim) if i not in used))
        sizes = iter(x.shape[1:])
        x = x.reshape(len(x), *(1 if i is None else next(sizes) for i in axes))
    x = x[0] if batch is None else np.moveaxis(x, 0, batch)
    if to["dtype"] == "object":
        return x
    x = np.ascontiguousarray(x).astype(to["dtype"])
    if spec["factor"] is not None:
        x *= np.asarray(spec["factor"], to["dtype"])
        x += np.asarray(spec["offset"], to["dtype"])
    return x


def pictures(files: Array, picture: dict[str, Any]) -> Array:
    """Decode picture files into uint8 [n, height, width(, channels)].

    Raises:
        BadInput: a file cannot be decoded, there are none or more than 1,024 (1 for a model of any size), or their sizes differ.
    """
    most = 1 if -1 in (picture["height"], picture["width"]) else MOST_FILES
    if not 0 < files.size <= most:
        raise BadInput(f"{files.size} pictures came: send 1 to {most} at a time")
    arrays = [decode(bytes(file), picture) for file in files.reshape(-1)]
    if len({array.shape for array in arrays}) > 1:
        raise BadInput("the pictures of one request differ in size: send one at a time")
    return np.stack(arrays)


def decode(data: bytes, picture: dict[str, Any]) -> Array:
    """Decode a JPEG, PNG or WebP file into uint8 [height, width(, channels)], turned the right way up, resized and cropped.

    Raises:
        BadInput: it is no picture file, has more than 67 million pixels, 8 bits a channel or 100 scans, or does not fit the
            model.
    """
    from PIL import Image, ImageOps

    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MOST_SCANS:  # cannot occur within a scan
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
        raise BadInput("a picture of more than 8 bits a channel: convert it to 8 bits")
    try:
        upright: Any = ImageOps.exif_transpose(image)
    except Exception as e:
        raise BadInput(f"these {len(data)} bytes are no picture that can be read ({', '.join(FORMATS)})") from e
    channels = picture["channels"]
    fitted = _fit(upright if upright.mode == MODES[channels] else upright.convert(MODES[channels]), picture)
    array: Array = np.asarray(fitted)
    return array[..., None] if channels == 1 else array


def _fit(image: Any, picture: dict[str, Any]) -> Any:
    """Return an image of the model's size as it is, others resized and cropped as the card says.

    Raises:
        BadInput: it still has a wrong size, is smaller than what is cut out, or would get too large.
    """
    from PIL import Image

    def fits() -> bool:
        """Return True if the image has the size that the model takes."""
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
