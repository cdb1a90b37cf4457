from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated

import typer

from edgeroute.tools.cli.exits import INTERRUPTED, OK
from edgeroute.tools.cli.tables import Json, Log, Metrics, Policy, logged


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
    from edgeroute.tools.server.serve import named_model
    from edgeroute.tools.server.serve import serve as run

    files = [getattr(own, name)().cloud if name in own.NAMES and not Path(name).is_file() else name for name in models]
    found = [named_model(model) for model in files]
    names = [model.name for model in found]

    def ready(url: str) -> None:
        places = ", ".join(f"{url}/v2/models/{name}" for name in names)
        print(json.dumps({"ready": url, "models": names}) if as_json else f"serving {places}", flush=True)

    logged(log)
    ended = run(found, host=host, port=port, max_batch=max_batch, metrics=metrics, logs=log is not None, on_ready=ready)
    return INTERRUPTED if ended == signal.SIGINT else OK


def gateway(
    *,
    policy: Policy,
    host: Annotated[str, typer.Option(help="Where to listen; other than on this machine alone it takes a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8484,
    token_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with the token that clients send as OPENAI_API_KEY."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A further name by which clients call this machine; may be repeated.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="A further name of the model, beside edgeroute and the policy's; may be repeated.")
    ] = None,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Requests at a time; further ones get 429.")] = 64,
    metrics: Metrics = False,
    log: Log = None,
    as_json: Json = False,
) -> int:
    """Serves a policy's router to programs in any language, as OpenAI's API and over the Open Inference Protocol."""
    from edgeroute.record.request_log import RequestLog
    from edgeroute.tools.server.gateway import gateway as run

    logged(log)

    def ready(url: str) -> None:
        print(json.dumps({"ready": url}) if as_json else f"serving: export OPENAI_BASE_URL={url}/v1", flush=True)

    ended = run(
        policy, host=host, port=port, token_env=token_env, hosts=allow_host or (), names=name or (),
        max_concurrent=max_concurrent, on_ready=ready, metrics=metrics, instruments=[RequestLog()] if log else [],
    )  # fmt: skip
    return INTERRUPTED if ended == signal.SIGINT else OK
