"""Figures of the report as inline SVG, drawn with matplotlib; None where the examples lack the data."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from edgeroute.system.late_imports_and_plugins import import_needed
from edgeroute.tools.measure.report.numbers_verdicts_and_table_rows import LEGS
from edgeroute.tools.measure.threshold_evaluation import Bin, Evaluation, Share
from edgeroute.tools.state_colours_and_marks import STATES, StateName

# Shared matplotlib style of the figures, and their conversion to inline SVG.

INK = "#010203"  # placeholder for the page's text colour in an SVG
# Colours of answers of each side, as the palette has them; in an SVG they become the page's. Lines also differ in dashes.
EDGE, CLOUD, DEGRADED = (STATES[name].light for name in ("edge", "cloud", "degraded"))
MARKERS = {"edge": "o", "cloud": "^"}  # matplotlib's markers for the palette's marks
SIZE = (4.2, 3.2)  # size of a figure, inches; on a phone 340 pixels wide the text is at least 10 pixels


def frame(size: tuple[float, float] = SIZE, rows: int = 1, *, ink: str = INK) -> tuple[Any, Any]:
    """Return a transparent figure and its axes, with left and bottom spines only; with several rows, an array of axes.

    Raises:
        RuntimeMissing: matplotlib is not installed.
    """
    drawn_by = import_needed("matplotlib.figure", "the figures need matplotlib: pip install 'edgeroute[demo]'")
    figure = drawn_by.Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, sharex=True)
    for axes in [panels] if rows == 1 else panels:
        axes.grid(color=ink, alpha=0.12)
        axes.tick_params(colors=ink)
        axes.xaxis.label.set_color(ink)
        axes.yaxis.label.set_color(ink)
        axes.patch.set_alpha(0)
        for side, spine in axes.spines.items():
            spine.set_visible(side in {"left", "bottom"})
            spine.set_color(ink)
    return figure, panels


def element(figure: Any, name: str) -> str:
    """Return the figure as inline SVG in the page's colours, the same for the same figure; `name` prefixes the ids in it."""
    from matplotlib import rc_context

    out = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "edgeroute", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(
        r"<metadata>.*?</metadata>|<!--.*?-->| xmlns(:xlink)?=\"[^\"]*\"", "", text[text.index("<svg") :], flags=re.DOTALL
    )
    used = set(re.findall(r'(?:url\(|href=")#([\w.-]+)', text))
    text = re.sub(r' id="([\w.-]+)"', lambda match: f' id="{name}-{match[1]}"' if match[1] in used else "", text)
    text = re.sub(r'((?:url\(|href=")#)', rf"\1{name}-", text)
    for state in STATES.values():
        text = text.replace(f": {state.light}", f": var(--{state.word}, {state.light})")
    return text.replace(INK, "currentColor")


def side_alone(axes: Any, side: StateName, x: float, y: float) -> None:
    """Draw the mark of a side that answers everything alone, with its label for the legend, at a point of the axes."""
    axes.plot(x, y, MARKERS[side], color=STATES[side].light, markersize=8, clip_on=False, zorder=3, label=f"{side} alone")


HISTOGRAM_BINS = 30
SHORT = 100  # a log axis spanning less than this ratio gets ticks between the powers of ten
MARKED = {"linestyle": "", "marker": "*", "markersize": 11, "color": INK, "ecolor": INK, "elinewidth": 1.5, "capsize": 3}


def accuracy_over_deferral(evaluation: Evaluation) -> str | None:
    """Draw accuracy over deferral rate, with oracle, random deferral and the threshold in use, as SVG; None if unknown.

    Of a certificate that holds here its interval of deferral, and the accuracy that it guarantees, are drawn too. Raises
    RuntimeMissing without matplotlib, as all figures do.
    """
    curve, oracle, accuracy = evaluation.curve(), evaluation.oracle(), evaluation.accuracy()
    if curve is None:
        return None
    figure, axes = frame((SIZE[0], 4.0))
    if oracle is not None:
        x, y = oracle
        axes.plot(x * 100, y * 100, ":", color=INK, linewidth=1.5, label="an oracle")
    axes.plot(*(100 * values for values in curve), color=INK, linewidth=2, label="by the score")
    if oracle is not None:
        axes.plot([0, 100], [y[0] * 100, y[-1] * 100], "--", color=INK, alpha=0.6, linewidth=1, label="at random")
    if "edge" in accuracy:
        side_alone(axes, "edge", 0, accuracy["edge"].value * 100)
    if "cloud" in accuracy:
        side_alone(axes, "cloud", 100, accuracy["cloud"].value * 100)
    current = accuracy.get("accepted" if oracle is None else "cascade")
    if current is not None:
        deferral = evaluation.deferral
        bars = {"xerr": _error_bars(deferral), "yerr": _error_bars(current)}
        label = "threshold in use, with 95 % intervals"
        axes.errorbar(deferral.value * 100, current.value * 100, **bars, **MARKED, label=label)
    certificate = evaluation.certificate
    if certificate is not None and not evaluation.uncalibrated:
        low, high = certificate.deferral_interval
        axes.axvspan(low * 100, high * 100, color=INK, alpha=0.15, linewidth=0, label="deferral that the certificate expects")
        if certificate.kind == "max_loss" and "cloud" in accuracy and evaluation.labelled != certificate.agreement:
            least = (accuracy["cloud"].value - certificate.value) * 100
            axes.axhline(least, color=INK, linewidth=1, linestyle="-.", label="the least that is guaranteed")
    axes.set_xlim(-2, 102)
    axes.set_xlabel("deferred, %")
    axes.set_ylabel("accuracy, %" if evaluation.labelled else "as the cloud says, %")
    legend(figure)
    return element(figure, "curve")


def latency(evaluation: Evaluation) -> str | None:
    """Draw the empirical distribution of latency, for edge, cloud and cascade, as SVG; None if none was measured."""
    seconds = evaluation.seconds()
    if not seconds:
        return None
    figure, axes = frame()
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    styles = {"cascade": (INK, "-", 5, 0.4), "edge": (EDGE, "-", 1.5, 1), "cloud": (CLOUD, "--", 1.5, 1)}
    for leg, (color, dashes, width, alpha) in styles.items():
        times = seconds.get(leg)
        if times is None:
            continue
        share = np.arange(times.size + 1) / times.size * 100
        style = {"color": color, "linewidth": width, "alpha": alpha, "label": LEGS[leg], "drawstyle": "steps-post"}
        axes.plot(np.append(times[:1], times) * 1000, share, dashes, **style)
    least, most = (end(times[i] for times in seconds.values()) for end, i in ((min, 0), (max, -1)))
    if least > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < SHORT * least else (1,)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("answered by then, %")
    legend(figure)
    return element(figure, "latency")


def reliability(bins: list[Bin], *, diagonal: bool, right: str) -> str:
    """Draw a reliability diagram, as SVG: share of correct answers over the score, by bin, with intervals.

    Args:
        bins: the bins.
        diagonal: True draws the diagonal: the score is a probability.
        right: label of the y axis.
    """
    figure, axes = frame()
    if diagonal:
        axes.plot([0, 1], [0, 100], "--", color=INK, alpha=0.6, linewidth=1, label="as sure as it is right")
    axes.errorbar(
        [part.score for part in bins],
        [part.right.value * 100 for part in bins],
        yerr=np.hstack([_error_bars(part.right) for part in bins]),
        **(MARKED | {"color": EDGE, "ecolor": EDGE, "marker": MARKERS["edge"], "markersize": 4}),
        label="examples of similar score, with 95 % intervals",
    )
    if diagonal:
        least = min(*(part.score for part in bins), *(part.right.low for part in bins))
        axes.set_xlim(least - 0.02, 1.02)
        axes.set_ylim(least * 100 - 2, 102)
    axes.set_xlabel("score")
    axes.set_ylabel(right)
    legend(figure)
    return element(figure, "reliability")


def histograms(evaluation: Evaluation) -> str | None:
    """Draw histograms of the scores of correct and wrong answers, as SVG, or of all where correctness is unknown.

    None without scores.
    """
    score, right = evaluation.examples.score, evaluation.edge_right
    known = np.isfinite(score)
    if not known.any():
        return None
    low, high = float(score[known].min()), float(score[known].max())
    apart = 0.5 if high - low < 1e-9 * max(1.0, abs(low), abs(high)) else 0.0  # alike but for rounding: no room for bins
    edges = np.histogram_bin_edges(score[known], HISTOGRAM_BINS, (low - apart, high + apart))
    if right is None:
        groups = [("all", known, "")]
    else:
        yes, no = ("right", "wrong") if evaluation.labelled else ("as the cloud says", "otherwise")
        groups = [(yes, known & right, ""), (no, known & ~right, "////")]
    figure, panels = frame(rows=len(groups))
    from matplotlib.ticker import MaxNLocator

    for axes, (name, rows, hatch) in zip(np.atleast_1d(panels), groups, strict=True):
        counts, _ = np.histogram(score[rows], edges)
        fill: dict[str, Any] = {"facecolor": "none" if hatch else INK, "edgecolor": INK, "hatch": hatch}
        axes.stairs(counts, edges, fill=True, alpha=0.6, linewidth=0, **fill)
        axes.set_ylim(0, max(1, counts.max()) * 1.05)  # also where there is none
        axes.set_ylabel(name, color=INK)
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        if not evaluation.thresholds and edges[0] <= evaluation.threshold <= edges[-1]:
            axes.axvline(evaluation.threshold, color=INK, linewidth=1.5, linestyle="--")
    axes.set_xlabel("score")
    return element(figure, "histograms")


def _error_bars(share: Share) -> list[list[float]]:
    """Return error bars for matplotlib, percent; clipped at 0 against rounding."""
    return [[max(0.0, share.value - share.low) * 100], [max(0.0, share.high - share.value) * 100]]


def legend(figure: Any, *, ink: str = INK) -> None:
    """Draw the legend above the axes."""
    figure.legend(loc="outside upper left", frameon=False, labelcolor=ink, fontsize="medium", borderpad=0, labelspacing=0.3)
