"""A missing confidence that says why it is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Unscored(float):
    """No confidence (NaN), and why."""

    __slots__ = ("why",)
    why: str

    def __new__(cls, why: str) -> Self:
        """A NaN with a reason."""
        self = super().__new__(cls, "nan")
        self.why = why
        return self

    def __reduce__(self) -> tuple[type[Unscored], tuple[str]]:
        return Unscored, (self.why,)
