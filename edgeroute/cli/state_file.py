"""Reads a router's state.db without changing it, also while another process writes it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.errors import BadInput, StoreError

BUSY_S = 5.0


class Value(NamedTuple):
    """A stored value."""

    value: Any
    updated: float
    """When it was last written, seconds since 1970."""


def read(folder: Path) -> dict[str, Value]:
    """All values stored in that state folder, by name; those that are not JSON are left out.

    Raises:
        BadInput: there are none.
        StoreError: it cannot be read.
    """
    path = folder / "state.db"
    if not path.exists():
        raise BadInput(f"{path}: there is no state: no router with this state folder has run, or it was removed")
    # without a journal file nobody has it open: opened this way, none is created either
    alone = "" if path.with_name("state.db-wal").exists() else "&immutable=1"
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{alone}", uri=True, timeout=BUSY_S)
        ) as connection:
            rows = connection.execute("SELECT name, value, updated FROM kept").fetchall()
    except sqlite3.Error as e:
        raise StoreError(f"{path} cannot be read: {e}") from e
    found = {}
    for name, text, updated in rows:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            found[str(name)] = Value(json.loads(text), float(updated))
    return found
