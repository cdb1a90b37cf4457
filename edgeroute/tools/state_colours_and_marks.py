"""Colours, marks and words of the six states that people see, the same in every page, terminal view, picture and example.

The colours differ for the three kinds of colour blindness as well, and each state has a mark and a hatch for print. Here are also
the state of an answer, and the states as CSS, SVG patterns and a legend.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

StateName = Literal["edge", "cloud", "cache", "degraded", "private", "waiting"]


class State(NamedTuple):
    """State of an answer as it is shown. `light` and `dark` are its colours on a white and on a dark page."""

    word: StateName
    mark: str
    light: str
    dark: str
    hatch: str  # path of a tile of 8 x 8 units, drawn over the colour; empty: plain
    meaning: str


STATES: Final[dict[str, State]] = {
    state.word: state
    for state in (
        State("edge", "●", "#0f80cc", "#5fb0f5", "", "answered on the device"),
        State("cloud", "▲", "#bd7a00", "#f2b56b", "M0 8 8 0", "answered by the cloud"),
        State("cache", "■", "#9330e8", "#c05cff", "M4 3v2", "an earlier answer of the same input"),
        State("degraded", "✕", "#9c0d06", "#e8382b", "M0 0 8 8M0 8 8 0", "the best answer there was, below what the policy asks"),
        State("private", "◆", "#20594e", "#3c8a78", "M0 0 8 8", "kept on the device by the policy"),
        State("waiting", "○", "#8a9099", "#cdd3da", "M0 4h8", "kept in the outbox; the cloud's answer comes later"),
    )
}


def answer_state(source: str, reason_code: str, *, degraded: bool = False, final: bool = True) -> StateName:
    """Return the state of an answer by its attributes `source`, `reason_code`, `degraded` and `final`.

    A later answer that is still to come goes first, then what is below the policy, then what may not leave.
    """
    if not final:
        return "waiting"
    if degraded:
        return "degraded"
    if source == "edge":
        return "private" if reason_code == "stays" else "edge"
    return "cloud" if source == "cloud" else "cache"


def css(page: str = ":root", dark: str = "") -> str:
    """Return CSS rules that set `--edge`, `--cloud` and so on to the colours, for light and dark pages.

    Args:
        page: selector of the element that is the page.
        dark: selector of it where it is dark; empty: where the system is.
    """
    light = " ".join(f"--{state.word}: {state.light};" for state in STATES.values())
    night = " ".join(f"--{state.word}: {state.dark};" for state in STATES.values())
    night += " --hatch: #000;"  # white lines are invisible on the colours of a dark page
    rule = f"{dark} {{ {night} }}" if dark else f"@media (prefers-color-scheme: dark) {{ {page} {{ {night} }} }}"
    return f"{page} {{ {light} }}\n{rule}\n"


def svg_hatches(names: Iterable[str] = STATES) -> str:
    """Return SVG definitions of the patterns `hatch-edge`, `hatch-cloud` and so on: a state's colour and its hatch."""
    patterns = "".join(
        f'<pattern id="hatch-{name}" width="8" height="8" patternUnits="userSpaceOnUse">'
        f'<rect width="8" height="8" fill="var(--{name}, {STATES[name].light})"/>'
        + (f'<path d="{STATES[name].hatch}" stroke="var(--hatch, #fff)" stroke-opacity=".8"/>' if STATES[name].hatch else "")
        + "</pattern>"
        for name in names
    )
    return f"<defs>{patterns}</defs>"


def marked(name: str, text: str = "") -> str:
    """Return a state's mark before its word, or before another text that has the word."""
    return f"{STATES[name].mark} {text or name}"
