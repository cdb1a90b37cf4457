"""Sections and top-level keys of a policy, the objects made from them for `Router`, and messages on wrong keys, missing files.

A reload reuses the object of an equal section. Misspelt keys get a suggestion, and no message quotes a value.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, WrapValidator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

import edgeroute.policy.model_and_endpoint_sections as targets
import edgeroute.policy.policy_problems_and_contradictions as faults
from edgeroute.catalog.installed_versions_and_active_loading import version_of
from edgeroute.confidence.scores import SCORES
from edgeroute.core.policy_egress_and_options import EDGE_TRIAL, Offline, Options, PolicyMode
from edgeroute.edge.edge_model_members_and_fingerprints import is_model, stamps
from edgeroute.edge.runtimes_variants_ensemble import ACTIVE, BUILT_IN, is_address, suffix_of
from edgeroute.errors import EdgerouteError, PolicyError, nearest
from edgeroute.policy.edge_sections_from_runtime_classes import ByRuntime, for_file
from edgeroute.policy.policy_keys_from_signatures import Section, configures
from edgeroute.policy.single_sections import Audit, Cache, Egress, Fleet, Gateway, Limits, Outbox, Rule, Telemetry, Trace, at
from edgeroute.policy.units_as_text import Duration
from edgeroute.policy.value_types import ModelPath, PathText, Score, Text, Threshold, Thresholds
from edgeroute.system.files_and_lock_waits import file_stamp
from edgeroute.system.fork_safety import Shared
from edgeroute.system.late_imports_and_plugins import attribute, load_plugin, plugin_targets
from edgeroute.trials import trial_setting as trial


def _path_or_section(value: Any, inner: Any) -> Any:
    """Validate a path, or a section with the keys of `[edge]`."""
    return TypeAdapter(ModelPath).validate_python(value) if isinstance(value, str) else inner(value)


@configures(trial.Trial)
class Trial(Section):
    """Another edge model, or another endpoint, for a stable share of the requests or devices, shown or hidden.

    Its answers are compared, and a guardrail stops it. Several as `[[trial]]` (trials.md).
    """

    edge: Annotated[targets.Edge, ByRuntime, WrapValidator(_path_or_section)] | None = Field(
        None,
        description="The model on trial beside the only `[edge]`: its file, with the other keys of `[edge]` but `sha256` and "
        "`card`; or a table, `[trial.edge]`, with keys of its own.",
    )
    cloud: Text | None = Field(None, description="Or the endpoint on trial: the `name` of another `[[cloud]]`.")
    threshold: Threshold | None = Field(None, description="Of an edge. Without it its own, else the number in use.")


# Types of a section; if there are several, its key `protocol` selects one.
SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "edge": (targets.Edge,), "cloud": tuple(targets.CLOUDS.values()), "trial": (Trial,), "limits": (Limits,), "egress": (Egress,),
    "audit": (Audit,), "cache": (Cache,), "outbox": (Outbox,), "rule": (Rule,), "trace": (Trace,), "telemetry": (Telemetry,),
    "gateway": (Gateway,), "fleet": (Fleet,),
}  # fmt: skip
LISTS = ("edge", "cloud", "trial", "rule")  # sections that may occur several times

# the sources number such sections, "0" and on, so that a variable can override one of several
IN_ORDER = BeforeValidator(lambda given: list(given.values()) if isinstance(given, dict) else given)


@configures(Options)
class Top(BaseSettings):
    """Keys at the top of the policy file."""

    model_config = SettingsConfigDict(extra="forbid", strict=True, case_sensitive=True)

    mode: PolicyMode = Field(
        "prefer_edge",
        description='Side that is asked first. `"shadow"`: the cloud answers everything, and the edge is compared (trials.md).',
    )
    threshold: Thresholds | None = Field(
        None,
        description="Confidence from which an edge answer is accepted: a number, or the path of a certificate; one, or one for "
        "each edge model. Required with both sides and mode prefer_edge.",
    )
    deadline: Duration | None = Field(
        None, description="From call to answer; then the best there is stands. Without it: no limit."
    )
    score: Score = Field("msp", description="Score that makes the confidence, or the path of one that was fitted and saved.")
    offline: Offline = Field(
        "edge",
        description='Answer where the cloud was needed and gave none: `"edge"`: the edge\'s, degraded; `"queue"`: the same, and '
        'the outbox sends the request later; `"stale"`: an expired one of the cache; `"raise"`: NoAnswer.',
    )
    state: PathText | None = Field(
        None,
        description="Folder for what outlives the process: latencies, spending, ledger, outbox, cache on disk, trace; made if "
        "missing. Without it nothing of this is stored.",
    )


class Settings(Top):
    """Validated policy, from the file and the variables. The classes of its sections describe these."""

    edge: Annotated[list[Annotated[targets.Edge, ByRuntime]], IN_ORDER] = []
    cloud: Annotated[list[targets.AnyCloud], IN_ORDER] = []
    trial: Annotated[list[Trial], IN_ORDER] = []
    limits: Limits | None = None
    egress: Egress | None = None
    audit: Audit | None = None
    cache: Cache | None = None
    outbox: Outbox | None = None
    rule: Annotated[list[Rule], IN_ORDER] = []
    trace: Trace | None = None
    telemetry: Telemetry | None = None
    gateway: Gateway | None = None
    fleet: Fleet | None = None
    parts: dict[str, dict[str, Any]] = Field(
        {}, description="Parts that installed packages bring, each a section `[parts.NAME]` with the part's own keys (extend.md)."
    )

    @classmethod
    def settings_customise_sources(cls, *_: Any, **sources: Any) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources that `load` made; the first one takes precedence."""
        return sources["init_settings"]()["sources"]  # type: ignore[no-any-return]

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, data: Any, inner: Any) -> Any:
        """Validate, and raise `Wrong` with the contradictions beside the errors in single keys, at which pydantic would stop."""
        problems = faults.contradictions(data)
        try:
            settings = inner(data)
        except ValidationError as e:
            raise faults.Wrong(e, problems) from None
        if problems:
            raise faults.Wrong(None, problems)
        return settings

    def with_state(self, state: str | Path | None) -> Settings:
        """Return a copy whose files are in another state folder.

        None: a copy that stores nothing: the cache in memory alone, no outbox, no counts of a fleet; a trace only if it has a
        path.
        """
        if state is not None:
            return self.model_copy(update={"state": str(Path(state).absolute())})
        cache = self.cache and self.cache.model_copy(update={"disk": False})
        trace = self.trace if self.trace and self.trace.file else None
        fleet = self.fleet and self.fleet.model_copy(update={"to": None})
        return self.model_copy(update={"state": None, "cache": cache, "outbox": None, "trace": trace, "fleet": fleet})

    def arguments(self, folder: Path, **functions: Any) -> dict[str, Any]:
        """Return the arguments of `Router`, with their objects made.

        Models are not loaded, and equal sections reuse the objects of an earlier policy. Certificates, cards and scores are read.
        `trace` and `instruments` are there only if the policy has those sections. Trials' endpoints are not among the clouds.

        Args:
            folder: base of relative paths in the policy.
            functions: `consent`, `redact` and `data_class`, as for `Egress`.

        Raises:
            ModelMissing: a card or score named by the policy is missing.
            ModelError: a card or score is invalid.
            PolicyError: a certificate is missing or invalid, or no package has a part or protocol.
            RuntimeMissing: a package that a section needs is not installed.
        """
        with _under_key("score"):
            score, key = _score(self.score, folder)
        with _under_key("threshold"):
            threshold = _with_certificates(self.threshold, folder)
        tried = [setting.cloud for setting in self.trial if setting.cloud is not None]
        proper = [section for section in self.cloud if section.name not in tried]
        by_name = {section.name: section for section in self.cloud}
        in_order = [*proper, *(by_name[name] for name in tried)]  # as the router numbers its clouds
        edges, clouds = ([_make_or_reuse(section, folder, key) for section in sections] for sections in (self.edge, in_order))
        trials, views = list[Any](), dict[Any, Any]()
        for side, sections in (("edge", self.edge), ("cloud", in_order)):
            views |= {(side, i): setting.view for i, setting in enumerate(sections) if setting.view is not None}
        endpoints = iter(clouds[len(proper) :])
        for setting in self.trial:
            if setting.edge is None:
                trials.append(setting.make(cloud=next(endpoints)))
                continue
            with _under_key("trial.edge"):
                section = for_file(self.edge[0], setting.edge, folder) if isinstance(setting.edge, str) else setting.edge
            with _under_key("trial.threshold"):
                trials.append(
                    setting.make(
                        edge=_make_or_reuse(section, folder, key), threshold=_with_certificates(setting.threshold, folder)
                    )
                )
            views[EDGE_TRIAL] = section.view
        clouds = clouds[: len(proper)]
        state = at(folder, self.state or "")  # unused without a state folder: a section that needs one would be a contradiction
        parts = [_part(name, keys) for name, keys in self.parts.items()]
        parts += [attribute(FLEET, "[fleet]")(**keys)] if self.fleet and (keys := self.fleet.keys(folder)) else []
        rules = self.egress or (Egress.model_validate({}) if any(f is not None for f in functions.values()) else None)
        return {
            **self.model_dump(exclude={*SECTIONS, "parts"}),
            "threshold": threshold,
            "score": score,
            "state": state if self.state else None,
            "edge": targets.group_variants(edges, self.edge),
            "cloud": clouds[0] if len(clouds) == 1 else clouds or None,
            "trial": trials or None,
            "limits": self.limits.make() if self.limits else None,
            "egress": rules.make(**functions) if rules else None,
            "audit": self.audit.make() if self.audit else None,
            "cache": self.cache.make(state) if self.cache else None,
            "rules": [rule.make() for rule in self.rule] or None,
            "views": views or None,
            "outbox": self.outbox.make(state / "outbox.db") if self.outbox else None,
            **({"trace": self.trace.make(folder, state)} if self.trace else {}),
            **({"instruments": self.telemetry.make()} if self.telemetry else {}),
            **({"parts": parts} if parts else {}),
        }


_made: Shared[tuple[Any, ...], Any] = Shared()  # objects made from sections, by weak reference, for later policies


@contextmanager
def _under_key(key: str) -> Iterator[None]:
    """Raise an error from within the block again, of the same type, with a key in front of its text."""
    try:
        yield
    except EdgerouteError as e:
        raise type(e)(f"{key}: {e}") from e


def _part(name: str, keys: dict[str, Any]) -> Any:
    """Make the part of an installed package's entry point `name`, with `keys` as arguments. Raises as `load_plugin`."""
    with _under_key(f"parts.{name}"):
        return load_plugin(PARTS, name, **keys)


FLEET = "edgeroute.fleet.device_request_counts:Fleet"  # class of the section; imported for policies that have it
PARTS = "edgeroute.parts"  # group of the entry points by which an installed package adds parts: `name = "module:Class"`


def _with_certificates(threshold: Any, folder: Path) -> Any:
    """Return the threshold with each path of a certificate replaced by the certificate, read from its file.

    Raises PolicyError as `Certificate.load`.
    """
    if isinstance(threshold, list):
        return [_with_certificates(item, folder) for item in threshold]
    if not isinstance(threshold, str):
        return threshold
    from edgeroute.confidence.certificate import Certificate

    return Certificate.load(at(folder, threshold))


def _score(score: str, folder: Path) -> tuple[Any, Any]:
    """Return the score and its identity: a name for both, or a score read from a file, and the file's path and stamp.

    While the file is unchanged, and the score in use, the same object is returned. Raises as `Learned.load`.
    """
    if score in SCORES:
        return score, score
    path = at(folder, score)
    key = (path, file_stamp(path))
    saved = _made.get(key)
    return (_made.first(key, targets.loaded_score(score, folder)) if saved is None else saved), key


def _make_or_reuse(section: targets.Target, folder: Path, score: Any) -> Any:
    """Return the object that was made from an equal section, if a router still holds it; else make a new one.

    Thereby a reload reuses the backends whose model or endpoint is the same object. The files that the section names count as
    well, by time and size, so that a new model or certificate under an old name makes a new object; so do further files on which
    the made model depends, and the score, since another score means another backend, and the old one closes its model. The
    references are weak: an object that no router holds is freed.
    """
    paths = [at(folder, path) for path in section.files()]
    secrets = (getattr(section, "api_key", None), *(getattr(section, "headers", None) or {}).items())  # repr hides which they are
    section_key = section.model_copy(
        update={"view": None, **(dict.fromkeys(("variant", "group")) if hasattr(section, "variant") else {})}
    )  # the router's
    key = (repr(section_key), secrets, score, folder.resolve(), *((path, _stamp(path)) for path in paths))
    last = _made.get(key)
    target = None if last is None else _made.get((key, _files(last)))
    if target is None:
        target = section.make(folder)
        target = _made.first((key, _files(target)), target)
        _made.put(key, target)
    return target


def _stamp(path: Path) -> Any:
    """Return the stamp of a file, which changes with it; of a file that names a model's active version, the version.

    None if there is no file, or the version is unknown.
    """
    if path.suffix.lower() != ACTIVE:
        return file_stamp(path)
    with suppress(EdgerouteError):  # said where the model is made
        return version_of(path)
    return None


def _files(target: Any) -> Any:
    """Return the stamps of the files that a model's outputs depend on."""
    return stamps(target) if is_model(target) else ()


# Messages for users, translated from pydantic's errors: they name the key, quote no secret, and suggest a valid one.

# Section of an earlier policy -> what replaces it.
REPLACED = {
    "ab": "write [trial] with edge = the path of B, and the other keys as they are (trials.md)",
    "candidate": "write [trial] with shown = false, and its keys in [trial.edge] (trials.md)",
    "cloud_arms": "write a [[trial]] for each endpoint but the first: cloud = its name; shown = false for shadow (trials.md)",
    "saver": 'a [[rule]] of = "battery" and one of = "heat" with the same `then` do the same (rules.md)',
}


def explain(error: ValidationError) -> list[faults.Problem]:
    """Return one problem per error; none quotes a value that may be a secret."""
    return [_problem(e["loc"], e["type"], e.get("ctx", {}), e["input"]) for e in error.errors(include_url=False)]


def _problem(loc: faults.Key, kind: str, context: Mapping[str, Any], value: Any) -> faults.Problem:
    """Return the problem of one pydantic error: its key, and what was expected, the nearest valid word, or where the key belongs.

    A value that may be a secret is described, not quoted.

    Args:
        loc: pydantic's place of the value.
        kind: pydantic's type of the error.
        context: context of the error.
        value: the invalid value.
    """
    key, model = _place(loc)
    if kind == "extra_forbidden":
        return faults.Problem(key, f"there is no such key: {_suggestion(str(key[-1]), model)}")
    if kind == "missing":
        return faults.Problem(key, f"is missing. {model.model_fields[str(key[-1])].description}")
    if kind == "union_tag_invalid":
        protocols = [*targets.CLOUDS, *plugin_targets(targets.PROTOCOLS)]
        found = value["protocol"]
        return faults.Problem((*key, "protocol"), f"found {faults.quote_value(found)}: {nearest(found, protocols)}")
    if kind == "literal_error":
        return faults.Problem(key, faults.wrong_word(value, context["expected"]))
    if kind == "expected":
        shown = faults.kind_text(value) if key[-1] in _MAY_BE_SECRET else faults.quote_value(value)
        return faults.Problem(
            key, f"expected {context['words']}, found {shown}" + (f"; {context['hint']}" if context["hint"] else "")
        )
    if kind == "policy":
        return faults.Problem(key, context["text"])
    return faults.Problem(key, f"expected a section, as in [{loc[0]}] and its keys below, found {faults.kind_text(value)}")


_MAY_BE_SECRET = ("cert", "verify")  # keys near which a key or password may have been written: their text is not quoted


def _place(loc: faults.Key) -> tuple[faults.Key, type[Section | Settings]]:
    """Return the key for pydantic's place of an error, and the section type that it belongs to.

    The key has no protocol, which pydantic adds as it picks a section's type.
    """
    models = SECTIONS.get(str(loc[0]), ())
    if len(loc) == 1 or not models:
        return loc, Settings
    if len(models) > 1 and len(loc) > 2:  # noqa: PLR2004 - the section, its index, then the protocol, which is no key
        return loc[:2] + loc[3:], targets.CLOUDS.get(str(loc[2]), targets.InstalledCloud)
    return loc, targets.Edge if loc[0] == "trial" and "edge" in loc[1:-1] else models[0]


def _suggestion(word: str, model: type[Section | Settings]) -> str:
    """Return a suggestion for an unknown key: the protocol that has it, what replaced it, its section, or the nearest key."""
    if issubclass(model, targets.Cloud):
        for protocol, other in targets.CLOUDS.items():
            if word in other.model_fields:
                return f'only a cloud with protocol = "{protocol}" has it'
    if issubclass(model, Egress) and word in {"allow", "deny", "hosts", "urls"}:
        return "may_leave and never_leave name classes of data, which go to the addresses in [cloud] alone"
    if model is Settings and word in REPLACED:
        return REPLACED[word]
    if begun := [key for key in model.model_fields if key.startswith(f"{word}_")]:
        return nearest(word, begun)
    if word in SECTIONS:
        return f"it is a section of its own, [{word}]"
    if word in Settings.model_fields:
        return "it belongs at the top of the file, before the first section"
    homes = [f"[{home}]" for home, models in SECTIONS.items() if any(word in m.model_fields for m in models)]
    homes = [home for home in homes if home != "[trial]"] or homes
    return f"it belongs in {' or '.join(homes)}" if homes else nearest(word, model.model_fields)


# Text of the problem of a misspelt key, with the key that was meant.
MISSPELT = re.compile('there is no such key: did you mean "([^"]+)"')


def corrected(data: Mapping[str, Any], problems: Iterable[faults.Problem]) -> dict[str, Any]:
    """Return a copy of a policy in which misspelt keys have the names that were meant; {} if there are none to correct.

    A key stays if the meant one is there as well. The policy itself is not changed.
    """
    better, changed = dict(data), False
    for (*place, name), meant in [(p.key, match[1]) for p in problems if (match := MISSPELT.match(p.text))]:
        section: Any = better
        with suppress(KeyError, IndexError, TypeError):  # a value of the environment
            for part in place:
                if isinstance(section, list) or part != 0:
                    section[part] = section = copy(section[part])  # the values stay, however deep they are
            if meant not in section:
                section[meant], changed = section.pop(name), True
    return better if changed else {}


_FILES = {"path": "model", "card": "model card", "threshold": "certificate", "score": "score"}  # key -> file that it may name


def missing_files(data: Mapping[str, Any], folder: Path, names: Collection[str]) -> Iterator[faults.Problem]:
    """Yield a problem for each model, card, certificate and score that the policy names and that does not exist.

    Addresses, models of a catalog, and models of runtimes that are not built in are passed over. names: keys that the program
    overrides, which are passed over too.
    """
    several: list[tuple[faults.Key, Any]] = [
        ((name, i), section) for name in ("edge", "cloud", "trial") for i, section in enumerate(faults.listed(data, name))
    ]
    several += [((*key, "edge"), section["edge"]) for key, section in several if isinstance(section, dict) and "edge" in section]
    for place, section in [((), data), *several]:
        values = {"path": section} if isinstance(section, str) else section if isinstance(section, dict) else {}
        for key, value in [(key, values.get(key)) for key in _FILES if {*place[:1], key}.isdisjoint(names)]:
            for name in value if isinstance(value, list) else [value]:
                if not isinstance(name, str) or name in SCORES or is_address(name) or name.endswith(ACTIVE):
                    continue
                if key == "path" and suffix_of(name) not in BUILT_IN:  # a class of others may run a model that is in no file
                    continue
                with suppress(PolicyError):  # of a name that no file can have
                    if not (path := at(folder, name)).exists():
                        yield faults.Problem((*place, key), f"there is no {_FILES[key]} at {path}")
