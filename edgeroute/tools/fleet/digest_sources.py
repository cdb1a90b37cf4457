"""Places that devices send their digests to, as an owner reads them: a folder, and a bucket of an object store."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgeroute.errors import BadInput, StoreError
from edgeroute.system.foreign_files import read_bytes
from edgeroute.system.late_imports import import_needed

FOLDER = "digests"
MOST_BYTES = 1024
"""Most bytes of a digest."""
AT_ONCE = 64
"""Most requests to an object store at a time, of each process."""
TOO_LARGE, UNREAD = "too_large", "unread"


class Source(Protocol):
    """Digests by name. A source is sent to other processes, so it has no open connection."""

    def names(self) -> Iterator[str]:
        """Yield the name of each object, `DAY/DEVICE.REVISION.digest` for a digest."""

    def read(self, names: Sequence[str]) -> list[bytes | str]:
        """Return each object's bytes, or the code of a refusal: `too_large` or `unread`."""


class Folder:
    """Folder with digests, or with the folder `digests`. Hidden files are skipped: devices write them before they rename them."""

    def __init__(self, path: Path) -> None:
        self.root = path / FOLDER if (path / FOLDER).is_dir() else path
        if not self.root.is_dir():
            raise BadInput(f"{path} is no folder")

    def names(self) -> Iterator[str]:
        """Yield the names, day by day. Raises StoreError if the folder cannot be read."""
        try:
            for day in sorted(os.scandir(self.root), key=lambda entry: entry.name):
                if day.name[0] == ".":
                    continue
                if not day.is_dir():
                    yield day.name
                    continue
                with os.scandir(day.path) as entries:
                    yield from (f"{day.name}/{entry.name}" for entry in entries if entry.name[0] != ".")
        except OSError as e:
            raise StoreError(f"{e.filename} cannot be read: {e.strerror}") from e

    def read(self, names: Sequence[str]) -> list[bytes | str]:
        """Return each file's bytes, or the code of a refusal."""
        return [self._read(name) for name in names]

    def _read(self, name: str) -> bytes | str:
        """Return a file's bytes, or the code of a refusal."""
        try:
            return read_bytes(self.root / name, MOST_BYTES)
        except OSError as e:
            return TOO_LARGE if e.errno == errno.EFBIG else UNREAD


class Bucket:
    """Bucket of an S3-compatible store. Credentials, region and endpoint are those of the environment, as in `AWS_ENDPOINT_URL`.

    Args:
        url: s3://BUCKET/PREFIX.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def names(self) -> Iterator[str]:
        """Yield the names. Raises StoreError if the store does not answer or refuses."""
        store = import_needed("obstore", "s3:// needs obstore: pip install 'edgeroute[fleet-s3]'")
        try:
            for page in store.list(self._store(), f"{FOLDER}/", chunk_size=1000):
                yield from (str(entry["path"]).removeprefix(f"{FOLDER}/") for entry in page)
        except store.exceptions.BaseError as e:
            raise StoreError(f"{self.url} cannot be listed: {_reason(e)}") from e

    def read(self, names: Sequence[str]) -> list[bytes | str]:
        """Return each object's bytes, or the code of a refusal. Reads no more of an object than a digest may have."""
        import asyncio

        obstore, store = import_needed("obstore", ""), self._store()

        async def get(name: str, turns: asyncio.Semaphore) -> bytes | str:
            """Return an object's bytes, or the code of a refusal."""
            async with turns:
                try:
                    data = bytes(await obstore.get_range_async(store, f"{FOLDER}/{name}", start=0, length=MOST_BYTES + 1))
                except obstore.exceptions.BaseError:
                    return UNREAD
                return data if len(data) <= MOST_BYTES else TOO_LARGE

        async def get_all() -> list[bytes | str]:
            """Get all objects, some at a time."""
            turns = asyncio.Semaphore(AT_ONCE)
            return await asyncio.gather(*(get(name, turns) for name in names))

        return asyncio.run(get_all())

    def _store(self) -> Any:
        """Return a store of obstore. Raises BadInput for an address that is none, StoreError for http:// to another machine."""
        from urllib.parse import urlsplit

        from edgeroute.system.loopback_addresses import is_loopback

        stores = import_needed("obstore.store", "s3:// needs obstore: pip install 'edgeroute[fleet-s3]'")
        endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
        local = endpoint.scheme == "http"
        if local and endpoint.hostname != "localhost" and not is_loopback(endpoint.hostname or ""):
            raise StoreError(f"AWS_ENDPOINT_URL is http:// to {endpoint.hostname}: only this machine is reached without TLS")
        if not urlsplit(self.url).netloc:
            raise BadInput(f"{self.url} has no bucket: write s3://BUCKET/PREFIX")
        more = {"endpoint": endpoint.geturl(), "virtual_hosted_style_request": False} if endpoint.netloc else {}
        return stores.S3Store.from_url(self.url, client_options={"allow_http": local}, **more)


def _reason(error: Exception) -> str:
    """Return the first line of obstore's message, which goes on with the request."""
    return str(error).partition("\n")[0][:200]


def source_of(text: str) -> Source:
    """Return the source at a path or an address. Raises BadInput if the folder does not exist, or the address is of no store."""
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme == "s3":
        return Bucket(text)
    if scheme:
        raise BadInput(f"{scheme}:// is no place to collect from: a folder, s3://BUCKET/PREFIX, or mqtts://HOST/TOPIC")
    return Folder(Path(text))
