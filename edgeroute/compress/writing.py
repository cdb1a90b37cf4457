"""Writes a made model and its card in one go: both, or nothing."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgeroute.edge.card import Card, sha256_of
from edgeroute.edge.external import external_data
from edgeroute.errors import PolicyError, StoreError


def target(path: Path, out: Path | None, word: str, *, overwrite: bool) -> Path:
    """Where the made model goes: beside the original, with a word in its name, unless it is said.

    Raises:
        PolicyError: it is the original or would replace its weights, has another suffix, or is there already.
    """
    found = out or path.with_name(f"{path.stem}.{word}{path.suffix}")
    if found.suffix.lower() != path.suffix.lower():
        raise PolicyError(f"{found}: the model that is made of {path.name} ends in {path.suffix}, too")
    if found.resolve() == path.resolve() or found.with_suffix(".json").resolve() == path.with_suffix(".json").resolve():
        raise PolicyError(f"{found} is the original: give another name by --out")
    weights = external_data(path)
    written = [found, found.with_suffix(".json"), *([found.with_name(f"{found.name}.data")] if weights else [])]
    if taken := {one.resolve() for one in weights} & {one.resolve() for one in written}:
        raise PolicyError(
            f"{found} would replace {min(taken).name}, which has weights of the original: give another name by --out"
        )
    for one in written:
        if one.exists() and not overwrite:
            raise PolicyError(f"{one} is there already: give another name by --out, or --force")
    if not found.parent.is_dir():
        raise PolicyError(f"{found}: there is no folder {found.parent}")
    return found


@contextmanager
def workplace(out: Path) -> Iterator[Path]:
    """A folder on the disk of the result, which goes with all that was not put in place.

    Raises:
        StoreError: the disk is full, or may not be written to.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{out.stem}.", dir=out.parent) as folder:
            yield Path(folder)
    except OSError as e:
        if isinstance(e, StoreError) or e.errno is None:
            raise
        raise StoreError(e.errno, f"{out} cannot be written: {e.strerror}") from e


def write_card(made: Path, original: Card, step: str) -> Path:
    """The original's card for the made model, beside it: with its file, size and sha256, and what was done."""
    data: dict[str, Any] = {}
    if original.path is not None:
        data = json.loads(original.path.read_text(encoding="utf-8"))
    steps = data.get("steps")
    data |= {"file": made.name, "sha256": sha256_of(made)} | ({"bytes": made.stat().st_size} if "bytes" in data else {})
    data["steps"] = [*(steps if isinstance(steps, list) else [] if steps is None else [steps]), {"step": step}]
    path = made.with_suffix(".json")
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def put(folder: Path, out: Path) -> None:
    """Moves all from the workplace beside `out`; the model comes after its weights and before its card, which has its sha256."""
    order = {out.name: 1, out.with_suffix(".json").name: 2}
    for file in sorted(folder.iterdir(), key=lambda file: order.get(file.name, 0)):
        os.replace(file, out.parent / file.name)  # noqa: PTH105 - Path.replace is the same
