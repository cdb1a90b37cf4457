"""Makes page.png, the README's picture, from the running example: `python screenshot.py`, with Debian's Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

HERE = Path(__file__).parent
LONG_MS = 120_000
SIZE = {"width": 1280, "height": 900}
"""Pixels of the picture."""
SENTENCES = {
    "turn the volume down": "Volume 40 percent.",
    "what is the capital of france": "Paris",
    "set a timer for fifteen minutes": "Timer for 15 minutes.",
}
"""A sentence, and what its answer must have."""


def main() -> None:
    """Start the example, say the sentences on its page, each after the wake word, and write page.png."""
    command = [sys.executable, "-u", str(HERE / "main.py"), "--silent", "--page", "--wake", "alexa"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, sync_playwright() as driver:  # noqa: S603 - ours
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if "The page is at" in line).split()[4].rstrip(";")
            expect.set_options(timeout=LONG_MS)
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport=SIZE)
            page.goto(url)
            for sentence, said in SENTENCES.items():
                page.get_by_label("A sentence").fill(sentence)
                page.get_by_label("Voice").select_option("en-gb-x-rp+m3")
                page.get_by_role("button", name="Say it").click()
                expect(page.locator("#said")).to_contain_text(said)
                expect(page.locator("li[data-stage='wake word']")).to_contain_text("alexa")
            page.screenshot(path=HERE / "page.png")
            browser.close()
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
