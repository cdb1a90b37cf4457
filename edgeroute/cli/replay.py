from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer

from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json, seconds, share
from edgeroute.cli.saving import LOG, CloudModel, CloudPrice, EdgeModel, EdgePrice, Id, Match, MaxLoss, Score, Sure, given, saving
from edgeroute.core.texts import printable


def replay(
    trace: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="A trace of a router, with the files it has filled; with --from one or more files of a log; or `-` for stdin.",
            show_default=False,
        ),
    ],
    *,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", "-p", metavar="FILE", help="The policy that a trace is replayed under.", show_default=False),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="wifi, 4g, 3g, edge, satellite, offline or flapping, with typical figures. Without it: as recorded.",
        ),
    ] = None,
    server_time: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            show_default=False,
            help="With a network, what an endpoint needs for an answer. Without it: as its fastest recorded one.",
        ),
    ] = None,
    battery: Annotated[
        float | None,
        typer.Option(
            parser=share, metavar="SHARE", help="What the battery has at the first request, as 20%.", show_default=False
        ),
    ] = None,
    battery_wh: Annotated[float, typer.Option(min=0, help="Watt hours of a full battery.")] = 10.0,
    idle_watts: Annotated[float, typer.Option(min=0, help="What the device takes whatever it does.")] = 0.0,
    edge_joules: Annotated[
        float | None,
        typer.Option(
            min=0,
            show_default=False,
            help="What a run of the edge model takes. Without it: as recorded, where the router knew it.",
        ),
    ] = None,
    thermal: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default=False, help="cool, warm or hot: how the edge slows down with time."),
    ] = None,
    keep_mode: Annotated[bool, typer.Option("--keep-mode", help="Keep the mode that each request was recorded with.")] = False,
    keep_deadline: Annotated[bool, typer.Option("--keep-deadline", help="Keep each request's deadline.")] = False,
    seed: Annotated[int, typer.Option(help="Of what is left to chance.")] = 0,
    log: Annotated[
        Literal["openai-log", "litellm-log", "csv"] | None,
        typer.Option(
            "--from",
            help="What a certified threshold would save, from requests that two models answered.",
            show_default=False,
            rich_help_panel=LOG,
        ),
    ] = None,
    max_loss: MaxLoss = None,
    sure: Sure = None,
    edge_model: EdgeModel = None,
    cloud_model: CloudModel = None,
    edge_price: EdgePrice = None,
    cloud_price: CloudPrice = None,
    id_at: Id = None,
    score_at: Score = None,
    match: Match = None,
    as_json: Json = False,
) -> int:
    """Replays recorded requests under another policy or network. Runs no model; sends nothing.

    With --from: what could be left to the smaller of two models, with a guarantee, from a foreign log of what both answered.
    """
    of_log = {
        "--max-loss": max_loss, "--sure": sure, "--edge-model": edge_model, "--cloud-model": cloud_model,
        "--edge-price": edge_price, "--cloud-price": cloud_price, "--id": id_at, "--score": score_at, "--match": match,
    }  # fmt: skip
    if log is not None:
        of_trace = {
            "--policy": policy, "--network": network, "--server-time": server_time, "--battery": battery, "--thermal": thermal,
            "--keep-mode": keep_mode or None, "--keep-deadline": keep_deadline or None,
        }  # fmt: skip
        given(of_trace, "a trace, not a foreign log")
        if log == "csv":
            given({"--id": id_at, "--score": score_at}, "a log of calls: a table has columns of these names")
        return saving(
            trace, log, max_loss=max_loss, sure=sure, edge_model=edge_model, cloud_model=cloud_model, edge_price=edge_price,
            cloud_price=cloud_price, id_at=id_at, score_at=score_at, match=match, as_json=as_json,
        )  # fmt: skip
    given(of_log, "a foreign log: --from says of which kind")
    if policy is None:
        raise typer.BadParameter("a trace is replayed under one; a foreign log is read with --from", param_hint="--policy")
    if len(trace) > 1:
        raise typer.BadParameter("one trace at a time: the files that it has filled are read with it", param_hint="FILE")

    from edgeroute.replay import Battery
    from edgeroute.replay import replay as run

    with _file(trace[0]) as file:
        found = run(
            file, policy, network=network, server_s=server_time, edge_joules=edge_joules, thermal=thermal,
            battery=None if battery is None else Battery(battery, battery_wh, idle_watts),
            keep_mode=keep_mode, keep_deadline=keep_deadline, seed=seed,
        )  # fmt: skip
    print(json.dumps(found.as_dict()) if as_json else printable(str(found)))
    return OK


@contextmanager
def _file(trace: Path) -> Iterator[Path]:
    """The trace as a file: stdin is copied to one that only its owner can read."""
    if str(trace) != "-":
        yield trace
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "stdin.jsonl"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield copy
