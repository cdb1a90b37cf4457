"""Labels that `calibrate` reads on demand, against all, and that both give the same threshold: `python benchmarks/labels.py [draws]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from figures import MODELS, size

from edgeroute.confidence import msp
from edgeroute.tools.measure.threshold_calibration_and_crossfit import calibrate

SIZES = size((1000, 2000, 5000), (500,))
EPS = (0.005, 0.01, 0.02)
DRAWS = size(50, 2)


class Pair(NamedTuple):
    """Answers of edge and cloud to the same inputs."""

    name: str
    score: np.ndarray
    """[n], confidences of the edge."""
    edge: np.ndarray
    """[n], classes."""
    cloud: np.ndarray
    labels: np.ndarray


def pairs() -> Iterator[Pair]:
    """Yield the shipped pair on its validation images; and two classifiers of scikit-learn, trained here, on its digits."""
    with np.load(MODELS / "validation.npz") as file:
        edge, cloud, labels = file["edge_logits"], file["cloud_logits"], file["labels"]
    yield Pair("Fashion-MNIST, the shipped pair", msp(edge), edge.argmax(1), cloud.argmax(1), labels)
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    train, rest = order[:600], order[600:]
    small = LogisticRegression(max_iter=500).fit(x[train[:150], ::2], y[train[:150]])
    large = SVC().fit(x[train], y[train])
    yield Pair(
        "digits, logistic regression and SVC", small.predict_proba(x[rest, ::2]).max(1), small.predict(x[rest, ::2]),
        large.predict(x[rest]), y[rest],
    )  # fmt: skip


def rows(pair: Pair, draws: int) -> Iterator[str]:
    """Yield a row of the table for each number of examples and limit, over random draws with replacement.

    A row says how many labels were read, and how often the threshold is that of all labels. Too few examples give no row.
    """
    edge, cloud = pair.edge == pair.labels, pair.cloud == pair.labels
    agree, harm = pair.edge == pair.cloud, cloud * 1.0 - edge
    for n in SIZES:
        for eps in EPS:
            read, differ, same, deferred = [], [], 0, []
            for seed in range(draws):
                drawn = np.random.default_rng([seed, n]).integers(0, len(agree), n)
                seen: list[int] = []

                def losses(rows: np.ndarray, drawn: np.ndarray = drawn, seen: list[int] = seen) -> np.ndarray:
                    """Reads labels."""
                    seen.extend(rows.tolist())
                    return harm[drawn[rows]]

                if n * eps < 3:
                    continue
                full = calibrate(pair.score[drawn], edge[drawn], cloud[drawn], max_loss=eps, notes=[])
                few = calibrate(pair.score[drawn], agree[drawn], max_loss=eps, notes=[], read=losses)
                same += few.threshold == full.threshold
                read.append(len(seen))
                differ.append(np.count_nonzero(~agree[drawn]))
                deferred.append(full.deferral_rate)
            if read:
                yield (
                    f"| {pair.name} | {n:,} | {eps:.1%} | {np.mean(deferred):.1%} | {np.mean(differ):.0f} | {np.mean(read):.0f} | "
                    f"{max(read)} | {same} of {len(read)} |"
                )


def main() -> None:
    """Print the table, with so many draws as the command line says."""
    draws = int(sys.argv[1]) if len(sys.argv) > 1 else DRAWS
    print("| pair | examples | max_loss | deferred | edge and cloud differ | labels read, mean | most | same threshold |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for pair in pairs():
        for row in rows(pair, draws):
            print(row, flush=True)


if __name__ == "__main__":
    main()
