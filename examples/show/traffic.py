"""A router with traffic whose cloud is away for a part of each minute, and its dashboard: `python examples/show/traffic.py`."""

from __future__ import annotations

import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from edgeroute import Cache, Egress, Function, OnnxModel, Options, Outbox, Router, Unreachable, models
from edgeroute.tools.dashboard.in_process import Dashboard

AWAY_S, ROUND_S, PAUSE_S = 20, 60, 0.1
"""Seconds at the end of each round in which the cloud is away; of a round; between requests."""


def main() -> None:
    """Ask the router without end, with the cloud away for 20 s of each minute, and serve its dashboard, until Ctrl-C."""
    pair, begun, dashboard = models.fashion(), time.monotonic(), Dashboard()
    large, images = OnnxModel(pair.cloud), pair.images

    def cloud(image: Any) -> Any:
        if (time.monotonic() - begun) % ROUND_S > ROUND_S - AWAY_S:
            raise Unreachable("the cloud of this example is away")
        return large.run([image])[0]

    with suppress(KeyboardInterrupt), TemporaryDirectory() as state, Router(
        pair.edge, Function(cloud, name="cloud", kind="logits", version="1"), threshold=0.85, state=state, offline="queue",
        outbox=Outbox(Path(state, "outbox.db"), spread_s=0),  # one device alone: what waited is sent once the cloud is back
        cache=Cache(), egress=Egress(may_leave=["goods"], never_leave=["private"]), options=Options(instruments=[dashboard]),
    ) as router:  # fmt: skip
        print(f"the dashboard: {dashboard.serve(router)}", flush=True)
        for number in count():
            image = images[number % (len(images) if number % 9 else 45)].copy()
            if number % 9:
                image[0, :2] = divmod(number % 65536, 256)  # another one each time; of the others the answers are in the cache
            router.infer(image, data_class="goods" if number % 6 else "private")
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
