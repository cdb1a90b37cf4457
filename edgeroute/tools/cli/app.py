"""The `edgeroute` command: all subcommands in one Typer application."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeroute import __version__
from edgeroute.tools.cli import fleet_publish_and_promote as _  # noqa: F401 - adds commands to the group
from edgeroute.tools.cli.calibrate_from_examples_or_audits import calibrate
from edgeroute.tools.cli.check_decide_sensors_commands import check, decide, docs, schema, sensors
from edgeroute.tools.cli.command_runner import CODES, command
from edgeroute.tools.cli.convert_to_onnx_and_compare import convert
from edgeroute.tools.cli.convert_trace_jsonl_parquet import trace
from edgeroute.tools.cli.demo import demo
from edgeroute.tools.cli.distil import distil
from edgeroute.tools.cli.doctor_policies_service import doctor, policies, service
from edgeroute.tools.cli.evaluate import evaluate
from edgeroute.tools.cli.export import export
from edgeroute.tools.cli.fleet_collect_report_rotate import fleet
from edgeroute.tools.cli.infer import infer
from edgeroute.tools.cli.inspect_and_write_card import inspect
from edgeroute.tools.cli.models_and_publishing import models
from edgeroute.tools.cli.outbox_egress_and_state_folder import egress, outbox
from edgeroute.tools.cli.promote_or_roll_back_trial import recertify
from edgeroute.tools.cli.quantize_and_prune import prune, quantize
from edgeroute.tools.cli.replay_traces_and_log_savings import replay
from edgeroute.tools.cli.servers_and_dashboards import dashboard, gateway, serve, top
from edgeroute.tools.cli.simulate_fleets_and_overload import load, simulate
from edgeroute.tools.cli.status_and_trial_arms import arms, status

app = typer.Typer(
    name="edgeroute",
    epilog=CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(requested: bool) -> None:
    """Print the version and exit if the option is set; otherwise do nothing."""
    if requested:
        typer.echo(f"edgeroute {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Run a model on the edge, and defer to the cloud when its confidence is below the threshold."""


COMMANDS = (
    check, inspect, convert, quantize, prune, distil, decide, infer, calibrate, evaluate, recertify, replay, status, arms,
    sensors, egress, serve, gateway, dashboard, top, schema, demo, docs, doctor,
)  # fmt: skip
for each in COMMANDS:
    command(app)(each)
command(simulate)(load)
for group in (export, fleet, models, outbox, policies, service, simulate, trace):
    app.add_typer(group)
