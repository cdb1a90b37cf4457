"""Entries of a catalog (`Entry`, `FileEntry`), one a version of a model: checks of untrusted JSON, names, versions and paths."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from edgeroute.errors import CatalogError
from edgeroute.system.untrusted_files import parse_json

# Names of models, versions and files that are safe on every file system that edgeroute runs on.

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,63}")
LONGEST = 200  # maximum characters of a file's path: Windows takes 260 with the folder
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')


def checked_name(name: object) -> str:
    """Return the name if it is a valid model name: 1 to 64 small letters, digits, - and _, not reserved by Windows.

    Raises:
        CatalogError: it is not.
    """
    if not isinstance(name, str) or not is_name(name):
        raise CatalogError(f"{_quote(name)} is not a model's name: use up to 64 small letters, digits, - and _")
    return name


def is_name(name: str) -> bool:
    """Return True for a valid model name, as of `checked_name`."""
    return bool(NAME.fullmatch(name)) and not _RESERVED.fullmatch(name)


def checked_version(version: object) -> str:
    """Return the version if it is valid: 1 to 64 letters, digits, and . _ + -, no dot at its end, not reserved by Windows.

    Raises:
        CatalogError: it is not.
    """
    if not isinstance(version, str) or not VERSION.fullmatch(version) or version[-1] == "." or _RESERVED.fullmatch(version):
        raise CatalogError(f"{_quote(version)} is not a version: use up to 64 letters, digits, and . _ + -")
    return version


def checked_path(path: object) -> str:
    """Return the path if it is a valid relative path inside a version's folder, with / between its parts.

    At most `LONGEST` characters; `entry.json` is reserved.

    Raises:
        CatalogError: it leads out of the folder, or is not valid on some system.
    """
    if not isinstance(path, str) or not path or len(path) > LONGEST:
        raise CatalogError(f"{_quote(path)} is not a file's path: use 1 to {LONGEST} characters")
    if path.casefold() == "entry.json":
        raise CatalogError(f"{path} is reserved: a device stores a file of its own under this name")
    for part in path.split("/"):
        if part in {"", ".", ".."}:
            raise CatalogError(f"{_quote(path)}: a path in a catalog is relative, and stays in the folder of its version")
        if _FORBIDDEN.search(part) or part[-1] in ". " or _RESERVED.fullmatch(part) or not part.isprintable():
            raise CatalogError(f"{_quote(path)}: {_quote(part)} is not a valid file name on every system")
    return path


def check_distinct(paths: Iterable[str]) -> None:
    """Check that no two paths differ only in capitals or the form of accents, and that none is a folder of another.

    Raises:
        CatalogError: two would be one file on some system.
    """
    files, folders = dict[str, str](), dict[str, str]()
    for path in paths:
        # The form in which paths of one file are equal.
        same = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        if same in files:
            raise CatalogError(f"{_quote(files[same])} and {_quote(path)} are the same file on systems that ignore capitals")
        files[same] = path
        parts = same.split("/")
        folders |= {"/".join(parts[:i]): path for i in range(1, len(parts))}
    for folder, path in folders.items():
        if folder in files:
            raise CatalogError(f"{_quote(files[folder])} is a file, and a folder of {_quote(path)}")


def _quote(value: object) -> str:
    """Return an untrusted value for a message: ASCII, truncated."""
    return ascii(value)[:80]


FORMAT = 1
MOST_ENTRIES, MOST_FILES = 10_000, 1_000  # maximum entries of a catalog, and files of an entry
MOST_BYTES = 1 << 40  # maximum size of a file
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Text within a version by which a release is announced.
_EARLY = re.compile(r"[._+-]?(a|alpha|b|beta|c|rc|pre|preview|dev)[._-]?", re.IGNORECASE)
_NUMBERS = re.compile(r"\d{1,9}(\.\d{1,9}){0,5}")


class FileEntry(NamedTuple):
    """File of a version."""

    path: str  # path inside the folder of the version, with / between its parts
    size: int  # size, bytes
    sha256: str  # SHA-256 of the content, hex


class Entry(NamedTuple):
    """Version of a model.

    Attributes:
        model: path of the model's file, or folder; its suffix selects the runtime. The card is beside it, as everywhere.
        files: all files of the version, the model's among them.
        certificate: path of the certificate among the files; empty: it has none.
        canaries: path of the canary inputs with their answers among the files; empty: it has none.
        requires: lowest version of edgeroute that can run the model; empty: any.
        notes: text for people.
    """

    name: str
    version: str
    model: str
    files: tuple[FileEntry, ...]
    certificate: str = ""
    canaries: str = ""
    requires: str = ""
    notes: str = ""

    @property
    def size(self) -> int:
        """Size of all files, bytes."""
        return sum(file.size for file in self.files)

    @property
    def runtime(self) -> str:
        """Suffix of the model's file or folder, which selects the runtime; empty without one."""
        return PurePosixPath(self.model).suffix

    def json(self) -> dict[str, Any]:
        """Return the entry in JSON types, without empty fields."""
        data = {**self._asdict(), "files": [file._asdict() for file in self.files]}
        return {key: value for key, value in data.items() if value}


def read_entry(data: Any) -> Entry:
    """Return the entry in JSON types as an Entry, after checking every field that an Entry has. Other keys are ignored.

    Raises:
        CatalogError: a field is missing or not valid. The message begins with name and version, once these are checked.
    """
    if not isinstance(data, Mapping):
        raise CatalogError("an entry of the catalog is not a JSON object")
    name, version = checked_name(data.get("name")), checked_version(data.get("version"))
    try:
        return _read(data, name, version)
    except CatalogError as e:
        raise CatalogError(f"{name} {version}: {e}") from e


def _read(data: Mapping[str, Any], name: str, version: str) -> Entry:
    """Return an entry whose name and version are checked already, after checking the other fields; other keys are ignored.

    Raise CatalogError unless it has 1 to `MOST_FILES` files with distinct paths, among them the model, as a file or a folder, and
    the certificate and the canaries, if they are named, and unless `requires` is empty or a version, and `notes` a text.
    """
    listed = data.get("files")
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_FILES:
        raise CatalogError(f"files has to be a list of 1 to {MOST_FILES} files")
    files = tuple(map(_file, listed))
    check_distinct(file.path for file in files)
    paths = {file.path for file in files}
    model = checked_path(data.get("model"))
    if model not in paths and not any(path.startswith(f"{model}/") for path in paths):
        raise CatalogError(f"its model, {model}, is not among its files")
    more = {key: _text(data, key) for key in ("certificate", "canaries", "requires", "notes")}
    for key in ("certificate", "canaries"):
        if more[key] and more[key] not in paths:
            raise CatalogError(f"its {key}, {more[key]!a}, is not among its files")
    if more["requires"] and not _NUMBERS.fullmatch(more["requires"]):
        raise CatalogError(f'requires is a version of edgeroute, as in "0.1.0", not {more["requires"]!a}')
    return Entry(name, version, model, files, **more)


def _file(data: Any) -> FileEntry:
    """Return a file of an entry, after checking path, size and SHA-256; other keys are ignored.

    Raise CatalogError for one that is missing or not valid: see `checked_path`; 0 to `MOST_BYTES`; 64 small hexadecimal digits.
    """
    if not isinstance(data, Mapping):
        raise CatalogError("one of its files is not a JSON object")
    path, size, sha256 = checked_path(data.get("path")), data.get("size"), data.get("sha256")
    if type(size) is not int or not 0 <= size <= MOST_BYTES:
        raise CatalogError(f"{path}: size is a number of bytes, not {ascii(size)[:40]}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise CatalogError(f"{path}: sha256 has 64 hexadecimal digits in small letters")
    return FileEntry(path, size, sha256)


def _text(data: Mapping[str, Any], key: str) -> str:
    """Return a text field of an entry; empty if missing. Raise CatalogError for another type, or more than 10,000 characters."""
    value = data.get(key, "")
    if not isinstance(value, str) or len(value) > 10_000:  # noqa: PLR2004 - a text for people
        raise CatalogError(f"{key} has to be a text")
    return value


def entries(text: bytes) -> tuple[Entry, ...]:
    """Parse the text of a catalog, check every entry, and return them in order of publication.

    Raises:
        CatalogError: it is not JSON, has another format or more than `MOST_ENTRIES`, one is not valid, or two have the same name
            and version but for capitals.
    """
    try:
        data = parse_json(text)
    except ValueError as e:
        raise CatalogError(f"the catalog is not JSON: {e}") from e
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("models"), list):
        version = data.get("format") if isinstance(data, dict) else None
        raise CatalogError(f"the catalog has format {ascii(version)[:20]}, and this edgeroute reads {FORMAT}: update edgeroute")
    if len(data["models"]) > MOST_ENTRIES:
        raise CatalogError(f"the catalog has more than {MOST_ENTRIES:,} entries")
    listed = tuple(map(read_entry, data["models"]))
    seen = set[tuple[str, str]]()
    for entry in listed:
        key = entry.name, entry.version.casefold()
        if key in seen:
            raise CatalogError(f"{entry.name} {entry.version} is listed twice")
        seen.add(key)
    return listed


def own_version() -> str:
    """Return the version of this edgeroute."""
    return str(sys.modules["edgeroute"].__version__)  # the package, which has been imported before this module


def version_order(version: str) -> tuple[list[Any], str]:
    """Return a key to sort versions by: numbers by value, so that 1.10 follows 1.9; and 1.0rc1 or 1.0-beta comes before 1.0."""
    texts, numbers = re.split(r"\d+", version), [*map(int, re.findall(r"\d+", version))]
    ranks = [(0 if _EARLY.fullmatch(text) else 2 if text else 1, text) for text in texts]
    return [part for pair in zip_longest(ranks, numbers, fillvalue=-1) for part in pair], version


def fits(requires: str, version: str) -> bool:
    """Return True if `version` of edgeroute is the required one or later; development versions count as the release.

    True if no version is required; else False for a version that does not begin with a number.
    """
    wanted, present = (tuple(map(int, match[0].split("."))) if (match := _NUMBERS.match(v)) else () for v in (requires, version))
    length = max(len(wanted), len(present))
    return present + (0,) * (length - len(present)) >= wanted + (0,) * (length - len(wanted))
