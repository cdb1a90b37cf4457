"""What is drawn over a frame: words and their boxes, in the colour of who read them. Never an older frame after a newer one."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from reader import said

from edgeroute import FrameUpdate

COLOURS = {"edge": (255, 176, 0), "cloud": (0, 200, 120)}
ALIKE = 0.5
"""Two readings of one word have at least so much in common."""


class Drawn(NamedTuple):
    """A frame, and what is drawn over it."""

    frame: Any
    words: list[dict[str, Any]]
    source: str
    """Who read the words: "edge" or "cloud"."""
    provisional: bool
    """The cloud is being asked about them."""
    confidence: float | None
    reason: str
    age_s: float
    """From when the frame came to now, when this is drawn."""

    def told(self) -> dict[str, Any]:
        """All but the frame, as JSON has it."""
        rows, columns = self.frame.shape[:2]
        rest = {key: value for key, value in self._asdict().items() if key != "frame"}
        return {**rest, "width": columns, "height": rows}


class Overlay:
    """Makes of the updates of `router.frames` what is drawn."""

    def __init__(self) -> None:
        self._frame: Any = None
        self._number = -1
        self._seen: list[dict[str, Any]] = []

    def take(self, update: FrameUpdate) -> Drawn:
        """What is drawn after this update.

        A cloud's answer is about a frame that is over by then. So its words are drawn over the newest frame, each where the
        device sees it now.
        """
        if update.frame_index >= self._number:
            self._frame, self._number = update.frame, update.frame_index
            self._seen = [] if update.edge is None else update.edge.value
        shown, asked = update.shown, update.provisional or update.held != ""  # it, or a frame of the scene before it
        return Drawn(
            self._frame,
            placed(shown.value, self._seen),
            "edge" if shown.source == "edge" else "cloud",
            asked and shown.source == "edge",
            shown.confidence,
            update.answer.reason,
            update.age_s,
        )


def placed(words: list[dict[str, Any]], seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The words, each in the box of the seen one that is most like it; a word that is not seen stays where it was."""
    if said(words) == said(seen):
        return [{**word, "box": there["box"]} for word, there in zip(words, seen, strict=True)]
    pairs = sorted(
        ((_alike(word, there), i, j) for i, word in enumerate(words) for j, there in enumerate(seen)), key=lambda pair: -pair[0]
    )
    found: dict[int, int] = {}
    for alike, i, j in pairs:
        if alike >= ALIKE and i not in found and j not in found.values():
            found[i] = j
    return [{**word, "box": seen[found[i]]["box"]} if i in found else word for i, word in enumerate(words)]


def _alike(word: dict[str, Any], there: dict[str, Any]) -> float:
    return SequenceMatcher(None, word["text"].lower(), there["text"].lower(), autojunk=False).ratio()


def painted(drawn: Drawn) -> Image.Image:
    """The frame with boxes, words, and a line that says where they are from."""
    image = Image.fromarray(drawn.frame)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    colour = COLOURS[drawn.source]
    for word in drawn.words:
        corners = [tuple(corner) for corner in word["box"]]
        draw.line([*corners, corners[0]], fill=colour, width=1 if drawn.provisional else 3)
        xs, ys = ([corner[axis] for corner in corners] for axis in (0, 1))
        beside = max(xs) + 10
        if beside + font.getlength(word["text"]) < image.width:
            _label(draw, (beside, (min(ys) + max(ys)) // 2 - 9), word["text"], font, colour)
        else:
            _label(draw, (min(xs), max(3, min(ys) - 24)), word["text"], font, colour)
    _label(draw, (0, image.height - 22), status(drawn), font, (230, 230, 230))
    return image


def status(drawn: Drawn) -> str:
    """Who read it, how surely, and how old it is."""
    sure = "" if drawn.confidence is None else f" {drawn.confidence:.2f}"
    who = "device, cloud asked" if drawn.provisional else {"edge": "device", "cloud": "cloud"}[drawn.source]
    return f"{who}{sure}, {drawn.age_s * 1000:.0f} ms"


def _label(draw: Any, at: tuple[int, int], text: str, font: Any, colour: tuple[int, int, int]) -> None:
    left, top, right, bottom = draw.textbbox(at, text, font=font)
    draw.rectangle((left - 3, top - 3, right + 3, bottom + 3), fill=colour)
    draw.text(at, text, font=font, fill=(0, 0, 0))


def jpeg(frame: Any, quality: int = 85) -> bytes:
    """A frame as a JPEG file: what the page is sent, and the cloud's view of it."""
    from io import BytesIO

    file = BytesIO()
    Image.fromarray(np.asarray(frame)).save(file, "JPEG", quality=quality)
    return file.getvalue()
