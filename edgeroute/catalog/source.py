"""Where a catalog is: a folder, or an HTTPS address."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from urllib.parse import quote, urljoin, urlsplit

from edgeroute.errors import CatalogAway, CatalogError, PolicyError, RuntimeMissing, StoreError
from edgeroute.system.imports import imported

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

BLOCK = 1 << 16
SLOWEST = 500
"""Bytes a second, on average over the patience, below which a catalog counts as away."""
CONNECT_S = 10.0
MOST_REDIRECTS = 3


class Missing(CatalogError):
    """There is no such file in the catalog."""


class Piece(NamedTuple):
    """A file of a catalog, being read."""

    begin: int
    """Where it begins: as asked for, or 0 if the catalog gives it from the start only, or another one by now."""
    tag: str
    """Tells this content from another, in the catalog's own words; empty: it has none."""
    blocks: Iterator[bytes]


class Source(Protocol):
    """Where a catalog is."""

    where: str

    @contextmanager
    def open(self, path: str, begin: int = 0, tag: str = "") -> Iterator[Piece]:
        """Reads a file from a byte on, if it is still the content of that tag, or else from its start.

        Raises:
            Missing: there is none.
            CatalogAway: it cannot be reached, breaks off, or is too slow.
            CatalogError: what it answers is none.
        """

    def close(self) -> None:
        """Closes connections. It may be used again."""


class Folder:
    """A catalog in a folder, such as a USB stick or a network drive."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)

    @contextmanager
    def open(self, path: str, begin: int = 0, tag: str = "") -> Iterator[Piece]:  # noqa: ARG002 - the size and hash tell
        """Reads a file from a byte on. See `Source`."""
        if not self.path.is_dir():
            raise CatalogAway(f"{self.where}: there is no such folder now")
        try:
            file = (self.path / path).open("rb")
        except (FileNotFoundError, NotADirectoryError) as e:
            raise Missing(f"{self.where} has no {path}") from e
        except OSError as e:
            raise CatalogAway(f"{self.where}: {path} cannot be read: {e.strerror}") from e
        with file:
            file.seek(begin)
            yield Piece(begin, "", self._blocks(file, path))

    def _blocks(self, file: Any, path: str) -> Iterator[bytes]:
        try:
            while block := file.read(BLOCK):
                yield block
        except OSError as e:
            raise CatalogAway(f"{self.where}: {path} cannot be read: {e.strerror}") from e

    def close(self) -> None:
        """Nothing is open."""


class Web:
    """A catalog at an HTTPS address.

    Args:
        url: of the folder; http:// only for this device itself.
        verify: authorities: True for the system's, or the path of a file.
        patience_s: how long nothing, or next to nothing, may come.
    """

    def __init__(self, url: str, *, verify: bool | str | Path = True, patience_s: float = 30.0) -> None:
        self.where = url
        self._url, self._verify, self._patience_s = _checked(url), verify, patience_s
        self._client: httpx.Client | None = None

    def _opened(self) -> httpx.Client:
        if (client := self._client) is None:
            try:
                web = imported("httpx")
            except ImportError as e:
                raise RuntimeMissing(f"a catalog at an address needs httpx: pip install 'edgeroute[catalog]' ({e})") from e
            context: bool | ssl.SSLContext = True
            if not isinstance(self._verify, bool):
                try:
                    context = ssl.create_default_context(cafile=str(self._verify))
                except OSError as e:
                    raise PolicyError(f"{self._verify} has no authorities for TLS: {e}") from e
            elif not self._verify:
                raise PolicyError("verify=False: the catalog's server has to be verified; give the path of its authority")
            limits = web.Timeout(self._patience_s, connect=min(CONNECT_S, self._patience_s))
            client = self._client = web.Client(
                verify=context, timeout=limits, follow_redirects=False, headers={"Accept-Encoding": "identity"}
            )
        return client

    @contextmanager
    def open(self, path: str, begin: int = 0, tag: str = "") -> Iterator[Piece]:
        """Reads a file, by a range request if a part is there already. See `Source`."""
        client, web = self._opened(), imported("httpx")
        ask = {"Range": f"bytes={begin}-", "If-Range": tag} if begin and tag else {}
        url = self._url + quote(path)
        with self._translated(path, web):
            for _ in range(MOST_REDIRECTS + 1):
                with self._answered(client, url, ask) as reply:
                    if reply.is_redirect:
                        url = self._moved(url, reply.headers.get("location", ""))
                        continue
                    yield self._piece(reply, path, begin if ask else 0)
                    return
            raise CatalogError(f"{self.where} redirects {path} more than {MOST_REDIRECTS} times")

    @contextmanager
    def _answered(self, client: httpx.Client, url: str, ask: dict[str, str]) -> Iterator[httpx.Response]:
        """The reply once its head is there, within the patience: a timeout of httpx begins anew with each byte."""
        timer = threading.Timer(self._patience_s + CONNECT_S, self.close)
        timer.daemon = True
        timer.start()
        try:
            with client.stream("GET", url, headers=ask) as reply:
                timer.cancel()
                yield reply
        finally:
            timer.cancel()

    def _moved(self, url: str, location: str) -> str:
        """Where a redirect leads: on the same server, or it is refused."""
        to = urljoin(url, location)
        if urlsplit(to)[:2] != urlsplit(url)[:2]:
            raise CatalogError(
                f"{self.where} redirects to another server, {urlsplit(to).netloc or 'none'}: give that address if you trust it"
            )
        return to

    def _piece(self, reply: httpx.Response, path: str, begin: int) -> Piece:
        status = reply.status_code
        if status == 416:  # noqa: PLR2004 - range not satisfiable: what is here is more than there is
            return Piece(0, "", iter(()))
        if status in {404, 410, 403}:
            raise Missing(f"{self.where} has no {path} (HTTP {status})")
        if status not in {200, 206}:
            kind = CatalogAway if status >= 500 or status in {408, 429} else CatalogError  # noqa: PLR2004 - the server's own fault
            raise kind(f"{self.where} answers {path} with HTTP {status}")
        if reply.headers.get("content-encoding", "identity").lower() not in {"", "identity"}:
            raise CatalogError(f"{self.where} sends {path} compressed, which was not asked for")
        if status == 206:  # noqa: PLR2004 - partial content
            first = reply.headers.get("content-range", "").partition("-")[0].rpartition(" ")[2]
            if not begin or first != str(begin):
                raise CatalogError(f"{self.where} sends another part of {path} than was asked for")
        tag = reply.headers.get("etag", "")
        tag = "" if tag.startswith("W/") or len(tag) > 200 else tag  # noqa: PLR2004 - weak ones tell nothing about bytes
        return Piece(begin if status == 206 else 0, tag, self._blocks(reply, path))  # noqa: PLR2004 - as above

    def _blocks(self, reply: httpx.Response, path: str) -> Iterator[bytes]:
        since, got = monotonic(), 0
        for block in reply.iter_raw():
            yield block
            got += len(block)
            if monotonic() - since > self._patience_s:
                if got < SLOWEST * self._patience_s:
                    raise CatalogAway(f"{self.where} is too slow: {got} bytes of {path} in {self._patience_s:g} s")
                since, got = monotonic(), 0

    @contextmanager
    def _translated(self, path: str, web: Any) -> Iterator[None]:
        """Translates what httpx raises."""
        try:
            yield
        except web.TimeoutException as e:
            raise CatalogAway(f"{self.where} does not answer within {self._patience_s:g} s") from e
        except (web.HTTPError, web.StreamError, web.InvalidURL) as e:
            raise CatalogAway(f"{self.where}: {path} cannot be read: {str(e) or type(e).__name__}") from e
        except RuntimeError as e:
            if self._client is not None:  # else the timer closed it, which httpx says by one
                raise
            raise CatalogAway(f"{self.where} does not answer within {self._patience_s + CONNECT_S:g} s") from e

    def close(self) -> None:
        """Closes connections. It may be used again."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                client.close()


def source_of(where: str | Path, *, verify: bool | str | Path = True, patience_s: float = 30.0) -> Source:
    """The source at an address, or in a folder.

    Raises:
        PolicyError: it is neither.
    """
    text = str(where)
    if "://" in text:
        return Web(text, verify=verify, patience_s=patience_s)
    return Folder(Path(where))


def _checked(url: str) -> str:
    """The address with a slash at its end.

    Raises:
        PolicyError: it is not one, or is not safe.
    """
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise PolicyError("the catalog's address has a user, password, query or fragment, which would be logged: leave it out")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise PolicyError(f"a catalog is a folder or an address that begins with https://, not {url!r}")
    if parts.scheme == "http" and not _own(parts.hostname):
        raise PolicyError(f"{url}: a catalog is read over https://; http:// is for this device itself")
    return url.rstrip("/") + "/"


def _own(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


# Trust in a catalog: the client of The Update Framework (TUF) on a source of ours.

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
