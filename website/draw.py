"""Draws pictures of docs/figures: `python website/draw.py [NAME ...]`.

The house is drawn from docs/design.md, the demo from a run of it, others from pictures.py.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

import pictures
from sheet import GRID, INK, PAPER, PLAIN, ROOT, SOFT, Sheet

FIGURES = ROOT / "docs" / "figures"

FLOORS = (
    ("programs", ("tools", "testing")),
    ("the router, its part of a fleet", ("router", "fleet")),
    ("policy files", ("policy",)),
    ("what is seen, what is kept of it", ("observe", "trials", "record")),
    ("what is asked", ("edge", "cloud", "catalog")),
    ("shared parts", ("confidence", "text", "stores", "http")),
    ("the machine, the package", ("types", "errors", "system", "models")),
    ("decisions, pure", ("core",)),
)  # fmt: skip
"""Of the house, from the top: what a floor is for, its rooms."""
UNSEEN = {"__init__", "__main__", "asgi", "sklearn"}
"""Rooms that are single files of names."""


def request() -> Sheet:
    """A request's way: the edge, its score, the gate, the cloud, all within one deadline; and what it falls back to."""
    sheet = Sheet(520, 580, "A request: the edge answers, or the cloud if it is needed and may be asked, or the edge after all")
    left, right, w = 44, 336, 236
    mid, out = left + w / 2, 168
    sheet.arrow((20, 24), (20, 556))
    sheet.upward(14, 390, "one deadline for all of it")
    sheet.text(mid, 30, "an input", middle=True)
    sheet.arrow((mid, 38), (mid, 60))
    sheet.box(left, 60, w, 58, "edge", "the edge's model", "on the device: a value")
    sheet.arrow((mid, 118), (mid, 146))
    sheet.box(left, 146, w, 58, "edge", "the edge's confidence", "at the threshold, or above?")
    sheet.arrow((left + w, 175), (right, 175))
    sheet.text(left + w + 14, 168, "yes", size=13, ink=SOFT)
    sheet.box(right, 146, out, 58, "edge", "the edge, final", "nothing was sent")
    sheet.arrow((mid, 204), (mid, 252))
    sheet.text(mid + 8, 232, "no: defer", size=13, ink=SOFT)
    sheet.box(left, 252, w, 78, PLAIN, "the gate", "mode, data class, consent,", "ledger, breaker, limits")
    sheet.arrow((left + w, 291), (right, 291))
    sheet.text(left + w + 14, 284, "no", size=13, ink=SOFT)
    fallback = "degraded", "the edge's answer,", "with the reason;", "perhaps waiting", "in the outbox"
    sheet.box(right, 262, out, 116, "degraded", *fallback)
    sheet.arrow((mid, 330), (mid, 378))
    sheet.text(mid + 8, 358, "it may leave", size=13, ink=SOFT)
    sheet.box(left, 378, w, 78, "cloud", "the cloud", "any server, in its protocol;", "retries, hedges")
    sheet.arrow((left + w, 417), (right + out / 2, 417), (right + out / 2, 378))
    sheet.text(left + w + 8, 434, "away, late, wrong", size=13, ink=SOFT)
    sheet.arrow((mid, 456), (mid, 500))
    sheet.text(mid + 8, 482, "in time", size=13, ink=SOFT)
    sheet.box(left, 500, w, 58, "cloud", "the cloud's answer", "with its reason")
    return sheet


def rooms() -> dict[str, set[str]]:
    """Room -> the rooms that it may import, by the table of docs/design.md."""
    table = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("\n## What each room may import\n")[1]
    found: dict[str, set[str]] = {}
    for room, allowed in re.findall(r"^\| `(\w+)` \| (.*?) *\|$", table.split("\n## ")[0], re.MULTILINE):
        found[room] = set(found) if allowed == "everything above" else set(re.findall(r"`(\w+)`", allowed))
    return found


def house() -> Sheet:
    """The rooms of the package on their floors.

    Raises:
        ValueError: the table of docs/design.md has other rooms, or one may import a room of a floor above it.
    """
    floor = {room: i for i, (_, names) in enumerate(FLOORS) for room in names}
    table = {room: allowed - UNSEEN for room, allowed in rooms().items() if room not in UNSEEN}
    if floor.keys() != table.keys():
        raise ValueError(f"not both in the picture and in docs/design.md: {sorted(floor.keys() ^ table.keys())}")
    up = [f"{room} imports {other}" for room, allowed in table.items() for other in allowed if floor[other] < floor[room]]
    if up:
        raise ValueError(f"not down: {up}")
    sheet = Sheet(520, 604, "The rooms of edgeroute: each imports only from its own floor and from those below it")
    y, per_row = 14, 4
    for what, names in FLOORS:
        lines = [names[i : i + per_row] for i in range(0, len(names), per_row)]
        height = 30 + 36 * len(lines)
        sheet.box(44, y, 462, height, PLAIN, line=PAPER)
        sheet.text(56, y + 20, what, size=13, ink=SOFT)
        for j, line in enumerate(lines):
            w = 438 / per_row
            for i, name in enumerate(line):
                sheet.box(56 + i * w, y + 28 + 36 * j, w - 8, 30, PAPER, name)
        y += height + 8
    sheet.arrow((22, 24), (22, y - 14))
    sheet.upward(15, y / 2 + 60, "imports go down")
    return sheet


class Demo(NamedTuple):
    """What the chart shows, in percent."""

    curve: list[tuple[float, float]]
    edge: float
    cloud: float
    deferred: float
    accuracy: float
    n: int


def measured() -> Demo:
    """A run of `edgeroute demo` on the 1,000 images that come with edgeroute."""
    from edgeroute.tools.cli.demo import run
    from edgeroute.tools.cli.demo_measurements_and_report import points

    report = run(n=1000, rtt=0.0, data=None, most=0.2)
    x, y = points(report)
    shares = report.edge.accuracy, report.cloud.accuracy, report.cascade.deferral, report.cascade.accuracy
    return Demo(list(zip(x, y, strict=True)), *(100 * share for share in shares), report.n)


def demo(found: Demo) -> Sheet:
    """Accuracy over the share that is deferred."""
    sheet = Sheet(520, 340, "Accuracy over the share of images that are deferred to the cloud, in the demo")
    left, top, w, h = 62, 40, 430, 240
    low, high = 94.4, 96.6

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / 100 * w, top + (high - y) / (high - low) * h

    for y in (94.5, 95, 95.5, 96, 96.5):
        sheet.line([at(0, y), at(100, y)], GRID, width=1)
        sheet.text(left - 50, at(0, y)[1] + 5, f"{y:.1f} %", size=13, ink=SOFT)
    for x in (0, 25, 50, 75, 100):
        sheet.text(at(x, 0)[0], top + h + 20, f"{x} %", middle=True, size=13, ink=SOFT)
    sheet.text(left - 50, 24, f"right, of {found.n:,} images", size=13, ink=SOFT)
    sheet.text(left + w / 2, top + h + 44, "deferred to the cloud", middle=True, size=13, ink=SOFT)
    sheet.line([at(0, found.edge), at(100, found.cloud)], SOFT, width=1.3, dashed=True)
    sheet.line([at(x, y) for x, y in found.curve], INK, width=2.4)
    sheet.dot(*at(found.deferred, found.accuracy), INK)
    sheet.mark(*at(0, found.edge), "edge")
    sheet.mark(*at(100, found.cloud), "cloud")
    x, y = at(0, found.edge)
    sheet.text(x + 14, y + 10, f"the edge alone: {found.edge:.1f} %")
    x, y = at(100, found.cloud)
    sheet.text(x - 176, y - 14, f"the cloud alone: {found.cloud:.1f} %")
    x, y = at(50, (found.edge + found.cloud) / 2)
    sheet.text(x + 8, y + 20, "deferred at random", size=13, ink=SOFT)
    x, y = at(found.deferred, found.accuracy)
    sheet.text(x + 2, y - 32, f"edgeroute: {found.accuracy:.1f} %, {found.deferred:.1f} % deferred", bold=True)
    return sheet


STILL = {
    "request": request, "house": house, "modes": pictures.modes, "deadline": pictures.deadline, "refine": pictures.refine,
    "breaker": pictures.breaker, "gate": pictures.gate, "outbox": pictures.outbox, "text-stream": pictures.text_stream,
    "trials": pictures.trials, "confidence": pictures.confidence, "ladder": pictures.ladder,
    "frames": pictures.frames, "gateway": pictures.gateway, "rules": pictures.rules, "publish": pictures.publish,
    "fleet": pictures.fleet, "states": pictures.states,
}  # fmt: skip
"""Name -> a picture that is the same in each run."""


def main(names: list[str]) -> None:
    """Writes the pictures of these names, or all."""
    drawings = {**STILL, "demo": lambda: demo(measured())}
    for name in names or drawings:
        (FIGURES / f"{name}.svg").write_text(str(drawings[name]()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
