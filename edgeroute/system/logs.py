"""The log: it is sanitised, and failures of functions of the application are in it with their tracebacks, and not each time."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

from edgeroute.core.words import FOREIGN, OWN, Coded, named, printable, told

log = logging.getLogger("edgeroute")
MESSAGE = "%s failed: %s (said once a minute at most)"


class _CleanLog(logging.Filter):
    """Sanitises the log of all of edgeroute: arguments become printable text on one line, and tracebacks are indented.

    So no text of a server or a foreign exception can start a line of the log, or send escapes to a terminal.
    """

    _format = logging.Formatter().formatException

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(arg if isinstance(arg, int | float) else _argument(arg) for arg in record.args)
        if record.exc_info and not record.exc_text and record.exc_info[0] is not None:
            record.exc_text = printable(self._format(record.exc_info)).replace("\n", "\n  ")
        return True


def _argument(arg: object) -> str:
    return told(arg, FOREIGN if isinstance(arg, BaseException) else OWN)


_CLEAN = _CleanLog()
log.addFilter(_CLEAN)


def _contain(logger: logging.Logger) -> None:
    """Prints what the application's handlers and filters raise, as `logging` does, so that the call that logs goes on."""
    handle = logger.handle

    def contained(record: logging.LogRecord) -> None:
        try:
            handle(record)
        except Exception:  # noqa: BLE001 - whatever it is, no answer is lost to it
            with contextlib.suppress(Exception):
                _PRINTS.handleError(record)

    logger.handle = contained  # type: ignore[method-assign]


_PRINTS = logging.Handler()
for _name in ("edgeroute", "edgeroute.requests"):
    _contain(logging.getLogger(_name))


def quietly(close: Callable[[], object], when: str) -> None:
    """Closes it; what that raises, which may be of any kind, is logged."""
    try:
        close()
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        log.error("%s: a part of it could not be closed", when, exc_info=e)  # noqa: TRY400 - SystemExit, too


class Failures:
    """Logs what functions of the application raise, with the traceback: once a minute at most, for each instance."""

    EVERY_S = 60.0

    def __init__(self) -> None:
        self.due = 0.0
        """Monotonic instant from which the next one is logged."""

    def log(self, what: str, error: BaseException, *, own: bool = False) -> None:
        """Logs it, unless it is no failure, such as a cancellation, or edgeroute's own, whose text says it all to who gets it.

        own: it is logged all the same, as nobody gets it.
        """
        now = time.monotonic()
        if now < self.due or (isinstance(error, Coded) and not own) or not isinstance(error, Exception | SystemExit):
            return
        self.due = now + self.EVERY_S
        info = (type(error), error, error.__traceback__)
        record = log.makeRecord(log.name, logging.ERROR, __file__, 0, MESSAGE, (what, named(error)), info)
        if log.isEnabledFor(logging.ERROR):
            _CLEAN.filter(record)  # makes text of the traceback
            record.exc_info = None  # who keeps the record would keep its frames, and all that was in the call
            log.handle(record)
