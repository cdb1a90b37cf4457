"""Catalogs of models: signed lists of versions, from which a device updates its models (docs/models.md)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeroute.catalog.catalog_client_and_updates import Catalog, Step, Updater
    from edgeroute.catalog.catalog_entry import Entry
    from edgeroute.catalog.installed_versions_and_active_loading import ModelStatus
    from edgeroute.catalog.model_folder_and_downloads import Progress

_MODULE_OF = {
    "Entry": "catalog_entry", "ModelStatus": "installed_versions_and_active_loading", "Progress": "model_folder_and_downloads",
    **dict.fromkeys(("Catalog", "Step", "Updater"), "catalog_client_and_updates"),
}  # fmt: skip

__all__ = ["Catalog", "Entry", "ModelStatus", "Progress", "Step", "Updater"]


def __getattr__(name: str) -> Any:
    """Import the module of a public name at its first use: a router needs few of them. Stores it in the module."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'edgeroute.catalog' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"edgeroute.catalog.{_MODULE_OF[name]}"), name)
    return value
