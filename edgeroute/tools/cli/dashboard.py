from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.errors import BadInput, EdgerouteError
from edgeroute.system.process import file_stamp
from edgeroute.tools.cli.exits import INTERRUPTED, OK
from edgeroute.tools.cli.tables import Json, Metrics

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import BoundCertificate
    from edgeroute.tools.cli.status import Opened
    from edgeroute.tools.dashboard.monitor import Monitor
    from edgeroute.tools.replay.setup import Setup


# What `dashboard` and `top` follow: a trace's file, a state folder, and the policy, as another process writes them.

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
    from edgeroute.tools.dashboard.monitor import Monitor, Sources, TraceFile

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
    beside = Sources(of.state, of.setup, of.certificates, folder)
    return Monitor(TraceFile(path), beside, str(policy or record or state))


def _places(policy: Path) -> tuple[Path | None, Path | None, float]:
    """The state folder and the trace's file that a policy names, each None if it names none; and the share that is traced."""
    from edgeroute import policy as settings
    from edgeroute.policy.singles import at

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
        from edgeroute.tools.cli.status import gathered
        from edgeroute.tools.dashboard.window import policy_summary

        found: dict[str, Any] = {"notes": [*self._notes]}
        try:
            of = self._now()
        except EdgerouteError as e:
            from edgeroute.tools.cli.status import Opened

            of = Opened(notes=(str(e),))
            found["notes"].append(str(e))
        if of.snapshot is not None:
            found["policy"] = {**policy_summary(of.snapshot), **self._given}
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
        from edgeroute.tools.replay.setup import Setup

        return None if self._policy is None else Setup.read(self._policy)

    def certificates(self) -> dict[str, BoundCertificate] | None:
        """Of the edges; None: the policy is not known, or a model is missing."""
        snapshot = self._now().snapshot
        if snapshot is None:
            return None
        return {t.name: one for t, one in zip(snapshot.targets, snapshot.certificates, strict=True) if one is not None}

    def _now(self) -> Opened:
        from edgeroute.tools.cli.status import opened

        stamp = None if self._policy is None else file_stamp(self._policy)
        if self._opened is None or stamp != self._stamp:
            self._opened, self._stamp = opened(self._policy), stamp
            if self._policy is not None:
                from edgeroute import policy

                self._given = {"offline": policy.load(self._policy).offline}
        return self._opened


def dashboard(
    *,
    policy: Watched = None,
    record: Record = None,
    state: State = None,
    host: Annotated[str, typer.Option(help="Where to listen. There is no TLS: elsewhere the token can be read on the way.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8585,
    token_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Environment variable with the token, which the page asks for; else a new one is printed."
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name by which browsers call this machine; may be repeated."),
    ] = None,
    metrics: Metrics = False,
    as_json: Json = False,
) -> int:
    """Shows on a local page what a router does: routes, reasons, drift, latencies, budgets, outbox, egress. Tries thresholds.

    Reads what the router's program writes, its trace and its state folder. Changes nothing.
    """
    from edgeroute.tools.dashboard.run import serve
    from edgeroute.tools.server.guard import token_of

    token = None if token_env is None else token_of(token_env)
    monitor = watched(policy, record, state)

    routes = []
    if metrics:
        from edgeroute.tools.dashboard.metrics import route

        routes.append(route(monitor))

    def ready(url: str) -> None:
        url = url if token is None else url.partition("#")[0]  # the reader's own secret is not printed
        print(json.dumps({"ready": url}) if as_json else f"open {url}", flush=True)

    ended = serve(monitor, host=host, port=port, token=token, hosts=allow_host or (), routes=routes, on_ready=ready)
    return INTERRUPTED if ended == signal.SIGINT else OK


def top(*, policy: Watched = None, record: Record = None, state: State = None, as_json: Json = False) -> int:
    """Shows in the terminal what a router does; q ends it. --json: once, for programs.

    Reads what the router's program writes, its trace and its state folder. Changes nothing.
    """
    monitor = watched(policy, record, state)
    if as_json:
        monitor.poll()
        print(monitor.text().decode())
        monitor.close()
        return OK
    from edgeroute.tools.dashboard.top import run

    run(monitor)
    return OK
