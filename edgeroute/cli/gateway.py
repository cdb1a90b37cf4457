from __future__ import annotations

import json
import signal
from typing import Annotated

import typer

from edgeroute.cli.exits import INTERRUPTED, OK
from edgeroute.cli.logs import Log, Metrics, logged
from edgeroute.cli.options import Json, Policy


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
    from edgeroute.gateway.run import gateway as run
    from edgeroute.record.request_log import RequestLog

    logged(log)

    def ready(url: str) -> None:
        print(json.dumps({"ready": url}) if as_json else f"serving: export OPENAI_BASE_URL={url}/v1", flush=True)

    ended = run(
        policy, host=host, port=port, token_env=token_env, hosts=allow_host or (), names=name or (),
        max_concurrent=max_concurrent, on_ready=ready, metrics=metrics, instruments=[RequestLog()] if log else [],
    )  # fmt: skip
    return INTERRUPTED if ended == signal.SIGINT else OK
