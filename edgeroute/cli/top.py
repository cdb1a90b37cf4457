from __future__ import annotations

from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json
from edgeroute.cli.watching import Record, State, Watched, watched


def top(*, policy: Watched = None, record: Record = None, state: State = None, as_json: Json = False) -> int:
    """Shows in the terminal what a router does; q ends it. --json: once, for programs.

    Reads what the router's program writes, its trace and its state folder. Changes nothing.
    """
    monitor = watched(policy, record, state)
    if as_json:
        monitor.poll()
        print(monitor.text().decode())
        monitor.close()
        return OK
    from edgeroute.dashboard.top import run

    run(monitor)
    return OK
