"""Catalog: the models of a device, and the place from which their updates are downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from edgeroute.catalog.catalog_entry import Entry, entries
from edgeroute.catalog.catalog_source import Source, download_index, source_of
from edgeroute.catalog.file_downloads import Progress, download
from edgeroute.catalog.installed_models import KNOWN, Installed
from edgeroute.catalog.model_folder import loads, replace_durably, translate_os_errors
from edgeroute.errors import PolicyError
from edgeroute.system.foreign_files import MOST_TEXT, read_bytes

if TYPE_CHECKING:
    from typing_extensions import Self

SOURCE = "source.json"
ROOT = "root.json"


class Catalog(Installed):
    """Models of a device, with a catalog from which they are updated. A `with` closes its connections at the end.

    Downloads are verified before they are used: signatures, expiry and order of the list (by TUF), size and hash of each file.
    Whatever fails, the active models stay.

    Args:
        store: folder of the device's models; created if missing.
        source: the catalog: a folder, or an address that begins with https://; None: the one of the last `refresh`.
        root: path of the publisher's root.json, which says whose signatures count; None: the one of the last `refresh`.
        verify: certificate authorities for HTTPS: True for the usual ones, or the path of a file.
        patience_s: maximum time without data from the catalog, or with next to none, seconds.

    Raises:
        PolicyError: the source is not a valid address.
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
        self._source_argument, self._verify, self._patience_s, self._root = source, verify, patience_s, root

    def refresh(self) -> tuple[Entry, ...]:
        """Download the list of models, verify and store it, and return its entries. Also stores source and root for next time.

        Raises:
            CatalogAway: the catalog cannot be reached; the list of the last time is still there (`entries`).
            CatalogError: the catalog cannot be trusted.
            PolicyError: source or root is neither given nor stored.
            StoreError: the list cannot be stored, or another process or thread downloads.
        """
        with self.store.downloading():
            return self._refresh()

    def _refresh(self) -> tuple[Entry, ...]:
        """Download and verify the list, store it with the trusted root and the source, if given, and return its entries.

        For a caller that has the turn to download.
        """
        source, root = self.source(), self._read_root()
        text = download_index(source, self.store.folder / "metadata", root)
        listed = entries(text)
        with translate_os_errors(self.store.folder):
            replace_durably(self.store.folder / KNOWN, text)
            if self._root is not None:
                replace_durably(self.store.folder / ROOT, root)
            if self._source_argument is not None:
                where = self._source_argument if "://" in str(self._source_argument) else Path(self._source_argument).absolute()
                verify = self._verify if isinstance(self._verify, bool) else str(Path(self._verify).absolute())
                replace_durably(self.store.folder / SOURCE, json.dumps({"source": str(where), "verify": verify}).encode())
        return listed

    def source(self) -> Source:
        """Return the source: the given one, or that of the last `refresh`, which is stored for later calls.

        Raises:
            PolicyError: there is neither.
        """
        if self._source is None:
            known = loads(self.store.folder / SOURCE)
            if not isinstance(known, dict) or not isinstance(known.get("source"), str):
                raise PolicyError(
                    f"{self.store.folder}: where is the catalog? Give it once: source=, or --from on the command line"
                )
            self._source = source_of(known["source"], verify=known.get("verify", True), patience_s=self._patience_s)
        return self._source

    def _read_root(self) -> bytes:
        """Read the root metadata to trust.

        Raises:
            PolicyError: the file cannot be read.
        """
        path = self.store.folder / ROOT if self._root is None else Path(self._root)
        try:
            return read_bytes(path, MOST_TEXT)
        except OSError as e:
            raise PolicyError(
                f"{path} cannot be read ({e.strerror}): whose signatures count? Give the publisher's root.json: root=, or --root"
            ) from e

    def pull(self, name: str, version: str | None = None, *, progress: Callable[[Progress], object] | None = None) -> Entry:
        """Download the list of models, and then a version if it is not here, and return its entry. Activates nothing.

        Blocks for the download, and while another process downloads. Deletes partial files of versions no longer listed.

        Args:
            name: name of the model.
            version: version to download; None: the newest that this edgeroute can run.
            progress: called with a `Progress` after each block; an exception from it ends the download.

        Raises:
            CatalogAway, CatalogError, PolicyError, StoreError: see `refresh`; a file differs from what was signed; the disk is
                full.
        """
        with self.store.downloading():
            self._refresh()
            entry = self.entry(name, version)
            download(self.source(), self.store, entry, progress)
            self._tidy()
        return entry

    def _tidy(self) -> None:
        """Delete partial downloads of files that are no longer in the catalog."""
        wanted = {file.sha256 for entry in self.entries() for file in entry.files}
        for part in (self.store.folder / "parts").glob("*"):
            if part.name.partition(".")[0] not in wanted:
                with suppress(OSError):
                    part.unlink()

    def download(self, entry: Entry, *, progress: Callable[[Progress], object] | None = None) -> None:
        """Download a version from the list that was read last; see `pull`.

        Raises StoreError if another process or thread downloads.
        """
        with self.store.downloading():
            download(self.source(), self.store, entry, progress)
            self._tidy()

    def close(self) -> None:
        """Close the source's connections; a later call opens them again."""
        if self._source is not None:
            self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
