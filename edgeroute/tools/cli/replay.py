"""Command `edgeroute replay`: replays a trace under another policy, or estimates savings from a log of another tool."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgeroute.core.error_codes import printable
from edgeroute.tools.cli.tables_and_options import Json, OptionalPolicy, of_share, of_time, share

if TYPE_CHECKING:
    from edgeroute.tools.replay.logs import Price


# `replay --from`: savings of a certified threshold, from a foreign log.

LOG = "A foreign log"
"""Title of these options in the help."""


def _price(text: str) -> Price:
    """Parse `0.002`, dollars a request, or `0.15/0.60`, dollars a million tokens of prompt and completion.

    Raises BadParameter for all else, as negative numbers.
    """
    from edgeroute.tools.replay.logs import Price

    try:
        parts = [float(part) for part in str(text).split("/")]
    except ValueError:
        parts = []
    if len(parts) not in {1, 2} or not all(isfinite(part) and part >= 0 for part in parts):
        raise typer.BadParameter(f"a price must be 0.002 (dollars a request) or 0.15/0.60 (a million tokens), not {text!r}")
    return Price(parts[0]) if len(parts) == 1 else Price(0.0, *parts)


def _option(*names: str, show_default: bool | str = False, **more: object) -> object:
    """Return an option in the help's part about foreign logs."""
    return typer.Option(*names, show_default=show_default, rich_help_panel=LOG, **more)  # type: ignore[arg-type]


MaxLoss = Annotated[
    float | None,
    _option(parser=share, metavar="SHARE", help="Largest loss of accuracy or score against the cloud.", show_default="1%"),
]
Sure = Annotated[
    float | None, _option(parser=share, metavar="SHARE", help="Confidence level of the guarantee.", show_default="95%")
]
EdgeModel = Annotated[
    str | None, _option(metavar="NAME", help="Model for the edge, as the log names it, or a pattern: 'gpt-4o-mini*'.")
]
CloudModel = Annotated[str | None, _option(metavar="NAME", help="Model for the cloud. Of two models one is enough.")]
EdgePrice = Annotated[
    object,
    _option(
        parser=_price,
        metavar="USD",
        help="Price of a request on the edge (0 on a device), or IN/OUT: of a million tokens.",
        show_default="as the log says",
    ),
]
CloudPrice = Annotated[object, _option(parser=_price, metavar="USD", help="Price on the cloud, in the same form.")]
Id = Annotated[
    str | None,
    _option("--id", metavar="KEY", help="Path of the request's ID in a line, as metadata.job.", show_default="its messages"),
]
Score = Annotated[
    str | None,
    _option("--score", metavar="KEY", help="Path of the answer's score in a line, 0..1. Without it: agreement with the cloud."),
]
Match = Annotated[
    Literal["text", "exact"] | None,
    _option(help="Answers agree if they differ only in case and spaces, or exactly.", show_default="text"),
]


def refuse(options: Mapping[str, object], meant: str) -> None:
    """Refuse options that are for something else.

    Raises:
        typer.BadParameter: one of these was given.
    """
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"it is for {meant}", param_hint=name)


def replay(
    trace: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE",
            help="Trace of a router, with its rotated files; with --from one or more files of a log; or `-` for stdin.",
        ),
    ],
    *,
    policy: OptionalPolicy = None,
    network: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="wifi, 4g, 3g, edge, satellite, offline or flapping, with typical figures. Without it: as recorded.",
        ),
    ] = None,
    server_time: Annotated[
        float | None, of_time("With a network, an endpoint's time for an answer. Without it: as its fastest recorded one.")
    ] = None,
    battery: Annotated[float | None, of_share("Charge of the battery at the first request, as 20%.")] = None,
    battery_wh: Annotated[float, typer.Option(min=0, help="Watt hours of a full battery.")] = 10.0,
    idle_watts: Annotated[float, typer.Option(min=0, help="Base load of the device.")] = 0.0,
    edge_joules: Annotated[
        float | None,
        typer.Option(min=0, help="Energy of a run of the edge model. Without it: as recorded, where the router knew it."),
    ] = None,
    thermal: Annotated[
        str | None, typer.Option(metavar="NAME", help="cool, warm or hot: how the edge slows down with time.")
    ] = None,
    keep_mode: Annotated[bool, typer.Option("--keep-mode", help="Keep each request's recorded mode.")] = False,
    keep_deadline: Annotated[bool, typer.Option("--keep-deadline", help="Keep each request's recorded deadline.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random numbers.")] = 0,
    log: Annotated[
        Literal["openai-log", "litellm-log", "csv"] | None,
        typer.Option(
            "--from",
            help="Estimate the savings of a certified threshold, from requests that two models answered.",
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
) -> None:
    """Replay recorded requests under another policy or network. Runs no model; sends nothing.

    With --from: estimate which requests the smaller of two models could answer, with a guarantee, from a log of both.
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
        refuse(of_trace, "a trace, not a foreign log")
        if log == "csv":
            refuse({"--id": id_at, "--score": score_at}, "a log of calls: a table has columns of these names")
        from edgeroute.tools.replay.logs import Price, Read
        from edgeroute.tools.replay.savings_estimate import saving

        prices = [price if isinstance(price, Price) else None for price in (edge_price, cloud_price)]
        how = Read(edge_model or "", cloud_model or "", prices[0], prices[1], id_at or "", score_at or "", match or "text")
        estimate = saving(
            trace, log, max_loss=0.01 if max_loss is None else max_loss, sure=0.95 if sure is None else sure, how=how
        )
        print(json.dumps(estimate.as_dict(), allow_nan=False) if as_json else printable(str(estimate)))
        return
    refuse(of_log, "a foreign log: --from says of which kind")
    if policy is None:
        raise typer.BadParameter("a trace needs a policy; a foreign log needs --from", param_hint="--policy")
    if len(trace) > 1:
        raise typer.BadParameter("only one trace at a time: its rotated files are read with it", param_hint="FILE")

    from edgeroute.tools.replay import Battery
    from edgeroute.tools.replay import replay as run

    with _file(trace[0]) as file:
        result = run(
            file, policy, network=network, server_s=server_time, edge_joules=edge_joules, thermal=thermal,
            battery=None if battery is None else Battery(battery, battery_wh, idle_watts),
            keep_mode=keep_mode, keep_deadline=keep_deadline, seed=seed,
        )  # fmt: skip
    print(json.dumps(result.as_dict()) if as_json else printable(str(result)))


@contextmanager
def _file(trace: Path) -> Iterator[Path]:
    """Provide the trace as a file: stdin is copied to one that only its owner can read, deleted after the `with` block."""
    if str(trace) != "-":
        yield trace
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "stdin.jsonl"
        with copy.open("wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        yield copy
