"""Reader of inputs from files and stdin: arrays, images, archives, tables and lines of JSON, with labels and recorded outputs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, NamedTuple, TextIO
from unicodedata import normalize

import numpy as np

from edgeroute.confidence.output_forms_labels_and_comparison import Labels
from edgeroute.edge.preprocessing import load_pillow
from edgeroute.errors import BadInput, EdgerouteError
from edgeroute.system.untrusted_files import load_arrays, open_file, parse_json, read_bytes
from edgeroute.tools.bounded_lines_and_rows import LONGEST, lines_of
from edgeroute.tools.cli.labelled_table_reader import (
    CLASSES,
    SEPARATORS,
    Columns,
    Failed,
    Item,
    Note,
    array_of,
    label_of,
    pixels_in,
    read_table,
)
from edgeroute.tools.data_classes_of_records import only_class

IMAGES = (".png", ".jpg", ".jpeg")
TABLES = (".csv", ".tsv", ".parquet")
SUFFIXES = (".npy", ".npz", ".jsonl", *IMAGES)
MEDIA = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
STDIN = Path("-")
# Names of the arrays of inputs, labels and groups in an .npz file; the first that exists counts.
INPUTS, LABELS, GROUPS = ("images", "X", "x"), ("labels", "y"), ("groups",)
# Keys of a view that mean the content of an image's file; any other means its pixels.
CONTENT = ("jpeg", "jpg", "png", "bytes", "file")
# First bytes of piped data -> its suffix; anything else is CSV, or lines of JSON.
MAGIC = {b"\x93NUMPY": ".npy", b"PK": ".npz", b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg"}


def expand_folders(paths: Iterable[Path]) -> list[Path]:
    """Return the paths with each folder replaced by its input files, recursively; by its tables only if it has no other inputs.

    Hidden files and folders are left out. A folder without any input stays, for `read_inputs` to reject. Raises `BadInput` if a
    folder cannot be read.
    """
    expanded = []
    for path in paths:
        in_folder = _walk(path, set()) if path.is_dir() else []
        chosen = [p for p in in_folder if p.suffix.lower() in SUFFIXES] or [p for p in in_folder if p.suffix.lower() in TABLES]
        expanded += chosen or [path]
    return expanded


def _walk(folder: Path, seen: set[str]) -> list[Path]:
    """Return all files in a folder, recursively, sorted; hidden ones, and folders that were seen, as by a link, are left out.

    seen: real paths of the folders so far; this one is added.

    Raises:
        BadInput: a folder cannot be read.
    """
    if (real := os.path.realpath(folder)) in seen:
        return []
    seen.add(real)
    found = list[Path]()
    try:
        inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as e:
        raise BadInput(f"{folder} cannot be read: {e.strerror or e}") from e
    for path in inside:
        found += _walk(path, seen) if path.is_dir() else [path]
    return found


def folder_labels(paths: Iterable[Path], classes: Sequence[Any] | None, note: Note) -> dict[Path, Any]:
    """Return file -> label for inputs in folders by class, FOLDER/LABEL/FILE. Needs two classes, and nothing else in FOLDER.

    Other folders give no labels; `note` says why where some of their files are in such a form.

    Args:
        paths: folders, or files, which have no label.
        classes: names of the model's classes; None: unknown. Folders of which none is a class or its index give no labels.
        note: called with messages about the folders.
    """
    labels = dict[Path, Any]()
    for folder in paths:
        inside = expand_folders([folder]) if folder.is_dir() else []
        names = sorted({normalize("NFC", p.parent.name) for p in inside})
        by_class = all(p.parent.parent == folder and p.suffix.lower() in {".npy", *IMAGES} for p in inside)
        if not by_class or len(names) < 2:  # noqa: PLR2004 - of one class nothing is learned
            odd = [p for p in inside if p.parent.parent != folder]
            if 0 < len(odd) < len(inside):
                note(f"{folder}: no labels, since not all is in FOLDER/LABEL/FILE, such as {odd[0]}")
            continue
        known = Labels(classes, "the edge model")
        meant = {name: _class_of(name, known) for name in names}
        strange = [
            name for name in names if known.labels is not None and meant[name] not in known.labels and not _index(name, known)
        ]
        if len(strange) == len(names):
            note(f"{folder}: its folders ({', '.join(names[:3])}...) are none of the model's classes, and so no labels")
            continue
        others = f"; {strange[0]!r} is none of the model's classes" if strange else ""
        note(f"{folder}: labels are the names of its {len(names)} folders{others}")
        labels |= {p: meant[normalize("NFC", p.parent.name)] for p in inside}
    return labels


def _class_of(name: str, known: Labels) -> Any:
    """Return the class that a folder's name means: the equal one, else the only one with the same letters and digits.

    Without one, the name, or the number that it writes.
    """
    label, of = known.same(label_of(name)), known.labels or ()
    alike = [each for each in of if _words(each) and _words(each) == _words(name)]
    return alike[0] if label not in of and len(alike) == 1 else label


def _words(name: Any) -> str:
    """Return the letters and digits of a name."""
    return "".join(c for c in str(name).casefold() if c.isalnum())


def _index(name: str, known: Labels) -> bool:
    """Return True if a name is the index of a class."""
    return name.isdecimal() and int(name) < len(known.labels or ())


class Recorded(NamedTuple):
    """Recorded outputs of the models for n inputs that the file does not contain."""

    edge: Any  # [n, classes], outputs of the edge model
    cloud: Any | None  # [n, classes], outputs of the cloud model; None: not recorded
    labels: list[int | str] | None
    groups: list[int | str] | None = None


def read_inputs(
    path: Path,
    keys: Sequence[str] = (),
    note: Note = lambda _: None,
    label: str | None = None,
    fitted: Columns = Columns(),  # noqa: B008 - a tuple
    failed: Failed | None = None,
) -> Iterable[Item]:
    """Read the inputs of one file or of stdin (`-`), each with its name, and with label, group and data class if it has them.

    A .npy file or an image is one input; an .npz file has one in each row of `images` or `X`, or of its first array. Each row of
    a table is one, and read as it is taken. Each line of a .jsonl file is one; of a mapping with `prompt` or `messages` these are
    the input, with its `label` and `group`. Stdin has one of these formats, or lines of JSON: a list of numbers becomes an array.
    The data class is a line's `data_class`, also in its metadata, a column or an array.

    Args:
        path: path of the file.
        keys: keys that the policy's views take of an input. Then each input is a mapping: of an .npz file a row of each of its
            arrays; of an image its pixels, or the content of the file where a key means that.
        note: called with a message about unused arrays.
        label: column of a table that has the labels; see `read_table`.
        fitted: columns of a table that the model was fitted on.
        failed: called with the error of a row of a table, or of a line of JSON, and the others are read; None: it is raised.

    Raises:
        BadInput: the file cannot be read, or lacks keys that the views take.
        RuntimeMissing: it is an image, and Pillow is not installed.
    """
    suffix = _suffix(path)
    if path == STDIN and not suffix:
        return _lines(path, (), failed)
    if suffix in TABLES and (path == STDIN or path.is_file()):
        piped = _piped() if path == STDIN else None
        return read_table(path, keys, label, note, fitted, piped, **({"failed": failed} if failed else {}))
    if path.is_dir() or suffix not in SUFFIXES:
        if not path.exists():
            raise BadInput(f"{path}: there is no such file")
        raise BadInput(f"{path}: expected {', '.join((*SUFFIXES, *TABLES))}, or a folder with such files")
    if suffix == ".jsonl":
        return _lines(path, keys, failed)
    with _reading(path):
        if suffix in IMAGES:
            return [Item(str(path), _image(path, keys) if keys else _pixels(path))]
        with _open(path) as file:  # numpy does not close a path that it opened itself after every error
            data = load_arrays(file)
            if not isinstance(data, np.ndarray):
                return _rows(path, data, keys, note)
            if keys:
                raise BadInput(
                    f"{path} holds one array, and the policy's views take {_listed(keys)} of an input: pass an .npz file with "
                    "arrays of these names, an image, or lines of JSON"
                )
            return [Item(str(path), data)]


def input_at(path: Path, index: int) -> Any:
    """Return input `index` of a file; raise `BadInput` if the file cannot be read, or has fewer."""
    items = [*read_inputs(path)]
    if index >= len(items):
        raise BadInput(f"{path} has {len(items)} inputs: there is no input {index}")
    return items[index].x


def recorded_outputs(path: Path, note: Note = lambda _: None) -> Recorded | None:
    """Read recorded outputs: `edge_logits` of an .npz file, perhaps with `cloud_logits`, labels and groups.

    Returns None for other files, and for an .npz file without `edge_logits` or with inputs by their names (images, X, x).

    note: called with a message about unused arrays.

    Raises:
        BadInput: the file cannot be read, or its arrays differ in length.
    """
    with _archive(path) as archive:
        if archive is None or "edge_logits" not in archive.files or any(name in archive.files for name in INPUTS):
            return None
        used = ["edge_logits", "cloud_logits", _first_present(LABELS, archive.files) or "labels", *GROUPS]
        _note_unused(path, [name for name in archive.files if name not in used], "outputs are in 'edge_logits'", note)
        edge = _array(archive, "edge_logits")
        cloud = _array(archive, "cloud_logits") if "cloud_logits" in archive.files else None
        labels, groups = _column(archive, LABELS), _column(archive, GROUPS)
    for name, column in {"cloud_logits": cloud, "labels": labels, "groups": groups}.items():
        if column is not None and (not edge.ndim or len(column) != len(edge)):
            raise BadInput(f"{path} cannot be read: it has {len(edge) if edge.ndim else 1} edge_logits and {len(column)} {name}")
    return Recorded(edge, cloud, labels, groups)


def _piped() -> bytes:
    """Return all of stdin, read once; empty if there is none."""
    return b"" if sys.stdin is None else _read_all(sys.stdin)


@lru_cache(1)
def _read_all(stream: TextIO) -> bytes:
    """Read a stream to its end; later calls return the same bytes."""
    return stream.buffer.read()


def _suffix(path: Path) -> str:
    """Return a file's suffix in lower case; of stdin that of its format by its first bytes or line, "" for lines of JSON.

    Reads all of stdin, once.
    """
    if path != STDIN:
        return path.suffix.lower()
    return next((suffix for magic, suffix in MAGIC.items() if _piped().startswith(magic)), ".csv" if _is_csv() else "")


def _is_csv() -> bool:
    """Return True if stdin looks like CSV: its first line has a separator, and is neither JSON nor begins like it."""
    first = _piped()[:LONGEST].lstrip().partition(b"\n")[0]
    if first[:1] in (b"{", b"[") or not any(mark.encode() in first for mark in SEPARATORS):
        return False
    try:
        parse_json(first)
    except ValueError:
        return True
    return False


def _open(path: Path) -> IO[bytes]:
    """Open a file, or stdin's bytes."""
    return io.BytesIO(_piped()) if path == STDIN else open_file(path)


def _lines(path: Path, keys: Sequence[str], failed: Failed | None) -> list[Item]:
    """Parse each line that is not blank of stdin, or of a .jsonl file, as an input, named by path and line number.

    Lines of a .jsonl file with `prompt` or `messages` are prompts, with label and group, unless views take `keys`. Each may
    name its data class.

    Raises:
        BadInput: a line is no JSON or has an empty prompt, and there is no `failed` to be called with that; or there are none.
    """
    items, where = list[Item](), ""
    for where, line in numbered_lines(path):
        try:
            items.append(_line(where, line, stdin=path == STDIN, plain=bool(keys)))
        except BadInput as e:  # noqa: PERF203 - one line must not lose the others
            if failed is None:
                raise
            failed(e)
    if not where and path == STDIN:
        raise BadInput("-: there is nothing on stdin: expected lines of JSON, CSV, or a .npy, .npz, .png or .jpg file")
    if not where:
        raise BadInput(f"{path} has no lines")
    return items


def _line(where: str, line: bytes, *, stdin: bool, plain: bool) -> Item:
    """Parse a line of JSON as an input; raise `BadInput` if it is none, or names no one data class.

    plain: True reads no prompt in it.
    """
    try:
        data = parse_json(line)
        plain = stdin or plain or not isinstance(data, dict) or {"prompt", "messages"}.isdisjoint(data)
        x = _value(data) if plain else None
    except ValueError as e:
        other = f", or a {', '.join(SUFFIXES)} file" if stdin else ""
        raise BadInput(f"{where}: expected an input as JSON{other}: {_why(e)}") from e
    own = only_class(data, where) if isinstance(data, dict) else None
    if plain:
        return Item(where, x, data_class=own)
    return Item(where, prompt_of(data, where), data.get("label"), data.get("group"), own)


def numbered_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the lines of a file, or of stdin, that are not blank, each with its place: path and number.

    Raises:
        BadInput: it cannot be read, or a line is too long.
    """
    with _reading(path), _open(path) as file:
        for number, line in enumerate(lines_of(file, path), 1):
            if line.strip():
                yield f"{path}:{number}", line


def prompt_of(line: dict[str, Any], where: str) -> Any:
    """Return the input of a line of JSON: its `messages`, else its `prompt`, a text, neither of them empty.

    where: file and line, for the message.

    Raises:
        BadInput: it has neither.
    """
    messages, prompt = line.get("messages"), line.get("prompt")
    if isinstance(messages, list) and messages:
        return messages
    if isinstance(prompt, str) and prompt:
        return prompt
    raise BadInput(f'{where}: expected "prompt", a text, or "messages", a list')


def _value(value: Any) -> Any:
    """Convert lists of numbers in parsed JSON to arrays, also within mappings; lists that hold mappings, and all else, stay.

    Arrays are float32 where there is a fraction.
    """
    if isinstance(value, dict):
        return {name: _value(part) for name, part in value.items()}
    if not isinstance(value, list) or any(isinstance(part, dict) for part in value):
        return value
    return array_of(value)


def by_name(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """Read those arrays of an .npz file that have one of these names; empty for a file of another kind.

    Raises:
        BadInput: the file cannot be read.
    """
    with _archive(path) as archive:
        return {name: _array(archive, name) for name in names if archive is not None and name in archive.files}


@contextmanager
def _archive(path: Path) -> Iterator[Any]:
    """Provide the arrays of an .npz file for a `with` block, whose errors are raised as `BadInput`; None for any other file."""
    if _suffix(path) != ".npz" or path.is_dir():
        yield None
        return
    with _reading(path), _open(path) as file:
        data = load_arrays(file)
        with nullcontext() if isinstance(data, np.ndarray) else data as archive:
            yield archive


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Raise every error of the `with` block as `BadInput` about the file, but `EdgerouteError`s as they are.

    The content of a file decides which errors numpy, zipfile and Pillow raise.
    """
    try:
        yield
    except EdgerouteError:
        raise
    except FileNotFoundError as e:
        raise BadInput(f"{path}: there is no such file") from e
    except Exception as e:
        raise BadInput(f"{path} cannot be read: {_why(e)}") from e


def _why(error: Exception) -> str:
    """Return an error's message on one line, with its type in front if that is needed to understand it."""
    text = " ".join(str(error.args[0] if isinstance(error, TokenError) else error).split())
    clear = text and isinstance(error, OSError | EOFError | ValueError | SyntaxError)
    return text if clear else f"{type(error).__name__}: {text}"


def _rows(path: Path, archive: Any, keys: Sequence[str], note: Note) -> list[Item]:
    """Return the rows of an open .npz file as inputs, with labels, groups and data classes; `note` is told of unused arrays.

    An input is a row of one array; with `keys`, a dict of rows of all arrays of that length.

    Raises:
        ValueError: inputs are missing, or they, labels, groups and data classes differ in number.
    """
    with archive:
        labels, groups, classes = (_column(archive, names, keys) for names in (LABELS, GROUPS, CLASSES))
        others = [name for name in archive.files if name not in (*LABELS, *GROUPS, *CLASSES) or name in keys]
        if not others:
            raise ValueError("it holds no array of inputs")
        if missing := [key for key in keys if key not in others]:
            listed = _listed(archive.files)
            raise ValueError(f"the policy's views take {_listed(missing)} of an input, and its arrays are {listed}")
        input_names = [*keys] or [_first_present(INPUTS, others) or others[0]]
        arrays = {name: _array(archive, name) for name in (others if keys else input_names)}
    if any(not arrays[name].ndim for name in input_names):
        raise ValueError("its array is one number, not rows")
    count = len(arrays[input_names[0]])
    if uneven := [name for name in input_names if len(arrays[name]) != count]:
        raise ValueError(f"it holds {count} rows of {input_names[0]!r} and {len(arrays[uneven[0]])} of {uneven[0]!r}")
    for what, column in (("labels", labels), ("groups", groups), ("data classes", classes)):
        if column is not None and len(column) != count:
            raise ValueError(f"it holds {count} inputs and {len(column)} {what}")
    rows = {name: array for name, array in arrays.items() if array.ndim and len(array) == count}
    used = [*rows, _first_present([name for name in LABELS if name not in keys], archive.files), *GROUPS, *CLASSES]
    _note_unused(path, [name for name in archive.files if name not in used], f"inputs are in {_listed(input_names)}", note)
    inputs: list[Any] = [_row(row) for row in rows[input_names[0]]]
    if keys:
        inputs = [{name: _row(array[i]) for name, array in rows.items()} for i in range(count)]
    no_values: list[Any] = [None] * count
    own = [str(name) or None for name in classes] if classes else no_values
    columns = zip(inputs, labels or no_values, groups or no_values, own, strict=True)
    return [Item(f"{path}[{i}]", *row) for i, row in enumerate(columns)]


def _row(row: Any) -> Any:
    """Return a row; bytes and text as Python's own."""
    return row.item() if isinstance(row, np.bytes_ | np.str_) else row


def _note_unused(path: Path, unused: Sequence[str], instead: str, note: Note) -> None:
    """Call `note` with a message about arrays that are not used, if there are any.

    instead: text on the arrays that are used.
    """
    if unused:
        arrays = "the array" if len(unused) == 1 else "the arrays"
        note(f"{path}: {arrays} {_listed(unused)} {'is' if len(unused) == 1 else 'are'} not used: {instead}")


def _listed(names: Sequence[str]) -> str:
    """Return names as text."""
    return ", ".join(map(repr, names))


def _first_present(names: Sequence[str], existing: Sequence[str]) -> str | None:
    """Return the first of these names that exists; None if none does."""
    return next((name for name in names if name in existing), None)


def _array(archive: Any, name: str) -> Any:
    """Return an array of an archive; raise `ValueError` if it is no array."""
    array = archive[name]
    if not isinstance(array, np.ndarray):  # numpy returns bytes for a member that is no .npy file
        raise ValueError(f"its {name!r} is no array")  # noqa: TRY004 - an error of the file, not of the program
    return array


def _column(archive: Any, names: Sequence[str], keys: Sequence[str] = ()) -> list[Any] | None:
    """Return the first array with one of these names, flattened; None if there is none, or a key of the views has its name."""
    name = _first_present([name for name in names if name not in keys], archive.files)
    return None if name is None else _array(archive, name).ravel().tolist()


def _image(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return under each key an image's pixels, or the file's content where the key means that (jpeg, png, bytes, file).

    Raises:
        BadInput: a key names another format than the file's.
        RuntimeMissing: pixels are needed, and Pillow is not installed.
    """
    suffix = _suffix(path)
    if wrong := [key for key in keys if f".{key}" in IMAGES and MEDIA[f".{key}"] != MEDIA[suffix]]:
        raise BadInput(f"{path} is a {MEDIA[suffix]} file, and the policy's views take {_listed(wrong)} of an input")
    content = _piped() if path == STDIN else read_bytes(path)
    pixels = None if set(keys) <= set(CONTENT) else _pixels(path)
    return {key: content if key in CONTENT else pixels for key in keys}


def _pixels(path: Path) -> Any:
    """Decode an image to [height, width] for grey, [height, width, channels] for colour, as `pixels_in`.

    Raises:
        RuntimeMissing: Pillow is not installed.
        ValueError: the image is too large.
    """
    load_pillow()
    with _open(path) as file:
        return pixels_in(file)
