"""Sections of an A/B comparison: of one router in operation, and of many devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeroute.evaluation.fleet import Difference, Fleet
from edgeroute.report import html
from edgeroute.report.words import NONE, counted, duration, limit, percent

SAID = {
    "failed": "requests that its edge model failed on",
    "deferred": "requests deferred to the cloud",
    "differs": "answers that differ from the cloud's",
}
"""Measure -> in words."""
VERDICTS = {"worse": "worse by more than is allowed", "within": "no worse than is allowed", "open": "not known yet"}
_ROWS = ("requests", "failed", "deferred", "differ", "loss", "mean time", "p99")


def in_operation(arms: Sequence[Mapping[str, Any]]) -> str:
    """What came of the arms of a router. arms: as in its state."""
    return html.section("A/B in operation", _table(arms), *_stopped(arms), html.paragraph(
        "Of requests, not of these examples. The loss is the share of all requests that the edge answered otherwise than the "
        "cloud would, by audits. Intervals are of 95 %, for independent requests and one look that was fixed beforehand; the "
        "guardrail looks at each."
    ))  # fmt: skip


def of_clouds(arms: Sequence[Mapping[str, Any]]) -> str:
    """What came of the arms of the cloud. arms: as in its router's state."""
    rows = []
    for arm in arms:
        usd, mean = arm["usd"], arm["mean_s"]
        row = [
            _share(arm["failed"]),
            _share(arm["differs"]) if arm["compared"] else NONE,
            ", ".join(_shadow(arm)) or NONE,
            f"{usd[0]:.3g} ({usd[1]:.3g} to {usd[2]:.3g})",
            f"{duration(mean[0])} ({duration(mean[1])} to {duration(mean[2])})",
        ]
        if not arm["calls"]:
            row = [NONE, NONE, row[2], NONE, NONE]
        rows.append([arm["arm"], percent(arm["share"]), f"{arm['calls']:,}", *row])
    names = ["cloud", "share", "calls", "failed", "differ from the edge", "differ in shadow", "USD a call", "mean time"]
    return html.section(
        "Arms of the cloud, in operation", html.table(names, rows, "The arms of the cloud"), *_stopped(arms),
        html.paragraph(
            "Of requests, not of these examples. Intervals are of 95 %, for independent requests and one look that was fixed "
            "beforehand; the guardrail looks at each."
        ),
    )  # fmt: skip


def _shadow(arm: Mapping[str, Any]) -> list[str]:
    parts = [_share(arm["shadow_differs"])] if arm["shadowed"] else []
    return [*parts, *([f"{arm['shadow_failed']:,} failed"] if arm["shadow_failed"] else [])]


def fleet(found: Fleet) -> str:
    """The comparison of many devices."""
    arms = [arm._asdict() for arm in found.arms]
    kind = "broken" if found.worse else "held" if _all_within(found) else "open"
    short, long = verdict(found)
    said = f'<p class="verdict {kind}"><strong>{html.escape(short)}</strong> {html.escape(long)}</p>'
    compared = [[one.measure.replace("differs", "differ"), *difference(one)] for one in found.differences]
    return "\n".join([
        html.section("B against A", said, html.table(["B less A", "difference", "interval", "allowed", ""], compared, "B less A"),
                     html.paragraph(how(found))),
        html.section("The arms", _table(arms, fleet=True), *_stopped(arms), html.paragraph(
            "The loss is the share of all requests that the edge answered otherwise than the cloud would, by audits. p99 is that "
            "of the median device. Intervals are of 95 %.")),
    ])  # fmt: skip


def verdict(found: Fleet) -> tuple[str, str]:
    """Whether B is worse, in words: (headline, explanation)."""
    if found.worse:
        return "B is worse: stop it.", f"It has more {' and more '.join(SAID[name] for name in found.worse)} than is allowed."
    if _all_within(found):
        return "B is no worse than is allowed.", "So it is for all measures."
    known = {one.measure for one in found.differences}
    missing = [SAID[name] for name in SAID if name not in known]
    unsure = [SAID[one.measure] for one in found.differences if one.verdict == "open"]
    said = [f"Too little is known of {', '.join(unsure)}."] if unsure else []
    said += [f"There are no figures of both arms for {', '.join(missing)}."] if missing else []
    return "Whether B is worse is not known yet.", " ".join(said)


def difference(one: Difference) -> tuple[str, str, str, str]:
    """Its cells: value, interval, what is allowed, verdict."""
    value = f"{one.value * 100:+.2f} %"
    return value, f"{one.low * 100:+.2f} to {one.high * 100:+.2f} %", f"+{limit(one.allowed)}", VERDICTS[one.verdict]


def how(found: Fleet) -> str:
    """What the intervals of the differences rest on."""
    unit = "devices, as each is in one arm: re-randomisation" if found.by_device else "requests, as each was drawn for itself"
    sure = limit(found.settings.alpha)
    return (
        f"By {unit}. At one look, a B that is no worse than is allowed is called worse with probability {sure} at most, over "
        f"all three measures; and one that is worse is likewise called no worse."
    )


def _all_within(found: Fleet) -> bool:
    return len(found.differences) == len(SAID) and all(one.verdict == "within" for one in found.differences)


def _table(arms: Sequence[Mapping[str, Any]], *, fleet: bool = False) -> str:
    """A column for each arm."""
    columns = [[f"{arm['devices']:,}", *_cells(arm)] if fleet else _cells(arm) for arm in arms]
    names = ("devices", *_ROWS) if fleet else _ROWS
    rows = [[name, *cells] for name, *cells in zip(names, *columns, strict=True)]
    return html.table(["", *(f"{arm['arm']}: {arm['model']}" for arm in arms)], rows, "The arms")


def _cells(arm: Mapping[str, Any]) -> list[str]:
    shares = [_share(arm["failed"]), _share(arm["deferred"])]
    shares += [_share(arm["differs"]), _share(arm["loss"])] if arm["compared"] else [NONE] * 2
    value, low, high = arm["mean_s"]
    mean = f"{duration(value)} ({duration(low)} to {duration(high)})" if arm["requests"] else NONE
    return [f"{arm['requests']:,}", *shares, mean, NONE if arm["p99_s"] is None else duration(arm["p99_s"])]


def _share(part: Sequence[float]) -> str:
    return f"{percent(part[0])} ({part[1] * 100:.2f} to {part[2] * 100:.2f})"


def _stopped(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    return [html.paragraph(f"Arm {arm['arm']} is stopped: {arm['stopped']}.") for arm in arms if arm["stopped"]]


def made_of(count: int, requests: int) -> str:
    """Of how many devices and requests a comparison is."""
    return f"{counted(count, 'device')}, {counted(requests, 'request')}"
