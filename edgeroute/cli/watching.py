"""What `dashboard` and `top` follow: a trace's file, a state folder, and the policy, as another process writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.errors import BadInput, EdgerouteError
from edgeroute.files import file_stamp

if TYPE_CHECKING:
    from edgeroute.cli.status import Opened
    from edgeroute.confidence.binding import BoundCertificate
    from edgeroute.dashboard.monitor import Monitor
    from edgeroute.replay.setup import Setup

Watched = Annotated[
    Path | None,
    typer.Option("--policy", "-p", metavar="FILE", help="The policy of the router that is watched.", show_default=False),
]
Record = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The trace's file, instead of the one that the policy names.", show_default=False),
]
State = Annotated[
    Path | None, typer.Option("--state", metavar="DIR", help="The state folder, instead of the policy's.", show_default=False)
]


def watched(policy: Path | None, record: Path | None, state: Path | None) -> Monitor:
    """What follows them; not begun yet.

    Raises:
        PolicyError: the policy is invalid.
        BadInput: there is nothing to follow.
    """
    from edgeroute.dashboard.monitor import Monitor, Told, TraceFile

    if policy is None and record is None and state is None:
        raise typer.BadParameter("one of the three is needed", param_hint="--policy, --record or --state")
    folder, traced, sample = (None, None, 1.0) if policy is None else _places(policy)
    folder = folder if state is None else state
    notes = []
    path = record or traced
    if path is None and folder is not None:
        path = folder / "trace.jsonl"
        if policy is not None:
            notes.append(
                f"{policy.name} has no [trace]: add the line [trace] to it, and start its program again, to see requests"
            )
    if sample < 1 and record is None:
        notes.append(
            f"the trace is a sample: of {sample:.3g} of the answers, drawn at random, and so are all numbers of requests"
        )
    if path is None:
        raise BadInput(
            f"{policy}: it has neither a state folder nor a [trace], so there is nothing to follow: add state and [trace]"
        )
    if record is not None and record.exists() and not record.is_file():
        raise BadInput(f"{record}: is no file: expected that of a trace")
    if record is not None and not any(record.parent.glob(f"{record.name}*")):
        raise BadInput(f"{record}: there is no such file")
    of = OfFiles(policy, folder, notes)
    beside = Told(of.state, of.setup, of.certificates, folder)
    return Monitor(TraceFile(path), beside, str(policy or record or state))


def _places(policy: Path) -> tuple[Path | None, Path | None, float]:
    """The state folder and the trace's file that a policy names, each None if it names none; and the share that is traced."""
    from edgeroute import settings
    from edgeroute.settings.section import at

    given = settings.load(policy)
    folder = None if given.state is None else at(policy.parent, given.state)
    if given.trace is None:
        return folder, None, 1.0
    if given.trace.file:
        return folder, at(policy.parent, given.trace.file), given.trace.sample
    return folder, None if folder is None else folder / "trace.jsonl", given.trace.sample


class OfFiles:
    """State and policy, read from their files; the policy once it has changed.

    Args:
        policy: its file; None: it is not known.
        folder: the state folder; None: there is none.
        notes: what is to be said beside them, one line each.
    """

    def __init__(self, policy: Path | None, folder: Path | None, notes: list[str]) -> None:
        self._policy, self._folder, self._notes = policy, folder, notes
        self._given: dict[str, Any] = {}
        """What the policy says that a router made only to be looked at has otherwise."""
        self._stamp: Any = None
        self._opened: Opened | None = None

    def state(self) -> dict[str, Any]:
        """As `edgeroute status --json` prints it, with what the policy says."""
        from edgeroute.cli.status import gathered
        from edgeroute.dashboard.state import of_policy

        found: dict[str, Any] = {"notes": [*self._notes]}
        try:
            of = self._now()
        except EdgerouteError as e:
            from edgeroute.cli.status import Opened

            of = Opened(notes=(str(e),))
            found["notes"].append(str(e))
        if of.snapshot is not None:
            found["policy"] = {**of_policy(of.snapshot), **self._given}
        if self._folder is None:
            return found
        try:
            told = gathered(of, self._folder, shadow_runs=False).as_dict()
        except BadInput as e:
            found["notes"].append(str(e))
            return found
        return {**told, **found, "notes": [*found["notes"], *told["notes"]]}

    def setup(self) -> Setup | None:
        """The policy, for replays."""
        from edgeroute.replay.setup import Setup

        return None if self._policy is None else Setup.read(self._policy)

    def certificates(self) -> dict[str, BoundCertificate] | None:
        """Of the edges; None: the policy is not known, or a model is missing."""
        snapshot = self._now().snapshot
        if snapshot is None:
            return None
        return {t.name: one for t, one in zip(snapshot.targets, snapshot.certificates, strict=True) if one is not None}

    def _now(self) -> Opened:
        from edgeroute.cli.status import opened

        stamp = None if self._policy is None else file_stamp(self._policy)
        if self._opened is None or stamp != self._stamp:
            self._opened, self._stamp = opened(self._policy), stamp
            if self._policy is not None:
                from edgeroute import settings

                self._given = {"offline": settings.load(self._policy).offline}
        return self._opened
