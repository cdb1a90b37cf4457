"""The page of android_demo in a headless Chromium of a phone's size: how long after its load the first answer is there.

    python benchmarks/android_page.py [--runs 5] [--picture android_demo/screenshot.png]

Each run is a browser without a cache, and the same app; the first one has a new app, which has to load its models. Needs `pip install
--group browser` and Debian's chromium.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from time import monotonic
from typing import Any

from figures import Figure, serving, size, table
from phones import Screen, app, chromium, settle  # of the tests

LIMIT_S = 3.0


def first_answer_s(browser: Any, url: str) -> float:
    """Seconds from the call of the page to its first answer."""
    begun = monotonic()
    screen = Screen(browser, url)
    screen.shows("label", "Ankle boot")
    taken = monotonic() - begun
    screen.page.close()
    return taken


def pictures(browser: Any, url: str, out: Path) -> None:
    """An answer of the cloud by day, and one that waits by night, side by side."""
    from PIL import Image

    shots = []
    for scheme in ("light", "dark"):
        screen = Screen(browser, url, scheme)
        screen.shows("label", "Ankle boot")
        if scheme == "light":
            screen.tap("Sample 4")
            screen.shows("reason", "cloud")
            screen.shows("source", "cloud")
        else:
            screen.tap("Offline", "switch")
            screen.tap("Sample 5")
            screen.shows("queue", "Waiting for the cloud: 1")
        screen.page.wait_for_timeout(1000)  # until nothing moves
        shots.append(Path(tempfile.mkstemp(suffix=".png")[1]))
        screen.page.screenshot(path=shots[-1])
        screen.page.close()
    day, night = (Image.open(shot).convert("RGB") for shot in shots)
    both = Image.new("RGB", (day.width + night.width, day.height))
    both.paste(day, (0, 0))
    both.paste(night, (day.width, 0))
    both.quantize(128).save(out, optimize=True)
    for shot in shots:
        shot.unlink()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=size(5, 1))
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    with serving("serve", "fashion") as (_, cloud), tempfile.TemporaryDirectory() as folder:
        settle(Path(folder), cloud)
        with app(Path(folder)) as url, chromium() as browser:
            taken = [first_answer_s(browser, url) for _ in range(arguments.runs)]
            rows = {"first answer of a new app": taken[0], f"first answer, median of {len(taken)}": statistics.median(taken)}
            print(table(Figure(name, f"{s:.2f} s", "", s, "s", LIMIT_S) for name, s in rows.items()))
            if arguments.picture:
                pictures(browser, url, arguments.picture)


if __name__ == "__main__":
    main()
