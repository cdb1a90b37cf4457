"""Makes screenshot.jpg, the README's picture, from the running example: `python screenshot.py`, with Debian's Chromium."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

HERE = Path(__file__).parent
LONG_MS = 240_000
SIZE = {"width": 1280, "height": 830}
"""Pixels of the picture."""


def main() -> None:
    """Start the example, and write screenshot.jpg once the cloud has read the street sign."""
    command = [sys.executable, str(HERE / "main.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, sync_playwright() as driver:  # noqa: S603 - ours
        try:
            assert process.stdout is not None, "a pipe"
            url = process.stdout.readline().split()[1]
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport=SIZE)
            page.goto(url)
            expect.set_options(timeout=LONG_MS)
            expect(page.locator("#words")).to_contain_text("Road closed")
            expect(page.locator("#who")).to_have_text("▲ cloud")
            picture = Image.open(io.BytesIO(page.screenshot()))
            picture.convert("RGB").save(HERE / "screenshot.jpg", quality=85)
            browser.close()
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
