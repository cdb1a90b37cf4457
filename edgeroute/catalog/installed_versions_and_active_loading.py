"""Models that a device has (`Installed`): verification, activation, rollback, pins, status; loading by a router (`active_model`).

`Installed` changes which version is active, under a lock of all processes. No catalog is read here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.catalog.catalog_entry import Entry, checked_version, entries, fits, own_version
from edgeroute.catalog.model_folder_and_downloads import Pointer, Store, pointer
from edgeroute.edge.runtimes_variants_ensemble import ACTIVE, load
from edgeroute.errors import CatalogError, ModelMissing, PolicyError
from edgeroute.system.contained_calls_and_tasks import set_within
from edgeroute.system.untrusted_files import read_bytes
from edgeroute.types import EdgeModel

KNOWN = "catalog.json"  # name of the file with the list that was read last


class ModelStatus(NamedTuple):
    """State of one model of a device.

    Attributes:
        active: version in use; empty: none.
        previous: version in use before; empty: none.
        pinned: True if updates do not change the active version.
        here: versions that are on the device.
        newest: last published version that this edgeroute can run, by the list that was read last; empty: none.
        refused: versions that updates do not try again, with the reasons.
        problems: problems of the active version, in words; empty: none.
    """

    name: str
    active: str
    previous: str
    pinned: bool
    here: tuple[str, ...]
    newest: str
    refused: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


class Installed:
    """Models on a device: verifies, activates, pins, rolls back, reports and deletes versions. Reads no catalog."""

    def __init__(self, store: Path) -> None:
        self.store = Store(store)

    def entries(self, name: str | None = None) -> tuple[Entry, ...]:
        """Return the list that was read from the catalog last, in order of publication. Empty if there is none, or damaged."""
        try:
            listed = entries(read_bytes(self.store.folder / KNOWN))
        except (OSError, CatalogError):  # there is none yet, or it was damaged: it is read again with the next download
            return ()
        return tuple(entry for entry in listed if name is None or entry.name == name)

    def entry(self, name: str, version: str | None = None) -> Entry:
        """Return the entry of a version in the list that was read last; without `version` the newest that this edgeroute can run.

        Raises:
            CatalogError: there is none, or it needs a newer edgeroute.
        """
        versions = self.entries(name)
        if not versions:
            known = sorted({entry.name for entry in self.entries()})
            raise CatalogError(f"the catalog has no model {name!r}: it has {', '.join(known) or 'none'}")
        if version is None:
            usable = [entry for entry in versions if fits(entry.requires, own_version())]
            return usable[-1] if usable else _checked_requires(versions[-1])
        for entry in versions:
            if entry.version == version:
                return _checked_requires(entry)
        raise CatalogError(f"the catalog has no {name} {version}: it has {', '.join(entry.version for entry in versions)}")

    def verify(self, name: str, version: str | None = None) -> Entry:
        """Read the files of a version on this device, compare them with the signed size and hash, and return its entry.

        Args:
            name: name of the model.
            version: None: the active one.

        Raises:
            ModelMissing: the version is not on the device.
            CatalogError: a file is damaged.
        """
        version = version or self.active(name).version
        entry = self.store.entry(name, version)
        if (entry.name, entry.version) != (name, version):
            raise CatalogError(f"{name} {version}: its entry is that of {entry.name} {entry.version}")
        wrong = self.store.problems(entry)
        if wrong:
            problems = "; ".join(f"{path} {why}" for path, why in wrong.items())
            raise CatalogError(f"{name} {version}: {problems}: edgeroute models pull {name} --version {version} gets it again")
        return entry

    def active(self, name: str) -> Pointer:
        """Return which version is active, with the state of its update.

        Raises:
            ModelMissing: no version is active.
        """
        active = self.store.pointer(name)
        if active is None:
            raise ModelMissing(f"{self.store.folder}: no version of {name} is active: edgeroute models activate {name}")
        return active

    def path(self, name: str, version: str | None = None) -> Path:
        """Return the path to give to a router: the file that names the active version, or a path that stands for this version.

        It need not exist.
        """
        file = self.store.pointer_file(name)
        return file if version is None else file.with_name(f"{name}@{checked_version(version)}{file.suffix}")

    def activate(self, name: str, version: str | None = None, *, trial: int = 0) -> Pointer:
        """Verify a version on this device and make it the active one, for routers that are created or reloaded from now on.

        A no-op if it is active already, whatever `trial`. It is no longer refused, and the present version becomes the previous
        one.

        Args:
            name: name of the model.
            version: None: the newest that is published and here.
            trial: number of starts on trial, see `mark`; 0: confirmed.

        Raises:
            ModelMissing: the version is not on the device.
            CatalogError: a file is damaged.
            StoreError: the change cannot be written; the old version stays active.
        """
        with self.store.pointing():
            return self._activate(name, version or self._newest_here(name), trial)

    def _newest_here(self, name: str) -> str:
        """Return the version on this device that was published last. Raise ModelMissing if there is none.

        Versions that are not listed count only if none is.
        """
        here = self.store.versions(name)
        versions = [entry.version for entry in self.entries(name) if entry.version in here] or here
        if not versions:
            raise ModelMissing(f"{self.store.folder}: there is no version of {name}: edgeroute models pull {name}")
        return versions[-1]

    def _activate(self, name: str, version: str, trial: int = 0) -> Pointer:
        """Verify and activate a version, for a caller that has the turn; no change if it is active already.

        Raises as `activate` does.
        """
        _checked_requires(self.verify(name, version))
        old = Pointer("")
        with suppress(CatalogError):  # it is damaged: this is how it is repaired
            old = self.store.pointer(name) or old
        if old.version == version:
            return old
        refused = tuple((v, why) for v, why in old.refused if v != version)
        new = Pointer(version, old.version, old.pinned, refused, trial)
        self.store.point(name, new)
        return new

    def rollback(self, name: str, *, why: str = "") -> Pointer:
        """Verify the previous version and make it active again. Updates will not activate the version that was in use any more.

        Then there is no previous version any more; a pin stays.

        Args:
            name: name of the model.
            why: reason shown by `status`.

        Raises:
            ModelMissing: there is no previous version, or it is not here any more.
            CatalogError: a file of it is damaged.
            StoreError: the change cannot be written.
        """
        with self.store.pointing():
            old = self.active(name)
            if not old.previous:
                raise ModelMissing(f"{self.store.folder}: there was no version of {name} before {old.version}")
            self.verify(name, old.previous)
            new = Pointer(old.previous, "", old.pinned, _refused_with(old, old.version, why or "rolled back by hand"))
            self.store.point(name, new)
        return new

    def refuse(self, name: str, version: str, why: str) -> None:
        """Record in the model's pointer file that updates are not to try this version again, with the reason.

        Also clears `tried`, the version being tried. Keeps the latest 20. Raises ModelMissing if no version is active.
        """
        with self.store.pointing():
            old = self.active(name)
            self.store.point(name, old._replace(refused=_refused_with(old, version, why), tried=""))

    def mark(self, name: str, **changes: Any) -> None:
        """Set fields of the stored `Pointer`, other than its versions: the progress of an update.

        Raises ModelMissing if no version is active.
        """
        with self.store.pointing():
            self.store.point(name, self.active(name)._replace(**changes))

    def pin(self, name: str, version: str | None = None, *, pinned: bool = True) -> Pointer:
        """Keep updates from changing the active version (`pinned=False`: let them again); activate `version` first, if given.

        Raises:
            ModelMissing, CatalogError, StoreError: see `activate`.
        """
        with self.store.pointing():
            new = (self._activate(name, version) if version else self.active(name))._replace(pinned=pinned)
            self.store.point(name, new)
        return new

    def remove(self, name: str, version: str) -> None:
        """Delete a version that is not active from the device; waits up to 10 s for a change of the active version.

        Raises:
            PolicyError: the version is active.
            ModelMissing: the version is not on the device.
            StoreError: another process or thread downloads, or the files cannot be deleted.
        """
        with self.store.downloading(), self.store.pointing():
            now = self.store.pointer(name)
            if now is not None and now.version == version:
                raise PolicyError(f"{name} {version} is active: activate another version before")
            if version not in self.store.versions(name):
                raise ModelMissing(f"{name} {version} is not in {self.store.folder}")
            self.store.remove(name, version)

    def prune(self, name: str) -> list[str]:
        """Delete the versions that are neither active nor the previous one, and return them.

        Waits up to 10 s for a change of the active version. Raises ModelMissing if no version is active, StoreError at once if
        another process or thread downloads.
        """
        with self.store.downloading(), self.store.pointing():
            now = self.active(name)
            gone = [version for version in self.store.versions(name) if version not in {now.version, now.previous}]
            for version in gone:
                self.store.remove(name, version)
        return gone

    def status(self) -> tuple[ModelStatus, ...]:
        """Return the state of each model of this device, without reading the catalog. Verifies the active versions' files.

        A damaged one is reported in its `problems`, not raised.
        """
        published = self.entries()  # once: it may have thousands
        usable = {entry.name: entry.version for entry in published if fits(entry.requires, own_version())}  # the last of each
        known = {entry.name for entry in published}
        return tuple(self._status(name, usable.get(name, "")) for name in sorted({*self.store.names(), *known}))

    def _status(self, name: str, newest: str) -> ModelStatus:
        """Return the state of one model, after verifying its files. Problems are reported, not raised."""
        problems, now = list[str](), None
        try:
            now = self.store.pointer(name)
            if now is not None:
                self.verify(name, now.version)
        except (CatalogError, ModelMissing) as e:
            problems.append(str(e))
        active = now or Pointer("")
        here = tuple(self.store.versions(name))
        more = newest, active.refused, tuple(problems)
        return ModelStatus(name, active.version, active.previous, active.pinned, here, *more)


def _checked_requires(entry: Entry) -> Entry:
    """Return the entry unchanged if this edgeroute meets its `requires`.

    Raises:
        CatalogError: it needs a newer one.
    """
    if not fits(entry.requires, own_version()):
        needs = f"{entry.name} {entry.version} needs edgeroute {entry.requires}"
        raise CatalogError(f"{needs}, and this is {own_version()}: update edgeroute")
    return entry


def _refused_with(old: Pointer, version: str, why: str) -> tuple[tuple[str, str], ...]:
    """Return the refused versions with one more; the latest 20."""
    return (*((v, w) for v, w in old.refused if v != version), (version, why))[-20:]


# Loading of the active version by a router, which has `STORE/NAME.active` in place of a model's file.

_trying: ContextVar[tuple[Path, str] | None] = ContextVar("trying", default=None)


class Release(NamedTuple):
    """Version of a catalog that a loaded model is."""

    pointer: Path  # file that names the active version
    name: str
    version: str
    certificate: Path | None  # path of its threshold's certificate; None: it has none
    canaries: Path | None  # path of its inputs with right answers; None: it has none
    trial: bool = False  # True if the version is tried before it is activated: then its certificate has to hold

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def trying(path: Path, version: str) -> AbstractContextManager[None]:
    """Load this version of the model at `path`, not the active one, within the `with` block, in this thread or task only."""
    return set_within(_trying, (resolved_folder(path), version))


def version_of(path: str | Path) -> str:
    """Return the version that a path `NAME.active` stands for now.

    That is the one in its name, `NAME@VERSION`; else that of a block `with trying(path, ...)` around the call; else the active.

    Raises:
        ModelMissing: no version is active.
        CatalogError, StoreError: the file that names it is damaged, or cannot be read.
    """
    path = Path(path)
    fixed = path.name.removesuffix(ACTIVE).partition("@")[2]
    if fixed:
        return fixed
    trial = _trying.get()
    if trial is not None and trial[0] == resolved_folder(path):
        return trial[1]
    active = pointer(path)
    if active is None:
        raise ModelMissing(f"no version of {_name(path)} is active in {path.parent}: edgeroute models activate {_name(path)}")
    return active.version


def resolved_folder(path: Path) -> Path:
    """Return the path with links resolved except for its last part: equal for two paths of one file."""
    return path.parent.resolve() / path.name


def model_file(path: str | Path) -> Path:
    """Return the path of the model's own file, or folder, in the version that a path `NAME.active` stands for now.

    Raises:
        ModelMissing, CatalogError, StoreError: see `version_of`; or its files are gone.
    """
    store, name = Store(Path(path).parent), _name(path)
    version = version_of(path)
    return store.version(name, version) / store.entry(name, version).model


def _name(path: str | Path) -> str:
    """Return the model's name in such a path."""
    return Path(path).name.removesuffix(ACTIVE).partition("@")[0]


def active_model(path: str | Path, **options: Any) -> EdgeModel:
    """Load the version that is active now, and return the model with its `Release` as the attribute `release`.

    Within `trying`, the version on trial is loaded instead. Files are not verified here.

    Args:
        path: path of the file that names it, `NAME.active`; `NAME@VERSION.active` is that version, active or not.
        options: options of its runtime's class, as for the model's file.

    Raises:
        ModelMissing: no version is active, or its files are gone.
        CatalogError: the entry or the file that names the version is damaged.
        PolicyError, RuntimeMissing: as for the model's file; PolicyError: the model takes no attribute.
    """
    path = Path(path)
    store, name = Store(path.parent), _name(path)
    trial, version = _trying.get(), version_of(path)
    entry, folder = store.entry(name, version), store.version(name, version)
    model = load(folder / entry.model, **options)
    release = Release(
        path, name, version,
        folder / entry.certificate if entry.certificate else None, folder / entry.canaries if entry.canaries else None,
        trial is not None and trial[0] == resolved_folder(path),
    )  # fmt: skip
    try:
        model.release = release  # type: ignore[attr-defined]
    except AttributeError as e:
        raise PolicyError(f"{type(model).__name__} takes no attribute release, which a model of a catalog has: add it") from e
    return model
