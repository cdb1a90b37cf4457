"""Measures every figure that has a limit, each beside its baseline: `make bench`. With `--write` docs/figures.md is made of them.

A missed limit is a row that says so, and no error. `--page` writes the page anew from the last run that was written.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from typing import Any

from figures import HEAD, ROOT, SMOKE, Figure, machine, rows, size

GROUPS: dict[str, tuple[str, ...]] = {
    "A call answered on the edge": ("overhead", "metrics"),
    "A call to the cloud": ("cloud", "callers", "guard", "many", "payloads"),
    "Language models and the gateway": ("llama", "openai_path", "gateway"),
    "Start and memory": ("startup",),
    "Stores": ("stores",),
    "Cloud failing": ("faults",),
    "The demo": ("demo",),
    "Sensors and dashboard": ("sensors", "dashboard"),
    "Thresholds and scores": ("calibration",),
    "Tools": ("replay", "fleet"),
}
"""Heading -> benchmarks beside this file, each with `figures()`."""
LAST, TEMPLATE, PAGE = ROOT / "benchmarks" / "figures.json", ROOT / "benchmarks" / "figures.md", ROOT / "docs" / "figures.md"


def measured(name: str) -> list[Figure]:
    """Return the figures of one benchmark, with its time on stderr; none, and a word about it, where a package is missing."""
    begun = time.monotonic()
    try:
        found: list[Figure] = importlib.import_module(name).figures()
    except ImportError as e:
        print(f"without {name}: {e}", file=sys.stderr)
        return []
    print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return found


def run() -> dict[str, Any]:
    """Measure all groups, and return them as figures.json has them, with machine, load and minutes."""
    groups = size(GROUPS, {"A call to the cloud": ("guard",)})  # each has a run of its own at its smallest size
    begun, on, load = time.monotonic(), machine(), round(os.getloadavg()[0], 1)
    found = {title: [list(f) for name in names for f in measured(name)] for title, names in groups.items()}
    return {"machine": on, "load": load, "minutes": round((time.monotonic() - begun) / 60, 1), "groups": found}


def table(told: dict[str, Any]) -> str:
    """Return the figures of a run by group, in Markdown."""
    lines = [*HEAD]
    for title, found in told["groups"].items():
        lines += [f"| **{title}** | | | | | |", *rows(Figure(*f) for f in found)]
    return "\n".join(
        [*lines, "", f"All in one run of {told['minutes']:g} minutes, begun at a load of {told['load']:g}: {told['machine']}."]
    )


def missed(told: dict[str, Any]) -> str:
    """Return a list of the figures beyond their limits, in Markdown, or a sentence that there are none."""
    over = [f for found in told["groups"].values() for f in (Figure(*one) for one in found) if not f.kept]
    if not over:
        return "No limit is missed in this run."
    return "\n".join(f"* **{f.name}**: {f.compared:.2f} {f.unit}; the limit is {f.limit:g}." for f in over)


def page(told: dict[str, Any]) -> str:
    """Return the text of docs/figures.md: its template, with the table and the missed limits of the run."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, part in (("table", table(told)), ("missed", missed(told))):
        text = text.replace(f"<!-- {name} -->", part)
    return text


def main() -> None:
    """Measure, print the table, and write figures.json and docs/figures.md if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="figures.json and docs/figures.md of this run")
    parser.add_argument("--page", action="store_true", help="measure nothing: docs/figures.md of figures.json")
    options = parser.parse_args()
    if options.write and SMOKE:
        parser.error("what is measured at the smallest size is no figure")
    told = json.loads(LAST.read_text(encoding="utf-8")) if options.page else run()
    print(table(told), flush=True)
    if options.write:
        LAST.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    if options.write or options.page:
        PAGE.write_text(page(told), encoding="utf-8")


if __name__ == "__main__":
    main()
