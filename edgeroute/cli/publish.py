"""The publisher's commands of `edgeroute models`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeroute.cli.exits import OK, exits
from edgeroute.cli.models import Name, models
from edgeroute.cli.options import Json
from edgeroute.core.texts import printable
from edgeroute.errors import BadInput

__all__ = ["models"]
Catalog = Annotated[Path, typer.Option("--catalog", metavar="DIR", help="The catalog's folder, which a web server serves.")]
Keys = Annotated[Path, typer.Option("--keys", metavar="DIR", help="The folder of the keys.")]
Days = Annotated[float, typer.Option("--days", min=0.001, metavar="N", help="How long devices accept the list of models.")]
HERE, KEYS = Path("catalog"), Path("keys")


@models.command()
@exits
def keygen(
    *,
    keys: Keys = KEYS,
    rotate: Annotated[
        Path | None, typer.Option("--rotate", metavar="DIR", help="Folder of new keys.", show_default=False)
    ] = None,
    catalog: Catalog = HERE,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Makes the keys of a publisher: root.pem, which is kept offline, and models.pem, which signs the lists of models."""
    from edgeroute.catalog import publish as made

    if rotate is not None:
        made.rotate(catalog, keys=keys, new=rotate)
        return _said(f"{catalog} is signed by the keys in {rotate}; devices follow by themselves", as_json)
    root, lists = made.keygen(keys)
    return _said(f"{root} signs the list of keys: keep it offline; {lists} signs the lists of models", as_json)


@models.command()
@exits
def publish(
    name: Name,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="The model, and what belongs beside it.")],
    *,
    version: Annotated[str, typer.Option("--version", metavar="VERSION", help="A new one.")],
    catalog: Catalog = HERE,
    keys: Keys = KEYS,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", metavar="FILE", help="Of the model's threshold.", show_default=False)
    ] = None,
    canaries: Annotated[
        Path | None,
        typer.Option("--canaries", metavar="FILE", help="Inputs and answers to try (.npz).", show_default=False),
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="The file of canaries has inputs alone: take the model's answers here for right.")
    ] = False,
    requires: Annotated[str, typer.Option("--requires", metavar="VERSION", help="Lowest edgeroute.", show_default=False)] = "",
    notes: Annotated[str, typer.Option("--notes", metavar="TEXT", help="For people.", show_default=False)] = "",
    days: Days = 30,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Adds a version of a model to a catalog, and signs it. The catalog is made if it is not there."""
    from tempfile import TemporaryDirectory

    from edgeroute.catalog import publish as made

    with TemporaryDirectory() as folder:
        if record:
            if canaries is None:
                raise typer.BadParameter("which inputs? Give --canaries", param_hint="--record")
            canaries = _recorded(files[0], canaries, Path(folder) / "canaries.npz")
        entry = made.publish(
            catalog, name, version, files, keys=keys, certificate=certificate, canaries=canaries, requires=requires, notes=notes,
            days=days,
        )  # fmt: skip
    size = f"{len(entry.files)} files, {entry.size:,} bytes"
    text = f"{name} {version} is in {catalog}: {size}; devices need {catalog / 'root.json'} once"
    return _said(text, as_json, entry=entry.json())


@models.command()
@exits
def sign(
    *,
    catalog: Catalog = HERE,
    keys: Keys = KEYS,
    days: Days = 30,
    withdraw: Annotated[
        list[str] | None, typer.Option("--withdraw", metavar="NAME=VERSION", help="Take it from the list.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> int:
    """Signs a catalog again, so that its list of models does not expire; root.pem is not needed."""
    from edgeroute.catalog import publish as made

    gone = [tuple(one.partition("=")[::2]) for one in withdraw or ()]
    found = made.sign(catalog, keys=keys, days=days, withdraw=gone)  # type: ignore[arg-type]  # partition gives three
    return _said(f"{catalog} is signed for {days:g} days: {len(found)} versions", as_json)


def _recorded(model: Path, inputs: Path, to: Path) -> Path:
    """Runs the model on the inputs, and writes both."""
    import numpy as np

    from edgeroute.catalog.canaries import NAMED, written
    from edgeroute.router.router import Router

    try:
        with np.load(inputs, allow_pickle=False) as data:
            arrays: dict[str, Any] = {key: data[key] for key in data.files}
        named = {key.removeprefix(NAMED): value for key, value in arrays.items() if key.startswith(NAMED)}
        rows = (
            [dict(zip(named, row, strict=True)) for row in zip(*named.values(), strict=True)] if named else list(arrays["inputs"])
        )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise BadInput(f"{inputs} has no inputs: an .npz file with `inputs`, or `input:NAME` for each of several ({e})") from e
    with Router(model) as router:
        written(to, rows, lambda x: router.infer(x).value)
    return to


def _said(text: str, as_json: bool, **more: object) -> int:
    print(json.dumps({"text": text, **more}) if as_json else printable(text))
    return OK
