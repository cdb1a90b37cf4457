"""What a notebook shows of a router, its statistics, a decision and a check; and the pages under JupyterLab's own stylesheet."""

from __future__ import annotations

import html
import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from both import sure, unsure
from pages import Closed

from edgeroute import Audit, Router, Stats, Trial, Unreachable
from edgeroute.tools.state_colours_and_marks import STATES

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FOREIGN = "<script>alert(1)</script>&\"'</p>"


def cell(thing):
    """The page of a thing, as a notebook shows it."""
    return thing._repr_html_()  # private: the name by which IPython asks for it


def away(_):
    raise Unreachable(FOREIGN)


@pytest.fixture
def router():
    """A router with a trial and audits that has answered."""
    with Router(unsure, sure, threshold=0.5, trial=Trial(cloud=away, share=0.5), audit=Audit(share=0.5)) as made:
        for x in range(20):
            made.infer(x)
        yield made


def test_one_line_for_each(router):
    """Counts, and what a check and a decision found."""
    assert re.fullmatch(r"<Router prefer_edge: edge from 0\.5, cloud, .*>", repr(router))
    stats = repr(router.stats())
    assert re.match(
        r"<Stats of 20 requests: 20 deferred, \d+ degraded, 0 unanswered; edge answered 20 of 20; cloud answered", stats
    )
    assert repr(router.check()).startswith("<Check, ready: edge: unsure is ready (")
    assert re.match(r"<Decision: mode prefer_edge; .*=> cloud: would send this input to the function", repr(router.decide(1)))
    for text in (repr(router), stats, repr(router.check()), repr(router.decide(1))):
        assert "\n" not in text


def test_the_pages(router):
    """Whole elements, with the figures, of which no two share an id."""
    stats = router.stats()
    cells = [cell(thing) for thing in (router, stats, router.check(), router.decide(1), stats)]
    ids = [name for text in cells for name in Closed(text).ids]
    assert len(ids) == len(set(ids)) == 5
    assert "Trials in operation" in cells[0]
    assert f"{stats.requests}" in cells[1]
    assert "ready" in cells[2]
    assert "the function" in cells[3]
    router.close()
    assert "closed" in cell(router)


def test_the_page_of_nothing():
    """Before the first request, and without targets."""
    with Router(unsure, sure, threshold=0.5) as router:
        Closed(cell(router))
        assert "-" in cell(router.stats())
    empty = Stats(0, 0, 0, 0, 0.0, 0, 0, 0, 0, 0, 0.0, (), ())
    assert repr(empty) == "<Stats of 0 requests: 0 deferred, 0 degraded, 0 unanswered>"
    Closed(cell(empty))


def test_what_comes_from_outside_is_text():
    """Names of targets, addresses, and messages of servers."""
    text = FOREIGN

    class Named:
        name = text

        def run(self, inputs, cancel=None):
            return [("a", 0.1) for _ in inputs]

        def load(self):
            raise RuntimeError(text)

    with Router(Named(), f"http://127.0.0.1:9/v2/models/{text.replace('/', '')}", threshold=0.5) as router:
        shown = [cell(thing) for thing in (router, router.stats(), router.check(), router.decide(1))]
    for text in shown:
        Closed(text)
        assert "<script" not in text.lower()
        assert "</p>&" not in text
    assert "&lt;script&gt;" in shown[0]


def test_states_in_a_notebook(router):
    """Have their marks; their colours are set for the element alone, and once more for notebooks that are dark."""
    text = cell(router)
    for name in ("edge", "cloud", "cache", "degraded"):
        assert f'<span style="color: var(--{name})">{STATES[name].mark}</span> {name}' in text
        assert text.count(f"--{name}: {STATES[name].light};") == text.count(f"--{name}: {STATES[name].dark};") == 1
    assert ".vscode-dark *), " in text


def test_no_rule_of_the_page_is_lighter_than_an_id():
    """A notebook's rules for tables have two classes, and more."""
    with Router(sure) as router:
        (style,) = re.findall(r"<style>(.*?)</style>", cell(router), re.DOTALL)
    selectors = [part for rule in re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]*\{", "", style)) for part in rule.split(",")]
    assert len(selectors) > 30
    assert all(part.strip().startswith(".edgeroute-report:not(#_)") for part in selectors)


# ------------------------------------------------------------------------------------------------------- in JupyterLab
PROPERTIES = [
    "display", "float", "fontFamily", "fontSize", "fontWeight", "fontStyle", "lineHeight", "textAlign", "verticalAlign", "whiteSpace",
    "backgroundColor", "tableLayout", "borderCollapse", "overflowX", "maxWidth", "listStyleType",
    *(f"{kind}{side}" for kind in ("padding", "margin") for side in ("Top", "Right", "Bottom", "Left")),
    *(f"border{side}Width" for side in ("Top", "Right", "Bottom", "Left")),
]  # fmt: skip


def jupyterlab(theme):
    """All rules of the JupyterLab that is installed, and those of a theme."""
    package = Path(importlib.util.find_spec("jupyterlab").origin).parent
    texts = []
    for script in sorted((package / "static").glob("*.js")):
        texts += re.findall(r"\.push\(\[\w+\.id,`(.*?)`,", script.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    rules = "\n".join(text.replace("\\\\", "\\") for text in texts if ".jp-" in text)
    assert ".jp-RenderedHTMLCommon table" in rules
    assert ".jp-OutputArea-output dt" in rules
    return rules + (package / "themes" / "@jupyterlab" / f"theme-{theme}-extension" / "index.css").read_text(encoding="utf-8")


def seen(folder, cells, rules, theme):
    """What a browser computes for each element of the pages: its properties and its colour on its background."""
    outputs = "".join(
        '<div class="lm-Widget lm-Panel jp-OutputArea-child jp-OutputArea-executeResult"><div class="lm-Widget jp-RenderedHTMLCommon '
        f'jp-RenderedHTML jp-mod-trusted jp-OutputArea-output jp-OutputArea-executeResult" data-mime-type="text/html">{text}</div></div>'
        for text in cells
    )
    script = f"""onload = () => {{
  const elements = [...document.querySelectorAll(".edgeroute-report *:not(style):not(svg *)")].map(element => {{
    const style = getComputedStyle(element);
    return [element.tagName, element.textContent.slice(0, 20), {json.dumps(PROPERTIES)}.map(name => style[name]), style.color];
  }});
  const back = getComputedStyle(document.body).backgroundColor;
  document.body.textContent = JSON.stringify({{elements, back}});
}}"""
    file = folder / f"{theme}.html"
    file.write_text(
        f'<!doctype html><meta charset=utf-8><style>{rules}</style><body data-jp-theme-light="{json.dumps(theme == "light")}" '
        'style="background: var(--jp-layout-color0, #fff)"><div class="jp-Notebook"><div class="jp-Cell jp-CodeCell"><div class='
        f'"lm-Widget jp-OutputArea jp-Cell-outputArea">{outputs}</div></div></div><script>{script}</script>',
        encoding="utf-8",
    )
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900",
        "--dump-dom", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(re.search(r'\{"elements.*\}', done.stdout, re.DOTALL)[0]))


def luminance(color):
    """Relative luminance of a colour as CSS computes it (WCAG 2)."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.matrix
@pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")
@pytest.mark.skipif(importlib.util.find_spec("jupyterlab") is None, reason="JupyterLab is not installed")
def test_the_pages_in_jupyterlab(router, tmp_path):
    """Under its stylesheet each element is as without it, and its text can be read in the light and the dark theme."""
    names = [f"name {i}" for i in range(400)]
    with Router(lambda x: (f"name {x % 3}", float(np.sin(x) ** 2)), lambda x: (f"name {x}", 0.9), threshold=0.5) as other:
        results = [other.calibrate(range(400), names, max_defer=0.5), other.evaluate(range(400), names)]
        cells = [cell(thing) for thing in (router, router.stats(), router.check(), router.decide(1), *results)]
    plain = seen(tmp_path, cells, "", "plain")
    assert len(plain["elements"]) > 200
    for theme in ("light", "dark"):
        found = seen(tmp_path, cells, jupyterlab(theme), theme)
        differences = {
            (tag, name, here, there)
            for (tag, _, own, _), (_, _, with_rules, _) in zip(plain["elements"], found["elements"], strict=True)
            for name, here, there in zip(PROPERTIES, own, with_rules, strict=True)
            if here != there
        }
        assert sorted(differences) == []
        back = luminance(found["back"])
        for _, text, _, color in found["elements"]:
            high, low = sorted((luminance(color), back), reverse=True)
            assert not text.strip() or (high + 0.05) / (low + 0.05) >= 3, (theme, text, color)
