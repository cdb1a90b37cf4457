"""Contradictions in a policy, beyond errors in single keys; a policy's problems as values, and the values that messages quote."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from edgeroute.confidence.output_forms_labels_and_comparison import SLACK
from edgeroute.confidence.output_reader import bounded
from edgeroute.confidence.scores import SCORES
from edgeroute.core.policy_egress_and_options import NEEDS
from edgeroute.errors import nearest
from edgeroute.http.messages_addresses_and_secrets import chat_advice
from edgeroute.policy.units_as_text import duration
from edgeroute.system.contained_calls_and_tasks import set_within

Key = tuple[str | int, ...]
SHOWN = 60  # maximum number of characters of a value quoted in a message
HUGE = 1e300  # longer integers are not quoted: some cannot be converted to float, which formats numbers


class Problem(NamedTuple):
    """Problem of a policy."""

    key: Key  # place, as in ("cloud", 0, "timeout"); () for the policy as a whole
    text: str
    variable: str = ""  # environment variable, if the problem belongs to no key


class Wrong(Exception):
    """Carrier of problems out of pydantic, to where PolicyError is raised: errors in single keys, and contradictions."""

    def __init__(self, error: ValidationError | None, contradictions: list[Problem]) -> None:
        super().__init__()
        self.error, self.contradictions = error, contradictions


_GIVEN: ContextVar[frozenset[str]] = ContextVar("GIVEN", default=frozenset())


def given_by_program(keys: Collection[str]) -> AbstractContextManager[None]:
    """Within the block, treat keys as present that the program gives: of `edge`, `cloud`, `threshold` and `state`."""
    return set_within(_GIVEN, frozenset(keys))


def contradictions(data: Mapping[str, Any]) -> list[Problem]:
    """Return the contradictions between the keys of a policy as it was read, also where values have invalid types; see each part.

    Without an edge and a cloud that is the only one.
    """
    if not _has(data, "edge") and not _has(data, "cloud"):
        return [Problem((), "expected an [edge] section, a [cloud] section or both, found neither")]
    parts = (_sides, _times, _folder, _classes, _trials, _telemetry, _endpoints)
    return [problem for part in parts for problem in part(data)]


def _has(data: Mapping[str, Any], key: str) -> bool:
    """Return True if the file has a side, or the program gives it."""
    return bool(data.get(key)) or key in _GIVEN.get()


def _sides(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each side that the mode needs and that is not there, and for a threshold that is missing or invalid.

    It is missing if both sides are there, the mode is prefer_edge, and no model is of a catalog, which may come with its own. It
    is invalid outside of its score's range, or as a list of another length than there are edges.
    """
    mode, edges, clouds = data.get("mode", "prefer_edge"), data.get("edge"), data.get("cloud")
    for side in NEEDS.get(mode, ()) if isinstance(mode, str) else ():
        if not _has(data, side):
            yield Problem(("mode",), f'"{mode}" needs {"an" if side == "edge" else "a"} [{side}] section, and there is none')
    threshold = data.get("threshold")
    missing = threshold is None and "threshold" not in _GIVEN.get()
    if missing and edges and clouds and mode == "prefer_edge" and not _released(edges):
        text = "is missing: the confidence, such as 0.85, from which the edge's answer is accepted and nothing is sent"
        yield Problem(("threshold",), text)
    score = score if isinstance(score := data.get("score", "msp"), str) else ""
    for number in threshold if isinstance(threshold, list) else [threshold]:
        if not isinstance(number, int | float) or not abs(number) <= sys.float_info.max:
            continue
        if score in SCORES and bounded(score) and not 0 <= number <= 1 + SLACK:
            percent = f": {number:g} % is {number / 100:g}" if 1 < number <= 100 else ""  # noqa: PLR2004 - a hundred per cent
            yield Problem(("threshold",), f"expected 0 to 1, as confidences by {score}, found {quote_value(number)}{percent}")
    if isinstance(threshold, list) and isinstance(edges, dict) and len(threshold) != len(edges):
        text = f"expected one number, or a list with one for each edge model ({len(edges)}), found a list of {len(threshold)}"
        yield Problem(("threshold",), text)


def _times(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem if the hedge, a time after which the next target is asked as well, is not before the deadline."""
    deadline, hedge = _seconds(data.get("deadline")), _seconds(data.get("hedge_after"))
    if deadline is not None and hedge is not None and hedge >= deadline > 0:
        text = f"expected less than the deadline, {quote_value(data['deadline'])}, found {quote_value(data['hedge_after'])}"
        yield Problem(("hedge_after",), text)


def _folder(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each section or key that needs a state folder, if there is none.

    These are offline = "queue", outbox, fleet, a cache on disk, and a trace without a path. Also for offline = "queue" without a
    cloud, or "stale" without a cache.
    """
    offline = data.get("offline")
    if offline == "queue" and not _has(data, "cloud"):
        yield Problem(("offline",), '"queue" needs a [cloud] section, and there is none')
    if offline == "stale" and "cache" not in data:
        yield Problem(("offline",), '"stale" needs a [cache] section, and there is none')
    if "state" in data or "state" in _GIVEN.get():
        return
    needs = "needs state, the folder for what outlives the process, and there is none"
    if offline == "queue":
        yield Problem(("offline",), f'"queue" {needs}')
    for section in ("outbox", "fleet"):
        if section in data:
            yield Problem((section,), needs)
    cache, trace = data.get("cache"), data.get("trace")
    if isinstance(cache, dict) and cache.get("disk") is True:
        yield Problem(("cache", "disk"), needs)
    if isinstance(trace, dict) and "file" not in trace:
        yield Problem(("trace", "file"), "is missing, and so is state, the folder where it would be")


def _classes(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for egress rules that have no effect, and so would let everything leave, and for a class in both lists."""
    rules = data.get("egress")
    if not isinstance(rules, dict):
        return
    if {*rules} <= {"unknown_class"}:
        yield Problem(("egress",), "expected never_leave, may_leave or default_class, found none of them")
    never, may = (names if isinstance(names := rules.get(key), list) else [] for key in ("never_leave", "may_leave"))
    for name in [name for name in may if isinstance(name, str) and name in never]:
        yield Problem(("egress", "may_leave"), f"{quote_value(name)} is in never_leave too")


def _trials(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each trial that has both an edge and a cloud, or neither, or that has an edge beside none or several.

    Also for a cloud's name that is unknown, not unique, on trial already, or the only one.
    """
    clouds, trials = listed(data, "cloud"), listed(data, "trial")
    names, seen = [str(cloud.get("name", "cloud")) for cloud in clouds if isinstance(cloud, dict)], set[str]()
    for i, trial in enumerate(trials):
        if not isinstance(trial, dict):
            continue
        name = trial.get("cloud")
        if ("edge" in trial) == ("cloud" in trial):
            yield Problem(("trial", i), "expected either edge, a model, or cloud, the name of a [[cloud]]")
        elif "edge" in trial and len(listed(data, "edge")) != 1:
            yield Problem(("trial", i, "edge"), "is on trial beside the only [edge]: expected one of that")
        elif isinstance(name, str) and names.count(name) != 1:
            yield Problem(("trial", i, "cloud"), f"expected the name of one of {', '.join(names)}, found {quote_value(name)}")
        elif isinstance(name, str) and name in seen:
            yield Problem(("trial", i, "cloud"), "is on trial already")
        elif isinstance(name, str) and len(names) == 1:
            yield Problem(("trial", i, "cloud"), "is the only endpoint: expected another [[cloud]], which it is compared with")
        seen.add(str(name))


def listed(data: Mapping[str, Any], key: str) -> list[Any]:
    """Return the sections of that name, each as it was written. A section that the environment has numbered counts as a list."""
    sections = data.get(key) or []
    if isinstance(sections, dict):
        return list(sections.values()) if all(str(name).isdigit() for name in sections) else [sections]
    return sections if isinstance(sections, list) else []


def _telemetry(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each of `propagate` and `router` that has no effect, as what it belongs to is not switched on."""
    telemetry = section if isinstance(section := data.get("telemetry"), dict) else {}
    for key, needed in (("propagate", "opentelemetry"), ("router", "prometheus")):
        if key in telemetry and telemetry.get(needed, False) is False:
            yield Problem(("telemetry", key), f"has no effect without {needed} = true")


OIP: Final = "openinference", "openinference-grpc"


def _endpoints(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each endpoint of the Open Inference Protocol without a model, or with a URL of an API of chats."""
    for i, cloud in enumerate(listed(data, "cloud")):
        url = cloud.get("url") if isinstance(cloud, dict) else None
        if not isinstance(url, str) or cloud.get("protocol", OIP[0]) not in OIP:  # of any type
            continue
        if "protocol" not in cloud and (advice := chat_advice(url)):
            yield Problem(("cloud", i), advice)
        elif cloud.get("model") is None and not url.partition("/v2/models/")[2].strip("/"):
            yield Problem(("cloud", i), "which model? Give model, or a url that ends in /v2/models/NAME")


def _released(edges: Any) -> bool:
    """Return True if any model's path ends in .active: it is of a catalog, and may come with its certificate."""
    several = edges.values() if isinstance(edges, dict) else edges if isinstance(edges, list) else ()
    return any(isinstance(edge, dict) and str(edge.get("path")).lower().endswith(".active") for edge in several)


def quote_value(value: Any) -> str:
    """Return a value as messages quote it.

    Text is cut to `SHOWN` characters; of tables, lists and others only the kind is named.
    """
    if isinstance(value, str):
        return json.dumps(value if len(value) <= SHOWN else value[:SHOWN] + "...", ensure_ascii=False)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) > HUGE:
        return "a huge number"
    if isinstance(value, int | float):
        return f"{value:.9g}"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "a table" if isinstance(value, dict) else f"a {type(value).__name__}"


def wrong_word(value: Any, expected: str) -> str:
    """Return the text about a value that is none of the words which pydantic lists in quotes: the nearest of them, or all."""
    words = re.findall("'([^']*)'", expected)
    if isinstance(value, bool):  # in YAML `off`, too, is one
        return f"found {quote_value(value)}: expected one of {', '.join(words)}, in quotes"
    return f"found {quote_value(value)}: {nearest(value, words)}"


def kind_text(value: Any) -> str:
    """Return the kind of a value, without quoting a text or number, which may be a secret, or have one in it."""
    return "text" if isinstance(value, str) else "a number" if type(value) in (int, float) else quote_value(value)


def _seconds(value: Any) -> float | None:
    """Return a duration in seconds; None if it is missing or invalid."""
    try:
        return duration(value)
    except PydanticCustomError:
        return None
