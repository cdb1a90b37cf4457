"""docs/commands.md: every command with its arguments and options, from the functions that are the commands."""

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

HEAD = """\
# Commands

Each command with its arguments and options, as `edgeroute COMMAND -h` lists them. Inputs, pipes, output and exit codes:
[command line](cli.md).

Options of several commands, which their lists leave out:
"""
KINDS = {int: "N", float: "NUMBER", Path: "PATH", str: "TEXT"}
COMMON = 6
"""An option that is the same in so many commands is described once."""


class Parameter(NamedTuple):
    """An argument or an option of a command."""

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
        """The option's long name alone."""
        return self.shown.partition(" ")[0].rstrip(",")

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
        text = self.info.help or ""
        default = self.info.show_default if isinstance(self.info.show_default, str) else self.default
        if not self.info.show_default or isinstance(default, bool | NoneType | list | tuple | type):  # `empty` is a type
            return text
        return f"{text} Default: `{default.value if isinstance(default, Enum) else default}`."


def reference(app: typer.Typer) -> str:
    """Return docs/commands.md: options of several commands, the commands, and each group with options of several of its own."""
    groups = [group.typer_instance for group in app.registered_groups if group.typer_instance is not None]
    own = _commands(app, "edgeroute")
    common = _repeated([*own, *(command for group in groups for command in _commands(group, ""))], COMMON)
    parts = [HEAD, *common, "", *(_section(*command, common) for command in own)]
    for group in groups:
        name = f"edgeroute {group.info.name}"
        commands = _commands(group, name)
        shared = [row for row in _repeated(commands, 2) if row not in common]
        parts += [f"## {name}\n\n{group.info.help}\n", *(["Of several of its commands:\n", *shared, ""] if shared else [])]
        parts += [_section(*command, common + shared) for command in commands]
    return "\n".join(parts)


def _commands(app: typer.Typer, prefix: str) -> list[tuple[str, Callable[..., Any], list[Parameter]]]:
    """Return name, function and parameters of each command of an app, without those of its groups."""
    shown = [command for command in app.registered_commands if command.callback is not None and not command.hidden]
    named = [(f"{prefix} {command.name or command.callback.__name__}", command.callback) for command in shown if command.callback]
    return [(name, command, [*_parameters(command)]) for name, command in named]


def _repeated(commands: list[tuple[str, Callable[..., Any], list[Parameter]]], times: int) -> list[str]:
    """Return the rows of options that so many commands have; of one option with several texts the most frequent."""
    counts = Counter(_row(parameter) for _, _, parameters in commands for parameter in parameters if parameter.is_option)
    return [*{row.partition(":")[0]: row for row, count in reversed(counts.most_common()) if count >= times}.values()][::-1]


def _section(name: str, command: Callable[..., Any], parameters: list[Parameter], common: list[str]) -> str:
    """Return the text of a command; options that are described before are only in its usage."""
    shared = [f"[{found.long}]" for found in parameters if _row(found) in common]
    own = [found for found in parameters if _row(found) not in common]
    arguments = [found.shown for found in parameters if not found.is_option]
    options = ["[OPTIONS]"] if len(own) > len(arguments) else []
    usage = " ".join([name, *arguments, *options, *shared])
    return "\n".join([f"## {name}\n\n`{usage}`\n\n{inspect.getdoc(command)}\n", *map(_row, own), *([""] if own else [])])


def _row(parameter: Parameter) -> str:
    return f"* `{parameter.shown}`: {parameter.help}"


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
