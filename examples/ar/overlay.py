"""Drawing of a frame with its words replaced in place, in perspective. Never an older frame after a newer one."""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from font_roboto import RobotoMedium
from PIL import Image, ImageDraw, ImageFont
from words import said

from edgeroute import FrameUpdate
from edgeroute.tools import state_colours_and_marks as palette

ALIKE = 0.5  # likeness from which two readings are of one word
FINE = 2  # words are drawn so many times larger, and scaled down with the perspective
TALL, WIDE = 400, 2048  # pixels at most of a line as it is drawn
DRAWN = 0x250  # letters below are in the font: those of Latin scripts
PIXELS = 50  # at least, to fit a plane to
SENTENCES = {
    "edge": "Read on the device, which is sure; nothing was sent.",
    "cloud": "The device was not sure: the cloud read it.",
    "degraded": "The device is not sure, and the cloud is away: this is the best there is.",
    "private": "Read on the device; of this nothing may leave.",
    "waiting": "The device was not sure: the cloud is being asked.",
}


class Drawn(NamedTuple):
    """A frame, and what is drawn over it: `device` is what the device alone reads, `words` the answer."""

    frame: Any
    words: list[dict[str, Any]]
    device: list[dict[str, Any]]
    state: palette.StateName
    confidence: float | None
    sure: float | None  # of the device
    reason: str
    age_s: float  # from when the frame came to now, when this is drawn, seconds

    def told(self) -> dict[str, Any]:
        """Return all but the frame, as JSON has it."""
        rows, columns = self.frame.shape[:2]
        rest = {name: value for name, value in self._asdict().items() if name != "frame"}
        return {**rest, "sentence": SENTENCES.get(self.state, ""), "width": columns, "height": rows}


class Overlay:
    """Makes of the updates of `router.frames` what is drawn.

    Args:
        sure: the policy's threshold; a frame that waits for the cloud's answer to another is no worse for it if it reaches this.
    """

    def __init__(self, sure: float = 1.0) -> None:
        self._frame: Any = None
        self._number, self._sure, self._from = -1, None, sure
        self._seen: list[dict[str, Any]] = []

    def take(self, update: FrameUpdate, *, away: bool = False) -> Drawn:
        """Return what is drawn after this update. away: the cloud did not answer when it was last asked.

        A cloud's answer is about a frame that is over by then. So its words are drawn over the newest frame, each where the
        device sees it now.
        """
        if update.frame_index >= self._number:
            self._frame, self._number = update.frame, update.frame_index
            self._seen = [] if update.edge is None else update.edge.value
            self._sure = None if update.edge is None else update.edge.confidence
        shown, words = update.shown, placed(update.shown.value, self._seen)
        if shown.source == "edge" and (update.provisional or update.held):  # asked, or a frame of the scene before it is
            sure = not update.provisional and (shown.confidence or 0.0) >= self._from
            state: palette.StateName = "edge" if sure else "degraded" if away else "waiting"
        else:
            state = palette.answer_state(shown.source, shown.reason_code, degraded=shown.degraded)
        return Drawn(self._frame, words, self._seen, state, shown.confidence, self._sure, update.answer.reason, update.age_s)


def placed(words: list[dict[str, Any]], seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the words, each in the box of the seen one that is most like it; a word that is not seen stays where it was.

    They are copies, unless a word stays.
    """
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


def replaced(frame: Any, words: list[dict[str, Any]], state: palette.StateName) -> Any:
    """Return the frame with each word that says something else replaced by that; all are framed in the colour of the state."""
    found = frame.copy()
    for word in words:
        box = np.array(word["box"], np.float32)
        says = word["says"]
        if says not in {"", word["text"]} and all(ord(letter) < DRAWN for letter in says):
            _replace(found, box, says)
        colour = tuple(int(palette.STATES[state].dark[i : i + 2], 16) for i in (1, 3, 5))
        for paint, width in (((0, 0, 0), 4), (colour, 2)):
            cv2.polylines(found, [box.round().astype(np.int32)], True, paint, width, cv2.LINE_AA)
    return found


def _replace(frame: Any, box: Any, text: str) -> None:
    """Paint over a box of a frame, in place, with the colours around its letters, and write the text into it, as large as these.

    A box too small for letters, or outside of the frame, stays as it is.
    """
    wide, high = (int(max(np.linalg.norm(box[i] - box[j]) for i, j in pair)) for pair in (((0, 1), (3, 2)), ((0, 3), (1, 2))))
    if min(wide, high) < 4:  # noqa: PLR2004 - too small for letters
        return
    scale = min(FINE, TALL / high, WIDE / wide)  # a cloud may name a box of any size
    size = max(1, round(wide * scale)), max(1, round(high * scale))
    flat = np.array([(0, 0), (size[0], 0), (size[0], size[1]), (0, size[1])], np.float32)
    rows, columns = frame.shape[:2]
    near = np.clip([box.min(0) - 3, box.max(0) + 4], 0, (columns, rows)).astype(int)  # the part of the frame around it
    part = frame[near[0][1] : near[1][1], near[0][0] : near[1][0]]
    if not part.size:
        return
    there = cv2.getPerspectiveTransform(flat, box - near[0].astype(np.float32))
    piece = cv2.warpPerspective(part, np.linalg.inv(there), size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    ground, ink = _colours(piece.astype(np.float32))
    written = Image.fromarray(ground)
    written.paste(Image.new("RGB", size, ink), (0, 0), _lettering(text, size))
    shape = part.shape[1], part.shape[0]
    laid = cv2.warpPerspective(np.asarray(written), there, shape, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    area = np.zeros(part.shape[:2], np.float32)
    cv2.fillConvexPoly(area, (box - near[0]).round().astype(np.int32), 1.0, cv2.LINE_AA)
    area = cv2.GaussianBlur(area, (0, 0), 0.8)[:, :, None]
    part[:] = part * (1 - area) + laid * area


def _colours(piece: Any) -> tuple[Any, tuple[int, int, int]]:
    """Return what is behind a piece's letters, a plane for each colour with its grain, fitted beside them, and their colour."""
    rows, columns = piece.shape[:2]
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float32)
    terms = np.stack([np.ones_like(x), x / columns, y / rows], -1)
    few, at = piece[::2, ::2], terms[::2, ::2]
    rim = max(1, rows // 24)
    edge = np.median(np.concatenate([few[:rim].reshape(-1, 3), few[-rim:].reshape(-1, 3)]), 0)
    far = np.abs(few - edge).sum(2)
    most = float(np.quantile(far, 0.95))
    beside = far < max(30.0, most / 2)
    plane = np.linalg.lstsq(at[beside], few[beside], rcond=None)[0] if beside.sum() > PIXELS else [edge, 0 * edge, 0 * edge]
    ink = few[far >= max(30.0, most * 0.8)].mean(0) if most >= 30.0 else 255 - edge  # noqa: PLR2004 - no letters stand out
    grain = _noise(rows, columns) * min(4.0, float(np.median(np.abs(few - at @ plane)[beside]))) if beside.any() else 0
    return np.clip(terms @ plane + grain, 0, 255).astype(np.uint8), tuple(int(v) for v in ink)  # type: ignore[return-value]


@cache
def _grain() -> Any:
    return np.random.default_rng(7).normal(0, 1.2, (2 * TALL, WIDE, 1)).astype(np.float32)


def _noise(rows: int, columns: int) -> Any:
    """Return some noise, so that what is painted over is not smoother than what is around it."""
    return np.resize(_grain()[:rows, :columns], (rows, columns, 1))


def _lettering(text: str, size: tuple[int, int]) -> Image.Image:
    """Return a mask of the text in the middle of a picture of this size, made narrow if it is too long."""
    font = ImageFont.truetype(RobotoMedium, max(4, round(size[1] * 0.78)))
    left, _, right, _ = font.getbbox(text or " ")
    drawn = Image.new("L", (int(right - left) + 4, size[1]))
    ImageDraw.Draw(drawn).text((2 - left, size[1] / 2), text, font=font, fill=255, anchor="lm")
    room = max(1, round(size[0] * 0.97))
    if drawn.width > room:  # narrower letters first, and then smaller ones
        small = max(0.45, min(1.0, room / (drawn.width * 0.8)))
        drawn = drawn.resize((room, max(1, round(drawn.height * small))), Image.Resampling.LANCZOS)
    found = Image.new("L", size)
    found.paste(drawn, ((size[0] - drawn.width) // 2, (size[1] - drawn.height) // 2))
    return found


def painted(drawn: Drawn) -> Image.Image:
    """Return the answer's picture, with a line below that says whose it is."""
    image = Image.fromarray(replaced(drawn.frame, drawn.words, drawn.state))
    text, font = status(drawn), ImageFont.truetype(RobotoMedium, 15)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, image.height - 24, font.getlength(text) + 12, image.height), fill=palette.STATES[drawn.state].light)
    draw.text((6, image.height - 21), text, font=font, fill="white")
    return image


def status(drawn: Drawn) -> str:
    """Return whose answer it is, how surely, and how old it is."""
    sure = "" if drawn.confidence is None else f" {drawn.confidence:.2f}"
    return f"{drawn.state}{sure}, {drawn.age_s * 1000:.0f} ms"


def jpeg(frame: Any, quality: int = 85) -> bytes:
    """Return a frame as a JPEG file: what the page is sent, and the cloud's view of it."""
    file = BytesIO()
    Image.fromarray(np.asarray(frame)).save(file, "JPEG", quality=quality)
    return file.getvalue()


class Folder:
    """A picture whenever other words are drawn, or in another state; and all that was drawn, without frames, in drawn.jsonl.

    Raises:
        SystemExit: it cannot be written, or what was drawn earlier is there.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._number, self._last = path, 0, None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lines = (path / "drawn.jsonl").open("x", encoding="utf-8")
        except OSError as e:
            raise SystemExit(f"--out {path}: {e.strerror}: {e.filename}. Name a folder in which nothing was drawn yet") from e

    def show(self, drawn: Drawn) -> bool:
        """Write it to drawn.jsonl, and a picture if words or state are others than the last ones. Return True: go on."""
        self._lines.write(json.dumps(drawn.told(), ensure_ascii=False) + "\n")
        self._lines.flush()
        now = said(drawn.words), drawn.state
        if now != self._last:
            self._last, self._number = now, self._number + 1
            painted(drawn).save(self._path / f"{self._number:04}-{drawn.state}.jpg", quality=85)
        return True

    def close(self) -> None:
        """End the file of lines."""
        self._lines.close()
