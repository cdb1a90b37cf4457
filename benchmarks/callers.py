"""Throughput of many callers: what a deadline costs, with a cloud that takes its time."""

from __future__ import annotations

import statistics
import threading
import time

from figures import Figure, size, table

from edgeroute import Function, Router

CALLERS, CLOUD_S, DEADLINE_S, RUN_S, RUNS = 128, 0.05, 2.0, size(3.0, 0.2), size(3, 1)


def figures() -> list[Figure]:
    """Return the figure of answers a second of 128 callers with a deadline of 2 s, against none; the cloud takes 50 ms."""
    shares, ours, theirs = [], [], []
    for _ in range(RUNS):
        without, with_one = _throughput(None), _throughput(DEADLINE_S)
        shares.append(without / with_one)
        ours.append(with_one)
        theirs.append(without)
    return [
        Figure(
            f"{CALLERS} callers, deadline {DEADLINE_S:g} s, cloud {CLOUD_S * 1000:.0f} ms, answers a second",
            f"{statistics.median(ours):.0f}",
            f"{statistics.median(theirs):.0f}",
            statistics.median(shares),
            "x fewer",
            1.11,
        )
    ]


def _throughput(deadline_s: float | None) -> float:
    """Return the answers of the cloud a second, of 128 threads that call one router for 3 s with that deadline."""

    def cloud(_: object) -> tuple[str, float]:
        time.sleep(CLOUD_S)
        return "cloud", 0.9

    with Router(lambda _: ("edge", 0.1), Function(cloud, max_concurrent=1000), threshold=0.8, deadline=deadline_s) as router:
        counts, begun = [0] * CALLERS, time.monotonic()

        def call(i: int) -> None:
            while time.monotonic() < begun + RUN_S:
                counts[i] += router.infer(i).source == "cloud"

        threads = [threading.Thread(target=call, args=(i,)) for i in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.monotonic() - begun)


if __name__ == "__main__":
    print(table(figures()))
