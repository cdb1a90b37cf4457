"""The columns of docs/peers.md that can be run: edgeroute's, and those of LiteLLM, pydantic-ai and firstpass where they are installed.

`python benchmarks/peers.py [COLUMN ...]`: each cell comes of doing what its row says, on loopback, and what another
router cannot be asked here is empty. edgeroute's column takes some seconds, LiteLLM's and firstpass's two minutes each: their own retries and limit.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable

import peers_more
import peers_theirs
from figures import machine, size
from peers_theirs import ATTEMPTS, BROKEN, CLOSED, SILENT, WAITS, Cells

GROUPS: dict[str, tuple[str, ...]] = {
    "Where it runs": (
        "The small model runs in the program's own process",
        "Models of images, sound and tensors, not of text alone",
        "Files that the small model may be",
        "The large model is any HTTP API that answers JSON",
        "Libraries for Swift, Kotlin, JavaScript or Dart",
        "Serves the large model, in batches on GPUs",
    ),
    "How it decides": (
        "By the confidence of the small model's answer",
        "By the prompt, before anything is generated",
        "A threshold with a statistical guarantee",
        "A sample of accepted answers is compared with the large model's",
        "A trial first: the large model answers, the small one runs beside it",
        "By battery, heat, memory or load",
        "Order of several large models",
        "The reason is in the answer",
    ),
    "When the large model fails": (
        CLOSED,
        SILENT,
        "One limit over both models and all attempts",
        ATTEMPTS,
        WAITS,
        BROKEN,
        "Both at once, and the first sure answer counts",
        "An answer at once, and a final one later",
    ),
    "What leaves the device": (
        "What is of a private class stays, and of an unknown one, too",
        "A conversation that had a private turn stays",
        "A mode in which no connection is opened",
        "A line on disk before each attempt to send",
        "Removes personal data before it is sent",
        "What waits on disk is encrypted",
    ),
    "Offline": (
        "Requests wait on disk, and are sent after a restart",
        "The late answer reaches the program, and once",
        "Old answers while offline, without a server for them",
        "Models come from signed lists, and are rolled back",
    ),
    "Text and streams": (
        "A stream is decided by its first tokens",
        "Any OpenAI client, by one environment variable",
        "Embeddings, images, speech and responses, by the same API",
        "Tools and formats of a reply",
        "Hosted models that it has an adapter for",
        "Cache by meaning",
        "Frames of a camera: the newest wins, and is refined later",
    ),
    "In operation": (
        "Limits of money, bytes, energy and calls",
        "Keys, and budgets by user",
        "A policy file, reloaded while calls run",
        "Prometheus and OpenTelemetry",
        "A recorded trace under another policy",
        "A hosted console for many devices",
        "Version",
    ),
}
"""Heading -> rows, in the order of the page."""
COLUMNS: dict[str, Callable[[], Cells]] = {
    "edgeroute": lambda: {**peers_more.CELLS, **peers_theirs.edgeroute_faults()},
    "LiteLLM": peers_theirs.litellm_cells,
    "pydantic-ai": peers_theirs.pydantic_ai_cells,
    "cascadeflow": peers_theirs.cascadeflow_cells,
    "firstpass": peers_theirs.firstpass_cells,
}


def column(name: str) -> dict[str, str]:
    """Return row -> what that router did; a row whose library is missing is left out, and reported.

    Raises:
        ImportError: the router itself is not installed.
    """
    cells = {row: _filled(name, row, probe) for row, probe in COLUMNS[name]().items()}
    return {row: text for row, text in cells.items() if text is not None}


def _filled(name: str, row: str, probe: Callable[[], str]) -> str | None:
    """Return a cell; None, which is printed, if a library that the row needs is missing."""
    try:
        return probe()
    except ImportError as e:
        print(f"{name}: without {row!r}: {e}")
        return None


def main(names: list[str]) -> None:
    """Print a table for each group of rows, with a column for each name; to stderr how long each took, or what is missing."""
    columns = dict[str, dict[str, str]]()
    for name in names:
        begun = time.monotonic()
        with contextlib.redirect_stdout(sys.stderr):
            try:
                columns[name] = column(name)
            except ImportError as e:
                print(f"without {name}: {e}", file=sys.stderr)
        print(f"{name}: {time.monotonic() - begun:.1f} s", file=sys.stderr)
    print(f"{machine()}\n")
    for group, rows in GROUPS.items():
        print(f"| {group} | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
        for row in rows:
            print(f"| {row} | {' | '.join(cells.get(row, '') for cells in columns.values())} |")
        print()


if __name__ == "__main__":
    main(sys.argv[1:] or size([*COLUMNS], ["edgeroute"]))
