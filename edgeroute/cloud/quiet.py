"""Keeps the logs of an httpx client from quoting what an endpoint replied, during our calls.

A reply's headers, and its reason phrase, may repeat the credentials. httpcore's events are logged by name alone, httpx's not
at all. The log of the application's own use of a client stays as it is.
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


def _not_ours(_: logging.LogRecord) -> bool:
    return not OURS.get()


def _install() -> None:
    names_only = _NamesOnly()
    logging.getLogger("httpx").addFilter(_not_ours)
    for part in ("connection", "http11", "http2", "proxy", "socks"):
        logging.getLogger(f"httpcore.{part}").addFilter(names_only)


_install()
