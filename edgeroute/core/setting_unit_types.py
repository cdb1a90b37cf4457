"""Types of settings' numbers: seconds, bytes, shares and the like, each a `Unit` with its range. Nothing is parsed here.

The signature of a class declares a setting once: its name, its unit, its default, and a line of the docstring. The check of the
class's arguments (`system/read_and_check_signatures.py`) and its section
(`policy/policy_keys_from_signatures.py`) read that.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple


class Unit(NamedTuple):
    """Unit and range of a number. A policy file has a duration as "300ms", a size as "16MiB", a share as "1%"."""

    kind: Literal["duration", "size", "share", "amount", "rate", "count", "whole"]
    least: float = 0
    most: float | None = None
    above: bool = False  # True if `least` itself is out of the range
    whole: bool = False
    infinite: bool = False


Seconds = Annotated[float, Unit("duration", infinite=True)]
Delay = Annotated[float, Unit("duration")]
Timeout = Annotated[float, Unit("duration", above=True)]
Patience = Annotated[float, Unit("duration", above=True, infinite=True)]
Bytes = Annotated[int, Unit("size", whole=True)]
Size = Annotated[int, Unit("size", least=1, whole=True)]
Share = Annotated[float, Unit("share", most=1)]
Chance = Annotated[float, Unit("share", most=1, above=True)]
Amount = Annotated[float, Unit("amount")]
Limit = Annotated[float, Unit("amount", infinite=True)]  # an amount of which infinity, the default, is no limit
Rate = Annotated[float, Unit("rate", above=True, infinite=True)]
Count = Annotated[int, Unit("count", least=1, whole=True)]
Whole = Annotated[int, Unit("whole", whole=True)]
