"""Draws flow.svg, the way of an utterance, in the palette's colours: python examples/voice/flow.py."""

from __future__ import annotations

from pathlib import Path

from edgeroute.tools.state_colours_and_marks import STATES, marked

FILE = Path(__file__).with_name("flow.svg")
TITLE = "The way of an utterance: detector, commands, words, intents, skills, language models; each on the device first"
INK, SOFT, PAPER = "#222", "#555", "#fff"
TOP, HEIGHT, GAP = 150, 60, 22
DEVICE = (
    ("wake word", "if asked for", 84),
    ("detector", "silero-vad", 84),
    ("commands", "int8, ten digits", 112),
    ("words", "Moonshine tiny", 112),
    ("intents", "int8, 150 of them", 120),
    ("ten skills", "wishes and intents", 124),
    ("open questions", "SmolLM2-135M", 118),
)
CLOUD = {"commands": "larger model", "intents": "larger model", "open questions": "hosted model"}
ANSWERS = ("commands", "ten skills", "open questions")


def drawn() -> str:
    """Return the picture, a text of SVG."""
    edge, cloud = STATES["edge"].light, STATES["cloud"].light
    boxes, texts, arrows, left = [], [], [], 20
    for number, (name, under, width) in enumerate(DEVICE):
        middle = left + width // 2
        boxes.append(_box(left, TOP, width, HEIGHT, edge))
        texts += [_text(middle, TOP + 26, name), _text(middle, TOP + 46, under, 11)]
        if number:
            arrows.append(f'<path d="M{left - GAP} {TOP + HEIGHT // 2}H{left - 2}"/>')
        if name in CLOUD:
            boxes.append(_box(left, 42, width, 32, cloud))
            texts += [_text(middle, 63, CLOUD[name]), _text(middle + 34, 104, "not sure", 11, SOFT)]
            arrows.append(f'<path d="M{middle} {TOP - 2}V76" stroke-dasharray="4 3"/>')
        if name in ANSWERS:
            arrows.append(f'<path d="M{middle} {TOP + HEIGHT}V328"/>')
        left += width + GAP
    right = left - GAP
    says = "answer: printed, on the page, spoken once; what was not heard well is asked for again"
    tip = '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 20} 400" font-family="sans-serif" font-size="14">',
        f"<title>{TITLE}, and the cloud where it is not sure</title>",
        f'<defs>{tip}<path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker></defs>',
        f'<rect width="{right + 20}" height="400" fill="{PAPER}"/>',
        f'<rect x="8" y="112" width="{right + 4}" height="176" rx="10" fill="{edge}" fill-opacity=".09" stroke="{edge}"/>',
        f'<rect x="220" y="8" width="{right - 208}" height="76" rx="10" fill="{cloud}" fill-opacity=".09" stroke="{cloud}"/>',
        f'<g text-anchor="middle" fill="{INK}">{"".join(boxes)}{_box(232, 330, right - 232, 44, SOFT)}{"".join(texts)}',
        f"{_text((232 + right) // 2, 357, says)}</g>",
        f'<text x="20" y="278" fill="{INK}" font-weight="bold">{marked("edge")}: on this device</text>',
        f'<text x="234" y="30" fill="{INK}" font-weight="bold">{marked("cloud")}: where the policy lets it be asked</text>',
        f'<g stroke="{SOFT}" stroke-width="1.5" fill="none" marker-end="url(#tip)">{"".join(arrows)}</g>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _box(left: int, top: int, width: int, height: int, colour: str) -> str:
    place = f'x="{left}" y="{top}" width="{width}" height="{height}"'
    return f'<rect {place} rx="6" fill="{PAPER}" stroke="{colour}" stroke-width="1.5"/>'


def _text(middle: int, base: int, text: str, size: int = 14, colour: str = INK) -> str:
    return f'<text x="{middle}" y="{base}" font-size="{size}" fill="{colour}">{text}</text>'


if __name__ == "__main__":
    FILE.write_text(drawn(), encoding="utf-8")
