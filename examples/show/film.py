"""Records the show as website/film.webm and website/film.gif: `python examples/show/film.py`.

Needs Chromium, ffmpeg and what `make test` installs. Each scene is a prototype as it runs, with what a person would press.
A frame is a picture of the page: the film is as long as its frames, whatever the recording takes. They are kept in build/film;
`--only NAME ...` records these scenes anew, and takes the others from there.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from main import PROTOTYPES, ROOT
from playwright.sync_api import Error, FrameLocator, Page, expect, sync_playwright

SIZE = {"width": 1080, "height": 700}
WIDE, PER_S = 640, 5
"""Pixels of the GIF, which has every second frame, and frames in a second of the film."""
MOST_BYTES = 3_000_000
"""Of both files together."""
LONG_S = 300
"""So long a prototype may take to start."""
FILMS = ROOT / "website" / "film.webm", ROOT / "website" / "film.gif"
ENCODE = (
    ("-c:v", "libvpx-vp9", "-crf", "40", "-b:v", "0", "-pix_fmt", "yuv420p"),
    (
        "-vf",
        f"framestep=2,scale={WIDE}:-1:flags=lanczos,split[a][b];[a]palettegen=max_colors=96:stats_mode=diff[p];[b][p]paletteuse=dither=none",
    ),
)

Press = Callable[[FrameLocator], None]


def button(name: str) -> Press:
    """Return a function that presses the button with a text."""
    return lambda frame: frame.get_by_role("button", name=name).first.click(timeout=2000)


def typed(label: str, text: str) -> Press:
    """Return a function that writes a text into the field of that label and presses Enter."""

    def press(frame: FrameLocator) -> None:
        frame.get_by_label(label).first.click(timeout=2000)  # a frame that the mouse is not over gives the keyboard back
        frame.get_by_label(label).first.fill(text, timeout=2000)
        frame.get_by_label(label).first.press("Enter", timeout=2000)

    return press


def tap(x: int, y: int) -> Press:
    """Return a function that clicks at a place, in pixels of the frame: the app draws on a canvas."""
    return lambda frame: frame.locator("body").click(position={"x": x, "y": y}, force=True, timeout=2000)


SCENES: dict[str, tuple[int, float, dict[int, Press]]] = {
    "demo": (8, 0.1, {}),
    "ar": (20, 1.5, {10: button("Cut the cloud"), 19: button("Mend the cloud")}),
    "voice": (20, 0.7, {1: button("set a timer for fifteen seconds"), 9: button("what is the date in three weeks")}),
    "monitor": (34, 1.1, {3: button("Pull the plug"), 7: button("Break the bearing"), 25: button("Plug in")}),
    "gateway": (
        22, 0.9, {1: typed("Question", "What is the capital of Italy?"), 11: typed("Question", "Who wrote Romeo and Juliet?")},
    ),
    "app": (24, 0.8, {2: tap(364, 100), 8: tap(290, 251), 10: tap(508, 100), 17: tap(290, 251)}),
    "dashboard": (24, 1.2, {}),
}  # fmt: skip
"""Frames, the seconds from one to the next, and what is pressed before which."""


def record(page: Page, scene: str, folder: Path) -> None:
    """Write the frames of a scene into a folder, in place of earlier ones, with its presses; one that fails is told on stderr."""
    for old in folder.glob(f"{scene}-*.png"):
        old.unlink()
    name = scene.partition("-")[2]
    frames, pause_s, presses = SCENES.get(name, (6, 0.2, {}))
    for number in range(frames):
        if number in presses:
            try:
                presses[number](page.frame_locator(f"#{name} iframe"))
            except Error as e:  # a film without it is one, too
                print(f"{name}, frame {number}: {str(e).splitlines()[0]}", file=sys.stderr)
        page.screenshot(path=folder / f"{scene}-{number:03}.png")
        time.sleep(pause_s)


def record_all(page: Page, names: Iterable[str], folder: Path) -> None:
    """Write the frames of the page with all prototypes, of the scenes of `names`, and of the page with all again."""
    record(page, "0-all", folder)
    for number, name in enumerate(PROTOTYPES, 1):
        if name in names:
            page.evaluate("name => { enlarge(name); says.hidden = false; says.textContent = table[name].says; }", name)
            record(page, f"{number}-{name}", folder)
    page.evaluate("enlarge(null)")
    record(page, "9-all", folder)


def main() -> None:
    """Start the show with all that is set up, record it, write both films, and print their sizes.

    Raises:
        SystemExit: together they are too large for the repository.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCENES, help="these scenes alone")
    given = parser.parse_args()
    names = [name for name, one in PROTOTYPES.items() if not one.needs or (ROOT / one.needs).exists()]
    folder = ROOT / "build" / "film"
    folder.mkdir(parents=True, exist_ok=True)
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    command = [sys.executable, str(Path(__file__).with_name("main.py")), "--port", "0", "--start", *names]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as show:  # noqa: S603 - this interpreter
        try:
            assert show.stdout is not None
            found = re.search(r"http://\S+", show.stdout.readline())
            assert found is not None, "the show did not start"
            with sync_playwright() as started:
                browser = started.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
                page = browser.new_page(viewport=SIZE, color_scheme="light")
                page.goto(found[0])
                for name in names:
                    expect(page.locator(f"#{name} iframe")).to_be_attached(timeout=LONG_S * 1000)
                    with suppress(Error):
                        page.frame_locator(f"#{name} iframe").locator("body").wait_for(timeout=30_000)
                time.sleep(15)  # until something can be seen in each: they have just begun
                record_all(page, given.only or names, folder)
                browser.close()
        finally:
            show.terminate()
    for film, how in zip(FILMS, ENCODE, strict=True):
        source = ["-framerate", str(PER_S), "-pattern_type", "glob", "-i", f"{folder}/*.png"]
        subprocess.run(["ffmpeg", "-y", "-loglevel", "error", *source, *how, str(film)], check=True)  # noqa: S603, S607
    print(*(f"{film.name}: {film.stat().st_size:,} bytes" for film in FILMS), sep="; ")
    size = sum(film.stat().st_size for film in FILMS)
    if size > MOST_BYTES:
        raise SystemExit(f"together {size:,} bytes, more than {MOST_BYTES:,}: take fewer frames")


if __name__ == "__main__":
    main()
