"""Follower of a fleet owner's signed policies (`Follower`, `Standing`): a device's ring, trial of a new policy, and limits.

STATE/fleet/ring           random identity that draws this device's ring; never sent
STATE/fleet/policy.json    the policy in force, the last good one, and orders: a `Standing`, replaced atomically
STATE/fleet/metadata/      TUF's metadata, by which older ones are refused
STATE/fleet/NAME*.json     the signed files that were read last
STATE/fleet/problem        why the last look at the catalog changed nothing
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import ContextVar
from datetime import date, datetime, timedelta, timezone
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple
from weakref import finalize

from edgeroute.catalog.catalog_entry import checked_name, fits, own_version
from edgeroute.catalog.catalog_source_and_verification import download_targets, source_of
from edgeroute.catalog.model_folder_and_downloads import replace_durably, translate_os_errors
from edgeroute.errors import CatalogError, EdgerouteError, ModelMissing, PolicyError, StoreError
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.system.contained_calls_and_tasks import set_within
from edgeroute.system.files_and_lock_waits import file_stamp, sha256
from edgeroute.system.fork_safety import ForkSafe, initially, per_process
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.system.thread_pool_and_workers import Worker
from edgeroute.system.untrusted_files import parse_json, read_bytes, read_json, read_text
from edgeroute.system.wall_clock import now

FORMAT = 1
# Seconds between two looks at the trial of a new policy, and at what another process of the device has put in force.
LOOKS_S = 1.0
# Requests on trial; share of them that may fail beyond the share before; starts, of processes that did not end by themselves
# within so many seconds, after which a trial is over.
TRIAL_REQUESTS, MOST_FAILED, MOST_STARTS, ALIVE_S = 200, 0.05, 3, 600.0


def position(ring_id: str, salt: str) -> float:
    """Return a device's place in [0, 1): the devices below a share are in the ring of that share."""
    return int(sha256((salt + ring_id).encode()).hexdigest()[:8], 16) / 2**32


def in_ring(ring_id: str, salt: str, share: float) -> bool:
    """Return True if a device is in the ring of this share."""
    return position(ring_id, salt) < share


class Standing(NamedTuple):
    """State of a device that follows a signed policy: the content of `STATE/fleet/policy.json`."""

    name: str = ""
    version: int = 0  # version in force; 0: the device's own file
    policy: Mapping[str, Any] = {}
    good: int = 0  # last good version, for a rollback while `version` is on trial
    good_policy: Mapping[str, Any] = {}
    trial: int = 0  # number of process starts with the version on trial; 0: it is confirmed
    tried: int = 0  # version that is being tried before it is put in force; 0: none
    # Number of times that it was tried; more than one if the process ended meanwhile.
    attempts: int = 0
    refused: Mapping[str, str] = {}  # versions that are not tried again, each with the reason
    only_edge: bool = False  # True after an emergency order: nothing is sent to the cloud
    limits: Mapping[str, float] = {}  # limits by the fleet's budget, as keys of `[limits]`
    # UTC day -> what the device spent on it, in the order of `BUDGETS`; of the last days.
    usage: Mapping[str, list[float]] = {}
    since: str = ""  # first day that `usage` may have

    @property
    def text(self) -> str:
        """Text of the state, in words; empty: the device's own file is in force, and no order."""
        parts = [f"{self.name}-{self.version}{', on trial' if self.trial else ''}"] if self.version else []
        parts += ["nothing leaves the device, by order of its owner"] if self.only_edge else []
        parts += [f"{key} is at most {value:.4g} by the fleet's budget" for key, value in self.limits.items()]
        parts += [f"{self.name}-{version} is not tried again: {why}" for version, why in self.refused.items()]
        return "; ".join(parts)


# Standing to read in place of the stored one, while it is tried.
_tried: ContextVar[Standing | None] = ContextVar("tried", default=None)
# State folder -> standing with an emergency order that could not be stored: it counts in this process.
_unstored: dict[Path, Standing] = {}


def standing(state: Path) -> Standing:
    """Return the device's `Standing` (which signed policy is in force) from its file, or within `_switch` the one being tried.

    An emergency that could not be stored counts. An empty one if there is none, or if it is damaged, which is logged.
    """
    if (unstored := _tried.get() or _unstored.get(state)) is not None:
        return unstored
    path = state / "fleet" / "policy.json"
    try:
        return Standing(**read_json(path))
    except FileNotFoundError:
        return Standing()
    except (OSError, ValueError, TypeError) as e:
        log.warning("%s cannot be read (%s): the device's own policy is in force until the catalog is read again", path, e)
        return Standing()


def signed_name(state: Path) -> str:
    """Return name and version of the signed policy in force, as in shop-7; empty: none."""
    known = standing(state)
    return f"{known.name}-{known.version}" if known.version else ""


def last_problem(state: Path) -> str:
    """Return why the last look at the catalog, by any process of the device, changed nothing; empty: nothing is wrong."""
    try:
        return read_text(state / "fleet" / "problem", 1 << 16)
    except (OSError, ValueError):
        return ""


def orders(known: Standing, limits: Mapping[str, float | None]) -> dict[str, float]:
    """Return the limits by the fleet's budget, or the own ones if these are lower; in an emergency no call is allowed.

    Args:
        known: the device's standing.
        limits: key of `[limits]` -> the own limit; None: none.
    """
    ordered = {**known.limits, **({"calls_per_minute": 0.0} if known.only_edge else {})}
    return {key: min(value, inf if (own := limits.get(key)) is None else own) for key, value in ordered.items()}


def state_folder(data: Mapping[str, Any], folder: Path, state: str | Path | None = None) -> Path | None:
    """Return the state folder of a device that follows a signed policy; None for a policy without `[fleet] policy`.

    In order: the given one, the variable EDGEROUTE_STATE, the file's `[local]` state, the file's own.

    Args:
        data: the device's policy file.
        folder: folder of that file.
        state: state folder given by the program.

    Raises:
        PolicyError: there is no state folder.
    """
    fleet = data.get("fleet")
    if not isinstance(fleet, Mapping) or "policy" not in fleet:
        return None
    local = data.get("local")
    own = {**data, **(local if isinstance(local, Mapping) else {})}.get("state")
    named = state or os.environ.get("EDGEROUTE_STATE") or own
    if not isinstance(named, str | Path):
        raise PolicyError("fleet.policy: a device that follows a signed policy needs a folder for it: state")
    return folder / named


def in_force(data: Mapping[str, Any], folder: Path, state: str | Path | None = None) -> dict[str, Any]:
    """Return a policy file's data as they are in force: the signed policy, with the file's own `[local]` keys over it.

    Without `[fleet] policy`, or with no signed version yet, the file's data with `[local]` over them. `[fleet]` and `state` are
    always the file's own. Arguments and errors as of `state_folder`; PolicyError for a `[local]` that is no section.
    """
    own = {key: value for key, value in data.items() if key != "local"}
    local = data.get("local", {})
    if not isinstance(local, Mapping):
        raise PolicyError("local: expected a section with keys of the policy")
    home = state_folder(data, folder, state)
    known = Standing() if home is None else standing(home)
    merged = {**overlay(known.policy if known.version else own, local), **({"fleet": data["fleet"]} if "fleet" in data else {})}
    if state := local.get("state", data.get("state")):
        merged["state"] = state
    return merged


def overlay(base: Any, over: Any, key: str = "local") -> Any:
    """Return a copy of data with other data over them, section by section and key by key.

    Sections of a list are matched by their `name`, else by their place; one without a counterpart is left out, with a warning
    that names it by `key`. A section may stand for a list of one. Anything but sections is replaced.
    """
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        own = {name: overlay(base[name], value, f"{key}.{name}") if name in base else value for name, value in over.items()}
        return {**base, **own}
    several = [value if isinstance(value, list) else [value] for value in (base, over)]
    if not all(isinstance(section, Mapping) for sections in several for section in sections):
        return over
    sections = list(several[0])
    for place, section in enumerate(several[1]):
        name = section.get("name")
        same = [i for i, item in enumerate(sections) if name and item.get("name") == name]
        if same or (place < len(sections) and None in {name, sections[place].get("name")}):
            at = same[0] if same else place
            sections[at] = overlay(sections[at], section, key)
        else:
            log.warning("%s: the policy in force has no section %s, so the file's own counts for nothing", key, name or place + 1)
    return sections if isinstance(base, list) else sections[0]


def read_policies(data: Any) -> list[dict[str, Any]]:
    """Return the versions of a signed file of policies, checked as far as every edgeroute knows them, the oldest first.

    Raises:
        CatalogError: it has no valid `versions` (an empty list is one), or is of another format, as of a newer edgeroute.
    """
    try:
        if data["format"] != FORMAT:
            raise CatalogError("the signed policy has a newer format: update edgeroute")
        checked_name(data["name"])
        versions = [{**v, "policy": dict(v["policy"]), "requires": str(v.get("requires", ""))} for v in data["versions"]]
        if not isinstance(data["salt"], str) or any(
            not isinstance(v["version"], int) or not 0 <= v["share"] <= 1 for v in versions
        ):
            raise ValueError("a version or share out of range")  # noqa: TRY301 - translated below, like the others
        return sorted(versions, key=lambda v: v["version"])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CatalogError(f"the signed file has no policies: {e!r:.200}") from e


BUDGETS = ("usd_per_day", "mb_per_day")  # keys of `[limits]` that a fleet's budget sets
WINDOW = 7  # days of use that count for a device's part of the budget


def limits_by(budget: Any, usage: Mapping[str, list[float]], today: str, untold: Collection[str] = ()) -> dict[str, float]:
    """Return a device's limits by a signed budget and its own use: `least` and `factor` times its mean use, up to `most`.

    A device without use has the limit for new ones. One that was away while the budget was made, or has an old budget, has a
    reserve: a part of what its use would give. So does one that the owner does not know of, as its digests wait (`untold`: days).

    Raises:
        CatalogError: the budget is none.
    """
    try:
        until = date.fromisoformat(budget["through"])
        told = {day: spent for day, spent in usage.items() if day not in untold}
        recent = [spent for day, spent in told.items() if 0 <= (until - date.fromisoformat(day)).days < WINDOW]
        old, known, limits = today > budget["until"] or not recent, recent or [*usage.values()], {}
        for i, key in enumerate(BUDGETS):
            if (rule := budget["limits"].get(key)) is not None:
                use = sum(spent[i] for spent in known) / max(1, len(known))
                limit = float(min(rule["least"] + rule["factor"] * use, rule["most"]) if known else rule["new"])
                limits[key] = float(f"{limit * (budget['reserve'] if old and known else 1):.6g}")
                if not 0 <= limits[key] < inf:
                    raise ValueError(f"a limit of {limit}")  # noqa: TRY301 - translated below, like the others
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CatalogError(f"the signed budget has no limits: {e!r:.200}") from e
    return limits


class Follower(ForkSafe):
    """Follower of a signed policy, for the router of a device: a thread looks at the catalog at an interval.

    One process of a device looks, tries a new policy and watches its first requests; the others follow what it puts in force.
    After a policy that is refused, or fails on trial, the last good one is in force: no device goes back otherwise.

    Args:
        folder: folder of the device's policy file, from which relative paths start.
        state: state folder.

    Attributes:
        fleet: section `[fleet]` of that file.
        problem: why the last look at the catalog, or the policy that it has, changed nothing; empty: nothing is wrong.
    """

    fleet: Any = None
    _replacing: AbstractContextManager[Any] = nullcontext()
    _turns, _leads = per_process(threading.Lock), initially(False)

    def __init__(self, folder: Path, state: Path) -> None:
        self._folder, self._state, self._home = folder, state, state / "fleet"
        self.problem, self._due_at = last_problem(state), 0.0
        self._base, self._usual, self._begun = (0, 0), 0.0, monotonic()
        self._path = self._home / "policy.json"
        self._lock = ProcessLock(self._home / "policy.lock")
        self._leave = finalize(self, self._lock.leave)
        self._worker = Worker("edgeroute-policy", self._turn, "the signed policy was not refreshed", first_s=LOOKS_S)
        self._reload: Callable[[], object] = lambda: None
        self._counts: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._spent: Callable[[], list[float]] = lambda: [0.0] * len(BUDGETS)
        try:
            self._lead()  # before a router is made, which may end the process
        except (OSError, StoreError) as e:
            log.warning("%s: process starts with a policy on trial are not counted: %s", self._home, e)
        self._seen = file_stamp(self._path)

    def start(
        self, reload: Callable[[], object], replacing: AbstractContextManager[Any], counts: Callable[[], tuple[int, int]],
        spent: Callable[[], list[float]],
    ) -> None:  # fmt: skip
        """Start the thread, which looks every second, and reads the catalog at the interval of `fleet`. Waits for nothing.

        Args:
            reload: reads the policy again, and puts it in force.
            replacing: lock under which the router's policy is replaced.
            counts: returns the requests so far, and those that failed.
            spent: returns what was spent over the last 24 hours, in the order of `BUDGETS`.
        """
        self._reload, self._replacing, self._counts, self._spent = reload, replacing, counts, spent
        self._worker.start()

    def close(self, wait_s: float | None = 0.0) -> None:
        """Have the thread end, waiting up to `wait_s` seconds for a look under way (None: however long). Then release the lock.

        A look that takes longer releases it at its end. This process is no longer counted among those that ended on trial.
        """
        self._worker.close(wait_s)
        self._end()

    def _end(self) -> None:
        """Release the lock, if the follower is closed and no look is under way; a no-op otherwise."""
        if self._worker.closed and self._turns.acquire(blocking=False):
            try:
                with suppress(StoreError):
                    self._survive()
                self._leave()
                self._leads = False
            finally:
                self._turns.release()

    def _survive(self) -> None:
        """Count the starts of processes on trial from 1 again, as this one did not crash.

        A no-op for a process that does not lead.
        """
        if self._leads and (known := standing(self._state)).trial > 1:
            self._save(known._replace(trial=1))

    def status(self) -> str:
        """Return the state, in words, with the last problem."""
        return "; ".join(filter(None, (standing(self._state).text, last_problem(self._state))))

    def _turn(self) -> float:
        """Call `_follow_once` unless it is closed, and release the lock if it is then. Return the seconds until the next."""
        try:
            with self._turns:
                return LOOKS_S if self._worker.closed else self._follow_once()
        finally:
            self._end()

    def _follow_once(self) -> float:
        """Reload if another process changed the standing; as the leader, also check trial, catalog and budget.

        The budget is applied even if the catalog cannot be read; errors pass. Returns the seconds until the next turn.
        """
        self._lead()
        if (stamp := file_stamp(self._path)) != self._seen:
            self._seen = stamp
            self._reload()
        if self._leads:
            self._look()
            if monotonic() >= self._due_at:
                self._due_at = monotonic() + self.fleet.refresh
                try:
                    self.refresh()
                finally:  # whatever the catalog is: an old budget leaves a reserve
                    self._spend()
        return LOOKS_S

    def _lead(self) -> None:
        """Take the lock of the device's process that checks the catalog, without waiting; a no-op if another has it.

        A new leader counts this start for a version on trial, or rolls that version back after `MOST_STARTS` of them.
        """
        if not self._leads and self._lock.take():
            self._leads, known = True, standing(self._state)
            if known.trial >= MOST_STARTS:
                self._switch(_rolled_back(known, f"the process ended {known.trial} times while it was on trial"))
            elif known.trial:
                self._save(known._replace(trial=known.trial + 1))

    def refresh(self) -> None:
        """Check the catalog once, and put in force what is signed for this device. Blocks for the catalog.

        Why nothing changed is stored in `problem` and the file of that name; a failure is raised, too.

        Raises:
            EdgerouteError: the catalog cannot be reached or trusted, or the disk is full; the policy in force stays.
        """
        last = self.problem
        try:
            self.problem = self._refresh()
        except (EdgerouteError, OSError) as e:
            self.problem = f"{e}; the last good policy stays in force"
            raise
        finally:
            if self.problem != last:
                with suppress(OSError):
                    replace_durably(self._home / "problem", self.problem.encode())

    def _refresh(self) -> str:
        """Download and store the signed files; put an order in force first, then the policy. Return why that waits, or "".

        Closes the source. An order is the emergency that nothing leaves the device, or its end.
        """
        fleet, name = self.fleet, checked_name(self.fleet.policy)
        targets = {f"policies/{name}{kind}.json": self._home / f"{name}{kind}.json" for kind in ("", ".budget")}
        source = source_of(fleet.catalog if "://" in fleet.catalog else self._folder / fleet.catalog)
        with translate_os_errors(self._home):
            last = {target: read_bytes(path) if path.exists() else b"" for target, path in targets.items()}
            try:
                texts, unstored = download_targets(source, self._home / "metadata", read_bytes(self._folder / fleet.root), last)
            finally:
                source.close()
        data = parse_json(texts.get(f"policies/{name}.json", b"null"))
        known = standing(self._state)
        if known.name != name:
            known = Standing(name)
        order = isinstance(data, dict) and data.get("only_edge") is True
        if data is not None and (order != known.only_edge or self._state in _unstored):  # before all else, the disk too
            known = known._replace(only_edge=order)
            self._switch(known)
        with translate_os_errors(self._home):
            if unstored is not None:
                raise unstored
            ring = self._ring()
            for target, path in targets.items():
                if texts.get(target, b"") != last[target]:
                    replace_durably(path, texts.get(target, b""))
        if data is None:
            raise CatalogError(f"{source.where} has no policy {name}")
        return self._follow(known, ring, data)

    def _follow(self, known: Standing, ring: str, data: Any) -> str:
        """Put the newest version for this device in force on trial, or refuse it for good; write the standing, log and reload.

        Returns why a version waits: pinned, for a newer edgeroute, or for a model or room on the disk; empty also if it was
        refused, or if the list is frozen.
        """
        if self.fleet.pinned:
            return f"pinned to {known.name}-{known.version}" if known.version else "pinned to the device's own policy"
        mine = [v for v in read_policies(data) if in_ring(ring, data["salt"], v["share"]) and not v.get("halted")]
        if not mine or mine[-1]["version"] <= known.version or (data.get("freeze") and known.version):
            return ""
        version = mine[-1]["version"]
        if str(version) in known.refused:
            return ""  # as its standing tells
        if not fits(mine[-1]["requires"], own_version()):
            return f"{known.name}-{version} needs edgeroute {mine[-1]['requires']}: update it; the last good policy stays"
        good = (known.good, known.good_policy) if known.trial else (known.version, known.policy)
        attempts = known.attempts + 1 if known.tried == version else 1
        if attempts > MOST_STARTS:
            self._refuse(known, version, f"the process ended {known.attempts} times while it was tried")
            return ""
        self._save(known._replace(tried=version, attempts=attempts))
        base = self._counts()
        try:
            self._switch(known._replace(
                version=version, policy=mine[-1]["policy"], good=good[0], good_policy=good[1], trial=1, tried=0, attempts=0,
            ))  # fmt: skip
        except EdgerouteError as e:
            self._save(known)
            self._reload()  # if this fails as well, the new version is not at fault
            if isinstance(e, ModelMissing | StoreError):  # a model that comes later, a disk with room later
                return f"{known.name}-{version} waits: {e}; the last good policy stays in force"
            self._refuse(known, version, str(e))
            return ""
        self._base, self._usual = base, base[1] / max(1, base[0])
        log.info("%s-%s is in force, on trial for %s requests", known.name, version, TRIAL_REQUESTS)
        return ""

    def _spend(self) -> None:
        """Store what was spent yesterday, and put the limits of the stored budget in force, with a reload if they have changed.

        Raises:
            CatalogError, StoreError: the budget is none; the disk is full.
        """
        known, today = standing(self._state), datetime.fromtimestamp(now(), timezone.utc).date()
        path, yesterday = self._home / f"{self.fleet.policy}.budget.json", (today - timedelta(days=1)).isoformat()
        started = "" < known.since <= today.isoformat()  # else it is new, or the clock was ahead
        new = known if started else known._replace(since=today.isoformat())
        if started and yesterday >= known.since and yesterday not in known.usage:
            days = [*known.usage.items(), (yesterday, self._spent())]
            days.sort(key=lambda used: (used[0] <= yesterday, used[0]))  # days to come of a clock that was ahead go first
            new = known._replace(usage=dict(days[-WINDOW:]))
        text = read_bytes(path) if path.exists() else b""
        untold = {file.name[: len(yesterday)] for file in self._home.glob("*.digest")}
        limits = limits_by(parse_json(text), new.usage, today.isoformat(), untold) if text else {}
        if limits != known.limits:
            self._switch(new._replace(limits=limits))
        elif new != known:
            self._save(new)

    def _look(self) -> None:
        """Confirm a version on trial after enough requests, or roll it back and reload if too many failed; store either.

        Once this process has run for `ALIVE_S`, starts on trial are counted anew. A no-op without a trial.
        """
        known = standing(self._state)
        if not known.trial:
            return
        if monotonic() - self._begun > ALIVE_S:
            self._survive()
            known = standing(self._state)
        requests, failed = (a - b for a, b in zip(self._counts(), self._base, strict=True))
        if failed > (MOST_FAILED + self._usual) * TRIAL_REQUESTS:
            self._switch(_rolled_back(known, f"{failed} of its first {requests} requests failed"))
        elif requests >= TRIAL_REQUESTS:
            self._save(known._replace(trial=0, good=0, good_policy={}))

    def _refuse(self, known: Standing, version: int, why: str) -> None:
        """Record that a version is not tried again. Logs a warning."""
        log.warning("%s-%s is refused, and the last good policy stays in force: %s", known.name, version, why)
        self._save(known._replace(tried=0, attempts=0, refused=_refused_with(known, version, why)))

    def _switch(self, new: Standing) -> None:
        """Put a standing in force by a reload, and store it then: a `kill -9` between leaves the stored one.

        Raises:
            EdgerouteError: it cannot be used or stored; the one before is in force, but an emergency order counts even unstored,
                in this process.
        """
        with self._replacing:  # a reload by others between the two would read the stored one
            with set_within(_tried, new):
                self._reload()
            try:
                self._save(new)
            except EdgerouteError:
                if new.only_edge:
                    _unstored[self._state] = standing(self._state)._replace(only_edge=True)
                self._reload()  # the one before, which is still the stored one but for an emergency
                raise

    def _save(self, new: Standing) -> None:
        """Store a standing atomically, and note its stamp, so that it is not taken for another process's. Raises StoreError."""
        with translate_os_errors(self._home):
            replace_durably(self._path, json.dumps(new._asdict()).encode())
        _unstored.pop(self._state, None)
        self._seen = file_stamp(self._path)

    def _ring(self) -> str:
        """Return the random identity that draws this device's ring, created and stored at the first call."""
        path = self._home / "ring"
        if not path.exists():
            replace_durably(path, os.urandom(16).hex().encode())
        return read_bytes(path).decode()


def _rolled_back(known: Standing, why: str) -> Standing:
    """Return the standing with the last good policy, in which the present one is not tried again. Logs a warning."""
    log.warning("%s-%s is rolled back to the last good policy: %s", known.name, known.version, why)
    refused = _refused_with(known, known.version, why)
    return known._replace(version=known.good, policy=known.good_policy, good=0, good_policy={}, trial=0, refused=refused)


def _refused_with(known: Standing, version: int, why: str) -> dict[str, str]:
    """Return the versions that are not tried again, the last few, with a further one."""
    return dict([*known.refused.items(), (str(version), f"{why:.500}")][-5:])
