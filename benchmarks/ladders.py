"""Broken promises of a ladder of edges, on three trained models: `python benchmarks/ladders.py [folder of Fashion-MNIST]`.

The first edge is a softmax regression on pixels, trained here; the second and the cloud are the shipped pair. The 10,000 test images
are the population, so a threshold's true loss is known. Both edges are calibrated on the same examples, drawn with replacement: the
second on those of them that the first defers, as `router.calibrate(X, y, edge=1)` does. Then both are calibrated at once, as by `edge="all"`.
"""

from __future__ import annotations

import sys
import warnings
from math import inf
from pathlib import Path

import numpy as np
import onnxruntime
from figures import needs, size

from edgeroute import models
from edgeroute.confidence import NotEnough, calibrate, msp
from edgeroute.tools.cli.demo_measurements_and_report import DEBIAN, read_idx
from edgeroute.tools.measure.thresholds_of_several_edges import accepting, lowest_thresholds

DRAWS, TESTED = size(300, 2), size(10_000, 500)
STEPS, RATE, TRAINED_ON = size(150, 2), 0.5, 20_000


def regression(folder: Path, tested: np.ndarray) -> np.ndarray:
    """Train a softmax regression on pixels by plain gradient descent, and return its logits [n, 10] of the tested images."""

    def pixels(x: np.ndarray) -> np.ndarray:
        return np.c_[x.reshape(len(x), -1) / np.float32(255), np.ones(len(x), np.float32)].astype(np.float32)

    x, right = (
        pixels(read_idx(folder / "train-images-idx3-ubyte.gz")[:TRAINED_ON]),
        np.eye(10, dtype=np.float32)[read_idx(folder / "train-labels-idx1-ubyte.gz")[:TRAINED_ON]],
    )
    weights = np.zeros((x.shape[1], 10), np.float32)
    for _ in range(STEPS):
        likely = np.exp(x @ weights - (x @ weights).max(1, keepdims=True))
        weights -= RATE * (x.T @ (likely / likely.sum(1, keepdims=True) - right)) / len(x)
    return pixels(tested) @ weights


def logits(path: Path, tested: np.ndarray) -> np.ndarray:
    """Logits [n, 10] of a model that takes pixels."""
    session = onnxruntime.InferenceSession(path)
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: tested[i : i + 500]})[0] for i in range(0, len(tested), 500)])


def broken(first: np.ndarray, second: np.ndarray, cloud: np.ndarray, y: np.ndarray, kind: str, limit: float, n: int) -> str:
    """Return a row: shares of calibrations that broke the guarantee of each edge, and of all inputs deferred to the cloud.

    The second edge is calibrated on the examples that the first defers; if these are too few, it accepts nothing.
    """
    score, later = msp(first), msp(second)
    one, two, right = (each.argmax(1) == y for each in (first, second, cloud))
    rng, failed, deferred = np.random.default_rng(0), np.zeros(2), []
    for _ in range(DRAWS):
        rows = rng.integers(0, len(y), n)
        against = right if kind == "max_loss" else None
        own = calibrate(score[rows], one[rows], None if against is None else against[rows], **{kind: limit}).threshold
        rows = rows[score[rows] < own]
        try:
            own_later = calibrate(later[rows], two[rows], None if against is None else against[rows], **{kind: limit}).threshold
        except NotEnough:
            own_later = inf
        reach = score < own
        kept = reach & (later >= own_later)
        for i, (accepted, correct, of) in enumerate(((~reach, one, ~reach | reach), (kept, two, reach))):
            harm, win = (accepted & right & ~correct).sum(), (accepted & correct & ~right).sum()
            true = (harm - win) / max(1, of.sum()) if kind == "max_loss" else (accepted & ~correct).sum() / max(1, accepted.sum())
            failed[i] += true > limit
        deferred.append((reach & ~kept).mean())
    return f"| `{kind}={limit:g}` | {n:,} | {failed[0] / DRAWS:.1%} | {failed[1] / DRAWS:.1%} | {np.mean(deferred):.1%} |"


def together(first: np.ndarray, second: np.ndarray, cloud: np.ndarray, y: np.ndarray, limit: float, n: int) -> str:
    """Return a row of thresholds that are set at once: the share of calibrations that broke the guarantee, and the deferral."""
    scores = np.column_stack([msp(first), msp(second)])
    one, two, right = (each.argmax(1) == y for each in (first, second, cloud))
    loss = np.column_stack([right * 1.0 - one, right * 1.0 - two])
    rng, truths = np.random.default_rng(0), []
    for _ in range(DRAWS):
        rows = rng.integers(0, len(y), n)
        model = accepting(scores, lowest_thresholds(limit, 0.05, scores[rows], loss[rows], wins=True).thresholds)
        lost = np.where(model < 2, loss[np.arange(len(y)), np.minimum(model, 1)], 0).mean()
        truths.append((lost > limit, (model == 2).mean()))
    failed, deferred = np.mean(truths, 0)
    return f"| `max_loss={limit:g}` of both together | {n:,} | {failed:.1%} | | {deferred:.1%} |"


def main(folder: Path) -> None:
    """Train the first edge, and print the accuracies and the table."""
    needs(folder.is_dir(), f"Fashion-MNIST in {folder}: apt-get install dataset-fashion-mnist")
    x, y = (read_idx(folder / f"t10k-{kind}-ubyte.gz")[:TESTED] for kind in ("images-idx3", "labels-idx1"))
    pair = models.fashion()
    found = regression(folder, x), logits(pair.edge, x), logits(pair.cloud, x)
    print("accuracy:", ", ".join(f"{(each.argmax(1) == y).mean():.2%}" for each in found))
    print("\n| guarantee of each edge | examples | broken, first | broken, second | deferred to the cloud |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind, limit in (("max_loss", 0.01), ("max_loss", 0.02), ("max_error", 0.05)):
        for n in (2000, 5000):
            print(broken(*found, y, kind, limit, n), flush=True)
    for limit in (0.01, 0.02):
        for n in (2000, 5000):
            print(together(*found, y, limit, n), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*repeat the score")  # they are drawn with replacement
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN)
