"""Reads inputs from files, and from stdin."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, NamedTuple

import numpy as np

from edgeroute.errors import BadInput, EdgerouteError, RuntimeMissing

IMAGES = (".png", ".jpg", ".jpeg")
SUFFIXES = (".npy", ".npz", *IMAGES)
STDIN = Path("-")
MAGIC = {b"\x93NUMPY": ".npy", b"PK": ".npz", b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}
"""Beginning of a file -> its suffix, for what is piped; anything else is lines of JSON."""


class Item(NamedTuple):
    """One input."""

    name: str
    x: Any
    label: int | str | None = None
    """The correct answer, if the file contains it."""


def files(paths: Iterable[Path]) -> list[Path]:
    """Expands folders recursively to their files. A folder without any stays, for `read` to reject."""
    found = []
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES) if path.is_dir() else []
        found += inside or [path]
    return found


class Recorded(NamedTuple):
    """Recorded outputs of the models for n inputs that the file does not contain."""

    edge: Any
    """[n, classes], the edge model's outputs."""
    cloud: Any | None
    """[n, classes], the cloud model's; None: not recorded."""
    labels: list[int | str] | None


def read(path: Path) -> list[Item]:
    """Reads inputs: a .npy file or an image is one; each row of an .npz file's `images`, or else of its first array, is one.

    `-` is stdin, with one of these formats, or JSON: each line is an input, where a list of numbers is an array.

    Raises:
        BadInput: the file cannot be read.
        RuntimeMissing: it is an image, and Pillow is not installed.
    """
    suffix = _suffix(path)
    if path == STDIN and not suffix:
        return _json_lines(_piped())
    if path.is_dir() or suffix not in SUFFIXES:
        if not path.exists():
            raise BadInput(f"{path}: there is no such file")
        raise BadInput(f"{path}: expected {', '.join(SUFFIXES)}, or a folder with such files")
    with _reading(path):
        if suffix in IMAGES:
            return [Item(str(path), _pixels(path))]
        with _opened(path) as file:  # numpy does not close a path that it opened itself after every error
            found = np.load(file, allow_pickle=False)
            return [Item(str(path), found)] if isinstance(found, np.ndarray) else _rows(path, found)


def recorded(path: Path) -> Recorded | None:
    """Reads outputs from an .npz file that has `edge_logits` and no `images`; None: no such file.

    Raises:
        BadInput: the file cannot be read.
    """
    if _suffix(path) != ".npz" or path.is_dir():
        return None
    with _reading(path), _opened(path) as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            return None
        with archive:
            if "edge_logits" not in archive.files or "images" in archive.files:
                return None
            edge = _array(archive, "edge_logits")
            cloud = _array(archive, "cloud_logits") if "cloud_logits" in archive.files else None
            labels = _labels(archive)
    for name, there in {"cloud_logits": cloud, "labels": labels}.items():
        if there is not None and (not edge.ndim or len(there) != len(edge)):
            raise BadInput(f"{path} cannot be read: it holds {len(edge) if edge.ndim else 1} edge_logits and {len(there)} {name}")
    return Recorded(edge, cloud, labels)


@cache
def _piped() -> bytes:
    """All of stdin."""
    return sys.stdin.buffer.read() if sys.stdin is not None else b""


def _suffix(path: Path) -> str:
    """Of stdin the one of its format; empty: JSON."""
    if path != STDIN:
        return path.suffix.lower()
    return next((suffix for magic, suffix in MAGIC.items() if _piped().startswith(magic)), "")


def _opened(path: Path) -> IO[bytes]:
    return io.BytesIO(_piped()) if path == STDIN else path.open("rb")


def _json_lines(text: bytes) -> list[Item]:
    items = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                items.append(Item(f"-:{number}", _value(json.loads(line))))
            except (ValueError, RecursionError) as e:
                raise BadInput(f"-:{number}: expected an input as JSON, or a {', '.join(SUFFIXES)} file: {_why(e)}") from e
    if not items:
        raise BadInput("-: there is nothing on stdin: expected a line of JSON for each input, or a .npy, .npz, .png or .jpg file")
    return items


def _value(value: Any) -> Any:
    """Lists become arrays, float32 where there is a fraction; the rest stays as it is."""
    if isinstance(value, dict):
        return {name: _value(part) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    found = np.asarray(value)
    return found.astype(np.float32) if found.dtype == np.float64 else found


def by_name(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """The arrays of an .npz file that have these names; none of a file of another kind.

    Raises:
        BadInput: the file cannot be read.
    """
    if _suffix(path) != ".npz" or path.is_dir():
        return {}
    with _reading(path), _opened(path) as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            return {}
        with archive:
            return {name: _array(archive, name) for name in names if name in archive.files}


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Converts the errors of reading a file to BadInput: the content decides what numpy, zipfile and Pillow raise."""
    try:
        yield
    except EdgerouteError:
        raise
    except FileNotFoundError as e:
        raise BadInput(f"{path}: there is no such file") from e
    except Exception as e:
        raise BadInput(f"{path} cannot be read: {_why(e)}") from e


def _why(error: Exception) -> str:
    """The message on one line, of a tokenizer without its position; with the type where the message alone says little."""
    text = " ".join(str(error.args[0] if isinstance(error, TokenError) else error).split())
    clear = text and isinstance(error, OSError | EOFError | ValueError | SyntaxError)
    return text if clear else f"{type(error).__name__}: {text}"


def _rows(path: Path, archive: Any) -> list[Item]:
    with archive:
        names = [name for name in archive.files if name != "labels"]
        if not names:
            raise ValueError("it holds no array of inputs")
        rows = _array(archive, "images" if "images" in names else names[0])
        labels = _labels(archive)
    if not rows.ndim:
        raise ValueError("its array is one number, not rows")
    if labels is None:
        labels = [None] * len(rows)
    elif len(labels) != len(rows):
        raise ValueError(f"it holds {len(rows)} inputs and {len(labels)} labels")
    return [Item(f"{path}[{i}]", row, label) for i, (row, label) in enumerate(zip(rows, labels, strict=True))]


def _array(archive: Any, name: str) -> Any:
    found = archive[name]
    if not isinstance(found, np.ndarray):  # numpy gives bytes for what is no .npy file
        raise ValueError(f"its {name!r} is no array")  # noqa: TRY004 - of the file, and no mistake in the program
    return found


def _labels(archive: Any) -> list[Any] | None:
    return _array(archive, "labels").ravel().tolist() if "labels" in archive.files else None


def _pixels(path: Path) -> Any:
    """Pixels, uint8 [height, width] for grey, [height, width, channels] for colour."""
    try:
        from PIL import Image
    except ImportError as e:
        raise RuntimeMissing(f"{path}: images are read with Pillow, which is not installed: pip install pillow") from e
    try:
        with _opened(path) as file, Image.open(file) as image:
            plain = {"1": "L", "P": "RGB", "PA": "RGB", "RGBA": "RGB", "LA": "L", "CMYK": "RGB", "YCbCr": "RGB"}
            return np.asarray(image.convert(plain.get(image.mode, image.mode)))
    except Image.DecompressionBombError as e:
        raise ValueError(e) from e
