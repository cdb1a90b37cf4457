"""Models in OpenVINO's own format, run by its native API."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeroute import BadInput, ModelError, ModelMissing, RuntimeMissing, StopToken
from edgeroute.types import TensorSpec

PARENTS: list[Any] = []
"""Models of the parent of a forked process: their threads are not here, so they are neither used nor freed."""


class OpenVINOModel:
    """An .xml with its .bin beside it. Loaded at the first run, or by `load()`.

    Args:
        path: the .xml.
        device: as OpenVINO calls it: "CPU", "GPU", "NPU", or "AUTO".
        precision: in which it computes. OpenVINO itself takes bfloat16 where a CPU has it: answers change with the machine.
        threads: for one run.
        labels: class index -> value.
        kind: what the outputs are, as in a model card.
    """

    closes_after_runs = True
    """A run holds the request that it began with."""

    def __init__(
        self,
        path: str | Path,
        *,
        device: str = "CPU",
        precision: Literal["f32", "f16", "bf16"] = "f32",
        threads: int = 1,
        labels: Sequence[str] | None = None,
        kind: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        self.device, self.precision, self.threads = device, precision, threads
        self.labels = None if labels is None else tuple(labels)
        self.kind = kind
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._lock, self._pid = threading.RLock(), os.getpid()
        self._model: Any = None
        self._idle: list[Any] = []

    @property
    def files(self) -> list[Path]:
        """File of the weights, if there is one."""
        return [file for file in [self.path.with_suffix(".bin")] if file.exists()]

    @property
    def settings(self) -> dict[str, Any]:
        """Settings, besides the files, on which its outputs depend."""
        return {"runtime": "openvino", "device": self.device, "precision": self.precision}

    def load(self) -> Any:
        """Compile the model, once in a process, and return it; sets its inputs and outputs.

        Raises:
            ModelMissing: there is no such file.
            RuntimeMissing: openvino is not installed.
            ModelError: it cannot be compiled, or takes several inputs.
        """
        if self._pid != os.getpid():
            PARENTS.extend([self._model, self._idle])
            self._lock, self._pid, self._model, self._idle = threading.RLock(), os.getpid(), None, []
        with self._lock:
            if self._model is None:
                self._model = self._compiled()
            return self._model

    def _compiled(self) -> Any:
        """Return the compiled model, and set `inputs` and `outputs`; raises as `load`."""
        if not self.path.exists():
            raise ModelMissing(f"there is no model at {self.path}")
        try:
            import openvino as ov
        except ImportError as e:
            raise RuntimeMissing("openvino is not installed: pip install openvino") from e
        options = {"INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": "LATENCY"}
        if self.device == "CPU":
            options["INFERENCE_NUM_THREADS"] = str(self.threads)
        try:
            model = ov.Core().compile_model(str(self.path), self.device, options)
        except Exception as e:  # openvino's errors derive from RuntimeError; what a foreign file raises is not known
            raise ModelError(f"OpenVINO cannot load {self.path}: {str(e).strip().splitlines()[-1]}") from e
        self.inputs, self.outputs = (tuple(map(_spec, ports)) for ports in (model.inputs, model.outputs))
        if len(self.inputs) != 1:
            raise ModelError(f"{self.path} has {len(self.inputs)} inputs, and this example runs models with one")
        return model

    def run(self, inputs: list[Any], cancel: StopToken | None = None) -> Any:
        """Run a batch, each input an array without the batch axis; return outputs [n, ...], a mapping if there are several."""
        self.load()
        (spec,) = self.inputs
        return self.run_feed({spec.name: _stacked(inputs, spec)}, cancel)

    def run_feed(self, feed: dict[str, Any], cancel: StopToken | None = None) -> Any:
        """Run a tensor with its batch axis, and return copies of the outputs, by name if there are several.

        Runs in other threads at the same time have requests of their own. `cancel` may stop it.

        Raises:
            ModelError: the run failed, or was stopped.
        """
        model, idle = self.load(), self._idle
        try:
            request = idle.pop()  # one serves a run at a time
        except IndexError:
            request = model.create_infer_request()
        try:
            if cancel is not None:
                cancel.on_ask(request.cancel)
            found = request.infer([feed[self.inputs[0].name]])
        except RuntimeError as e:
            raise ModelError(f"{self.name} failed to run: {str(e).strip().splitlines()[-1]}") from e
        finally:
            if cancel is not None:
                cancel.on_ask(None)  # the request is another run's from now on
        idle.append(request)
        rows = {spec.name: np.array(found[i]) for i, spec in enumerate(self.outputs)}
        return rows if len(rows) > 1 else next(iter(rows.values()))

    def close(self) -> None:
        """Frees it once the runs under way have ended; a later run loads it again."""
        with self._lock:
            self._model, self._idle = None, []


def _spec(port: Any) -> TensorSpec:
    shape = tuple(axis.get_length() if axis.is_static else -1 for axis in port.partial_shape)
    return TensorSpec(port.any_name, np.dtype(port.element_type.to_dtype()).name, shape)


def _stacked(inputs: list[Any], spec: TensorSpec) -> Any:
    """Return inputs as one array of the input's type.

    Raises:
        BadInput: there are none, or they make no array of this shape and type, or hold NaN or infinity.
    """
    if not inputs:
        raise BadInput("the batch is empty")
    try:
        rows = np.stack([np.asarray(x) for x in inputs])
    except ValueError as e:  # first of all: it is one, so a later `except ValueError` would make the model's fault of it
        raise BadInput(f"{spec.name}: the inputs make no array: {e}") from e
    if rows.ndim != len(spec.shape) or any(b not in (-1, a) for a, b in zip(rows.shape[1:], spec.shape[1:], strict=True)):
        raise BadInput(f"{spec.name}: expected {list(spec.shape[1:])}, got {list(rows.shape[1:])}")
    if not np.can_cast(rows.dtype, spec.dtype, "same_kind"):
        raise BadInput(f"{spec.name}: expected {spec.dtype}, got {rows.dtype}")
    if rows.dtype.kind == "f" and not np.isfinite(rows).all():
        raise BadInput(f"{spec.name}: the input holds NaN or infinity")
    return rows.astype(spec.dtype, copy=False)
