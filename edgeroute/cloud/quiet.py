"""Keeps what httpcore logs at DEBUG from quoting what an endpoint replied: events of our calls are logged by name alone.

A reply's headers may repeat the credentials. The log of other users of httpcore, such as httpx, stays as it is.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar

OURS: ContextVar[bool] = ContextVar("edgeroute_call", default=False)
"""Set while a call of an endpoint is carried."""


class _NamesOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if OURS.get():
            record.msg = str(record.msg).partition(" ")[0]
        return True


def _install() -> None:
    names_only = _NamesOnly()
    for part in ("connection", "http11", "http2", "proxy", "socks"):
        logging.getLogger(f"httpcore.{part}").addFilter(names_only)


_install()
