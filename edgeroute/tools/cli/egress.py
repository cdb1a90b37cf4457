from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import typer

from edgeroute.errors import BadInput
from edgeroute.system import process
from edgeroute.tools.cli.exits import OK
from edgeroute.tools.cli.outbox import MOST_ROWS, InFolder, OfPolicy, folder, when
from edgeroute.tools.cli.tables import Json, seconds, table


class Sent(NamedTuple):
    """A line of the ledger."""

    at: float
    to: str
    bytes: int
    data_class: str | None
    rule: str
    request: str


def instant(text: str) -> float:
    """Parses an instant to seconds since 1970: `90m`, `1h` or `7d` ago, or `2026-11-24` (or `2026-11-24T12:30`) in local time."""
    try:
        return process.now() - seconds(text)
    except typer.BadParameter:
        pass
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"expected a time ago, as in 90m, 1h or 7d, or a date, as in 2026-11-24, not {text!r}") from None


def egress(
    *,
    policy: OfPolicy = None,
    state: InFolder = None,
    since: Annotated[
        float | None, typer.Option(parser=instant, metavar="WHEN", help="Only from then on: 1h (ago), or 2026-11-24.")
    ] = None,
    data_class: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Only this data class.", show_default=False)
    ] = None,
    to: Annotated[
        str | None, typer.Option(metavar="WHERE", help="Only where the address has this in it.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> int:
    """Shows the egress ledger: each attempt to send, with time, destination, bytes, data class and rule."""
    from edgeroute.stores.journal import read

    path = folder(policy, state) / "egress.jsonl"
    if not any(path.parent.glob(f"{path.name}*")):
        raise BadInput(
            f"{path}: there is no egress ledger: no router with this state folder has sent anything, or it was removed"
        )
    ledger = read(path, since=since)
    lines = [_sent(record) for record in ledger]
    skipped = ledger.skipped + lines.count(None)
    sent = [s for s in lines if s and data_class in {None, s.data_class} and (to or "") in s.to]
    attempts, sizes = Counter[tuple[str, str | None]](), Counter[tuple[str, str | None]]()
    for line in sent:
        attempts[line.to, line.data_class] += 1
        sizes[line.to, line.data_class] += line.bytes
    totals = [(*key, count, sizes[key]) for key, count in attempts.items()]
    if as_json:
        named = [dict(zip(("to", "data_class", "attempts", "bytes"), total, strict=True)) for total in totals]
        print(json.dumps({"sent": [line._asdict() for line in sent], "totals": named, "skipped": skipped}))
        return OK
    if sent:
        shown = [(when(line.at), *line[1:]) for line in sent[-MOST_ROWS:]]
        table(("when", "to", "bytes", "class", "rule", "request"), shown, ("when", "to", "class", "rule", "request"))
        if len(sent) > MOST_ROWS:
            print(f"these are the latest {MOST_ROWS:,} of {len(sent):,}; --json has them all")
        table(("to", "class", "attempts", "bytes"), totals, ("to", "class"))
    else:
        print("nothing of that kind is in the ledger")
    if skipped:
        print(f"{skipped:,} lines were skipped: they are not whole, as after a power cut or on a full disk", file=sys.stderr)
    return OK


def _sent(record: Mapping[str, Any]) -> Sent | None:
    """Parses a line of the ledger; None: it is not one."""
    try:
        at, to, size, data_class, rule, request = (record[name] for name in Sent._fields)
        return Sent(float(at), str(to), int(size), None if data_class is None else str(data_class), str(rule), str(request))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
