"""What both routers offer alike: it needs no pump."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edgeroute.errors import PolicyError
from edgeroute.observe.stats import Stats
from edgeroute.router.engine import Engine
from edgeroute.router.reload import PolicyFile
from edgeroute.router.snapshot import fingerprints

if TYPE_CHECKING:
    from typing_extensions import Self

Late = TypeVar("Late", bound=Callable[..., object])


class EngineOwner:
    """Owns an engine, and the policy file that it was made from.

    Attributes:
        engine: the parts that it is made of.
    """

    engine: Engine
    _file: PolicyFile | None = None

    @classmethod
    def from_policy(cls, path: str | Path, *, watch: bool = False, **more: Any) -> Self:
        """The router that a policy file describes: TOML, JSON or YAML, with EDGEROUTE_ variables over it.

        Args:
            path: of the file; relative paths in it start from its folder.
            watch: reload when the file changes; one that cannot be used is logged, and the old policy stays.
            more: further arguments of the router, which overrule the file's, and `consent` and `redact` for its egress rules.

        Raises:
            PolicyError: one message with everything that is wrong, and the nearest valid name.
        """
        file = PolicyFile(Path(path), more)
        self = cls(**file.arguments())
        self._file = file
        if watch:
            file.watch(self.reload)
        return self

    def reload(self) -> None:
        """Reads the policy file again.

        Requests under way end under the policy they began with; models and connections that stay the same are kept. What
        is on disk (state, cache, outbox, trace) stays as it was when the router was made.

        Raises:
            PolicyError: the file cannot be used, or there is none; the policy in force stays.
        """
        if self._file is None:
            raise PolicyError("this router was not made from a policy file: there is nothing to read again")
        self._file.reload(self.engine)

    def on_late(self, function: Late) -> Late:
        """Has `function(late)` called with every answer of the cloud that comes after its request was answered. A decorator.

        Called once for each request, in a thread, in whichever run of the program the answer comes. With an outbox an answer
        whose call did not end (the process was killed) is handed over again, with the same id. `function(late, tx)` makes
        it exactly once: what it writes by `tx.execute(...)`, in the outbox's own file, happens if and only if the answer
        counts as handed over. With an outbox there is one such function: a later one takes its place.

        Raises:
            PolicyError: the function cannot be called so.
        """
        self.engine.on_late(function)
        return function

    def stats(self) -> Stats:
        """Counts, deferral rate, latency quantiles, bytes and money, since the router was made."""
        return self.engine.stats()

    def fingerprints(self, edge: int = 0) -> dict[str, str]:
        """What a certificate for this router is bound to, for `calibrate(..., fingerprints=...)`.

        Args:
            edge: which of the edge models, counted from 0.
        """
        snapshot = self.engine.snapshot
        i = [i for i, t in enumerate(snapshot.targets) if t.side == "edge"][edge]
        return fingerprints(snapshot.backends, i, snapshot.specs[i][3], snapshot.egress)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
        self.engine.close()
