"""The picture: the anomaly score over time, faults, outages and alarms, as SVG without any library."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from simulate import Report

from edgeroute.tools.state_colours_and_marks import STATES, marked

WIDTH, HEIGHT = 960, 330
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 64, 44
LOWEST, HIGHEST = -6.0, 30.0
"""Log-odds that are drawn; what is beyond is drawn at the edge."""
THRESHOLD = -1.386
"""Log-odds of .2: above it the larger model is asked."""
LEGEND = (
    f"Days. Line: {marked('edge')}, the small model's log-odds of a fault; above the dashed line the larger model is asked."
    " Grey: a fault grows. Black: alarm. Dark: no link."
)
STYLE = f"""
text {{ font: 12px system-ui, sans-serif; fill: #222 }}
.small {{ font-size: 11px; fill: #555 }}
.back {{ fill: #fff }}
.fault {{ fill: #e3e6ea }}
.outage {{ fill: #555 }}
.score {{ stroke: {STATES["edge"].light}; fill: none; stroke-width: 1 }}
.line {{ stroke: #777; stroke-dasharray: 4 3 }}
.axis {{ stroke: #999 }}
.alarm {{ stroke: #16171a; stroke-width: 2 }}
"""


def svg(report: Report) -> str:
    """Return the chart of a report as a text of SVG: the score, faults, outages and alarms."""
    hours = 24 * report.days
    high, wide = HEIGHT - TOP - BOTTOM, WIDTH - LEFT - RIGHT

    def x(hour: float) -> float:
        return LEFT + wide * hour / hours

    def y(value: float) -> float:
        return TOP + high * (HIGHEST - min(max(value, LOWEST), HIGHEST)) / (HIGHEST - LOWEST)

    parts = [f'<rect class="back" width="{WIDTH}" height="{HEIGHT}"/>']
    parts += [_text(LEFT, 18, f"{report.days:g} days of a simulated machine: four faults, each until it fails")]
    for fault, found in zip(report.faults, report.arms["edgeroute"].found, strict=True):
        parts += _fault(x, high, fault.kind, (fault.begins_h, fault.fails_h), found.alarm_h)
    parts += [
        f'<rect class="outage" x="{x(start):.1f}" y="{HEIGHT - BOTTOM - 7}" width="{x(end) - x(start):.1f}" height="7"/>'
        for start, end in report.outages
    ]
    parts.append(f'<line class="line" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(THRESHOLD):.1f}" y2="{y(THRESHOLD):.1f}"/>')
    points = " ".join(f"{x(hour):.1f},{y(value):.1f}" for hour, value in report.trace)
    parts.append(f'<polyline class="score" points="{points}"/>')
    for hour, _ in report.alarms:
        parts.append(f'<line class="alarm" x1="{x(hour):.1f}" x2="{x(hour):.1f}" y1="{TOP - 6}" y2="{HEIGHT - BOTTOM}"/>')
    parts += _axes(x, y, report.days)
    body = "\n".join(parts)
    label = "Anomaly score over time, with faults, outages of the link and alarms"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n"
    )


def _fault(x: Callable[[float], float], high: float, kind: str, span: tuple[float, float], alarm_h: float | None) -> list[str]:
    begins, fails = span
    lead = "no alarm" if alarm_h is None else f"alarm {fails - alarm_h:.0f} h before failure"
    return [
        f'<rect class="fault" x="{x(begins):.1f}" y="{TOP}" width="{x(fails) - x(begins):.1f}" height="{high}"/>',
        _text(x(fails), TOP - 24, kind, "end"),
        _text(x(fails), TOP - 10, lead, "end", "small"),
    ]


def _axes(x: Callable[[float], float], y: Callable[[float], float], days: float) -> list[str]:
    """Return the parts of both axes, and the legend; x, y: functions from hours and scores to places."""
    bottom = HEIGHT - BOTTOM
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>']
    step = max(1, round(days / 14))
    parts += [_text(x(24 * day), bottom + 15, str(day), "middle", "small") for day in range(0, int(days) + 1, step)]
    parts += [_text(LEFT - 8, y(value) + 4, f"{value:g}", "end", "small") for value in (0, 10, 20, 30)]
    parts.append(_text(LEFT, HEIGHT - 8, LEGEND, "start", "small"))
    return parts


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
