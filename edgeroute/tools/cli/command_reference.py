"""Text of docs/commands.md: every command with its arguments and options, from the command functions."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from edgeroute.edge import model_card as card

HEAD = """\
# Commands

Each command with its arguments and options, as `edgeroute COMMAND -h` lists them. Inputs, pipes, output and exit codes:
[command line](cli.md).

Options of several commands, which their lists leave out:
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
        """The option's first name alone, as in a usage line."""
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
        if isinstance(self.type, type) and issubclass(self.type, Enum):
            return self.info.metavar or " or ".join(choice.value for choice in self.type)
        return self.info.metavar or KINDS.get(self.type, "TEXT")

    @property
    def help(self) -> str:
        """Help text, with the default."""
        text = self.info.help or ""
        default = self.info.show_default if isinstance(self.info.show_default, str) else self.default
        if not self.info.show_default or default == "" or isinstance(default, bool | NoneType | list | tuple | type):
            return text  # a parameter without a default has `empty`, a type
        return f"{text} Default: `{default.value if isinstance(default, Enum) else default}`."


def reference(app: typer.Typer) -> str:
    """Return docs/commands.md: options of many commands, then each command; options described before are only named."""
    commands = [*_commands(app, "edgeroute")]
    counts = Counter(_row(parameter) for _, _, parameters in commands for parameter in parameters)
    common = [*{row.partition(":")[0]: row for row, count in reversed(counts.most_common()) if count >= COMMON}.values()][::-1]
    first = dict.fromkeys(common, "")
    return "\n".join([HEAD, *common, "", *(_section(name, command, parameters, first) for name, command, parameters in commands)])


def _commands(app: typer.Typer, prefix: str) -> Iterator[tuple[str, Callable[..., Any], list[Parameter]]]:
    """Yield name, function and parameters of each command of an app, and of its groups."""
    for command in app.registered_commands:
        if command.callback is not None and not command.hidden:
            yield f"{prefix} {command.name or command.callback.__name__}", command.callback, [*_parameters(command.callback)]
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from _commands(group.typer_instance, f"{prefix} {group.typer_instance.info.name}")


def _section(name: str, command: Callable[..., Any], parameters: list[Parameter], first: dict[str, str]) -> str:
    """Return the text of a command. first: row of an option -> the command that describes it; new rows are added."""
    alike = dict[str, list[str]]()
    rows = []
    for parameter in parameters:
        if (row := _row(parameter)) not in first:
            rows.append(row)
        elif first[row]:
            alike.setdefault(first[row], []).append(f"`{parameter.long}`")
        first.setdefault(row, name)
    rows += [f"* As for `{other}`: {', '.join(names)}." for other, names in alike.items()]
    arguments = [parameter.shown for parameter in parameters if not parameter.is_option]
    common = [f"[{parameter.long}]" for parameter in parameters if first[_row(parameter)] == ""]
    options = ["[OPTIONS]"] if len(parameters) > len(arguments) + len(common) else []
    usage = " ".join([name, *arguments, *options, *common])
    return "\n".join([f"## {name}\n\n`{usage}`\n\n{inspect.getdoc(command)}\n", *rows, *([""] if rows else [])])


def _row(parameter: Parameter) -> str:
    """Return the line that describes a parameter."""
    return f"* `{parameter.shown}`: {parameter.help}"


def _parameters(command: Callable[..., Any]) -> Iterator[Parameter]:
    """Yield the visible arguments and options of a command."""
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if get_origin(hint) is Annotated:
            kind, info = get_args(hint)[:2]
            if get_origin(kind) not in {None, Literal}:  # list[...], or ... | None
                kind = next(part for part in get_args(kind) if part is not NoneType)
            if isinstance(info, ArgumentInfo | OptionInfo) and not info.hidden:
                yield Parameter(parameter.name, info, kind, parameter.default)


def card_tables() -> str:
    """Return the keys with types and meanings, as Markdown: the tables of docs/cards.md."""
    parts = []
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
                rows.append(f"* `{key}` ({kind}{needed}): {value['description']}")
        rows += [f"* For readers alone: {', '.join(f'`{key}`' for key in free)}."] if free else []
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)
