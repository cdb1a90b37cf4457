from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json, seconds, share


def demo(
    *,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Images; default: all there are, 500 with --rtt.", show_default=False)
    ] = None,
    rtt: Annotated[
        float | None,
        typer.Option(parser=seconds, metavar="TIME", help="Time to add to each round trip, as in 80ms.", show_default=False),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The folder with Fashion-MNIST's t10k-*.gz.", show_default=False)] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where curve.png and report.html go; with --json they are written only if this is given.",
            show_default="edgeroute-demo",
        ),
    ] = None,
    max_defer: Annotated[
        float, typer.Option(parser=share, metavar="SHARE", help="What may be deferred at most.", show_default="20%")
    ] = 0.2,
    as_json: Json = False,
) -> int:
    """Starts a cloud on this machine, routes images through it, and shows what was gained."""
    from edgeroute.cli.demo.run import run
    from edgeroute.cli.demo.show import show

    folder = out or (None if as_json else Path("edgeroute-demo"))
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:  # better now than after the run
            raise typer.BadParameter(f"{folder}: {e.strerror}", param_hint="--out") from e
    show(run(n=n, rtt=rtt or 0.0, data=data, most=max_defer), folder, as_json=as_json)
    return OK
