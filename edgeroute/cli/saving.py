"""`replay --from`: what a certified threshold would save, from a foreign log."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgeroute.cli.exits import OK, TOO_FEW, line
from edgeroute.cli.options import share
from edgeroute.core.texts import printable

if TYPE_CHECKING:
    from edgeroute.replay.logs import Price

LOG = "A foreign log"
"""The part of the help with these options."""


def _price(text: str) -> Price:
    """Parses `0.002`, dollars a request, or `0.15/0.60`, dollars a million tokens of prompt and completion."""
    from edgeroute.replay.logs import Price

    try:
        parts = [float(part) for part in str(text).split("/")]
    except ValueError:
        parts = []
    if len(parts) not in {1, 2} or not all(isfinite(part) and part >= 0 for part in parts):
        raise typer.BadParameter(f"a price is 0.002 (dollars a request) or 0.15/0.60 (a million tokens in/out), not {text!r}")
    return Price(parts[0]) if len(parts) == 1 else Price(0.0, *parts)


def _option(*names: str, show_default: bool | str = False, **more: object) -> object:
    return typer.Option(*names, show_default=show_default, rich_help_panel=LOG, **more)  # type: ignore[arg-type]


MaxLoss = Annotated[
    float | None,
    _option(parser=share, metavar="SHARE", help="Accuracy or score that may be lost against the cloud.", show_default="1%"),
]
Sure = Annotated[float | None, _option(parser=share, metavar="SHARE", help="How sure the promise is.", show_default="95%")]
EdgeModel = Annotated[
    str | None, _option(metavar="NAME", help="The model for the edge, as the log names it, or a pattern: 'gpt-4o-mini*'.")
]
CloudModel = Annotated[str | None, _option(metavar="NAME", help="Likewise for the cloud. Of two models one is enough.")]
EdgePrice = Annotated[
    object,
    _option(
        parser=_price,
        metavar="USD",
        help="A request (0 on a device), or IN/OUT: a million tokens.",
        show_default="as the log says",
    ),
]
CloudPrice = Annotated[object, _option(parser=_price, metavar="USD", help="Likewise of the cloud.")]
Id = Annotated[
    str | None,
    _option("--id", metavar="KEY", help="Where in a line the request's ID is, as metadata.job.", show_default="its messages"),
]
Score = Annotated[
    str | None,
    _option("--score", metavar="KEY", help="Where in a line the answer's score is, 0..1. Without it: agreement with the cloud."),
]
Match = Annotated[
    Literal["text", "exact"] | None,
    _option(help="Answers agree if alike but for case and spaces, or exactly.", show_default="text"),
]


def given(options: Mapping[str, object], meant: str) -> None:
    """Rejects options that are for something else.

    Raises:
        typer.BadParameter: one of these was given.
    """
    for name, value in options.items():
        if value is not None:
            raise typer.BadParameter(f"it is for {meant}", param_hint=name)


def saving(
    files: list[Path],
    log: str,
    *,
    max_loss: float | None,
    sure: float | None,
    edge_model: str | None,
    cloud_model: str | None,
    edge_price: object,
    cloud_price: object,
    id_at: str | None,
    score_at: str | None,
    match: Literal["text", "exact"] | None,
    as_json: bool,
) -> int:
    """Prints what a certified threshold would save."""
    from edgeroute.confidence import NotEnough
    from edgeroute.replay.logs import Price, Read
    from edgeroute.replay.saving import saving as run

    prices = [price if isinstance(price, Price) else None for price in (edge_price, cloud_price)]
    how = Read(edge_model or "", cloud_model or "", prices[0], prices[1], id_at or "", score_at or "", match or "text")
    try:
        found = run(files, log, max_loss=0.01 if max_loss is None else max_loss, sure=0.95 if sure is None else sure, how=how)
    except NotEnough as e:
        missing = {"error": str(e), "kind": "NotEnough", "needed": e.needed, "missing": e.missing}
        print(json.dumps(missing) if as_json else line(e, as_json=False), file=sys.stderr)
        return TOO_FEW
    print(json.dumps(found.as_dict(), allow_nan=False) if as_json else printable(str(found)))
    return OK
