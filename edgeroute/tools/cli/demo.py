"""Command `edgeroute demo`: starts a cloud on this machine in a process, routes images through it, and shows the gain."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from edgeroute.errors import Unreachable
from edgeroute.tools.cli.tables_and_options import Json, Seconds, share

if TYPE_CHECKING:
    from edgeroute.router.router import Router
    from edgeroute.tools.cli.demo_measurements_and_report import Report

# With more images than the first number, "cloud alone" sends only the second number singly, and the rest in batches.
MANY, SINGLY = 2_000, 1_000
WITH_RTT = 500  # default number of images with a long round trip
START_S = 60.0
LAST = 5  # last lines of the server's output to show if it does not start
# Program of the server: the command line, which ends once standard input does, as it does with the demo, however that ends.
_SERVER = """
import os, runpy, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
runpy.run_module("edgeroute", run_name="__main__", alter_sys=True)
"""


def demo(
    *,
    n: Annotated[int | None, typer.Option("--n", min=1)] = None,
    rtt: Seconds | None = None,
    data: Path | None = None,
    out: Annotated[Path | None, typer.Option(show_default="edgeroute-demo")] = None,
    max_defer: Annotated[float, typer.Option(parser=share, metavar="SHARE", show_default="20%")] = 0.2,
    as_json: Json = False,
) -> None:
    """Start a cloud on this machine, route images through it, and show the gain.

    Args:
        n: Number of images; default: all, 500 with --rtt.
        rtt: Time to add to each round trip, as in 80ms.
        data: The folder with Fashion-MNIST's t10k-*.gz.
        out: Folder for curve.png and report.html; with --json they are written only if it is given.
        max_defer: Largest share that may be deferred.

    Creates the folder before the run, and stops the server after it.
    """
    from edgeroute.tools.cli.demo_measurements_and_report import show

    folder = out or (None if as_json else Path("edgeroute-demo"))
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:  # fail before the run, not after it
            raise typer.BadParameter(f"{folder}: {e.strerror}", param_hint="--out") from e
    show(run(n=n, rtt=rtt or 0.0, data=data, most=max_defer), folder, as_json=as_json)


def run(*, n: int | None, rtt: float, data: Path | None, most: float) -> Report:
    """Start a server process, measure edge, cloud and cascade on images, stop the server, and return the report.

    The threshold is chosen on stored validation results. Shows a progress bar; SIGTERM stops the server too.

    Args:
        n: number of images; None: all, or 500 with an `rtt`. A number above all is all.
        rtt: seconds added to each round trip.
        data: folder with the test images; None: their standard location.
        most: share of the validation images, 0..1, that the threshold may defer.

    Raises:
        ModelMissing, BadInput: a file is missing or invalid.
        Unreachable, NoAnswer, CloudError: the server cannot be started or called.
    """
    from edgeroute.models import fashion
    from edgeroute.router.router import Router
    from edgeroute.tools.cli import demo_measurements_and_report as results
    from edgeroute.tools.measure.report.progress_bar import bar

    pair = fashion()
    folder = pair.edge.parent
    test = results.test_images(folder, data)
    n = min(n or (WITH_RTT if rtt else len(test.images)), len(test.images))
    test = test._replace(images=test.images[:n], labels=test.labels[:n])
    validated = results.validation(folder)
    goal = float(validated.cloud_right.mean()) - results.SLACK
    choice = results.choose(results.sweep(*validated), goal=goal, most=most)
    singly = n if n <= MANY else SINGLY
    with _exit_on_sigterm(), serving(pair.cloud) as (url, name), _link(url, rtt) as base, bar() as progress:
        model = f"{base}/v2/models/{name}"

        def over(what: str, router: Router, singly: int = n) -> results.Run:
            """Answer all images with this router, advance a progress bar, and close the router."""
            task = progress.add_task(what, total=n)
            advance = partial(progress.advance, task)
            return results.measure(router, test.images, test.labels, singly=singly, advance=advance)

        edge = over("edge alone", Router(pair.edge, mode="only_edge"))
        cloud = over("cloud alone", Router(cloud=model, mode="only_cloud"), singly)
        cascade = over("cascade", Router(pair.edge, model, threshold=choice.threshold))
    return results.Report(test, edge, cloud, cascade, choice, len(validated.confidence), most, singly, rtt)


@contextmanager
def _link(url: str, rtt: float) -> Iterator[str]:
    """Provide the URL of a relay to `url` that adds half of `rtt` seconds each way; it is stopped at the end of the `with` block.

    Without `rtt` no relay is started, and the URL is `url` itself.
    """
    if not rtt:
        yield url
        return
    from edgeroute.testing import Relay

    to = urlsplit(url)
    with Relay(str(to.hostname), to.port or 80) as relay:
        relay.delay_s = rtt / 2
        yield relay.url


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM raise `SystemExit` (143) in the `with` block, so that the server is stopped; restore the handler after it.

    Does nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def serving(model: Path) -> Iterator[tuple[str, str]]:
    """Serve a model on a free port in a child process, `edgeroute serve`; yield its URL and the model's name.

    Waits up to 60 s for the server's first line. The process is always killed at the end of the `with` block, and ends by itself
    if this process is killed.

    Raises:
        Unreachable: it did not start; with the end of its output.
    """
    command = [sys.executable, "-c", _SERVER, "serve", str(model), "--port", "0", "--json"]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,  # noqa: S603 - this Python
    ):
        try:
            first_message = json.loads(_first_line(process, log))
            yield first_message["ready"], first_message["models"][0]
        finally:
            process.kill()  # it has no data to save, and a graceful end may take longer than Ctrl-C should
            process.wait()  # after a Ctrl-C the `with` block itself would wait for a quarter of a second alone


def _first_line(process: subprocess.Popen[str], log: IO[str]) -> str:
    """Wait for the server's first line and return it. A server without one after 60 s is killed.

    Raises:
        Unreachable: it ended without a line; with its exit code and the last lines of `log`.
    """
    assert process.stdout is not None, "it is a pipe"
    timer = threading.Timer(START_S, process.kill)  # the read itself has no timeout
    timer.start()
    try:
        line = process.stdout.readline()
    finally:
        timer.cancel()
    if not line:
        code = process.wait()
        log.seek(0)
        words = "".join(f"\n  {text}" for text in log.read().splitlines()[-LAST:])
        raise Unreachable(f"the server did not start, and ended with exit code {code}{words and '; its last lines:'}{words}")
    return line
