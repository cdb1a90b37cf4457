"""Commands `serve` and `gateway`, servers of models and of a router; `dashboard` and `top`, live views of another router.

They listen on 127.0.0.1 unless told otherwise, and block until a signal.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.errors import BadInput, EdgerouteError
from edgeroute.system.files_and_lock_waits import file_stamp
from edgeroute.tools.cli import tables_and_options as ui
from edgeroute.tools.cli.command_runner import served
from edgeroute.tools.cli.status_and_trial_arms import Opened, open_policy, read_status

if TYPE_CHECKING:
    from edgeroute.confidence.certificate import BoundCertificate
    from edgeroute.tools.dashboard.dashboard_data_and_tail import Monitor
    from edgeroute.tools.replay.replay_setup_and_result import Setup


Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 selects a free one.")]


def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...")],
    *,
    host: str = "127.0.0.1",
    port: Port = 8080,
    max_batch: ui.Count = 32,
    metrics: ui.Metrics = False,
    log: ui.Log = None,
    as_json: ui.Json = False,
) -> int:
    """Serve models over the Open Inference Protocol until Ctrl-C or SIGTERM. For demos, tests and small set-ups.

    Args:
        models: Model files, each with its card beside it; `fashion`, which comes with edgeroute; module:name in Python.
        host: Address to listen on; there is no authentication.
        max_batch: Rows of several requests to merge into one run.

    Blocks; prints the models' URLs once it listens. Returns exit code 130 after Ctrl-C, else 0.
    """
    from edgeroute import models as built_in
    from edgeroute.tools.server import serve as server

    files = [getattr(built_in, name)().cloud if name in built_in.NAMES and not Path(name).is_file() else name for name in models]
    loaded = [server.named_model(model) for model in files]
    names = [model.name for model in loaded]

    def ready(url: str) -> None:
        """Print the URLs of the models."""
        places = ", ".join(f"{url}/v2/models/{name}" for name in names)
        print(json.dumps({"ready": url, "models": names}) if as_json else f"serving {places}", flush=True)

    ui.set_up_logging(log)
    number = server.serve(loaded, host=host, port=port, max_batch=max_batch, metrics=metrics, logs=bool(log), on_ready=ready)
    return served(number)


def gateway(
    *,
    policy: ui.Policy,
    host: str = "127.0.0.1",
    port: Port = 8484,
    token_env: ui.TokenEnv = None,
    allow_host: ui.AllowHost = None,
    name: list[str] | None = None,
    max_concurrent: ui.Count = 64,
    metrics: ui.Metrics = False,
    log: ui.Log = None,
    as_json: ui.Json = False,
) -> int:
    """Serve a policy's router to programs in any language, as OpenAI's API and over the Open Inference Protocol.

    Args:
        host: Address to listen on; any but this machine's own needs a token.
        name: Further name of the model, beside edgeroute and the policy's; may be repeated.
        max_concurrent: Most requests at a time; further ones get 429.

    Blocks until Ctrl-C (exit code 130) or SIGTERM (0); prints the URL once it listens.
    """
    from edgeroute.record.structured_logging import RequestLog
    from edgeroute.tools.server.gateway import gateway as run

    ui.set_up_logging(log)

    def ready(url: str) -> None:
        """Print the URL, as a line for the shell of a client."""
        print(json.dumps({"ready": url}) if as_json else f"serving: export OPENAI_BASE_URL={url}/v1", flush=True)

    number = run(
        policy, host=host, port=port, token_env=token_env, hosts=allow_host or (), names=name or (),
        max_concurrent=max_concurrent, on_ready=ready, metrics=metrics, instruments=[RequestLog()] if log else [],
    )  # fmt: skip
    return served(number)


# Sources of `dashboard` and `top`: trace file, state folder and policy, written by another process.

Record = Annotated[Path | None, typer.Option(metavar="FILE", help="The trace file, instead of the policy's.")]


def file_monitor(policy: Path | None, record: Path | None, state: Path | None) -> Monitor:
    """Return a monitor that follows a router's trace and state folder, of the policy or as named; not started yet.

    Nothing is written. A trace that does not exist yet is waited for, but a `record` must exist. Notes say what is not to be
    seen.

    Args:
        policy: policy file; None: unknown.
        record: trace to follow, in place of the policy's.
        state: state folder, in place of the policy's.

    Raises:
        PolicyError: the policy is invalid.
        BadInput: there is nothing to follow, or the record is missing, is no regular file, or is Parquet.
        typer.BadParameter: none of the three is given.
    """
    from edgeroute.tools.dashboard.dashboard_data_and_tail import Monitor, Sources, TraceFile

    if policy is None and record is None and state is None:
        raise typer.BadParameter("one of the three is needed", param_hint="--policy, --record or --state")
    folder, traced, sample = (None, None, 1.0) if policy is None else _places(policy)
    folder = folder if state is None else state
    notes = []
    path = record or traced
    if path is None and folder is not None:
        path = folder / "trace.jsonl"
        if policy is not None:
            notes.append(f"{policy.name} has no [trace]: add the line [trace] to it, and restart its program, to see requests")
    if sample < 1 and record is None:
        notes.append(f"the trace is a random sample of {sample:.3g} of the answers: numbers of requests are those of the sample")
    if path is None:
        raise BadInput(f"{policy}: it has no state folder and no [trace], so there is nothing to follow: add state and [trace]")
    if record is not None and record.exists() and not record.is_file():
        raise BadInput(f"{record} is no regular file: pass a trace's file")
    if record is not None and not any(record.parent.glob(f"{record.name}*")):
        raise BadInput(f"{record}: there is no such file")
    if path.suffix == ".parquet":
        raise BadInput(f"{path} is Parquet, which nobody appends to: name the .jsonl beside it, or `edgeroute replay` reads it")
    sources = FileSources(policy, folder, notes)
    named = "POLICY.toml" if policy is None else shlex.quote(str(policy))
    first = [("Add this line to the policy:", "[trace]")] if traced is None else []
    first.append(("Ask something by the policy, or run your program with it:", f"edgeroute infer --policy {named} INPUT.npy"))
    beside = Sources(sources.state, sources.setup, sources.certificates, folder, first)
    return Monitor(TraceFile(path), beside, str(policy or record or state))


def _places(policy: Path) -> tuple[Path | None, Path | None, float]:
    """Return a policy's state folder and its trace file, None if it has none, and the share of requests that is traced, 0..1."""
    from edgeroute import policy as settings
    from edgeroute.policy.single_sections import at

    sections = settings.load(policy)
    folder = None if sections.state is None else at(policy.parent, sections.state)
    if sections.trace is None:
        return folder, None, 1.0
    if sections.trace.file:
        return folder, at(policy.parent, sections.trace.file), sections.trace.sample
    return folder, None if folder is None else folder / "trace.jsonl", sections.trace.sample


class FileSources:
    """Reader of state and policy files; the policy is read again when it changes.

    Args:
        policy: policy file; None: unknown.
        folder: state folder; None: there is none.
        notes: notes for the page, one line each.
    """

    def __init__(self, policy: Path | None, folder: Path | None, notes: list[str]) -> None:
        self._policy, self._folder, self._notes = policy, folder, notes
        self._given: dict[str, Any] = {}  # settings of the policy that `open_policy` overrides
        self._stamp: Any = None
        self._opened: Opened | None = None

    def state(self) -> dict[str, Any]:
        """Return the state as `edgeroute status --json` prints it, without shadow runs, with the policy and notes.

        A policy or state that cannot be read becomes a note; `StoreError` passes.
        """
        from edgeroute.tools.dashboard.request_window_and_replays import policy_summary

        try:
            policy_now = self._now()
        except EdgerouteError as e:
            policy_now = Opened(notes=(str(e),))
        data: dict[str, Any] = {"notes": [*self._notes, *policy_now.notes]}
        if policy_now.snapshot is not None:
            data["policy"] = {**policy_summary(policy_now.snapshot), **self._given}
        if self._folder is None:
            return data
        try:
            status = read_status(policy_now._replace(notes=()), self._folder, shadow_runs=False).as_dict()
        except BadInput as e:
            data["notes"].append(str(e))
            return data
        return {**status, **data, "notes": [*data["notes"], *status["notes"]]}

    def setup(self) -> Setup | None:
        """Read the policy file for replays; None without a policy. Raises `PolicyError` if it is invalid."""
        from edgeroute.tools.replay.replay_setup_and_result import Setup

        return None if self._policy is None else Setup.read(self._policy)

    def certificates(self) -> dict[str, BoundCertificate] | None:
        """Return the certificates of the policy's edges; None if the policy is unknown, or a model is missing.

        The policy is read again if it has changed; errors of that are raised.
        """
        from edgeroute.tools.dashboard.request_window_and_replays import certificates_of

        snapshot = self._now().snapshot
        return None if snapshot is None else certificates_of(snapshot)

    def _now(self) -> Opened:
        """Return the policy as a router would have it; read again, with its models' cards, if the file has changed."""
        stamp = None if self._policy is None else file_stamp(self._policy)
        if self._opened is None or stamp != self._stamp:
            self._opened, self._stamp = open_policy(self._policy), stamp
            if self._policy is not None:
                from edgeroute import policy

                self._given = {"offline": policy.load(self._policy).offline}
        return self._opened


def dashboard(
    *,
    policy: ui.OptionalPolicy = None,
    record: Record = None,
    state: ui.OptionalState = None,
    host: str = "127.0.0.1",
    port: Port = 8585,
    token_env: ui.TokenEnv = None,
    allow_host: ui.AllowHost = None,
    metrics: ui.Metrics = False,
    as_json: ui.Json = False,
) -> int:
    """Show a router live on a local page: routes, reasons, drift, latencies, budgets, outbox, egress. Tries thresholds.

    Reads the trace and the state folder that the router's program writes. Changes nothing. Without --token-env a random token is
    printed, with the page's address.

    Args:
        host: Address to listen on. There is no TLS: elsewhere the token can be intercepted.

    Blocks until Ctrl-C (exit code 130) or SIGTERM (0).
    """
    from edgeroute.tools.dashboard import web_app_and_metrics as web
    from edgeroute.tools.server.access_limits_call_options import token_of

    token = None if token_env is None else token_of(token_env)
    monitor = file_monitor(policy, record, state)
    routes = [web.metrics_route(monitor)] if metrics else []

    def ready(url: str) -> None:
        """Print the URL, without a token that the user has chosen."""
        url = url if token is None else url.partition("#")[0]
        print(json.dumps({"ready": url}) if as_json else f"open {url}", flush=True)

    number = web.serve(monitor, host=host, port=port, token=token, hosts=allow_host or (), routes=routes, on_ready=ready)
    return served(number)


def top(
    *, policy: ui.OptionalPolicy = None, record: Record = None, state: ui.OptionalState = None, as_json: ui.Json = False
) -> None:
    """Show a router live in the terminal; q quits. --json: once, for programs.

    Reads the trace and the state folder that the router's program writes. Changes nothing.

    Raises:
        BadInput: there is nothing to follow, or no terminal.
        typer.BadParameter: none of the three options is given.
    """
    monitor = file_monitor(policy, record, state)
    if as_json:
        monitor.poll()
        print(monitor.text().decode())
        monitor.close()
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):  # on which it reads and draws
        raise BadInput("there is no terminal to show it in: --json prints it once")
    from edgeroute.tools.dashboard.terminal_view import Top

    Top(monitor).run()
