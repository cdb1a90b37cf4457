"""Age of the device's words as they are drawn, and number of frames passed over. `python main.py bench`."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from typing import Any

import main as program
from overlay import Overlay, painted
from scene import EACH_S, frame_at
from words import letters

from edgeroute.testing import CannedServer, Relay, http_reply

RATES, RTT_S = (5, 15, 30), 0.08
WORDS = [{"text": "Ausgang", "says": "Exit", "box": [[90, 90], [400, 90], [400, 150], [90, 150]], "score": 0.99}]
"""A cloud elsewhere takes none of this processor: so its reading is canned, and the way there is delayed."""


def camera(frames: list[Any], rate: float, seconds: float) -> Iterator[Any]:
    """Yield copies of frames, `rate` a second for so long; one that is late does not make the next one so."""
    begun = time.monotonic()
    for number in range(round(rate * seconds)):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        yield frames[int(number / rate * max(RATES)) % len(frames)].copy()


def measured(router: Any, frames: list[Any], rate: float, seconds: float) -> tuple[list[float], Any]:
    """Read a camera's frames; return the seconds from each one's arrival until the device's words are drawn, and statistics."""
    overlay, ages, seen = Overlay(), [], set()
    with router.frames(
        camera(frames, rate, seconds), scene=None, hold=program.HOLD, stale=program.STALE_S, label=letters, data_class="scene"
    ) as updates:
        for update in program.answered(updates):
            painted(overlay.take(update))
            if update.frame_index not in seen:
                seen.add(update.frame_index)
                ages.append(time.monotonic() - update.at)
    return ages, updates.stats()


def main(arguments: list[str]) -> None:
    """Read the options, and print the table by cloud and rate.

    Each frame that can be asks for the cloud: the threshold is more than any word reaches.
    """
    parser = argparse.ArgumentParser(prog="main.py bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each line of the table")
    given = parser.parse_args(arguments)
    frames = [frame_at(number / max(RATES)) for number in range(round(2 * EACH_S * max(RATES)))]  # of two signs
    reply = http_reply(json.dumps({"words": WORDS, "confidence": 0.99}).encode())
    print("| cloud | frames a second | overlay p50 | overlay p95 | read | passed over | refined |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with CannedServer(reply) as server, Relay("127.0.0.1", server.port) as relay, CannedServer(None) as silent:
        relay.delay_s = RTT_S / 2
        for name, url in (("80 ms", relay.url), ("refuses", "http://127.0.0.1:9"), ("never replies", silent.url)):
            for rate in RATES:
                with program.router_of(program.POLICY, f"{url}/read", threshold=1.0, limits=None) as router:
                    router.warm()
                    ages, stats = measured(router, frames, rate, given.seconds)
                told = "- | -"  # of one frame there is no p95
                if len(ages) > 1:
                    told = f"{statistics.median(ages) * 1000:.0f} ms | {statistics.quantiles(ages, n=20)[-1] * 1000:.0f} ms"
                print(
                    f"| {name} | {rate} | {told} | {stats.answered} | {stats.dropped} of {stats.read} | {stats.refined} |",
                    flush=True,
                )
