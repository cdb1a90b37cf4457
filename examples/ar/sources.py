"""Where frames come from: a camera, a film, pictures, or a rendered scene. Each gives new uint8 [rows, columns, 3], red first."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scene import frame_at

PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
WIDEST = 960
"""Wider and higher frames are scaled down to this: it is what is drawn, and what is sent."""
FPS = 15.0
PICTURE_S = 3.0
"""How long a picture is shown, as if a camera looked at it."""


def opened(names: list[str], seconds: float | None = None) -> Iterable[Any]:
    """The frames of what is named: nothing (a rendered scene), the number of a camera, a film, or pictures and folders of them.

    Args:
        names: from the command line.
        seconds: the end; None: when the source ends, which a camera and the scene do not.

    Raises:
        SystemExit: there is no such thing.
    """
    if not names:
        frames: Iterable[Any] = (frame_at(number / FPS) for number in count())
        found = _paced(frames, FPS)
    elif len(names) == 1 and names[0].isdecimal():
        found = _captured(int(names[0]))
    elif pictures := _pictures(names):
        each = round(PICTURE_S * FPS)
        readable = (picture for path in pictures if (picture := _read(path)) is not None)
        found = _paced((picture.copy() for picture in readable for _ in range(each)), FPS)
    elif len(names) == 1 and Path(names[0]).is_file():
        found = _captured(names[0])
    else:
        raise SystemExit(f"there is no camera, film, picture or folder of pictures at {' '.join(names)}")
    return found if seconds is None else _until(found, seconds)


def _pictures(names: list[str]) -> list[Path]:
    found: list[Path] = []
    for name in map(Path, names):
        found += sorted(name.iterdir()) if name.is_dir() else [name]
    pictures = [path for path in found if path.suffix.lower() in PICTURES and path.is_file()]
    for path in found if pictures else ():
        if path not in pictures:
            print(f"{path} is no picture: passed over", file=sys.stderr)
    return pictures


def _read(path: Path) -> Any:
    """As it is meant to be seen: upright, and on white where it is transparent. None: it cannot be read, which is told."""
    try:
        with Image.open(path) as file:
            file.thumbnail((WIDEST, WIDEST))
            image = ImageOps.exif_transpose(file)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.asarray(image.convert("RGB"))
    except Exception as e:  # noqa: BLE001 - at a damaged file Pillow raises errors of many kinds
        print(f"{path} cannot be read as a picture: {e}", file=sys.stderr)
        return None


def _captured(what: int | str) -> Iterator[Any]:
    """A camera, as quickly as it gives frames, or a film at its own speed."""
    import cv2

    capture = cv2.VideoCapture(what)
    if not capture.isOpened():
        raise SystemExit(f"{what}: no such camera, or no film that OpenCV can read")

    def frames() -> Iterator[Any]:
        try:
            while True:
                there, frame = capture.read()
                if not there:
                    return
                if (scale := WIDEST / max(frame.shape[:2])) < 1:
                    frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()

    return frames() if isinstance(what, int) else _paced(frames(), capture.get(cv2.CAP_PROP_FPS) or FPS)


def _paced(frames: Iterable[Any], fps: float) -> Iterator[Any]:
    """Frames as a camera gives them: so many a second, whoever looks at them."""
    begun = time.monotonic()
    for number, frame in enumerate(frames):
        time.sleep(max(0.0, begun + number / fps - time.monotonic()))
        yield frame


def _until(frames: Iterable[Any], seconds: float) -> Iterator[Any]:
    begun = time.monotonic()
    for frame in frames:
        if time.monotonic() - begun > seconds:
            return
        yield frame
