"""Downloads of a version's files: resumed, bounded by the stated size, and verified before they are used."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from edgeroute.catalog.catalog_entry import Entry, FileEntry
from edgeroute.catalog.catalog_source import Source
from edgeroute.catalog.model_folder import ENTRY, Store, flush_folder, replace_durably, translate_os_errors
from edgeroute.errors import CatalogAway, CatalogError, StoreError
from edgeroute.system.process import file_sha256, json_dumps

FILES = "files"
"""Folder of a catalog with the models' files: `files/NAME/VERSION/...`."""
SPARE = 1 << 20
"""Bytes that are left free on the disk."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Errors of a full disk."""
ATTEMPTS = 3
"""Attempts for one file, each resuming the one before."""


class Progress(NamedTuple):
    """Progress of a download."""

    name: str
    version: str
    path: str
    """File that is being downloaded."""
    done: int
    """Bytes of all files that are on the device."""
    total: int
    """Bytes of all files."""


def download(source: Source, store: Store, entry: Entry, progress: Callable[[Progress], object] | None = None) -> Path:
    """Download a version into the store, if it is not there or damaged, and return its folder.

    A partial download stays for the next time, unless the disk is full: then it is deleted.

    Args:
        source: the catalog.
        store: models of this device; this process has the turn to download.
        entry: entry of the version, from a verified catalog.
        progress: called after each block; an exception from it ends the download.

    Raises:
        CatalogAway: the catalog cannot be reached, or broke off.
        CatalogError: a file differs from its entry.
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
    with translate_os_errors(store.folder):
        parts = store.folder / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        _check_room(store.folder, parts, entry, wanted)
    done = entry.size - sum(file.size for file in wanted)
    for file in wanted:

        def report(here: int, file: FileEntry = file, done: int = done) -> None:
            if progress is not None:
                progress(Progress(entry.name, entry.version, file.path, done + here, entry.size))

        _fetch(source, entry, file, parts / file.sha256, report)
        done += file.size
    with translate_os_errors(folder):
        _install(entry, wanted, folder, parts)
    return folder


def _check_room(folder: Path, parts: Path, entry: Entry, wanted: Sequence[FileEntry]) -> None:
    """Raise StoreError if the disk has no room for the wanted files. Parts already downloaded need none."""
    here = sum((parts / file.sha256).stat().st_size for file in wanted if (parts / file.sha256).exists())
    needed, free = sum(file.size for file in wanted) - here + SPARE, shutil.disk_usage(folder).free
    if free < needed:
        raise StoreError(
            f"{folder}: {entry.name} {entry.version} needs {needed:,} bytes, and {free:,} are free: edgeroute models remove NAME"
            " --version VERSION frees those of an old version"
        )


def _fetch(source: Source, entry: Entry, file: FileEntry, part: Path, report: Callable[[int], object]) -> None:
    """Download one file to `part`, whole and verified, with up to `ATTEMPTS` resumed attempts.

    Raise CatalogAway if the last breaks off.
    """
    left = ATTEMPTS
    while left:
        left -= 1
        with _on_disk(entry, part), suppress(*([CatalogAway] if left else [])):
            if _resume(source, entry, file, part, report):
                return
    raise CatalogAway(f"{source.where}: {file.path} of {entry.name} {entry.version} breaks off: try again, it goes on from there")


@contextmanager
def _on_disk(entry: Entry, part: Path) -> Iterator[None]:
    """Translate OSError to StoreError; on a full disk delete the partial files of this version."""
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


def _resume(source: Source, entry: Entry, file: FileEntry, part: Path, report: Callable[[int], object]) -> bool:
    """Download one file, from where it broke off. Return True if it is whole and verified, False if it broke off again.

    Its tag is stored beside the part, for the next time.

    Raises:
        CatalogError: the whole file has another size or hash; it is deleted.
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
                _copy_blocks(piece.blocks, out, piece.begin, file, report)
                out.flush()
                os.fsync(out.fileno())
    size = part.stat().st_size
    if size < file.size:
        return False
    if size > file.size or file_sha256(part) != file.sha256:
        _drop(part)
        raise CatalogError(
            f"{file.path} of {entry.name} {entry.version} is not what was signed: {source.where} sends another size or hash"
        )
    report(file.size)
    return True


def _copy_blocks(blocks: Iterable[bytes], out: IO[bytes], end: int, file: FileEntry, report: Callable[[int], object]) -> None:
    """Write blocks to a file, at most one byte more than its size, and report the progress."""
    for block in blocks:
        end += len(block)
        if end > file.size:
            out.write(block[: len(block) - (end - file.size) + 1])  # one byte more than it may have: it is refused, not resumed
            return
        out.write(block)
        report(end)


def _drop(part: Path) -> None:
    """Delete a partial file and its tag; errors of the disk are suppressed."""
    for path in (part, part.with_name(part.name + ".tag")):
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _install(entry: Entry, wanted: Sequence[FileEntry], folder: Path, parts: Path) -> None:
    """Move the downloaded files to the version's folder.

    A new version's folder has a temporary name until it is whole; damaged files of an existing one are replaced one by one. A
    file that occurs twice is copied; its part is deleted with the last.
    """
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
    replace_durably(new / ENTRY, json_dumps(entry.json()))
    shutil.rmtree(folder, ignore_errors=True)  # what is left of one that was removed
    new.replace(folder)
    flush_folder(folder.parent)
