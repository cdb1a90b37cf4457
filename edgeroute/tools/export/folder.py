"""An export: the model that is exported, loaded and checked, and the folder that is written."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgeroute.cloud.openinference import NAMES
from edgeroute.core.words import clean
from edgeroute.edge.card import sha256_of
from edgeroute.edge.inputs import Inputs, batch_axis_problem
from edgeroute.edge.onnx import OnnxModel, external_data, spec_of
from edgeroute.edge.picture import Picture
from edgeroute.edge.preprocess import Preprocess
from edgeroute.edge.tensors import row_shape
from edgeroute.errors import ModelError, PolicyError, RuntimeMissing, StoreError
from edgeroute.system.imports import import_late
from edgeroute.types import TensorSpec

# The folder of an export: written beside its place, and put there once it is whole.

MARK = "edgeroute-export.json"
"""The file in each export that says what it is; without it a folder is not replaced."""
PROGRAMS = Path(__file__).parent / "programs"


@contextmanager
def whole(out: Path, about: Mapping[str, Any], *, force: bool) -> Iterator[Path]:
    """A new folder to write to, which is `out` at the end; after an error there is no trace of it.

    Args:
        out: must not exist, or be an empty folder; or, with `force`, an earlier export, which is replaced as a whole.
        about: what `edgeroute-export.json` says.
        force: see `out`.

    Raises:
        PolicyError: there is something at `out`.
        StoreError: the disk is full, or cannot be written to.
    """
    out = Path(os.path.abspath(out))  # noqa: PTH100 - without following a link, which would be replaced in place of its name
    _check(out, force=force)
    new, old = (out.with_name(f".{out.name}.{secrets.token_hex(6)}.{what}") for what in ("new", "old"))
    try:
        try:
            new.mkdir(parents=True)
            yield new
            (new / MARK).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            _sync(new)
            _check(out, force=force)  # it may have come meanwhile
            if out.exists():
                out.rename(old)
            new.rename(out)
        except BaseException:
            if old.exists() and not out.exists():
                old.rename(out)
            raise
        finally:
            for left in (new, old):
                shutil.rmtree(left, ignore_errors=True)
    except OSError as e:
        if isinstance(e, PolicyError | StoreError):
            raise
        raise StoreError(f"{out} cannot be written: {e.strerror or e}; nothing of it was left") from e


def _check(out: Path, *, force: bool) -> None:
    if out.is_symlink():
        raise PolicyError(f"{out} is a link: give the folder itself")
    try:
        empty = not out.exists() or not any(out.iterdir())
    except OSError as e:
        raise PolicyError(f"{out} is no folder that can be written: {e.strerror}") from e
    if empty:
        return
    if not (out / MARK).is_file():
        raise PolicyError(f"{out} is there, and is no export of edgeroute's: give another folder, it would not be replaced")
    if not force:
        raise PolicyError(f"{out} is there: give another folder, or --force, which replaces all of it")


def _sync(folder: Path) -> None:
    """What was written reaches the disk, so that errors of it come now."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())


def write(path: Path, text: str) -> None:
    """Writes a text file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def programs(folder: Path, names: Mapping[str, str]) -> None:
    """Copies programs of this room byte for byte; nothing of a model is written into a program."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, to in names.items():
        shutil.copyfile(PROGRAMS / name, folder / to)


def copies(files: Iterable[tuple[Path, Path]]) -> None:
    """Copies files, and makes the folders above them."""
    for source, to in files:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, to)


# Protocol buffers' text format, in which Triton's configurations are written.


class Word(NamedTuple):
    """A name of an enumeration, which stands without quotes."""

    text: str


def dumps(message: Mapping[str, Any], indent: str = "") -> str:
    """A message as text: mappings are messages, lists repeated fields, lists of plain values short ones in brackets."""
    lines = list[str]()
    for key, value in message.items():
        for one in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(one, Mapping):
                inside = dumps(one, indent + "  ")
                lines.append(f"{indent}{key} {{\n{inside}{indent}}}\n" if inside else f"{indent}{key} {{ }}\n")
            elif isinstance(one, list):
                lines.append(f"{indent}{key}: [{', '.join(map(_value, one))}]\n")
            else:
                lines.append(f"{indent}{key}: {_value(one)}\n")
    return "".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Word):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """A string of which nothing can end the quotes: what is no printable ASCII is escaped byte by byte."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode()) + '"'  # noqa: PLR2004 - ASCII


# A model that is exported: loaded and checked, and what its card and its file say as `model.json` has it.

FILE = "model.onnx"
TEXTS = "object"
"""dtype of a tensor of texts."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Subject:
    """A model file with its card.

    Args:
        path: the .onnx file.
        name: what servers call it; None: made from the card's name, or the file's.
        card: path of the card, where it is not beside the model.

    Attributes:
        name: of letters, digits, `.`, `_` and `-`: it is part of paths.
        inputs: what callers send, each as `model.json` has it.
        outputs: likewise, with the shape of a row, without the axis that counts the inputs.
        size: so many rows go into one run of the file; None: any number.

    Raises:
        PolicyError: `name` is no name.
        ModelError: the model cannot be loaded, its card is another model's, or it has what no server could take.
    """

    def __init__(self, path: str | Path, name: str | None = None, *, card: str | Path | None = None) -> None:
        path = Path(path)
        if path.suffix != ".onnx":
            raise PolicyError(f"{path} is no .onnx file: only ONNX models are exported")
        self.model = OnnxModel(path, card=card)
        self.name = server_name(self.model.name) if name is None else name
        if not _NAME.fullmatch(self.name):
            raise PolicyError(f"{clean(self.name, 80)!r} is no name for a server: letters, digits, `.`, `_` and `-`, 63 at most")
        if self.model.card.state:
            raise ModelError(f"{path}: it keeps a state between calls, and a server has calls of everybody: it is not exported")
        session = self.model.load()
        if text := batch_axis_problem(self.model.card, self.model.inputs):
            raise ModelError(f"{path}: {text}")
        for node in session.get_outputs():
            if not node.type.startswith("tensor(") and self.model.output in (None, node.name):
                raise ModelError(f"{path}: its output {node.name} is a {node.type}, no tensor: export it without ZipMap")
        nodes = ([*map(spec_of, session.get_inputs())], [*map(spec_of, session.get_outputs())])
        self.plan = Inputs(self.model.card, *nodes)
        if not self.plan.given:
            raise ModelError(f"{path}: no input is left for callers to give")
        self.inputs = [_input(spec, self.model) for spec in self.plan.given]
        read = [spec for spec in self.plan.outputs if self.model.output in (None, spec.name)]
        self.outputs = [_tensor(spec.name, spec.dtype, row_shape(spec, self.plan.batch)) for spec in read]
        self.raw_outputs = read
        self.size = self.plan.size
        try:
            text_of(self.about()).encode()
        except UnicodeEncodeError as e:
            raise ModelError(f"{path}: its card has a text that is no Unicode, but half of a surrogate pair: correct it") from e

    @property
    def pictures(self) -> bool:
        """Whether callers may send files of pictures, as its card says what becomes of them."""
        return any(one["picture"] is not None for one in self.inputs)

    @property
    def prepared(self) -> bool:
        """Whether its card has preprocessing."""
        return any(one["factor"] is not None or one["axes"] is not None or one["flat"] is not None for one in self.inputs) or any(
            one["dtype"] != one["tensor"]["dtype"] for one in self.inputs
        )

    @property
    def plain(self) -> bool:
        """Whether the file can be run without a program around it: its first axes count the inputs, and no input is constant."""
        return not self.plan.constants and self.plan.batch == 0 and all(one["tensor"]["batch"] == 0 for one in self.inputs)

    @property
    def rowless(self) -> bool:
        """Whether a tensor has one number for each input, and no axis but the one that counts them."""
        return any(not one["shape"] for one in (*self.inputs, *self.outputs))

    def about(self, file: str = FILE, **more: Any) -> dict[str, Any]:
        """What `model.json` says. `file`: of the model, from the folder of `model.json`."""
        card = self.model.card
        constants = {name: {"value": a.tolist(), "dtype": a.dtype.name} for name, a in self.plan.constants.items()}
        return {
            "name": self.model.name, "description": card.description, "sha256": self.model.fingerprint, "file": file,
            "kind": self.model.kind, "labels": None if self.model.labels is None else list(self.model.labels),
            "inputs": self.inputs, "outputs": self.outputs, "constants": constants, "size": self.size, "batch": self.plan.batch,
            **more,
        }  # fmt: skip

    def client(self) -> dict[str, Any]:
        """The card for a client of the server: what comes out. What goes in is the server's matter."""
        found = {"name": self.name, "description": self.model.card.description, "labels": self.about()["labels"]}
        output = {"name": self.model.output, "kind": self.model.kind, "score": self.model.card.score}
        return {k: v for k, v in {**found, "output": {k: v for k, v in output.items() if v is not None}}.items() if v}

    def files(self, folder: Path, file: str = FILE) -> list[tuple[Path, Path]]:
        """The model and the files of its weights, and where each goes in a folder, so that it finds them."""
        path, to = self.model.path, folder / file
        found = [(path, to)]
        for data in external_data(path):
            there = to.parent / data.relative_to(path.parent)
            if there == to:
                raise ModelError(f"{path}: the file of its weights is called {data.name}, as the model would be: rename it")
            found.append((data, there))
        return found

    def check_copied(self, copied: Path) -> None:
        """Compares a copy with the model that was loaded.

        Raises:
            ModelError: the file was changed meanwhile.
        """
        if sha256_of(copied) != self.model.fingerprint:
            raise ModelError(f"{self.model.path} was changed while it was exported: export it again")


def subjects(paths: Sequence[str | Path], names: Sequence[str] = ()) -> list[Subject]:
    """Several models for one server. `names`: of the first ones; the others' are made.

    Raises:
        PolicyError: two would have the same name.
    """
    if len(names) > len(paths):
        raise PolicyError(f"there are {len(names)} names for {len(paths)} models")
    found = [Subject(path, names[i] if i < len(names) else None) for i, path in enumerate(paths)]
    there = [one.name.lower() for one in found]
    if twice := sorted({name for name in there if there.count(name) > 1}):
        raise PolicyError(f"two models would be called {twice[0]}: give each a name of its own, with --name for each model")
    return found


def server_name(text: str) -> str:
    """A name for paths, from any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:63].rstrip("-._") or "model"


def text_of(data: Any) -> str:
    """JSON for people."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _tensor(name: str, dtype: str, shape: Sequence[int]) -> dict[str, Any]:
    if dtype != TEXTS and dtype not in NAMES:
        raise ModelError(f"{name} is {dtype}, which the Open Inference Protocol has no type for")
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def _input(spec: TensorSpec, model: OnnxModel) -> dict[str, Any]:
    told = model.card.of(spec.name)
    prepare = None if told is None else told.preprocess
    batch = None if not spec.shape else 0 if told is None else told.batch
    tensor = {"dtype": spec.dtype, "shape": list(spec.shape), "batch": batch}
    if prepare is None:
        made = _tensor(spec.name, spec.dtype, row_shape(spec, batch))
        return {**made, "tensor": tensor, "axes": None, "flat": None, "factor": None, "offset": None, "picture": None}
    made = _tensor(spec.name, prepare.accepts.dtype, prepare.accepts.shape[1:])
    return {**made, "tensor": tensor, **_preprocess(prepare, row_shape(prepare.gives, batch))}


def _preprocess(prepare: Preprocess, row: tuple[int, ...]) -> dict[str, Any]:
    axes = None if prepare.axes is None else list(prepare.axes)
    return {
        "axes": axes, "flat": list(row) if axes is None else None, "factor": _numbers(prepare.factor),
        "offset": _numbers(prepare.offset), "picture": None if prepare.picture is None else _picture(prepare.picture),
    }  # fmt: skip


def _numbers(array: np.ndarray[Any, Any] | None) -> Any:
    return None if array is None else array.tolist()


def _picture(picture: Picture) -> dict[str, Any]:
    to = picture.resize
    return {
        "height": picture.height, "width": picture.width, "channels": picture.channels,
        "resize": list(to) if isinstance(to, tuple) else to, "crop": None if picture.crop is None else list(picture.crop),
        "filter": picture.filter,
    }  # fmt: skip


# YAML of what servers read.


def yaml_of(*documents: Any, head: str = "") -> str:
    """Documents as YAML, in the order of their keys; `head`: lines of comment.

    Raises:
        RuntimeMissing: PyYAML is not installed.
    """
    try:
        yaml = import_late("yaml")
    except ImportError as e:
        raise RuntimeMissing("PyYAML is not installed: pip install 'edgeroute[yaml]'") from e
    # what stands twice is written twice: anchors are hard to read
    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    text: str = yaml.dump_all(documents, Dumper=dumper, sort_keys=False, allow_unicode=True, width=120)
    return head + text
