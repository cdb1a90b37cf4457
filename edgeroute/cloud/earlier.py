"""Spending of earlier runs and of other processes, from the state file; what is not known there counts as all of a limit."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from edgeroute import system
from edgeroute.core.policy import INF
from edgeroute.core.spending import Limits, Spending
from edgeroute.errors import StoreError

if TYPE_CHECKING:
    from edgeroute.stores.keyvalue import KeyValueStore

log = logging.getLogger("edgeroute")
PREFIX = "spending:"
"""Of the names of records, one per process that spent something."""
MOST_RECORDS = 256
"""Records of earlier processes that are kept although nothing in them counts any more, by a clock that may be wrong."""
MOST_S = 25 * 3600.0
"""The longest window plus an hour, seconds."""
AGAIN_S = 5.0
"""Seconds after which a state file that could not be read is read again."""
Lock: TypeAlias = AbstractContextManager[Any]


class EarlierSpending:
    """Adds what others have spent to this process's account.

    While the file cannot be read, what has a limit is refused; after it was damaged, until what was lost cannot count any more.
    To begin at zero at once, delete the file that was set aside.

    Args:
        spending: the account.
        store: the state file.
    """

    def __init__(self, spending: Spending, store: KeyValueStore) -> None:
        self._spending, self._store, self._said = spending, store, ""
        self._read_at = INF
        """When to read the file again, as it could not be read; inf: it was read, or is being read."""
        self.known = set[str]()
        """Names of the records whose amounts are in the account."""

    def recall(self, lock: Lock, own: str) -> bool:
        """Reads the records of other processes, each once; that of this one is `own`. Returns whether the file could be read."""
        store = self._store
        if store.path is None:
            return True
        before = _set_aside(store.path)
        try:
            rows = store.rows(PREFIX)
        except StoreError as e:
            if _set_aside(store.path) == before:
                self._unreadable(lock, str(e))
                return False
            rows = []  # it was damaged, and has just been set aside
        old: list[str] = []
        with lock:
            self._read_at, self._spending.unknown = INF, ""
            for at in _set_aside(store.path):
                self._lost(at, f"{store.path} was damaged")
            for i, (name, text, updated) in enumerate(rows):
                if name != own and name not in self.known:
                    self.known.add(name)
                    if not self._load(name, text, updated) and i >= MOST_RECORDS:
                        old.append(name)
        for name in old:
            store.forget(name, -INF)
        return True

    def _load(self, name: str, text: str, updated: float) -> bool:
        """Adds one process's record. Returns whether it still counts."""
        try:
            dumped = json.loads(text)
            boot, began = dumped.get("clock") or ("", 0.0)
            here, now_began = system.clock()
            return self._spending.load(dumped, system.now(), now_began - began if boot and boot == here else 0.0)
        except (ValueError, TypeError, AttributeError, RecursionError):
            self._lost(updated, f"the record {name} is damaged")
            return True

    def _lost(self, at: float, why: str) -> None:
        if at > system.now() - MOST_S:
            self._spending.lost(min(at, system.now()), f"what was spent is not known, since {why}")
            self._say(why)

    def _unreadable(self, lock: Lock, what: str) -> None:
        with lock:
            self._read_at = monotonic() + AGAIN_S
            self._spending.unknown = f"what was spent is not known: {what}"
        self._say(what)

    def _say(self, what: str) -> None:
        if self._spending.limits != Limits() and what != self._said:
            self._said = what
            log.error("nothing that has a limit is sent, since what was spent is not known: %s", what)

    def look_again(self, lock: Lock, own: str) -> None:
        """Reads the file again in the background, if it could not be read, and not just now."""
        if self._read_at == INF:
            return
        with lock:
            if monotonic() < self._read_at:
                return
            self._read_at = INF
        try:
            threading.Thread(target=self.recall, args=(lock, own), name="edgeroute-state", daemon=True).start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self._read_at = monotonic() + AGAIN_S


def _set_aside(path: Path) -> list[float]:
    """When damaged files with this path were set aside, seconds since 1970."""
    found = []
    with contextlib.suppress(OSError):
        for aside in path.parent.glob(f"{path.name}.corrupt-*"):
            with contextlib.suppress(OSError):
                found.append(aside.stat().st_ctime)
    return sorted(found)
