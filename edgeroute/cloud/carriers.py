"""What carries an endpoint's calls: connections of its own, or an httpx client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

from edgeroute.cloud.aio_connections import AsyncConnections
from edgeroute.cloud.base import Address, Call
from edgeroute.cloud.connections import Connections
from edgeroute.errors import PolicyError
from edgeroute.imports import imported
from edgeroute.types import StopToken


def carriers(address: Address) -> tuple[Any, Any]:
    """What carries calls to an address in threads, as `Connections`, and on asyncio, as `AsyncConnections`."""
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
