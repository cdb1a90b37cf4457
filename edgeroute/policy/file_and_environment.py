"""Sources of a policy: a file in TOML, JSON or YAML, overridden by environment variables; and their messages without values."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from edgeroute.core.error_codes_and_texts import clean
from edgeroute.errors import PolicyError, RuntimeMissing, nearest
from edgeroute.policy.json_schema import keys_of, sections
from edgeroute.policy.policy_problems_and_contradictions import Key, Problem
from edgeroute.policy.policy_settings import LISTS, SECTIONS
from edgeroute.system.untrusted_files import parse_json, read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "EDGEROUTE_"
MOST_BYTES = 1 << 20  # maximum bytes of a policy file
MAX_NODES = 10_000  # maximum values of a policy in YAML, with aliases expanded
MOST_QUOTED = 60  # maximum characters of a key quoted in a message
# Kubernetes sets these in every container, for services whose names begin with "edgeroute"
_KUBERNETES = re.compile(r"EDGEROUTE_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT|PORT)(_[A-Z0-9_]+)?")


def read_policy(path: Path) -> dict[str, Any]:
    """Read and parse the file without validating it; a key whose value is null counts as unset.

    Groups of variants among the edges are replaced by their members (`_without_groups`).

    Raises:
        PolicyError: the file cannot be read, or is not in the format of its suffix; the message has line and column.
        RuntimeMissing: the file is YAML, and pyyaml is not installed.
    """
    parse = _FORMATS.get(path.suffix.lower())
    if os.path.isdir(path):  # noqa: PTH112 - no error in a folder that may not be read
        raise PolicyError(f"{path}: is a directory: expected a file that ends in {', '.join(_FORMATS)}")
    if parse is None:
        raise PolicyError(f"{path}: expected a file that ends in {', '.join(_FORMATS)}, found {path.suffix or 'no suffix'!r}")
    try:
        data = _without_nulls(parse(read_text(path, MOST_BYTES)))
    except FileNotFoundError:
        raise PolicyError(f"{path}: there is no such file") from None
    except OSError as e:
        raise PolicyError(f"{path}: cannot be read: {e.strerror}") from None
    except RecursionError:
        raise PolicyError(f"{path}: is nested too deeply") from None
    except ValueError as e:
        raise PolicyError(f"{path}: {e}") from None
    if not isinstance(data, dict):
        raise PolicyError(f"{path}: expected keys such as mode and a section such as [edge], found something else")
    return {**data, "edge": _without_groups(data["edge"], path)} if "edge" in data else data


class File(PydanticBaseSettingsSource):
    """Settings source for the result of `read_policy`."""

    def __init__(self, settings_cls: type[BaseSettings], data: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self.data = {key: _by_number(value) if key in LISTS else value for key, value in data.items()}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """Return the value of a field; the base class requires the method, and nothing calls it."""
        return self.data.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Return key -> value; a section is a mapping of keys, a repeatable one a mapping of indices to sections."""
        return self.data


class Environment(File):
    """Settings source for EDGEROUTE_MODE and the like; __ separates a section and its key.

    Attributes:
        problems: variables that match no key, and values that cannot be parsed.
    """

    def __init__(self, settings_cls: type[BaseSettings], file: Mapping[str, Any]) -> None:
        super().__init__(settings_cls, {})
        self.problems: list[Problem] = []
        self._names: dict[Key, str] = {}
        self._counts = {section: len(value) if isinstance(value := file.get(section, []), list) else 1 for section in LISTS}
        self._broken = {name for name in SECTIONS if not isinstance(file.get(name, {}), dict | list if name in LISTS else dict)}
        self._sections: dict[str, Mapping[str, Any]] = {}
        named = set(_named_secrets(file))
        for name, text in sorted(os.environ.items()):
            if name.upper().startswith(PREFIX) and name not in named and not _KUBERNETES.fullmatch(name):
                self._sections = self._sections or _sections(file)
                try:
                    self._add(name, text)
                except ValueError as e:
                    self.problems.append(Problem((), str(e), name))

    def _add(self, name: str, text: str) -> None:
        """Parse a variable, and store its value in `data` under its key, and its name.

        Raise ValueError if it is no variable of the policy, empty, or invalid. A value is dropped if the file has something else
        than a section in the place of its section.
        """
        key = self._key(name)
        section = str(key[0]) if len(key) > 1 else ""
        if not text:
            raise ValueError("is empty: give it a value, or unset it")
        value = _value(name, text, self._sections[section][str(key[-1])])
        if section in self._broken:
            return  # overriding it would hide that it is not a section
        level = self.data
        for part in key[:-1]:
            level = level.setdefault(str(part), {})
        level[str(key[-1])] = value
        self._names[key] = name

    def _key(self, name: str) -> Key:
        """Return the key that a variable sets: (key,), (section, key), or (section, number, key) for a section of a list.

        Raises:
            ValueError: the name is unknown, not in capitals, or lacks a valid number.
        """
        section, _, key = name.removeprefix(PREFIX).lower().rpartition("__")
        section, _, number = section.partition("__")
        count = self._counts.get(section, 0)
        known = key in self._sections.get(section, {}) and not (key in SECTIONS and not section)
        if name != name.upper() or not known or (number and section not in LISTS):
            variables = variable_names(self._sections)
            near = [variable for variable in variables if variable.startswith(f"{name.upper()}__")]
            raise ValueError(f"there is no such variable: {nearest(name.upper(), near or variables)}")
        if section not in LISTS:
            return (section, key) if section else (key,)
        if count > 1 and not number:
            numbered = f"{PREFIX}{section}__0__{key}".upper()
            raise ValueError(f"which of the {count} [[{section}]]? Say its number, counted from 0, as in {numbered}")
        if number and not (number.isdecimal() and int(number) < max(count, 1)):
            raise ValueError(f"there is no [[{section}]] number {number}: the file has {count}, counted from 0")
        return (section, int(number or 0), key)

    def variable(self, key: Key) -> str:
        """Return the name of the variable that sets a key, or a section around it; empty if there is none."""
        return next((self._names[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self._names), "")

    def line(self, problem: Problem, path: str | Path) -> str:
        """Return a problem as one line: the variable that sets its key, or else the file and the key, and the text.

        The number of a section is left out if it is the only one of its list.
        """
        key = problem.key
        if name := problem.variable or self.variable(key):
            return f"{name}: {problem.text}"
        several = key and self._counts.get(str(key[0]), 0) > 1
        parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in key if several or not isinstance(part, int)]
        return f"{path}: {''.join(parts).removeprefix('.')}{': ' if key else ''}{problem.text}"


def _value(name: str, text: str, schema: Mapping[str, Any]) -> Any:
    """Parse a variable's text for its key: JSON for lists and tables, a number, true or false, or the text itself.

    A text that does not fit is left for the key's own validation to reject. A secret becomes a reference to its variable. Raises
    ValueError for damaged JSON.
    """
    if schema.get("type") == "string" or "const" in schema:
        return text
    secret = "env" in schema.get("properties", {})
    if text[0] in ("{" if secret else "[{"):
        try:
            return parse_json(text, _once)
        except ValueError as e:
            if not secret:
                raise ValueError(f'expected JSON, such as ["a", "b"], found {_place(e)}') from None
    if secret:
        return {"env": name}  # a reference to the secret, so that it stays in the variable
    try:
        return parse_json(text.lower() if text.lower() in {"true", "false"} else text)
    except ValueError:
        return text


def _sections(file: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return section -> key -> schema of all keys, for names and types of variables.

    `edge` also has the keys of the runtimes of the models that the file or a variable names.
    """
    edges = file.get("edge")
    listed = edges if isinstance(edges, list) else [edges]
    paths = [section.get("path") for section in listed if isinstance(section, dict)]
    paths += [text for name, text in os.environ.items() if _PATH.fullmatch(name)]
    return {**sections(), "edge": {**sections()["edge"], **keys_of(paths)}}


_PATH = re.compile(f"{PREFIX}EDGE__([0-9]+__)?PATH")  # variables with the path of a model


def variable_names(known: Mapping[str, Mapping[str, Any]] | None = None) -> list[str]:
    """Return the names of all environment variables; without `known` sections those with built-in runtimes only."""
    keys = [f"{section}__{key}".removeprefix("__") for section, names in (known or sections()).items() for key in names]
    return [f"{PREFIX}{key}".upper() for key in keys if key not in SECTIONS]


def _by_number(value: Any) -> Any:
    """Return a list as "0", "1", ... -> section, and one section as "0" -> section, to be merged with the environment's.

    Anything else is returned unchanged.
    """
    if isinstance(value, list):
        return {str(i): section for i, section in enumerate(value)}
    return {"0": value} if isinstance(value, dict) else value


def _named_secrets(data: Any) -> Iterator[str]:
    """Yield the values of all keys `env` in the policy, at any depth: the variables that it names as secrets."""
    if isinstance(data, dict):
        if isinstance(data.get("env"), str):
            yield data["env"]
        data = list(data.values())
    if isinstance(data, list):
        for value in data:
            yield from _named_secrets(value)


def _without_nulls(data: Any) -> Any:
    """Return a copy of data without keys whose value is null, at any depth, but not within `body`, which may send null.

    Keys become text. Raises ValueError for a text that UTF-8 cannot write.
    """
    if isinstance(data, dict):
        return {
            _text(str(key)): value if key == "body" else _without_nulls(value)  # a body may send null
            for key, value in data.items()
            if value is not None
        }
    if isinstance(data, str):
        _text(data)
    return [_without_nulls(value) for value in data] if isinstance(data, list) else data


def _text(text: str) -> str:
    """Return the text; raise ValueError if the text, which a JSON or YAML escape may have made, cannot be written in UTF-8."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("expected text, found half of a character, as \\ud800 is")
    return text


def _without_groups(edges: Any, path: Path) -> Any:
    """Return the edge models as a list, with the members of each group of variants in place of the group.

    Each member gets the keys `variant`, its name, and `group`, and the group's `view`. Without any group the edges are returned
    unchanged.

    Raises:
        PolicyError: a group has other keys, which are its members', or a member has no name.
    """
    listed = edges if isinstance(edges, list) else [edges]
    if not any(isinstance(edge, dict) and isinstance(edge.get("variant"), list) for edge in listed):
        return edges
    flat = []
    for i, edge in enumerate(listed):
        members = edge.get("variant") if isinstance(edge, dict) else None
        if not isinstance(members, list):
            flat.append(edge)
            continue
        if other := [key for key in edge if key not in {"variant", "view"}]:
            raise PolicyError(f"{path}: edge.{other[0]}: belongs in each [[edge.variant]], not beside them")
        if not all(isinstance(member, dict) and isinstance(member.get("name"), str) and member["name"] for member in members):
            raise PolicyError(f'{path}: edge.variant: expected sections [[edge.variant]], each with a name, as in name = "int8"')
        view = {"view": edge["view"]} if "view" in edge else {}
        for member in members:
            rest = {k: v for k, v in member.items() if k != "name"}
            flat.append({**view, **rest, "variant": member["name"], "group": f"[[edge]] {i + 1}"})
    return flat


MOST_PARTS = 64  # maximum parts of a dotted key
# A part of a dotted key, and the dot. Its first character tells its kind, so that there is one way alone to read a text.
_PART = r"""(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*\.[ \t]*"""
_LONG_KEY = re.compile(rf"(?<![^\s\[{{,])(?:{_PART}){{{MOST_PARTS}}}")


def parse_toml(text: str) -> Any:
    """Parse TOML of a policy; raise ValueError if it is none, or a key has more than `MOST_PARTS` parts.

    The message has the place, and the key of that line; it quotes no value.
    """
    if _LONG_KEY.search(text):  # each part is a section within the one before, and parsing takes memory by the square of them
        raise ValueError(f"is not TOML of a policy: a key has more than {MOST_PARTS} parts")
    try:
        return tomllib.loads(text)
    except ValueError as e:
        raise ValueError(f"is not TOML: {_toml_words(str(e), text)}") from None


def _toml_words(message: str, text: str) -> str:
    """Return the parser's message with the key of its line and a hint at what to write; no values, which may be secrets.

    The message itself if the line has no key.
    """
    place = re.search(r" \(at line (\d+), column \d+\)$", message)
    line = text.splitlines()[int(place[1]) - 1] if place and int(place[1]) <= len(text.splitlines()) else ""
    if place is None or (key := re.match(r"\s*([\w.-]{1,60})\s*([=:])|\s*\[+([\w.-]{1,60})\]", line)) is None:
        return message
    if message.startswith("Cannot overwrite a value") and key[1]:
        return _twice(key[1]) + place[0]
    if key[3]:
        several = f"; several of them are [[{key[3]}]]" if key[3] in LISTS else ""
        return f"the section [{key[3]}] is there twice{several}{place[0]}" if "twice" in message else message
    hints = {
        "Invalid value": 'text needs straight quotes, "300ms", and a number a digit before its point, 0.5',
        "Expected '=' after": "a key and its value have = between",
    }
    hint = next((f"; {words}" for start, words in hints.items() if message.startswith(start)), "")
    return f"{key[1]}: {message[: place.start()]}{place[0]}{hint}"


def _json(text: str) -> Any:
    """Parse JSON; raise ValueError if it is none, or an object has a key twice.

    The message has the place, and quotes no value.
    """
    try:
        return parse_json(text, _once)
    except _Twice as e:
        lines = [n for n, line in enumerate(text.splitlines(), 1) for _ in re.findall(rf"{re.escape(e.quoted)}\s*:", line)]
        raise ValueError(f"is not JSON: {e}{f' (at line {lines[1]})' if len(lines) == 2 else ''}") from None  # noqa: PLR2004
    except ValueError as e:
        raise ValueError(f"is not JSON: {_place(e)}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object of its pairs; raise `_Twice`, a ValueError, for a key that is there twice."""
    if len(unique := dict(pairs)) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise _Twice(twice)
    return unique


class _Twice(ValueError):
    """Key of a JSON object that is there twice."""

    def __init__(self, key: str) -> None:
        super().__init__(_twice(key))
        self.quoted = json.dumps(key)


def _twice(key: str) -> str:
    """Return the message for a repeated key."""
    return f"the key {json.dumps(clean(key, MOST_QUOTED), ensure_ascii=False)} is there twice"


def _yaml(text: str) -> Any:
    """Parse YAML; an empty document is {}.

    Raise ValueError for a key that is there twice, aliases that stand for more than `MAX_NODES` values, and what is no YAML or
    not safe; the message has the place, and quotes no value. Raise RuntimeMissing without pyyaml.
    """
    try:
        import yaml
    except ImportError as e:
        raise RuntimeMissing("a policy in YAML needs pyyaml: pip install 'edgeroute[yaml]'") from e
    try:
        loader = _unique_keys()(text)
        try:
            node = loader.get_single_node()
            if node is not None and _nodes(node, {}) > MAX_NODES:
                raise ValueError(f"its aliases stand for more than {MAX_NODES} values")
            return (loader.construct_document(node) if node is not None else None) or {}
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as e:
        message = _YAML_QUOTED.sub(r"\1", e.problem or "an error")
        if "'\\t'" in (e.problem or ""):
            message = "found a tab, where YAML is indented with spaces"
        raise ValueError(f"is not YAML: {message}{_at(e.problem_mark)}") from None
    except (yaml.YAMLError, ValueError) as e:
        raise ValueError(f"is not YAML: {str(e).splitlines()[0]}") from None


# Quotes in pyyaml's messages: a character or the kind of a token (the group), else text of the file, perhaps a secret.
_YAML_QUOTED = re.compile(r"""(\s*(?:'.'|'<[a-z ]+>'))|\s*['"].*""", re.DOTALL)


def _at(mark: Any) -> str:
    """Return the place of a YAML mark for a message."""
    return f" (at line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""


def _nodes(node: Any, known: dict[int, float]) -> float:
    """Return the number of values of a YAML node, where an alias counts as what it stands for; infinite within itself.

    Fills `known`.
    """
    count = known.get(id(node))
    if count is None:
        known[id(node)] = inf
        parts = node.value if isinstance(node.value, list) else []
        known[id(node)] = count = 1 + sum(
            _nodes(child, known) for part in parts for child in (part if isinstance(part, tuple) else (part,))
        )
    return count


@cache
def _unique_keys() -> Any:
    """Return a class of safe YAML loaders that raise ValueError for a key that is there twice; cached, as it is made now.

    A key from a merge (`<<`) may be overridden. The error for a value that does not fit its type does not quote it.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, AttributeError, TypeError):  # as of `!!int x`, in words that quote it
                text = "a value that does not fit its type"
                raise yaml.constructor.ConstructorError(None, None, text, node.start_mark) from None

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # here: later, merges have added their keys
            node = super().compose_mapping_node(anchor)
            seen = set[str]()
            for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:  # others are refused as they are
                merge = key.tag == "tag:yaml.org,2002:merge"
                name = key.value if merge else str(self.construct_object(key))
                if name in seen:
                    raise ValueError(_twice(name) + _at(key.start_mark))
                seen.add(name)
            return node

    return Loader


def _place(error: ValueError) -> str:
    """Return the place and text of a JSON error."""
    if isinstance(error, json.JSONDecodeError):
        return f"an error at line {error.lineno}, column {error.colno}: {error.msg}"
    return str(error)


_FORMATS = {".toml": parse_toml, ".json": _json, ".yaml": _yaml, ".yml": _yaml}  # suffix -> parser
