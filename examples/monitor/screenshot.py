"""Take the picture of the page that the README shows: without the plug, with an alarm. `python screenshot.py FILE.png`."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from threading import Event, Thread

from page import shown, watch
from playwright.sync_api import expect, sync_playwright

WAIT_MS = 120_000
HEIGHT = 920


def take(to: Path, scheme: str = "light", width: str = "1280") -> None:
    """Press both buttons of the page, and write a picture of it as it is when an alarm is on, and sixty windows or more wait.

    scheme: light or dark. width: of the browser, pixels.
    """
    ending = Event()
    with shown() as (live, address), sync_playwright() as driver:
        running = Thread(target=watch, args=[live, ending])
        running.start()
        try:
            chromium = shutil.which("chromium") or shutil.which("google-chrome")
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport={"width": int(width), "height": HEIGHT}, color_scheme=scheme)  # type: ignore[arg-type]
            page.set_default_timeout(WAIT_MS)
            expect.set_options(timeout=WAIT_MS)
            page.goto(address)
            expect(page.locator("#key")).to_contain_text(re.compile(r"edge \d\d\d"))
            page.get_by_role("button", name="Pull the plug").click()
            page.get_by_role("button", name="Break the bearing").click()
            expect(page.locator("#machine")).to_contain_text("ALARM")
            expect(page.locator("#waiting")).to_have_text(re.compile(r"[6-9]\d"))
            page.screenshot(path=to)
            browser.close()
        finally:
            ending.set()
            running.join()


if __name__ == "__main__":
    take(Path(sys.argv[1]), *sys.argv[2:])
