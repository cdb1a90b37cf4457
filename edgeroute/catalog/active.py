"""The active version of a model, as a router takes it: `STORE/NAME.active` in the place of a model's file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from edgeroute.catalog.store import SUFFIX, Store, pointer
from edgeroute.edge.load import load
from edgeroute.errors import ModelMissing, PolicyError
from edgeroute.types import EdgeModel

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
