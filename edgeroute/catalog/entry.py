"""Entries of a catalog: one version of one model each, as data, read from JSON that is not trusted."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from edgeroute.errors import CatalogError

# Names that a catalog may have for models, versions and files: safe on every file system that edgeroute runs on.

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,63}")
LONGEST = 200
"""Characters of a file's path: Windows takes 260 with the folder."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')


def checked_name(name: object) -> str:
    """A model's name.

    Raises:
        CatalogError: it is none.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name) or _RESERVED.fullmatch(name):
        raise CatalogError(f"{_said(name)} is no name of a model: it has small letters, digits, - and _, and 64 at most")
    return name


def checked_version(version: object) -> str:
    """A version of a model.

    Raises:
        CatalogError: it is none.
    """
    fits = isinstance(version, str) and VERSION.fullmatch(version)
    if not fits or not isinstance(version, str) or version.endswith(".") or _RESERVED.fullmatch(version):
        raise CatalogError(f"{_said(version)} is no version: it has letters, digits, and . _ + -, and 64 at most")
    return version


def checked_path(path: object) -> str:
    """The path of a file inside the folder of a version, with / between its parts.

    Raises:
        CatalogError: it leads out of the folder, or is no path on some system.
    """
    if not isinstance(path, str) or not path or len(path) > LONGEST:
        raise CatalogError(f"{_said(path)} is no path of a file: it has 1 to {LONGEST} characters")
    if path.casefold() == "entry.json":
        raise CatalogError(f"{path} is the name of the file that the device has beside them")
    for part in path.split("/"):
        if part in {"", ".", ".."}:
            raise CatalogError(f"{_said(path)}: a path in a catalog is relative, and stays in the folder of its version")
        if _FORBIDDEN.search(part) or part[-1] in ". " or _RESERVED.fullmatch(part) or not part.isprintable():
            raise CatalogError(f"{_said(path)}: {_said(part)} is no name of a file on every system")
    return path


def check_distinct(paths: Iterable[str]) -> None:
    """Checks that files differ in more than capitals or the form of accents, and that none is a folder of another.

    Raises:
        CatalogError: two would be one file on some system.
    """
    files, folders = dict[str, str](), dict[str, str]()
    for path in paths:
        same = _folded(path)
        if same in files:
            raise CatalogError(f"{_said(files[same])} and {_said(path)} are one file where capitals do not count")
        files[same] = path
        parts = same.split("/")
        folders |= {"/".join(parts[:i]): path for i in range(1, len(parts))}
    for folder, path in folders.items():
        if folder in files:
            raise CatalogError(f"{_said(files[folder])} is a file, and a folder of {_said(path)}")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _said(value: object) -> str:
    return ascii(value)[:80]


FORMAT = 1
MOST_ENTRIES, MOST_FILES = 10_000, 1_000
"""Entries of a catalog, and files of an entry."""
MOST_BYTES = 1 << 40
"""Size of a file."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUMBERS = re.compile(r"\d{1,9}(\.\d{1,9}){0,5}")


class FileEntry(NamedTuple):
    """One file of a version."""

    path: str
    """Inside the folder of the version, with / between its parts."""
    size: int
    """Bytes."""
    sha256: str


class Entry(NamedTuple):
    """One version of a model."""

    name: str
    version: str
    model: str
    """Path of the model's file, or folder; its suffix picks the runtime. The card is beside it, as everywhere."""
    files: tuple[FileEntry, ...]
    """All files of the version, with the model's."""
    certificate: str = ""
    """Path of the certificate among the files; empty: it has none."""
    canaries: str = ""
    """Path of the canary inputs with their answers among the files, likewise."""
    requires: str = ""
    """Lowest version of edgeroute that can run it; empty: any."""
    notes: str = ""
    """For people."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def runtime(self) -> str:
        """The suffix of the model's file."""
        return "." + self.model.rpartition("/")[2].partition(".")[2]

    def json(self) -> dict[str, Any]:
        """The entry in JSON types, as a catalog has it."""
        data = {**self._asdict(), "files": [file._asdict() for file in self.files]}
        return {key: value for key, value in data.items() if value}


def read_entry(data: Any) -> Entry:
    """An entry from its JSON.

    Raises:
        CatalogError: it is none.
    """
    if not isinstance(data, Mapping):
        raise CatalogError("an entry of the catalog is no object")
    name, version = checked_name(data.get("name")), checked_version(data.get("version"))
    try:
        return _read(data, name, version)
    except CatalogError as e:
        raise CatalogError(f"{name} {version}: {e}") from e


def _read(data: Mapping[str, Any], name: str, version: str) -> Entry:
    listed = data.get("files")
    if not isinstance(listed, list) or not 0 < len(listed) <= MOST_FILES:
        raise CatalogError(f"files is a list of 1 to {MOST_FILES} files")
    files = tuple(map(_file, listed))
    check_distinct(file.path for file in files)
    paths = {file.path for file in files}
    model = checked_path(data.get("model"))
    if model not in paths and not any(path.startswith(f"{model}/") for path in paths):
        raise CatalogError(f"its model, {model}, is none of its files")
    more = {key: _text(data, key) for key in ("certificate", "canaries", "requires", "notes")}
    for key in ("certificate", "canaries"):
        if more[key] and more[key] not in paths:
            raise CatalogError(f"its {key}, {more[key]!a}, is none of its files")
    if more["requires"] and not _NUMBERS.fullmatch(more["requires"]):
        raise CatalogError(f'requires is a version of edgeroute, as in "0.1.0", not {more["requires"]!a}')
    return Entry(name, version, model, files, **more)


def _file(data: Any) -> FileEntry:
    if not isinstance(data, Mapping):
        raise CatalogError("one of its files is no object")
    path, size, sha256 = checked_path(data.get("path")), data.get("size"), data.get("sha256")
    if type(size) is not int or not 0 <= size <= MOST_BYTES:
        raise CatalogError(f"{path}: size is a number of bytes, not {ascii(size)[:40]}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise CatalogError(f"{path}: sha256 has 64 hexadecimal digits in small letters")
    return FileEntry(path, size, sha256)


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key, "")
    if not isinstance(value, str) or len(value) > 10_000:  # noqa: PLR2004 - a text for people
        raise CatalogError(f"{key} is a text")
    return value


def entries(text: bytes) -> tuple[Entry, ...]:
    """The entries of a catalog, in the order of their publication.

    Raises:
        CatalogError: it is no catalog, or two entries have one name and version.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CatalogError(f"the catalog is not JSON: {e}") from e
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("models"), list):
        found = data.get("format") if isinstance(data, dict) else None
        raise CatalogError(f"the catalog has the format {ascii(found)[:20]}, and this edgeroute reads {FORMAT}: update edgeroute")
    if len(data["models"]) > MOST_ENTRIES:
        raise CatalogError(f"the catalog has more than {MOST_ENTRIES:,} entries")
    found = tuple(map(read_entry, data["models"]))
    seen = set[tuple[str, str]]()
    for entry in found:
        key = entry.name, entry.version.casefold()
        if key in seen:
            raise CatalogError(f"{entry.name} {entry.version} is there twice")
        seen.add(key)
    return found


def dumped(found: tuple[Entry, ...]) -> bytes:
    """The text of a catalog with these entries."""
    return json.dumps({"format": FORMAT, "models": [entry.json() for entry in found]}, indent=1).encode()


def own_version() -> str:
    """The version of this edgeroute."""
    return str(sys.modules["edgeroute"].__version__)  # the package, which has been imported before this module


def fits(requires: str, version: str) -> bool:
    """Whether this version of edgeroute is the required one, or a later one; development versions count as the release."""
    wanted, own = (tuple(map(int, match[0].split("."))) if (match := _NUMBERS.match(v)) else () for v in (requires, version))
    length = max(len(wanted), len(own))
    return own + (0,) * (length - len(own)) >= wanted + (0,) * (length - len(wanted))
