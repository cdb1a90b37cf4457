"""The monitor in real time: a service with metrics, log records as JSON, and signs of life for systemd."""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import AbstractContextManager
from email.message import Message
from time import sleep, time
from types import FrameType

from alarms import Alarm
from loopback import Reply, answering
from monitor import POLICY, Monitor, well
from prometheus_client import CollectorRegistry, Counter, Gauge
from sensor import recordings

from edgeroute import Prometheus, Router, metrics
from edgeroute.record.structured_logging import JsonFormatter
from edgeroute.tools.server.systemd_notices import Notify

log = logging.getLogger("monitor")


def run(source: str, *, every_s: float = 10.0, port: int = 9108) -> None:
    """Watch until the source ends, or Ctrl-C, SIGTERM or SIGHUP; log requests and alarms, serve metrics, and notify systemd.

    Args:
        source: as `sensor.recordings` takes it.
        every_s: seconds between recordings.
        port: of the metrics, on loopback; 0 takes a free one.

    Raises:
        SystemExit: it was told to end, the source cannot be read or ended, or the port is taken.
    """
    logged()
    registry = CollectorRegistry()
    alarm = Gauge("monitor_alarm", "1 while an alarm is on.", ["kind"], registry=registry)
    windows = Counter("monitor_windows", "Windows, by what the latest answer says.", ["value"], registry=registry)

    ending = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        if not ending:  # another signal must not cut the router's close short
            ending = True
            raise SystemExit(0)  # also out of a read from a sensor that has gone silent

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as it is below nohup
            signal.signal(number, end)
    given = recordings(source)  # first: without a source the service is not ready
    with (
        Router.from_policy(POLICY, score=well, instruments=[Prometheus(registry=registry)]) as router,
        scraped(router, port) as at,
        Notify() as notify,
    ):
        monitor = Monitor(router)
        log.info("metrics at %s/metrics", at)
        notify.ready("watching")
        try:
            for recording in given:
                before = monitor.alarms.now
                for answer in monitor.see(time() / 3600, recording).answers:
                    windows.labels(answer.value).inc()
                told(alarm, before, monitor.alarms.now)
                notify.alive()
                sleep(every_s)
        finally:
            ending = True


def told(gauge: Gauge, before: Alarm | None, now: Alarm | None) -> None:
    """Log an alarm that went off, ended, or has a name now, and set the gauge; nothing if it is as before."""
    if now == before:
        return
    gauge.clear()
    if now is None:
        log.warning("the alarm is over")
    else:
        log.warning("alarm: %s", now.kind)
        gauge.labels(now.kind).set(1)


def scraped(router: Router[str], port: int) -> AbstractContextManager[str]:
    """Serve the metrics on loopback -> the address, to which `/metrics` belongs.

    Raises:
        SystemExit: the port is taken, or is no port.
    """

    def get(path: str, headers: Message) -> Reply | None:
        return Reply(*metrics(router, headers.get("Accept", ""))) if path == "/metrics" else None

    return answering(port, get)


def logged() -> None:
    """Write requests, alarms and warnings as lines of JSON to stderr from now on, which systemd keeps in its journal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    for name in ("edgeroute", "monitor"):
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(logging.INFO)
