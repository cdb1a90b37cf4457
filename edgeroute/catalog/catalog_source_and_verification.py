"""Reading of a catalog from a folder (`Folder`) or an HTTPS address (`Web`), and its verification by TUF (`download_targets`)."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

from edgeroute.errors import CatalogAway, CatalogError, PolicyError, StoreError
from edgeroute.system.files_and_lock_waits import sha256
from edgeroute.system.late_imports_and_plugins import import_httpx, import_late, import_needed
from edgeroute.system.numeric_loopback_check import is_loopback
from edgeroute.system.untrusted_files import open_file

if TYPE_CHECKING:
    import httpx

BLOCK = 1 << 16  # bytes read at a time
SLOWEST = 500  # bytes a second, on average over the patience, below which a catalog counts as unavailable
CONNECT_S = 10.0  # maximum time to connect, seconds
MOST_REDIRECTS = 3


class Missing(CatalogError):
    """Raised for a file that the catalog does not have."""


class Piece(NamedTuple):
    """File of a catalog that is being read, from some byte on.

    Attributes:
        begin: offset of the first byte: the requested one, or 0 if the catalog cannot resume, or has other content by now.
        tag: strong ETag of the content; empty: the catalog has none.
        blocks: bytes of the file, from `begin` on.
    """

    begin: int
    tag: str
    blocks: Iterator[bytes]


class Folder:
    """Catalog in a folder, such as a USB stick or a network drive."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)

    @contextmanager
    def open(self, path: str, begin: int = 0, tag: str = "") -> Iterator[Piece]:  # noqa: ARG002 - the size and hash tell
        """Open a file at a byte offset, and yield it as a `Piece`, whose blocks are read one by one; `tag` is ignored.

        Closes the file on exit.

        Raises:
            Missing: the catalog has no such file.
            CatalogAway: the folder is not there, or the file cannot be read.
        """
        if not self.path.is_dir():
            raise CatalogAway(f"{self.where}: there is no such folder now")
        try:
            file = open_file(self.path / path)
        except (FileNotFoundError, NotADirectoryError) as e:
            raise Missing(f"{self.where} has no {path}") from e
        except OSError as e:
            raise CatalogAway(f"{self.where}: {path} cannot be read: {e.strerror}") from e
        with file:
            file.seek(begin)
            yield Piece(begin, "", self._blocks(file, path))

    def _blocks(self, file: Any, path: str) -> Iterator[bytes]:
        """Yield the rest of a file, `BLOCK` bytes at a time. Raise CatalogAway if it cannot be read."""
        try:
            while block := file.read(BLOCK):
                yield block
        except OSError as e:
            raise CatalogAway(f"{self.where}: {path} cannot be read: {e.strerror}") from e

    def close(self) -> None:
        """Do nothing: no connection is open."""


class Web:
    """Catalog at an HTTPS address: opens files, or their rest, within a time limit. Redirects stay on the server.

    Args:
        url: address of the folder; http:// only for this device itself.
        verify: certificate authorities: True for the system's, or the path of a file.
        patience_s: maximum time without data, or with next to none, seconds.
    """

    def __init__(self, url: str, *, verify: bool | str | Path = True, patience_s: float = 30.0) -> None:
        self.where = url
        self._url, self._verify, self._patience_s = _checked_address(url), verify, patience_s
        self._client: httpx.Client | None = None
        self._web: Any = None  # httpx2 or httpx, of which the client is

    def _http_client(self) -> httpx.Client:
        """Return the HTTP client, created at the first call, without a lock. It verifies the server, and follows no redirects.

        Raises:
            RuntimeMissing: neither httpx2 nor httpx is installed.
            PolicyError: `verify` is False, or its file has no authorities.
        """
        if (client := self._client) is None:
            web = self._web = import_httpx("a catalog at an address needs httpx2 or httpx: pip install 'edgeroute[catalog]'")
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
        """Request a file, or the rest of it from `begin` on, and yield it as a `Piece` to be received block by block.

        A range is requested only with a strong `tag`; without it, or if the content has another, the file comes from its start.
        Follows up to three redirects on the same server. Closes the reply on exit.

        Raises:
            Missing: the catalog has no such file.
            CatalogAway: the catalog cannot be reached, breaks off, or is too slow.
            CatalogError: the reply is not that of a catalog.
        """
        client, web = self._http_client(), self._web
        ask = {"Range": f"bytes={begin}-", "If-Range": tag} if begin and tag else {}
        url = self._url + quote(path)
        with self._translate_errors(path, web):
            for _ in range(MOST_REDIRECTS + 1):
                with self._send(client, url, ask) as reply:
                    if reply.is_redirect:
                        before, url = urlsplit(url), urljoin(url, reply.headers.get("location", ""))
                        if (to := urlsplit(url))[:2] != before[:2]:
                            there = to.netloc or "none"
                            raise CatalogError(f"{self.where} redirects to {there}: give that address if you trust it")
                        continue
                    yield self._piece(reply, path, begin if ask else 0)
                    return
            raise CatalogError(f"{self.where} redirects {path} more than {MOST_REDIRECTS} times")

    @contextmanager
    def _send(self, client: httpx.Client, url: str, ask: dict[str, str]) -> Iterator[httpx.Response]:
        """Send a request, and yield the reply once its head is there; the reply is closed at the end.

        A timer closes the client if the head takes longer than the patience and the time to connect together, as httpx's timeout
        begins anew with each byte.
        """
        timer = threading.Timer(self._patience_s + CONNECT_S, self.close)
        timer.daemon = True
        timer.start()
        try:
            with client.stream("GET", url, headers=ask) as reply:
                timer.cancel()
                yield reply
        finally:
            timer.cancel()

    def _piece(self, reply: httpx.Response, path: str, begin: int) -> Piece:
        """Return the file that a reply brings. Raise for statuses and headers that do not fit the request.

        An empty one from the start if the range is past the end (416). Missing for 404, 410 and 403; CatalogAway for passing
        statuses; else CatalogError.
        """
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
        """Yield the bytes of a reply. Raise CatalogAway if fewer than `SLOWEST` a second come in a stretch of the patience."""
        since, got = monotonic(), 0
        for block in reply.iter_raw():
            yield block
            got += len(block)
            if monotonic() - since > self._patience_s:
                if got < SLOWEST * self._patience_s:
                    raise CatalogAway(f"{self.where} is too slow: {got} bytes of {path} in {self._patience_s:g} s")
                since, got = monotonic(), 0

    @contextmanager
    def _translate_errors(self, path: str, web: Any) -> Iterator[None]:
        """Translate exceptions of httpx, and of a client that the timer closed, to CatalogAway."""
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
        """Close the HTTP client, whose errors are suppressed. A later `open` makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(Exception):
                client.close()


Source: TypeAlias = Folder | Web  # place from which a catalog is read


def source_of(where: str | Path, *, verify: bool | str | Path = True, patience_s: float = 30.0) -> Source:
    """Return a `Web` for a text with `://` in it, else a `Folder`; opens no connection. The other arguments are those of `Web`.

    Raises:
        PolicyError: the address is not valid or not safe.
    """
    return Web(str(where), verify=verify, patience_s=patience_s) if "://" in str(where) else Folder(Path(where))


def _checked_address(url: str) -> str:
    """Return the address with a slash at its end: https://, or http:// of this device itself.

    Raises:
        PolicyError: another scheme or device, or a user, password, query or fragment.
    """
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise PolicyError("the catalog's address has a user, password, query or fragment, which would be logged: leave it out")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise PolicyError(f"a catalog is a folder or an address that begins with https://, not {url!r}")
    if parts.scheme == "http" and parts.hostname != "localhost" and not is_loopback(parts.hostname):
        raise PolicyError(f"{url}: a catalog is read over https://; http:// is for this device itself")
    return url.rstrip("/") + "/"


# Verification of a catalog: the client of The Update Framework (TUF), reading from a `Source`.

# Folders of a catalog, and the file that TUF signs: the list of models, with the hash of each of their files.
METADATA, TARGETS, INDEX = "metadata", "targets", "catalog.json"
MOST_INDEX = 8 << 20  # maximum size of that list, bytes
HERE = "catalog:/"  # base of the addresses that TUF requests from its fetcher


def download_index(source: Source, folder: Path, root: bytes) -> bytes:
    """Download the list of models and return its bytes, verified. Arguments and errors as of `download_targets`.

    Raises CatalogError, too, if the catalog has no list.
    """
    texts, unstored = download_targets(source, folder, root, {INDEX: b""})
    if unstored is not None:
        raise StoreError(f"{folder}: the catalog's metadata cannot be stored: {unstored.strerror or unstored}") from unstored
    text = texts.get(INDEX)
    if text is None:
        raise CatalogError(f"{source.where}: its metadata does not list {INDEX}")
    return text


def download_targets(
    source: Source, folder: Path, root: bytes, known: Mapping[str, bytes]
) -> tuple[dict[str, bytes], OSError | None]:
    """Download signed files, and return name -> bytes, verified by TUF: signatures, expiry, rising versions, length and hash.

    TUF's metadata is stored in `folder`; the error beside the files says why some of it could not be, as on a full disk. A file
    that the catalog does not list is left out. Silences tuf's log below errors. Does not close the source.

    Args:
        source: the catalog.
        folder: folder for the metadata seen last, by which older ones are refused; created and updated.
        root: the root metadata that this device trusts; later ones are signed by it.
        known: names of the files, with the bytes of the last time; a file that has not changed is not downloaded.

    Raises:
        CatalogAway: the catalog cannot be reached.
        CatalogError: the catalog cannot be trusted, or a file has more than `MOST_INDEX` bytes.
        RuntimeMissing: tuf is not installed.
        StoreError: the metadata cannot be read.
    """
    client = import_needed("tuf.ngclient", "a catalog needs python-tuf: pip install 'edgeroute[catalog]'")
    problems = import_late("tuf.api.exceptions")
    logging.getLogger("tuf").setLevel(logging.ERROR)  # what fails is raised
    texts = dict[str, bytes]()
    try:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        fetcher = _fetcher(client, problems)(source)
        updater = _updater(client)(str(folder), f"{HERE}{METADATA}/", fetcher=fetcher, bootstrap=root)
        updater.refresh()
        for name, text in known.items():
            if (target := updater.get_targetinfo(name)) is None:
                continue
            if target.length > MOST_INDEX:
                raise CatalogError(f"{source.where}: {name} has {target.length:,} bytes, and may have {MOST_INDEX:,}")
            texts[name] = text if sha256(text).hexdigest() == target.hashes["sha256"] else _target(fetcher, name, target)
    except problems.DownloadError as e:
        cause: Any = e
        while cause is not None and not isinstance(cause, CatalogError):
            cause = cause.__cause__
        if isinstance(cause, CatalogError):
            raise (CatalogAway if isinstance(cause, CatalogAway) else CatalogError)(str(cause)) from e
        if isinstance(e, problems.DownloadLengthMismatchError):
            raise CatalogError(f"{source.where}: one of its files is longer than its metadata says") from e
        raise CatalogAway(f"{source.where} is not a catalog, or cannot be read: {e}") from e
    except problems.RepositoryError as e:
        raise CatalogError(f"{source.where} is not trusted: {_why(e, problems)}") from e
    except OSError as e:
        raise StoreError(f"{folder}: the catalog's metadata cannot be read: {e.strerror or e}") from e
    return texts, updater.unstored


def _target(fetcher: Any, name: str, target: Any) -> bytes:
    """Download one file and return its bytes. Raises tuf's error if they differ from what was signed."""
    folder, _, file = f"{HERE}{TARGETS}/{name}".rpartition("/")
    text: bytes = fetcher.download_bytes(f"{folder}/{next(iter(target.hashes.values()))}.{file}", target.length)
    target.verify_length_and_hashes(text)
    return text


def _why(error: Exception, problems: Any) -> str:
    """Return in words what is wrong with a catalog's metadata, and what to do."""
    if isinstance(error, problems.ExpiredMetadataError):
        return f"it has expired ({error}): its publisher runs `edgeroute models sign` again, or this device's clock is wrong"
    if isinstance(error, problems.UnsignedMetadataError):
        return f"wrong signature ({error}): get the publisher's root.json if the keys were changed"
    if isinstance(error, problems.EqualVersionNumberError | problems.BadVersionNumberError):
        return f"it is older than what was seen before, or a mix of several ({error})"
    return str(error) or type(error).__name__


def _updater(client: Any) -> Any:
    """Return TUF's Updater, which goes on from memory where the disk is full, in `unstored` the first error.

    It makes no link to the newest root metadata: FAT, as on SD cards, has no links.
    """

    class Updater(client.Updater):  # type: ignore[misc]  # imported late
        unstored: OSError | None = None

        def _persist_metadata(self, *given: Any) -> None:
            """Store metadata, or note the error."""
            try:
                super()._persist_metadata(*given)
            except OSError as e:
                self.unstored = self.unstored or e

        def _persist_root(self, *given: Any) -> None:
            """Store root metadata, or note the error."""
            try:
                super()._persist_root(*given)
            except OSError as e:
                self.unstored = self.unstored or e

        def _update_root_symlink(self) -> None:
            """Create no link: nobody reads it, since the root is passed each time, and later ones are in root_history."""

    return Updater


def _fetcher(client: Any, problems: Any) -> Callable[[Source], Any]:
    """Return a class through which TUF reads files from a `Source`.

    A missing file becomes TUF's status 404, other errors its DownloadError.
    """

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

        def download_bytes(self, url: str, max_length: int) -> bytes:
            """Return a file's bytes, without the temporary file of TUF's own, for which a full disk has no room."""
            data = bytearray()
            for block in self.fetch(url):
                data += block
                if len(data) > max_length:
                    raise problems.DownloadLengthMismatchError(f"{url} has more than {max_length} bytes")
            return bytes(data)

    return Fetcher
