"""`InProcess`, a router's gateway in this process without a socket; its HTTP clients fit OpenAI's and Anthropic's libraries."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from importlib import import_module
from pathlib import Path
from queue import Empty
from types import ModuleType
from typing import Any, TypeAlias

from edgeroute.errors import Closed, PolicyError
from edgeroute.router.async_router import AsyncRouter
from edgeroute.system.late_imports_and_plugins import import_httpx
from edgeroute.system.mailbox import Mailbox
from edgeroute.tools.event_loop_thread import LoopThread

ADDRESS, CLOSED = "http://localhost", "the gateway is closed: make another InProcess"
# Type of the last message of an exchange, of this module's own: its `error` is the application's, or None.
END = "http.response.end"
Exchange: TypeAlias = tuple[Callable[[], None], Callable[[], None]]  # starts a request, cancels it
LATE = "the gateway did not answer in time"
# Most requests in progress unless a program says otherwise: it alone asks here, as with a batch, and has their bodies in memory.
MOST = 10_000


class InProcess(AbstractContextManager["InProcess"]):
    """Gateway of a router in this process, for clients that take an HTTP client. Close it, or use it in a `with`.

    The router runs on an event loop in a thread of its own, so clients of threads and of any event loop may use it. No port is
    opened. Closing it closes the router.

    It belongs to the process that made it: a forked child makes its own.

    Args:
        router: path of a policy file, whose name without suffix becomes a name of the model; or an AsyncRouter that nothing else
            uses.
        options: as of `edgeroute.tools.server.gateway.app`, such as `names`, or `allow` and `embeddings`, which go before those
            in the file's `[gateway]`; `max_concurrent` is 10,000 here.

    Attributes:
        url: base address for OpenAI's clients.
        root_url: base address for Anthropic's.

    Raises:
        PolicyError, ModelError: the policy or an option is invalid, the policy's model is missing, or `router` is neither.
        RuntimeMissing: the extra `serve` is not installed.
    """

    url, root_url = f"{ADDRESS}/v1", ADDRESS

    def __init__(self, router: str | Path | AsyncRouter[Any], **options: Any) -> None:
        from edgeroute.tools.server.gateway import app, check_router, of_policy

        if not isinstance(router, str | Path):
            check_router(router, "InProcess() takes a policy's path or an AsyncRouter")
        self._process, self._stack, self._closed = os.getpid(), AsyncExitStack(), False
        self._loop = LoopThread("edgeroute-in-process", "a request to the gateway in this process failed")
        built = list[AsyncRouter[Any]]()
        try:
            if isinstance(router, str | Path):
                router, options = of_policy(router, options, built, metrics=options.get("metrics", False))
            self.router, self._app = router, app(router, **{"max_concurrent": MOST, **options})
            self._loop.begin(self._stack.enter_async_context(self._app.router.lifespan_context(self._app))).result()
        except BaseException:
            for each in built:
                self._loop.begin(each.close()).result()
            self._loop.close()
            raise

    def client(self, library: str | None = None, **options: Any) -> Any:
        """Return a new HTTP client for threads, whose requests all go to this gateway.

        Args:
            library: "httpx2" or "httpx", as the client's library needs; None: httpx2 if it is installed.
            options: further arguments of the library's `Client`.

        Raises:
            RuntimeMissing: neither library is installed.
            ImportError: the named library is not installed.
            PolicyError: another name.
        """
        web = _library(library)
        return web.Client(transport=_transports(web)[0](self.exchange), **options)

    def async_client(self, library: str | None = None, **options: Any) -> Any:
        """Return a new HTTP client for asyncio, on any event loop; arguments and errors as of `client`."""
        web = _library(library)
        return web.AsyncClient(transport=_transports(web)[1](self.exchange), **options)

    def exchange(self, request: Any, body: bytes, put: Callable[[dict[str, Any]], object]) -> Exchange:
        """Return two functions: one starts a request of a client on the gateway's event loop, one cancels it. Neither waits.

        Args:
            request: the request of httpx2 or httpx.
            body: its body.
            put: called in the gateway's thread with each ASGI message of the reply, and at the end with one of the type `END`,
                whose `error` is what the application raised, or None.

        Raises:
            Closed: by the first function: the gateway is closed, or of another process.
        """
        received, task = False, None

        async def receive() -> dict[str, Any]:
            nonlocal received
            if received:
                await asyncio.Event().wait()  # the client leaves by cancelling
            received = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            put(message)

        async def serve() -> BaseException | None:
            try:
                await self._app(_scope(request), receive, send)
            except BaseException as e:  # noqa: BLE001 - the client gets it; a model's SystemExit would end the loop
                return e
            return None

        def end(served: asyncio.Task[BaseException | None]) -> None:
            """Tell the client of the end; a request that is cancelled before its first step has it, too."""
            put({"type": END, "error": Closed(CLOSED) if served.cancelled() else served.result()})

        def begin() -> None:
            nonlocal task
            if self._closed:  # since the look above: `_end` does not wait for it
                put({"type": END, "error": Closed(CLOSED)})
                return
            task = self._loop.loop.create_task(serve())  # without a future for threads, which takes a tenth of an exchange
            task.add_done_callback(end)

        def cancel() -> None:
            with suppress(RuntimeError):  # the gateway is closed
                self._loop.loop.call_soon_threadsafe(lambda: task and task.cancel())

        def start() -> None:
            self._check_process()
            with suppress(RuntimeError):  # likewise
                self._loop.loop.call_soon_threadsafe(begin)
            if self._closed and task is None:  # the loop may have ended before `begin`
                raise Closed(CLOSED)

        return start, cancel

    def _check_process(self) -> None:
        """Raise Closed in a forked child, which has no thread that would answer or end."""
        if self._process != os.getpid():
            raise Closed("this gateway is that of another process, before a fork: make an InProcess in each process")

    def close(self) -> None:
        """Cancel the requests in progress, close the router, and stop the thread; blocks until these ended.

        A no-op if it is closed.

        Raises:
            Closed: it is that of another process, which goes on.
        """
        if self._closed:
            return
        self._check_process()
        self._closed = True
        try:
            self._loop.begin(self._end()).result()
        finally:
            self._loop.close()

    async def _end(self) -> None:
        """Cancel all other tasks of the loop and wait for them, then end the application, which closes the router."""
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stack.aclose()

    def __exit__(self, *_: object) -> None:
        if self._process == os.getpid():  # a forked child leaves by its own exception
            self.close()


def _library(name: str | None) -> ModuleType:
    """Import httpx2 or httpx: the one named, or what is installed.

    Raises:
        PolicyError: another name.
        RuntimeMissing: no name is given, and neither is installed.
        ImportError: the named one is not installed.
    """
    if name is None:
        return import_httpx("an HTTP client needs httpx2 or httpx: pip install 'edgeroute[httpx]'")
    if name not in {"httpx2", "httpx"}:
        raise PolicyError(f'library is "httpx2" or "httpx", not {name!r}')
    return import_module(name)


def _scope(request: Any) -> dict[str, Any]:
    """Return the ASGI scope of a request."""
    url = request.url
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": request.method, "scheme": "http",
        "headers": [(name.lower(), value) for name, value in request.headers.raw], "path": url.path, "root_path": "",
        "raw_path": url.raw_path.split(b"?")[0], "query_string": url.query, "server": (url.host, url.port), "client": None,
    }  # fmt: skip


def _nothing() -> None:
    """Do nothing."""


def _transports(web: ModuleType) -> tuple[Any, Any]:
    """Return two classes of transports, for a library's clients of threads and of asyncio, each made with `InProcess.exchange`.

    They yield the body as it comes, and cancel the request when the client closes the reply early. They raise the library's
    ReadTimeout if a message takes longer than the request's read timeout, and ReadError if the application ends without a reply,
    or within one, as `InProcess.close` ends it.
    """

    def head(message: dict[str, Any], stream: Any) -> Any:
        if message["type"] == END:
            raise web.ReadError(f"the gateway gave no reply: {type(message['error']).__name__}")
        return web.Response(message["status"], headers=message["headers"], stream=stream)

    def patience(request: Any) -> float | None:
        limit = request.extensions.get("timeout", {}).get("read")
        return None if limit is None else float(limit)

    class Parts:
        def __init__(self, next_message: Callable[[], Any], cancel: Callable[[], object]) -> None:
            self._next, self._cancel, self._more = next_message, cancel, True

        def _part(self, message: dict[str, Any]) -> bytes:
            """Return a message's part of the body; raise ReadError where the application ended before the last one."""
            if message["type"] == END:
                raise web.ReadError(f"the gateway ended within its reply: {type(message['error']).__name__}")
            if not message.get("more_body"):  # what follows is the application's own
                self._more, self._cancel = False, _nothing
            part: bytes = message.get("body", b"")
            return part

    class Body(Parts, web.SyncByteStream):  # type: ignore[misc, name-defined]
        def __iter__(self) -> Iterator[bytes]:
            while self._more:
                yield self._part(self._next())

        def close(self) -> None:
            self._cancel()

    class AsyncBody(Parts, web.AsyncByteStream):  # type: ignore[misc, name-defined]
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while self._more:
                yield self._part(await self._next())

        async def aclose(self) -> None:
            self._cancel()

    class Transport:
        def __init__(self, exchange: Callable[..., Exchange]) -> None:
            self._exchange = exchange

    class Threads(Transport, web.BaseTransport):  # type: ignore[misc, name-defined]
        def handle_request(self, request: Any) -> Any:
            queue, limit = Mailbox[dict[str, Any]](), patience(request)
            start, cancel = self._exchange(request, request.read(), queue.put)

            def next_message(before: Callable[[], None] = _nothing) -> dict[str, Any]:
                try:
                    before()
                    return queue.get(timeout=limit)
                except BaseException as e:  # noqa: BLE001 - raised again; of a signal, too, such as Ctrl-C
                    cancel()
                    raise (web.ReadTimeout(LATE) if isinstance(e, Empty) else e) from None

            return head(next_message(start), Body(next_message, cancel))

    class Tasks(Transport, web.AsyncBaseTransport):  # type: ignore[misc, name-defined]
        async def handle_async_request(self, request: Any) -> Any:
            queue, limit, loop = asyncio.Queue[dict[str, Any]](), patience(request), asyncio.get_running_loop()

            def put(message: dict[str, Any]) -> None:
                if not loop.is_closed():  # else nobody waits any more
                    loop.call_soon_threadsafe(queue.put_nowait, message)

            start, cancel = self._exchange(request, await request.aread(), put)

            async def next_message(before: Callable[[], None] = _nothing) -> dict[str, Any]:
                try:
                    before()
                    return await asyncio.wait_for(queue.get(), limit)
                except BaseException as e:  # noqa: BLE001 - likewise; TimeoutError is another one in Python 3.10
                    cancel()
                    raise (web.ReadTimeout(LATE) if isinstance(e, asyncio.TimeoutError) else e) from None

            return head(await next_message(start), AsyncBody(next_message, cancel))

    return Threads, Tasks
