"""Folder of a device's models (`Store`), with the name of each one's active version (`Pointer`), and `download` into it.

STORE/NAME.active                 {"version": ..., "previous": ...}: replaced atomically
STORE/versions/NAME/VERSION/      the files, and entry.json, which is written last
STORE/parts/SHA256                files that are being downloaded
STORE/metadata/                   TUF's metadata, by which an older catalog is refused
STORE/catalog.json                the list of models that was verified last
STORE/lock, STORE/active.lock     locks: to download, and to change the active versions
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

from edgeroute.catalog.catalog_entry import Entry, FileEntry, checked_name, checked_version, is_name, read_entry, version_order
from edgeroute.catalog.catalog_source_and_verification import Source
from edgeroute.edge.model_card import sha256_of
from edgeroute.edge.runtimes_variants_ensemble import ACTIVE
from edgeroute.errors import CatalogAway, CatalogError, ModelError, ModelMissing, StoreError
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.system.files_and_lock_waits import file_sha256
from edgeroute.system.fork_safety import ForkSafe, per_process
from edgeroute.system.json_codec_and_short_repr import json_dumps
from edgeroute.system.untrusted_files import named_errors, read_json

ENTRY = "entry.json"
TURN_S = 10.0  # maximum time that a change of the active version waits for another change, seconds


class _Lock(ForkSafe):
    """Lock that one thread of all processes has at a time."""

    _thread = per_process(threading.Lock)

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._lock = folder, ProcessLock(folder / name)

    @contextmanager
    def held(self, wait_s: float) -> Iterator[None]:
        """Hold the lock of threads and processes within the `with` block, waiting up to `wait_s` seconds for each of both.

        Raises:
            StoreError: another thread or process has the lock, or the folder cannot be written.
        """
        thread = self._thread
        if not thread.acquire(timeout=wait_s):
            raise StoreError(f"{self._folder}: another thread is updating these models")
        try:
            with translate_os_errors(self._folder):
                if not self._lock.take(wait_s):
                    raise StoreError(f"{self._folder}: another process is updating these models")
            yield
        finally:
            self._lock.leave()
            thread.release()


class Pointer(NamedTuple):
    """Which version of a model is active, and the state of its update: the content of `NAME.active`."""

    version: str
    previous: str = ""  # version in use before, for a rollback; empty: there is none
    pinned: bool = False  # True if updates do not change the active version
    refused: tuple[tuple[str, str], ...] = ()  # versions that updates do not try again, each with the reason
    trial: int = 0  # number of process starts with the version on trial; 0: it is confirmed
    tried: str = ""  # version that is being tried before it is activated; empty: none


class Store:
    """Folder of a device's models: entries of versions, the active one of each, checks by hash, deletion; two locks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._downloads, self._pointers = _Lock(folder, "lock"), _Lock(folder, "active.lock")

    def downloading(self) -> AbstractContextManager[None]:
        """Return a context manager that holds the lock to download, of all processes and threads. It does not wait for it.

        Raises:
            StoreError: another process or thread has the lock, or the folder cannot be written.
        """
        return self._downloads.held(0.0)

    def pointing(self) -> AbstractContextManager[None]:
        """Return a context manager that holds the lock to change active versions, waiting up to 10 s.

        A download does not hold it.

        Raises:
            StoreError: another process or thread has the lock for 10 seconds, or the folder cannot be written.
        """
        return self._pointers.held(TURN_S)

    def version(self, name: str, version: str) -> Path:
        """Return the path of a version's folder, which may not exist. Raises CatalogError for an invalid name or version."""
        return self.folder / "versions" / checked_name(name) / checked_version(version)

    def pointer_file(self, name: str) -> Path:
        """Return the path of the file that names the active version: the model's path for a router.

        Raises CatalogError for an invalid name.
        """
        return self.folder / f"{checked_name(name)}{ACTIVE}"

    def entry(self, name: str, version: str) -> Entry:
        """Return the entry of a version on this device.

        Raises:
            ModelMissing: the version is not on the device.
            CatalogError: its entry cannot be read.
        """
        path = self.version(name, version) / ENTRY
        missing = ModelMissing(f"{name} {version} is not in {self.folder}: edgeroute models pull {name}")
        with named_errors(path, missing, CatalogError, "cannot be read: %s"):
            return read_entry(read_json(path))

    def versions(self, name: str) -> list[str]:
        """Return the complete versions of a model on this device, the oldest number first. [] if the folder cannot be read."""
        with suppress(OSError):
            entries = self.version(name, "0").parent.glob(f"*/{ENTRY}")
            return sorted((path.parent.name for path in entries if not path.parent.name.startswith(".")), key=version_order)
        return []

    def names(self) -> list[str]:
        """Return the models that have a folder of versions or an active version here, sorted; without files of other programs."""
        names = {path.name.removesuffix(ACTIVE) for path in self.folder.glob(f"*{ACTIVE}")}
        names |= {path.name for path in (self.folder / "versions").glob("*") if path.is_dir()}
        return sorted(filter(is_name, names))

    def pointer(self, name: str) -> Pointer | None:
        """Return which version is active; None: none. Raises as `pointer`."""
        return pointer(self.pointer_file(name))

    def point(self, name: str, new: Pointer) -> None:
        """Replace the file that names the active version, atomically.

        Raises:
            StoreError: the file cannot be written; the old one stays.
        """
        data = {key: value for key, value in new._asdict().items() if value}
        with translate_os_errors(self.folder):
            replace_durably(self.pointer_file(name), json.dumps({**data, "refused": dict(new.refused)}).encode())

    def problems(self, entry: Entry) -> dict[str, str]:
        """Read the files of a version, and check size and hash. Return path -> problem of each file that is missing or damaged.

        Links count as missing.
        """
        folder, problems = self.version(entry.name, entry.version), dict[str, str]()
        for file in entry.files:
            path = folder / file.path
            try:
                if path.is_symlink() or not path.is_file():
                    problems[file.path] = "is missing"
                elif path.stat().st_size != file.size or sha256_of(path) != file.sha256:
                    problems[file.path] = "is not what was published: its hash differs"
            except (OSError, ModelError) as e:
                problems[file.path] = f"cannot be read: {e}"
        return problems

    def remove(self, name: str, version: str) -> None:
        """Delete a version: its entry first, so that a partly deleted folder is no version. A missing one is ignored.

        Raises StoreError if the entry cannot be deleted; errors of the other files are suppressed.
        """
        folder = self.version(name, version)
        with translate_os_errors(folder):
            (folder / ENTRY).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def pointer(path: Path) -> Pointer | None:
    """Return the content of a file that names the active version; None if there is no file.

    Raises:
        CatalogError: the file is damaged.
        StoreError: the file cannot be read.
    """
    try:
        data = read_json(path)
        previous, refused = data.get("previous", ""), data.get("refused", {})
        return Pointer(
            checked_version(data["version"]), checked_version(previous) if previous else "", bool(data.get("pinned")),
            tuple((str(version), str(why)) for version, why in refused.items()),
            int(data.get("trial", 0)), str(data.get("tried", "")),
        )  # fmt: skip
    except FileNotFoundError:
        return None
    except OSError as e:
        raise StoreError(f"{path} cannot be read: {e.strerror}") from e
    except (CatalogError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise CatalogError(f"{path} does not name a version: edgeroute models activate {path.stem} --version VERSION") from e


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Translate an OSError in the `with` block to StoreError.

    `ModelMissing`, an OSError as well, passes unchanged.

    Raises:
        StoreError: the disk is full, or cannot be written.
    """
    try:
        yield
    except (StoreError, ModelMissing):
        raise
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror or e}; the active models stay as they are") from e


def replace_durably(path: Path, data: bytes) -> None:
    """Replace a file atomically, flushed to the disk (fsync): a power cut leaves the old content or the new.

    Writes `path.new` beside it first, a new file, whatever was there: others may write to the folder. It is deleted after a
    failure. Only one caller may write to a path at a time: by a lock, or as its name is unique. Creates no folder.

    Raises:
        OSError: it cannot be written; the old file stays.
    """
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)
        with new.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk (fsync), where the system can."""
    with suppress(OSError):  # Windows opens no folder
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


# Downloads of a version's files: resumed, bounded by the stated size, and verified before they are used.

FILES = "files"  # folder of a catalog with the models' files: `files/NAME/VERSION/...`
SPARE = 1 << 20  # bytes that are left free on the disk
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # errors of a full disk
ATTEMPTS = 3  # attempts for one file, each resuming the one before


class Progress(NamedTuple):
    """Progress of a download.

    Attributes:
        path: file that is being downloaded.
        done: bytes of all files that are on the device.
        total: bytes of all files.
    """

    name: str
    version: str
    path: str
    done: int
    total: int


def download(source: Source, store: Store, entry: Entry, progress: Callable[[Progress], object] | None = None) -> Path:
    """Download a version's files into the store as far as they are missing or damaged, verify them, and return its folder.

    A file that breaks off is resumed twice without a pause. A partial download stays for the next time, unless the disk is full:
    then it is deleted. Activates nothing.

    Args:
        source: the catalog.
        store: models of this device; this process has the turn to download.
        entry: entry of the version, from a verified catalog.
        progress: called after each block; an exception from it ends the download.

    Raises:
        CatalogAway: the catalog cannot be reached, or broke off.
        CatalogError: a file differs from its entry; or this version is here already, with an entry that differs or is damaged.
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
        here = sum((parts / file.sha256).stat().st_size for file in wanted if (parts / file.sha256).exists())
        needed, free = sum(file.size for file in wanted) - here + SPARE, shutil.disk_usage(store.folder).free
        if free < needed:
            raise StoreError(
                f"{store.folder}: {entry.name} {entry.version} needs {needed:,} bytes, and {free:,} are free: edgeroute models"
                " remove NAME --version VERSION frees those of an old version"
            )
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


def _fetch(source: Source, entry: Entry, file: FileEntry, part: Path, report: Callable[[int], object]) -> None:
    """Download one file to `part`, whole and verified, with up to `ATTEMPTS` resumed attempts without pauses.

    Raise CatalogAway if the last breaks off, CatalogError for a wrong file, StoreError for the disk.
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
        raise CatalogError(f"{file.path} of {entry.name} {entry.version}: {source.where} sends other bytes than were signed")
    report(file.size)
    return True


def _copy_blocks(blocks: Iterable[bytes], out: IO[bytes], end: int, file: FileEntry, report: Callable[[int], object]) -> None:
    """Write blocks to a file, and report the progress after each; ends with the first byte beyond its size, which is written.

    So the caller sees that the file is too long.
    """
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
    """Move the downloaded files to the version's folder; entry.json, which makes it a version, is written last.

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
