"""The app for Android in a browser: the app as a process, a headless Chromium of a phone's size, and what its page shows."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import edgeroute

APP = Path(__file__).parents[1] / "android_demo"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CLOUD = "http://127.0.0.1:8080"
"""Where the app's policy looks for a cloud."""
LONG_S = 60
SHOWS = """([name, text]) => {
    const one = document.querySelector(`[flt-semantics-identifier=${name}]`)
    if (!one) return false
    const labels = [one, ...one.querySelectorAll("[aria-label]")].map(e => e.getAttribute("aria-label"))
    return (one.textContent + labels.join()).includes(text)
}"""


PLACES = """() => [...document.querySelectorAll("[flt-semantics-identifier], [role=button], [role=switch], [role=checkbox]")].map(e => {
    const r = e.getBoundingClientRect()
    return [e.getAttribute("flt-semantics-identifier") ?? e.getAttribute("aria-label") ?? e.textContent, [r.x, r.y, r.width, r.height]]
})"""


def settle(storage: Path, server: str) -> None:
    """Writes the app's policy into its folder, with the cloud at that server, and all the time that a busy machine needs."""
    text = (APP / "policy.toml").read_text()
    for old, new in ((CLOUD, server), ('deadline = "3s"', 'deadline = "60s"'), ('timeout = "2s"', 'timeout = "30s"')):
        assert old in text
        text = text.replace(old, new)
    (storage / "policy.toml").write_text(text)


def large_model(folder: Path) -> Path:
    """-> the cloud's model, which the recipe makes in that folder of a package's weights."""
    recipe = APP.parent / "models" / "recipes" / "things.py"
    subprocess.run([sys.executable, str(recipe), "cloud", str(folder)], check=True, stdout=subprocess.DEVNULL)
    return folder / "things-large.onnx"


@contextmanager
def app(storage: Path):
    """The app with that folder, as a web server in a process of its own. -> its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(edgeroute.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
        "FLET_APP_STORAGE_DATA": str(storage),
        "FLET_FORCE_WEB_SERVER": "true",
        "FLET_SERVER_PORT": str(port),
    }
    environment.pop("FLET_SERVER_IP", None)
    with subprocess.Popen([sys.executable, str(APP / "main.py")], cwd=storage, env=environment) as process:
        try:
            until = time.monotonic() + LONG_S
            while not listens(port):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()
            process.wait(30)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a connection to it is accepted."""
    with socket.socket() as tried:
        return not tried.connect_ex((host, port))


@contextmanager
def chromium():
    """A headless Chromium that draws without a graphics card."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--use-angle=swiftshader"])
        yield browser
        browser.close()


class Screen:
    """The page of the app, by what it tells to a screen reader: Flutter draws it on a canvas."""

    def __init__(self, browser, url, scheme="light"):
        for earlier in browser.contexts:  # whose app has ended: it would draw its sign of waiting without end
            earlier.close()
        self.page = browser.new_page(viewport={"width": 412, "height": 915}, color_scheme=scheme)
        self.page.set_default_timeout(1000 * LONG_S)
        self.page.goto(url)
        self.page.locator("flt-semantics-placeholder").dispatch_event("click")  # has it told

    def shows(self, name, text):
        """Waits until what has that name has that text in it."""
        self.page.wait_for_function(SHOWS, arg=[name, text], polling=50)  # not at each frame: none may come for long

    def type(self, change):
        """Replaces the text of the only field."""
        self.page.get_by_role("textbox").click()
        self.page.wait_for_function("document.activeElement.value")
        text = change(self.page.evaluate("document.activeElement.value"))
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(text)

    def tap(self, name, role="button"):
        """Taps on what has that name."""
        self.page.get_by_role(role, name=name, exact=True).click()

    def places(self):
        """-> {name: (left, top, width, height)} of all that has a name, of what can be tapped on, and of texts."""
        found = self.page.evaluate(PLACES)
        return {name: tuple(round(side) for side in box) for name, box in found}
