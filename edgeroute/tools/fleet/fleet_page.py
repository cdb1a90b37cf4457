"""Page of a fleet's report, and its figures as inline SVG, drawn with matplotlib."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np

from edgeroute.errors import RuntimeMissing
from edgeroute.fleet.digest_encoding_and_coarsening import LATENCIES_S
from edgeroute.tools.fleet.fleet_sums_and_forecast import (
    LEAST_COUNT,
    LEAST_DAYS,
    MISSING_DAYS,
    FleetReport,
    Forecast,
    Outlier,
    Sums,
)
from edgeroute.tools.fleet.fleet_sums_and_forecast import quantile as bucket_of
from edgeroute.tools.measure.report import html_blocks as html
from edgeroute.tools.measure.report import numbers_verdicts_and_table_rows as words
from edgeroute.tools.measure.report.figures import CLOUD, DEGRADED, INK, SIZE, element, frame
from edgeroute.tools.measure.report.page_sections import undrawn
from edgeroute.tools.measure.report.report_pages_and_results import Page, document
from edgeroute.tools.state_colours_and_marks import marked

FIRST = date(1970, 1, 1).toordinal()
ROWS = 20  # most rows of a table
MEASURES = {"deferred": "deferred", "degraded": "degraded", "failed": "failed", "differ": "audits that differ from the cloud"}
HEAD = (
    "devices", "requests", "deferred", marked("degraded"), "failed", "audits differ", "median latency", "99 % latency", "USD",
)  # fmt: skip
TITLES = {"model": "By model", "policy": "By policy", "site": "By site", "week": "By week"}
UNNAMED = {"model": "(no model)", "policy": "(no policy)", "site": "(no site)", "week": ""}


def latency(sums: Sums, q: float) -> str:
    """Return a quantile's bucket in words: counts by bucket give no more."""
    ends = bucket_of(sums.latencies, q)
    if ends is None:
        return "-"
    return f"> {ends[0]:g} s" if ends[1] is None else step(ends[1])


def step(end_s: float) -> str:
    """Return the upper end of a bucket in words."""
    return f"≤ {end_s:g} s" if end_s >= 1 else f"≤ {end_s * 1000:g} ms"


def money(usd: float) -> str:
    """Return US dollars: two decimals, and more below a cent."""
    return f"{usd:,.2f}" if usd >= 0.01 or not usd else f"{usd:.2g}"  # noqa: PLR2004 - a cent


def cells(sums: Sums) -> list[str]:
    """Return the cells of a row, as `HEAD` names them."""
    shares = [sums.share(measure) for measure in MEASURES]
    return [
        f"{sums.devices:,}", f"{sums.requests:,}", *("-" if share is None else words.percent(share) for share in shares),
        latency(sums, 0.5), latency(sums, 0.99), money(sums.usd),
    ]  # fmt: skip


def rows(report: FleetReport, by: str) -> list[list[str]]:
    """Return the rows of a table by model, policy, site or week: of weeks the newest, of others those with the most requests."""
    parts = report.parts[by][-ROWS:] if by == "week" else report.parts[by][:ROWS]
    return [[f"week of {p.name}" if by == "week" else p.name.removesuffix(":") or UNNAMED[by], *cells(p)] for p in parts]


def outlier_cells(device: Outlier) -> list[str]:
    """Return the cells of a device that is unlike the others."""
    return [
        device.device, device.site, MEASURES[device.measure], words.percent(device.share), words.percent(device.low),
        words.percent(device.usual), f"{device.of:,} in {device.days} days",
    ]  # fmt: skip


OUTLIER_HEAD = ("device", "site", "share", "is", "at least", "usual up to", "evidence")


def money_in_words(forecast: Forecast) -> tuple[str, str]:
    """Return a headline about the month's money, and the explanation; both empty if there is neither a cost nor a budget."""
    if forecast.budget is None and not forecast.spent and not forecast.expected:
        return "", ""
    spent = f"{money(forecast.spent)} USD spent in {forecast.month} until {forecast.until}"
    if forecast.expected is None or forecast.low is None or forecast.high is None:
        expected = "the end of the month is not forecast from less than a week of complete days"
    else:
        low, high = money(forecast.low), money(forecast.high)
        expected = (
            f"expected at the end of the month: {money(forecast.expected)} (95 % interval {low} to {high}, if the days to come "
            "are like the last four weeks)"
        )
    of = "" if forecast.budget is None else f" Budget: {money(forecast.budget)} USD a month."
    headline = {
        "within": "The fleet stays within its budget.", "over": "The fleet will exceed its budget.",
        "open": "The budget may not suffice.", "spent": "The budget is spent.", "unknown": "No budget is compared.",
    }[forecast.verdict]  # fmt: skip
    if forecast.budget is not None and forecast.verdict == "unknown":
        headline = "Too little is known to compare the budget."
    return headline, f"{spent}; {expected}.{of}"


def gaps_in_data(report: FleetReport) -> list[str]:
    """Return a sentence for each kind of data that the figures lack: the last days, late or missing devices, refused files."""
    lines = []
    if report.age >= MISSING_DAYS:
        lines.append(
            f"The newest digest is of {report.last}, {report.age} days ago: what is later was not collected, or not sent."
        )
    if report.incomplete:
        lines.append(f"Not all devices have sent {', '.join(report.incomplete)} yet: sums of these days will grow.")
    if report.missing_count:
        lines.append(_silent(report))
    lines += [f"{file} {why}: its rows are in no sum." for file, why in report.refused]
    return lines


def _silent(report: FleetReport) -> str:
    """Return the sentence of the devices that are silent."""
    devices = words.count_text(report.missing_count, "device")
    return f"{devices} sent no digest for {MISSING_DAYS} days or more, or took a new id."


def page(report: FleetReport) -> str:
    """Return the report as one self-contained HTML file; without matplotlib it says that its figures are not drawn."""
    total, forecast = report.total, report.forecast
    short, long = money_in_words(forecast)
    kind = {"within": "held", "over": "broken", "spent": "broken"}.get(forecast.verdict, "open")
    headline = f'<p class="verdict {kind}"><strong>{html.escape(short)}</strong> {html.escape(long)}</p>'
    tiles = html.tiles([
        ("requests", f"{total.requests:,}", f"{words.size(total.bytes)} sent and received" if total.bytes else "0 B sent"),
        ("deferred to the cloud", words.percent(total.share("deferred")), f"{total.deferred:,}"),
        ("degraded", words.percent(total.share("degraded")), f"{words.percent(total.share('failed'))} failed"),
        ("audits that differ", words.percent(total.share("differ")), f"{total.differ:,} of {total.audited:,}"),
        ("median latency", latency(total, 0.5), f"99 % of answers: {latency(total, 0.99)}"),
        ("cost", f"{money(total.usd)} USD", f"{money(total.usd / max(1, total.requests) * 1000)} a thousand requests"),
    ])  # fmt: skip
    tables = [html.section(TITLES[by], html.table(("", *HEAD), rows(report, by), TITLES[by]), _rest(report, by)) for by in TITLES]
    body = [
        headline if forecast.budget is not None else html.paragraph(long) if long else "",
        *map(html.paragraph, gaps_in_data(report)),
        tiles,
    ]
    try:
        body += [
            html.side_by_side(_figure(_shares(report), "Deferred and degraded", SHARES), _figure(_money(report), "Money", MONEY)),
            html.side_by_side(_figure(_latency(total), "Latency", LATENCY), _figure(_spread(report), "Devices", DEVICES)),
        ]
    except RuntimeMissing:
        body.append(undrawn())
    body += [*tables, _worst(report), _costly(report), _missing(report), _versions(report)]
    title = f"edgeroute fleet: {report.first} to {report.last}"
    summary = f"{words.count_text(total.devices, 'device')}; days and weeks in UTC"
    return document(Page(title, summary, "\n".join(filter(None, body))))


SHARES = "Each day's share of requests deferred to the cloud; below, of those degraded: answered without a cloud that was needed."
MONEY = "Spent since the month's first day, with the expected end of the month, its 95 % interval and the budget."
LATENCY = "Answered requests by latency. Devices count by these steps, so a quantile is known as a step only."
DEVICES = (
    f"Devices with {LEAST_COUNT} requests or more, by the share that they defer. Some far from the others have another input, "
    "model or network."
)


def _rest(report: FleetReport, by: str) -> str:
    """Return a paragraph about the rows that a table lacks; empty if there are none."""
    more = len(report.parts[by]) - ROWS
    which = "older weeks" if by == "week" else "others, with fewer requests,"
    return html.paragraph(f"{more:,} {which} are in --json.") if more > 0 else ""


def _figure(svg: str | None, title: str, caption: str) -> str:
    """Return a section with a figure; empty without one."""
    return "" if svg is None else html.section(title, html.figure(svg, title, caption))


def _worst(report: FleetReport) -> str:
    """Return the section of devices that are unlike the others, with how they are compared; also if there are none."""
    title = "Devices unlike the others"
    counts = [f"{MEASURES[name]}: {words.count_text(n, 'device')}" for name, n in report.worse.items() if n]
    text = (
        f"Of {report.compared:,} devices with {LEAST_COUNT} requests or more, those with {LEAST_DAYS} days or more are compared. "
        "A device is listed if its whole 99 % interval, by requests and by days, is above what is usual: the fleet's share, and "
        "the devices' median plus three robust standard deviations. Of many devices, some are listed by chance: fleet alarm "
        "has a false discovery rate."
    )
    if not report.worst:
        return html.section(title, html.paragraph("None."), html.paragraph(text))
    shown = html.table(OUTLIER_HEAD, map(outlier_cells, report.worst), title)
    return html.section(title, html.paragraph(f"Above what is usual: {'; '.join(counts)}."), shown, html.paragraph(text))


COSTLY_HEAD = ("device", "site", "USD", "of the fleet's", "requests")


def costly_rows(report: FleetReport) -> list[list[str]]:
    """Return the rows of the devices that cost most."""
    return [
        [device, site, money(usd), words.percent(usd / report.total.usd), f"{requests:,}"]
        for device, site, usd, requests in report.costly
    ]  # fmt: skip


def _costly(report: FleetReport) -> str:
    """Return the section of the devices that cost most; empty if nothing costs anything."""
    title = "Devices that cost most"
    return html.section(title, html.table(COSTLY_HEAD, costly_rows(report), title)) if report.costly else ""


def _missing(report: FleetReport) -> str:
    """Return the section of silent devices; empty without any."""
    if not report.missing:
        return ""
    more = f" These are the latest {len(report.missing)}." if report.missing_count > len(report.missing) else ""
    text = f"{_silent(report)}{more}"
    shown = ([device, site, str(day)] for device, site, day in report.missing)
    return html.section(
        "Silent devices", html.paragraph(text), html.table(("device", "site", "newest digest"), shown, "Silent devices")
    )


def _versions(report: FleetReport) -> str:
    """Return the section of edgeroute's versions."""
    shown = [[version or "(none)", f"{n:,}"] for version, n in report.versions[:ROWS]]
    return html.section("Versions", html.table(("edgeroute", "devices"), shown, "Versions of edgeroute"))


def _dates(axes: Any) -> None:
    """Label a time axis with few days, such as Nov 8."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))  # of days since 1970, as matplotlib has dates
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{(at := date.fromordinal(FIRST + round(x))):%b} {at.day}"))


def _shares(report: FleetReport) -> str | None:
    """Draw deferred and degraded requests over the days, and return the SVG; None without requests. Raises RuntimeMissing."""
    days = [day for day in report.days if day.requests]
    if not days:
        return None
    figure, (upper, lower) = frame(rows=2)
    x = [date.fromisoformat(day.name) for day in days]
    for axes, name, color, dashes in ((upper, "deferred", CLOUD, "-"), (lower, "degraded", DEGRADED, "--")):
        y = [100 * getattr(day, name) / day.requests for day in days]
        axes.plot(x, y, dashes, color=color, linewidth=2, marker=".")
        axes.set_ylabel(f"{name}, %")
        axes.set_ylim(0, 1.15 * max(y) or 1)
    _dates(lower)
    return element(figure, "shares")


def _money(report: FleetReport) -> str | None:
    """Draw the month's spending so far, its expected end and the budget, and return the SVG; None if there are neither."""
    forecast = report.forecast
    if not forecast.spent and not forecast.budget:
        return None
    figure, axes = frame(SIZE)
    days = [(date.fromisoformat(day.name), day.usd) for day in report.days if day.name.startswith(forecast.month)]
    days = days or [(forecast.until, 0.0)]
    x, y = [day for day, _ in days], np.cumsum([usd for _, usd in days])
    y += forecast.spent - y[-1]  # on days of the month that the report leaves out
    axes.plot(x, y, "-", color=INK, linewidth=2, marker=".", label="spent")
    if forecast.expected is not None and forecast.low is not None and forecast.high is not None:
        from calendar import monthrange

        end = forecast.until.replace(day=monthrange(forecast.until.year, forecast.until.month)[1])
        axes.plot([x[-1], end], [y[-1], forecast.expected], ":", color=INK, linewidth=2, label="expected")
        bars = [[forecast.expected - forecast.low], [forecast.high - forecast.expected]]
        axes.errorbar([end], [forecast.expected], yerr=bars, color=INK, capsize=4, label="95 % interval")
    if forecast.budget is not None:
        axes.axhline(forecast.budget, color=INK, linewidth=1.5, linestyle="-.", label="budget")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("USD")
    _dates(axes)
    figure.legend(loc="outside upper left", frameon=False, labelcolor=INK, ncols=2, borderpad=0)
    return element(figure, "money")


def _latency(total: Sums) -> str | None:
    """Draw the share of answers in each latency bucket, and return the SVG; None without answers."""
    answered = sum(total.latencies)
    if not answered:
        return None
    figure, axes = frame()
    labels = [*map(step, LATENCIES_S), f"> {LATENCIES_S[-1]:g} s"]
    axes.barh(range(len(labels)), [100 * n / answered for n in total.latencies], color=INK)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlabel("answers, %")
    return element(figure, "latency")


def _spread(report: FleetReport) -> str | None:
    """Draw the number of devices by their deferral, and return the SVG; None without devices that have enough requests."""
    if not any(report.spread):
        return None
    figure, axes = frame()
    from matplotlib.ticker import MaxNLocator

    axes.stairs(report.spread, np.linspace(0, 100, len(report.spread) + 1), fill=True, color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("deferred, %")
    axes.set_ylabel("devices")
    return element(figure, "devices")
