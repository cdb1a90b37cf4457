"""One palette and one vocabulary: colours that everybody can tell apart, and states by an answer's public attributes."""

from __future__ import annotations

import io
import itertools
import math
import re
import sys
from pathlib import Path

import pytest
from both import sure, unsure

from edgeroute import Egress, Function, Router
from edgeroute.tools.state_colours_and_marks import STATES, answer_state, css, marked, svg_hatches

ROOT = Path(__file__).resolve().parent.parent
SIGHT = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
"""Linear RGB as it is seen, of Machado, Oliveira and Fernandes (2009), severity 1."""


def linear(colour):
    """Linear RGB of a colour such as #0f80cc."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]


def lab(rgb):
    """CIELAB of linear RGB."""
    rows = ((0.4124, 0.3576, 0.1805, 0.95047), (0.2126, 0.7152, 0.0722, 1.0), (0.0193, 0.1192, 0.9505, 1.08883))
    shares = [sum(a * min(1, max(0, b)) for a, b in zip(row, rgb, strict=False)) / row[3] for row in rows]
    x, y, z = (share ** (1 / 3) if share > 0.008856 else 7.787 * share + 16 / 116 for share in shares)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def contrast(one, other):
    """WCAG's contrast of two colours."""
    high, low = sorted((0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (linear(one), linear(other))), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("sight", [*SIGHT])
@pytest.mark.parametrize(("page", "back"), [("light", "#ffffff"), ("dark", "#16171a")])
def test_colours_differ_for_everybody(sight, page, back):
    """Each pair by 19 of CIELAB at least (2 is just seen), and each from its page by a contrast of 3 (WCAG 2.2, 1.4.11)."""
    colours = [getattr(state, page) for state in STATES.values()]
    assert min(contrast(colour, back) for colour in colours) >= 3
    seen = [lab([sum(a * b for a, b in zip(row, linear(colour), strict=True)) for row in SIGHT[sight]]) for colour in colours]
    assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) > 19


def test_marks_and_hatches_differ():
    """In print and in a terminal without colour a state is still one of six."""
    assert len({state.mark for state in STATES.values()}) == len({state.hatch for state in STATES.values()}) == len(STATES) == 6
    assert all(len(state.mark) == 1 for state in STATES.values())
    assert marked("edge", "edge alone") == "● edge alone"


def test_css_has_each_colour_twice():
    """For light and for dark pages; a pattern for each state."""
    assert re.findall(r"--(\w+): (#\w{6})", css()) == [
        (name, getattr(state, page)) for page in ("light", "dark") for name, state in STATES.items()
    ]
    assert re.findall(r'id="hatch-(\w+)"', svg_hatches()) == [*STATES]
    assert css().count("--hatch: #000") == 1
    assert svg_hatches().count("var(--hatch, #fff)") == 5
    assert re.findall(r"(?m)^\.(\w+) ", css(".a", ".b")) == ["a", "b"]


def test_states_of_real_answers():
    """By public attributes alone."""

    def away(_):
        raise ConnectionError

    def good(_):
        return "cloud"

    def state(router, **options):
        with router:
            answer = router.infer(1.0, **options)
            return answer_state(answer.source, answer.reason_code, degraded=answer.degraded, final=answer.final)

    assert state(Router(sure, Function(good), threshold=0.8)) == "edge"
    assert state(Router(unsure, Function(good), threshold=0.8)) == "cloud"
    assert state(Router(unsure, Function(away), threshold=0.8)) == "degraded"
    assert state(Router(sure, Function(good), threshold=0.8, egress=Egress(never_leave={"face"})), data_class="face") == "private"
    assert (
        state(Router(unsure, Function(good), threshold=0.8, egress=Egress(never_leave={"face"})), data_class="face") == "private"
    )
    assert answer_state("cache", "cached") == answer_state("stale", "stale") == "cache"
    assert answer_state("edge", "below", degraded=True, final=False) == "waiting"


@pytest.mark.parametrize(("encoding", "shown"), [("utf-8", ["● edge alone", "cascade"]), ("cp1252", ["edge alone", "cascade"])])
def test_a_table_in_a_terminal_has_marks(monkeypatch, encoding, shown):
    """Where the terminal has them; else the word alone."""
    pytest.importorskip("rich")
    from edgeroute.tools.cli.tables_and_options import table

    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    table(("", "right"), [(marked("edge", "edge alone"), "93 %"), ("cascade", "94 %")], ("",))
    out.seek(0)
    cells = [re.split("[|│]", line)[1].strip() for line in out.read().splitlines() if "%" in line]
    assert cells == shown


def test_the_page_of_the_documentation():
    """It says of each state its mark, word and meaning, in words for who does not see the picture, which is drawn of the palette."""
    words = "; ".join(f"{state.mark} {state.word}: {state.meaning}" for state in STATES.values())
    assert f"![{words}](figures/states.svg)" in (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    drawn = (ROOT / "docs" / "figures" / "states.svg").read_text(encoding="utf-8")
    assert all(f'<tspan fill="{state.light}">{state.mark}</tspan> {state.word}<' in drawn for state in STATES.values())
    assert all(f'fill="url(#hatch-{name})"' in drawn for name in STATES)


BEFORE = re.findall(
    r"\w+", "2f7ed8 e8590c 7d5bd0 a08bea 1f5fb0 c04f06 1e7a37 1d5fa8 ffb000 00c878 dbe9fb fde6d3 dcf2e1 2b8a3e 862e9c"
)
"""Colours that the six states had before each had one."""
NOW = [colour[1:] for state in STATES.values() for colour in (state.light, state.dark)]
SOURCES = [
    path
    for folder in ("edgeroute/tools", "website", "examples", "android_demo", "benchmarks", "docs/figures")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".css", ".html", ".java", ".js", ".kt", ".py", ".svg", ".tcss", ".xml"} and "build" not in path.parts
]


def test_no_other_colours_of_states():
    """Those of before are nowhere; those of now are in the palette and in what is drawn of it."""
    found = []
    for path in SOURCES:
        colours = BEFORE if path.suffix in {".svg", ".xml"} or path.name == "state_colours_and_marks.py" else [*BEFORE, *NOW]
        text = path.read_text(encoding="utf-8").lower()
        found += [f"{path.relative_to(ROOT)}: {colour}" for colour in colours if colour in text]
    assert not found, found
