"""`infer_many` of 256 inputs against 256 calls of `infer`, 30 % deferred to `edgeroute serve` on loopback; both take turns in one run.

With models that take no time, so that what is timed is the router and the way to the cloud; and with the shipped ones. Of those the
larger takes 1 ms an image on one core, alone or in a batch, so no way of asking is much faster than another: what a batch spares
is then a part of little. A server with a GPU, whose batches take hardly longer than one input, is nearer to the first.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cloud import model, server
from figures import MODELS, Figure, size, table, timed

from edgeroute import Router

INPUTS, PIXELS, DEFERRED, RUNS, GOAL = size(256, 16), 28 * 28, 0.3, size(15, 1), 0.2


def taken(router: Router[Any], inputs: list[Any], runs: int) -> tuple[float, float, float]:
    """Return the median seconds of all inputs, one by one and at once, and the share that the cloud answered.

    The two ways take turns; fails unless both answer alike.
    """
    ways: tuple[Callable[[], list[Any]], ...] = (lambda: [router.infer(x) for x in inputs], lambda: router.infer_many(inputs))
    seen: list[list[float]] = [[], []]
    answers = [way() for way in ways]
    assert [a.value for a in answers[0]] == [a.value for a in answers[1]], "both ways answer alike"
    for _ in range(runs):
        for way, seconds in zip(ways, seen, strict=True):
            begun = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - begun)
    share = sum(answer.source == "cloud" for answer in answers[1]) / len(inputs)
    return statistics.median(seen[0]), statistics.median(seen[1]), share


def compared(name: str, edge: Path, url: str, inputs: list[Any], limit: float, runs: int) -> Figure:
    """Return the time of a batch as a share of that of single calls, with a threshold that `DEFERRED` of the inputs do not reach."""
    with Router(edge, None) as router:
        threshold = float(np.quantile([router.infer(x).confidence or 0.0 for x in inputs], DEFERRED))
    with Router(edge, url, threshold=threshold) as router:
        single_s, many_s, share = taken(router, inputs, runs)
    label = f"infer_many({len(inputs)}), {name}, {share:.0%} by the cloud"
    return timed(label, many_s, single_s, limit, shown="ms", by="ratio")


def figures(runs: int = RUNS) -> list[Figure]:
    """Return the figures of models that take no time, for which a fifth of the time is the goal, and of the shipped ones."""
    with np.load(MODELS / "sample.npz") as data:
        images = list(data["images"][:INPUTS])
    noise = np.random.default_rng(0).integers(0, 8, (INPUTS, PIXELS), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        model(path := Path(folder, "ten.onnx"), PIXELS)
        with server(path) as url:
            found = [compared("models that take no time", path, f"{url}/v2/models/ten", list(noise), GOAL, runs)]
    with server(MODELS / "cloud.onnx") as url:
        large = f"{url}/v2/models/fashion-large"
        return [*found, compared("the shipped models", MODELS / "edge.int8.onnx", large, images, 1.0, runs)]


if __name__ == "__main__":
    print(table(figures()))
