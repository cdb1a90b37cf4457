"""Models that others made, from packages on the index: the line that makes each an edge, and the right answers to some inputs.

`foreign_models` has files, `foreign_classifiers` estimators and functions, and this the list of both. The packages are in `foreign/packages.txt`, installed for their files alone, and what their libraries need beside it.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import shutil
import subprocess
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest


class Tried(NamedTuple):
    """Inputs of a model, and its own answers."""

    inputs: list[Any]
    answers: list[tuple[Any, float | None]]
    """(value, confidence) for each input."""
    names: dict[str, Any] = {}  # noqa: RUF012 - read only
    """Objects that the line names, beside those of edgeroute."""


class Foreign(NamedTuple):
    """A model that others made."""

    package: str
    file: str
    """Its path in the package; empty: the package is asked, or the model is trained."""
    task: str
    line: str
    """Python: makes the edge, in the folder of the file."""
    right: Callable[[Path], Tried]
    """The model's own answers, by its library or its bare runtime."""
    inspect: bool = False
    """`edgeroute inspect FILE --write` comes first, for the card."""
    stream: bool = False
    """The inputs are chunks of one session."""

    @property
    def id(self) -> str:
        """Name in the table and in pytest."""
        return f"{self.package} {Path(self.file).name or self.task}"


MODELS: list[Foreign] = []


def foreign(package: str, file: str, task: str, line: str, **more: Any) -> Callable[[Callable[..., Tried]], Callable[..., Tried]]:
    """Lists a model whose own answers the decorated function gives."""

    def add(right: Callable[..., Tried]) -> Callable[..., Tried]:
        MODELS.append(Foreign(package, file, task, line, right, **more))
        return right

    return add


def folder(package: str) -> Path:
    """The folder of an installed package, without an import of it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def load(name: str, path: Path) -> ModuleType:
    """A module by its file, without the package around it."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def onnx(file: Path, feed: dict[str, Any]) -> dict[str, np.ndarray]:
    """Outputs by name of ONNX Runtime alone."""
    opened = session(file)
    return dict(zip([o.name for o in opened.get_outputs()], opened.run(None, feed), strict=True))


@cache
def session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(file, options)


def litert(file: Path, x: np.ndarray) -> list[np.ndarray]:
    """Outputs of LiteRT alone, in the order of the file."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return [interpreter.get_tensor(o["index"]) for o in interpreter.get_output_details()]


def yes(p: float) -> tuple[str, float]:
    """The answer of a model of two classes that gives the probability of the second."""
    return ("yes", float(p)) if p > 0.5 else ("no", 1 - float(p))


def best(p: np.ndarray, labels: list[str]) -> tuple[str, float]:
    """The most probable class."""
    return labels[int(p.argmax())], float(p.max())


@cache
def photo() -> np.ndarray:
    """A person before a flag, [512, 512, 3]."""
    from PIL import Image

    return np.asarray(Image.open(folder("skimage") / "data" / "astronaut.png").convert("RGB"))


@cache
def written(text: str) -> np.ndarray:
    """A line of black letters on white, [48, n, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(34)
    picture = Image.new("RGB", (int(font.getlength(text)) + 24, 48), "white")
    ImageDraw.Draw(picture).text((12, 2), text, "black", font)
    return np.asarray(picture)


@cache
def spoken(text: str) -> np.ndarray:
    """A voice, 16,000 samples a second, from -1 to 1, with half a second of silence on either side."""
    program = shutil.which("espeak-ng")
    if program is None:
        pytest.skip("espeak-ng is not installed")
    said = subprocess.run([program, "--stdout", text], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(said)) as file:
        rate = file.getframerate()
        sound = np.frombuffer(file.readframes(1 << 30), np.int16) / 32768
    at_16k = np.interp(np.arange(0, len(sound), rate / 16_000), np.arange(len(sound)), sound)
    return np.pad(at_16k, 8000).astype(np.float32)


SENTENCE = "Good morning. Please turn on the light in the kitchen."


def every() -> list[Foreign]:
    """All models, in the order of the table."""
    for module in ("foreign_models", "foreign_classifiers"):
        importlib.import_module(module)
    return MODELS


def table() -> str:
    """The table of docs/foreign-models.md."""
    rows = ["| package | model | task | the edge |", "| --- | --- | --- | --- |"]
    for model in every():
        line = f"`edgeroute inspect {Path(model.file).name} --write`, then `{model.line}`" if model.inspect else f"`{model.line}`"
        line += ", in a session" if model.stream else ""
        rows.append(f"| {model.package} | {Path(model.file).name or '-'} | {model.task} | {line} |")
    return "\n".join([*rows, ""])
