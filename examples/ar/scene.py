"""A scene to read where there is no camera: a sign that moves before a wall, and now and then no sign at all."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

WIDTH, HEIGHT = 640, 480
EACH_S = 4.0
"""How long each sign is there."""


class Sign(NamedTuple):
    """A sign: its lines, and how well they can be read."""

    lines: tuple[str, ...]
    size: int
    ink: tuple[int, int, int]
    panel: tuple[int, int, int]
    blur: float = 0.0


SIGNS = (
    Sign(("PLATFORM 4", "Harbour trains"), 46, (255, 255, 255), (22, 66, 130)),
    Sign(("Mind the gap between", "train and platform 4b"), 20, (120, 118, 108), (168, 164, 150), 1.2),
    None,  # a wall
    Sign(("EXIT 12", "North Street"), 46, (20, 30, 24), (240, 196, 40)),
)
"""What comes one after the other: the device is sure of most frames of the first and the last, and of few of the second."""


def frame_at(seconds: float) -> Any:
    """The scene at this time: uint8 [480, 640, 3], red first."""
    turn = int(seconds / EACH_S)
    sign = SIGNS[turn % len(SIGNS)]
    found = _wall().copy()
    if sign is not None:
        panel = _panel(sign).rotate(2.5 * math.sin(seconds * 1.1), Image.Resampling.BICUBIC, expand=True)
        x = (WIDTH - panel.width) / 2 + 60 * math.sin(seconds * 0.8)
        y = (HEIGHT - panel.height) / 2 + 40 * math.sin(seconds * 0.5)
        found.paste(panel, (round(x), round(y)), panel)
    return np.asarray(found).copy()


@cache
def _wall() -> Image.Image:
    rng = np.random.default_rng(7)
    down = np.linspace(150, 105, HEIGHT)[:, None]
    grey = down + rng.normal(0, 5, (HEIGHT, WIDTH))
    grey[::60] -= 18  # rows of tiles
    return Image.fromarray(np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2))


@cache
def _panel(sign: Sign) -> Image.Image:
    font = ImageFont.load_default(sign.size)
    wide = max(font.getlength(line) for line in sign.lines)
    edge, step = sign.size // 2, round(sign.size * 1.4)
    panel = Image.new("RGBA", (round(wide) + 2 * edge, step * len(sign.lines) + edge), (*sign.panel, 255))
    draw = ImageDraw.Draw(panel)
    for row, line in enumerate(sign.lines):
        draw.text((edge, edge / 2 + row * step), line, font=font, fill=sign.ink)
    return panel.filter(ImageFilter.GaussianBlur(sign.blur)) if sign.blur else panel
