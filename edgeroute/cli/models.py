"""`edgeroute models`: the models of a device, and where their updates come from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.cli.exits import NOT_READY, OK, exits
from edgeroute.cli.options import Json, Policy
from edgeroute.cli.tables import table
from edgeroute.core.texts import printable

if TYPE_CHECKING:
    from edgeroute.catalog import Catalog
    from edgeroute.catalog.download import Progress
    from edgeroute.catalog.store import Pointer

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
HERE = Path("model-store")

models = typer.Typer(
    name="models",
    no_args_is_help=True,
    help="Shows, updates and publishes the models of a device. A router takes STORE/NAME.active as a model's path.",
)


@models.command("list")
@exits
def listed(*, store: Store = HERE, source: From = None, root: Root = None, ca: Authority = None, as_json: Json = False) -> int:
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
    store: Store = HERE,
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
def update(name: Name, *, policy: Policy, store: Store = HERE, as_json: Json = False) -> int:
    """Pulls the newest version, tries it with a policy (warm-up, canary inputs, certificate), and activates it if all is well.

    One step a run, for cron or a timer. Exit code 4: the version was refused; the active one stays.
    """
    from edgeroute.catalog.update import Updater
    from edgeroute.cli.examples import plain

    with _catalog(store) as catalog, plain(policy, state=None) as router:
        step = Updater(catalog, name, router, progress=None if as_json or not sys.stderr.isatty() else _shown()).step()
        if step.did == "updated":
            catalog.mark(name, trial=0)  # nobody is here to look at its runs
    text = step.text.partition(", on trial")[0]
    _said(text, as_json, did=step.did, version=step.version)
    return NOT_READY if step.did == "refused" else OK


@models.command()
@exits
def verify(name: Name, *, version: Version = None, store: Store = HERE, as_json: Json = False) -> int:
    """Compares the files of a version, the active one by default, with what was signed."""
    with _catalog(store) as catalog:
        entry = catalog.verify(name, version)
    return _said(f"{name} {entry.version}: {len(entry.files)} files are what was signed", as_json, version=entry.version)


@models.command()
@exits
def activate(name: Name, *, version: Version = None, store: Store = HERE, as_json: Json = False) -> int:
    """Puts a version in use that is here: for a router that watches its policy within a second."""
    with _catalog(store) as catalog:
        return _pointed(f"{name} {{}} is active", catalog.activate(name, version), as_json)


@models.command()
@exits
def rollback(name: Name, *, store: Store = HERE, as_json: Json = False) -> int:
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
    store: Store = HERE,
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
           store: Store = HERE, as_json: Json = False) -> int:  # fmt: skip
    """Deletes a version that is not active from the device."""
    with _catalog(store) as catalog:
        catalog.remove(name, version)
    return _said(f"{name} {version} is removed", as_json, version=version)


@models.command()
@exits
def status(*, store: Store = HERE, as_json: Json = False) -> int:
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
