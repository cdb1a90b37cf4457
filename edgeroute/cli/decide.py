from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json, Policy
from edgeroute.core.texts import printable


def decide(
    given: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A .npy, .npz, .png or .jpg file, or `-` for stdin.", show_default=False)
    ],
    *,
    policy: Policy,
    index: Annotated[int, typer.Option(min=0, help="The row of an .npz file, or the line of JSON.")] = 0,
    as_json: Json = False,
) -> int:
    """Explains which route an input would take. Runs the edge model; sends nothing."""
    from edgeroute.cli.inputs import read
    from edgeroute.router.router import Router

    def told(note: str) -> None:
        print(json.dumps({"note": note}) if as_json else printable(note), file=sys.stderr)

    with Router.from_policy(policy) as router:
        items = read(given, router.engine.snapshot.views.keys, told)
        if index >= len(items):
            raise typer.BadParameter(f"this file has {len(items)} inputs", param_hint="--index")
        found = router.decide(items[index].x)
    if as_json:
        print(json.dumps({"input": items[index].name, "sends_to": found.sends_to, "steps": found.steps}))
    else:
        print(printable(str(found)))
        places = ", then ".join(found.sends_to)
        print(f"so it would leave the device, to {places}" if places else "so it would stay on the device")
    return OK
