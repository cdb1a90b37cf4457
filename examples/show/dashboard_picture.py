"""Take docs/figures/dashboard.png, of a router whose cloud is away: `python examples/show/dashboard_picture.py FILE.png`."""

from __future__ import annotations

import io
import shutil
import sys
import time
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from edgeroute import Audit, Cache, Egress, Function, Limits, OnnxModel, Options, Router, Unreachable, models
from edgeroute.tools.dashboard.in_process import Dashboard

HEIGHT, WIDE, NARROW, GAP = 1740, 1180, 380, 24
"""Pixels of the picture."""
LONG_MS = 60_000
WELL_S, AWAY_S, PAUSE_S = 100, 10, 0.03
"""Seconds in which the cloud answers, and then in which it is away; between requests."""


def page(browser: Browser, address: str, width: int, scheme: str) -> Image.Image:
    """Return a picture of the dashboard that says that the cloud is away, as wide as that, light or dark."""
    expect.set_options(timeout=LONG_MS)
    with browser.new_page(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme) as tab:  # type: ignore[arg-type]
        tab.goto(address)
        expect(tab.locator("#status")).to_contain_text("cloud away")
        expect(tab.locator("#promise")).to_contain_text("guaranteed")
        return Image.open(io.BytesIO(tab.screenshot()))


def take(to: Path) -> None:
    """Ask a router for a while, then without its cloud, and write the picture of its dashboard, wide and narrow."""
    pair, away, dashboard, ended = models.fashion(), Event(), Dashboard(), Event()
    large, images = OnnxModel(pair.cloud), pair.images

    def cloud(image: Any) -> Any:
        if away.is_set():
            raise Unreachable("the cloud of this example is away")
        return large.run([image])[0]

    target = Function(cloud, name="cloud", kind="logits", version="1", usd_per_call=0.001)
    with Router(pair.edge, target, threshold=0.85) as router:
        certificate = router.calibrate(images, pair.labels, max_loss=0.012).certificate
    with TemporaryDirectory() as state, Router(
        pair.edge, target, threshold=certificate, state=state, offline="queue", cache=Cache(), audit=Audit(share=0.02),
        limits=Limits(usd_per_day=5), egress=Egress(may_leave=["photo"], never_leave=["medical"]),
        options=Options(instruments=[dashboard]),
    ) as router, sync_playwright() as driver:  # fmt: skip
        address = dashboard.serve(router)

        def ask() -> None:
            for number in count():
                if ended.wait(PAUSE_S):
                    return
                image = images[number % len(images)].copy()
                image[0, :2] = divmod(number % 65536, 256)  # another one each time
                router.infer(image, data_class="photo" if number % 7 else "medical")

        asking = Thread(target=ask)
        asking.start()
        try:
            time.sleep(WELL_S)
            away.set()
            time.sleep(AWAY_S)
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            whole = Image.new("RGB", (WIDE + GAP + NARROW, HEIGHT), "#8a8a94")
            whole.paste(page(browser, address, WIDE, "light"), (0, 0))
            whole.paste(page(browser, address, NARROW, "dark"), (WIDE + GAP, 0))
            browser.close()
        finally:
            ended.set()
            asking.join()
    whole.quantize(256).save(to, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]))
