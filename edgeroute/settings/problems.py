"""What can be wrong with a policy, apart from its keys: contradictions, and the words for them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from edgeroute.settings import units

Key = tuple[str | int, ...]
SHOWN = 60
"""Characters of a value that a message quotes."""


class Problem(NamedTuple):
    """One thing that is wrong."""

    key: Key
    """Where, as in ("cloud", 0, "timeout"); () for the policy as a whole."""
    text: str
    variable: str = ""
    """The environment variable that it is about, where it is about no key."""


class Wrong(Exception):
    """Brings what was found out of pydantic, to where PolicyError is raised: errors in single keys, and contradictions."""

    def __init__(self, error: ValidationError | None, contradictions: list[Problem]) -> None:
        super().__init__()
        self.error, self.contradictions = error, contradictions


def contradictions(data: Mapping[str, Any]) -> list[Problem]:
    """What does not go together, in keys as they were given, whether of the right type or not."""
    mode, edges, clouds = data.get("mode", "prefer_edge"), data.get("edge"), data.get("cloud")
    if not edges and not clouds:
        return [Problem((), "expected an [edge] section, a [cloud] section or both, found neither")]
    problems = []
    if mode in ("only_cloud", "prefer_cloud") and not clouds:
        problems.append(Problem(("mode",), f'"{mode}" needs a [cloud] section, and there is none'))
    if mode == "only_edge" and not edges:
        problems.append(Problem(("mode",), '"only_edge" needs an [edge] section, and there is none'))
    threshold = data.get("threshold")
    if threshold is None and edges and clouds and mode == "prefer_edge":
        text = "is missing: the confidence, such as 0.85, from which the edge's answer is accepted and nothing is sent"
        problems.append(Problem(("threshold",), text))
    if isinstance(threshold, list) and isinstance(edges, dict) and len(threshold) != len(edges):
        text = f"expected one number, or a list with one for each edge model ({len(edges)}), found a list of {len(threshold)}"
        problems.append(Problem(("threshold",), text))
    deadline, hedge = _seconds(data.get("deadline")), _seconds(data.get("hedge_after"))
    if deadline is not None and hedge is not None and hedge >= deadline > 0:
        text = f"expected less than the deadline, {found(data['deadline'])}, found {found(data['hedge_after'])}"
        problems.append(Problem(("hedge_after",), text))
    return problems


def nearest(word: str, valid: Iterable[str]) -> str:
    """The valid word that is meant, perhaps; all of them otherwise."""
    words = list(valid)
    near = difflib.get_close_matches(word, words, 1) or difflib.get_close_matches(word.lower().replace("-", "_"), words, 1)
    return f'did you mean "{near[0]}"?' if near else f"expected one of {', '.join(words)}"


def found(value: Any) -> str:
    """A value as a message quotes it."""
    if isinstance(value, str):
        return json.dumps(value if len(value) <= SHOWN else value[:SHOWN] + "...", ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.9g}"
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else f"a {type(value).__name__}"


def _seconds(value: Any) -> float | None:
    try:
        return units.duration(value)
    except PydanticCustomError:
        return None
