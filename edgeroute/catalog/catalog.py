"""Catalog: the models of a device, and where their updates come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgeroute.catalog.download import Progress, download
from edgeroute.catalog.entry import Entry, entries
from edgeroute.catalog.installed import KNOWN, Installed
from edgeroute.catalog.source import Source, refreshed, source_of
from edgeroute.catalog.store import loads, replace, stored
from edgeroute.errors import PolicyError

if TYPE_CHECKING:
    from typing_extensions import Self

SOURCE = "source.json"
ROOT = "root.json"


class Catalog(Installed):
    """The models of a device, and where their updates come from. Used in a `with`, it closes its connections.

    What is downloaded is verified before it is used: signatures, expiry and order of the list (by TUF), size and hash of each
    file. Whatever fails, the active models stay.

    Args:
        store: the folder of the device's models; made if it is not there.
        source: the catalog: a folder, or an address that begins with https://; None: that of the last time.
        root: path of the root.json that the publisher gave, which says whose signatures count; None: that of the last time.
        verify: authorities for HTTPS: True for the usual ones, or the path of a file.
        patience_s: how long nothing, or next to nothing, may come from the catalog, in seconds.

    Raises:
        PolicyError: the source is no catalog's address.
    """

    def __init__(
        self,
        store: str | Path,
        source: str | Path | None = None,
        *,
        root: str | Path | None = None,
        verify: bool | str | Path = True,
        patience_s: float = 30.0,
    ) -> None:
        super().__init__(Path(store))
        self._source = None if source is None else source_of(source, verify=verify, patience_s=patience_s)
        self._given, self._verify, self._patience_s, self._root = source, verify, patience_s, root

    def refresh(self) -> tuple[Entry, ...]:
        """Reads the list of models from the catalog, verifies and stores it.

        Raises:
            CatalogAway: it cannot be reached; the list of the last time is still there (`entries`).
            CatalogError: it cannot be trusted.
            PolicyError: it is not known where the catalog is, or whose signatures count.
            StoreError: the list cannot be stored.
        """
        with self.store.downloading():
            return self._refresh()

    def _refresh(self) -> tuple[Entry, ...]:
        source, root = self.source(), self._trusted()
        text = refreshed(source, self.store.folder / "metadata", root)
        found = entries(text)
        with stored(self.store.folder):
            replace(self.store.folder / KNOWN, text)
            if self._root is not None:
                replace(self.store.folder / ROOT, root)
            if self._given is not None:
                where = self._given if "://" in str(self._given) else Path(self._given).absolute()
                verify = self._verify if isinstance(self._verify, bool) else str(Path(self._verify).absolute())
                replace(self.store.folder / SOURCE, json.dumps({"source": str(where), "verify": verify}).encode())
        return found

    def source(self) -> Source:
        """Where the catalog is.

        Raises:
            PolicyError: nobody has said so yet.
        """
        if self._source is None:
            known = loads(self.store.folder / SOURCE)
            if not isinstance(known, dict) or not isinstance(known.get("source"), str):
                raise PolicyError(
                    f"{self.store.folder}: where is the catalog? Give it once: source=, or --from on the command line"
                )
            self._source = source_of(known["source"], verify=known.get("verify", True), patience_s=self._patience_s)
        return self._source

    def _trusted(self) -> bytes:
        path = self.store.folder / ROOT if self._root is None else Path(self._root)
        try:
            return path.read_bytes()
        except OSError as e:
            raise PolicyError(
                f"{path} cannot be read ({e.strerror}): whose signatures count? Give the publisher's root.json: root=, or --root"
            ) from e

    def pull(self, name: str, version: str | None = None, *, progress: Callable[[Progress], object] | None = None) -> Entry:
        """Reads the catalog, and downloads a version if it is not here. It is not in use before `activate`.

        Args:
            name: of the model.
            version: None: the newest that this edgeroute can run.
            progress: called with a `Progress` after each block; what it raises ends the download.

        Raises:
            CatalogAway, CatalogError, PolicyError, StoreError: as `refresh`; a file is not what was signed; the disk is full.
        """
        with self.store.downloading():
            self._refresh()
            entry = self.entry(name, version)
            download(self.source(), self.store, entry, progress)
            self._tidy()
        return entry

    def _tidy(self) -> None:
        """Removes what was downloaded in part of files that the catalog has no more."""
        wanted = {file.sha256 for entry in self.entries() for file in entry.files}
        for part in (self.store.folder / "parts").glob("*"):
            if part.name.partition(".")[0] not in wanted:
                with suppress(OSError):
                    part.unlink()

    def download(self, entry: Entry, *, progress: Callable[[Progress], object] | None = None) -> None:
        """Downloads a version of the list that was read last, as `pull`."""
        with self.store.downloading():
            download(self.source(), self.store, entry, progress)
            self._tidy()

    def close(self) -> None:
        """Closes connections."""
        if self._source is not None:
            self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
