"""Live sources for tests, and both kinds of iterators behind one blocking face."""

from __future__ import annotations

import asyncio
import queue
import threading
from time import monotonic

from both import LONG, Tasks


class Feed:
    """A source that gives what the test puts into it, as it is put; `ended` once its reader has gone."""

    def __init__(self):
        self._items, self.closed = queue.SimpleQueue(), threading.Event()

    def put(self, *items):
        """Gives them."""
        for item in items:
            self._items.put((item,))

    def end(self, error=None):
        """There are no more; error: it fails."""
        self._items.put(error)

    def __iter__(self):
        try:
            while type(item := self._items.get()) is tuple:
                yield item[0]
            if item is not None:
                raise item
        finally:
            self.closed.set()

    async def awaited(self):
        """The same, asynchronously."""
        while type(item := await asyncio.to_thread(self._items.get)) is tuple:
            yield item[0]
        if item is not None:
            raise item


class Waited:
    """An iterator of a `Tasks`, waited for."""

    def __init__(self, tasks, updates):
        self.tasks, self.updates = tasks, updates

    def __iter__(self):
        return self

    def __next__(self):
        async def one():
            try:
                return (await anext(self.updates),)
            except StopAsyncIteration:
                return None

        found = self.tasks.wait(one())
        if found is None:
            raise StopIteration
        return found[0]

    def close(self):
        """As the iterator's."""
        self.tasks.wait(self.updates.close())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getattr__(self, name):
        return getattr(self.updates, name)


def live(router, method, *args, **options):
    """`router.frames(...)` or `router.audio(...)` of either kind."""
    if isinstance(router, Tasks):
        return Waited(router, getattr(router.router, method)(*args, **options))
    return getattr(router, method)(*args, **options)


def until(condition):
    """Waits until it holds."""
    over, pause = monotonic() + LONG, threading.Event()
    while not condition():
        assert monotonic() < over, "it should have come"
        pause.wait(0.001)
