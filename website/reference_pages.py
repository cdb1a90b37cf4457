"""Writes what is generated in docs/: `python website/reference_pages.py`, or `make docs`.

commands.md has every command with its arguments and options, from the command functions; policy.md the keys of a policy below its
heading "Keys", from their JSON Schema; cards.md the tables of a card's keys, from the card's own; foreign-models.md the table of
tests/foreign_tools.py.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import typer
from sheet import ROOT
from typer.models import ArgumentInfo, OptionInfo

from edgeroute.core.policy_egress_and_options import INF
from edgeroute.edge import model_card as card
from edgeroute.edge.runtimes_variants_ensemble import ACTIVE, BUILT_IN, SCHEMES
from edgeroute.policy import schema
from edgeroute.policy.edge_sections_from_runtime_classes import registered_section
from edgeroute.policy.json_schema import runtime_schema
from edgeroute.policy.policy_keys_from_signatures import parameters_of
from edgeroute.policy.policy_settings import SECTIONS
from edgeroute.tools.cli.app import app
from edgeroute.tools.hosted_model_sentinel import Sentinel

HEAD = """\
# Commands

Each command with its arguments and options, as `edgeroute COMMAND -h` lists them. Inputs, pipes, output and exit codes:
[command line](cli.md).

Every command takes `--json`: JSON on stdout, for programs. Defaults are in parentheses. Arguments and options of several
commands:
"""
KINDS = {int: "N", float: "NUMBER", Path: "PATH", str: "TEXT"}
COMMON = 6
"""Number of commands with an equal option from which it is described once for all of them."""


class Parameter(NamedTuple):
    """Argument or option of a command."""

    name: str
    info: ArgumentInfo | OptionInfo
    type: Any
    default: Any

    @property
    def is_option(self) -> bool:
        """True of an option, False of an argument."""
        return isinstance(self.info, OptionInfo)

    @property
    def long(self) -> str:
        """The option's first name alone, as another command names it."""
        return self.shown.partition(" ")[0].rstrip(",")

    @property
    def shown(self) -> str:
        """Names and value: `--policy, -p FILE`, or `MODEL...`."""
        if isinstance(self.info, ArgumentInfo):
            return self.info.metavar or self.name.upper()
        first = str(self.info.default)  # where a name in Annotated goes
        names = [*([first] if first.startswith("-") else []), *(self.info.param_decls or ())]
        return f"{', '.join(names or ['--' + self.name.replace('_', '-')])} {self.value}".rstrip()

    @property
    def value(self) -> str:
        """Placeholder of an option's value; empty for a flag."""
        if self.type is bool:
            return ""
        if get_origin(self.type) is Literal:
            return self.info.metavar or " or ".join(get_args(self.type))
        return self.info.metavar or KINDS.get(self.type, "TEXT")

    @property
    def row(self) -> str:
        """The line that describes it, without its default."""
        return f"* `{self.shown}`: {self.info.help or ''}"

    @property
    def default_text(self) -> str:
        """The default as it is shown; empty: none is."""
        default = self.info.show_default if isinstance(self.info.show_default, str) else self.default
        if not self.info.show_default or default == "" or isinstance(default, bool | NoneType | list | tuple | type):
            return ""  # a parameter without a default has `empty`, a type
        return f"`{default}`"

    def in_full(self) -> str:
        """Return the line with the default in parentheses after the name."""
        return self.row.replace("`: ", f"` ({self.default_text}): ", 1) if self.default_text else self.row


def commands_page() -> str:
    """Return docs/commands.md: options of many commands, then each command; options described before are only named."""
    commands = [*_commands(app, "edgeroute")]
    counts = Counter(parameter.in_full() for _, _, parameters in commands for parameter in parameters)
    common = [*{row.partition(":")[0]: row for row, count in reversed(counts.most_common()) if count >= COMMON}.values()][::-1]
    first = {p.row: ("", p.default_text) for _, _, parameters in commands for p in parameters if p.in_full() in common}
    return "\n".join([HEAD, *common, "", *(_section(name, command, parameters, first) for name, command, parameters in commands)])


def _commands(app: typer.Typer, prefix: str) -> Iterator[tuple[str, Callable[..., Any], list[Parameter]]]:
    """Yield name, function and parameters of each command of an app, and of its groups."""
    for command in app.registered_commands:
        if command.callback is not None and not command.hidden:
            yield f"{prefix} {command.name or command.callback.__name__}", command.callback, [*_parameters(command.callback)]
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from _commands(group.typer_instance, f"{prefix} {group.typer_instance.info.name}")


def _section(name: str, command: Callable[..., Any], parameters: list[Parameter], first: dict[str, tuple[str, str]]) -> str:
    """Return the text of a command.

    Args:
        name: name of the command.
        command: its function.
        parameters: its arguments and options.
        first: row of an option -> (command that describes it, default there); new rows are added.
    """
    alike = dict[str, list[str]]()
    rows = []
    for parameter in parameters:
        there, default = first.setdefault(parameter.row, (name, parameter.default_text))
        if there == name:
            rows.append(parameter.in_full())
        else:
            other = f" ({parameter.default_text or 'no default'})" if parameter.default_text != default else ""
            alike.setdefault(there, []).append(f"`{parameter.long}`{other}")
    rows += [f"* {f'As for `{other}`:' if other else 'Also'} {', '.join(names)}." for other, names in alike.items()]
    return "\n".join([f"## {name}\n\n{inspect.getdoc(command)}\n", *rows, *([""] if rows else [])])


def _parameters(command: Callable[..., Any]) -> Iterator[Parameter]:
    """Yield the visible arguments and options of a command, without `--json`, which each has."""
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if get_origin(hint) is Annotated:
            kind, info = get_args(hint)[:2]
            if get_origin(kind) not in {None, Literal}:  # list[...], or ... | None
                kind = next(part for part in get_args(kind) if part is not NoneType)
            if isinstance(info, ArgumentInfo | OptionInfo) and not info.hidden:
                option = Parameter(parameter.name, info, kind, parameter.default)
                if option.long != "--json":
                    yield option


def card_tables() -> str:
    """Return the keys with types and meanings, as Markdown: the tables of docs/cards.md."""
    parts, listed = [], dict[str, str]()
    for title, table in (
        ("At the top", card.CARD), ("`input`, and each of `inputs`", card.INPUT), ("`preprocess`", card.PREPROCESS),
        ("Each of `state`", card.STATE), ("`output`", card.OUTPUT),
    ):  # fmt: skip
        rows = [f"### {title}\n"]
        free = [key for key, value in table["properties"].items() if value["description"] == "For readers."]
        for key, value in table["properties"].items():
            if key not in free:
                needed = "; required" if key in table["required"] else ""
                kind = ", ".join(f"`{choice}`" for choice in value["enum"]) if "enum" in value else value["title"]
                if listed.setdefault(kind, title) != title and len(kind) > 2 * LONG_TYPE:
                    kind = "as above"
                rows.append(f"* `{key}` ({kind}{needed}): {value['description']}")
        rows += [f"* For readers alone: {', '.join(f'`{key}`' for key in free)}."] if free else []
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


KEYS_BEGIN = "## Keys"
"""Heading of docs/policy.md below which its text is generated."""
LONG_TYPE = 40
"""Characters of a type from which another section refers to the first that has the key."""
CARD_BEGIN = "### At the top"
"""Likewise of docs/cards.md."""


def policy_keys() -> str:
    """Return the keys of a policy with types, defaults and meanings, as Markdown: docs/policy.md from `KEYS_BEGIN` on."""
    document = schema(built_in=True)
    listed = dict[str, str]()
    top = {*document["properties"]} - {*SECTIONS}
    parts = [f"{KEYS_BEGIN}\n\n### At the top of the file\n", _key_list("", document, top, {})]
    for name, models in SECTIONS.items():
        described = link_pages(document["properties"][name]["description"])
        kinds = [document["$defs"][model.__name__] for model in models]
        common = {key for key, value in kinds[0]["properties"].items() if all(k["properties"].get(key) == value for k in kinds)}
        several = " These keys are every endpoint's:" if len(kinds) > 1 else ""
        parts += [f"### `[{name}]`\n\n{described}{several}\n", _key_list(name, kinds[0], common, listed)]
        if name == "edge":
            runtimes = dict.fromkeys(target for suffix, target in sorted(BUILT_IN.items()) if suffix not in {".onnx", ACTIVE})
            parts += [text for runtime in runtimes for text in _runtime_keys(runtime, listed)]
        for i, kind in enumerate(kinds if several else ()):
            protocol = kind["properties"]["protocol"]["const"]
            parts += [f'### `[{name}]` with `protocol = "{protocol}"`\n\n{link_pages(kind["description"])}\n']
            parts += [_key_list(name, kind, {*kind["properties"]} - common - ({"protocol"} if i else set()), listed)]
    return "\n".join([*parts, f"### `[parts.sentinel]`\n\n{Sentinel.__doc__.splitlines()[0]}\n", _part_keys(Sentinel)])


def _part_keys(part: type) -> str:
    """Return the keys of a part of this package as a list: the arguments of its class, without functions."""
    rows = list[str]()
    for parameter, _, text in parameters_of((part,)):
        default = parameter.default
        shown = "required" if default is inspect.Parameter.empty else f"default {_code(default)}"
        shown = "" if default in {None, INF} else f" ({shown})"
        if parameter.name != "agrees":
            rows.append(f"* `{parameter.name}`{shown}: {text[:1].upper()}{text[1:]}")
    return "\n".join([*rows, ""])


def link_pages(text: str) -> str:
    """Return a description with the pages that it names as links: `(rules.md)` becomes `([rules](rules.md))`."""
    return re.sub(r"(?<!\])\(([a-z-]+)\.md(#[a-z-]+)?\)", r"([\1](\1.md\2))", text)


def _runtime_keys(runtime: str, listed: dict[str, str]) -> list[str]:
    """Return the keys of `[edge]` for the model files of a built-in runtime."""
    suffixes = sorted(suffix for suffix, target in BUILT_IN.items() if target == runtime)
    address = suffixes[0] in SCHEMES
    section = registered_section(suffixes[0] if address else f"model{suffixes[0]}")
    assert section is not None, "ONNX Runtime has the section Edge"
    document = runtime_schema(suffixes[0], section)
    for value in document["properties"].values():
        text = value["description"].replace("; None:", "; without it:").replace("None:", "Without it:").replace("(docs/", "(")
        value["description"] = text[:1].upper() + text[1:]
    what = "the address of a server" if address else f"a {' or '.join(f'`{suffix}`' for suffix in suffixes)} model"
    return [f"### `[edge]` with {what}\n", _key_list("edge", document, {*document["properties"]}, listed)]


def _key_list(name: str, section: Mapping[str, Any], keys: set[str], listed: dict[str, str]) -> str:
    """Return these keys of a section as a list.

    Args:
        name: name of the section.
        section: JSON Schema of the section.
        keys: the keys to list.
        listed: default and meaning of a key, or its type -> section that describes it; keys in there are only named, others
            are added.
    """
    rows, named = [], dict[str, list[str]]()
    for key, value in section["properties"].items():
        if key in keys:
            kind, meaning = _type_words(value), link_pages(value["description"])
            if (there := listed.setdefault(f"type of {key}: {kind}", name)) != name and len(kind) > LONG_TYPE:
                kind = f"as in `[{there}]`"
            shown = _key_type(value, kind, required=key in section.get("required", ()))
            known = f"{key}{value.get('default')}: {meaning}"
            if known in listed:
                named.setdefault(listed[known], []).append(f"`{key}`")
            else:
                rows.append(f"* `{key}`{shown}: {meaning}")
                listed[known] = name
    rows += [f"* As {'above' if there == name else f'in `[{there}]`'}: {', '.join(names)}." for there, names in named.items()]
    return "\n".join([*rows, ""])


def _key_type(value: Mapping[str, Any], kind: str, *, required: bool) -> str:
    """Return type and default of a key in parentheses; text is not named, nor a type that the default shows."""
    default = "required" if required else f"default {_code(value['default'])}" if value.get("default") not in (None, "") else ""
    plain = kind == "text" or (default.startswith("default") and "`" not in kind)
    parts = [part for part in ("" if plain else kind, default) if part]
    return f" ({'; '.join(parts)})" if parts else ""


def _type_words(value: Mapping[str, Any]) -> str:
    """Return the words for a key's type."""
    if "$ref" in value:
        return "table"
    if "anyOf" in value and "title" not in value:
        return " or ".join(_type_words(option) for option in value["anyOf"])
    if "enum" in value or "const" in value:
        return ", ".join(map(_code, value.get("enum") or [value["const"]]))
    if value.get("type") == "array":
        return f"list of {_type_words(value['items'])}s"
    return str(value.get("title") or _JSON_WORDS.get(value["type"], value["type"]))


_JSON_WORDS = {"string": "text", "integer": "whole number", "boolean": "true, false", "object": "table"}


def _code(value: Any) -> str:
    """Return a value as JSON in backquotes."""
    return f"`{json.dumps(value)}`"


def pages() -> dict[str, str]:
    """Return name -> text of each page of docs/ that is generated, or whose end is."""
    sys.path.append(str(ROOT / "tests"))
    models = importlib.import_module("foreign_tools").table()
    texts = {"commands.md": commands_page()}
    ends = (
        ("policy.md", KEYS_BEGIN, policy_keys()),
        ("cards.md", CARD_BEGIN, card_tables()),
        ("foreign-models.md", "| package", models),
    )
    for page, begin, end in ends:
        texts[page] = (ROOT / "docs" / page).read_text(encoding="utf-8").partition(begin)[0] + end
    return texts


if __name__ == "__main__":
    for page, text in pages().items():
        (ROOT / "docs" / page).write_text(text, encoding="utf-8")
