"""Common parts of exports: `Subject`, a loaded and checked model; `new_folder`, replaced as a whole at the end; and templates."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from edgeroute import __version__
from edgeroute.cloud.oip_tensors import NAMES
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.edge.input_checks_and_stacking import row_shape
from edgeroute.edge.inputs_constants_and_states import Inputs, batch_axis_problem
from edgeroute.edge.model_card import sha256_of
from edgeroute.edge.onnx import OnnxModel, external_data, spec_of
from edgeroute.edge.preprocessing import Preprocess
from edgeroute.errors import ModelError, PolicyError, StoreError
from edgeroute.types import TensorSpec

# The folder of an export: written beside its destination, and moved there once complete.

MARK = "edgeroute-export.json"  # file in each export that describes it; a folder without it is never replaced
PROGRAMS, TEMPLATES = Path(__file__).parent / "programs", Path(__file__).parent / "templates"


@contextmanager
def new_folder(out: str | Path, kind: str, models: Sequence[Subject], *, force: bool) -> Iterator[Path]:
    """Provide a new folder beside `out` to write to, which is flushed to the disk and becomes `out` at the end.

    After an error the new folder is deleted, and an earlier export stays.

    Args:
        out: must not exist, or be an empty folder; or, with `force`, an earlier export, which is replaced as a whole.
        kind: kind of the export, for its `edgeroute-export.json`.
        models: the exported models, for that file too.
        force: True replaces an earlier export.

    Raises:
        PolicyError: `out` is a link, or exists and may not be replaced.
        StoreError: the disk is full, or cannot be written to.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - without following a link, which would be replaced in place of its name
    _check(out, force=force)
    new, old = (out.with_name(f".{out.name}.{secrets.token_hex(6)}.{what}") for what in ("new", "old"))
    try:
        try:
            new.mkdir(parents=True)
            yield new
            write(new / MARK, text_of({"edgeroute": __version__, "format": kind, "models": [model.name for model in models]}))
            _sync(new)
            _check(out, force=force)  # another process may have created it meanwhile
            if out.exists():
                out.rename(old)
            new.rename(out)
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out)
            raise
        finally:
            for folder in (new, old):
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as e:
        if isinstance(e, PolicyError | StoreError):
            raise
        raise StoreError(f"{out} cannot be written: {e.strerror or e}; nothing of it was left") from e


def _check(out: Path, *, force: bool) -> None:
    """Raise `PolicyError` unless `out` is new, an empty folder, or, with `force`, an earlier export; a link is none of them."""
    if out.is_symlink():
        raise PolicyError(f"{out} is a link: name the folder itself")
    try:
        empty = not out.exists() or not any(out.iterdir())
    except OSError as e:
        raise PolicyError(f"{out} is no folder that can be written: {e.strerror}") from e
    if empty:
        return
    if not (out / MARK).is_file():
        raise PolicyError(f"{out} exists, and is no export of edgeroute, so it is not replaced: choose another folder")
    if not force:
        raise PolicyError(f"{out} exists: choose another folder, or use --force, which replaces all of it")


def _sync(folder: Path) -> None:
    """Flush all files of a folder to the disk, so that write errors are raised now; blocks."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())


def write(path: Path, text: str) -> None:
    """Write a text file with Unix line ends, and create the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def filled(template: str, raw: Mapping[str, str] | None = None, **values: object) -> str:
    """Read a template's file; return its text with these values as JSON, which is YAML too, and those of `raw` as they are."""
    texts = {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}
    return Template((TEMPLATES / template).read_text(encoding="utf-8")).substitute(texts, **raw or {})


def programs(folder: Path, names: Mapping[str, str]) -> None:
    """Copy programs of this package byte for byte, program -> new name; nothing of a model is written into a program."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, to in names.items():
        shutil.copyfile(PROGRAMS / name, folder / to)


# The exported model: loaded and checked, and its description for `model.json`.

FILE = "model.onnx"
TEXTS = "object"  # dtype of a tensor of texts
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Subject:
    """Model to export, loaded from its file and checked.

    Args:
        path: path of the .onnx file.
        name: name on the server; None: derived from the card's name, or the file's.

    Attributes:
        name: letters, digits, `.`, `_` and `-`: it is part of paths.
        inputs: descriptions of the inputs that callers send, as in `model.json`.
        outputs: descriptions of the outputs, with the shape of a row, without the axis that counts the inputs.
        size: rows of each run of the file; None: any number.

    Raises:
        PolicyError: `name` is invalid.
        ModelError: the model cannot be loaded, its card belongs to another model, or a server could not run it.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        path = Path(path)
        if path.suffix != ".onnx":
            raise PolicyError(f"{path} is no .onnx file: only ONNX models are exported")
        self.model = OnnxModel(path)
        self.name = server_name(self.model.name) if name is None else name
        if not _NAME.fullmatch(self.name):
            raise PolicyError(f"{clean(self.name, 80)!r} is no name for a server: letters, digits, `.`, `_` and `-`, 63 at most")
        if self.model.card.state:
            raise ModelError(f"{path}: it has a state between calls, and a server's calls come from many callers: not exported")
        session = self.model.load()
        if text := batch_axis_problem(self.model.card, self.model.inputs, self.model.outputs):
            raise ModelError(f"{path}: {text}")
        for node in session.get_outputs():
            if not node.type.startswith("tensor(") and self.model.output in (None, node.name):
                raise ModelError(f"{path}: its output {node.name} is a {node.type}, no tensor: export it without ZipMap")
        read = [spec.name for spec in self.model.outputs if self.model.output in (None, spec.name)]
        if names := [name for name, port in self.model.quantised.items() if name in read or port.dtype != "uint8"]:
            raise ModelError(
                f"{path}: the elements of {' and '.join(names)} have a scale, which a server's callers do not know: export it "
                "with QuantizeLinear and DequantizeLinear in the graph, so that it takes and gives floats"
            )
        nodes = ([*map(spec_of, session.get_inputs())], [*map(spec_of, session.get_outputs())])
        try:
            self.plan = Inputs(self.model.card, *nodes)
        except ValueError as e:
            raise ModelError(f"{path}: {e}") from e
        if not self.plan.given:
            raise ModelError(f"{path}: no input is left for callers to send")
        self.inputs = [_input(spec, self.model) for spec in self.plan.given]
        outputs = [spec for spec in self.plan.outputs if spec.name in read]
        self.outputs = [_tensor(spec.name, spec.dtype, row_shape(spec, self.plan.batch)) for spec in outputs]
        self.size = self.plan.size
        try:
            text_of(self.about()).encode()
        except UnicodeEncodeError as e:
            raise ModelError(f"{path}: its card has a text that is no Unicode, but half of a surrogate pair: correct it") from e

    @property
    def pictures(self) -> bool:
        """True if callers may send picture files, because the card describes their preparation."""
        return any(spec["picture"] is not None for spec in self.inputs)

    @property
    def prepared(self) -> bool:
        """True if any input is scaled, rearranged, flattened or cast before the model."""
        steps = [spec[step] is not None for spec in self.inputs for step in ("factor", "axes", "flat")]
        return any(steps) or any(spec["dtype"] != spec["tensor"]["dtype"] for spec in self.inputs)

    @property
    def plain(self) -> bool:
        """True if the file runs without a program around it: its first axes count the inputs, and no input is constant."""
        return not self.plan.constants and self.plan.batch == 0 and all(spec["tensor"]["batch"] == 0 for spec in self.inputs)

    @property
    def rowless(self) -> bool:
        """True if a tensor has a single number for each input, and no axis but the one that counts them."""
        return any(not spec["shape"] for spec in (*self.inputs, *self.outputs))

    def about(self, file: str = FILE, **more: Any) -> dict[str, Any]:
        """Return the contents of `model.json`: the model's tensors, their preprocessing, labels and sha256, and `more`.

        `file`: path of the model, relative to the folder of `model.json`.
        """
        card = self.model.card
        constants = {name: {"value": a.tolist(), "dtype": a.dtype.name} for name, a in self.plan.constants.items()}
        return {
            "name": self.model.name, "description": card.description, "sha256": self.model.fingerprint, "file": file,
            "kind": self.model.kind, "labels": None if self.model.labels is None else list(self.model.labels),
            "inputs": self.inputs, "outputs": self.outputs, "constants": constants, "size": self.size, "batch": self.plan.batch,
            **more,
        }  # fmt: skip

    def client(self) -> dict[str, Any]:
        """Return the card for a client of the server, which describes the outputs, without unknown and empty parts."""
        card = {"name": self.name, "description": self.model.card.description, "labels": self.about()["labels"]}
        output = {"name": self.model.output, "kind": self.model.kind, "score": self.model.card.score}
        return {k: v for k, v in {**card, "output": {k: v for k, v in output.items() if v is not None}}.items() if v}

    def files(self, folder: Path) -> list[tuple[Path, Path]]:
        """Return pairs (source, destination) of the model, as `model.onnx`, and its weights, so that the copy finds its weights.

        Raises:
            ModelError: a file of weights would have the model's name.
        """
        path, to = self.model.path, folder / FILE
        pairs = [(path, to)]
        for data in external_data(path):
            destination = to.parent / data.relative_to(path.parent)
            if destination == to:
                raise ModelError(f"{path}: the file of its weights is called {data.name}, as the model would be: rename it")
            pairs.append((data, destination))
        return pairs

    def copy(self, folder: Path) -> None:
        """Copy the model and its weights to a folder, which is created, and compare the copy's sha256 with the loaded model's.

        Raises:
            ModelError: the file changed during the export.
        """
        for source, to in self.files(folder):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, to)
        if sha256_of(folder / FILE) != self.model.fingerprint:
            raise ModelError(f"{self.model.path} was changed while it was exported: export it again")


def subjects(paths: Sequence[str | Path], names: Sequence[str] = ()) -> list[Subject]:
    """Load and check several models for one server. `names`: of the first ones; the others' names are derived.

    Raises:
        PolicyError: two would have the same name, in small letters, there are more names than models, or one is invalid.
        ModelError: a model cannot be exported.
    """
    if len(names) > len(paths):
        raise PolicyError(f"there are {len(names)} names for {len(paths)} models")
    models = [Subject(path, names[i] if i < len(names) else None) for i, path in enumerate(paths)]
    lower = [model.name.lower() for model in models]
    if twice := sorted({name for name in lower if lower.count(name) > 1}):
        raise PolicyError(f"two models would be called {twice[0]}: name each with --name")
    return models


def server_name(text: str) -> str:
    """Derive a name for paths from any text, 63 characters at most; "model" if nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63].rstrip("-._") or "model"


def text_of(data: Any) -> str:
    """Return JSON with indentation, ending in a line break."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _tensor(name: str, dtype: str, shape: Sequence[int]) -> dict[str, Any]:
    """Return a tensor's description; raise `ModelError` if the protocol has no type for it."""
    if dtype != TEXTS and dtype not in NAMES:
        raise ModelError(f"{name} is {dtype}, which the Open Inference Protocol has no type for")
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def _input(spec: TensorSpec, model: OnnxModel) -> dict[str, Any]:
    """Return an input's description with its preprocessing, as in `model.json`; raise `ModelError` for an unknown type."""
    field = model.card.of(spec.name)
    prepare = None if field is None else field.preprocess
    batch = None if not spec.shape else 0 if field is None else field.batch
    tensor = {"dtype": spec.dtype, "shape": list(spec.shape), "batch": batch}
    if prepare is None:
        description = _tensor(spec.name, spec.dtype, row_shape(spec, batch))
        return {**description, "tensor": tensor, "axes": None, "flat": None, "factor": None, "offset": None, "picture": None}
    description = _tensor(spec.name, prepare.accepts.dtype, prepare.accepts.shape[1:])
    return {**description, "tensor": tensor, **_preprocess(prepare, row_shape(prepare.gives, batch))}


def _preprocess(prepare: Preprocess, row: tuple[int, ...]) -> dict[str, Any]:
    """Return the description of a preprocessing: axes to arrange or the row to flatten to, factor, offset, fit of pictures."""
    axes, picture = prepare.axes, prepare.picture
    fitting = ("height", "width", "channels", "resize", "crop", "filter")
    return {
        "axes": axes, "flat": list(row) if axes is None else None, "factor": _numbers(prepare.factor),
        "offset": _numbers(prepare.offset), "picture": picture and {name: getattr(picture, name) for name in fitting},
    }  # fmt: skip


def _numbers(array: np.ndarray[Any, Any] | None) -> Any:
    """Return an array as a list; None stays None."""
    return None if array is None else array.tolist()
