"""Options shared by several commands, and parsers of values with units."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str) -> float:
    """Parses `300ms`, `1.5s` or `2m` to seconds, as in policy files."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|d)", str(text).strip())
    if found is None:
        raise typer.BadParameter(f"a time has a unit, as in 300ms, 1.5s or 2m, not {text!r}")
    return float(found[1]) * UNITS[found[2]]


def share(text: str) -> float:
    """Parses `20%` or `0.2` to 0.2."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(%?)", str(text).strip())
    value = float(found[1]) / (100 if found[2] else 1) if found else 2.0
    if value > 1:
        raise typer.BadParameter(f"a share is 0% to 100%, not {text!r}")
    return value


Policy = Annotated[
    Path, typer.Option("--policy", "-p", metavar="FILE", help="The policy: TOML, JSON or YAML.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")]
