"""What carries an endpoint's calls: connections of its own, an httpx client, or what the endpoint brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Protocol

from edgeroute.cloud.aio_connections import AsyncConnections
from edgeroute.cloud.base import Address, Call, HttpEndpoint, Reply
from edgeroute.cloud.connections import Connections
from edgeroute.errors import PolicyError
from edgeroute.imports import imported
from edgeroute.types import StopToken


class Channels(Protocol):
    """What carries calls in threads: `Connections`, or what an endpoint brings (`channels`).

    One that is to carry answers in pieces has `open`, too, as `Connections` has.
    """

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> Reply:
        """Sends the call and returns the reply, by the instant `until`; a stop ends it. Raises CloudError."""

    def close(self) -> None:
        """Closes it."""


class AsyncChannels(Protocol):
    """What carries calls on an event loop: `AsyncConnections`, or what an endpoint brings."""

    async def send(self, call: Call, until: float) -> Reply:
        """As of `Channels`; cancelling the task ends it."""

    async def close(self) -> None:
        """Closes it, on its loop."""

    def abandon(self) -> None:
        """`close` from outside the loop, or from a thread."""


def carriers(endpoint: HttpEndpoint) -> tuple[Any, Any]:
    """What carries an endpoint's calls: `Channels`, and `AsyncChannels`."""
    own: Callable[[], tuple[Channels, AsyncChannels]] | None = getattr(endpoint, "channels", None)
    if own is not None:
        return own()
    address = endpoint.address
    if address.client is None:
        return Connections(address), AsyncConnections(address)
    client, async_client = address.client
    threads = imported("edgeroute.cloud.httpx_carrier").HttpxConnections
    tasks = imported("edgeroute.cloud.aio_httpx_carrier").AsyncHttpxConnections
    if client is None and async_client is None:
        return threads(address, None), tasks(address, None)
    return (
        _NotGiven(address, "httpx.AsyncClient", "Router", "httpx.Client") if client is None else threads(address, client),
        _NotGiven(address, "httpx.Client", "AsyncRouter", "httpx.AsyncClient")
        if async_client is None
        else tasks(address, async_client),
    )


class _NotGiven:
    """In place of the client that was not given: says which one is needed."""

    def __init__(self, address: Address, given: str, router: str, needed: str) -> None:
        self._message = (
            f"{address.origin} is reached by the {given} that was given (client=), and {router} needs an {needed}:"
            " give it, or both as client=(httpx.Client(...), httpx.AsyncClient(...))"
        )

    def send(self, call: Call, until: float, cancel: StopToken | None = None) -> NoReturn:  # noqa: ARG002 - nothing is sent
        """Never sends.

        Raises:
            PolicyError: always.
        """
        raise PolicyError(self._message)

    open = send

    def close(self) -> _NotGiven:
        """There is nothing to close, also with `await`."""
        return self

    abandon = close

    def __await__(self) -> Iterator[None]:
        return iter(())
