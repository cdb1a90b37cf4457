"""Places from which an owner reads the digests that devices send (`source_of`): a folder, or a bucket of an object store."""

from __future__ import annotations

import errno
import hmac
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from html import unescape
from pathlib import Path
from time import monotonic
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from edgeroute.errors import BadInput, CloudError, StoreError
from edgeroute.fleet.digest_encoding_and_coarsening import MOST_BYTES
from edgeroute.http.connections import Connections
from edgeroute.http.messages_addresses_and_secrets import Address, Call
from edgeroute.system import wall_clock
from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.system.numeric_loopback_check import is_loopback
from edgeroute.system.untrusted_files import read_bytes

FOLDER = "digests"
NEED = "s3:// needs obstore: pip install 'edgeroute[fleet-s3]'"
TIMEOUT_S = 20.0  # most seconds of a request to an object store
AT_ONCE = 64  # most requests to an object store at a time, of each process
MOST_LIST = 1 << 23  # most bytes of a page of S3's list: 1,000 keys, each of 1,024 bytes that are escaped
TOO_LARGE, UNREAD = "too_large", "unread"


class Source(Protocol):
    """Digests by name. A source is sent to other processes, so it has no open connection."""

    def names(self) -> Iterator[str]:
        """Yield the name of each object, `DAY/DEVICE.REVISION.digest` for a digest."""

    def read(self, names: Sequence[str]) -> list[bytes | str]:
        """Return each object's bytes, or the code of a refusal: `too_large` or `unread`."""


class Folder:
    """Folder with digests, or with the folder `digests`. Hidden files and NAME.new are skipped: they are about to be renamed."""

    def __init__(self, path: Path) -> None:
        self.root = path / FOLDER if (path / FOLDER).is_dir() else path
        if not self.root.is_dir():
            raise BadInput(f"{path} is no folder")

    def names(self) -> Iterator[str]:
        """Yield the names of files as DAY/NAME, day by day, and of files beside the days.

        Raises StoreError if a folder cannot be read.
        """
        try:
            for day in sorted(os.scandir(self.root), key=lambda entry: entry.name):
                yield from filter(_is_whole, _names_in(day))
        except OSError as e:
            raise StoreError(f"{e.filename} cannot be read: {e.strerror}") from e

    def read(self, names: Sequence[str]) -> list[bytes | str]:
        """Return each file's bytes, or the code of a refusal."""
        return [self._read(name) for name in names]

    def _read(self, name: str) -> bytes | str:
        """Return a file's bytes, or the code of a refusal: `too_large` beyond `MOST_BYTES`, else `unread` for any error."""
        try:
            return read_bytes(self.root / name, MOST_BYTES)
        except OSError as e:
            return TOO_LARGE if e.errno == errno.EFBIG else UNREAD


def _names_in(day: os.DirEntry[str]) -> Iterator[str]:
    """Yield DAY/NAME for each file of a day's folder; DAY for a link, a file, or a folder that may not be read, to be refused."""
    entries = None
    with suppress(PermissionError):  # whoever may write to the folder does not stop the others' digests
        entries = os.scandir(day.path) if day.is_dir(follow_symlinks=False) else None
    if entries is None:
        yield day.name
        return
    with entries:
        yield from (f"{day.name}/{entry.name}" for entry in entries)


def _is_whole(name: str) -> bool:
    """Return False for the name of a hidden file, or of one that is being written."""
    return not name.startswith(".") and "/." not in name and not name.endswith(".new")


class Bucket:
    """Bucket of an S3-compatible store. Credentials, region and endpoint are in AWS_*, as for devices.

    Args:
        url: s3://BUCKET/PREFIX.

    Raises:
        BadInput: the address has no bucket.
    """

    def __init__(self, url: str) -> None:
        to = urlsplit(url)
        if not to.netloc or "@" in to.netloc:
            raise BadInput("an object store is written as s3://BUCKET/PREFIX; its credentials are in AWS_*")
        self.where, self._bucket, self._prefix = f"s3://{to.netloc}", to.netloc, to.path.strip("/")

    def names(self) -> Iterator[str]:
        """Yield the names of the objects below `digests/`, page by page over the network.

        obstore lists no page with a key that is no path, such as `a//b`: from there on they come from S3's own list.

        Raises StoreError if the store does not answer or refuses, RuntimeMissing without obstore.
        """
        obstore, name = import_needed("obstore", NEED), ""
        try:
            for page in obstore.list(self._store(), f"{FOLDER}/", chunk_size=1000):
                for entry in page:
                    yield (name := str(entry["path"]).removeprefix(f"{FOLDER}/"))
        except obstore.exceptions.InvalidPathError:
            yield from self._list_keys(name)
        except obstore.exceptions.BaseError as e:
            raise StoreError(f"{self.where} cannot be listed: {type(e).__name__}") from None  # its text has the request

    def _list_keys(self, after: str) -> Iterator[str]:
        """Yield the names of all objects below `digests/` after this one, by requests of S3's list that are signed with AWS_*.

        Raises StoreError if the store does not answer or refuses.
        """
        env = os.environ
        region = env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or "us-east-1"
        to = urlsplit(_endpoint() or f"https://s3.{region}.amazonaws.com")
        start = f"{self._prefix}/{FOLDER}/".lstrip("/")
        query = {"encoding-type": "url", "list-type": "2", "prefix": start, "start-after": start + after}
        connections = Connections(Address(f"{to.scheme}://{to.netloc}"))
        try:
            while True:
                text = "&".join(f"{key}={quote(value, safe='-_.~')}" for key, value in sorted(query.items()))
                path = f"{to.path.rstrip('/')}/{self._bucket}"
                call = Call("GET", path, signed(path, text, to.netloc, region), query=text, max_reply=MOST_LIST)
                reply = connections.send(call, monotonic() + TIMEOUT_S)
                if reply.status != 200:  # noqa: PLR2004 - HTTP's
                    raise StoreError(f"{self.where} cannot be listed: HTTP status {reply.status}")
                page = reply.body.decode(errors="replace")
                yield from (unquote(unescape(key))[len(start) :] for key in re.findall("<Key>([^<]*)</Key>", page))
                if (more := re.search("<NextContinuationToken>([^<]+)<", page)) is None:
                    return
                query["continuation-token"] = unescape(more[1])
        except CloudError as e:
            raise StoreError(f"{self.where} cannot be listed: {type(e).__name__}") from None
        finally:
            connections.close()

    def read(self, names: Sequence[str]) -> list[bytes | str]:
        """Return each object's bytes, or the code of a refusal, with up to `AT_ONCE` requests at a time. Runs an event loop.

        Reads no more of an object than a digest may have. One that is missing, or refused beside others, is `unread`.

        Raises:
            StoreError: the store does not answer, or refuses all.
        """
        import asyncio

        obstore, store = import_needed("obstore", NEED), self._store()
        refused = 0

        async def get(name: str, turns: asyncio.Semaphore) -> bytes | str:
            """Return an object's bytes, or the code of a refusal."""
            nonlocal refused
            async with turns:
                try:
                    data = bytes(await obstore.get_range_async(store, f"{FOLDER}/{name}", start=0, length=MOST_BYTES + 1))
                except (FileNotFoundError, ValueError, obstore.exceptions.NotFoundError):  # a path is a ValueError
                    return UNREAD
                except obstore.exceptions.BaseError as e:
                    if "status code: 4" not in str(e):  # the store itself fails
                        raise
                    refused += 1
                    return UNREAD
                return data if len(data) <= MOST_BYTES else TOO_LARGE

        async def get_all() -> list[bytes | str]:
            """Get all objects, some at a time."""
            turns = asyncio.Semaphore(AT_ONCE)
            return await asyncio.gather(*(get(name, turns) for name in names))

        try:
            found = asyncio.run(get_all())
        except obstore.exceptions.BaseError as e:
            raise StoreError(f"{self.where} cannot be read: {type(e).__name__}") from None
        if refused and refused == len(names):
            raise StoreError(f"{self.where} cannot be read: it refuses every object")
        return found

    def _store(self) -> Any:
        """Return a store of obstore, over https unless the endpoint is this machine."""
        stores = import_needed("obstore.store", NEED)
        host = urlsplit(_endpoint()).hostname or ""
        limit = timedelta(seconds=TIMEOUT_S)
        return stores.S3Store(
            self._bucket, prefix=self._prefix or None,
            client_options={"timeout": limit, "connect_timeout": limit, "allow_http": host == "localhost" or is_loopback(host)},
            retry_config={"max_retries": 3, "retry_timeout": limit},
        )  # fmt: skip


def _endpoint() -> str:
    """Return the address of the object store in AWS_ENDPOINT_URL or AWS_ENDPOINT; empty: Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""


def signed(path: str, query: str, host: str, region: str) -> list[tuple[str, str]]:
    """Return the headers of a GET request to S3, signed by version 4 of Amazon's signatures with the keys in AWS_*.

    query: encoded, sorted by its names.
    """
    env, now = os.environ, datetime.fromtimestamp(wall_clock.now(), timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    headers = {"host": host, "x-amz-content-sha256": sha256(b"").hexdigest(), "x-amz-date": now}
    if token := env.get("AWS_SESSION_TOKEN") or env.get("AWS_TOKEN"):
        headers["x-amz-security-token"] = token
    names, scope = ";".join(headers), f"{now[:8]}/{region}/s3/aws4_request"
    lines = ["GET", quote(path, safe="/-_.~"), query, *(f"{name}:{value}" for name, value in headers.items()), "", names]
    request = sha256("\n".join([*lines, headers["x-amz-content-sha256"]]).encode()).hexdigest()
    key = f"AWS4{env.get('AWS_SECRET_ACCESS_KEY', '')}".encode()
    for part in (*scope.split("/"), f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{request}"):
        key = hmac.digest(key, part.encode(), "sha256")
    user = f"{env.get('AWS_ACCESS_KEY_ID', '')}/{scope}"
    del headers["host"]  # the connection sends it
    by = f"AWS4-HMAC-SHA256 Credential={user}, SignedHeaders={names}, Signature={key.hex()}"
    return [*headers.items(), ("authorization", by)]


def source_of(text: str) -> Source:
    """Return the source at a path or an address: a `Bucket` for s3://, else a `Folder`. Sends nothing.

    Raises BadInput if the folder does not exist, or the address is of no store.
    """
    if text.startswith("s3://"):
        return Bucket(text)
    if "://" in text:
        raise BadInput("digests are collected from a folder, s3://BUCKET/PREFIX or mqtts://HOST/TOPIC")
    return Folder(Path(text))
