"""How programs that serve log: as Python does, or each record as a line of JSON or text."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Literal

import typer

Form = Literal["text", "json"]
Log = Annotated[
    Form | None,
    typer.Option("--log", help="Log each request too, with its id, on stderr. Without it warnings and errors alone."),
]
Metrics = Annotated[
    bool,
    typer.Option("--metrics", help="Have /metrics, for Prometheus: pip install 'edgeroute[prometheus]'."),
]


def logged(form: Form | None) -> None:
    """Has the process log in this form on stderr; None: as it does."""
    if form is None:
        return
    from edgeroute.record.request_log import JsonFormatter

    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s %(request)s", defaults={"request": ""})
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("edgeroute").setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
