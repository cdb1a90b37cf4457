"""Ladders of codecs: several qualities, of which the best that is predicted to arrive in time is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeroute.cloud.codecs import Codec, Coded, codec_of
from edgeroute.core.ladder import Ceiling
from edgeroute.edge.tensors import Array
from edgeroute.errors import BadInput, PolicyError

NEWEST = 0.1
"""Weight of the newest input in what its encodings' sizes are predicted from."""
Choose = Callable[[Sequence[float]], int]
"""Sizes of a request's encodings, bytes, best first; NaN: it is not to be had -> which to send."""


class Ladder:
    """Several codecs, best first. As a codec it is its floor, the last: so whatever does not choose sends that.

    Args:
        rungs: two or more, all of pictures or all of tensors.

    Raises:
        PolicyError: they are not.
    """

    def __init__(self, rungs: Sequence[Codec]) -> None:
        names = [rung.name for rung in rungs]
        if len(names) < 2 or len(set(names)) < len(names):  # noqa: PLR2004 - one is no choice
            raise PolicyError(f"codec: a ladder has two or more different codecs, best first, not {', '.join(names) or 'none'}")
        if any(isinstance(rung, Ladder) for rung in rungs):
            raise PolicyError("codec: a ladder has codecs, and no ladder")
        if len({rung.pictures for rung in rungs}) > 1:
            raise PolicyError(f"codec: a ladder is of pictures or of tensors, not of both: {', '.join(names)}")
        self.rungs, self.floor, self.pictures = tuple(rungs), rungs[-1], rungs[-1].pictures
        self.name = f"ladder:{'>'.join(names)}"
        self._shares = [0.0] * len(names)
        """Bytes that each rung makes of a byte, a decaying mean; 0: not known, so it is tried."""
        self._ceiling = Ceiling()

    def encode(self, x: Array) -> Coded:
        """One input, by the floor."""
        return self.floor.encode(x)

    def chosen(self, rows: Sequence[Array], choose: Choose, grows: float = 1.0) -> tuple[str, list[Coded]]:
        """The name of the rung that was chosen, and the inputs, encoded by it.

        Rungs are chosen by the sizes that they have made of earlier inputs, and again once the size is known.

        Args:
            rows: the inputs as the rungs take them.
            choose: picks one.
            grows: bytes that are sent for one of an encoding.

        Raises:
            BadInput: the floor cannot encode them.
        """
        raw, last = sum(row.nbytes for row in rows), len(self.rungs) - 1
        sizes, made = [share * raw * grows for share in self._shares], dict[int, list[Coded]]()
        while True:
            i = choose(sizes)
            if sizes[i] != sizes[i]:
                i = last
            if i in made:
                return self.rungs[i].name, made[i]
            try:
                made[i] = [self.rungs[i].encode(row) for row in rows]
            except BadInput:
                if i == last:
                    raise
                sizes[i] = float("nan")
                continue
            size = sum(one.data.nbytes if not isinstance(one.data, bytes) else len(one.data) for one in made[i])
            sizes[i], share = size * grows, size / max(raw, 1)
            self._shares[i] += (NEWEST if self._shares[i] else 1.0) * (share - self._shares[i])

    def best(self) -> int:
        """The best rung that is tried: calls by better ones were late."""
        return min(self._ceiling.best, len(self.rungs) - 1)

    def ended(self, i: int, *, late: bool) -> None:
        """A call by that rung was late, or in time."""
        self._ceiling.ended(min(i, len(self.rungs) - 2), late=late)  # of the floor there is nothing below

    def index(self, name: str) -> int:
        """Which rung has that name; the floor, if none has."""
        return next((i for i, rung in enumerate(self.rungs) if rung.name == name), len(self.rungs) - 1)


def payload_of(given: str | Mapping[str, Any] | Codec | Sequence[Any]) -> Codec:
    """As `codec_of`; a ladder of a list of codecs.

    Raises:
        PolicyError, RuntimeMissing: as `codec_of`, and as `Ladder`.
    """
    if not isinstance(given, list | tuple):
        return codec_of(given)  # type: ignore[arg-type]  # what else it is, is refused there
    return Ladder([codec_of(one) for one in given])
