"""Messages for users, translated from pydantic's errors: they name the key, quote no secret, and suggest a valid one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgeroute.catalog.model_folder import SUFFIX
from edgeroute.confidence.scores import SCORES
from edgeroute.edge.runtimes import is_address
from edgeroute.errors import PolicyError, nearest
from edgeroute.policy.contradictions import Key, Problem, kind_text, listed, quote_value
from edgeroute.policy.policy_keys import SECTIONS, Settings
from edgeroute.policy.sections_from_classes import Section
from edgeroute.policy.single_sections import at
from edgeroute.policy.target_sections import CLOUDS, PROTOCOLS, Cloud, Edge, InstalledCloud
from edgeroute.system.late_imports import plugin_targets

REPLACED = {
    "ab": "write [trial] with edge = the path of B, and the other keys as they are (trials.md)",
    "candidate": "write [trial] with shown = false, and its keys in [trial.edge] (trials.md)",
    "cloud_arms": "write a [[trial]] for each endpoint but the first: cloud = its name; shown = false for shadow (trials.md)",
    "saver": 'a [[rule]] of = "battery" and one of = "heat" with the same `then` do the same (rules.md)',
}
"""Section of an earlier policy -> what replaces it."""


def explain(error: ValidationError) -> list[Problem]:
    """Return one problem per error; none quotes a value that may be a secret."""
    return [_problem(e["loc"], e["type"], e.get("ctx", {}), e["input"]) for e in error.errors(include_url=False)]


def _problem(loc: Key, kind: str, context: Mapping[str, Any], value: Any) -> Problem:
    """Return the problem of one pydantic error.

    A value that may be a secret is described, not quoted.

    Args:
        loc: pydantic's place of the value.
        kind: pydantic's type of the error.
        context: context of the error.
        value: the invalid value.
    """
    key, model = _place(loc)
    if kind == "extra_forbidden":
        return Problem(key, f"there is no such key: {_suggestion(str(key[-1]), model)}")
    if kind == "missing":
        return Problem(key, f"is missing. {model.model_fields[str(key[-1])].description}")
    if kind == "union_tag_invalid":
        protocols = [*CLOUDS, *plugin_targets(PROTOCOLS)]
        return Problem((*key, "protocol"), f"found {quote_value(value['protocol'])}: {nearest(value['protocol'], protocols)}")
    if kind == "literal_error":
        words = re.findall(r"'(\w+)'", context["expected"])
        if isinstance(value, bool):  # in YAML `off`, too, is one
            return Problem(key, f"found {quote_value(value)}: expected one of {', '.join(words)}, in quotes")
        return Problem(key, f"found {quote_value(value)}: {nearest(value, words)}")
    if kind == "expected":
        shown = kind_text(value) if key[-1] in _MAY_BE_SECRET else quote_value(value)
        return Problem(key, f"expected {context['words']}, found {shown}" + (f"; {context['hint']}" if context["hint"] else ""))
    if kind == "policy":
        return Problem(key, context["text"])
    return Problem(key, f"expected a section, as in [{loc[0]}] and its keys below, found {kind_text(value)}")


_MAY_BE_SECRET = ("cert", "verify")
"""Keys near which a key or password may have been written: their text is not quoted."""


def _place(loc: Key) -> tuple[Key, type[Section | Settings]]:
    """Return the key without the protocol, and the section type that the key belongs to."""
    models = SECTIONS.get(str(loc[0]), ())
    if len(loc) == 1 or not models:
        return loc, Settings
    if len(models) > 1 and len(loc) > 2:  # noqa: PLR2004 - the section, its index, then the protocol, which is no key
        return loc[:2] + loc[3:], CLOUDS.get(str(loc[2]), InstalledCloud)
    return loc, Edge if loc[0] == "trial" and "edge" in loc[1:-1] else models[0]


def _suggestion(word: str, model: type[Section | Settings]) -> str:
    """Return a suggestion: the section that such a key belongs to, or the nearest valid key.

    For a key of other clouds, the protocol that has it.
    """
    if issubclass(model, Cloud):
        for protocol, other in CLOUDS.items():
            if word in other.model_fields:
                return f'only a cloud with protocol = "{protocol}" has it'
    if model is Settings and word in REPLACED:
        return REPLACED[word]
    if word in SECTIONS:
        return f"it is a section of its own, [{word}]"
    if word in Settings.model_fields:
        return "it belongs at the top of the file, before the first section"
    homes = [f"[{home}]" for home, models in SECTIONS.items() if any(word in m.model_fields for m in models)]
    homes = [home for home in homes if home != "[trial]"] or homes
    if homes:
        return f"it belongs in {' or '.join(homes)}"
    return nearest(word, model.model_fields)


MISSPELT = re.compile('there is no such key: did you mean "([^"]+)"')
"""Text of the problem of a misspelt key, with the key that was meant."""


def corrected(data: Mapping[str, Any], problems: Iterable[Problem]) -> dict[str, Any]:
    """Return a copy of a policy in which misspelt keys have the names that were meant; empty if there are none."""
    better, changed = dict(data), False
    for (*place, name), meant in [(p.key, match[1]) for p in problems if (match := MISSPELT.match(p.text))]:
        section: Any = better
        with suppress(KeyError, IndexError, TypeError):  # a value of the environment
            for part in place:
                if isinstance(section, list) or part != 0:
                    section[part] = section = copy(section[part])  # the values stay, however deep they are
            if meant not in section:
                section[meant], changed = section.pop(name), True
    return better if changed else {}


_FILES = {"path": "model", "card": "model card", "threshold": "certificate", "score": "score"}
"""Key -> file that it may name."""


def missing_files(data: Mapping[str, Any], folder: Path, given: Collection[str]) -> Iterator[Problem]:
    """Yield a problem for each model, card, certificate and score that does not exist. given: keys that the program overrides."""
    several: list[tuple[Key, Any]] = [
        ((name, i), section) for name in ("edge", "cloud", "trial") for i, section in enumerate(listed(data, name))
    ]
    several += [((*key, "edge"), section["edge"]) for key, section in several if isinstance(section, dict) and "edge" in section]
    for place, section in [((), data), *several]:
        values = {"path": section} if isinstance(section, str) else section if isinstance(section, dict) else {}
        for key, value in [(key, values.get(key)) for key in _FILES if {*place[:1], key}.isdisjoint(given)]:
            for name in value if isinstance(value, list) else [value]:
                if not isinstance(name, str) or name in SCORES or is_address(name) or name.endswith(SUFFIX):
                    continue
                with suppress(PolicyError):  # of a name that no file can have
                    if not (path := at(folder, name)).exists():
                        yield Problem((*place, key), f"there is no {_FILES[key]} at {path}")
