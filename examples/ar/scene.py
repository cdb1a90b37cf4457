"""A scene to read where there is no camera: signs on photographs, as a camera in a moving hand sees them."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from font_roboto import RobotoMedium
from PIL import Image, ImageDraw, ImageFilter, ImageFont

PHOTOGRAPHS = Path(__file__).with_name("photographs")
WIDTH, HEIGHT = 640, 480
EACH_S = 5.0  # time for which each sign is there, seconds
GRAIN = 3.0  # standard deviation of the camera's noise, of 255

Corners = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]
Colour = tuple[int, int, int]


class Sign(NamedTuple):
    """A sign on a photograph, by the corners of its place there, in a picture of 800 x 600."""

    photograph: str
    lines: tuple[str, ...] = ()  # none: nothing to read
    ink: Colour = (255, 255, 255)
    panel: Colour = (0, 0, 0)
    corners: Corners = ((0, 0), (0, 0), (0, 0), (0, 0))
    tint: Colour = (255, 255, 255)  # colour of the light, for a photograph in grey
    turned: bool = False  # True: it hangs upside down
    pole: bool = False


WALL = (255, 196, 172)
SIGNS = (
    Sign("bricks", ("Ausgang", "Zu den Zügen"), (255, 255, 255), (20, 66, 140),
         ((150, 150), (610, 176), (610, 424), (150, 442)), WALL),
    Sign("street", ("Straße gesperrt", "Umleitung folgen"), (24, 24, 24), (244, 190, 30),
         ((150, 152), (676, 120), (672, 356), (156, 330)), pole=True),
    Sign("street"),
    Sign("coffee", ("RÉSERVÉ", "à partir de 18 heures"), (60, 36, 24), (243, 236, 220),
         ((60, 330), (520, 396), (440, 586), (18, 492))),
    Sign("bricks", ("VORSICHT", "GLAS"), (176, 24, 20), (226, 204, 168),
         ((236, 150), (574, 168), (574, 430), (236, 440)), WALL, turned=True),
    Sign("hall", ("Salida de emergencia", "Prohibido fumar"), (255, 255, 255), (12, 122, 70),
         ((92, 150), (560, 190), (560, 360), (92, 386))),
)  # fmt: skip
"""What comes one after the other. The device knows the words of the first, the fourth, the fifth and the last; the ß of the
second is none of its letters."""


def frame_at(seconds: float) -> Any:
    """Return the scene at this time: uint8 [480, 640, 3], red first."""
    still = _still(SIGNS[int(seconds / EACH_S) % len(SIGNS)])
    sway, nod, turn = math.sin(seconds * 0.9), math.sin(seconds * 0.7 + 1), math.sin(seconds * 0.5 + 2)
    scale, angle = 0.84 + 0.03 * turn, math.radians(1.2 * sway)
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    x, y = WIDTH / 2 + 10 * sway, HEIGHT / 2 + 7 * nod
    seen = np.array([
        [c, -s, x - 400 * c + 300 * s], [s, c, y - 400 * s - 300 * c], [3e-5 * sway, 2e-5 * nod, 1 - 0.012 * sway],
    ])  # fmt: skip
    found = cv2.warpPerspective(still, seen, (WIDTH, HEIGHT), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)
    noisy = found + _grain()[int(seconds * 15) % 4][:, :, None]
    return np.clip(noisy, 0, 255).astype(np.uint8)


@cache
def _grain() -> Any:
    return np.random.default_rng(7).normal(0, GRAIN, (4, HEIGHT, WIDTH)).astype(np.float32)


@cache
def _still(sign: Sign) -> Any:
    """Return the photograph with the sign in its place and light: float32 [600, 800, 3]."""
    with Image.open(PHOTOGRAPHS / f"{sign.photograph}.jpg") as file:
        found = np.asarray(file.convert("RGB").resize((800, 600), Image.Resampling.BICUBIC), np.float32)
    found = found * (np.array(sign.tint, np.float32) / 255)
    if sign.pole:
        found[330:, 396:420] = np.linspace(120, 60, 24)[:, None]
    if sign.lines:
        panel = np.asarray(_panel(sign), np.float32)
        rows, columns = panel.shape[:2]
        flat = np.array([(0, 0), (columns, 0), (columns, rows), (0, rows)], np.float32)
        place = cv2.getPerspectiveTransform(flat, np.array(sign.corners, np.float32))
        laid = cv2.warpPerspective(panel, place, (800, 600), flags=cv2.INTER_AREA)
        there = laid[:, :, 3:] / 255
        shadow = cv2.GaussianBlur(np.roll(laid[:, :, 3], (9, 7), (0, 1)), (0, 0), 7)[:, :, None] / 255
        found = found * (1 - 0.55 * shadow) * (1 - there) + cv2.GaussianBlur(laid[:, :, :3], (0, 0), 0.7) * there
    rows, columns = np.mgrid[-1:1:600j, -1:1:800j]
    light = 1.06 - 0.16 * (rows**2 + columns**2) - 0.08 * columns - 0.05 * rows  # it comes from above, on the left
    return (found * light[:, :, None]).astype(np.float32)


def _panel(sign: Sign) -> Image.Image:
    """Return the sign as it is printed: with a frame, screws and some dirt."""
    size, wide, high = 120, 0.0, len(sign.lines)
    fonts = [ImageFont.truetype(RobotoMedium, size if row == 0 else round(size * 0.72)) for row in range(high)]
    wide = max(font.getlength(line) for font, line in zip(fonts, sign.lines, strict=True))
    panel = Image.new("RGBA", (round(wide) + 160, 150 * high + 60))
    draw = ImageDraw.Draw(panel)
    edge = panel.width - 1, panel.height - 1
    draw.rounded_rectangle((0, 0, *edge), 26, (*sign.panel, 255))
    draw.rounded_rectangle((12, 12, edge[0] - 12, edge[1] - 12), 18, outline=(*sign.ink, 255), width=5)
    for row, (font, line) in enumerate(zip(fonts, sign.lines, strict=True)):
        draw.text((panel.width / 2, 105 + 145 * row), line, font=font, fill=sign.ink, anchor="mm")
    for x in (34, edge[0] - 34):
        draw.ellipse((x - 8, panel.height / 2 - 8, x + 8, panel.height / 2 + 8), (150, 150, 150, 255), (70, 70, 70, 255), 2)
    dirt = Image.effect_noise((panel.width // 24, panel.height // 24), 40).resize(panel.size, Image.Resampling.BICUBIC)
    dirty = Image.composite(panel, Image.new("RGBA", panel.size, (90, 80, 70, 255)), dirt.point(lambda v: min(255, 190 + v // 2)))
    dirty.putalpha(panel.getchannel("A"))
    found = dirty.filter(ImageFilter.GaussianBlur(1.2))
    return found.rotate(180) if sign.turned else found
