"""Catalogs of models: signed lists of versions, from which a device updates its models. See `docs/models.md`."""

from __future__ import annotations

from edgeroute.catalog.catalog import Catalog
from edgeroute.catalog.entry import Entry

__all__ = ["Catalog", "Entry"]
