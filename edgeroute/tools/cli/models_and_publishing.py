"""Command `edgeroute models`: lists, downloads, verifies and activates a device's models, and creates and signs catalogs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.errors import BadInput
from edgeroute.system.untrusted_files import read_arrays
from edgeroute.tools.cli.command_runner import NOT_READY, OK, command
from edgeroute.tools.cli.tables_and_options import File, Json, Policy, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bar

    from edgeroute.catalog import Catalog
    from edgeroute.catalog.model_folder_and_downloads import Pointer, Progress

__all__ = ["models"]

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]
Store = Annotated[Path, typer.Option("--store", metavar="DIR", help="The folder of the device's models.")]
Version = Annotated[str | None, typer.Option("--version", metavar="VERSION", help="Version of the model.")]
From = Annotated[str | None, typer.Option("--from", metavar="WHERE", help="Catalog, a folder or https://...; remembered.")]
Root = Annotated[
    Path | None, typer.Option("--root", metavar="FILE", help="The publisher's root.json: whose signatures count; remembered.")
]
Authority = Annotated[Path | None, typer.Option("--ca", metavar="FILE", help="Certificate authorities, instead of the system's.")]
STORE = Path("model-store")

models = typer.Typer(
    name="models",
    no_args_is_help=True,
    help="List, update and publish the models of a device. A router takes STORE/NAME.active as a model's path.",
)


@command(models, "list")
def list_models(
    *, store: Store = STORE, source: From = None, root: Root = None, ca: Authority = None, as_json: Json = False
) -> None:
    """Download the catalog's list of models, and show it.

    Raises:
        CatalogError: the catalog cannot be reached or trusted. Else its list, source and root are stored for the next time.
    """
    with _catalog(store, source, root, ca) as catalog:
        entries = catalog.refresh()
        known = [(entry, entry.version in catalog.store.versions(entry.name)) for entry in entries]
    if as_json:
        print(json.dumps([{**e.json(), "size": e.size, "here": here} for e, here in known]))
        return
    columns = ("name", "version", "bytes", "runtime", "certificate", "needs", "here", "notes")
    rows = [
        (e.name, e.version, e.size, e.runtime, "yes" if e.certificate else "", e.requires, "yes" if here else "", e.notes)
        for e, here in known
    ]
    table(columns, rows, [name for name in columns if name != "bytes"])


@command(models)
def pull(
    name: Name,
    *,
    version: Version = None,
    store: Store = STORE,
    source: From = None,
    root: Root = None,
    ca: Authority = None,
    as_json: Json = False,
) -> None:
    """Download a version, the newest by default, and verify it. It is not in use before `activate`.

    Raises:
        CatalogError: the catalog cannot be reached or trusted, or a file is not what was signed.
        StoreError: the disk is full, or another process downloads.
    """
    from edgeroute.tools.measure.report.progress_bar import bar

    with _catalog(store, source, root, ca) as catalog, bar() as progress:
        entry = catalog.pull(name, version, progress=_shown_on(progress))
        folder = catalog.store.version(name, entry.version)
    _print(f"{name} {entry.version} is here, verified: {entry.size:,} bytes in {folder}", as_json, version=entry.version)


@command(models)
def update(name: Name, *, policy: Policy, store: Store = STORE, as_json: Json = False) -> int:
    """Pull the newest version, try it with a policy (warm-up, canary inputs, certificate), and activate it if all is well.

    One step a run, for cron or a timer. Exit code 4: the version was refused; the active one stays.
    """
    from edgeroute.catalog.catalog_client_and_updates import Updater
    from edgeroute.tools.cli.example_options_and_routers import plain_router
    from edgeroute.tools.measure.report.progress_bar import bar

    with _catalog(store) as catalog, plain_router(policy, state=None) as router, bar() as progress:
        step = Updater(catalog, name, router, progress=_shown_on(progress)).step()
        if step.did == "updated":
            catalog.mark(name, trial=0)  # no router watches its runs
    text = step.text.partition(", on trial")[0]
    _print(text, as_json, did=step.did, version=step.version)
    return NOT_READY if step.did == "refused" else OK


@command(models)
def verify(name: Name, *, version: Version = None, store: Store = STORE, as_json: Json = False) -> None:
    """Compare the files of a version, the active one by default, with the signed hashes.

    Raises:
        ModelMissing: the version is not on the device.
        CatalogError: a file is damaged.
    """
    with _catalog(store) as catalog:
        entry = catalog.verify(name, version)
    _print(f"{name} {entry.version}: {len(entry.files)} files are what was signed", as_json, version=entry.version)


@command(models)
def activate(name: Name, *, version: Version = None, store: Store = STORE, as_json: Json = False) -> None:
    """Activate a downloaded version: a router that watches its policy uses it within a second.

    Raises:
        ModelMissing: the version (default: the newest) is not on the device.
        CatalogError: a file is damaged; the old version stays active.
    """
    with _catalog(store) as catalog:
        _print_pointer(f"{name} {{}} is active", catalog.activate(name, version), as_json)


@command(models)
def rollback(name: Name, *, store: Store = STORE, as_json: Json = False) -> None:
    """Activate the previous version again; updates do not try the present one again.

    Raises:
        ModelMissing: there is no previous version, or it is not here any more.
    """
    with _catalog(store) as catalog:
        _print_pointer(f"rolled back: {name} {{}} is active", catalog.rollback(name), as_json)


@command(models)
def pin(name: Name, *, version: Version = None, off: bool = False, store: Store = STORE, as_json: Json = False) -> None:
    """Keep updates from changing the active version; activates `--version` if that is given.

    Args:
        off: Let updates change the version again.

    Raises:
        typer.BadParameter: `off` and a version are both given.
    """
    if off and version:
        raise typer.BadParameter("they exclude each other", param_hint="--version and --off")
    with _catalog(store) as catalog:
        pointer = catalog.pin(name, version, pinned=not off)
    _print_pointer(f"{name} {{}} is {'not pinned any more' if off else 'pinned'}", pointer, as_json)


@command(models)
def remove(
    name: Name, *, version: Annotated[str, typer.Option(metavar="VERSION")], store: Store = STORE, as_json: Json = False
) -> None:
    """Delete an inactive version from the device.

    Args:
        version: Version to remove.

    Raises:
        PolicyError: the version is active.
        ModelMissing: it is not on the device.
    """
    with _catalog(store) as catalog:
        catalog.remove(name, version)
    _print(f"{name} {version} is removed", as_json, version=version)


@command(models)
def status(*, store: Store = STORE, as_json: Json = False) -> int:
    """Show the models of the device: active, previous and newest versions, and problems. Sends no request.

    Raises:
        StoreError: the folder cannot be read. Problems are no error: they are printed, with exit code 4.
    """
    with _catalog(store) as catalog:
        statuses = catalog.status()
    code = NOT_READY if any(m.problems for m in statuses) else OK
    if as_json:
        print(json.dumps([{**m._asdict(), "refused": dict(m.refused)} for m in statuses]))
        return code
    columns = ("name", "active", "previous", "pinned", "newest known", "here")
    rows = [(m.name, m.active or "none", m.previous, "yes" if m.pinned else "", m.newest, ", ".join(m.here)) for m in statuses]
    table(columns, rows, columns)
    for m in statuses:
        for version, why in m.refused:
            print(printable(f"{m.name} {version} is not tried again by updates: {why}"))
        for problem in m.problems:
            print(printable(f"! {problem}"))
    return code


def _catalog(store: Path, source: str | None = None, root: Path | None = None, ca: Path | None = None) -> Catalog:
    """Return the catalog of the device's model folder, for a `with` block that closes its connections. Nothing is requested yet.

    source, root: None: those of the last download of the list.
    """
    from edgeroute.catalog import Catalog as Made

    return Made(store, source, root=root, verify=True if ca is None else ca)


def _shown_on(bar: Bar) -> Callable[[Progress], None]:
    """Return a function that shows the progress of a download on the bar."""
    task = bar.add_task("", total=None)
    return lambda now: bar.update(task, description=f"{now.name} {now.version}", completed=now.done, total=now.total)


def _print_pointer(text: str, pointer: Pointer, as_json: bool) -> None:
    """Print which version is active."""
    _print(text.format(pointer.version), as_json, version=pointer.version, previous=pointer.previous, pinned=pointer.pinned)


def _print(text: str, as_json: bool, **more: object) -> None:
    """Print a text, or JSON with further fields."""
    print(json.dumps({"text": text, **more}) if as_json else printable(text))


# Commands for publishers.

CatalogFolder = Annotated[Path, typer.Option("--catalog", metavar="DIR", help="Folder of the catalog, for a web server.")]
Keys = Annotated[Path, typer.Option("--keys", metavar="DIR", help="Folder of the keys.")]
Days = Annotated[float, typer.Option("--days", min=0.001, metavar="N", help="Days that devices accept the list of models.")]
CATALOG, KEYS = Path("catalog"), Path("keys")


@command(models)
def keygen(
    *,
    keys: Keys = KEYS,
    rotate: Annotated[Path | None, typer.Option(metavar="DIR")] = None,
    catalog: CatalogFolder = CATALOG,
    as_json: Json = False,
) -> None:
    """Create a publisher's keys: root.pem, to be stored offline, and models.pem, which signs the lists of models.

    With --rotate none are created: the existing keys in that folder sign the catalog from now on.

    Args:
        rotate: Replace the keys by those in this folder.

    Both signing keys are files in the folder `keys`. A rotation signs the catalog anew by old and new keys.
    """
    from edgeroute.tools import catalog_keys_and_publishing as catalog_publish

    if rotate is not None:
        catalog_publish.rotate(catalog, keys=keys, new=rotate)
        _print(f"{catalog} is signed by the keys in {rotate}; devices follow by themselves", as_json)
        return
    root, lists = catalog_publish.keygen(keys)
    _print(f"{root} signs the list of keys: keep it offline; {lists} signs the lists of models", as_json)


@command(models)
def publish(
    name: Name,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...")],
    *,
    version: Annotated[str, typer.Option(metavar="VERSION")],
    catalog: CatalogFolder = CATALOG,
    keys: Keys = KEYS,
    certificate: File | None = None,
    canaries: File | None = None,
    record: bool = False,
    requires: Annotated[str, typer.Option(metavar="VERSION")] = "",
    notes: Annotated[str, typer.Option(metavar="TEXT")] = "",
    days: Days = 30,
    as_json: Json = False,
) -> None:
    """Add a version of a model to a catalog, created if missing, and sign it.

    Args:
        files: The model, and files that belong to it.
        version: New version.
        certificate: Certificate of its threshold.
        canaries: Inputs and answers to try (.npz).
        record: Run the model here on the canary inputs, and take its answers as right.
        requires: Lowest edgeroute.
        notes: Text for people.

    Copies the files into the catalog's folder. `record` without `canaries` is refused.
    """
    from tempfile import TemporaryDirectory

    from edgeroute.tools import catalog_keys_and_publishing as catalog_publish

    with TemporaryDirectory() as folder:
        if record:
            if canaries is None:
                raise typer.BadParameter("it needs inputs: add --canaries", param_hint="--record")
            canaries = _record_answers(files[0], canaries, Path(folder) / "canaries.npz")
        entry = catalog_publish.publish(
            catalog, name, version, files, keys=keys, certificate=certificate, canaries=canaries, requires=requires, notes=notes,
            days=days,
        )  # fmt: skip
    size = f"{len(entry.files)} files, {entry.size:,} bytes"
    text = f"{name} {version} is in {catalog}: {size}; devices need {catalog / 'root.json'} once"
    _print(text, as_json, entry=entry.json())


@command(models)
def sign(
    *,
    catalog: CatalogFolder = CATALOG,
    keys: Keys = KEYS,
    days: Days = 30,
    withdraw: Annotated[list[str] | None, typer.Option(metavar="NAME=VERSION")] = None,
    as_json: Json = False,
) -> None:
    """Sign a catalog again, so that its list of models does not expire; root.pem is not needed.

    Args:
        withdraw: Remove it from the list.

    Replaces the signed list in the catalog's folder by one that is valid for `days`.
    """
    from edgeroute.tools import catalog_keys_and_publishing as catalog_publish

    versions = [tuple(text.partition("=")[::2]) for text in withdraw or ()]
    remaining = catalog_publish.sign(catalog, keys=keys, days=days, withdraw=versions)  # type: ignore[arg-type]  # pairs
    _print(f"{catalog} is signed for {days:g} days: {len(remaining)} versions", as_json)


def _record_answers(model: Path, inputs: Path, to: Path) -> Path:
    """Run the model on the inputs of an .npz file, write inputs and answers to `to` as canaries, and return that path.

    The inputs are the array `inputs`, or `input:NAME` for each of several.

    Raises:
        BadInput: the file cannot be read, or has no inputs.
    """
    from edgeroute.catalog.catalog_client_and_updates import NAMED
    from edgeroute.router.router import Router
    from edgeroute.tools.catalog_keys_and_publishing import write_canaries

    try:
        arrays = read_arrays(inputs)
        columns = {key.removeprefix(NAMED): value for key, value in arrays.items() if key.startswith(NAMED)}
        rows = (
            [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
            if columns
            else list(arrays["inputs"])
        )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise BadInput(f"{inputs} has no inputs: an .npz file with `inputs`, or `input:NAME` for each of several ({e})") from e
    with Router(model) as router:
        write_canaries(to, rows, lambda x: router.infer(x).value)
    return to
