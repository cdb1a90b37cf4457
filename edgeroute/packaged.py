"""Finds what comes with the package beside its code: models and documentation."""

from __future__ import annotations

from pathlib import Path

from edgeroute.errors import ModelMissing

HOMES = (Path(__file__).parent, Path(__file__).parent.parent)
"""In a built package it lies inside, in a source tree beside it."""


def folder(*parts: str, has: str) -> Path:
    """The folder of that name that has such a file.

    Raises:
        ModelMissing: there is none.
    """
    for home in HOMES:
        found = home.joinpath(*parts)
        if (found / has).exists():
            return found
    raise ModelMissing(f"{'/'.join(parts)} did not come with this edgeroute: install its wheel, or a clone with `pip install -e`")


def pages() -> Path:
    """The folder with the documentation.

    Raises:
        ModelMissing: this installation has none.
    """
    return folder("docs", has="quickstart.md")
