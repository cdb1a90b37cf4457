"""What the demo found, in words and numbers."""

from __future__ import annotations

from typing import NamedTuple

from edgeroute.cli.demo.data import Images
from edgeroute.cli.demo.measure import BATCH, Run
from edgeroute.cli.demo.threshold import Choice
from edgeroute.report.words import size

SLACK = 0.005
"""How far the accuracy may fall short of the cloud's, 0..1, on the validation images."""


class Report(NamedTuple):
    """Everything that was measured."""

    test: Images
    edge: Run
    cloud: Run
    cascade: Run
    choice: Choice
    validated: int
    """How many images the threshold was chosen on."""
    most: float
    """The share, 0..1, that it was allowed to defer there."""
    singly: int
    """How many images the cloud alone was sent one at a time."""
    rtt: float
    """Seconds that were added to each round trip."""

    @property
    def n(self) -> int:
        """How many test images."""
        return len(self.test.images)


def numbers(report: Report) -> dict[str, float]:
    """For programs. Shares 0..1; times in milliseconds; bytes of the cascade's requests."""
    edge, cloud, cascade = report.edge, report.cloud, report.cascade
    return {
        "n": report.n,
        "edge_accuracy": edge.accuracy,
        "cloud_accuracy": cloud.accuracy,
        "cascade_accuracy": cascade.accuracy,
        "deferral_rate": cascade.deferral,
        "edge_p50_ms": round(edge.p50_ms, 4),
        "cloud_p50_ms": round(cloud.p50_ms, 4),
        "cascade_p50_ms": round(cascade.p50_ms, 4),
        "bytes_sent": cascade.bytes_sent,
        "threshold": report.choice.threshold,
    }


HEAD = ("", "accuracy", "p50 latency", "asked the cloud", "sent")


def rows(report: Report) -> list[tuple[str, ...]]:
    """For people, under `HEAD`."""
    ways = {"edge alone": report.edge, "cloud alone": report.cloud, "cascade": report.cascade}
    return [
        (way, f"{run.accuracy:.2%}", f"{run.p50_ms:.2f} ms", f"{run.deferral:.1%}", size(run.bytes_sent))
        for way, run in ways.items()
    ]


def gained(report: Report) -> str:
    """One sentence, which holds whichever way the numbers turn out."""
    edge, cloud, cascade = report.edge, report.cloud, report.cascade
    return (
        f"{1 - cascade.deferral:.1%} of the images never left the device: {size(cascade.bytes_sent)} sent instead of "
        f"{size(cloud.bytes_sent)}, a median of {cascade.p50_ms:.2f} ms instead of {cloud.p50_ms:.2f} ms, and an accuracy of "
        f"{cascade.accuracy:.2%}, where the cloud alone has {cloud.accuracy:.2%} and the edge alone {edge.accuracy:.2%}."
    )


def notes(report: Report) -> list[str]:
    """What to know before believing the numbers, a line each."""
    choice = report.choice
    if choice.reached:
        why = f"the smallest deferral that came within {SLACK * 100:g} point of the cloud's accuracy there"
    else:
        why = f"none came within {SLACK * 100:g} point of the cloud's accuracy there, so the most accurate one"
    chosen = (
        f"threshold {choice.threshold:.4f}, chosen on {report.validated:,} validation images, not on these: {why}, deferring "
        f"{report.most:.0%} at most ({choice.deferral:.1%} deferred, {choice.accuracy:.2%} accurate there); "
        "uncalibrated, with no promise about errors"
    )
    lines = [f"{report.n:,} images: {report.test.which}", chosen]
    if report.singly < report.n:
        lines.append(
            f"cloud alone: latency and bytes are those of {report.singly:,} single requests (bytes scaled to all); the other "
            f"{report.n - report.singly:,} went in batches of {BATCH}, for the accuracy"
        )
    added = f"{report.rtt * 1000:g} ms added to each round trip" if report.rtt else "no network between (--rtt 80ms adds one)"
    lines.append(f"the cloud is a process on this machine, {added}; times depend on what else runs here")
    if report.cascade.degraded:
        lines.append(f"{report.cascade.degraded:,} answers of the cascade are degraded: the cloud was asked, and failed")
    return lines
