"""Web services: a lifespan and error replies for FastAPI, Starlette and other ASGI applications, none of which is imported.

`lifespan` opens and closes a router, `Errors` and `error_reply` answer edgeroute's errors, `while_connected` and `unless_left`
cancel a call whose client has disconnected.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import ceil
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from edgeroute.core.error_codes_and_texts import TOO_LONG, Failure, failure_text
from edgeroute.errors import BadInput, Busy, Closed, CloudError, EdgerouteError, MayNotLeave, NoAnswer, PolicyError
from edgeroute.router.async_router import AsyncRouter
from edgeroute.router.router import Router

log = logging.getLogger("edgeroute")
T = TypeVar("T")
Message: TypeAlias = MutableMapping[str, Any]
MOST_WAIT_S = 3600  # largest `Retry-After`, seconds
MOST_REASON = 123  # most bytes of the reason of a closed WebSocket (RFC 6455, 5.5)
# Status -> code and text of the body, and code with which a WebSocket is closed. None of them has anything of an input.
REPLIES: Mapping[int, tuple[str, str, int]] = {
    403: ("may_not_leave", "the data class of this request may not be sent to a model", 1008),
    422: ("bad_input", "the input does not fit the model", 1008),
    502: ("bad_gateway", "the model's server does not give an answer", 1011),
    503: ("unavailable", "no model is available now: try again later", 1013),
    504: ("timeout", "no model answered in time: try again", 1013),
}


class Disconnected(EdgerouteError):
    """Client that closed its connection before the reply."""


def lifespan(
    router: str | Path | Callable[[], AsyncRouter[Any] | Router[Any]], *, warm: bool = True
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """Return a lifespan that makes a router when the application starts, and closes it when the application ends.

    The router is `request.state.router`, in mounted applications too, and `app.state.router`. Each worker process has its own.

    Args:
        router: path of a policy file, for an `AsyncRouter`; or a function that makes a router, called at each start.
        warm: True loads the edge models and runs them, so that a model that cannot be used ends the start.

    Raises:
        PolicyError: `router` is neither.
    """
    if not (isinstance(router, str | Path) or callable(router)):
        raise PolicyError(f"lifespan() takes a policy's path, or lifespan(lambda: AsyncRouter(...)), not {type(router).__name__}")

    @asynccontextmanager
    async def opened(app: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the state of the application's requests."""
        made = router() if callable(router) else AsyncRouter[Any].from_policy(router)
        try:
            if warm:
                await (made.warm() if isinstance(made, AsyncRouter) else asyncio.to_thread(made.warm))
            if hasattr(app, "state"):
                app.state.router = made
            yield {"router": made}
        finally:
            await (made.close() if isinstance(made, AsyncRouter) else asyncio.to_thread(made.close))

    return opened


async def while_connected(request: Any, call: Awaitable[T]) -> T:
    """Await a call and return its result, or cancel the call once the client has disconnected.

    Discards the request's further messages.

    Args:
        request: request of Starlette or FastAPI, whose body has been read.
        call: call of the router, such as `router.infer(x)`.

    Raises:
        Disconnected: the client is gone; `Errors` ends the request then.
    """
    result = await unless_left(call, request.receive)
    if result is LEFT:
        raise Disconnected("the client closed its connection, and its call is cancelled")
    return result


LEFT: Any = object()  # result of a call whose client has disconnected


async def unless_left(work: Awaitable[T], receive: Callable[[], Awaitable[Message]]) -> T:
    """Await `work` and return its result. If the client disconnects first, cancel it, wait for its end and return `LEFT`.

    Meanwhile all messages of `receive` are read and discarded; an exception of it cancels the work and is raised. Before Python
    3.11, which counts cancellations, one by somebody else is lost after the client has disconnected.
    """
    task: Any = asyncio.current_task()
    result, left = LEFT, False

    def cancel(_: Any) -> None:
        """Cancel the work: the client has disconnected, or cannot be read."""
        nonlocal left
        left = True
        task.cancel()

    watch = asyncio.ensure_future(_disconnected(receive))
    watch.add_done_callback(cancel)
    try:
        result = await work  # in this task: another one would be two more turns of the loop
    except (Exception, asyncio.CancelledError):
        if not left:
            raise
    finally:
        watch.remove_done_callback(cancel)
        watch.cancel()
    if left and sys.version_info >= (3, 11) and task.uncancel():  # somebody else has cancelled it, too
        raise asyncio.CancelledError
    if result is LEFT:
        watch.result()
    return result  # type: ignore[no-any-return]


async def _disconnected(receive: Callable[[], Awaitable[Message]]) -> None:
    """Discard messages until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


def error_reply(error: EdgerouteError, *, messages: bool = False) -> tuple[dict[str, str], int, dict[str, str]]:
    """Log an error, and return body, status and headers of the reply to it, as an error handler of Flask does.

    The status is 403, 422, 502, 503 (with Retry-After) or 504. The log's level is a warning from 500 on, else info. The body has
    a detail and a code, and with 422 the field: the name of the model's input, where it is known.

    Args:
        error: the error.
        messages: True puts the error's message into the body, which may name endpoints and quote an input; False a fixed text.

    Raises:
        EdgerouteError: the error itself, not logged, if the service is at fault, as by a broken model: status 500.
    """
    status = _status(error)
    if status is None:
        raise error
    log.log(logging.INFO if status < 500 else logging.WARNING, "replied %d: %s", status, failure_text(error))  # noqa: PLR2004 - HTTP's
    code, text, _ = REPLIES[status]
    headers = {"Retry-After": str(retry_after_s(error))} if status == 503 else {}  # noqa: PLR2004 - HTTP's
    body = {"detail": failure_text(error) if messages else text, "code": code}
    field = next((e.field for e in _errors(error) if isinstance(e, BadInput) and e.field), "")
    return {**body, "field": field} if field and code == "bad_input" else body, status, headers


def _errors(error: BaseException) -> list[BaseException]:
    """Return the errors of the legs, or the error itself."""
    return [*error.errors.values()] if isinstance(error, NoAnswer) else [error]


def _status(error: EdgerouteError) -> int | None:
    """Return the HTTP status of an error; None: the service is at fault.

    403: data that may not leave. 422: each leg (one call of a model or server) refused the input. 504: late. 502: a server
    refused, and another attempt would not help. 503: other errors of servers, and a router that is busy or closed.
    """
    if isinstance(error, MayNotLeave) or (isinstance(error, PolicyError) and error.key == "data_class"):
        return 403
    if is_of_input(error):
        return 422
    if isinstance(error, TimeoutError):
        return 504
    refused = isinstance(error, CloudError) and not (error.held or error.retriable)
    return 502 if refused else 503 if isinstance(error, NoAnswer | Busy | Closed | CloudError) else None


def is_of_input(error: BaseException) -> bool:
    """Return True if each leg refused this input, or the error itself says so."""
    errors = _errors(error)
    return bool(errors) and all(Failure.of(e).of_the_input for e in errors)


def is_brought_about(error: BaseException) -> bool:
    """Return True if the request brought about a server's missing answer, as one without a text; other legs refused the input.

    The server was asked, and may be paid again for an equal request, which would bring about the same.
    """
    legs = _errors(error)
    in_vain = [isinstance(e, CloudError) and not e.counts for e in legs]
    return any(in_vain) and all(vain or is_of_input(e) for e, vain in zip(legs, in_vain, strict=True))


def is_too_long(error: BaseException) -> bool:
    """Return True if for each leg the prompt is longer than its model's context, or the error itself says so."""
    return all(getattr(e, "code", "") == "context" or TOO_LONG in str(e) for e in _errors(error))


def retry_after_s(error: BaseException) -> int:
    """Return the seconds for `Retry-After`: the longest wait that the error of a leg states, 1 to 3600."""
    waits = [wait for e in _errors(error) if (wait := getattr(e, "retry_after_s", None) or getattr(e, "wait_s", None))]
    return min(MOST_WAIT_S, max(1, ceil(max(waits, default=1))))


class Errors:
    """ASGI middleware that replies to edgeroute's errors; other exceptions, and the service's own faults, pass.

    Add it before `CORSMiddleware`, whose headers its replies then have. A WebSocket is closed with a code and the text.

    Args:
        app: application, as `app.add_middleware(Errors)` gives it.
        messages: True puts the errors' messages into the bodies, which may name endpoints and quote an input.
    """

    def __init__(self, app: Any, *, messages: bool = False) -> None:
        self._app, self._messages = app, messages

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run the application. An error after the beginning of a reply passes, which ends the connection."""
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)  # type: ignore[no-any-return]
        held, over = list[Message](), False

        async def listen() -> Message:
            """Return the next message of the client."""
            nonlocal over
            message: Message = await receive()
            over = over or message["type"] == "websocket.disconnect"
            return message

        async def speak(message: Message) -> None:
            """Send a message, but hold a whole reply of status 500: a mounted application sends one before it raises."""
            nonlocal over
            kind = message["type"]
            fault = kind == "http.response.start" and message["status"] == 500  # noqa: PLR2004 - HTTP's
            if fault or (held and not message.get("more_body")):
                held.append(message)
            else:
                over = over or kind.startswith("http.") or kind in {"websocket.close", "websocket.http.response.start"}
                await flush()
                await send(message)

        async def flush() -> None:
            """Send the messages that are held."""
            while held:
                await send(held.pop(0))

        try:
            await self._app(scope, listen, speak)
        except Disconnected:
            log.debug("the client disconnected, and its call is cancelled")
        except EdgerouteError as error:
            if over:
                raise
            body, status, headers = error_reply(error, messages=self._messages)
            held[:] = _messages(scope["type"], body, status, headers)
        finally:
            await flush()
        return None


def _messages(kind: str, body: Mapping[str, str], status: int, headers: Mapping[str, str]) -> list[Message]:
    """Return the ASGI messages of a reply, or the one that closes a WebSocket, with the text cut to 123 bytes."""
    if kind == "websocket":
        reason = body["detail"].encode()[:MOST_REASON].decode(errors="ignore")
        return [{"type": "websocket.close", "code": REPLIES[status][2], "reason": reason}]
    data = json.dumps(body).encode()
    fields = {"content-type": "application/json", "content-length": str(len(data)), **headers}
    lines = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
    return [{"type": "http.response.start", "status": status, "headers": lines}, {"type": "http.response.body", "body": data}]
