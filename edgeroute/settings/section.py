"""What every section of a policy is made of, and where the paths in it lead."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Keys that belong together. No other key is taken, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


def at(folder: Path, given: str) -> Path:
    """Absolute, without the dots; a link at its end stays, since a model's card is beside the link."""
    path = folder / given
    return path.parent.resolve() / path.name
