"""The folder of an export: written beside its place, and put there once it is whole."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeroute.errors import PolicyError, StoreError

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
