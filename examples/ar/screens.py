"""Where frames are shown besides the page: a window, or files of a folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
from overlay import Drawn, painted
from reader import said

NAME = "text in a scene (q ends)"


class Window:
    """A window of OpenCV, where there is a display.

    Raises:
        SystemExit: there is none, or this OpenCV draws no windows.
    """

    def __init__(self) -> None:
        import cv2

        if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise SystemExit("--window: there is no display here. Without it the program shows a page for the browser")
        self._cv2 = cv2
        try:
            cv2.namedWindow(NAME)
        except cv2.error as e:
            raise SystemExit("--window: this OpenCV draws no windows: pip install opencv-python in its place") from e

    def show(self, drawn: Drawn) -> bool:
        """Draws it. -> whether to go on."""
        self._cv2.imshow(NAME, self._cv2.cvtColor(np.asarray(painted(drawn)), self._cv2.COLOR_RGB2BGR))
        return bool(self._cv2.waitKey(1) & 0xFF != ord("q"))

    def close(self) -> None:
        """Closes it."""
        self._cv2.destroyAllWindows()


class Folder:
    """A picture whenever other words are drawn, or by another source; and all that was drawn, without frames, in drawn.jsonl.

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
        """Writes it. -> whether to go on."""
        self._lines.write(json.dumps(drawn.told(), ensure_ascii=False) + "\n")
        self._lines.flush()
        now = said(drawn.words), drawn.source, drawn.provisional
        if now != self._last:
            self._last, self._number = now, self._number + 1
            painted(drawn).save(self._path / f"{self._number:04}-{drawn.source}.jpg", quality=85)
        return True

    def close(self) -> None:
        """Ends the file of lines."""
        self._lines.close()
