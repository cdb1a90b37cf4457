"""ONNX models on ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from edgeroute.confidence.scores import Score
from edgeroute.edge.card import Array
from edgeroute.edge.external import external_data
from edgeroute.edge.model_file import ModelFile
from edgeroute.edge.onnx_session import Node, opened
from edgeroute.edge.providers import CPU, Given, parsed
from edgeroute.errors import ModelError, PolicyError, RuntimeMissing
from edgeroute.imports import imported
from edgeroute.types import StopToken, TensorSpec

_DTYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(double)": "float64", "tensor(bool)": "bool",
    "tensor(int8)": "int8", "tensor(int16)": "int16", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(uint8)": "uint8", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32", "tensor(uint64)": "uint64",
}  # fmt: skip


class OnnxModel(ModelFile):
    """A .onnx file, with the card beside it if there is one. Loaded at the first run, or by `load()`.

    Args:
        path: the model file.
        providers: execution providers, best first: names, as "cpu" or "tensorrt", or tables with a name and options, as
            {"name": "tensorrt", "fp16": True}; see `edgeroute.edge.providers`.
        threads: for one run; more than one slows a busy device down.
        on_downgrade: what it means that a provider asked for is not there, or that the first one takes no node of the model: an
            error, or a note in `downgraded`.
        sha256: of the file; None: what the card says, unchecked where it says nothing.
        card: path of the card, where it is not beside the model.
        output: name of the output to read; None: the card's, else all of them.
        kind: what the outputs are, one of `edgeroute.confidence.KINDS`; None: the card's, else read by their form.
        labels: class index -> value; None: the card's.
        score: for this model, in place of the router's; None: the card's, if it names one.
        none_found: of a detector, see `edgeroute.confidence.boxes`; None: the card's, else "defer".

    Importing ONNX Runtime sets ORT_DISABLE_TELEMETRY=1 unless the variable is set: it would write and send by default.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        providers: Given | Sequence[Given] = ("cpu",),
        threads: int = 1,
        on_downgrade: Literal["error", "record"] = "error",
        sha256: str | None = None,
        card: str | Path | None = None,
        output: str | None = None,
        kind: str | None = None,
        labels: Iterable[Any] | None = None,
        score: str | Score | None = None,
        none_found: str | None = None,
    ) -> None:
        super().__init__(
            path, sha256=sha256, card=card, output=output, kind=kind, labels=labels, score=score, none_found=none_found
        )
        try:
            self.providers = parsed(providers)
        except PolicyError as e:
            raise PolicyError(f"providers: {e}") from None
        self.threads, self.on_downgrade = threads, on_downgrade
        self.placement: str | None = None
        self.nodes: tuple[Node, ...] | None = None
        self._used = [*self.providers]
        self._run_options: Any = None
        self._input = ""
        self._prepare: Callable[[Any], Array] | None = None

    @property
    def files(self) -> list[Path]:
        """The card, and the files beside the model that have its weights."""
        return [*external_data(self.path), *super().files]

    @property
    def settings(self) -> dict[str, Any]:
        """The output that is read, and the providers it runs on, with the options that change outputs, such as a precision.

        Where a downgrade is allowed, it is loaded to know them.

        Threads are none of this: they change the order of sums, and so the last digits at most.
        """
        used = [*self.providers]
        if self.on_downgrade == "record" and [one.name for one in used] != [CPU]:
            self.load()
            used = self._used
        return {"runtime": "onnxruntime", "providers": [one.setting for one in used], "output": self.output}

    def _open(self) -> Any:
        ort = runtime()
        made = opened(ort, self.path, self.providers, threads=self.threads, strict=self.on_downgrade == "error")
        session, self.nodes, self.downgraded = made.session, made.nodes, made.downgraded
        self.placement = None if [one.name for one in self.providers] == [CPU] else made.placement()
        self._used = made.used(self.providers) if made.downgraded else [*self.providers]
        self._describe([*map(spec_of, session.get_inputs())], [*map(spec_of, session.get_outputs())])
        self._check_types(session)
        self._input = self.inputs[0].name if self.inputs else ""
        self._prepare = self._plan.one
        self._run_options = ort.RunOptions
        return session

    def _check_types(self, session: Any) -> None:
        """Refuses tensors that numpy has no type for, each run of which would fail."""
        for kind, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
            for node in nodes:
                known = not node.type.startswith("tensor(") or node.type in _DTYPES or node.type == "tensor(string)"
                if not known and (kind == "input" or node.name in self._names):
                    raise ModelError(
                        f"{self.path}: its {kind} {node.name} is a {node.type}, which numpy does not have: export it with a cast "
                        "to float32 in the graph"
                    )

    def run_one(self, x: Any, cancel: StopToken | None = None) -> Array | dict[str, Array]:
        """The same for one input."""
        session, prepare = self._session or self.load(), self._prepare
        if prepare is None or type(x) is dict:
            return self.run([x], cancel)
        tensor = prepare(x)
        if cancel is not None:
            out = self._execute(session, self._names, {self._input: tensor}, cancel)
            return out[0] if len(out) == 1 else dict(zip(self._names, out, strict=True))
        try:  # the usual case, by the short way
            out = session.run(self._names, {self._input: tensor})
        except Exception as e:  # onnxruntime's errors derive from Exception alone
            raise self._failed(e) from e
        return out[0] if len(out) == 1 else dict(zip(self._names, out, strict=True))

    def _execute(self, session: Any, names: list[str], feed: dict[str, Array], cancel: StopToken | None) -> list[Array]:
        try:
            if cancel is None:
                return session.run(names, feed)  # type: ignore[no-any-return]
            options = self._run_options()
            cancel.on_ask(lambda: setattr(options, "terminate", True))
            return session.run(names, feed, options)  # type: ignore[no-any-return]
        except Exception as e:  # onnxruntime's errors derive from Exception alone
            raise self._failed(e) from e


def runtime() -> Any:
    """The module onnxruntime, without its telemetry.

    Raises:
        RuntimeMissing: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, at import
    try:
        return imported("onnxruntime")
    except ImportError as e:
        raise RuntimeMissing("onnxruntime is not installed: pip install 'edgeroute[onnx]'") from e


def spec_of(node: Any) -> TensorSpec:
    """Name, dtype and shape of an input or output of a session."""
    if node.type.startswith("seq(map("):  # scikit-learn's zipmap: a mapping from class to probability for each input
        return TensorSpec(node.name, "float32", (-1, -1))
    shape = tuple(n if isinstance(n, int) and n > 0 else -1 for n in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, "object"), shape)
