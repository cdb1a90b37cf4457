"""Options of `calibrate` and `evaluate` for examples, the reader of examples, and routers of a policy, plain or for a look.

Routers for a look (`check`, `decide`) write nothing; those for examples make plain calls alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from math import prod
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from edgeroute.errors import BadInput, EdgerouteError, ModelError
from edgeroute.system.untrusted_files import parse_json, read_bytes

if TYPE_CHECKING:
    import sqlite3

    from edgeroute.router.router import Router
    from edgeroute.tools.cli.labelled_table_reader import Columns
    from edgeroute.tools.data_classes_of_records import EachClass

DATA = (
    ".npz, .npy, .png, .jpg, .csv and .parquet files, folders of them, also by class, .jsonl with prompts, or `-` for stdin; "
    "or .npz files with edge_logits, cloud_logits and labels, recorded."
)
Data = Annotated[list[Path], typer.Option("--data", "-d", metavar="FILE", help=DATA)]
DataOrNone = Annotated[list[Path] | None, typer.Option("--data", "-d", metavar="FILE", help=DATA)]
Every = Annotated[int, typer.Option(min=1, help="Take only each N-th example: the frames of a film are too similar.")]


def _edge_number(text: str) -> int | Literal["all"]:
    """Parse the index of an edge model, from 0, or `all`; raise `typer.BadParameter` for all else."""
    if str(text) == "all":
        return "all"
    if not str(text).isdecimal():
        raise typer.BadParameter(f"expected a number from 0, or all, found {text!r}")
    return int(text)


def one_edge(edge: int | Literal["all"] | None, what: str) -> int:
    """Return the index of the edge model, 0 for None; raise `typer.BadParameter` for "all".

    what: examples that hold the answers of one edge model, for the message.
    """
    if edge == "all":
        raise typer.BadParameter(f"{what} are of one edge model: pass the inputs", param_hint="--edge all")
    return edge or 0


EdgeNumber = Annotated[
    Any,
    typer.Option(
        "--edge", parser=_edge_number, metavar="NUMBER", help="Index of the edge model, from 0, if there are several; or `all`."
    ),
]
DataClass = Annotated[str | None, typer.Option("--data-class", "--class", metavar="NAME", help="Data class of the inputs.")]
LabelColumn = Annotated[
    str | None,
    typer.Option("--label", metavar="COLUMN", help="Column of the labels in a table; without it label, y, target or class."),
]
TRUST = "taken on trust: the outputs are recorded, and nothing shows if they come from the policy's models"


class FileExamples(NamedTuple):
    """Examples from files: inputs, or recorded outputs; the other is empty."""

    inputs: list[Any]
    edge: Any  # recorded outputs [n, classes]
    cloud: Any
    labels: list[Any] | None
    notes: list[str]  # notes on the files, one line each
    groups: list[Any] | None = None  # scene, user or session of each
    names: Sequence[str] = ()  # name of each input; empty: the outputs are recorded
    data_class: str | EachClass | None = None  # that of all inputs, or of each

    @property
    def recorded(self) -> bool:
        """True if the outputs are recorded, so that no model needs to run."""
        return not self.inputs


def read_examples(
    paths: Sequence[Path],
    every: int,
    router: Router,
    label: str | None = None,
    *,
    blanks: bool = False,
    data_class: str | None = None,
) -> FileExamples:
    """Read the files and folders, as inputs or as recorded outputs, and take every `every`-th example, with label and group.

    Inputs get the keys that the router's views need, for which an .onnx model is loaded. Labels of pictures in folders by class
    are the folders' names. Labels and groups are None if no example has any. Recorded outputs bring a note that they are taken
    on trust.

    blanks: True if some labels may be None. data_class: that of all inputs; an input that names its own has the stricter one.

    Raises:
        BadInput: a file cannot be read, there are no inputs, inputs and recorded outputs are mixed, or only some have a label or
            a group.
        RuntimeMissing: there is an image, and Pillow is not installed.
    """
    import numpy as np

    from edgeroute.tools.cli.inputs_labels_and_outputs import (
        Recorded,
        expand_folders,
        folder_labels,
        read_inputs,
        recorded_outputs,
    )
    from edgeroute.tools.cli.labelled_table_reader import Item
    from edgeroute.tools.data_classes_of_records import EachClass, stricter

    recorded, items, notes = list[Recorded](), list[Item](), list[str]()
    by_class = folder_labels(paths, edge_labels(router), notes.append)
    for path in expand_folders(paths):
        outputs_in_file = recorded_outputs(path, notes.append)
        if outputs_in_file is None:
            read = read_inputs(path, router.engine.snapshot.views.keys, notes.append, label, edge_columns(router))
            items += [item._replace(label=by_class[path]) for item in read] if path in by_class else read
        else:
            recorded.append(outputs_in_file)
    if recorded and items:
        raise BadInput("some of the files hold inputs, and others recorded outputs: pass one kind at a time")
    if not recorded and not items:
        raise BadInput(f"there are no inputs in {', '.join(map(str, paths))}")
    if not recorded:
        labels = [item.label for item in items] if blanks else all_or_none([item.label for item in items])
        groups = all_or_none([item.group for item in items], "group")
        taken, names = [item.x for item in items[::every]], [item.name for item in items[::every]]
        rules, own = router.engine.snapshot.policy.rules, [item.data_class for item in items[::every]]
        classes = EachClass(stricter(rules, data_class, name) for name in own) if any(own) else data_class
        return FileExamples(taken, [], None, labels[::every] or None, notes, groups[::every] or None, names, classes)
    if len({outputs.edge.shape[1:] for outputs in recorded}) > 1 or len({outputs.cloud is None for outputs in recorded}) > 1:
        raise BadInput("the recorded outputs differ in their classes, or only some include the cloud's")
    edge = np.concatenate([outputs.edge for outputs in recorded])[::every]
    clouds = [outputs.cloud for outputs in recorded if outputs.cloud is not None]
    none: list[Any] = [None]
    labels = all_or_none([label for o in recorded for label in o.labels or none * len(o.edge)])
    groups = all_or_none([group for o in recorded for group in o.groups or none * len(o.edge)], "group")
    cloud = np.concatenate(clouds)[::every] if clouds else None
    return FileExamples([], edge, cloud, labels[::every] or None, [TRUST, *notes], groups[::every] or None)


@contextmanager
def named_by_file(names: Sequence[str]) -> Iterator[None]:
    """Raise the error of a wrong input in the `with` block with the name of its file and line in place of its number."""
    try:
        yield
    except (BadInput, ModelError) as e:
        found = re.match(r"input (\d+)(?=: )", str(e))
        if found is None or int(found[1]) >= len(names):
            raise
        raise type(e)(names[int(found[1])] + str(e)[found.end() :]) from e.__cause__


def all_or_none(labels: list[Any], what: str = "label") -> list[Any]:
    """Return all labels, or [] if there are none; raise `BadInput` if only some are there.

    what: word for a label in the message.
    """
    missing = labels.count(None)
    if missing == len(labels):
        return []
    if missing:
        raise BadInput(f"{missing:,} of {len(labels):,} inputs have no {what}: add it to all of them, or to none")
    return labels


def edge_columns(router: Router) -> Columns:
    """Return the columns of a table that the first edge model was fitted on, by its card's `data`, else by its several inputs.

    An .onnx model is loaded for its inputs; a failure to load is ignored. `numbers` is set of a model with one plain input that
    does not take texts. No names: unknown.
    """
    from edgeroute.tools.cli.labelled_table_reader import Columns

    edges: Any = (backend for backend in router.engine.snapshot.backends if backend.side == "edge")
    model: Any = getattr(next(edges, None), "model", None)
    card = getattr(model, "card", None)
    data = parse_json(read_bytes(path)).get("data") if (path := getattr(card, "path", None)) else None
    columns = data.get("columns") if isinstance(data, dict) else None
    fitted = Columns([*map(str, columns)] if isinstance(columns, list) else ())
    if card is None or not str(getattr(model, "path", "")).lower().endswith(".onnx"):
        return fitted
    with suppress(EdgerouteError):  # its first run tells
        model.load()
    entries = {spec.name: card.of(spec.name) for spec in model.inputs}
    plain = all(entry is None or (entry.value is None and entry.preprocess is None) for entry in entries.values())
    if not fitted.names and plain and len(entries) > 1 and not card.state:
        return Columns([*entries], separate=True)
    numbers = [prod(spec.shape[1:]) for spec in model.inputs if spec.dtype != "object"]
    return fitted._replace(numbers=numbers[0] if plain and len(numbers) == len(model.inputs) == 1 else 0)


def edge_labels(router: Router) -> Any:
    """Return the names of the first edge model's classes; None: there are none, or no edge model."""
    edges: Any = (backend for backend in router.engine.snapshot.backends if backend.side == "edge")
    return next((edge.reader.labels for edge in edges), None)


@contextmanager
def looking_router(policy: Path) -> Iterator[Router]:
    """Provide the policy's router for a look, and close it: nothing is delivered, and nothing is written to the state folder.

    Spending, alarms, latencies and private conversations of earlier runs count: the router has a copy of their files in a
    temporary folder, which is deleted. The outbox and the cache are empty, and nothing is traced. Probes are in the egress
    ledger, if there is one. A state folder that cannot be read or written is the router's, so that `check` reports its problems.
    """
    from edgeroute import policy as settings
    from edgeroute.router.router import Router
    from edgeroute.stores.json_lines_and_process_locks import Journal
    from edgeroute.stores.outbox import Outbox

    configured = settings.load(policy, complete=True)
    with TemporaryDirectory(prefix="edgeroute-") as name:
        folder = Path(name)
        more: dict[str, Any] = {"trace": None}
        if configured.state:
            own = policy.parent / configured.state
            more |= {"cache": configured.cache and configured.cache.make(folder), "outbox": None}
            if configured.outbox or configured.offline == "queue":
                more["outbox"] = (configured.outbox.make if configured.outbox else Outbox)(folder / "outbox.db")
            try:
                if _is_writable(own):
                    for file in ("state.db", "conversations.db"):
                        _copy_database(own / file, folder / file)
                    for sign in own.glob("conversations.db.*-*"):  # by which all conversations stay
                        (folder / sign.name).touch()
                    more["state"] = folder
            except OSError:  # of a file that cannot be read
                pass
        with Router.from_policy(policy, **more) as router, ExitStack() as stack:
            if more.get("state") and (ledger := own / "egress.jsonl").exists():
                journal = Journal(ledger)
                for cloud in router.engine.snapshot.clouds:
                    cloud.guard.journal = journal
                stack.callback(journal.close)
            yield router


def _is_writable(folder: Path) -> bool:
    """Return True if files can be made in a folder, or the folder itself. Raises OSError if that is unknown."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _copy_database(path: Path, to: Path) -> None:
    """Copy a SQLite file that another process may write; nothing if there is none, and byte for byte if it is damaged.

    Creates no file beside `path`.
    """
    import sqlite3

    if not path.is_file():
        return
    try:
        with read_only(path) as source, closing(sqlite3.connect(to)) as copy:
            source.backup(copy)
    except sqlite3.Error:
        copyfile(path, to)


def read_only(path: Path) -> closing[sqlite3.Connection]:
    """Open a SQLite file that another process may write, for reading in a `with` block. Creates no file beside it.

    Raises sqlite3.OperationalError for what is no regular file: SQLite would wait for the writer of a pipe.
    """
    import sqlite3

    if not path.is_file():
        raise sqlite3.OperationalError("it is no regular file")
    # without a journal file nobody has it open: opened this way, none is created either
    immutable = "" if path.with_name(f"{path.name}-wal").exists() else "&immutable=1"
    return closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro{immutable}", uri=True))


@contextmanager
def plain_router(policy: Path, **more: Any) -> Iterator[Router]:
    """Provide the policy's router reduced to plain calls, and close it: no cache, outbox, audit, parts, trace, hedge, deadline.

    Where the cloud fails it raises; a missing calibration is only logged. Private conversations stay, and an input makes none.

    Args:
        policy: the policy file.
        more: further arguments of `Router.from_policy`, which override the file's.
    """
    from edgeroute.router.router import Router
    from edgeroute.tools.measure.read_only_private_conversations import KnownConversations

    none = dict.fromkeys(("cache", "outbox", "trace", "instruments", "audit", "hedge_after", "deadline"))
    arguments: dict[str, Any] = {**none, "parts": (), "offline": "raise", "uncalibrated": "tell", **more}
    with Router.from_policy(policy, **arguments) as router:
        engine = router.engine
        stored = None if engine.state is None else engine.state / "conversations.db"
        with closing(KnownConversations(stored, engine.local_threads.submit)) as engine.private:
            yield router
