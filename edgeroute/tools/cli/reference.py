"""docs/commands.md: every command with its arguments and options, from the functions that are the commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

HEAD = """\
# Commands

Every command with its arguments and options, as `edgeroute COMMAND -h` lists them. What all have in common (inputs, pipes,
`--json`, exit codes) is on the page of the [command line](cli.md).
"""
KINDS = {int: "N", float: "NUMBER", Path: "PATH", str: "TEXT"}


class Parameter(NamedTuple):
    """An argument or an option of a command."""

    name: str
    info: ArgumentInfo | OptionInfo
    type: Any
    default: Any

    @property
    def shown(self) -> str:
        """As in a usage line: `--policy, -p FILE`, or `MODEL...`."""
        if isinstance(self.info, ArgumentInfo):
            return self.info.metavar or self.name.upper()
        first = str(self.info.default)  # where a name in Annotated goes
        names = [*([first] if first.startswith("-") else []), *(self.info.param_decls or ())]
        return f"{', '.join(names or ['--' + self.name.replace('_', '-')])} {self.value}".rstrip()

    @property
    def value(self) -> str:
        """What stands for an option's value; a flag has none."""
        if self.type is bool:
            return ""
        if get_origin(self.type) is Literal:
            return self.info.metavar or " or ".join(get_args(self.type))
        if issubclass(self.type, Enum):
            return self.info.metavar or " or ".join(choice.value for choice in self.type)
        return self.info.metavar or KINDS.get(self.type, "TEXT")

    @property
    def help(self) -> str:
        """Its text, with the default."""
        text = (self.info.help or "").replace("|", "\\|")
        default = self.info.show_default if isinstance(self.info.show_default, str) else self.default
        if not self.info.show_default or isinstance(default, bool | NoneType | list | tuple | type):  # `empty` is a type
            return text
        return f"{text} Default: `{default.value if isinstance(default, Enum) else default}`."


def reference(app: typer.Typer) -> str:
    """docs/commands.md: the commands of this app, those of its groups after their groups."""
    return "\n".join([HEAD, *_sections(app, "edgeroute")])


def _sections(app: typer.Typer, prefix: str) -> Iterator[str]:
    for command in app.registered_commands:
        if command.callback is not None and not command.hidden:
            yield _section(f"{prefix} {command.name or command.callback.__name__}", command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from _sections(group.typer_instance, f"{prefix} {group.typer_instance.info.name}")


def _section(name: str, command: Callable[..., Any]) -> str:
    parameters = [*_parameters(command)]
    arguments = [found for found in parameters if isinstance(found.info, ArgumentInfo)]
    usage = " ".join([name, *(found.shown for found in arguments), *(["[OPTIONS]"] if len(arguments) < len(parameters) else [])])
    rows = [f"| `{found.shown}` | {found.help} |" for found in parameters]
    return "\n".join([f"## {name}\n\n{inspect.getdoc(command)}\n\n```text\n{usage}\n```\n\n| | |\n| --- | --- |", *rows, ""])


def _parameters(command: Callable[..., Any]) -> Iterator[Parameter]:
    hints = get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if get_origin(hint) is Annotated:
            kind, info = get_args(hint)[:2]
            if get_origin(kind) not in {None, Literal}:  # list[...], or ... | None
                kind = next(part for part in get_args(kind) if part is not NoneType)
            if isinstance(info, ArgumentInfo | OptionInfo) and not info.hidden:
                yield Parameter(parameter.name, info, kind, parameter.default)
