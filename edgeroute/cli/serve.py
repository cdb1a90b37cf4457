from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json


def serve(
    models: Annotated[
        list[Path],
        typer.Argument(
            metavar="MODEL...",
            help=".onnx files, each with its card beside it; or `fashion`, a model that comes with edgeroute.",
            show_default=False,
        ),
    ],
    *,
    host: Annotated[str, typer.Option(help="Where to listen; there is no authentication.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    max_batch: Annotated[int, typer.Option(min=1, help="Rows of several requests to merge into one run.")] = 32,
    as_json: Json = False,
) -> int:
    """Serves models over the Open Inference Protocol until Ctrl-C or SIGTERM. For demos, tests and small set-ups."""
    from edgeroute import models as own
    from edgeroute.edge.card import Card
    from edgeroute.serve.run import serve as run

    models = [getattr(own, str(path))().cloud if str(path) in own.NAMES and not path.is_file() else path for path in models]
    names = [Card.beside(path).name or path.stem for path in models]

    def ready(url: str) -> None:
        places = ", ".join(f"{url}/v2/models/{name}" for name in names)
        print(json.dumps({"ready": url, "models": names}) if as_json else f"serving {places}", flush=True)

    run(models, host=host, port=port, max_batch=max_batch, on_ready=ready)
    return OK
