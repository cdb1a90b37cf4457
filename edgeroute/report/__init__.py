"""Evaluation report as one self-contained HTML file: no external resources, no scripts, light and dark mode."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from edgeroute.report.evaluation.evaluation import Evaluation
from edgeroute.report.page import page

__all__ = ["page", "write"]


def write(evaluation: Evaluation, path: str | PathLike[str]) -> None:
    """Writes the report, replacing an existing file atomically.

    Raises:
        RuntimeMissing: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    path = Path(path)
    new = path.with_name(path.name + ".new")
    new.write_text(page(evaluation), encoding="utf-8")
    new.replace(path)
