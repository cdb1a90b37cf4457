"""Trust in a catalog: the client of The Update Framework (TUF) on a source of ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeroute.catalog.source import Missing, Source
from edgeroute.errors import CatalogAway, CatalogError, RuntimeMissing, StoreError
from edgeroute.imports import imported

if TYPE_CHECKING:
    from collections.abc import Callable

METADATA, TARGETS, INDEX = "metadata", "targets", "catalog.json"
"""Folders of a catalog, and the file that TUF signs: the list of models, with the hash of each of their files."""
MOST_INDEX = 8 << 20
"""Bytes of that list."""
HERE = "catalog:/"
"""Base of the addresses that TUF asks its fetcher for."""


def refreshed(source: Source, folder: Path, root: bytes) -> bytes:
    """The list of models that the catalog has now, verified: signatures, expiry, versions that only rise, length and hash.

    Args:
        source: where the catalog is.
        folder: for the metadata seen last, by which older ones are refused.
        root: the metadata of the root role that this device trusts; later ones are signed by it.

    Raises:
        CatalogAway: it cannot be reached.
        CatalogError: it cannot be trusted.
        RuntimeMissing: tuf is not installed.
        StoreError: the metadata cannot be stored.
    """
    try:
        client, problems = imported("tuf.ngclient"), imported("tuf.api.exceptions")
    except ImportError as e:
        raise RuntimeMissing(f"a catalog needs python-tuf: pip install 'edgeroute[catalog]' ({e})") from e
    logging.getLogger("tuf").setLevel(logging.ERROR)  # what fails is raised
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetcher = _fetcher(client, problems)(source)
        updater = _updater(client)(str(folder), f"{HERE}{METADATA}/", fetcher=fetcher, bootstrap=root)
        updater.refresh()
        found = updater.get_targetinfo(INDEX)
        if found is None:
            raise CatalogError(f"{source.where}: its metadata does not list {INDEX}")
        if found.length > MOST_INDEX:
            raise CatalogError(f"{source.where}: {INDEX} has {found.length:,} bytes, and may have {MOST_INDEX:,}")
        digest = next(iter(found.hashes.values()))
        text: bytes = fetcher.download_bytes(f"{HERE}{TARGETS}/{digest}.{INDEX}", found.length)
        found.verify_length_and_hashes(text)
    except problems.DownloadError as e:
        cause: Any = e
        while cause is not None and not isinstance(cause, CatalogError):
            cause = cause.__cause__
        if isinstance(cause, CatalogError):
            raise (CatalogAway if isinstance(cause, CatalogAway) else CatalogError)(str(cause)) from e
        if isinstance(e, problems.DownloadLengthMismatchError):
            raise CatalogError(f"{source.where}: a file of it is longer than its metadata says") from e
        raise CatalogAway(f"{source.where} is no catalog, or cannot be read: {e}") from e
    except problems.RepositoryError as e:
        raise CatalogError(f"{source.where} is not trusted: {_why(e, problems)}") from e
    except OSError as e:
        raise StoreError(f"{folder}: the catalog's metadata cannot be stored: {e.strerror or e}") from e
    return text


def _why(error: Exception, problems: Any) -> str:
    """What is wrong with its metadata, and what to do."""
    if isinstance(error, problems.ExpiredMetadataError):
        return f"it has expired ({error}): its publisher runs `edgeroute models sign` again, or this device's clock is wrong"
    if isinstance(error, problems.UnsignedMetadataError):
        return f"wrong signature ({error}): get the publisher's root.json if the keys were changed"
    if isinstance(error, problems.EqualVersionNumberError | problems.BadVersionNumberError):
        return f"it is older than what was seen before, or a mix of several ({error})"
    return str(error) or type(error).__name__


def _updater(client: Any) -> Any:
    """The client of TUF without its link to the newest root metadata: FAT, as on SD cards, has no links."""

    class Updater(client.Updater):  # type: ignore[misc]  # imported late
        def _update_root_symlink(self) -> None:
            """Nobody reads it: the root is given each time, and what followed it is in root_history."""

    return Updater


def _fetcher(client: Any, problems: Any) -> Callable[[Source], Any]:
    """The class that TUF reads files by."""

    class Fetcher(client.FetcherInterface):  # type: ignore[misc]  # imported late
        def __init__(self, source: Source) -> None:
            self._source = source

        def _fetch(self, url: str) -> Iterator[bytes]:
            path = url.removeprefix(HERE)
            try:
                with self._source.open(path) as piece:
                    yield from piece.blocks
            except Missing as e:
                raise problems.DownloadHTTPError(str(e), 404) from e
            except CatalogError as e:
                raise problems.DownloadError(str(e)) from e

    return Fetcher
