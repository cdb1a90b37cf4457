"""Examples for `calibrate` and `evaluate`: inputs to be answered by edge and cloud, or recorded outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from edgeroute.errors import BadInput

if TYPE_CHECKING:
    from edgeroute.router.router import Router

DATA = (
    ".npz, .npy, .png and .jpg files and folders of them, .jsonl with prompts, or `-` for stdin; "
    "or .npz files with edge_logits, cloud_logits and labels, recorded."
)
Data = Annotated[list[Path], typer.Option("--data", "-d", metavar="FILE", help=DATA, show_default=False)]
DataOrNone = Annotated[list[Path] | None, typer.Option("--data", "-d", metavar="FILE", help=DATA, show_default=False)]
Every = Annotated[int, typer.Option(min=1, help="Take each N-th alone: the frames of a film are too alike to count each.")]
EdgeNumber = Annotated[int, typer.Option("--edge", min=0, help="Which of several edge models, counted from 0.")]
DataClass = Annotated[str | None, typer.Option("--class", metavar="NAME", help="The inputs' data class.", show_default=False)]
TRUST = "taken on trust: the outputs are recorded ones, and whether they are of the policy's models cannot be seen from them"


class Given(NamedTuple):
    """Contents of the files: one of the first two is empty."""

    inputs: list[Any]
    edge: Any
    """Recorded outputs [n, classes]."""
    cloud: Any
    labels: list[Any] | None
    notes: list[str]
    """On what was read, one line each."""
    groups: list[Any] | None = None
    """The scene, user or session of each."""

    @property
    def recorded(self) -> bool:
        """Whether no model needs to run."""
        return not self.inputs


def given(paths: Sequence[Path], every: int, router: Router) -> Given:
    """Reads the files, with what the router's views take of an input, and takes every `every`-th example.

    Raises:
        BadInput: a file cannot be read, or they do not fit together.
        RuntimeMissing: there is an image, and Pillow is not installed.
    """
    import numpy as np

    from edgeroute.tools.cli.inputs import Item, Recorded, files, read_inputs, recorded

    known, items, notes = list[Recorded](), list[Item](), list[str]()
    for path in files(paths):
        found = recorded(path, notes.append)
        if found is None:
            items += read_inputs(path, router.engine.snapshot.views.keys, notes.append)
        else:
            known.append(found)
    if known and items:
        raise BadInput("some of the files hold inputs, and others recorded outputs: give one kind at a time")
    if not known and not items:
        raise BadInput(f"there are no inputs in {', '.join(map(str, paths))}")
    if not known:
        labels = _whole([item.label for item in items])
        groups = _whole([item.group for item in items], "group")
        taken = [item.x for item in items[::every]]
        return Given(taken, [], None, labels[::every] or None, notes, groups[::every] or None)
    if len({outputs.edge.shape[1:] for outputs in known}) > 1 or len({outputs.cloud is None for outputs in known}) > 1:
        raise BadInput("the recorded outputs differ in their classes, or some are of the cloud too and others are not")
    edge = np.concatenate([outputs.edge for outputs in known])[::every]
    clouds = [outputs.cloud for outputs in known if outputs.cloud is not None]
    none: list[Any] = [None]
    labels = _whole([label for o in known for label in o.labels or none * len(o.edge)])
    groups = _whole([group for o in known for group in o.groups or none * len(o.edge)], "group")
    cloud = np.concatenate(clouds)[::every] if clouds else None
    return Given([], edge, cloud, labels[::every] or None, [TRUST, *notes], groups[::every] or None)


def _whole(labels: list[Any], what: str = "label") -> list[Any]:
    """All labels, or [] if there are none; a mixture is an error."""
    missing = labels.count(None)
    if missing == len(labels):
        return []
    if missing:
        raise BadInput(f"{missing:,} of {len(labels):,} inputs have no {what}: give one for all of them, or for none")
    return labels


@contextmanager
def plain(policy: Path, **more: Any) -> Iterator[Router]:
    """The policy's router reduced to plain calls: no cache, no outbox, no audit, no hedge, no deadline.

    Args:
        policy: the file.
        more: further arguments, which override the file's.
    """
    from edgeroute.router.private_conversations import PrivateConversations
    from edgeroute.router.router import Router

    none = dict.fromkeys(("cache", "outbox", "trace", "instruments", "audit", "hedge_after", "deadline"))
    arguments: dict[str, Any] = {**none, "offline": "raise", "uncalibrated": "tell", **more}
    with Router.from_policy(policy, **arguments) as router:
        router.engine.private = PrivateConversations(None)  # examples are nobody's conversations
        yield router
