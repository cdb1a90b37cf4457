"""Locks that stay usable when a signal handler, such as that of Ctrl-C, raises while they are acquired."""

from __future__ import annotations

import sys
import threading
from _thread import RLock

if sys.version_info >= (3, 14):

    class SafeLock(RLock):
        """Reentrant lock that no signal leaves acquired.

        Since Python 3.14 a signal handler can raise after the `__enter__` of a `with`, before its block: `__exit__` does not run
        then, and a plain lock stays acquired for ever. In a method written in Python no signal is handled as it returns.
        """

        def __enter__(self) -> bool:
            """Acquire the lock and return True; release it again if a signal handler raises after that."""
            before = self._recursion_count()
            try:
                self.acquire()
            except BaseException:
                if self._recursion_count() > before:
                    self.release()
                raise
            return True

else:
    SafeLock = RLock


class SafeCondition(threading.Condition):
    """Condition whose `with` calls the lock's own methods.

    `threading.Condition` calls them by Python functions. Ctrl-C may raise in these with the lock taken, for ever.
    """

    def __init__(self) -> None:
        self._safe = SafeLock()
        super().__init__(self._safe)

    __enter__ = property(lambda self: self._safe.__enter__)
    __exit__ = property(lambda self: self._safe.__exit__)
