"""The models that a device has: verified, activated, rolled back, pinned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.catalog.entry import Entry, checked_version, entries, fits, own_version
from edgeroute.catalog.store import SUFFIX, Pointer, Store, pointer
from edgeroute.edge.runtimes import load
from edgeroute.errors import CatalogError, ModelMissing, PolicyError
from edgeroute.types import EdgeModel

KNOWN = "catalog.json"


class ModelStatus(NamedTuple):
    """One model of a device."""

    name: str
    active: str
    """The version in use; empty: none."""
    previous: str
    """The one before."""
    pinned: bool
    """Whether updates leave the active version as it is."""
    here: tuple[str, ...]
    """The versions that are on the device."""
    newest: str
    """The last one published that this edgeroute can run, as far as is known; empty: none."""
    refused: tuple[tuple[str, str], ...]
    """Versions that updates do not try again, with the reasons."""
    problems: tuple[str, ...]
    """What is wrong with the active version."""


class Installed:
    """The models that are on a device. Asks no catalog.

    Args:
        store: the folder of the models.
    """

    def __init__(self, store: Path) -> None:
        self.store = Store(store)

    def entries(self, name: str | None = None) -> tuple[Entry, ...]:
        """What was read from the catalog last, in the order of publication; of one model, or of all."""
        try:
            found = entries((self.store.folder / KNOWN).read_bytes())
        except (OSError, CatalogError):  # there is none yet, or it was damaged: it is read again with the next download
            return ()
        return tuple(entry for entry in found if name is None or entry.name == name)

    def entry(self, name: str, version: str | None = None) -> Entry:
        """The newest version of a model that this edgeroute can run, or the one asked for.

        Raises:
            CatalogError: there is none.
        """
        found = self.entries(name)
        if not found:
            known = sorted({entry.name for entry in self.entries()})
            raise CatalogError(f"the catalog has no model {name!r}: it has {', '.join(known) or 'none'}")
        if version is None:
            usable = [entry for entry in found if fits(entry.requires, own_version())]
            if not usable:
                raise CatalogError(f"{name} needs edgeroute {found[-1].requires}, and this is {own_version()}: update edgeroute")
            return usable[-1]
        for entry in found:
            if entry.version == version:
                if not fits(entry.requires, own_version()):
                    raise CatalogError(
                        f"{name} {version} needs edgeroute {entry.requires}, and this is {own_version()}: update it"
                    )
                return entry
        raise CatalogError(f"the catalog has no {name} {version}: it has {', '.join(entry.version for entry in found)}")

    def verify(self, name: str, version: str | None = None) -> Entry:
        """Compares the files of a version that is here with what was signed, by size and hash.

        Args:
            name: of the model.
            version: None: the active one.

        Raises:
            ModelMissing: it is not here.
            CatalogError: a file is damaged.
        """
        return self._verified(name, version or self.active(name).version)

    def _verified(self, name: str, version: str) -> Entry:
        entry = self.store.entry(name, version)
        if (entry.name, entry.version) != (name, version):
            raise CatalogError(f"{name} {version}: its entry is another one's, of {entry.name} {entry.version}")
        wrong = self.store.problems(entry)
        if wrong:
            told = "; ".join(f"{path} {why}" for path, why in wrong.items())
            raise CatalogError(f"{name} {version}: {told}: edgeroute models pull {name} --version {version} gets it again")
        return entry

    def active(self, name: str) -> Pointer:
        """Which version is active.

        Raises:
            ModelMissing: none is.
        """
        found = self.store.pointer(name)
        if found is None:
            raise ModelMissing(f"{self.store.folder}: no version of {name} is active: edgeroute models activate {name}")
        return found

    def path(self, name: str, version: str | None = None) -> Path:
        """What a router takes as the model's path: the file that names the active version, or a path for that version."""
        file = self.store.pointer_file(name)
        return file if version is None else file.with_name(f"{name}@{checked_version(version)}{file.suffix}")

    def activate(self, name: str, version: str | None = None, *, trial: int = 0) -> Pointer:
        """Puts a version in use that is here, once its files are verified: for routers that are made or reloaded from now on.

        Args:
            name: of the model.
            version: None: the newest that is published and here.
            trial: as of `mark`.

        Raises:
            ModelMissing: it is not here.
            CatalogError: a file is damaged.
            StoreError: the change cannot be written; the old version stays active.
        """
        with self.store.pointing():
            return self._activate(name, version or self._newest_here(name), trial)

    def _newest_here(self, name: str) -> str:
        here = self.store.versions(name)
        found = [entry.version for entry in self.entries(name) if entry.version in here] or here
        if not found:
            raise ModelMissing(f"{self.store.folder}: there is no version of {name}: edgeroute models pull {name}")
        return found[-1]

    def _activate(self, name: str, version: str, trial: int = 0) -> Pointer:
        entry = self._verified(name, version)
        if not fits(entry.requires, own_version()):
            raise CatalogError(f"{name} {version} needs edgeroute {entry.requires}, and this is {own_version()}: update it")
        old = Pointer("")
        with suppress(CatalogError):  # it is damaged: this is how it is repaired
            old = self.store.pointer(name) or old
        if old.version == version:
            return old
        refused = tuple((v, why) for v, why in old.refused if v != version)
        made = Pointer(version, old.version, old.pinned, refused, trial)
        self.store.point(name, made)
        return made

    def rollback(self, name: str, *, why: str = "") -> Pointer:
        """Puts the version before in use again. The one that was in use is not activated by updates any more.

        Args:
            name: of the model.
            why: shown by `status`.

        Raises:
            ModelMissing: there is no version before, or it is not here any more.
            CatalogError: a file of it is damaged.
            StoreError: the change cannot be written.
        """
        with self.store.pointing():
            old = self.active(name)
            if not old.previous:
                raise ModelMissing(f"{self.store.folder}: there was no version of {name} before {old.version}")
            self._verified(name, old.previous)
            made = Pointer(old.previous, "", old.pinned, _refused(old, old.version, why or "rolled back by hand"))
            self.store.point(name, made)
        return made

    def refuse(self, name: str, version: str, why: str) -> None:
        """Remembers that updates are not to try this version again."""
        with self.store.pointing():
            old = self.active(name)
            self.store.point(name, old._replace(refused=_refused(old, version, why), tried=""))

    def mark(self, name: str, **changes: Any) -> None:
        """Notes of an update how far it is: fields of `Pointer`, other than its versions."""
        with self.store.pointing():
            self.store.point(name, self.active(name)._replace(**changes))

    def pin(self, name: str, version: str | None = None, *, pinned: bool = True) -> Pointer:
        """Keeps updates from changing the active version, which is this one from now on; or lets them again.

        Raises:
            ModelMissing, CatalogError, StoreError: as `activate`.
        """
        with self.store.pointing():
            made = (self._activate(name, version) if version else self.active(name))._replace(pinned=pinned)
            self.store.point(name, made)
        return made

    def remove(self, name: str, version: str) -> None:
        """Deletes a version that is not active from the device.

        Raises:
            PolicyError: it is active.
            ModelMissing: it is not here.
        """
        with self.store.downloading(), self.store.pointing():
            now = self.store.pointer(name)
            if now is not None and now.version == version:
                raise PolicyError(f"{name} {version} is active: activate another version before")
            if version not in self.store.versions(name):
                raise ModelMissing(f"{name} {version} is not in {self.store.folder}")
            self.store.remove(name, version)

    def prune(self, name: str) -> list[str]:
        """Deletes the versions that are neither active nor the one before. -> those."""
        with self.store.downloading(), self.store.pointing():
            now = self.active(name)
            gone = [version for version in self.store.versions(name) if version not in {now.version, now.previous}]
            for version in gone:
                self.store.remove(name, version)
        return gone

    def status(self) -> tuple[ModelStatus, ...]:
        """The models of this device, as far as is known without asking the catalog."""
        published = self.entries()  # once: it may have thousands
        usable = {entry.name: entry.version for entry in published if fits(entry.requires, own_version())}  # the last of each
        known = {entry.name for entry in published}
        return tuple(self._status(name, usable.get(name, "")) for name in sorted({*self.store.names(), *known}))

    def _status(self, name: str, newest: str) -> ModelStatus:
        problems, now = list[str](), None
        try:
            now = self.store.pointer(name)
            if now is not None:
                self._verified(name, now.version)
        except (CatalogError, ModelMissing) as e:
            problems.append(str(e))
        found = now or Pointer("")
        return ModelStatus(
            name,
            found.version,
            found.previous,
            found.pinned,
            tuple(self.store.versions(name)),
            newest,
            found.refused,
            tuple(problems),
        )


def _refused(old: Pointer, version: str, why: str) -> tuple[tuple[str, str], ...]:
    return (*((v, w) for v, w in old.refused if v != version), (version, why))[-20:]


# The active version of a model, as a router takes it: `STORE/NAME.active` in the place of a model's file.

_trying: ContextVar[tuple[Path, str] | None] = ContextVar("trying", default=None)


class Release(NamedTuple):
    """Which version of a catalog a model is."""

    pointer: Path
    """The file that names the active one."""
    name: str
    version: str
    certificate: Path | None
    """Of its threshold; None: it has none."""
    canaries: Path | None
    """Inputs with their right answers, likewise."""
    trial: bool = False
    """Whether it is tried before it is activated: then its certificate has to hold."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@contextmanager
def trying(path: Path, version: str) -> Iterator[None]:
    """In this thread, or task, that version is taken in place of the active one: to try it before it is activated."""
    token = _trying.set((located(path), version))
    try:
        yield
    finally:
        _trying.reset(token)


def version_of(path: str | Path) -> str:
    """The version that such a path stands for now.

    Raises:
        ModelMissing: none is active.
        CatalogError, StoreError: what is there is damaged, or cannot be read.
    """
    path = Path(path)
    fixed = path.name.removesuffix(SUFFIX).partition("@")[2]
    if fixed:
        return fixed
    trial = _trying.get()
    if trial is not None and trial[0] == located(path):
        return trial[1]
    found = pointer(path)
    if found is None:
        name = path.name.removesuffix(SUFFIX)
        raise ModelMissing(f"no version of {name} is active in {path.parent}: edgeroute models activate {name}")
    return found.version


def located(path: Path) -> Path:
    """The path without links but for the last part: equal for two of one file, as a policy's are."""
    return path.parent.resolve() / path.name


def model_file(path: str | Path) -> Path:
    """The model's own file, or folder, of the version that such a path stands for now.

    Raises:
        ModelMissing, CatalogError, StoreError: as `version_of`; or its files are gone.
    """
    store, name = Store(Path(path).parent), _name(path)
    version = version_of(path)
    return store.version(name, version) / store.entry(name, version).model


def _name(path: str | Path) -> str:
    return Path(path).name.removesuffix(SUFFIX).partition("@")[0]


def active_model(path: str | Path, **options: Any) -> EdgeModel:
    """The model of the version that is active now, with its `release`.

    Args:
        path: of the file that names it, `NAME.active`; `NAME@VERSION.active` is that version, active or not.
        options: of its runtime's class, as for the model's file.

    Raises:
        ModelMissing: no version is active, or its files are gone.
        CatalogError: what is there is damaged.
        PolicyError, RuntimeMissing: as for the model's file.
    """
    path = Path(path)
    store, name = Store(path.parent), _name(path)
    trial, version = _trying.get(), version_of(path)
    entry, folder = store.entry(name, version), store.version(name, version)
    model = load(folder / entry.model, **options)
    release = Release(
        path, name, version,
        folder / entry.certificate if entry.certificate else None, folder / entry.canaries if entry.canaries else None,
        trial is not None and trial[0] == located(path),
    )  # fmt: skip
    try:
        model.release = release  # type: ignore[attr-defined]
    except AttributeError as e:
        raise PolicyError(f"{type(model).__name__} takes no attribute release, which a model of a catalog has: add it") from e
    return model
