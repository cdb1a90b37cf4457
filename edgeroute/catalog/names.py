"""Names that a catalog may have for models, versions and files: safe on every file system that edgeroute runs on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from edgeroute.errors import CatalogError

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
