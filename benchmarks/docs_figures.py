"""Draws the figures of docs/ from recorded logits and simulations: `python benchmarks/docs_figures.py docs/figures [NAME ...]`.

Without a folder they are drawn into build/figures.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
from calibration import Array, Recorded
from figures import size
from matplotlib import rc_context
from matplotlib.figure import Figure
from specialist import CASES
from validity import EPS, scenarios

from edgeroute.confidence import deferral_curve, msp
from edgeroute.tools.measure.critical_counts import least_n
from edgeroute.tools.measure.score_fitting import fit
from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate

STYLE = {"svg.hashsalt": "edgeroute", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "path.simplify": True}
OURS, OTHER, GREY = "#1b1b1f", "#7d8697", "#98a1b0"
"""Greys: colours are for the states of answers."""
Found = tuple[Figure, str]
"""A figure, and its data as a Markdown table."""


def threshold_meaning(draws: int = size(300, 2), n: int = 1000) -> Found:
    """Draw where thresholds fall that are calibrated on n images, drawn with replacement from a known population of 5,000.

    Returns the figure, and a table of deferral, loss and broken promises by method.
    """
    recorded = Recorded()
    everything = np.arange(recorded.n)
    curve = deferral_curve(recorded.score, recorded.edge, recorded.cloud)
    cloud = recorded.cloud.mean()
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(draws):
        rows = np.random.default_rng([seed, 1]).integers(0, recorded.n, n)
        thresholds = {
            "plug-in": recorded.walked("plug-in", rows),
            "certified": recorded.certified(rows),
            "certified, without labels": recorded.unlabelled(rows),
            f"certified, {n // 10} images ten times each": recorded.certified(np.repeat(rows[: n // 10], 10)),
        }
        for name, threshold in thresholds.items():
            found.setdefault(name, []).append(recorded.measure(threshold, everything))
    figure = _figure(7.2, 3.4)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
    near = curve.deferred <= 0.25
    left.plot(curve.deferred[near] * 100, curve.accuracy[near] * 100, color=GREY, lw=1.2, label="every threshold")
    lines = ["| chosen by | deferred, mean | accuracy lost, mean | promise broken |", "| --- | ---: | ---: | ---: |"]
    looks = {"plug-in": (OTHER, "o", 0.12), "certified": (OURS, "s", 0.9)}
    for name, measured in found.items():
        deferred, lost = np.array(measured).T
        broken = float((lost > EPS + 1e-12).mean())
        lines.append(f"| {name} | {deferred.mean():.1%} | {lost.mean() * 100:.2f} points | {broken:.1%} |")
        if name in looks:
            colour, marker, height = looks[name]
            accuracy = (cloud - lost) * 100
            at = np.unique(np.stack([deferred * 100, accuracy]), axis=1)
            left.plot(*at, marker, color=colour, ms=4, alpha=0.4, mew=0, label=f"{name}, {draws} calibrations")
            right.hist(accuracy, bins=np.arange(92.9, 94.6, 0.05), orientation="horizontal", color=colour, alpha=0.6)
            told = f"{name}: {broken:.0%} below"
            right.text(0.98, height, told, color=colour, ha="right", transform=right.transAxes)
    for axes in (left, right):
        axes.axhline((cloud - EPS) * 100, color="black", lw=1, ls="--")
    left.text(25, (cloud - EPS) * 100 - 0.03, "promise: cloud - 1 point", ha="right", va="top")
    left.set(xlabel="deferred to the cloud, %", ylabel="accuracy of edge and cloud together, %", ylim=(92.9, 94.5))
    left.legend(frameon=False, loc="upper left")
    right.set(xlabel="calibrations", xlim=(0, draws / 3))
    return figure, "\n".join(lines)


def how_many_examples(draws: int = size(100, 1)) -> Found:
    """Draw the certified deferral rate over n, for several max_loss and two simulated edges; return the figure and its table."""
    sizes = (100, 200, 300, 500, 1000, 2000, 5000, 10_000)
    losses = {0.005: (OURS, "-o"), 0.01: (OURS, "--s"), 0.02: (OTHER, "-D"), 0.05: (OTHER, "--v")}
    told = scenarios()
    figure = _figure(7.2, 3.4)
    panels = figure.subplots(1, 2, sharey=True)
    lines = ["| edge | max_loss | least | " + " | ".join(f"n = {n:,}" for n in sizes[3:]) + " | at best |"]
    lines.append("| --- | ---: | ---: |" + " ---: |" * (len(sizes[3:]) + 1))
    for axes, (key, title) in zip(panels, {"C": "strong edge", "A": "typical edge"}.items(), strict=True):
        scenario = told[key]
        for eps, (colour, dash) in losses.items():
            least = least_n(eps, 0.05)
            means: dict[int, float] = {}
            for n in sorted({*sizes, least}):
                if n < least:
                    continue
                rng = np.random.default_rng([n, int(eps * 1000)])
                thresholds = [calibrate(*scenario.draw(rng, n), max_loss=eps).threshold for _ in range(draws)]
                means[n] = float(np.mean([scenario.truth(t)[2] for t in thresholds]))
            best = next(d for d in np.linspace(0, 1, 2001) if scenario.truth(float(d))[0] <= eps)
            shown = {n: v for n, v in means.items() if n == least or n > least * 1.1}
            axes.plot(list(shown), [v * 100 for v in shown.values()], dash, color=colour, ms=4, lw=1.4, label=f"{eps * 100:g} %")
            axes.plot([55, least], [100, 100], ":", color=colour, lw=1)
            axes.plot(least, means[least] * 100, "|", color=colour, ms=12, mew=2)
            axes.plot([7000, 10_000], [best * 100] * 2, color=colour, lw=3, alpha=0.35)
            cells = " | ".join("refused" if n < least else f"{means[n]:.0%}" for n in sizes[3:])
            lines.append(f"| {title} | {eps * 100:g} % | {least} | {cells} | {best:.0%} |")
        axes.text(55, 101.5, "refused: too few", fontsize=8)
        axes.set(xscale="log", title=title, xlabel="examples", xlim=(50, 12_000), ylim=(-3, 108))
        axes.set_xticks([100, 300, 1000, 3000, 10_000], ["100", "300", "1,000", "3,000", "10,000"])
        axes.minorticks_off()
    panels[0].set_ylabel("deferred to the cloud, %")
    panels[1].legend(frameon=False, title="accuracy lost, at most", loc="lower left", fontsize=8)
    return figure, "\n".join(lines)


def confidence_fails(splits: int = size(20, 1), n: int = 2500) -> Found:
    """Draw accuracy over deferral, mean over splits: the shipped pair, and an edge never trained on three of the ten classes.

    Returns the figure, and a table of areas by score.
    """
    figure = _figure(7.2, 3.4)
    lines = ["| edge | alone | cloud | msp | learned | learned, `ood` |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    titles = {"recorded": "it works: the shipped edge", list(CASES)[-1]: "it fails: 3 classes never seen", list(CASES)[-2]: ""}
    panels = iter(figure.subplots(1, 2))
    at = np.linspace(0, 1, 201)
    for case, title in titles.items():
        curves: dict[str, list[Array]] = {}
        areas: dict[str, list[float]] = {}
        ends = []
        for seed in range(splits):
            pair = CASES[case](np.random.default_rng(seed), n)
            edge, cloud = (logits.argmax(1) == pair.labels for logits in pair[:2])
            learned, foreign = (fit(pair.edge[:n], edge[:n], cloud[:n], ood=ood) for ood in (False, True))
            edge, cloud, logits = edge[n:], cloud[n:], pair.edge[n:]
            ends.append((edge.mean(), cloud.mean()))
            scores = {
                "oracle": edge * 1.0 - cloud,
                "msp": msp(logits),
                "learned": learned.many(logits),
                "ood": foreign.many(logits),
            }
            for name, score in scores.items():
                curve = deferral_curve(score, edge, cloud)
                curves.setdefault(name, []).append(np.interp(at, curve.deferred, curve.accuracy))
                areas.setdefault(name, []).append(curve.area)
        alone, above = np.mean(ends, 0)
        lines.append(
            f"| {case} | {alone:.1%} | {above:.1%} | "
            + " | ".join(f"{np.mean(areas[k]):.3f}" for k in ("msp", "learned", "ood"))
            + " |"
        )
        if title:
            axes = next(panels)
            for name, colour, dash in (("oracle", GREY, "-."), ("learned", OURS, "-"), ("msp", OTHER, "--")):
                axes.plot(at * 100, np.mean(curves[name], 0) * 100, dash, color=colour, label=name)
            axes.plot([0, 100], [alone * 100, above * 100], ":", color="black", lw=1, label="at random")
            axes.set(title=title, xlabel="deferred to the cloud, %")
    figure.axes[0].set_ylabel("accuracy of edge and cloud together, %")
    figure.axes[1].legend(frameon=False, loc="lower right")
    return figure, "\n".join(lines)


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


FIGURES = {"threshold-meaning": threshold_meaning, "how-many-examples": how_many_examples, "confidence-fails": confidence_fails}


def main() -> None:
    """Write all figures, or those named on the command line, as SVG into the folder, and print their tables."""
    folder, names = (
        Path(sys.argv[1] if len(sys.argv) > 1 else "build/figures"),
        sys.argv[2:] or size([*FIGURES], ["threshold-meaning"]),
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        with rc_context(STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of tied scores, which are expected here
            figure, table = FIGURES[name]()
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
            print(f"{name}\n\n{table}\n", flush=True)


if __name__ == "__main__":
    main()
