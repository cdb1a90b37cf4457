"""Cost of metrics in a routed call, and of a scrape."""

from __future__ import annotations

import time

import numpy as np
from figures import MODELS, Figure, medians, size, table, timed

from edgeroute import Options, Prometheus, Router, metrics

SCRAPES, MEANS = size(50, 1), size(30, 1)


def figures() -> list[Figure]:
    """Return an accepted `infer` with and without `Prometheus`, of a callable and of the shipped model; and the time of a scrape."""

    def never(_: object) -> object:
        raise AssertionError("nothing is deferred here")

    found = []
    images = list(np.load(MODELS / "sample.npz")["images"][: size(200, 5)])
    for name, edge in (("a callable", lambda _: ("edge", 1.0)), ("the shipped model", MODELS / "edge.int8.onnx")):
        with (
            Router(edge=edge, cloud=never, threshold=0.0) as plain,
            Router(edge=edge, cloud=never, threshold=0.0, options=Options(instruments=[Prometheus()])) as counted,
        ):
            times = medians({"plain": plain.infer, "counted": counted.infer}, images)
            found.append(timed(f"accepted `infer` of {name}, metrics on", times["counted"], times["plain"], 5))
            plain_s, counted_s = _means_s(images, plain, counted)
            found.append(timed(f"accepted `infer` of {name}, metrics on, mean with counting", counted_s, plain_s, 5))
            begun = time.perf_counter()
            for _ in range(SCRAPES):
                body = metrics(counted).body
            ms = (time.perf_counter() - begun) / SCRAPES * 1000
    found.append(Figure("a scrape", f"{ms:.2f} ms", f"{len(body) / 1000:.0f} KB", ms, "ms", 10))
    return found


def _means_s(images: list[np.ndarray], *routers: Router) -> list[float]:
    """Return each router's least mean time of a call, seconds: requests are counted 64 at a time, which a median does not see."""
    best = [float("inf")] * len(routers)
    for _ in range(MEANS):
        for i, router in enumerate(routers):
            begun = time.perf_counter()
            for x in images:
                router.infer(x)
            best[i] = min(best[i], time.perf_counter() - begun)
    return [seconds / len(images) for seconds in best]


if __name__ == "__main__":
    print(table(figures()))
