"""Watches served models: whether each still answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import numpy as np

from edgeroute.errors import EdgerouteError
from edgeroute.serve.notify import BEATS, Notify
from edgeroute.serve.protocol import Ask
from edgeroute.serve.served import Served


async def watch(served: Iterable[Served], notify: Notify) -> None:
    """Says that the service is ready, once each model has run on zeros, and from then on that it is alive while all run.

    A model that does not run on zeros is only asked whether it ends. Runs for clients count: under load nothing is added to them.
    """
    models = [_Watched(one) for one in served]
    for one in models:
        await one.tried(None)
    notify.ready(f"serving {', '.join(one.served.name for one in models)}")
    if notify.watchdog_s is None:
        return
    period = notify.watchdog_s / BEATS
    while True:
        dead = [one.served.name for one, alive in zip(models, await _all(models, period), strict=True) if not alive]
        if dead:
            notify.status(f"no answer from {', '.join(dead)}")
        else:
            notify.alive()
        await asyncio.sleep(period)


async def _all(models: list[_Watched], seconds: float) -> list[bool]:
    return await asyncio.gather(*(one.tried(seconds) for one in models))


class _Watched:
    """One model."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.zeros = {spec.name: np.zeros([max(1, size) for size in spec.shape], spec.dtype) for spec in served.inputs}
        self.takes_zeros: bool | None = None
        self._runs = -1

    async def tried(self, seconds: float | None) -> bool:
        """Whether it has answered anything since the last time, or answers zeros now, within so many seconds."""
        runs, self._runs = self._runs, self.served.batcher.runs
        if self.takes_zeros and runs != self._runs:
            return True
        answered = False
        with suppress(asyncio.TimeoutError):
            answered = await asyncio.wait_for(self._answer(), seconds)
        if self.takes_zeros is None:
            self.takes_zeros = answered
        alive = answered or self.served.batcher.runs != self._runs
        self._runs = self.served.batcher.runs
        return alive

    async def _answer(self) -> bool:
        """Whether it answers, or, if it has never taken zeros, at least ends."""
        try:
            await self.served.submit(Ask(self.zeros, [], None))
        except EdgerouteError:
            return self.takes_zeros is False
        return True
