"""Base of all policy sections, and path resolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from edgeroute.errors import PolicyError

_folder = ContextVar("folder", default=Path())


@contextmanager
def of_policy(folder: Path) -> Iterator[None]:
    """Paths in the policy that is validated meanwhile start from that folder."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def policy_folder() -> Path:
    """The folder of the policy that is validated."""
    return _folder.get()


class Section(BaseModel):
    """Keys that belong together. No other key is taken, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


def at(folder: Path, given: str) -> Path:
    """Absolute path without `..`; a link at its end is not followed, since a model's card is beside the link.

    Raises:
        PolicyError: no file can have that name.
    """
    path = folder / given
    try:
        found = path.parent.resolve() / path.name
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.lstat()
    except (OSError, RuntimeError, ValueError) as e:  # too long, links in a circle, a null byte
        raise PolicyError(f"{given[:80]!r} cannot be a path: {e.strerror if isinstance(e, OSError) else e}") from None
    return found
