"""The dashboard's page in a real browser: it lives, is used by keyboard, fits a phone, in light and dark, and runs nobody's script."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny
from both import GOOD
from lazily import Later, needs
from live import until
from watched import EVIL, LONG, Records, page_of

from edgeroute import Audit, CallableModel, Egress, Function, Limits, Options, PlainJson, Router, Unreachable
from edgeroute.testing import CannedServer
from edgeroute.tools.cli.servers_and_dashboards import file_monitor
from edgeroute.tools.dashboard.dashboard_data_and_tail import Monitor
from edgeroute.tools.dashboard.in_process import Dashboard

needs("playwright", "uvicorn")
playwright = Later("playwright.sync_api")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.matrix, pytest.mark.skipif(BROWSER is None, reason="chromium is not installed")]
MS = LONG * 1000


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium."""
    playwright.expect.set_options(timeout=MS)
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def edge(x):
    """It is as sure as its input says, and right from 0.2 on."""
    return ("right" if x > 0.2 else "wrong", x)


def cloud(x):
    """Fails for less than 0.1, with markup in its message."""
    if x < 0.1:
        raise Unreachable(f"{EVIL} is down " + "long" * 100)
    return ("right", 1.0)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """-> a router with a certificate, and the address of its page."""
    model, endpoint = CallableModel(edge, version="1"), Function(cloud, name=EVIL, version="1", usd_per_call=0.01)
    with Router(model, endpoint, threshold=0.5) as router:
        certificate = router.calibrate([0.1 + i / 1112 for i in range(1000)], ["right"] * 1000, max_loss=0.05).certificate
    dashboard = Dashboard()
    with Router(
        model, endpoint, threshold=certificate, state=tmp_path_factory.mktemp("state"), audit=Audit(share=1.0, scene=1),
        options=Options(instruments=[dashboard]), limits=Limits(usd_per_day=100), egress=Egress(may_leave=[EVIL], never_leave=["b"]),
    ) as router:  # fmt: skip
        address = dashboard.serve(router)
        for i in range(300):
            router.infer(0.1 + 0.9 * (i % 100) / 100, data_class="b" if i % 10 == 0 else EVIL)
        router.infer(0.05, data_class=EVIL)
        yield router, address


@contextlib.contextmanager
def opened(browser, address, *, width=1280, scheme="light", **more):
    """A page; at its end it must have had no error, and asked nobody else."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, **more)
    page, wrong, asked = context.new_page(), [], set()
    page.set_default_timeout(MS)
    page.on("console", lambda said: wrong.append(said.text) if said.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: asked.add(request.url))
    page.goto(address)
    try:
        page.wrong = wrong
        yield page
        assert wrong == []
        base = address.partition("/#")[0]
        assert all(url.startswith((base, "data:,")) for url in asked), asked
    finally:
        context.close()


def texts(page, selector):
    """Return the texts of all that match, read at once: a look of the page may replace elements between finding and reading them."""
    return page.evaluate("selector => [...document.querySelectorAll(selector)].map(one => one.innerText)", selector)


def tile(page, name):
    """What the tile of that name shows."""
    return page.locator("#tiles div", has_text=name).locator("dd").first.inner_text()


def test_it_lives(browser, served):
    """A request appears by itself; while it is paused nothing does; what failed is listed apart."""
    router, address = served
    with opened(browser, address) as page:
        playwright.expect(requests := page.locator("#tiles dd").first).to_have_text(re.compile("30[1-9]"))
        before = int(tile(page, "requests").replace(",", ""))
        router.infer(0.95, data_class="b")
        playwright.expect(requests).to_have_text(str(before + 1))
        first = page.locator("#routes li").first.inner_text()
        assert first.startswith("◆ private")
        assert "0.95 >= " in first
        router.infer(0.12, data_class="b")
        playwright.expect(requests).to_have_text(str(before := before + 2))
        told = page.locator("#routes li").first.inner_text()
        assert "0.12 < " in told
        assert told.endswith("data class 'b' never leaves")
        assert "edge" not in texts(page, "#routes li.edge > span")  # the mark's word tells it
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the figures"
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.locator("#pause").get_attribute("aria-pressed") == "true"
        router.infer(0.95, data_class="b")
        page.evaluate("look()")
        assert tile(page, "requests") == str(before)
        page.keyboard.press("Enter")
        playwright.expect(requests).to_have_text(str(before + 1))
        page.locator("input[name=which][value=odd]").check()
        assert page.locator("#routes li").count() == 1
        assert "is down" in page.locator("#routes").inner_text()


@pytest.mark.parametrize("offline", ["edge", "queue"])
def test_an_outage_is_the_loudest(browser, tmp_path, offline):
    """Of a real server that is cut off: said once, in the largest letters; tiles change; its answers are a hatched series."""
    dashboard, state = Dashboard(), "degraded" if offline == "edge" else "waiting"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(CannedServer(GOOD))
        router = stack.enter_context(
            Router(edge, PlainJson(server.url, retries=0), threshold=0.5, offline=offline, state=tmp_path, options=Options(instruments=[dashboard]))
        )  # fmt: skip
        with opened(browser, dashboard.serve(router), scheme="dark") as page:
            router.infer(0.3)
            playwright.expect(page.locator("#tiles dd").first).to_have_text("1")
            assert page.locator("#status").inner_text() == ""
            assert page.locator("#tiles .loud").count() == 0
            playwright.expect(page.locator("#latency circle")).to_have_count(2)  # a line of one point would be invisible
            server.__exit__(None, None, None)
            for _ in range(5):
                router.infer(0.3)
            status = page.get_by_role("status").filter(has_text="cloud away since")
            playwright.expect(status).to_contain_text("5 requests without its answer")
            if offline == "queue":
                playwright.expect(status).to_contain_text("5 waiting")  # the state is read less often than the requests
            assert ("waiting" in status.inner_text()) == (offline == "queue")
            sizes = page.evaluate("""() => [...document.querySelectorAll("body *")].filter(one => one.getClientRects().length && one.tagName !== "svg" && !one.closest("svg"))
              .map(one => [parseFloat(getComputedStyle(one).fontSize), one.closest("#status") !== null])""")
            assert max(size for size, said in sizes if said) > max(size for size, said in sizes if not said)
            assert [text.split("\n")[:2] for text in texts(page, "#tiles .loud")] == (
                [["✕ degraded", "5"]] if offline == "edge" else []
            ), "none is red for nothing"
            assert (page.locator("#tiles .later").count() == 1) == (offline == "queue")
            assert page.locator(f"#bars rect[fill='url(#hatch-{state})']").count() >= 1
            assert page.evaluate(f"document.querySelector('#hatch-{state} path').getTotalLength()") > 0
            page.evaluate("globalThis.line = document.querySelector('#status strong')")
            router.infer(0.3)
            playwright.expect(status).to_contain_text("6 requests without its answer")
            assert page.evaluate("globalThis.line.isConnected"), "a count is no new announcement"


def test_the_end_of_an_outage_is_told(browser):
    """With its beginning, in quiet colours; nothing is loud any more but what was degraded a moment ago."""
    traced, records = [], Records()
    with Router(edge, Function(cloud, usd_per_call=0.01), threshold=0.5, trace=traced.append) as router:
        for x in (0.3, 0.05, 0.05, 0.05):
            router.infer(x)
    with page_of(Monitor(records, title="a test")) as address, opened(browser, address) as page:
        records.fresh += traced
        status = page.locator("#status")
        playwright.expect(status).to_contain_text("cloud away since")
        records.fresh.append({**traced[0], "at": traced[-1]["at"]})
        playwright.expect(status).to_contain_text("▲ cloud answers again since")
        playwright.expect(status).to_have_class("back")
        assert "It was away from" in status.inner_text()


def test_a_bar_opens_its_requests(browser, served):
    """By a click and by keyboard; they stay as they are until the latest are wanted again."""
    router, address = served
    with opened(browser, address) as page:
        page.locator("input[name=span][value=minutes]").check()
        bars, routes = page.locator("#bars"), page.locator("#routes")
        bars.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("x")
        said = bars.get_attribute("aria-valuetext")
        count = sum(int(n) for n in re.findall(r"(\d+) [●▲■✕◆○]", said))
        assert count > 0
        page.keyboard.press("Enter")
        playwright.expect(page.locator("#h-routes")).to_contain_text(re.compile(rf"Requests from .*: {count}$"))
        assert page.evaluate("document.activeElement.id") == "routes"
        assert page.locator("#routes li").count() == min(count, 200)
        before = routes.inner_text()
        total = int(tile(page, "requests").replace(",", ""))
        router.infer(0.95, data_class="b")
        playwright.expect(page.locator("#tiles dd").first).to_have_text(f"{total + 1}")
        assert routes.inner_text() == before
        page.locator("#latest").click()
        playwright.expect(page.locator("#h-routes")).to_have_text("Latest routes")
        page.mouse.click(
            *page.evaluate("""() => { const box = [...document.querySelectorAll("#bars rect")].at(-1).getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2]; }""")
        )
        playwright.expect(page.locator("#h-routes")).to_contain_text("Requests from")
        assert page.locator("#routes li").count() >= 1
        page.locator("input[name=which][value=odd]").check()
        assert page.locator("#routes li.edge").count() == 0


def test_axes_and_the_slider_have_numbers(browser, served):
    """The time axis has a date, the others their numbers; under the slider is its scale, with the threshold in force."""
    _, address = served
    with opened(browser, address) as page:
        page.wait_for_selector("#promise:not(:empty)")
        year = page.evaluate("String(new Date().getFullYear())")
        for chart in ("#bars", "#latency"):
            texts = page.locator(f"{chart} svg text").all_text_contents()
            assert sum(year in text for text in texts) == 1
            assert len([text for text in texts if re.search(r"\d", text)]) >= 6
        marks = page.locator("#scale svg text").all_text_contents()
        numbers = [float(text) for text in marks if re.fullmatch(r"[\d.]+", text)]
        assert len(numbers) == 5
        assert numbers == sorted(numbers)
        assert {"accepts more", "defers more"} <= {*marks}
        (in_force,) = [text for text in marks if text.startswith("in force")]
        assert float(in_force.split()[-1]) == pytest.approx(
            float(re.search(r": ([\d.]+)", page.locator("#threshold-label").inner_text())[1]), rel=0.01
        )
        for curve in page.locator("#curves svg").all():
            texts = curve.locator("text").all_text_contents()
            assert len([text for text in texts if re.search(r"\d", text)]) == 6
            assert sum(text.startswith("threshold ") for text in texts) == 1  # the one that is tried


def test_print_has_every_column(browser, served):
    """On A4 the column of costs is there, buttons are not, and the whole list of requests is."""
    _, address = served
    with opened(browser, address, width=718) as page:
        page.wait_for_selector("#promise:not(:empty)")
        page.emulate_media(media="print")
        head, cost, right = (
            page.evaluate("""() => { const rows = [...document.querySelectorAll("#f-legs tr")].map(row => row.lastElementChild);
          return [rows[0].textContent, rows.at(-1).textContent, Math.max(...rows.map(cell => cell.getBoundingClientRect().right))]; }""")
        )
        assert (head, cost[0]) == ("cost", "$")
        assert right <= 718
        assert page.evaluate(
            "[...document.querySelectorAll('.wide, .routes')].every(one => one.scrollWidth <= one.clientWidth && one.scrollHeight <= one.clientHeight + 1)"
        )
        assert not page.locator("#pause").is_visible()


def test_a_first_visit(browser):
    """Without a record it says what brings one, to copy; what is empty is folded, and opens when there is something."""
    dashboard = Dashboard()
    with Router(edge, cloud, threshold=0.5, options=Options(instruments=[dashboard])) as router:
        address = dashboard.serve(router)
        with opened(browser, address, permissions=["clipboard-read", "clipboard-write"]) as page:
            playwright.expect(page.locator("#first")).to_contain_text("Nothing recorded yet")
            page.get_by_role("button", name="Copy").click()
            playwright.expect(page.get_by_role("button", name="Copied")).to_be_visible()
            assert page.evaluate("navigator.clipboard.readText()") == page.locator("#steps pre").inner_text() == "router.infer(x)"
            folded = texts(page, "section > details:not([open]) h2")
            assert {"Reasons", "Latency and breakers", "Egress ledger"} <= {text.split("\n")[0].strip() for text in folded}
            page.locator("#f-egress > summary").click()
            router.infer(0.9)
            playwright.expect(page.locator("#first")).to_be_hidden()
            playwright.expect(page.locator("#reasons tr")).to_have_count(1)
            assert page.locator("#f-reasons").get_attribute("open") is not None
            assert page.locator("#f-egress").get_attribute("open") is not None, "a person has opened it"


def test_before_a_first_request_no_setting_is_called_missing(browser, tmp_path):
    """Of a policy that has all that watches an edge model, nothing is known until the folder has a state."""
    tiny.linear(tmp_path / "m.onnx")
    lines = (
        "threshold = 0.5",
        'state = "state"',
        "[edge]",
        'path = "m.onnx"',
        "[cloud]",
        'url = "http://127.0.0.1:9/v2/models/m"',
        "[audit]",
        "[trace]",
    )
    (tmp_path / "policy.toml").write_text("\n".join(lines))
    with page_of(file_monitor(tmp_path / "policy.toml", None, None)) as address, opened(browser, address) as page:
        playwright.expect(page.locator("#first")).to_contain_text("Nothing recorded yet")
        playwright.expect(page.locator("#f-drift > summary")).to_contain_text("nothing is known yet")
        playwright.expect(page.locator("#f-drift > summary")).not_to_contain_text("watched")


def test_few_audits_have_no_figure(browser):
    """The page says how many there are of 30, and no share."""
    dashboard = Dashboard()
    options = Options(instruments=[dashboard])
    with (
        Router(edge, cloud, threshold=0.5, audit=Audit(share=1.0, scene=1), options=options) as router,
        opened(browser, dashboard.serve(router)) as page,
    ):
        for _ in range(3):
            router.infer(0.9)
        playwright.expect(page.locator("#drift dd", has_text="of 30")).to_have_text(
            re.compile(r"^[0-3] of 30: too few for a figure$")
        )


def test_an_alarm_is_told_in_full_once(browser):
    """Under Guarantees and drift; the promise, the policy, the replay and each reason say that there is one, and of when."""
    says, surely, dashboard = ["right"], itertools.cycle([0.7, 0.8, 0.9]), Dashboard()
    model, changing = CallableModel(edge, version="1"), Function(lambda _: (says[0], 1.0), name="cloud", version="1")
    with Router(model, changing, threshold=0.5) as router:
        certificate = router.calibrate([0.1 + i / 1112 for i in range(1000)], ["right"] * 1000, max_loss=0.05).certificate
    says[0] = "other"
    options = Options(instruments=[dashboard])
    with Router(model, changing, threshold=certificate, audit=Audit(share=1.0, scene=1), options=options) as router:
        address = dashboard.serve(router)
        until(lambda: router.infer(next(surely)) and router.stats().audits[0].alarm)
        for _ in range(20):
            router.infer(next(surely))
        named, _, more = router.stats().audits[0].alarm.partition(": ")
        with opened(browser, address, width=390) as page:
            page.wait_for_selector("#promise:not(:empty)")
            playwright.expect(page.locator("#drift dd.bad")).to_contain_text(more)
            for where in ("#routes li >> nth=0", "#promise", "#policy", "#drift"):
                playwright.expect(page.locator(where)).to_contain_text(named)
            assert page.locator("main").inner_text().count(more) == 1


def test_the_threshold_by_keyboard(browser, served):
    """Each step replays: more deferrals and cost to the right; the guarantee only from the certified threshold on."""
    _, address = served
    with opened(browser, address) as page:
        page.wait_for_selector("#promise:not(:empty)")
        slider = page.locator("#threshold")
        assert "(in force)" in page.locator("#threshold-label").inner_text()
        assert "not guaranteed" not in page.locator("#promise").inner_text()
        slider.focus()

        def shown(key, times=1):
            for _ in range(times):
                was = slider.get_attribute("aria-valuetext")
                page.keyboard.press(key)
                playwright.expect(slider).not_to_have_attribute("aria-valuetext", was)
                playwright.expect(slider).to_have_attribute("aria-valuetext", re.compile("deferred"))
            share, usd = re.search(r": ([\d.]+)\s%.*\$([\d.]+)", slider.get_attribute("aria-valuetext")).groups()
            playwright.expect(page.locator("#compared tr").first.locator("td").last).to_have_text(f"{share}\N{NO-BREAK SPACE}%")
            return float(share), float(usd)

        first = shown("ArrowRight")
        more = shown("ArrowRight", 5)
        assert more > first
        assert more[1] > first[1]
        assert page.locator("#promise").inner_text().startswith("✓")
        assert shown("Home")[0] < first[0]
        assert page.locator("#promise").inner_text().startswith("✗ not guaranteed")
        assert shown("End")[0] >= 89  # a tenth may not leave
        assert page.locator("#curves figure").count() >= 3
        assert "100" in page.locator("#curves figure").first.inner_text()
        page.locator("#in-force").click()
        assert "(in force)" in page.locator("#threshold-label").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(browser, served, scheme):
    """At 360 px nothing but tables is wider than the screen, text can be read, and what is pressed is large enough for a finger."""
    _, address = served
    with opened(browser, address, width=360, scheme=scheme, reduced_motion="reduce") as page:
        page.wait_for_selector("#promise:not(:empty)")
        found = page.evaluate("""() => {
          const root = document.documentElement, light = color => color.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
            .map(x => x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4).reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
          const contrast = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05), card = document.querySelector("section");
          const back = light(getComputedStyle(card).backgroundColor);
          const texts = [...document.querySelectorAll("section *")].filter(one => [...one.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
          return {scroll: root.scrollWidth, inner: innerWidth, back: getComputedStyle(document.body).backgroundColor,
            contrast: Math.min(...texts.filter(one => !one.closest("svg, button, select, option")).map(one => contrast(light(getComputedStyle(one).color), back))),
            text: Math.min(...[...document.querySelectorAll("svg text")].map(one => parseFloat(getComputedStyle(one).fontSize)
              * one.ownerSVGElement.getBoundingClientRect().width / one.ownerSVGElement.viewBox.baseVal.width)),
            small: [...document.querySelectorAll("button, select, input[type=range], fieldset label")].filter(one => one.getClientRects().length)
              .map(one => one.getBoundingClientRect().height).filter(h => h < 36).length};
        }""")
        assert (found["inner"], found["scroll"]) == (360, 360)
        assert found["contrast"] >= 4.5
        assert found["text"] >= 10
        assert found["small"] == 0
        assert found["back"] == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 23, 26)")


def test_what_others_say_is_text(browser, served):
    """Names, classes and messages that are markup are shown as they are, and nothing of them runs."""
    _, address = served
    with opened(browser, address) as page:
        page.wait_for_selector("#promise:not(:empty)")
        page.locator("input[name=which][value=odd]").check()
        page.get_by_text("Latest lines").click()
        text = page.locator("main").inner_text()
        assert text.count("<script>globalThis.evil") > 3
        assert "<script>" in page.locator("#ledger").inner_text()
        assert page.evaluate("globalThis.evil") is None
        assert page.locator("main script, main img").count() == 0
        assert page.evaluate("""() => new Promise(done => { addEventListener("securitypolicyviolation", () => done(globalThis.evil === undefined));
          const made = document.createElement("script"); made.textContent = "globalThis.evil = 2"; document.body.append(made); })""")
        (said,) = page.wrong
        assert "Content Security Policy" in said
        page.wrong.clear()


def test_everything_has_a_name(browser, served):
    """What can be reached by Tab has an accessible name and a visible focus; sections are landmarks with headings."""
    _, address = served
    with opened(browser, address) as page:
        page.wait_for_selector("#promise:not(:empty)")
        names, outlines = [], []
        for _ in range(40):
            page.keyboard.press("Tab")
            name, outline = page.evaluate("""() => { const at = document.activeElement, style = getComputedStyle(at);
              return [at === document.body ? null : at.getAttribute("aria-label") || at.labels?.[0]?.textContent || at.textContent,
                at.matches(":focus-visible") ? parseFloat(style.outlineWidth) : 0]; }""")
            if name is None:
                break
            names.append(name.strip())
            outlines.append(outline)
        assert all(names)
        assert min(outlines) >= 2
        assert any(name.startswith("Threshold of") for name in names)
        assert {"Skip to the figures", "Pause", "As in force", "Latest lines"} <= set(names)
        assert page.locator("section").count() == page.locator("section[aria-labelledby] h2").count()
        assert page.locator("svg[role=img]:not([aria-label])").count() == 0
        assert page.locator("[role=slider]:not([aria-valuenow][aria-valuetext][aria-label])").count() == 0


def test_the_token(browser, served):
    """Leaves the address at once, and stays for the tab; without it, or with another, the page asks for it, and shows nothing."""
    _, address = served
    base, _, token = address.partition("#token=")
    with opened(browser, address) as page:
        page.wait_for_selector("#all:not([hidden])")
        assert page.url == base
        page.reload()
        page.wait_for_selector("#all:not([hidden])")
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(MS)
    page.goto(base)
    page.wait_for_selector("#ask:not([hidden])")
    assert not page.locator("#all").is_visible()
    assert "needs the token" in page.locator("#alert").inner_text()
    page.locator("#token").fill("another")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#alert")).to_contain_text("wrong")
    page.locator("#token").fill(token)
    page.keyboard.press("Enter")
    page.wait_for_selector("#all:not([hidden])")
    context.close()


def test_a_person_says_which_answer_is_right(browser):
    """On the page of `calibrate --ask --page`: text that looks like markup is text, pictures and sounds are there, and keys answer."""
    from edgeroute.tools.cli.label_questions_and_answers import Asked, parts_of
    from edgeroute.tools.cli.label_questions_web_server import LabelPage

    inputs = [
        "<img src=x onerror=alert(1)><script>document.title = 'evil'</script>",
        np.arange(784, dtype=np.uint8).reshape(28, 28),
        np.zeros(16000, np.int16),
        {"a": "two", "b": np.zeros((9, 9))},
    ]
    with LabelPage() as served, ThreadPoolExecutor() as threads:
        for i, (x, key, reply) in enumerate(zip(inputs, ["1", "2", "n", "?"], ["1", "2", "neither", "unknown"], strict=True)):
            asked = Asked(f"input {i}", tuple(parts_of(x)), (f"<b>{i}</b>", "dog"), i, 2)
            waiting = threads.submit(served.ask, asked)
            if i == 0:
                context = browser.new_context()
                stranger = context.new_page()
                stranger.goto(served.url.partition("#")[0])
                playwright.expect(stranger.get_by_role("status")).to_contain_text("needs the token")
                assert "script>document" not in stranger.content()
                context.close()
            with opened(browser, served.url, width=360 if i % 2 else 1280) as page:
                playwright.expect(page.get_by_role("status")).to_contain_text(f"Question {i + 1} of at least {i + 2}: input {i}")
                playwright.expect(page.get_by_role("button").first).to_contain_text(f"<b>{i}</b>")
                if i == 0:
                    playwright.expect(page.locator("pre")).to_have_text(inputs[0])
                    assert page.title() == "edgeroute: which is right?"
                else:
                    tag = ["", "img", "audio", "img"][i]
                    playwright.expect(page.locator(tag)).to_be_visible()
                    loaded = "e => e.tagName === 'AUDIO' ? e.duration > 0.9 : e.complete && e.naturalWidth > 8"
                    page.wait_for_function(f"() => ({loaded})(document.querySelector('{tag}'))")
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
                page.keyboard.press(key)
                assert waiting.result(LONG) == reply
