"""Data classes that lines of logs, prompts and tables name, for the commands that send their inputs (`EachClass`, `stricter`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from edgeroute.core.policy_egress_and_options import Denied, Rules, permit
from edgeroute.errors import BadInput
from edgeroute.system.untrusted_files import parse_json

CLASS_DEPTH: Final = 3  # mappings within a record that are searched for its data class, as in request.body.metadata


class EachClass(tuple[str | None, ...]):
    """Data classes of several inputs, one of each, in place of one class of all; None: the policy's."""

    __slots__ = ()


def data_classes(record: Mapping[str, Any], depth: int = CLASS_DEPTH) -> Iterator[Any]:
    """Yield each value of `data_class` in a record, entries of a list one by one, also of its mappings, down to three levels.

    Metadata and inputs that are texts of JSON are parsed.
    """
    for key, value in record.items():
        if key == "data_class":
            yield from (value if isinstance(value, list) else [] if value in (None, "") else [value])
        elif depth and isinstance(inner := parsed_text(value) if key in {"metadata", "input"} else value, Mapping):
            yield from data_classes(inner, depth - 1)


def parsed_text(value: Any) -> Any:
    """Return a value unchanged, but parsed if it is a text of JSON's lists or mappings, which exports to tables write so."""
    if isinstance(value, str) and value[:1] in {"[", "{"}:
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def only_class(record: Mapping[str, Any], where: str) -> str | None:
    """Return the data class that a line names, also in its mappings; None: it names none.

    Raises:
        BadInput: it names several, or something else than a text. `where`, file and line, is in the message.
    """
    names = [*data_classes(record)]
    if any(not isinstance(name, str) or not name for name in names):
        raise BadInput(f"{where}: data_class is the name of a data class, a text that is not empty")
    if len({*names}) > 1:
        raise BadInput(f"{where}: it names {len({*names})} data classes: leave one of them")
    return names[0] if names else None


def stricter(rules: Rules, named: str | None, own: str | None) -> str | None:
    """Return the data class of an input: its own, unless the one that is named for all inputs may not leave."""
    return named if own is None or (named is not None and isinstance(permit(rules, named), Denied)) else own
