"""The demo from its files to its report."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from edgeroute.cli.demo.data import shipped, test_images, validation
from edgeroute.cli.demo.measure import Run, measure
from edgeroute.cli.demo.report import SLACK, Report
from edgeroute.cli.demo.server import serving
from edgeroute.cli.demo.threshold import choose, sweep
from edgeroute.cli.progress import bar
from edgeroute.router.router import Router

MANY, SINGLY = 2_000, 1_000
"""From more images than the first on, the cloud alone is sent so many singly, and the rest in batches."""
WITH_RTT = 500
"""Images where a round trip takes long, unless another number is asked for."""


def run(*, n: int | None, rtt: float, data: Path | None, most: float) -> Report:
    """Starts a server, measures, ends it.

    Args:
        n: images; None: all, or 500 with an `rtt`. More than there are: all.
        rtt: seconds to add to each round trip.
        data: the folder with the test images; None: where they usually are.
        most: the share, 0..1, that the threshold may defer on the validation images.

    Raises:
        ModelMissing, BadInput: a file is missing or is not what it should be.
        Unreachable, NoAnswer, CloudError: the server cannot be started or asked.
    """
    folder = shipped()
    test = test_images(folder, data)
    n = min(n or (WITH_RTT if rtt else len(test.images)), len(test.images))
    test = test._replace(images=test.images[:n], labels=test.labels[:n])
    known = validation(folder)
    choice = choose(sweep(*known), goal=float(known.cloud_right.mean()) - SLACK, most=most)
    edge_file = folder / "edge.int8.onnx"
    singly = n if n <= MANY else SINGLY
    with _ended_by_sigterm(), serving(folder / "cloud.onnx") as (url, name), _link(url, rtt) as base, bar() as progress:
        model = f"{base}/v2/models/{name}"

        def over(what: str, router: Router, singly: int = n) -> Run:
            task = progress.add_task(what, total=n)
            return measure(router, test.images, test.labels, singly=singly, advance=lambda count: progress.advance(task, count))

        edge = over("edge alone", Router(edge_file, mode="only_edge"))
        cloud = over("cloud alone", Router(cloud=model, mode="only_cloud"), singly)
        cascade = over("cascade", Router(edge_file, model, threshold=choice.threshold))
    return Report(test, edge, cloud, cascade, choice, len(known.confidence), most, singly, rtt)


@contextmanager
def _link(url: str, rtt: float) -> Iterator[str]:
    """A URL that leads to the server at `url`, by a way that takes `rtt` seconds there and back."""
    if not rtt:
        yield url
        return
    from edgeroute.testing import Relay

    to = urlsplit(url)
    with Relay(str(to.hostname), to.port or 80) as relay:
        relay.delay_s = rtt / 2
        yield relay.url


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM unwinds what is inside; by default it would leave the server behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
