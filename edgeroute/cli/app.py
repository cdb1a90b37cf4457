"""The `edgeroute` command: its subcommands and common behaviour."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeroute import __version__
from edgeroute.cli.arms import arms
from edgeroute.cli.calibrate import calibrate
from edgeroute.cli.check import check
from edgeroute.cli.dashboard import dashboard
from edgeroute.cli.decide import decide
from edgeroute.cli.demo.command import demo
from edgeroute.cli.docs import docs
from edgeroute.cli.egress import egress
from edgeroute.cli.evaluate import evaluate
from edgeroute.cli.exits import CODES, exits
from edgeroute.cli.export import export
from edgeroute.cli.gateway import gateway
from edgeroute.cli.infer import infer
from edgeroute.cli.inspect import inspect
from edgeroute.cli.outbox import outbox
from edgeroute.cli.prune import prune
from edgeroute.cli.publish import models
from edgeroute.cli.quantize import quantize
from edgeroute.cli.recertify import recertify
from edgeroute.cli.replay import replay
from edgeroute.cli.schema import schema
from edgeroute.cli.sensors import sensors
from edgeroute.cli.serve import serve
from edgeroute.cli.simulate import simulate
from edgeroute.cli.simulate_load import load
from edgeroute.cli.status import status
from edgeroute.cli.top import top

app = typer.Typer(
    name="edgeroute",
    epilog=CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"edgeroute {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Runs a model on the edge, and defers to the cloud when its confidence is below the threshold."""


COMMANDS = (
    check, inspect, quantize, prune, decide, infer, calibrate, evaluate, recertify, replay, status, arms, sensors, egress, serve,
    gateway, dashboard, top, schema, demo, docs,
)  # fmt: skip
for command in COMMANDS:
    app.command()(exits(command))
app.add_typer(export)
app.add_typer(models)
app.add_typer(outbox)
simulate.command()(exits(load))
app.add_typer(simulate)
