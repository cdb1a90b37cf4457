"""`edgeroute top` on a terminal that Textual simulates: what it shows of real records, its keys, and markup that stays text."""

from __future__ import annotations

import asyncio
import threading
from time import monotonic

import pytest
from lazily import needs
from watched import EVIL, LONG, Records

from edgeroute import Audit, Cache, Egress, Function, Limits, PlainJson, Router, Unreachable
from edgeroute.tools.dashboard.dashboard_data_and_tail import Monitor
from edgeroute.tools.dashboard.in_process import sources_of
from edgeroute.tools.dashboard.request_window_and_replays import row_of
from edgeroute.tools.state_colours_and_marks import STATES, answer_state

needs("textual")

MARKUP = "[bold red]x[/] [/not-open] [link=http://evil.example]"


def cloud(x):
    """Fails for less than 0.1."""
    if x < 0.1:
        raise Unreachable(f"{MARKUP} is down")
    return ("cloud", 1.0)


@pytest.fixture
def feed():
    return Records()


@pytest.fixture
def monitor(tmp_path, feed):
    """Of a real router: ten requests, one of them degraded."""
    records = feed.fresh
    with Router(
        lambda x: ("edge", x), Function(cloud, name=MARKUP), threshold=0.5, trace=records.append, state=tmp_path,
        limits=Limits(usd_per_day=2), audit=Audit(share=0), egress=Egress(may_leave=[EVIL, MARKUP]),
    ) as router:  # fmt: skip
        for x in [0.9] * 6 + [0.2] * 3 + [0.05]:
            router.infer(x, data_class=MARKUP)
        yield Monitor(feed, sources_of(router), "a test")


async def shown(pilot, requests):
    """Once it shows so many requests."""
    until = monotonic() + LONG
    while f"{requests} requests" not in str(pilot.app.query_one("#tiles").content):
        assert monotonic() < until
        await pilot.pause()


def cells(app, name):
    """The rows of a table as text."""
    table = app.query_one(f"#{name}")
    return [[str(cell) for cell in table.get_row_at(i)] for i in range(table.row_count)]


def test_what_it_shows(monitor):
    """Requests, targets, reasons, routes, budgets and what was sent; markup of others is text."""
    from edgeroute.tools.dashboard.terminal_view import Top

    async def run():
        app = Top(monitor)
        async with app.run_test(size=(120, 40)) as pilot:
            await shown(pilot, 10)
            assert [row[0] for row in cells(app, "legs")] == ["● edge", "▲ cloud"]
            assert cells(app, "reasons")[0] == ["6", "● edge answers"]
            assert len(cells(app, "routes")) == 10
            assert f"{MARKUP} is down" in cells(app, "routes")[0][5]
            said = str(app.query_one("#state").content)
            assert "usd_per_day: 0 of 2" in said
            assert "edge: threshold 0.5" in said
            assert cells(app, "egress")[0][1:3] == [MARKUP, "4"]
            assert app.export_screenshot()

    asyncio.run(run())


def test_each_state(tmp_path, feed):
    """Of real answers, as the palette has it: its mark in its colour, and its word; and what waits is counted above."""
    from edgeroute.tools.dashboard.terminal_view import Top

    def away(x):
        raise Unreachable("it is away")

    common = {"trace": feed.fresh.append, "audit": Audit(share=0), "threshold": 0.5}
    with Router(lambda x: ("edge", x), lambda x: "cloud", cache=Cache(), egress=Egress(may_leave={"shoe"}), **common) as router:
        for x, data_class in ((0.9, "shoe"), (0.2, "shoe"), (0.2, "shoe"), (0.3, "face")):
            router.infer(x, data_class=data_class)
    with Router(lambda x: ("edge", x), Function(away), **common) as router:
        router.infer(0.2)
    far = PlainJson("http://127.0.0.1:9/x", retries=0)
    with Router(lambda x: ("edge", x), far, offline="queue", state=tmp_path, **common) as router:
        assert not router.infer(0.2).final

        async def run():
            app = Top(Monitor(feed, sources_of(router)))
            async with app.run_test(size=(120, 40)) as pilot:
                await shown(pilot, 6)
                wanted = ["edge", "cloud", "cache", "private", "degraded", "waiting"]
                assert [row[1] for row in cells(app, "routes")][::-1] == [f"{STATES[name].mark} {name}" for name in wanted]
                assert {str(app.query_one("#routes").get_row_at(i)[1].spans[0].style) for i in range(6)} == {
                    state.dark for state in STATES.values()
                }
                assert "✕ degraded 1" in (said := str(app.query_one("#tiles").content))
                assert "○ waiting 1" in said
                reasons = [row[1] for row in cells(app, "reasons")]
                assert "✕ edge is not sure; cloud fails; degraded" in reasons
                assert "○ edge is not sure; cloud fails; waiting" in reasons

        asyncio.run(run())


def test_an_outage_is_first(feed):
    """Before all figures."""
    from edgeroute.tools.dashboard.terminal_view import Top

    def away(x):
        raise Unreachable("it is away")

    with Router(lambda x: ("edge", x), Function(away), threshold=0.5, trace=feed.fresh.append, audit=Audit(share=0)) as router:
        for _ in range(3):
            router.infer(0.2)

        async def run():
            app = Top(Monitor(feed, sources_of(router)))
            async with app.run_test(size=(120, 40)) as pilot:
                await shown(pilot, 3)
                assert str(app.query_one("#tiles").content).startswith("✕ cloud away   3 requests")

        asyncio.run(run())


def test_states_of_rows(feed):
    """Are those of their answers; of a stale one of the cache too."""
    reach = {"away": False}

    def far(x):
        if reach["away"]:
            raise Unreachable("it is away")
        return "cloud"

    common = {"trace": feed.fresh.append, "audit": Audit(share=0), "threshold": 0.5}
    kept = Cache(ttl_s=0, stale_if_offline_s=1000)
    with Router(lambda x: ("edge", x), Function(far), cache=kept, offline="stale", **common) as router:
        answers = [router.infer(x) for x in (0.2, 0.9)]
        reach["away"] = True
        answers += [router.infer(x) for x in (0.2, 0.3)]
    assert [answer.source for answer in answers] == ["cloud", "edge", "stale", "edge"]
    states = [answer_state(answer.source, answer.reason_code, degraded=answer.degraded, final=answer.final) for answer in answers]
    assert states == ["cloud", "edge", "cache", "degraded"]
    assert [row_of(record).state for record in feed.fresh] == states
    assert row_of({**feed.fresh[-1], "events": []}).shown()["state"] == "degraded", "a record may lack what a reason needs"


def test_its_keys(monitor, feed):
    """f: failures alone; p: what comes is not shown until it goes on; tabs by keyboard; q ends it, and what it follows."""
    from edgeroute.tools.dashboard.terminal_view import Top

    last = dict(feed.fresh[-1])

    async def run():
        app = Top(monitor)
        async with app.run_test(size=(70, 30)) as pilot:
            await shown(pilot, 10)
            assert app.has_class("narrow")
            await pilot.press("f")
            assert [row[1:3] for row in cells(app, "routes")] == [["✕ degraded", "edge"]]
            await pilot.press("f", "p")
            feed.fresh.append(last)
            monitor.read()
            app.show()
            assert len(cells(app, "routes")) == 10
            await pilot.press("p")
            assert len(cells(app, "routes")) == 11
            await pilot.press("q")
        return app.return_code

    assert asyncio.run(run()) == 0
    assert not [each for each in threading.enumerate() if each.name == "edgeroute-dashboard"]


def test_nothing_yet(tmp_path):
    """Before the first request it shows that there is none."""
    from edgeroute.tools.dashboard.terminal_view import Top

    async def run():
        app = Top(Monitor(Records()))
        async with app.run_test(size=(80, 24)) as pilot:
            await shown(pilot, 0)
            assert cells(app, "routes") == []

    asyncio.run(run())
