from __future__ import annotations

import json
import signal
from typing import Annotated

import typer

from edgeroute.cli.exits import INTERRUPTED, OK
from edgeroute.cli.logs import Metrics
from edgeroute.cli.options import Json
from edgeroute.cli.watching import Record, State, Watched, watched


def dashboard(
    *,
    policy: Watched = None,
    record: Record = None,
    state: State = None,
    host: Annotated[str, typer.Option(help="Where to listen. There is no TLS: elsewhere the token can be read on the way.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8585,
    token_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Environment variable with the token, which the page asks for; else a new one is printed."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name by which browsers call this machine; may be repeated."),
    ] = None,
    metrics: Metrics = False,
    as_json: Json = False,
) -> int:
    """Shows on a local page what a router does: routes, reasons, drift, latencies, budgets, outbox, egress. Tries thresholds.

    Reads what the router's program writes, its trace and its state folder. Changes nothing.
    """
    from edgeroute.dashboard.run import serve
    from edgeroute.gateway.guard import token_of

    token = None if token_env is None else token_of(token_env)
    monitor = watched(policy, record, state)

    routes = []
    if metrics:
        from edgeroute.dashboard.metrics import route

        routes.append(route(monitor))

    def ready(url: str) -> None:
        url = url if token is None else url.partition("#")[0]  # the reader's own secret is not printed
        print(json.dumps({"ready": url}) if as_json else f"open {url}", flush=True)

    ended = serve(monitor, host=host, port=port, token=token, hosts=allow_host or (), routes=routes, on_ready=ready)
    return INTERRUPTED if ended == signal.SIGINT else OK
