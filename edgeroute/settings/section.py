"""Base of all policy sections, and path resolution."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Keys that belong together. No other key is taken, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


def at(folder: Path, given: str) -> Path:
    """Absolute path without `..`; a link at its end is not followed, since a model's card is beside the link."""
    path = folder / given
    return path.parent.resolve() / path.name
