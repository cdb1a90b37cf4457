"""The documentation as a site: what mkdocs.yml names is there, once, and generated pages and pictures are those of today."""

from __future__ import annotations

import importlib
import os
import re
import shutil
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

import edgeroute

ROOT = Path(__file__).resolve().parent.parent
PAGES = {page.name for page in (ROOT / "docs").glob("*.md")}
API = {f"api/{page.name}" for page in (ROOT / "website" / "api").glob("*.md")}


def nav():
    """The pages in the navigation of mkdocs.yml, in its order."""
    yaml = pytest.importorskip("yaml")

    def pages(entry):
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry if isinstance(entry, list) else entry.values()) for page in pages(part)]

    return pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def test_the_navigation_has_each_page_once():
    """A page that is written is found, and one that is found is written."""
    assert Counter(nav()) == Counter([*PAGES, *API])


def test_the_readme_has_the_tabs_of_the_site():
    """Each of its rows of pages is a tab, and each page that it links to is there."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| \*\*(\w[\w ]*)\*\* \| (.*) \|$", text.split("## Documentation")[1], re.MULTILINE)
    assert [name for name, _ in rows] == [
        name for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for name in entry
    ]
    linked = re.findall(r"\]\(docs/([a-z-]+\.md)\)", text)
    assert len(linked) >= 20
    assert {*linked} <= PAGES


@pytest.mark.parametrize("module", ["edgeroute", "edgeroute.testing", "edgeroute.confidence", "edgeroute.catalog", "edgeroute.tools.compress",
                                    "edgeroute.tools.replay", "edgeroute.policy"])  # fmt: skip
def test_each_public_name_is_in_the_reference_once(module):
    """As `::: module.name` in website/api; and what is there exists."""
    texts = "\n".join((ROOT / "website" / page).read_text() for page in API)
    said = re.findall(r"^::: (\S+)$", texts, re.MULTILINE)
    assert max(Counter(said).values()) == 1
    there = importlib.import_module(module)
    assert [name for name in there.__all__ if not hasattr(there, name)] == []
    public = {f"{module}.{name}" for name in there.__all__ if not name.startswith("__")}
    elsewhere = {f"{module}.{name}" for name in edgeroute.__all__ if f"edgeroute.{name}" in said and module != "edgeroute"}
    assert public - set(said) <= elsewhere
    for name in said:
        home, _, last = name.rpartition(".")
        if home == module:
            assert hasattr(importlib.import_module(home), last), name


def test_the_page_of_commands_is_what_they_are(monkeypatch):
    """docs/commands.md is what `make docs` writes, and not written by hand."""
    monkeypatch.syspath_prepend(str(ROOT / "website"))
    text = importlib.import_module("reference_pages").commands_page()
    assert (ROOT / "docs" / "commands.md").read_text() == text
    for command in ("infer", "models pull", "export triton", "simulate load", "outbox list"):
        assert f"\n## edgeroute {command}\n" in text
    assert "* `--port N` (`8080`): " in text


def test_the_house_is_drawn_from_the_design(monkeypatch):
    """docs/figures/house.svg has the rooms of docs/design.md, each above what it imports; `python website/draw.py NAME` draws a picture."""
    monkeypatch.syspath_prepend(str(ROOT / "website"))
    draw = importlib.import_module("draw")
    for name, drawn in draw.STILL.items():
        if drawn.__name__ == "confidence" and not (ROOT / "models" / "fashion").exists():  # the tests stand beside a wheel
            continue
        assert (ROOT / "docs" / "figures" / f"{name}.svg").read_text(encoding="utf-8") == str(drawn()), name
    monkeypatch.setattr(draw, "FLOORS", draw.FLOORS[::-1])
    with pytest.raises(ValueError, match="not down"):
        draw.house()


def test_each_picture_is_on_a_page():
    """Each file of docs/figures is shown by a page, with words for who does not see it; there are 16 at least."""
    texts = "\n".join((ROOT / "docs" / page).read_text() for page in PAGES)
    shown = set(re.findall(r"!\[[^\]]{20,}\]\(figures/([\w.-]+)\)", texts))
    assert shown == {file.name for file in (ROOT / "docs" / "figures").iterdir()}
    assert len(shown) >= 16


def test_links_of_a_page_lead_somewhere_in_a_wheel():
    """Beside the documentation it has some files of examples/. A folder that is in the source alone is named by its path there."""
    project = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text())
    there = project["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]
    homes = [f"edgeroute{path}" for path in there]
    for page in sorted(PAGES):
        for text, link in re.findall(r"\[([^\[\]]+)\]\(([^)\s#:]+)[)#]", (ROOT / "docs" / page).read_text()):
            place = os.path.normpath(Path("edgeroute", "docs", link))
            in_wheel = any(place == home or place.startswith(f"{home}/") for home in homes)
            assert in_wheel or (place == f"edgeroute/{text}" and (ROOT / text).is_dir()), f"{page}: {link}"


def test_markdown_that_all_readers_read_alike():
    """Where GitHub and the site's Markdown differ: a list right after a paragraph, and one in a list indented by less than four."""
    for page in sorted(PAGES):
        before, fenced = "", False
        for i, line in enumerate((ROOT / "docs" / page).read_text().splitlines(), 1):
            fenced ^= line.lstrip().startswith("```")
            if not fenced:
                item = re.match(r"( *)(?:[*-]|\d+\.) ", line)
                assert not item or len(item[1]) in {0, 4, 8}, f"{page}:{i}: indent by four"
                in_list = re.match(r" *(?:[*-]|\d+\.) |  ", before)
                assert not item or item[1] or not before.strip() or in_list, f"{page}:{i}: an empty line before a list"
            before = line


@pytest.fixture
def site():
    """The URL of the built site: .ci/run builds it before."""
    built = ROOT / "build" / "site"
    if not (built / "index.html").exists():
        pytest.skip("make site")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=built)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.matrix
@pytest.mark.parametrize("width", [1280, 390])
def test_the_site_in_a_browser(site, width):
    """It loads nothing from elsewhere, finds words, has the pictures and the Python reference, and is no wider than a phone."""
    sync = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium")
    asked, wrong = [], []
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": width, "height": 844})
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(f"{site}/index.html")
        assert page.locator("img").evaluate_all("all => all.every(img => img.complete && img.naturalWidth > 0)")
        for name in ("index", "api/routers", "policy", "commands", "source/android_demo/index"):
            page.goto(f"{site}/{name}.html")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        page.goto(f"{site}/api/routers.html")
        assert "hedge_after" in page.locator("article").inner_text()
        page.keyboard.press("f")
        page.keyboard.type("dead letter")
        page.locator(".md-search-result__item", has_text="Outbox").first.wait_for()
        browser.close()
    assert not wrong
    assert all(url.startswith((site, "data:", "blob:")) for url in asked), asked
