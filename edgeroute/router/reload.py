"""Policy files as a router uses them: read when it is made, read again when they change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgeroute.core.spending import Limits
from edgeroute.router.assemble import guard
from edgeroute.router.engine import Engine
from edgeroute.router.snapshot import Snapshot, build
from edgeroute.system import file_stamp

log = logging.getLogger("edgeroute")
LOOKS_S = 1.0
"""So often a watched file is looked at."""
STAYS = ("audit", "cache", "instruments", "outbox", "sensors", "state", "trace")
"""Arguments that a reload leaves as they were when the router was made: most have files that are open."""


class PolicyFile:
    """The policy file of one router.

    Args:
        path: of the file.
        more: arguments of the router that overrule the file's, and `consent` and `redact` for its egress rules.
    """

    def __init__(self, path: Path, more: Mapping[str, Any]) -> None:
        self.path, self._more = path, more
        self._seen = file_stamp(path)  # before it is read: a change from now on is noticed
        self._stop = threading.Event()

    def arguments(self) -> dict[str, Any]:
        """The router's arguments that it stands for.

        Raises:
            PolicyError: it cannot be used.
        """
        from edgeroute import settings  # pydantic is imported for policy files alone

        functions = {key: self._more[key] for key in ("consent", "redact") if key in self._more}
        arguments: dict[str, Any] = settings.load(self.path).arguments(self.path.parent, **functions)
        return {**arguments, **{key: value for key, value in self._more.items() if key not in functions}}

    def reload(self, engine: Engine) -> None:
        """Reads it again, and puts it in force.

        Raises:
            PolicyError: it cannot be used; the policy in force stays.
        """
        arguments = self.arguments()
        limits, metered = arguments.pop("limits", None), arguments.pop("metered", False)
        for key in STAYS:
            arguments.pop(key, None)

        def made(old: Snapshot) -> Snapshot:
            return build(**arguments, guard=partial(guard, engine), old=old)

        engine.replace(made, limits or Limits(), metered)

    def watch(self, reload: Callable[[], object]) -> None:
        """Calls `reload` when the file has changed, from a thread; one that cannot be used is logged."""
        threading.Thread(target=self._watch, args=(reload,), name="edgeroute-watch", daemon=True).start()

    def _watch(self, reload: Callable[[], object]) -> None:
        while not self._stop.wait(LOOKS_S):
            now = file_stamp(self.path)
            if now is not None and now != self._seen:
                self._seen = now
                try:
                    reload()
                except Exception:
                    log.exception("%s cannot be used; the policy in force stays", self.path)

    def close(self) -> None:
        """Looks no more."""
        self._stop.set()
