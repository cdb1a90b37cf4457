"""`edgeroute models`: the models of a device, and where their updates come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.core.words import printable
from edgeroute.errors import BadInput
from edgeroute.tools.cli.exits import NOT_READY, OK, exits
from edgeroute.tools.cli.tables import Json, Policy, table

if TYPE_CHECKING:
    from edgeroute.catalog import Catalog
    from edgeroute.catalog.download import Progress
    from edgeroute.catalog.store import Pointer

__all__ = ["models"]

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the model.", show_default=False)]
Store = Annotated[Path, typer.Option("--store", metavar="DIR", help="The folder of the device's models.")]
Version = Annotated[str | None, typer.Option("--version", metavar="VERSION", help="Which one.", show_default=False)]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="WHERE", help="The catalog, a folder or https://...; remembered.", show_default=False),
]
Root = Annotated[
    Path | None,
    typer.Option(
        "--root", metavar="FILE", help="The publisher's root.json: whose signatures count; remembered.", show_default=False
    ),
]
Authority = Annotated[
    Path | None,
    typer.Option("--ca", metavar="FILE", help="Authorities for HTTPS, in place of the usual ones.", show_default=False),
]
STORE = Path("model-store")

models = typer.Typer(
    name="models",
    no_args_is_help=True,
    help="Shows, updates and publishes the models of a device. A router takes STORE/NAME.active as a model's path.",
)


@models.command("list")
@exits
def listed(*, store: Store = STORE, source: From = None, root: Root = None, ca: Authority = None, as_json: Json = False) -> int:
    """Reads the catalog, and shows what it has."""
    with _catalog(store, source, root, ca) as catalog:
        found = catalog.refresh()
        here = {(entry.name, v) for entry in found for v in catalog.store.versions(entry.name)}
    if as_json:
        print(json.dumps([{**entry.json(), "size": entry.size, "here": (entry.name, entry.version) in here} for entry in found]))
        return OK
    columns = ("name", "version", "bytes", "runtime", "certificate", "needs", "here", "notes")
    rows = [
        (e.name, e.version, e.size, e.runtime, "yes" if e.certificate else "", e.requires,
         "yes" if (e.name, e.version) in here else "", e.notes)
        for e in found
    ]  # fmt: skip
    table(columns, rows, [name for name in columns if name != "bytes"])
    return OK


@models.command()
@exits
def pull(
    name: Name,
    *,
    version: Version = None,
    store: Store = STORE,
    source: From = None,
    root: Root = None,
    ca: Authority = None,
    as_json: Json = False,
) -> int:
    """Downloads a version, the newest by default, and verifies it. It is not in use before `activate`."""
    with _catalog(store, source, root, ca) as catalog:
        entry = catalog.pull(name, version, progress=None if as_json or not sys.stderr.isatty() else _shown())
        folder = catalog.store.version(name, entry.version)
    return _said(f"{name} {entry.version} is here, verified: {entry.size:,} bytes in {folder}", as_json, version=entry.version)


@models.command()
@exits
def update(name: Name, *, policy: Policy, store: Store = STORE, as_json: Json = False) -> int:
    """Pulls the newest version, tries it with a policy (warm-up, canary inputs, certificate), and activates it if all is well.

    One step a run, for cron or a timer. Exit code 4: the version was refused; the active one stays.
    """
    from edgeroute.catalog.update import Updater
    from edgeroute.tools.cli.examples import plain

    with _catalog(store) as catalog, plain(policy, state=None) as router:
        step = Updater(catalog, name, router, progress=None if as_json or not sys.stderr.isatty() else _shown()).step()
        if step.did == "updated":
            catalog.mark(name, trial=0)  # nobody is here to look at its runs
    text = step.text.partition(", on trial")[0]
    _said(text, as_json, did=step.did, version=step.version)
    return NOT_READY if step.did == "refused" else OK


@models.command()
@exits
def verify(name: Name, *, version: Version = None, store: Store = STORE, as_json: Json = False) -> int:
    """Compares the files of a version, the active one by default, with what was signed."""
    with _catalog(store) as catalog:
        entry = catalog.verify(name, version)
    return _said(f"{name} {entry.version}: {len(entry.files)} files are what was signed", as_json, version=entry.version)


@models.command()
@exits
def activate(name: Name, *, version: Version = None, store: Store = STORE, as_json: Json = False) -> int:
    """Puts a version in use that is here: for a router that watches its policy within a second."""
    with _catalog(store) as catalog:
        return _pointed(f"{name} {{}} is active", catalog.activate(name, version), as_json)


@models.command()
@exits
def rollback(name: Name, *, store: Store = STORE, as_json: Json = False) -> int:
    """Puts the version before in use again; updates do not try the present one again."""
    with _catalog(store) as catalog:
        return _pointed(f"rolled back: {name} {{}} is active", catalog.rollback(name), as_json)


@models.command()
@exits
def pin(
    name: Name,
    *,
    version: Version = None,
    off: Annotated[bool, typer.Option("--off", help="Let updates change it again.")] = False,
    store: Store = STORE,
    as_json: Json = False,
) -> int:
    """Keeps updates from changing the active version, which is `--version` if that is given."""
    if off and version:
        raise typer.BadParameter("one of the two", param_hint="--version or --off")
    with _catalog(store) as catalog:
        made = catalog.pin(name, version, pinned=not off)
    return _pointed(f"{name} {{}} is {'not pinned any more' if off else 'pinned'}", made, as_json)


@models.command()
@exits
def remove(name: Name, *, version: Annotated[str, typer.Option("--version", metavar="VERSION", help="Which one.")],
           store: Store = STORE, as_json: Json = False) -> int:  # fmt: skip
    """Deletes a version that is not active from the device."""
    with _catalog(store) as catalog:
        catalog.remove(name, version)
    return _said(f"{name} {version} is removed", as_json, version=version)


@models.command()
@exits
def status(*, store: Store = STORE, as_json: Json = False) -> int:
    """Shows the models of the device: active, previous and newest versions, and what is wrong. Asks nobody."""
    with _catalog(store) as catalog:
        found = catalog.status()
    code = NOT_READY if any(one.problems for one in found) else OK
    if as_json:
        print(json.dumps([{**one._asdict(), "refused": dict(one.refused)} for one in found]))
        return code
    columns = ("name", "active", "previous", "pinned", "newest known", "here")
    rows = [(m.name, m.active or "none", m.previous, "yes" if m.pinned else "", m.newest, ", ".join(m.here)) for m in found]
    table(columns, rows, columns)
    for one in found:
        for version, why in one.refused:
            print(printable(f"{one.name} {version} is not tried again by updates: {why}"))
        for problem in one.problems:
            print(printable(f"! {problem}"))
    return code


def _catalog(store: Path, source: str | None = None, root: Path | None = None, ca: Path | None = None) -> Catalog:
    from edgeroute.catalog import Catalog as Made

    return Made(store, source, root=root, verify=True if ca is None else ca)


def _shown() -> Any:
    """Shows progress in the terminal's last line."""
    last = -1

    def show(progress: Progress) -> None:
        nonlocal last
        percent = 100 * progress.done // max(1, progress.total)
        if percent != last:
            last = percent
            end = "\n" if percent == 100 else ""  # noqa: PLR2004 - all of it
            print(f"\r{progress.name} {progress.version}: {percent} %", end=end, file=sys.stderr, flush=True)

    return show


def _pointed(text: str, made: Pointer, as_json: bool) -> int:
    return _said(text.format(made.version), as_json, version=made.version, previous=made.previous, pinned=made.pinned)


def _said(text: str, as_json: bool, **more: object) -> int:
    print(json.dumps({"text": text, **more}) if as_json else printable(text))
    return OK


# The publisher's commands of `edgeroute models`.

CatalogFolder = Annotated[Path, typer.Option("--catalog", metavar="DIR", help="The catalog's folder, which a web server serves.")]
Keys = Annotated[Path, typer.Option("--keys", metavar="DIR", help="The folder of the keys.")]
Days = Annotated[float, typer.Option("--days", min=0.001, metavar="N", help="How long devices accept the list of models.")]
CATALOG, KEYS = Path("catalog"), Path("keys")


@models.command()
@exits
def keygen(
    *,
    keys: Keys = KEYS,
    rotate: Annotated[
        Path | None, typer.Option("--rotate", metavar="DIR", help="Folder of new keys.", show_default=False)
    ] = None,
    catalog: CatalogFolder = CATALOG,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Makes the keys of a publisher: root.pem, which is kept offline, and models.pem, which signs the lists of models."""
    from edgeroute.tools import catalog_publish as made

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
    catalog: CatalogFolder = CATALOG,
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

    from edgeroute.tools import catalog_publish as made

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
    catalog: CatalogFolder = CATALOG,
    keys: Keys = KEYS,
    days: Days = 30,
    withdraw: Annotated[
        list[str] | None, typer.Option("--withdraw", metavar="NAME=VERSION", help="Take it from the list.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> int:
    """Signs a catalog again, so that its list of models does not expire; root.pem is not needed."""
    from edgeroute.tools import catalog_publish as made

    gone = [tuple(one.partition("=")[::2]) for one in withdraw or ()]
    found = made.sign(catalog, keys=keys, days=days, withdraw=gone)  # type: ignore[arg-type]  # partition gives three
    return _said(f"{catalog} is signed for {days:g} days: {len(found)} versions", as_json)


def _recorded(model: Path, inputs: Path, to: Path) -> Path:
    """Runs the model on the inputs, and writes both."""
    import numpy as np

    from edgeroute.catalog.update import NAMED, write_canaries
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
        write_canaries(to, rows, lambda x: router.infer(x).value)
    return to
