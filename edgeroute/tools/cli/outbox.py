from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeroute.errors import BadInput, PolicyError, StoreError
from edgeroute.tools.cli.exits import FAILED, OK, exits, line
from edgeroute.tools.cli.tables import Json, table

if TYPE_CHECKING:
    from edgeroute.stores.outbox import Outbox

MOST_ROWS = 500
"""Maximum number of entries shown, the latest."""

OfPolicy = Annotated[
    Path | None, typer.Option("--policy", "-p", metavar="FILE", help="The policy whose state folder it is.", show_default=False)
]
InFolder = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="The state folder, instead of a policy.", show_default=False)
]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="As `list` shows them.", show_default=False)]

outbox = typer.Typer(
    name="outbox",
    no_args_is_help=True,
    help="Shows and changes what waits to be sent. A router may use the same files meanwhile.",
)


@outbox.command("list")
@exits
def listed(
    *,
    policy: OfPolicy = None,
    state: InFolder = None,
    state_is: Annotated[
        Literal["waiting", "answered", "dead"] | None, typer.Option(help="Those in this state alone.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> int:
    """Shows the entries, and totals by final state."""
    with _opened(policy, state) as box:
        if as_json:
            separator = '{"entries": ['
            for entry in box.pages(state_is):
                print(separator, _dumps(entry._asdict()), sep="", end="")
                separator = ", "
            print("" if separator == ", " else separator, f'], "counts": {_dumps(box.counts())}}}', sep="")
            return OK
        entries, counts = box.list(state_is, latest=MOST_ROWS), box.counts()
        total = box.size(state_is)
    columns = ("id", "state", "target", "class", "queued", "attempts", "bytes", "error")
    cells = [(e.id, e.state, e.target, e.data_class, when(e.queued_at), e.attempts, e.bytes, e.error) for e in entries]
    table(columns, cells, [name for name in columns if name not in {"attempts", "bytes"}])
    if total > MOST_ROWS:
        print(f"these are the latest {MOST_ROWS:,} of {total:,}; --json has them all")
    now = {name: counts.pop(name) for name in ("waiting", "bytes")}
    for label, numbers in (("since the file was made", counts), ("now", now)):
        print(f"{label}: {', '.join(f'{n:,} {name}'.replace('_', ' ') for name, n in numbers.items())}")
    return OK


@outbox.command()
@exits
def retry(
    ids: Ids = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All that are dead.")] = False,
    policy: OfPolicy = None,
    state: InFolder = None,
    as_json: Json = False,
) -> int:
    """Requeues dead letters, with a new time to live. Sends nothing: a router that uses the file does."""
    names = _chosen(ids, every, "--all")
    with _opened(policy, state) as box:
        dead = {name for name, state_is in box.states(names or ()).items() if state_is == "dead"}
        count = box.retry(names)
    print(_dumps({"requeued": count}) if as_json else f"{count:,} wait again")
    return _missing(names, dead, "there is no dead entry with this id", as_json=as_json)


@outbox.command()
@exits
def drop(
    ids: Ids = None,
    *,
    every: Annotated[bool, typer.Option("--all-dead", help="All that are dead.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    policy: OfPolicy = None,
    state: InFolder = None,
    as_json: Json = False,
) -> int:
    """Deletes entries permanently, including answers not yet delivered to the application."""
    names = _chosen(ids, every, "--all-dead")
    with _opened(policy, state) as box:
        there = {entry.id: entry.state for entry in box.pages("dead")} if names is None else box.states(names)
        going = [*there] if names is None else [name for name in names if name in there]
        states = ", ".join(sorted({there[name] for name in going}))
        if going and not yes:
            print(f"remove {len(going):,} ({states}) for good? [y/N]: ", end="", file=sys.stderr, flush=True)  # not on stdout
            if sys.stdin is None or sys.stdin.readline().strip().lower() not in {"y", "yes"}:
                raise typer.Abort
        count = box.drop(going)
    print(_dumps({"removed": count}) if as_json else f"{count:,} removed")
    return _missing(names, there, "there is no entry with this id", as_json=as_json)


@outbox.command()
@exits
def export(
    *,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A new file, which only you may read, instead of stdout.", show_default=False),
    ] = None,
    policy: OfPolicy = None,
    state: InFolder = None,
    as_json: Json = False,
) -> int:
    """Prints every entry with all its contents, including user data, as a line of JSON; bytes are base64."""
    with _opened(policy, state) as box:
        if out is None:
            for entry in box.export():
                print(_dumps(entry))
            return OK
        lines = (_dumps(entry) for entry in box.export())
        try:
            with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                count = sum(file.write(line + "\n") > 0 for line in lines)
        except StoreError:
            raise
        except OSError as e:
            raise StoreError(f"{out}: {e.strerror or e}") from e
    print(_dumps({"entries": count, "file": str(out)}) if as_json else f"{count:,} entries in {out}")
    return OK


def folder(policy: Path | None, state: Path | None) -> Path:
    """The state folder, whether it exists or not.

    Raises:
        PolicyError: the policy is invalid, or has no state folder.
    """
    if state is not None and policy is None:
        return state
    if policy is None or state is not None:
        raise typer.BadParameter("one of the two is needed", param_hint="--policy or --state")
    from edgeroute import policy as settings
    from edgeroute.policy.singles import at

    given = settings.load(policy).state
    if given is None:
        raise PolicyError(f"{policy}: there is no state in it: nothing is kept")
    return at(policy.parent, given)


def when(at: float) -> str:
    """Formats an instant, seconds since 1970, in local time; one that no calendar has, which a file may hold, in seconds."""
    try:
        return datetime.fromtimestamp(at, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return f"{at:g} s"


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        from edgeroute.system.process import plain

        return json.dumps(plain(value))


@contextlib.contextmanager
def _opened(policy: Path | None, state: Path | None) -> Iterator[Outbox]:
    path = folder(policy, state) / "outbox.db"
    if not os.access(path, os.R_OK):  # opening it would create one
        raise BadInput(f"{path}: there is no outbox, or it cannot be read")
    from edgeroute.stores.outbox import Outbox

    box = Outbox(path, ttl_s=inf)  # expiry is left to the router, whose policy has the time to live
    try:
        yield box
    finally:
        box.close()


def _chosen(ids: list[str] | None, every: bool, option: str) -> list[str] | None:
    """The ids without duplicates; None: all."""
    if bool(ids) == every:
        raise typer.BadParameter("one of the two is needed", param_hint=f"ID... or {option}")
    return [*dict.fromkeys(ids)] if ids else None


def _missing(names: Iterable[str] | None, there: Iterable[str], why: str, *, as_json: bool) -> int:
    missing = [name for name in names or () if name not in there]
    for name in missing:
        print(line(BadInput(why), as_json=as_json, id=name), file=sys.stderr)
    return FAILED if missing else OK
