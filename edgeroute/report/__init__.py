"""An evaluation as one HTML file: nothing is fetched, no script runs, light and dark as the reader has it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from edgeroute.report.evaluation.evaluation import Evaluation
from edgeroute.report.page import page

__all__ = ["page", "write"]


def write(evaluation: Evaluation, path: str | PathLike[str]) -> None:
    """Writes the page. A file that is there is replaced at once or not at all.

    Raises:
        RuntimeMissing: matplotlib is not installed.
        OSError: it cannot be written.
    """
    path = Path(path)
    new = path.with_name(path.name + ".new")
    new.write_text(page(evaluation), encoding="utf-8")
    new.replace(path)
