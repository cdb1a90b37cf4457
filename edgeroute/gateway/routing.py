"""The router, as the gateway asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from edgeroute.core.egress import Rules
from edgeroute.core.texts import named
from edgeroute.errors import EdgerouteError, NoAnswer
from edgeroute.gateway.completions import ascii_of
from edgeroute.gateway.options import Options
from edgeroute.router.aio import AsyncRouter
from edgeroute.router.streams import AsyncStream
from edgeroute.types import Answer


class Routing:
    """Calls of one router, with the options of requests."""

    def __init__(self, router: AsyncRouter[Any]) -> None:
        self.router = router

    @property
    def rules(self) -> Rules:
        """The egress rules in force."""
        return self.router.engine.snapshot.policy.rules

    async def infer(self, x: Any, wanted: Options) -> Answer[Any]:
        """The answer to one input."""
        with _coded():
            return await self.router.infer(x, **_arguments(wanted))

    async def infer_many(self, rows: list[Any], wanted: Options) -> list[Answer[Any]]:
        """The answers to several."""
        with _coded():
            return await self.router.infer_many(rows, **_arguments(wanted))

    def stream(self, x: Any, wanted: Options) -> AsyncStream:
        """The answer in pieces."""
        return self.router.stream(x, first_token=wanted.first_token, **_arguments(wanted))

    async def pieces(self, stream: AsyncStream) -> AsyncIterator[Any]:
        """The pieces of it."""
        with _coded():
            async for piece in stream:
                yield piece

    def source(self, stream: AsyncStream) -> dict[str, str]:
        """What is known at a stream's first piece of where it comes from, as headers."""
        leg = stream.leg
        sides = {target.name: target.side for target in self.router.engine.snapshot.watched[0]}
        if leg in sides:
            return {"x-edgeroute-source": sides[leg], "x-edgeroute-leg": ascii_of(leg)}
        return {"x-edgeroute-source": leg} if leg in {"cache", "stale"} else {}  # none: the policy has changed meanwhile


@contextmanager
def _coded() -> Iterator[None]:
    """Raises what a function of the application raised, which a router with one target passes on, as `NoAnswer`."""
    try:
        yield
    except EdgerouteError:
        raise
    except Exception as e:
        raise NoAnswer(f"no answer: {named(e)}", {"": e}) from e


def _arguments(wanted: Options) -> dict[str, Any]:
    return {"mode": wanted.mode, "deadline": wanted.deadline, "data_class": wanted.data_class}
