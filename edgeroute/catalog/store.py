"""The models of a device: versions in folders of their own, and for each model a small file that names the active one.

STORE/NAME.active                 {"version": ..., "previous": ...}: replaced as a whole, so that it is the old or the new one
STORE/versions/NAME/VERSION/      the files, and entry.json, which is there once all of them are
STORE/parts/SHA256                files that are being downloaded
STORE/metadata/                   TUF's, by which an older catalog is refused
STORE/catalog.json                the list that was verified last
STORE/lock, STORE/active.lock     one downloads at a time, and one changes what is active
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.catalog.entry import Entry, checked_name, checked_version, read_entry
from edgeroute.edge.card import sha256_of
from edgeroute.edge.runtimes import ACTIVE
from edgeroute.errors import CatalogError, ModelError, ModelMissing, StoreError
from edgeroute.stores.journal import ProcessLock
from edgeroute.system.forks import ForkSafe, per_process

SUFFIX = ACTIVE
ENTRY = "entry.json"
TURN_S = 10.0
"""How long a change of what is active waits for another one, seconds."""


class _Turn(ForkSafe):
    """The turn of one thread of all processes."""

    _thread = per_process(threading.Lock)

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._lock = folder, ProcessLock(folder / name)

    @contextmanager
    def taken(self, wait_s: float) -> Iterator[None]:
        thread = self._thread
        if not thread.acquire(timeout=wait_s):
            raise StoreError(f"{self._folder}: another thread is updating these models")
        try:
            with stored(self._folder):
                if not self._lock.take(wait_s):
                    raise StoreError(f"{self._folder}: another process is updating these models")
            yield
        finally:
            self._lock.leave()
            thread.release()


class Pointer(NamedTuple):
    """Which version of a model is active."""

    version: str
    previous: str = ""
    """The one before, for a rollback; empty: there is none."""
    pinned: bool = False
    """Whether updates leave it alone."""
    refused: tuple[tuple[str, str], ...] = ()
    """Versions that updates do not try again, each with the reason."""
    trial: int = 0
    """How often the process was started with it on trial; 0: it is confirmed."""
    tried: str = ""
    """A version that is being tried before it is activated."""


class Store:
    """The models of a device.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._downloads, self._pointers = _Turn(folder, "lock"), _Turn(folder, "active.lock")

    def downloading(self) -> AbstractContextManager[None]:
        """The turn to read the catalog and download, of all processes and threads.

        Raises:
            StoreError: another one has it, or the folder cannot be written.
        """
        return self._downloads.taken(0.0)

    def pointing(self) -> AbstractContextManager[None]:
        """The turn to change which versions are active, likewise; a rollback does not wait for a download.

        Raises:
            StoreError: another one has it for 10 seconds, or the folder cannot be written.
        """
        return self._pointers.taken(TURN_S)

    def version(self, name: str, version: str) -> Path:
        """The folder of a version, whether it is there or not."""
        return self.folder / "versions" / checked_name(name) / checked_version(version)

    def pointer_file(self, name: str) -> Path:
        """The file that names the active version: what a router takes as the model's path."""
        return self.folder / f"{checked_name(name)}{SUFFIX}"

    def entry(self, name: str, version: str) -> Entry:
        """What is known of a version that is here.

        Raises:
            ModelMissing: it is not.
            CatalogError: its entry cannot be read.
        """
        path = self.version(name, version) / ENTRY
        try:
            return read_entry(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as e:
            raise ModelMissing(f"{name} {version} is not in {self.folder}: edgeroute models pull {name}") from e
        except (OSError, ValueError) as e:
            raise CatalogError(f"{path} cannot be read: {e}") from e

    def versions(self, name: str) -> list[str]:
        """The versions that are here, whole."""
        with suppress(OSError):
            found = self.version(name, "0").parent.glob(f"*/{ENTRY}")
            return sorted(path.parent.name for path in found if not path.parent.name.startswith("."))
        return []

    def names(self) -> list[str]:
        """The models of which there is a version, or an active one."""
        found = {path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"*{SUFFIX}")}
        return sorted(found | {path.name for path in (self.folder / "versions").glob("*") if path.is_dir()})

    def pointer(self, name: str) -> Pointer | None:
        """Which version is active; None: none."""
        return pointer(self.pointer_file(name))

    def point(self, name: str, made: Pointer) -> None:
        """Replaces the file that names the active version: whatever happens meanwhile, it is the old one or the new one.

        Raises:
            StoreError: it cannot be written; the old one stays.
        """
        data = {key: value for key, value in made._asdict().items() if value}
        with stored(self.folder):
            replace(self.pointer_file(name), json.dumps({**data, "refused": dict(made.refused)}).encode())

    def problems(self, entry: Entry) -> dict[str, str]:
        """Files of a version that is here -> what is wrong with them; those that are whole are left out."""
        folder, found = self.version(entry.name, entry.version), dict[str, str]()
        for file in entry.files:
            path = folder / file.path
            try:
                if path.is_symlink() or not path.is_file():
                    found[file.path] = "is missing"
                elif path.stat().st_size != file.size or sha256_of(path) != file.sha256:
                    found[file.path] = "is not what was published: its hash differs"
            except (OSError, ModelError) as e:
                found[file.path] = f"cannot be read: {e}"
        return found

    def remove(self, name: str, version: str) -> None:
        """Deletes a version: its entry first, so that what is left of it is no version."""
        folder = self.version(name, version)
        with stored(folder):
            (folder / ENTRY).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)


def pointer(path: Path) -> Pointer | None:
    """What a file that names the active version says; None: there is none.

    Raises:
        CatalogError: it is damaged.
        StoreError: it cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
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
    except (CatalogError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as e:
        raise CatalogError(f"{path} does not name a version: edgeroute models activate {path.stem} --version VERSION") from e


@contextmanager
def stored(path: Path) -> Iterator[None]:
    """Raises StoreError for what a disk does not take: it is full, or may not be written.

    Raises:
        StoreError: likewise.
    """
    try:
        yield
    except (StoreError, ModelMissing):
        raise
    except OSError as e:
        raise StoreError(f"{path} cannot be written: {e.strerror or e}; the active models stay as they are") from e


def replace(path: Path, data: bytes) -> None:
    """Replaces a file by one that is on the disk already, so that a power cut leaves one of the two.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    synced(path.parent)


def synced(folder: Path) -> None:
    """Writes a folder's names to the disk, where a system can."""
    with suppress(OSError):  # Windows opens no folder
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def loads(path: Path) -> Any:
    """JSON of a file; None: there is none.

    Raises:
        CatalogError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise CatalogError(f"{path} cannot be read: {e}") from e
