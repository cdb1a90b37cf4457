"""Downloads of files: resumed, bounded by the stated size, and verified before they are used."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from edgeroute.catalog.entry import Entry, FileEntry
from edgeroute.catalog.source import Source
from edgeroute.catalog.store import ENTRY, Store, replace, stored, synced
from edgeroute.errors import CatalogAway, CatalogError, StoreError
from edgeroute.system.process import json_dumps

FILES = "files"
"""Folder of a catalog with the models' files: `files/NAME/VERSION/...`."""
SPARE = 1 << 20
"""Bytes that are left free on the disk."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ATTEMPTS = 3


class Progress(NamedTuple):
    """How far a download is."""

    name: str
    version: str
    path: str
    """The file that is being read."""
    done: int
    """Bytes of all files that are here."""
    total: int
    """Bytes of all files."""


def download(source: Source, store: Store, entry: Entry, progress: Callable[[Progress], object] | None = None) -> Path:
    """Gets a version into the store, if it is not there. -> its folder.

    What was downloaded in part is kept for the next time, unless the disk is full: then it is removed.

    Args:
        source: where the catalog is.
        store: of this device, which this process may write.
        entry: of the version, from a catalog that was verified.
        progress: called after each block; what it raises ends the download.

    Raises:
        CatalogAway: the catalog cannot be reached, or broke off.
        CatalogError: a file is not what the entry says.
        StoreError: the disk is full, or cannot be written.
    """
    folder = store.version(entry.name, entry.version)
    damaged = {file.path for file in entry.files}
    if (folder / ENTRY).exists():
        if store.entry(entry.name, entry.version) != entry:
            raise CatalogError(f"{source.where} has another {entry.name} {entry.version} than is here: a version never changes")
        damaged = set(store.problems(entry))
        if not damaged:
            return folder
    wanted = [file for file in entry.files if file.path in damaged]
    with stored(store.folder):
        parts = store.folder / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        _check_room(store.folder, parts, entry, wanted)
    done = entry.size - sum(file.size for file in wanted)
    for file in wanted:

        def told(here: int, file: FileEntry = file, done: int = done) -> None:
            if progress is not None:
                progress(Progress(entry.name, entry.version, file.path, done + here, entry.size))

        _fetch(source, entry, file, parts / file.sha256, told)
        done += file.size
    with stored(folder):
        _put(entry, wanted, folder, parts)
    return folder


def _check_room(folder: Path, parts: Path, entry: Entry, wanted: Sequence[FileEntry]) -> None:
    here = sum((parts / file.sha256).stat().st_size for file in wanted if (parts / file.sha256).exists())
    needed, free = sum(file.size for file in wanted) - here + SPARE, shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"{folder}: {entry.name} {entry.version} needs {needed:,} bytes, and {free:,} are free: edgeroute models remove NAME"
            " --version VERSION frees those of an old version"
        )


def _fetch(source: Source, entry: Entry, file: FileEntry, part: Path, told: Callable[[int], object]) -> None:
    """Gets one file whole and verified to `part`."""
    left = ATTEMPTS
    while left:
        left -= 1
        with _on_disk(entry, part), suppress(*([CatalogAway] if left else [])):
            if _fetched(source, entry, file, part, told):
                return
    raise CatalogAway(f"{source.where}: {file.path} of {entry.name} {entry.version} breaks off: try again, it goes on from there")


@contextmanager
def _on_disk(entry: Entry, part: Path) -> Iterator[None]:
    """Raises StoreError for what the disk does not take; what is there of a file is removed from a full one."""
    try:
        yield
    except StoreError:
        raise
    except OSError as e:
        if e.errno in FULL:
            for file in entry.files:
                _drop(part.with_name(file.sha256))
            raise StoreError(f"{part.parent}: the disk is full; what was downloaded of {entry.name} is removed") from e
        raise StoreError(f"{part} cannot be written: {e.strerror or e}") from e


def _fetched(source: Source, entry: Entry, file: FileEntry, part: Path, told: Callable[[int], object]) -> bool:
    """Goes on with one file. Returns whether it is whole, and verified.

    Raises:
        CatalogError: it is whole, and another one.
    """
    tag = part.with_name(part.name + ".tag")
    begin = part.stat().st_size if part.exists() else 0
    if begin < file.size or not begin:
        known = tag.read_text(encoding="utf-8") if tag.exists() and begin else ""
        with source.open(f"{FILES}/{entry.name}/{entry.version}/{file.path}", begin, known) as piece:
            if piece.tag != known:
                tag.write_text(piece.tag, encoding="utf-8")
            with part.open("r+b" if part.exists() else "wb") as out:
                out.seek(piece.begin)
                out.truncate()
                _copied(piece.blocks, out, piece.begin, file, told)
                out.flush()
                os.fsync(out.fileno())
    size = part.stat().st_size
    if size < file.size:
        return False
    if size > file.size or _hash(part) != file.sha256:
        _drop(part)
        raise CatalogError(
            f"{file.path} of {entry.name} {entry.version} is not what was signed: {source.where} sends another size or hash"
        )
    told(file.size)
    return True


def _copied(blocks: Iterable[bytes], out: IO[bytes], at: int, file: FileEntry, told: Callable[[int], object]) -> None:
    for block in blocks:
        at += len(block)
        if at > file.size:
            out.write(block[: len(block) - (at - file.size) + 1])  # one byte more than it may have: it is refused, not resumed
            return
        out.write(block)
        told(at)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _drop(part: Path) -> None:
    for path in (part, part.with_name(part.name + ".tag")):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _put(entry: Entry, wanted: Sequence[FileEntry], folder: Path, parts: Path) -> None:
    """Moves the files to their folder, which has another name until it is whole; damaged ones are replaced one by one."""
    whole = len(wanted) < len(entry.files) or (folder / ENTRY).exists()
    new = folder if whole else folder.parent / f".{folder.name}.new"
    if not whole:
        shutil.rmtree(new, ignore_errors=True)
    left = Counter(file.sha256 for file in wanted)
    for file in wanted:
        to, part = new / file.path, parts / file.sha256
        to.parent.mkdir(parents=True, exist_ok=True)
        left[file.sha256] -= 1
        if left[file.sha256]:  # another one has the same content
            shutil.copyfile(part, part.with_name(part.name + ".copy"))
            part.with_name(part.name + ".copy").replace(to)
        else:
            part.replace(to)
            _drop(part)
    if whole:
        return
    replace(new / ENTRY, json_dumps(entry.json()))
    shutil.rmtree(folder, ignore_errors=True)  # what is left of one that was removed
    new.replace(folder)
    synced(folder.parent)
