"""Monitors of real routers, and their page on uvicorn in a thread."""

from __future__ import annotations

import contextlib
import threading

from edgeroute.tools.dashboard.dashboard_data_and_tail import Monitor, Sources, TraceFile

LONG = 120.0
EVIL = "<script>globalThis.evil = 1</script><img src=x onerror='globalThis.evil = 1'>"


@contextlib.contextmanager
def page_of(monitor, **more):
    """-> the page's address, with its token."""
    from edgeroute.tools.dashboard.web_app_and_metrics import serve

    ready, found, stops, failed = threading.Event(), [], [], []

    def run():
        try:
            serve(monitor, port=0, on_ready=lambda url: (found.append(url), ready.set()), stops=stops.append, **more)
        except BaseException as e:  # noqa: BLE001 - raised below
            failed.append(e)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(LONG)
        if failed:
            raise failed[0]
        yield found[0]
    finally:
        for stop in stops:
            stop()
        thread.join(LONG)
        assert not thread.is_alive()


class Records:
    """A feed of what a test adds."""

    name, error, raised = "a test", "", None

    def __init__(self, records=()):
        self.fresh = list(records)

    def take(self):
        """What was added."""
        while self.fresh:
            yield self.fresh.pop(0)

    def lost(self):
        """None."""
        return 0

    def close(self):
        """Nothing to end."""


def monitor_of(records, **told):
    """A monitor that has read these records."""
    monitor = Monitor(Records(records), Sources(**told), "a test")
    monitor.poll()
    return monitor


def monitor_of_file(path, **told):
    """A monitor of a trace's file."""
    return Monitor(TraceFile(path), Sources(**told), "a test")
