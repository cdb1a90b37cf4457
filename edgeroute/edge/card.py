"""Model card: input and output specification, preprocessing, labels and SHA-256 of a model file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from edgeroute.errors import BadInput, ModelError, ModelMissing
from edgeroute.types import TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]


class Card:
    """The card in `NAME.json` beside `NAME.onnx`; every key is optional.

    `input`: name, dtype and shape of the model's tensor; `preprocess`: dtype and shape of the caller's input, then
    `(x * scale - mean) / std`, where mean and std are scalars or one number per channel (the tensor's second axis).

    Raises:
        ModelError: the data is not a model card.
    """

    def __init__(self, data: dict[str, Any] | None = None, *, path: Path | None = None) -> None:
        data = {} if data is None else data
        self.path = path
        try:
            self.name = str(data.get("name", ""))
            self.description = str(data.get("description", ""))
            self.labels = tuple(map(str, data["labels"])) if data.get("labels") else None
            output = data.get("output", {})
            self.kind: str | None = output.get("kind")
            self.output: str | None = output.get("name")
            self.score: str | None = output.get("score")
            self.none_found: str = output.get("none_found", "defer")
            self.sha256: str | None = data.get("sha256")
            self.preprocess = _preprocess(data)
        except (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError) as e:  # numpy parses dtypes
            raise ModelError(f"{path or 'the card'} is not a model card: {type(e).__name__}: {e}") from e

    @classmethod
    def beside(cls, model: Path) -> Card:
        """The card of a model file; an empty card if there is none."""
        path = model.with_suffix(".json")
        return cls.read(path) if path.exists() else cls()

    @classmethod
    def read(cls, path: Path) -> Card:
        """Reads a card file.

        Raises:
            ModelMissing: there is no such file.
            ModelError: it is not a model card.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as e:
            raise ModelMissing(f"there is no model card at {path}") from e
        except OSError as e:
            raise ModelError(f"{path} cannot be read: {e.strerror}") from e
        except (ValueError, RecursionError) as e:
            raise ModelError(f"{path} is not JSON: {e}") from e
        return cls(data, path=path)


class Preprocess:
    """Preprocessing: the caller's input -> the model's tensor, scaled and normalised.

    Raises:
        ValueError: the model's input dtype is not a float.
    """

    def __init__(self, accepts: TensorSpec, gives: TensorSpec, scale: float, mean: Any, std: Any) -> None:
        self.accepts, self.gives = accepts, gives
        if not np.can_cast(np.float32, gives.dtype, "same_kind"):
            raise ValueError(f"preprocessing gives floats, the input is {gives.dtype}")
        rank = len(gives.shape)

        def spread(value: Any) -> Array:  # a scalar, or one per channel, broadcast to [n, channels, ...]
            array = np.asarray(value, np.float64)
            return array.reshape((-1,) + (1,) * (rank - 2)) if array.ndim else array

        self._dtype = np.dtype(gives.dtype)
        self._factor = np.asarray(scale / spread(std), self._dtype)
        self._offset = np.asarray(-spread(mean) / spread(std), self._dtype)
        self._usual = (np.dtype(accepts.dtype), accepts.shape[1:], (1, *gives.shape[1:]))

    def one(self, x: Any) -> Array:
        """One array -> [1, ...]; a fast path for `__call__`."""
        dtype, shape, tensor = self._usual
        if type(x) is not np.ndarray or x.dtype is not dtype or x.shape != shape or dtype.kind == "f" or -1 in tensor:
            return self([x])
        out: Array = x.astype(self._dtype).reshape(tensor)  # the fast path
        out *= self._factor
        out += self._offset
        return out

    def __call__(self, inputs: list[Any]) -> Array:
        """Arrays -> one tensor [n, ...] of the model's dtype.

        Raises:
            BadInput: as `stack`.
        """
        x = stack(inputs, self.accepts)
        shape = (len(x), *self.gives.shape[1:]) if -1 not in self.gives.shape[1:] else x.shape
        out: Array = x.reshape(shape).astype(self._dtype)
        out *= self._factor
        out += self._offset
        return out


def stack(inputs: list[Any], spec: TensorSpec) -> Array:
    """Stacks n arrays of shape `spec.shape[1:]` (or with a leading axis of 1) to [n, ...], casting within the same kind.

    Raises:
        BadInput: wrong shape or dtype, NaN or infinity, or an empty batch.
    """
    rows: list[Array] = []
    try:
        for x in inputs:
            rows.append(_row(x, spec))  # noqa: PERF401 - their number identifies the bad one
    except BadInput as e:
        if len(inputs) == 1:
            raise
        raise BadInput(f"input {len(rows)} of the batch: {e}") from None
    if len(rows) == 1:
        return rows[0][None]
    if not rows:
        raise BadInput("the batch is empty")
    if len({row.shape for row in rows}) > 1:
        raise BadInput(f"the rows of a batch differ in shape: {sorted({row.shape for row in rows})}")
    return np.stack(rows)


def _row(given: Any, spec: TensorSpec) -> Array:
    x: Array = given if isinstance(given, np.ndarray) else np.asarray(given)
    shape = spec.shape[1:]
    if x.ndim == len(shape) + 1 and x.shape[0] == 1:
        x = x[0]
    if x.shape != shape and (x.ndim != len(shape) or any(w not in (-1, g) for w, g in zip(shape, x.shape, strict=True))):
        raise BadInput(f"{spec.name}: expected {_say(shape)} {spec.dtype}, got {_say(x.shape)} {x.dtype}")
    if x.dtype != spec.dtype:
        if x.dtype.hasobject or not np.can_cast(x.dtype, spec.dtype, "same_kind"):
            raise BadInput(f"{spec.name}: expected {spec.dtype}, got {x.dtype}; convert it, so that its scale is yours to say")
        x = x.astype(spec.dtype)
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise BadInput(f"{spec.name}: the input holds NaN or infinity")
    return x


def _say(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("any" if n == -1 else str(n) for n in shape) + "]"


def _preprocess(data: dict[str, Any]) -> Preprocess | None:
    if "preprocess" not in data:
        return None
    first, tensor = data["preprocess"], data["input"]
    return Preprocess(
        TensorSpec(tensor["name"], first["dtype"], (-1, *map(int, first["shape"]))),
        TensorSpec(tensor["name"], tensor["dtype"], tuple(map(int, tensor["shape"]))),
        float(first.get("scale", 1)),
        first.get("mean", 0),
        first.get("std", 1),
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex.

    Raises:
        ModelMissing: there is no such file.
        ModelError: it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except FileNotFoundError as e:
        raise ModelMissing(f"there is no model at {path}") from e
    except OSError as e:
        raise ModelError(f"{path} cannot be read: {e.strerror}") from e
    return digest.hexdigest()
