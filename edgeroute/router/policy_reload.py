"""Policy files of a router: read when it is made, watched by a thread, put in force again when they change; signed ones followed.

An invalid file is logged, and the policy in force stays. Unchanged models and connections are reused.
"""

from __future__ import annotations

import contextlib
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeroute.core.error_codes_and_texts import error_text
from edgeroute.core.spending_limits import Limits
from edgeroute.edge.edge_model_members_and_fingerprints import member
from edgeroute.edge.runtimes_variants_ensemble import each
from edgeroute.errors import Closed, EdgerouteError, PolicyError
from edgeroute.observe.device_sensors_and_sampler import SAMPLER
from edgeroute.router.audits_and_hidden_trials import put_audits, put_trials
from edgeroute.router.engine import CLOSED, Engine
from edgeroute.router.engine_assembly import guard
from edgeroute.router.fallbacks_and_late_replies import RULES
from edgeroute.router.policy_snapshot import PolicyArguments, backends_by_spec, build, clear_plans
from edgeroute.router.warm_up_and_release_checks import check_releases
from edgeroute.system.files_and_lock_waits import file_stamp
from edgeroute.system.sanitised_logs_and_contained_errors import call_quietly, log
from edgeroute.system.thread_pool_and_workers import Worker

if TYPE_CHECKING:
    from edgeroute.catalog.signed_policy_follower import Follower
    from edgeroute.trials.audit_setting_and_drift_monitor import Audit


# Replacement of the policy in force of a running router, which reuses models and connections of the old one.


def replace(
    engine: Engine, arguments: PolicyArguments, limits: Limits, metered: bool | Callable[[], bool], audit: Audit | None = None
) -> None:
    """Put another policy in force, with its trials, limits and thresholds, which reuses unchanged models and connections. Blocks.

    New models of a catalog are loaded and tested first, then parts check it; targets that the policy has no more are closed.
    Holds the lock `replacing`.

    Raises:
        PolicyError, ModelMissing, ModelError: it is invalid, or a new model is missing or fails; the old one stays, as after an
            exception of a part's `check`.
        Closed: the router is closed, also meanwhile.
    """
    with engine.replacing:  # and not the other one, which calls wait for: this may take long
        if engine.closed:
            raise Closed(CLOSED)
        old = engine.snapshot
        new = build(arguments, partial(guard, engine), old)
        RULES[new.policy.offline].check(engine)
        for check in engine.parts.methods("check"):
            check(new)
        check_releases(new, old)
        with engine.refreshing:
            put_audits(engine, new, audit)
            if new.views.given:
                engine.plain = False  # before it is in force
            engine.snapshot, engine.arguments = new, arguments
        put_trials(engine, new)
        engine.spending.set_limits(limits)
        engine.observer.metered = metered
        engine.observer.use(new.policy, new.watched[0])
        clear_plans(new)  # of rules that were not there before
        SAMPLER.add(engine)
        engine.refresh_thresholds()
        current = [*backends_by_spec(new).values()]
        models = [getattr(b, "model", b) for b in current]
        for backend in backends_by_spec(old).values():
            if backend not in current and getattr(backend, "model", backend) not in models:
                call_quietly(backend.close, "dropping a target that the policy has no more")
        if engine.closed:
            for backend in current:
                call_quietly(backend.close, "closing a router")
            raise Closed(CLOSED)


# Seconds between two checks of a watched file, and after one that finds a new file, which may be written in parts: the next has
# to find the same one.
LOOKS_S, SETTLES_S = 1.0, 2.0
# Stamp of the file that such checks have found, within the reload that they call; None: the program has asked for a reload.
_settled: ContextVar[tuple[Any, ...] | None] = ContextVar("edgeroute_settled", default=None)
# Arguments that a reload does not change: most have open files.
STAYS = ("cache", "instruments", "outbox", "parts", "sensors", "state", "trace")


class PolicyFile:
    """Policy file of one router: reads it, watches it and the models' versions in a thread, and reloads; follows a signed one.

    Args:
        path: path of the file.
        more: arguments of the router that override the file's, and `consent`, `redact` and `data_class` for its egress rules.
    """

    def __init__(self, path: Path, more: Mapping[str, Any]) -> None:
        self.path, self._file, self._more = path, path.absolute(), more  # the working directory may change
        self._seen = self._last = file_stamp(path)  # before reading it: later changes are detected
        self._worker: Worker | None = None
        self._follower: Follower | None = None
        self._versions: dict[Path, str] = {}  # file that names the active version of a model -> version read last

    def arguments(self) -> dict[str, Any]:
        """Read the file, and return the router's arguments, with those of `more` in place of the file's, and instruments added.

        Notes the models' active versions, and passes `[fleet]` to the follower of a signed policy; logs a warning if there is
        none. Errors have the file's path.

        Raises:
            PolicyError: the file is invalid.
            ModelMissing: the file of a model does not exist.
        """
        from edgeroute import policy as settings  # pydantic is imported only for policy files

        functions = {key: self._more[key] for key in ("consent", "redact", "data_class") if key in self._more}
        given = [key for key in ("edge", "cloud", "threshold", "state") if self._more.get(key) is not None]
        policy = settings.load(self._file, given, complete=True, state=self._more.get("state"))
        if "state" in self._more:
            policy = policy.with_state(self._more["state"])
        if self._more.get("instruments", ()) is None:  # none are wanted, and none are made: an extra may not be installed here
            policy = policy.model_copy(update={"telemetry": None})
        if policy.fleet is not None and policy.fleet.policy and self._more.get("state", "") is not None:
            if self._follower is not None:
                self._follower.fleet = policy.fleet
            else:
                log.warning("%s: [fleet] policy is followed only with watch=True: no order of the owner comes here", self.path)
        try:
            arguments: dict[str, Any] = policy.arguments(self._file.parent, **functions)
        except EdgerouteError as e:
            raise type(e)(f"{self.path}: {e}") from e
        merged = {**arguments, **{key: value for key, value in self._more.items() if key not in functions}}
        further = self._more.get("instruments") or ()
        kinds = {type(instrument) for instrument in further}
        merged["instruments"] = [*(one for one in arguments.get("instruments", ()) if type(one) not in kinds), *further]
        edges = merged["edge"] if isinstance(merged["edge"], list) else [merged["edge"]]
        models = [*(t.edge for t in merged["trial"] or () if t.edge is not None), *(m for edge in edges for m in each(edge))]
        # The latter's version counts, where both are of one model.
        self._versions = {one.pointer: one.version for model in models if (one := member(model, "release")) is not None}
        return merged

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Add the file and the key to a PolicyError raised within the block, if the mistake is the file's."""
        try:
            yield
        except PolicyError as e:
            section = {"rule": "rules"}.get(name := re.split(r"[.\[]", e.key)[0], name)
            if not e.key or section in self._more:  # no key of the file's
                raise
            raise PolicyError(f"{self.path}: {e.key}: {e}") from None

    def reload(self, engine: Engine) -> None:
        """Read the file again, and put it in force, but for arguments with open files (`STAYS`).

        A failure is also kept in `engine.refused`.

        Raises:
            PolicyError: the file is invalid, or changed as it was read; the policy in force stays.
            ModelError: a new version of a model failed; the policy in force stays.
            Closed: the router is closed.
        """
        with engine.replacing:  # from here on: who has read the file before another does not put it in force after that one
            try:
                stamp = _settled.get() or file_stamp(self._file)
                arguments = self.arguments()
                if file_stamp(self._file) != stamp:
                    raise PolicyError(f"{self.path} changed as it was read: rename a whole file to it")  # noqa: TRY301 - kept below
                limits, metered, audit = (arguments.pop(key, None) for key in ("limits", "metered", "audit"))
                changed = {key: value for key, value in arguments.items() if key not in STAYS}
                with self.named():
                    settings = PolicyArguments(**changed, awaits=engine.arguments.awaits)
                    replace(engine, settings, limits or Limits(), bool(metered), audit)
            except Exception as e:
                engine.refused = error_text(e)
                raise
            engine.refused = ""

    def watch(self, reload: Callable[[], Callable[[], object] | None]) -> None:
        """Start a thread that looks at the file, and the models' active versions, each second, and reloads what has changed.

        It calls the referent of the weak reference `reload`; errors are logged.
        """
        message = f"{self.path} cannot be used; the policy in force stays"
        self._worker = Worker("edgeroute-watch", partial(self._reload_changed, reload), message, first_s=LOOKS_S, retry_s=LOOKS_S)
        self._worker.start()

    def begin(self) -> None:
        """Make the follower of the signed policy that the file names, if it does; the start of one on trial is counted.

        None is made if the program gives `state=None`. Starts no thread.

        Raises:
            PolicyError: the file cannot be read, or names a signed policy without a state folder.
        """
        from edgeroute.catalog.signed_policy_follower import Follower, state_folder
        from edgeroute.policy.file_and_environment import read_policy

        if "state" in self._more and self._more["state"] is None:
            return
        state = state_folder(read_policy(self._file), self._file.parent, self._more.get("state"))
        self._follower = None if state is None else Follower(self._file.parent, state)

    def follow(self, reload: Callable[[], Callable[[], object] | None], engine: Engine) -> None:
        """Start a thread that follows the signed policy, if the file names one, and set `engine.signed`, which returns its state.

        `reload` as for `watch`.
        """
        follower, weak = self._follower, weakref.ref(engine)
        if follower is None:
            return

        def put_in_force() -> None:
            if (call := reload()) is None:
                raise Closed(CLOSED)
            call()

        def counts() -> tuple[int, int]:
            stats = None if (there := weak()) is None else there.stats()
            return (0, 0) if stats is None else (stats.requests, stats.unanswered)

        def spent() -> list[float]:
            cost = None if (there := weak()) is None else there.spending.spent()
            return [0.0, 0.0] if cost is None else [cost.usd, cost.mb]

        engine.signed = follower.status
        follower.start(put_in_force, engine.replacing, counts, spent)

    def _reload_changed(self, reload: Callable[[], Callable[[], object] | None]) -> float:
        """Check the file, and the models' active versions; call the reload after a change.

        Return the seconds until the next check. While the file is missing, or is another than at the last check, nothing is
        reloaded: a part of a policy may be a valid one. Raises what the reload raises; the change is noted before, so such a
        reload is repeated only after the next change.
        """
        last, self._last = self._last, file_stamp(self._file)
        if last is None or last != self._last:
            return SETTLES_S
        if (self._versions and self._activated()) or last != self._seen:
            self._seen = last
            _settled.set(last)
            if (call := reload()) is not None:
                call()
        return LOOKS_S

    def _activated(self) -> bool:
        """Return True if another version of a model is active than at the last check, and note it. Reads the catalogs' files.

        A file that cannot be read counts as unchanged.
        """
        from edgeroute.catalog.model_folder_and_downloads import pointer

        before = self._versions
        for path in before:
            with contextlib.suppress(EdgerouteError):  # it cannot be read now
                if (active := pointer(path)) is not None:
                    self._versions = {**self._versions, path: active.version}
        return self._versions != before

    def close(self) -> None:
        """Have the threads that watch the file and follow a signed policy end. Does not wait: a reload that has begun goes on."""
        for thread in (self._worker, self._follower):
            if thread is not None:
                thread.close(0.0)
