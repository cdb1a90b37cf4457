"""Sources of frames: cameras, a film, pictures, or a scene on photographs. All give uint8 [rows, columns, 3], red first."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from cloud import picture_of
from PIL import Image, ImageOps
from scene import frame_at

PICTURES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
WIDEST = 960  # wider and higher frames are scaled down to this: it is what is drawn, and what is sent
FPS = 15.0
PICTURE_S = 3.0  # time for which the page shows a picture at least, seconds
AWAY_S = 3.0  # a browser's camera that has sent nothing for so long is off


class Camera:
    """The camera of a browser, whose frames are put here; while it is off, the scene."""

    def __init__(self) -> None:
        self._newest: Any = None
        self._at = -AWAY_S

    @property
    def on(self) -> bool:
        """True while frames come."""
        return time.monotonic() - self._at < AWAY_S

    def put(self, file: bytes) -> None:
        """Take a frame, a JPEG file; what is none is ignored.

        Raises:
            ValueError: it is none.
        """
        self._newest, self._at = _scaled(picture_of(file)), time.monotonic()

    def off(self) -> None:
        """Go back to the scene at once."""
        self._at = -AWAY_S

    def __iter__(self) -> Iterator[Any]:
        """Yield frames at the pace of the scene: of the camera the newest, each once."""
        for number in _ticks(FPS):
            frame, self._newest = self._newest, None
            if not self.on:
                yield frame_at(number / FPS)
            elif frame is not None:
                yield frame


class Stills:
    """Pictures one by one: the next one comes once `go_on` is called, and not before `pause_s` seconds."""

    def __init__(self, paths: list[Path], pause_s: float) -> None:
        self._paths, self._pause_s, self._done, self._ended = paths, pause_s, threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[Any]:
        """Yield each that can be read."""
        for frame in map(picture_at, self._paths):
            if frame is not None:
                self._done.clear()
                yield frame
                self._done.wait()
                if self._ended.wait(self._pause_s):
                    return

    def go_on(self) -> None:
        """Call this when a picture has its answer."""
        self._done.set()

    def close(self) -> None:
        """End the waiting."""
        self._ended.set()
        self._done.set()


def opened(names: list[str], camera: Camera, pause_s: float = 0.0) -> Iterable[Any]:
    """Return the frames of what is named: nothing (the browser's camera, or a scene), a camera's number, a film, or pictures.

    Args:
        names: from the command line.
        camera: of the browser.
        pause_s: for each picture.

    Raises:
        SystemExit: there is no such thing.
    """
    if not names:
        return camera
    if len(names) == 1 and names[0].isdecimal():
        return _captured(int(names[0]))
    if pictures := _pictures(names):
        return Stills(pictures, pause_s)
    if len(names) == 1 and Path(names[0]).is_file():
        return _captured(names[0])
    raise SystemExit(f"there is no camera, film, picture or folder of pictures at {' '.join(names)}")


def until(frames: Iterable[Any], seconds: float) -> Iterator[Any]:
    """Yield frames until so many seconds after the first was asked for."""
    begun = time.monotonic()
    for frame in frames:
        if time.monotonic() - begun > seconds:
            return
        yield frame


def _pictures(names: list[str]) -> list[Path]:
    """Return the picture files of these names and folders, in order; what is no picture beside them is told on stderr."""
    found: list[Path] = []
    for name in map(Path, names):
        found += sorted(name.iterdir()) if name.is_dir() else [name]
    pictures = [path for path in found if path.suffix.lower() in PICTURES and path.is_file()]
    for path in found if pictures else ():
        if path not in pictures:
            print(f"{path} is no picture: passed over", file=sys.stderr)
    return pictures


def picture_at(path: Path) -> Any:
    """Return a picture as it is meant to be seen: upright, 960 pixels at most, and on white where it is transparent.

    None: it cannot be read, which is told on stderr.
    """
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


def _scaled(frame: Any) -> Any:
    scale = WIDEST / max(frame.shape[:2])
    return frame if scale >= 1 else cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def _captured(what: int | str) -> Iterator[Any]:
    """Open a camera or a film, and return its frames: as quickly as a camera gives them, or at the film's own speed.

    Raises:
        SystemExit: it cannot be opened.
    """
    capture = cv2.VideoCapture(what)
    if not capture.isOpened():
        raise SystemExit(f"{what}: no such camera, or no film that OpenCV can read")

    def frames() -> Iterator[Any]:
        try:
            for _ in count() if isinstance(what, int) else _ticks(capture.get(cv2.CAP_PROP_FPS) or FPS):
                there, frame = capture.read()
                if not there:
                    return
                yield cv2.cvtColor(_scaled(frame), cv2.COLOR_BGR2RGB)
        finally:
            capture.release()

    return frames()


def _ticks(rate: float) -> Iterator[int]:
    """Yield numbers from 0, so many a second, whoever looks at them."""
    begun = time.monotonic()
    for number in count():
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        yield number
