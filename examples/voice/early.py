"""Imported first: Ctrl-C while the other modules are imported ends the program quietly, with status 130."""

from __future__ import annotations

import os
import signal

BEFORE = signal.getsignal(signal.SIGINT)


def _end(*_: object) -> None:
    os._exit(130)


def over() -> None:
    """Once they are: from now on Ctrl-C is a `KeyboardInterrupt`, as usual."""
    signal.signal(signal.SIGINT, BEFORE)


if BEFORE is signal.default_int_handler:  # else it is ignored, as in the background of a shell
    signal.signal(signal.SIGINT, _end)
