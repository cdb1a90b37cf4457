"""Sanitised logging: a filter of the `edgeroute` log, and a rate-limited log of exceptions in functions of the application."""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable
from typing import Any

from edgeroute.core.error_codes_and_texts import FOREIGN, OWN, Coded, error_message, error_text, failure_text, printable
from edgeroute.errors import StoreError

log = logging.getLogger("edgeroute")
MESSAGE = "%s failed: %s (said once a minute at most)"  # text of the log line of `Failures`; tests and users search for it


class _CleanLog(logging.Filter):
    """Log filter that makes the arguments printable text on one line, and indents tracebacks.

    So no text of a server or of a foreign exception can start a line of the log, or send escapes to a terminal. Messages of
    foreign exceptions, which may quote an input, are in the log only if its level is DEBUG; else there are types and frames.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace the arguments and the traceback of the record by printable text, in place. Every record passes."""
        if isinstance(record.args, tuple):
            record.args = tuple(arg if isinstance(arg, int | float) else _argument(arg) for arg in record.args)
        if record.exc_info and not record.exc_text and record.exc_info[0] is not None:
            record.exc_text = printable(_traceback(record.exc_info)).replace("\n", "\n  ")
        return True


def _argument(arg: object) -> str:
    """Return the argument as printable text, cut to the length for foreign text if it is an exception."""
    return error_message(arg, FOREIGN if isinstance(arg, BaseException) else OWN)


def _traceback(info: Any) -> str:
    """Return the traceback of a record's exception as text: at level DEBUG as `logging` writes it.

    Else it has the frames and the type of the exception, but neither its message nor its causes. The frames are left out as the
    interpreter ends.
    """
    try:
        if log.isEnabledFor(logging.DEBUG):
            return logging.Formatter().formatException(info)
        frames = traceback.format_tb(info[2])
    except ImportError:  # as the interpreter ends: from Python 3.13 on, modules that read the lines are imported only then
        frames = []
    return "".join(["Traceback (most recent call last):\n", *frames, failure_text(info[1])])


_CLEAN = _CleanLog()
log.addFilter(_CLEAN)


def _contain(logger: logging.Logger) -> None:
    """Replace `logger.handle`, so that exceptions of the application's handlers and filters are printed and not raised.

    BaseExceptions pass.
    """
    handle = logger.handle

    def contained(record: logging.LogRecord) -> None:
        """Handle the record, and print an exception of the handlers as `logging` does."""
        try:
            handle(record)
        except Exception:  # noqa: BLE001 - whatever it is, no answer is lost to it
            with contextlib.suppress(Exception):
                _PRINTS.handleError(record)

    logger.handle = contained  # type: ignore[method-assign]


_PRINTS = logging.Handler()
for _name in ("edgeroute", "edgeroute.requests"):
    _contain(logging.getLogger(_name))


def call_quietly(close: Callable[[], object], when: str) -> None:
    """Call `close()`; whatever it raises, except KeyboardInterrupt, is logged and not raised.

    Args:
        close: the function.
        when: start of the log line, such as the name of the object that is being closed.
    """
    call_logged(close, "%s: a part of it could not be closed", when)


_due: dict[str, float] = {}  # text of a StoreError -> monotonic instant from which it is logged again


def call_logged(call: Callable[[], object], message: str, *arguments: object) -> None:
    """Call `call()`; whatever it raises, except KeyboardInterrupt, is logged with this message, and not raised.

    An error of a file of edgeroute's own, as on a full disk, is logged in one line, once a minute; others with their traceback.
    """
    try:
        call()
    except KeyboardInterrupt:
        raise
    except StoreError as e:
        if (now := time.monotonic()) >= _due.get(text := str(e), 0.0):
            _due[text] = now + Failures.EVERY_S
            log.error(message + ": %s", *arguments, e)  # noqa: TRY400, G003 - a constant, and no traceback
    except BaseException as e:
        log.error(message, *arguments, exc_info=e)  # noqa: TRY400 - SystemExit, too


class Failures:
    """Log of exceptions in functions of the application, with traceback, at most once in `EVERY_S` seconds for each instance."""

    EVERY_S = 60.0  # least time between two log lines, seconds

    def __init__(self) -> None:
        self.due = 0.0  # monotonic instant from which the next exception is logged

    def log(self, what: str, error: BaseException, *, coded: bool = False) -> None:
        """Log an exception of a function with its traceback, unless the last log line is less than a minute old.

        Not logged: cancellations and other BaseExceptions but SystemExit, and, without `coded`, errors of edgeroute itself,
        whose text reaches the caller.

        Args:
            what: name of the function, for the log line.
            error: the exception.
            coded: logs errors of edgeroute as well, as no caller gets this one.
        """
        now = time.monotonic()
        own = isinstance(error, Coded) and not error.foreign
        if now < self.due or (own and not coded) or not isinstance(error, Exception | SystemExit):
            return
        self.due = now + self.EVERY_S
        info = None if error.__traceback__ is None else (type(error), error, error.__traceback__)
        text = error_text(error) if log.isEnabledFor(logging.DEBUG) else failure_text(error)
        record = log.makeRecord(log.name, logging.ERROR, __file__, 0, MESSAGE, (what, text), info)
        if log.isEnabledFor(logging.ERROR):
            _CLEAN.filter(record)  # makes text of the traceback
            record.exc_info = None  # who keeps the record would keep its frames, and all that was in the call
            log.handle(record)
