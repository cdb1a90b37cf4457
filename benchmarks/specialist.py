"""Benefit of a learned score: area under the deferral curve (0 random, 1 oracle), over repeated splits."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from figures import MODELS, medians, size

from edgeroute import OnnxModel
from edgeroute.confidence import Reader, auto, deferral_curve, fit, msp
from edgeroute.tools.cli.demo_measurements_and_report import DEBIAN, read_idx

CLASSES, TEST = 10, 8_000
LOSS = 0.005
"""Maximum mean loss of `auto` against msp, over splits, in any case."""
GAIN, FEW = 0.07, 500
"""Minimum gain over msp in the mean of the simulated specialists, from so few examples."""
UNSEEN = [2, 6, 7]
"""Pullover, shirt and sneaker: classes unknown to the recorded specialist."""


class Pair(NamedTuple):
    """Logits of edge and cloud [n, C], and the labels [n]."""

    edge: np.ndarray
    cloud: np.ndarray
    labels: np.ndarray


def synthetic(rng: np.random.Generator, n: int, edge: np.ndarray, cloud: np.ndarray, *, noisy: bool = False) -> Pair:
    """Draw logits: independent and shared noise, with the true class raised by the model's strength in it, [C].

    noisy: four classes are faint, and 40 % of their labels are another of the four.
    """
    y = rng.integers(0, CLASSES, n)
    rows, shared = np.arange(n), rng.normal(size=(n, CLASSES))
    e, c = shared + 0.8 * rng.normal(size=(n, CLASSES)), 0.8 * shared + 0.6 * rng.normal(size=(n, CLASSES))
    e[rows, y] += edge[y]
    c[rows, y] += cloud[y]
    if noisy:
        faint = y >= 6
        e[faint] *= 0.5
        c[faint] *= 0.8
        swap = faint & (rng.random(n) < 0.4)
        y[swap] = 6 + (y[swap] - 6 + rng.integers(1, 4, swap.sum())) % 4
    return Pair(1.6 * e, 1.6 * c, y)


def unseen(rng: np.random.Generator, n: int) -> Pair:
    """Draw an edge that confuses three unknown classes with three known ones, with equal confidence, and a good cloud."""
    pair = synthetic(rng, n, np.zeros(CLASSES), np.full(CLASSES, 4.6))
    seems = np.where(pair.labels >= 7, pair.labels - 7, pair.labels)
    pair.edge[np.arange(n), seems] += 1.6 * 4
    pair.edge[:, 7:] -= 1.6 * 8
    return pair


def recorded(
    rng: np.random.Generator, *, test: bool = False, edge_lacks: bool = False, cloud_lacks: bool = False, noisy: bool = False
) -> Pair:
    """Return copies of the shipped pair on validation or test images, in random order.

    Lacking classes are never predicted; noisy: a quarter of four classes' labels are changed.
    """
    pair = Pair(*(part.copy() for part in (tested() if test else validated())))
    for lacks, logits in ((edge_lacks, pair.edge), (cloud_lacks, pair.cloud)):
        if lacks:
            logits[:, UNSEEN] = logits.min(1, keepdims=True)
    if noisy:
        swap = np.isin(pair.labels, (0, 2, 4, 6)) & (rng.random(len(pair.labels)) < 0.25)
        pair.labels[swap] = np.array([2, 0, 4, 0, 6, 0, 4])[pair.labels[swap]]
    return shuffled(pair, rng)


@cache
def validated() -> Pair:
    """Return the shipped pair on its 5,000 validation images."""
    with np.load(MODELS / "validation.npz") as file:
        return Pair(file["edge_logits"].astype(float), file["cloud_logits"].astype(float), file["labels"].astype(int))


@cache
def images() -> dict[str, np.ndarray]:
    """Fashion-MNIST from Debian's dataset-fashion-mnist: train (on which the shipped models were trained) and test."""
    names = {"x": "train-images-idx3", "y": "train-labels-idx1", "test_x": "t10k-images-idx3", "test_y": "t10k-labels-idx1"}
    return {name: read_idx(DEBIAN / f"{file}-ubyte.gz") for name, file in names.items()}


@cache
def tested() -> Pair:
    """Run the shipped pair on the 10,000 test images, and return their logits and labels."""
    logits = []
    for file in ("edge.int8.onnx", "cloud.onnx"):
        model = OnnxModel(MODELS / file)
        session, spec, card = model.load(), model.inputs[0], model.card.preprocess
        x = images()["test_x"]
        x = x if card is None else (x.astype("f4") * card.factor + card.offset)[:, None]
        logits.append(np.concatenate([session.run(None, {spec.name: part})[0] for part in np.split(x, 20)]).astype(float))
    return Pair(*logits, images()["test_y"].astype(int))


@cache
def taught(lacks: tuple[int, ...]) -> Pair:
    """Train an edge without these classes; return it and the shipped cloud on the 10,000 test images. Takes 10 s."""
    data = images()
    known = ~np.isin(data["y"], lacks)
    weights = train(data["x"][known].reshape(-1, 784), data["y"][known])
    return tested()._replace(edge=_logits(weights, data["test_x"].reshape(-1, 784)))


def train(x: np.ndarray, y: np.ndarray, *, hidden: int = 64, epochs: int = 6) -> list[np.ndarray]:
    """Train a network with one hidden layer by SGD with momentum, and return its weights and biases. x: uint8 [n, pixels]."""
    rng = np.random.default_rng(0)
    shapes = (x.shape[1], hidden), (1, hidden), (hidden, CLASSES), (1, CLASSES)
    weights = [rng.normal(size=shape).astype("f4") * (0.05 if shape[0] > 1 else 0) for shape in shapes]
    moving = [np.zeros_like(w) for w in weights]
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(x)), len(x) // 128):
            inputs = x[rows].astype("f4") / 255
            inner = np.maximum(inputs @ weights[0] + weights[1], 0)
            z = inner @ weights[2] + weights[3]
            p = np.exp(z - z.max(1, keepdims=True))
            error = (p / p.sum(1, keepdims=True) - np.eye(CLASSES, dtype="f4")[y[rows]]) / len(rows)
            back = error @ weights[2].T * (inner > 0)
            slopes = inputs.T @ back, back.sum(0), inner.T @ error, error.sum(0)
            moving = [0.9 * m - 0.05 * slope for m, slope in zip(moving, slopes, strict=True)]
            weights = [w + m for w, m in zip(weights, moving, strict=True)]
    return weights


def _logits(weights: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    inner = np.maximum(x.astype("f4") / 255 @ weights[0] + weights[1], 0)
    return (inner @ weights[2] + weights[3]).astype(float)


def shuffled(pair: Pair, rng: np.random.Generator) -> Pair:
    """Return the case in a random order."""
    order = rng.permutation(len(pair.labels))
    return Pair(*(part[order] for part in pair))


def half(strong: float, weak: float) -> np.ndarray:
    """Strength per class: good at the first five."""
    return np.where(np.arange(CLASSES) < 5, strong, weak)


CASES: dict[str, Callable[[np.random.Generator, int], Pair]] = {
    "standard": lambda rng, n: synthetic(rng, n, half(4, 4), half(4.6, 4.6)),
    "edge is a specialist": lambda rng, n: synthetic(rng, n, half(5.5, 2.2), half(4.6, 4.6)),
    "edge never saw 3 classes": unseen,
    "cloud is a specialist": lambda rng, n: synthetic(rng, n, half(4, 4), half(6.5, 2.8)),
    "label noise": lambda rng, n: synthetic(rng, n, half(4, 4), half(4.6, 4.6), noisy=True),
    "recorded": lambda rng, _: recorded(rng),
    "recorded, edge lacks 3 classes": lambda rng, _: recorded(rng, edge_lacks=True),
    "recorded, cloud lacks 3 classes": lambda rng, _: recorded(rng, cloud_lacks=True),
    "recorded, label noise": lambda rng, _: recorded(rng, noisy=True),
    "test images": lambda rng, _: recorded(rng, test=True),
    "test images, label noise": lambda rng, _: recorded(rng, test=True, noisy=True),
    "trained on 7 classes, not on pullovers, shirts, sneakers": lambda rng, _: shuffled(taught((2, 6, 7)), rng),
    "trained on 7 classes, not on sneakers, bags, boots": lambda rng, _: shuffled(taught((7, 8, 9)), rng),
}
"""Name -> generator of a case. The last four need Debian's dataset-fashion-mnist."""


SPECIALISTS = ("edge is a specialist", "edge never saw 3 classes", "cloud is a specialist")


def areas(case: str, n: int, seed: int) -> tuple[float, float, float, float]:
    """Fit the scores to n examples of a split, and return the areas of msp, learned and auto on the rest, and the fit's weight in auto."""
    pair = CASES[case](np.random.default_rng(seed), n + TEST)
    edge, cloud = (logits.argmax(1) == pair.labels for logits in pair[:2])
    given = pair.edge[:n], edge[:n], cloud[:n]
    chosen = auto(*given)
    learned = fit(*given)
    scores = msp(pair.edge[n:]), learned.many(pair.edge[n:]), chosen.many(pair.edge[n:])
    a, b, c = (deferral_curve(score, edge[n:], cloud[n:]).area for score in scores)
    return a, b, c, chosen.data["blend"]["weight"] if chosen.name == "learned" else 0.0


def table(splits: int, sizes: list[int], seed: int, cases: list[str]) -> str:
    """Return a table with one row per case and size: mean areas, gain of auto over msp and over the better of both, its worst split.

    Below it stand the limits of gain and loss, kept or missed.
    """
    lines = [
        "| case | n | msp | learned | auto | of auto is learned | auto - msp | auto - better | auto - msp, worst split |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    least, gained = 0.0, list[float]()
    for case in cases:
        for n in sizes:
            found = np.array([areas(case, n, seed + i) for i in range(splits)])
            a, b, c, share = found.mean(0)
            worst = (found[:, 2] - found[:, 0]).min()
            least = min(least, c - a)
            if n == FEW and case in SPECIALISTS:
                gained.append(c - a)
            gains = f"{c - a + 0.0:+.4f} | {c - max(a, b) + 0.0:+.4f} | {worst:+.3f}"
            lines.append(f"| {case} | {n} | {a:.3f} | {b:.3f} | {c:.3f} | {share:.0%} | {gains} |")
    kept = "kept" if -least <= LOSS else "MISSED"
    if gained:
        mean = sum(gained) / len(gained)
        held = "kept" if mean >= GAIN else "MISSED"
        lines += ["", f"Gain at n = {FEW} over the simulated specialists: {mean:.3f}, at least {GAIN}: {held}."]
    return "\n".join(
        [*lines, "", f"The most that auto loses on msp, on average over {splits} splits: {abs(least):.4f}, limit {LOSS}: {kept}."]
    )


def times() -> str:
    """Return a table of the median times of one call on a row of 10 logits."""
    pair = CASES["edge is a specialist"](np.random.default_rng(0), 2_000)
    edge, cloud = (logits.argmax(1) == pair.labels for logits in pair[:2])
    learned, foreign = (fit(pair.edge, edge, cloud, ood=ood) for ood in (False, True))
    rows = [row[None].astype(np.float32) for row in pair.edge[: size(200, 5)]]
    labels = [str(i) for i in range(CLASSES)]
    subjects: dict[str, Callable[[np.ndarray], object]] = {
        "msp, with the reading of the label": Reader("msp", labels=labels).read_one,
        "learned": lambda row: learned(row[0]),
        "learned, `ood`": lambda row: foreign(row[0]),
        "learned, with the reading of the label": Reader(learned, labels=labels).read_one,
    }
    lines = [f"| {name} | {taken * 1e6:.1f} |" for name, taken in medians(subjects, rows).items()]
    return "\n".join(["| one call, 10 classes | us |", "| --- | ---: |", *lines])


def main() -> None:
    """Read the options, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=size(100, 1))
    parser.add_argument("--sizes", type=int, nargs="+", default=size([500, 1000, 2500], [500]))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=size([*CASES], [*SPECIALISTS]))
    given = parser.parse_args()
    print(table(given.splits, given.sizes, given.seed, given.cases), times(), sep="\n\n")


if __name__ == "__main__":
    main()
