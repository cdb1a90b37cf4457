"""Command `edgeroute replay`: replays a trace under another policy or network, or estimates savings from a log of another tool.

A trace runs and sends nothing. For a log, `--edge` runs a model on a sample, and `--judge-calls` sends requests to a judge.
"""

from __future__ import annotations

import json
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.system.untrusted_files import read_text
from edgeroute.tools.cli import tables_and_options as ui
from edgeroute.tools.cli.calibrate_from_examples_or_audits import path_in_policy
from edgeroute.tools.cli.command_runner import OK, TOO_FEW

if TYPE_CHECKING:
    from edgeroute.tools.replay.logs.answer_pairs_and_samples import Price, Prices


# `replay --from`: savings of a certified threshold, from a foreign log.

LOG, EDGE = "A foreign log", "The log of one model, and an edge on this device"  # titles of these options in the help


def _prices(text: str) -> Prices:
    """Parse a price for all models, or read FILE.toml, in which each model has one; raise `typer.BadParameter` for all else."""
    from edgeroute.policy.file_and_environment import parse_toml

    if not str(text).endswith(".toml"):
        return _price(text)
    try:
        return {model: _price(price) for model, price in parse_toml(read_text(text)).items()}
    except (OSError, ValueError) as e:
        raise typer.BadParameter(f"{text}: {getattr(e, 'strerror', None) or e}") from None


def _price(text: object) -> Price:
    """Parse `0.002`, dollars a request, or `0.15/0.60`, dollars a million tokens of prompt and completion.

    Raises `typer.BadParameter` for all else, also negative numbers.
    """
    from edgeroute.tools.replay.logs import Price

    try:
        parts = [float(part) for part in str(text).split("/")]
    except ValueError:
        parts = []
    if len(parts) not in {1, 2} or not all(isfinite(part) and part >= 0 for part in parts):
        raise typer.BadParameter(
            "a price must be 0.002 (dollars a request) or 0.15/0.60 (a million tokens), or a FILE.toml with one for each model, "
            f"not {text!r}"
        )
    return Price(parts[0]) if len(parts) == 1 else Price(0.0, *parts)


def _numbers(text: str, option: str) -> list[float]:
    """Parse numbers between commas; raise `typer.BadParameter` for anything else, also infinite and negative ones."""
    try:
        numbers = [float(part) for part in text.split(",") if part]
    except ValueError:
        numbers = [-1.0]
    if not all(isfinite(number) and number >= 0 for number in numbers):
        raise typer.BadParameter("expected numbers of 0 or more with commas between them", param_hint=option)
    return numbers


_of_log = partial(typer.Option, rich_help_panel=LOG)
_of_edge = partial(typer.Option, rich_help_panel=EDGE)


def _check_given(context: typer.Context, log: str | None, *, edge: bool) -> None:
    """Refuse options of the command line that are for a trace where there is a log, for a log where there is none, or for --edge.

    Raises:
        typer.BadParameter: names the first such option, and why. Defaults and variables of the environment are not looked at.
    """
    for parameter in context.command.params:
        name, source = str(parameter.name), context.get_parameter_source(str(parameter.name))
        if source is None or source.name != "COMMANDLINE" or name in {"trace", "log", "as_json"}:
            continue
        panel, why = getattr(parameter, "rich_help_panel", None), ""
        if name == "seed" and edge:
            continue
        if panel == EDGE and not edge:
            why = "it is for an edge that answers the log's requests: --edge says which"
        elif edge and name in {"edge_model", "score_at", "match"}:
            why = "it is for the answers of two models: --edge answers, and --judge compares"
        elif panel in {LOG, EDGE} and log is None:
            why = "it is for a foreign log: --from says of which kind"
        elif panel not in {LOG, EDGE} and log is not None:
            why = "it is for a trace, not a foreign log"
        elif log == "csv" and name in {"id_at", "score_at"}:
            why = "it is for a log of calls: a table has columns of these names"
        if why:
            raise typer.BadParameter(why, param_hint=parameter.opts[0])


def replay(
    context: typer.Context,
    trace: Annotated[list[Path], typer.Argument(metavar="FILE")],
    *,
    policy: ui.OptionalPolicy = None,
    threshold: Annotated[float | None, typer.Option(show_default="the policy's")] = None,
    network: ui.Name | None = None,
    server_time: ui.Seconds | None = None,
    battery: ui.Share | None = None,
    battery_wh: ui.Amount = 10.0,
    idle_watts: ui.Amount = 0.0,
    edge_joules: ui.Amount | None = None,
    thermal: ui.Name | None = None,
    keep_mode: bool = False,
    keep_deadline: bool = False,
    seed: int = 0,
    sweep: Annotated[str, typer.Option(metavar="T,T,...", show_default=False)] = "",
    prices: Annotated[str, typer.Option(metavar="USD,USD,...", show_default="the policy's")] = "",
    engine: Literal["local", "ray"] | None = None,
    processes: Annotated[int, typer.Option(min=0)] = 0,
    log: Annotated[Literal["openai-log", "litellm-log", "langfuse-log", "csv"] | None, _of_log("--from")] = None,
    edge: Annotated[str, _of_edge(metavar="MODEL")] = "",
    judge: Annotated[str, _of_edge(metavar="NAME")] = "text",
    sample: Annotated[int, _of_edge(min=0)] = 500,
    out: Annotated[Path | None, _of_edge(metavar="FILE", show_default="beside the log")] = None,
    judge_calls: Annotated[int, _of_edge(min=0)] = 0,
    certificate: Annotated[Path | None, _of_edge(metavar="FILE", show_default="none")] = None,
    max_loss: Annotated[Any, _of_log(parser=ui.share, metavar="SHARE")] = "1%",
    sure: Annotated[Any, _of_log(parser=ui.share, metavar="SHARE")] = "95%",
    edge_model: Annotated[str, _of_log(metavar="NAME")] = "",
    cloud_model: Annotated[str, _of_log(metavar="NAME")] = "",
    edge_price: Annotated[Any, _of_log(parser=_prices, metavar="USD", show_default="as the log says")] = None,
    cloud_price: Annotated[Any, _of_log(parser=_prices, metavar="USD", show_default=False)] = None,
    id_at: Annotated[str, _of_log("--id", metavar="KEY", show_default="its messages")] = "",
    score_at: Annotated[str, _of_log("--score", metavar="KEY")] = "",
    match: Annotated[Literal["text", "exact"], _of_log()] = "text",
    as_json: ui.Json = False,
) -> int:
    """Replay recorded requests under another policy or network. Only --edge runs a model; only --judge-calls sends.

    With --from: estimate which requests the smaller of two models could answer, with a guarantee, from a log of both.

    With --edge too: from the log of one model, whose requests the edge answers here.

    Args:
        trace: Trace of a router, with its rotated files, or a folder of devices' traces; with --from one or more files of a log;
            or `-` for stdin.
        threshold: Of each edge model.
        network: wifi, 4g, 3g, edge, satellite, offline or flapping, with typical figures. Without it: as recorded.
        server_time: With a network, an endpoint's time for an answer. Without it: as its fastest recorded one.
        battery: Charge of the battery at the first request, as 20%.
        battery_wh: Watt hours of a full battery.
        idle_watts: Base load of the device.
        edge_joules: Energy of a run of the edge model. Without it: as recorded, where the router knew it.
        thermal: cool, warm or hot: how the edge slows down with time.
        keep_mode: Keep each request's recorded mode.
        keep_deadline: Keep each request's recorded deadline.
        seed: Seed of the random numbers.
        sweep: Of a folder in Parquet: count what these thresholds defer, without a walk, where that is exact.
        prices: With --sweep: dollars a call.
        engine: Of a folder: processes on this machine (local), or Ray Data on a cluster.
        processes: Of a folder: number of processes; 0: one for each core.
        log: Estimate the savings of a certified threshold, from requests that two models answered.
        edge: Model, policy, URL on this device or module:name that answers the log's requests now.
        judge: Comparison of answers: text, exact, label, cloud (the policy's), or module:function.
        sample: Most requests, drawn at random by --seed; 0: all.
        out: Results, from which a run goes on.
        judge_calls: Most calls of the cloud as judge, which send requests of the log.
        certificate: File for the certificate.
        max_loss: Largest loss of accuracy or score against the cloud.
        sure: Confidence level of the guarantee.
        edge_model: Model for the edge, as the log names it, or a pattern: 'gpt-4o-mini*'.
        cloud_model: Model for the cloud. Of two models one is enough.
        edge_price: Price of a request on the edge (0 on a device), or IN/OUT: of a million tokens; FILE.toml: of each model.
        cloud_price: Price of a request on the cloud, in the same form.
        id_at: Path of the request's ID in a line, as metadata.job.
        score_at: Path of the answer's score in a line, 0..1; default: agreement with the cloud.
        match: Answers agree if they differ only in case and spaces, or exactly.

    With --edge the results are written to `out`, and exit code 5 means too few requests for a certificate. If none can be made,
    or it fits no model, `certificate` is not written, and a note says so.

    Raises:
        typer.BadParameter: options do not fit together, there is neither a policy nor a log, or several traces.
    """
    _check_given(context, log, edge=bool(edge))
    if certificate is not None:
        ui.check_output(certificate, ui.CERTIFICATE, "--certificate")
    if log is not None:
        from edgeroute.tools.replay.certified_savings_of_pairs import saving
        from edgeroute.tools.replay.logs import Read

        how = Read(edge_model, cloud_model, edge_price, cloud_price, id_at, score_at, match)
        if edge:
            from edgeroute.tools.replay.savings_by_edge_runs import edge_saving

            result = edge_saving(
                trace, log, edge, judge=judge, sample=sample, seed=seed, out=out, judge_calls=judge_calls, max_loss=max_loss,
                sure=sure, how=how, progress=None,
            )  # fmt: skip
            if certificate is not None and (result.unbound or result.certificate is None):
                ui.print_notes([f"no certificate is written: {result.unbound or result.problem or 'no threshold is certified'}"])
            elif certificate is not None and result.certificate is not None:
                result.certificate.save(certificate)
                result = result._replace(policy=(f'threshold = "{path_in_policy(Path(edge), certificate)}"',))
            print(json.dumps(result.as_dict(), allow_nan=False) if as_json else printable(str(result)))
            return TOO_FEW if result.missing else OK
        estimate = saving(trace, log, max_loss=max_loss, sure=sure, how=how)
        print(json.dumps(estimate.as_dict(), allow_nan=False) if as_json else printable(str(estimate)))
        return OK
    if policy is None:
        raise typer.BadParameter("a trace needs a policy; a foreign log needs --from", param_hint="--policy")
    if len(trace) > 1:
        raise typer.BadParameter("only one trace at a time: its rotated files are read with it", param_hint="FILE")

    from edgeroute.tools.replay import Battery, Replay, Setup
    from edgeroute.tools.replay import replay as run
    from edgeroute.tools.replay.logs.answer_pairs_and_samples import regular_files

    options: dict[str, Any] = {
        "network": network, "server_s": server_time, "edge_joules": edge_joules, "thermal": thermal, "keep_mode": keep_mode,
        "battery": None if battery is None else Battery(battery, battery_wh, idle_watts), "keep_deadline": keep_deadline,
        "seed": seed,
    }  # fmt: skip
    if sweep and threshold is not None:
        raise typer.BadParameter("--sweep has thresholds of its own", param_hint="--threshold")
    setup = policy if threshold is None else Setup.read(policy, threshold)
    if sweep:
        from edgeroute.tools.replay.threshold_sweep import sweep as count

        counted = count(trace[0], setup, _numbers(sweep, "--sweep"), _numbers(prices, "--prices"))
        print(json.dumps(counted.as_dict()) if as_json else printable(str(counted)))
        return OK
    if trace[0].is_dir():
        from edgeroute.tools.replay.sharded_replay import FleetReplay, replay_fleet

        replayed: Replay | FleetReplay = replay_fleet(trace[0], setup, engine=engine or "local", processes=processes, **options)
    elif engine is not None or processes:
        raise typer.BadParameter("it is for a folder with a trace for each device", param_hint="--engine")
    else:
        with regular_files(trace) as (file,):
            replayed = run(file, setup, **options)
    print(json.dumps(replayed.as_dict()) if as_json else printable(str(replayed)))
    return OK
