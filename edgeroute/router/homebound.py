"""Conversations that stay on the device, as they had a turn that may not leave: recognised by what is said in them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from edgeroute.core.egress import Denied, Rules, permit
from edgeroute.core.policy import Mode
from edgeroute.router.turns import Turn, encoded, looked_up, plain, remembered, turns
from edgeroute.stores.digests import Digests

WHY: Final = "this conversation had a turn that may not leave"
MOST_AWAITED: Final = 10_000
"""Calls whose answers are remembered once they are there."""


class Homebound:
    """Remembers digests of calls that had to stay, and of their answers; a later call with these messages stays, too.

    A call has to stay by its data class, or by its own mode `only_edge`; or as its conversation had such a turn.

    Args:
        path: of the file in which they are stored; None: for this router alone.
    """

    def __init__(self, path: Path | None) -> None:
        self._digests = Digests(path)
        self.awaited: dict[str, None] = {}
        """Ids of calls that stay, whose answers are not there yet."""

    def why(self, x: Any, identity: str, rules: Rules, mode: Mode | None, data_class: str | None) -> str:
        """Why this call stays although its own data class may leave; empty: it does not. One that has to stay is remembered."""
        named = data_class is None or isinstance(data_class, str)  # else the plan says what is wrong with it
        private = mode == "only_edge" or (named and isinstance(permit(rules, data_class), Denied))
        if not private and (isinstance(x, str) or not self._digests.refreshed()):
            return ""
        said = turns(x)
        if not said:
            return ""
        home = "" if private else self._known(said)
        if private or home:
            self._digests.add(remembered(said, self._digests.digest))
            if len(self.awaited) >= MOST_AWAITED:
                with suppress(RuntimeError, StopIteration):  # other threads add to it, and take from it
                    self.awaited.pop(next(iter(self.awaited)), None)
            self.awaited[identity] = None
        return home

    def _known(self, said: list[Turn]) -> str:
        if self._digests.blind:
            return f"which conversations have to stay cannot be read ({self._digests.blind})"
        return WHY if any(one in self._digests for one in looked_up(said, self._digests.digest)) else ""

    def answered(self, identity: str, value: Any) -> None:
        """Remembers the answer to a call that stays."""
        if identity not in self.awaited:
            return
        self.awaited.pop(identity, None)
        if isinstance(value, str) and (telling := [*Turn("assistant", plain(value)).telling]):
            self._digests.add([self._digests.digest(encoded(text)) for text in telling])
