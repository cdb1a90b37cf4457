"""Frames: age of the edge's answer as it is shown, and frames dropped, at 5, 15 and 30 a second, with the cloud at 80 ms, and dead."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from figures import MODELS, size

from edgeroute import OnnxModel, PlainJson, Router
from edgeroute.router.live.frames import FrameStats
from edgeroute.testing import CannedServer, Relay, http_reply

RATES, RUN_S, RTT_S = size((5, 15, 30), (30,)), size(6.0, 0.5), 0.08
GOOD = http_reply(b'{"value": "Sneaker", "confidence": 0.99}')


def camera(images: Any, rate: float, seconds: float) -> Iterator[Any]:
    """Yield copies of images, `rate` a second for that time; one that is late does not make the next one so."""
    begun = time.monotonic()
    for number in range(round(rate * seconds)):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        yield images[number % len(images)].copy()


def measured(router: Router, images: Any, rate: float) -> tuple[list[float], FrameStats]:
    """Send a camera's frames through a router; return the ages of the first answers to frames, seconds, and the statistics."""
    ages, seen = [], set()
    with router.frames(camera(images, rate, RUN_S), scene=None) as frames:
        for update in frames:
            if update.frame_index not in seen:
                seen.add(update.frame_index)
                ages.append(update.age_s)
    return ages, frames.stats()


def main() -> None:
    """Print the table by cloud and rate. The threshold is one that no answer reaches: each frame asks for the cloud."""
    images = np.load(MODELS / "sample.npz")["images"]
    print(
        "| cloud | frames a second | overlay p50 | overlay p95 | dropped | refined |\n| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    with CannedServer(GOOD) as server, Relay("127.0.0.1", server.port) as relay, CannedServer(None) as silent:
        relay.delay_s = RTT_S / 2
        for name, url in (("80 ms", relay.url), ("refuses", "http://127.0.0.1:9"), ("never replies", silent.url)):
            for rate in RATES:
                cloud = PlainJson(url, encode=lambda x: {"input": x.tolist()})
                with Router(OnnxModel(MODELS / "edge.int8.onnx"), cloud, threshold=1.0) as router:
                    router.warm()
                    ages, stats = measured(router, images, rate)
                p50, p95 = statistics.median(ages), statistics.quantiles(ages, n=20)[-1]
                print(
                    f"| {name} | {rate} | {p50 * 1000:.1f} ms | {p95 * 1000:.1f} ms | {stats.dropped} of {stats.read} "
                    f"| {stats.refined} |"
                )


if __name__ == "__main__":
    main()
