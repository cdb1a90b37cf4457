"""The page of a run: which device has which policy, shares and alarms by day, drawn as SVG without any library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import count_text
from edgeroute.tools.state_colours_and_marks import STATES, marked, svg_hatches

COLOURS = {"shop-1": "#98a1b0", "shop-2": "#5c6370", "shop-3": "#1b1b1f", "shop-4": "#7d8697"}
"""Of policies, which are no states of answers: greys."""
OTHER, FOG = "#b9c0cc", "#1b1b1f"
LEFT, TOP, WIDE, HIGH = 48, 24, 640, 170
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1f }
body { background: #fcfcfd }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2rem 0 0 } p { margin: .3rem 0 }
.wide { overflow-x: auto }
svg { width: 100%; min-width: 42rem }
text { font: 12px system-ui, sans-serif; fill: #5c6370 }
table { border-collapse: collapse } td, th { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top }
.key span { margin-right: 1rem }
.key i { display: inline-block; width: .8em; height: .8em; margin-right: .3em; border-radius: 2px }
"""


def day_line(day: Mapping[str, Any]) -> str:
    """Return a day in a line: digests, deferral, devices by policy, and events."""
    _, requests, deferred = map(sum, zip(*day["policies"].values(), strict=True))
    have = ", ".join(f"{name or 'none'} on {numbers[0]}" for name, numbers in sorted(day["policies"].items()))
    text = f"day {day['day']:2}: {day['added']} digests, {deferred / max(1, requests):.1%} deferred; {have}"
    return text + "".join(f"; {event}" for event in events(day))


def events(day: Mapping[str, Any]) -> list[str]:
    """Return the outage, the decision about a ring, the alarms and the suspects of a day."""
    step, waiting = day["step"], day.get("waiting", 0)
    found = [f"OUTAGE: {marked('waiting', f'{waiting} digests wait on their devices')}"] if waiting else []
    found += [] if step["did"] == "wait" else [f"{step['did'].replace('_', ' ')}: {step['text']}"]
    for stream in day["alarm"]["streams"]:
        found += [f"ALARM: {alarm['text']}, {alarm['times']:.1f} times the usual" for alarm in stream["alarms"]]
        if stream["suspects"]:
            sites = ", ".join(f"{count} of {site}" for site, count in stream["sites"].items())
            found.append(f"{count_text(len(stream['suspects']), 'suspect')}: {sites}")
    return found


def lines(result: Mapping[str, Any]) -> list[str]:
    """Return what the run has shown, in four lines for people."""
    days, last = result["days"], result["days"][-1]["alarm"]["streams"]
    full = next((f"on all on day {day['day']}" for day in days if [*day["policies"]] == ["shop-2"]), "never on all")
    most = max(day["policies"].get("shop-3", [0])[0] for day in days)
    after = [(day["day"], day["step"]["did"]) for day in days[result["bad"] :] if day["step"]["did"] != "wait"]
    end = f"{after[0][1].replace('_', ' ')} after day {after[0][0]}" if after else "it was never stopped"
    first, named = alarm_day(days), sum(len(stream["suspects"]) for stream in last)
    there = sum(stream["sites"].get(site, 0) for stream in last for site in result["fog"])
    places = " and ".join(result["fog"])
    suspects = f"{count_text(named, 'suspect')}, {there} of them there"
    alarm = "no alarm" if first is None else f"an alarm after day {first}"
    took = f"{result['devices']} devices, {len(days)} virtual days, {result['took_s']:.0f} s"
    return [
        f"{took}; a bucket in moto; broker: {result['broker']}",
        f"a better policy was published before day {result['good']}, and was {full}",
        f"a bad policy was published before day {result['bad']}, and was on {most} devices: {end}",
        f"from day {result['drift']} on there is fog at {places}, on {result['drifting']} devices: {alarm}; {suspects}",
    ]


def alarm_day(days: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the first day with an alarm; None: there is none."""
    return next((day["day"] for day in days if any(stream["alarms"] for stream in day["alarm"]["streams"])), None)


def html(result: Mapping[str, Any]) -> str:
    """Return the page as a text of HTML, complete in itself but for the link to the report."""
    days, fog, alarm = result["days"], result["fog"], alarm_day(result["days"])
    names = sorted({name for day in days for name in day["policies"]})
    deferred = {name: [_share(day["policies"].get(name, (0, 0, 0))[1:]) for day in days] for name in names}
    sites = sorted({site for day in days for site in day["sites"]}, key=lambda site: site in fog)
    differ = {site: [_share(day["sites"].get(site, (0, 0))) for day in days] for site in sites}
    inks = {name or "none": COLOURS.get(name, OTHER) for name in names}
    inks |= {marked("waiting", "digest not here yet"): STATES["waiting"].light} if any(day.get("waiting") for day in days) else {}
    marks = {result["good"]: "better policy", result["bad"]: "bad policy", result["drift"]: "fog"}
    found = [(day["day"], event) for day in days for event in events(day)]
    rows = "".join(f"<tr><td>{day}</td><td>{escape(event)}</td></tr>" for day, event in found)
    seen = "".join(f"<p>{escape(line)}</p>" for line in lines(result))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>A fleet in {len(days)} days</title><style>{STYLE}</style>
<h1>A fleet of {result["devices"]} devices, in {len(days)} days</h1>
{seen}
<p><a href="report.html">The report of edgeroute fleet</a></p>
<h2>Devices by the policy in force</h2>{_key(inks)}
{_bars(names, days, result["devices"], marks)}
<h2>Requests that are deferred, by policy</h2>{_key({name or "none": COLOURS.get(name, OTHER) for name in names})}
{_chart("deferred, by policy and day", deferred, COLOURS, marks, alarm)}
<h2>Audited answers that differ from the large model's, by site</h2>{_key({" and ".join(fog): FOG, "other sites": OTHER})}
{_chart("audits that differ, by site and day", differ, dict.fromkeys(fog, FOG), marks, alarm)}
<h2>Decisions, alarms and suspects</h2>
<table><tr><th>day</th><th>after it</th></tr>{rows}</table>
"""


def _key(inks: Mapping[str, str]) -> str:
    """Return the meaning of colours."""
    parts = (f'<span><i style="background:{ink}"></i>{escape(name)}</span>' for name, ink in inks.items())
    return f'<p class="key">{"".join(parts)}</p>'


def _share(numbers: Sequence[int]) -> float | None:
    """Return the second number over the first; None without any."""
    total, part = numbers
    return part / total if total else None


def _frame(days: int, marks: Mapping[int, str], alarm: int | None = None) -> list[str]:
    """Return axes with the days, and lines where something begins."""
    step = WIDE / days
    parts = [f'<line x1="{LEFT}" x2="{LEFT + WIDE}" y1="{TOP + HIGH}" y2="{TOP + HIGH}" stroke="#999"/>']
    parts += [
        f'<text x="{LEFT + (i + 0.5) * step:.1f}" y="{TOP + HIGH + 16}" text-anchor="middle">{i}</text>' for i in range(days)
    ]
    for day, text in [*marks.items(), *([] if alarm is None else [(alarm, "alarm")])]:
        x, ink = LEFT + day * step, "#b3261e" if text == "alarm" else "#5c6370"
        dash = "" if text == "alarm" else ' stroke-dasharray="4 3"'
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + HIGH}" stroke="{ink}"{dash}/>')
        parts.append(f'<text x="{x + 4:.1f}" y="{TOP + 12 if text == "alarm" else TOP - 8}">{text}</text>')
    return parts


def _svg(label: str, parts: Sequence[str]) -> str:
    """Return a drawing, which is moved sideways where the page is narrower."""
    box = f"0 0 {LEFT + WIDE + 12} {TOP + HIGH + 24}"
    svg = f'<svg viewBox="{box}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<div class="wide" tabindex="0" role="region" aria-label="{label}">{svg}</div>'


def _bars(names: Sequence[str], days: Sequence[Mapping[str, Any]], count: int, marks: Mapping[int, str]) -> str:
    """Return bars of the devices with each policy, by day; on top those whose digest waits, since their store is away."""
    step, parts = WIDE / len(days), [svg_hatches(["waiting"])]
    for i, day in enumerate(days):
        y = float(TOP + HIGH)
        stack = [(COLOURS.get(name, OTHER), day["policies"].get(name, (0,))[0]) for name in names]
        for ink, number in [*stack, ("url(#hatch-waiting)", day.get("waiting", 0))]:
            high = HIGH * min(count, number) / count
            y -= high
            place = f'x="{LEFT + i * step + 2:.1f}" y="{y:.1f}" width="{step - 4:.1f}" height="{high:.1f}"'
            parts.append(f'<rect {place} fill="{ink}"/>')
    return _svg("devices by policy and day", [*parts, *_frame(len(days), marks)])


def _chart(
    label: str, values: Mapping[str, Sequence[float | None]], inks: Mapping[str, str], marks: Mapping[int, str], alarm: int | None
) -> str:
    """Return lines of shares by day."""
    days = len(next(iter(values.values())))
    top = max((value for line in values.values() for value in line if value is not None), default=0.0) or 1.0
    parts = _frame(days, marks, alarm)
    for share in (0.0, top / 2, top):
        y = TOP + HIGH * (1 - share / top)
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
    for name, line in values.items():
        ink = inks.get(name, OTHER)
        points = [
            (LEFT + (i + 0.5) * WIDE / days, TOP + HIGH * (1 - value / top)) for i, value in enumerate(line) if value is not None
        ]
        parts.append(
            f'<polyline fill="none" stroke="{ink}" stroke-width="2" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{ink}"/>' for x, y in points]
    return _svg(label, parts)
