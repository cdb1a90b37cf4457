from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from edgeroute.cli.exits import INTERRUPTED, OK
from edgeroute.cli.logs import Log, Metrics, logged
from edgeroute.cli.options import Json


def serve(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Model files, each with its card beside it; `fashion`, which comes with edgeroute; module:name in Python.",
            show_default=False,
        ),
    ],
    *,
    host: Annotated[str, typer.Option(help="Where to listen; there is no authentication.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    max_batch: Annotated[int, typer.Option(min=1, help="Rows of several requests to merge into one run.")] = 32,
    metrics: Metrics = False,
    log: Log = None,
    as_json: Json = False,
) -> int:
    """Serves models over the Open Inference Protocol until Ctrl-C or SIGTERM. For demos, tests and small set-ups."""
    from edgeroute import models as own
    from edgeroute.serve.run import named
    from edgeroute.serve.run import serve as run

    files = [getattr(own, name)().cloud if name in own.NAMES and not Path(name).is_file() else name for name in models]
    found = [named(model) for model in files]
    names = [model.name for model in found]

    def ready(url: str) -> None:
        places = ", ".join(f"{url}/v2/models/{name}" for name in names)
        print(json.dumps({"ready": url, "models": names}) if as_json else f"serving {places}", flush=True)

    logged(log)
    ended = run(found, host=host, port=port, max_batch=max_batch, metrics=metrics, logs=log is not None, on_ready=ready)
    return INTERRUPTED if ended == signal.SIGINT else OK
