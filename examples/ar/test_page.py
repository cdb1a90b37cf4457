"""The AR example's page in Chromium, with a film of a sign as the browser's camera."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import threading

import cv2
import main
import numpy as np
import pytest
import sources
from overlay import jpeg
from page import Page
from painted import is_picture_of

from edgeroute.testing import CannedServer, http_reply

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
LONG = 120.0
EDGE = {"text": "BAHNSTEIGKANTE", "says": "PLATFORM EDGE", "box": [[9, 9], [90, 9], [90, 30], [9, 30]], "score": 0.99}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, whose camera sees a sign with a word that the device's table lacks."""
    sign = np.full((480, 640, 3), (20, 66, 140), np.uint8)
    cv2.putText(sign, "BAHNSTEIGKANTE", (60, 250), cv2.FONT_HERSHEY_SIMPLEX, 2.0, (250, 250, 250), 5)
    film = tmp_path_factory.mktemp("film") / "sign.mjpeg"
    film.write_bytes(jpeg(sign, 95) * 30)
    playwright.expect.set_options(timeout=LONG * 1000)
    media = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", f"--use-file-for-fake-video-capture={film}"]
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", *media], timeout=LONG * 1000
        )
        yield found
        found.close()


@pytest.fixture
def running(monkeypatch):
    """The program, with a cloud that knows the word; its page."""
    monkeypatch.setenv("EDGEROUTE_CLOUD__URL", "")  # restored afterwards: the program sets it
    monkeypatch.setenv("EDGEROUTE_CLOUD__TIMEOUT", f"{LONG:.0f}s")
    monkeypatch.setattr(main, "STALE_S", LONG)
    monkeypatch.setattr(sources, "AWAY_S", LONG)
    camera = sources.Camera()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(CannedServer(http_reply(json.dumps({"words": [EDGE], "confidence": 0.99}).encode())))
        url, cut = stack.enter_context(main.cuttable(f"{server.url}/read"))
        router = stack.enter_context(main.router_of(main.POLICY, url, deadline=LONG))
        page = Page(0, camera)
        page.switch(lambda away: (cut(away), None if away else router.link_up()))
        shown = threading.Thread(target=main.show, args=(router, camera, page), kwargs={"sure": 0.95})
        shown.start()
        try:
            yield page
        finally:
            page.close()
            shown.join(LONG)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_sign_before_the_browsers_camera(browser, running, width, scheme):
    """While the cloud is cut its word stays as it is, degraded; mended, it is the cloud's, in English. No error, nothing from elsewhere."""
    expect, wrong, asked = playwright.expect, [], set()
    view = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    view.set_default_timeout(LONG * 1000)
    view.on("console", lambda told: wrong.append(told.text) if told.type in {"error", "warning"} else None)
    view.on("pageerror", lambda error: wrong.append(str(error)))
    view.on("request", lambda request: asked.add(request.url))
    opened = view.goto(running.url)
    assert "The models are being loaded" in opened.text()  # the page may have its first picture already
    view.locator("#cut").click()
    expect(view.locator("#away")).to_be_visible()
    view.locator("#camera").click()
    expect(view.locator("#words")).to_contain_text("BAHNSTEIGKANTE")
    expect(view.locator("#who")).to_have_text("✕ degraded")
    expect(view.locator("#words")).to_contain_text("(not in the table of words)")
    view.locator("#cut").click()
    expect(view.locator("#away")).to_be_hidden()
    expect(view.locator("#who")).to_have_text("▲ cloud")
    expect(view.locator("#words")).to_contain_text("PLATFORM EDGE")
    expect(view.locator("#sure")).to_have_text(re.compile(r"sure 0\.99, \d+ ms old"))
    pixel = "document.querySelector('#right canvas').getContext('2d').getImageData(5, 5, 1, 1).data.slice(0, 3).join()"
    assert np.allclose([int(one) for one in view.evaluate(pixel).split(",")], (20, 66, 140), atol=25), "the picture of the film"
    if scheme == "light":
        import screenshot

        view.set_viewport_size(screenshot.SIZE)
        is_picture_of(screenshot.HERE / "screenshot.jpg", view, {"edge", "cloud", "waiting", "degraded", "private"})
        view.set_viewport_size({"width": width, "height": 800})
    view.locator("#split").uncheck()
    expect(view.locator("#left")).to_be_hidden()
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    assert wrong == []
    assert all(url.startswith((running.url, "data:")) for url in asked), asked
    view.close()
