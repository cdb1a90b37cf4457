"""Makes page.png, the README's picture, from the running example: `python screenshot.py`, with Debian's Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

HERE = Path(__file__).parent
LONG_MS = 120_000
SIZE = {"width": 1280, "height": 720}
"""Pixels of the picture."""
QUESTIONS = {
    "What is the capital of Italy?": "edge",
    "Who wrote Romeo and Juliet?": "cloud",
    "How many legs has a spider?": "degraded",
}
"""A question, and the state that its answer must have."""


def main() -> None:
    """Start the example, ask in its page, the last time without the cloud, and write page.png."""
    command = [sys.executable, str(HERE / "main.py"), "--page", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, sync_playwright() as driver:  # noqa: S603 - ours
        try:
            assert process.stdout is not None
            url = process.stdout.readline().removeprefix("the page: ").strip()
            for line in process.stdout:
                if "Ctrl-C ends it" in line:
                    break
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(viewport=SIZE)
            page.goto(url)
            show(page)
            browser.close()
        finally:
            process.terminate()


def show(page: Page) -> None:
    """Ask each question in the page, cut the cloud for the last one, and write page.png once each is in the table."""
    expect.set_options(timeout=LONG_MS)
    for question, state in QUESTIONS.items():
        if state == "degraded":
            page.get_by_label("Cut the cloud").check()
            expect(page.get_by_role("status")).to_be_visible()
        page.get_by_label("Question", exact=True).fill(question)
        page.keyboard.press("Enter")
        expect(page.locator("#rows tr").first).to_contain_text(question)
        expect(page.get_by_role("button", name="Send")).to_be_enabled()
        expect(page.locator(".told .state").last).to_contain_text(state)
    expect(page.get_by_label("Cut the cloud")).to_be_enabled()
    page.screenshot(path=HERE / "page.png")


if __name__ == "__main__":
    main()
