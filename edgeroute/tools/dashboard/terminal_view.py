"""Terminal view of a router with Textual, `Top`: requests, targets, reasons, routes, guarantees and budgets.

The functions below `Top` write parts of a view as lines of text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from edgeroute.errors import RuntimeMissing
from edgeroute.tools.cli.status_and_trial_arms import edge_lines, outbox_words
from edgeroute.tools.cli.tables_and_options import local_time
from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import duration as seconds
from edgeroute.tools.state_colours_and_marks import STATES

try:
    from rich.text import Text
    from textual.app import App, ComposeResult
    from textual.binding import Binding, BindingType
    from textual.containers import Horizontal, Vertical, VerticalScroll
    from textual.widgets import DataTable, Footer, Header, Sparkline, Static, TabbedContent, TabPane
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[top]'") from e

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeroute.tools.dashboard.dashboard_data_and_tail import Monitor

EVERY_S = 1.0  # time between two updates, seconds
WIDE = 90  # terminal columns from which the tables are side by side
NONE = "-"
COLUMNS = {
    "legs": ("target", "breaker", "answers", "p50", "p99", "failed", "not asked"), "reasons": ("requests", "reason"),
    "routes": ("when", "answer", "by", "took", "class", "reason"), "egress": ("to", "class", "attempts", "bytes"),
}  # fmt: skip


class Top(App[None]):
    """Textual application.

    Args:
        monitor: monitor to show; started and closed here.
    """

    TITLE = "edgeroute top"
    ENABLE_COMMAND_PALETTE = False
    CSS_PATH = "terminal_view.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "End"),
        Binding("p", "pause", "Pause"),
        Binding("f", "failures", "Failures only"),
    ]

    def __init__(self, monitor: Monitor) -> None:
        super().__init__()
        self.monitor, self.paused, self.only_odd = monitor, False, False
        self.sub_title = monitor.title

    def compose(self) -> ComposeResult:
        """Yield the widgets, still empty: header, figures, rate, four tabs (routes, guarantees, egress, device), footer."""
        yield Header(show_clock=True)
        yield Static(id="tiles", markup=False)
        yield Sparkline([], id="rate")
        with TabbedContent():
            with TabPane("Routes", id="tab-routes"):
                with Horizontal(id="sides"):
                    with Vertical():
                        yield Static("targets", classes="head")
                        yield DataTable(id="legs", cursor_type="none", zebra_stripes=True)
                    with Vertical():
                        yield Static("reasons", classes="head")
                        yield DataTable(id="reasons", cursor_type="none", zebra_stripes=True)
                yield DataTable(id="routes", cursor_type="row", zebra_stripes=True)
            with TabPane("Guarantees and budgets", id="tab-state"), VerticalScroll():
                yield Static(id="state", classes="said", markup=False)
            with TabPane("Egress", id="tab-egress"):
                yield DataTable(id="egress", cursor_type="row", zebra_stripes=True)
            with TabPane("Device and rules", id="tab-device"), VerticalScroll():
                yield Static(id="device", classes="said", markup=False)
        yield Footer()

    def on_ready(self) -> None:
        """Add the columns, start the monitor, show its first view, and update it each second, once all widgets exist."""
        for name, columns in COLUMNS.items():
            self.query_one(f"#{name}", DataTable).add_columns(*columns)
        self.monitor.start()
        self.show()
        self.set_interval(EVERY_S, self.show)

    def on_unmount(self) -> None:
        """Close the monitor."""
        self.monitor.close()

    def on_resize(self) -> None:
        """Use one column on a narrow terminal."""
        self.set_class(self.size.width < WIDE, "narrow")

    def action_pause(self) -> None:
        """Pause the updates and say so in the title, or continue."""
        self.paused = not self.paused
        self.sub_title = f"{self.monitor.title} (paused)" if self.paused else self.monitor.title
        self.show()

    def action_failures(self) -> None:
        """Show only failures and degraded answers, or all routes."""
        self.only_odd = not self.only_odd
        self.show(always=True)

    def show(self, *, always: bool = False) -> None:
        """Update all widgets from the monitor's view; nothing while paused, unless `always`, or without widgets."""
        if (self.paused and not always) or not self.query("#device"):  # the widgets do not exist yet, or no longer
            return
        view = self.monitor.view()
        second = view["series"]["seconds"]
        sums = second["requests"]
        self.query_one("#tiles", Static).update(tiles(view, sum(sums[-6:-1]) / 5))
        self.query_one("#rate", Sparkline).data = [float(n) for n in sums]
        self._fill("legs", [
            (marked(leg["side"], leg["name"]), leg["breaker"] or NONE, f"{leg['answers']:,}", seconds(leg["p50_s"]),
             seconds(leg["p99_s"]), f"{leg['failed']:,}", f"{leg['held']:,}") for leg in view["legs"]
        ])  # fmt: skip
        self._fill("reasons", [(f"{entry['count']:,}", marked(entry["state"], entry["text"])) for entry in view["reasons"][:6]])
        self._fill("routes", [
            (local_time(row["at"], "%H:%M:%S"), marked(row["state"]), row["by"] or NONE, seconds(row["latency_s"]),
             row["data_class"] or NONE, row["reason"])
            for row in view["odd" if self.only_odd else "recent"]
        ])  # fmt: skip
        self._fill("egress", [
            (entry["to"], entry["data_class"] or NONE, f"{entry['attempts']:,}", f"{entry['bytes']:,}")
            for entry in view["egress"]["totals"]
        ])  # fmt: skip
        self.query_one("#state", Static).update("\n".join([view["error"], *lines_of_state(view["state"])]).lstrip("\n"))
        self.query_one("#device", Static).update("\n".join(lines_of_device(view)))

    def _fill(self, name: str, rows: Sequence[tuple[str | Text, ...]]) -> None:
        """Replace the rows of a table and keep its position; cells of a `str` are plain text, whatever they contain."""
        table: DataTable[Text] = self.query_one(f"#{name}", DataTable)
        cursor, top = table.cursor_row, table.scroll_y
        table.clear()
        for row in rows:
            table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
        if rows:
            table.move_cursor(row=min(cursor, len(rows) - 1), scroll=False)
            table.scroll_to(y=top, animate=False)


def marked(name: str | None, text: str = "") -> Text:
    """Return a state's mark, in its colour, and its word or another text; of no state, as of no answer, without a mark."""
    state = STATES.get(name or "")
    return Text.assemble((state.mark, state.dark), f" {text or name}") if state else Text(text or "no answer")


def tiles(view: dict[str, Any], rate: float) -> Text:
    """Return the most important figures in a line: targets away, requests and their rate, deferrals, latencies, degraded ones.

    Requests that wait or were left out come last, if there are any.
    """
    raised, later, waiting = view["raised"], view["later"], (view["state"].get("outbox") or {}).get("waiting", view["later"])
    parts = [marked("degraded", f"{one['name']} away") for one in view["away"]]
    parts += [
        Text(f"{view['requests']:,} requests, {rate:,.1f}/s"),
        Text(f"deferred {percent(view['deferral_rate'])}"),
        Text(f"median {seconds(view['p50_s'])}, p99 {seconds(view['p99_s'])}"),
        marked("degraded", f"degraded {view['degraded']:,}" + ("" if raised is None else f", raised {raised:,}")),
    ]
    if waiting or later:
        parts.append(marked("waiting", f"waiting {waiting:,}" + (f", {later:,} since the start" if later > waiting else "")))
    if view["lost"]:
        parts.append(Text(f"left out {view['lost']:,}"))
    return Text("   ").join(parts)


def lines_of_state(state: dict[str, Any]) -> list[str]:
    """Return the lines about guarantees, budgets and the outbox, with notes and an error first if there are any."""
    lines = [*state.get("notes", ()), *([state["error"]] if "error" in state else [])]
    for edge in state.get("edges", ()):
        lines += ["", *edge_lines(edge)]
    lines.append("")
    for name, amounts in state.get("spent", {}).items():
        lines.append(
            f"{name}: {amounts['spent']:.4g} of {'no limit' if amounts['limit'] is None else format(amounts['limit'], 'g')}"
        )
    lines += ["", f"outbox: {outbox_words(state.get('outbox'))}"]
    return lines


def lines_of_device(view: dict[str, Any]) -> list[str]:
    """Return the lines about sensors and rules, each rule with its state."""
    reading = view["device"]["reading"]
    lines = [f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}" for name, value in reading.items()]
    lines.append(f"read by {view['device']['by']}")
    lines += ["", "rules:", *(f"  {rule['text']} ({'' if rule['in_force'] else 'not '}in force)" for rule in view["rules"])]
    return lines if view["rules"] else [*lines, "  none in force"]


def percent(share: float | None) -> str:
    """Format a share: 0.123 -> 12.3 %; None as "-"."""
    return NONE if share is None else f"{share * 100:.1f} %"
