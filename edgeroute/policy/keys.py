"""The keys of a policy, and their conversion to the arguments of `Router`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from edgeroute.catalog.installed import version_of
from edgeroute.catalog.store import SUFFIX
from edgeroute.cloud.guard import Consent, Redact
from edgeroute.confidence.scores import SCORES
from edgeroute.core.policy import CloudOrder, NoConfidence, Offline, PolicyMode, Uncalibrated
from edgeroute.edge.members import is_model, stamps
from edgeroute.errors import EdgerouteError
from edgeroute.policy.problems import Wrong, contradictions
from edgeroute.policy.runtimes import ByRuntime, for_file
from edgeroute.policy.singles import (
    Ab,
    Audit,
    Cache,
    CloudArms,
    Egress,
    Limits,
    Outbox,
    Rule,
    Section,
    Telemetry,
    Trace,
    at,
)
from edgeroute.policy.targets import CLOUDS, AnyCloud, Edge, Target, grouped
from edgeroute.policy.units import Duration, Period
from edgeroute.policy.values import Flag, Hedge, Score, Text, Thresholds
from edgeroute.system.plugins import plugged
from edgeroute.system.process import Shared, file_stamp

SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "edge": (Edge,),
    "candidate": (Edge,),
    "ab": (Ab,),
    "cloud": tuple(CLOUDS.values()),
    "cloud_arms": (CloudArms,),
    "limits": (Limits,),
    "egress": (Egress,),
    "audit": (Audit,),
    "cache": (Cache,),
    "outbox": (Outbox,),
    "rule": (Rule,),
    "trace": (Trace,),
    "telemetry": (Telemetry,),
}
"""Types of a section; if there are several, its key `protocol` selects one."""
LISTS = ("edge", "cloud", "rule")
"""Sections that may occur several times."""

# the sources number such sections, "0" and on, so that a variable can override one of several
IN_ORDER = BeforeValidator(lambda given: list(given.values()) if isinstance(given, dict) else given)


class Settings(BaseSettings):
    """A validated policy, from the file and the variables."""

    model_config = SettingsConfigDict(extra="forbid", strict=True, case_sensitive=True)

    mode: PolicyMode = Field(
        "prefer_edge",
        description='Which side is asked first, and whether the other is asked at all. `"shadow"`: the cloud answers everything, '
        "and of the audited requests (without `[audit]`: of all) it is recorded what the edge would have answered (shadow.md).",
    )
    threshold: Thresholds | None = Field(
        None,
        description="Confidence from which an edge answer is accepted and nothing is sent: a number, or the path of a "
        "certificate, which `edgeroute calibrate` writes; one, or one for each edge model. Required with both sides and mode "
        "prefer_edge.",
    )
    deadline: Duration | None = Field(
        None, description="From call to answer; then the best there is stands. Without it: no limit."
    )
    hedge_after: Hedge | None = Field(
        None,
        description='Ask the next target too after this long without an answer; `"0s"` is a race; `"p90"`: once the edge takes '
        'longer than 90 % of its runs; `"auto"`: as late as the deadline allows, from the latencies measured. Without it: never.',
    )
    first_token: Duration | None = Field(
        None,
        description="In streams: a target that has not begun to answer after this long counts as failed. Without it: no limit.",
    )
    score: Score = Field(
        "msp", description="How the confidence is taken from a model's outputs, or the path of a score that was fitted and saved."
    )
    uncalibrated: Uncalibrated = Field(
        "tell",
        description="A threshold without a certificate that holds here, for these models, this score and this age: reasons and "
        "`check` say so, or the policy is refused.",
    )
    certificate_max_age: Duration | None = Field(
        None, description='How old a certificate may be, as `"90d"`. Without it: no limit.'
    )
    no_confidence: NoConfidence = Field("defer", description="An answer without a confidence: ask the next target, or accept it.")
    offline: Offline = Field(
        "edge",
        description="When the cloud was needed and did not answer: "
        '`"edge"`: the edge\'s answer stands, marked degraded; `"queue"`: it does, and the outbox sends the request later; '
        '`"stale"`: an answer that the cache has past its time; `"raise"`: NoAnswer.',
    )
    order: CloudOrder = Field("listed", description="Of several clouds, which is asked first: as listed, or the fastest so far.")
    metered: Flag = Field(False, description="Whether bytes cost money: then nothing is asked only to be quicker.")
    sensors_every: Period | None = Field(
        None,
        description='How often the sensors of the device are read, `"1s"` to `"60s"`, if something goes by them '
        "(sensors.md). Without it: every 10 s, or as the program's own `sensors=` say.",
    )
    state: Text | None = Field(
        None,
        description="A folder, made where it is not there, for what outlives the process: latencies, what was spent, the egress "
        "ledger, the outbox, the cache on disk, the trace. Without it nothing of this is kept.",
    )
    edge: Annotated[list[Annotated[Edge, ByRuntime]], IN_ORDER] = Field(
        [], description="The model on the device; several as `[[edge]]`, the smallest first."
    )
    candidate: Annotated[Edge, ByRuntime] | None = Field(
        None,
        description="A model to take the place of the only `[edge]`, with the same keys: on audited requests it runs in the "
        "background, and `edgeroute recertify` puts it in force once its certificate holds (shadow.md).",
    )
    ab: Ab | None = Field(
        None,
        description="A/B: a stable share of the requests or devices gets another edge model; what comes of both is compared, and "
        "a guardrail stops it (models.md).",
    )
    cloud: Annotated[list[AnyCloud], IN_ORDER] = Field(
        [],
        description="The endpoint; several as `[[cloud]]`, in order of trying. Without it nothing can leave the device. An "
        "installed package may add a `protocol` (extend.md).",
    )
    cloud_arms: CloudArms | None = Field(
        None,
        description="A/B, canary and shadow of the cloud: a stable share of the requests or devices gets another `[[cloud]]` "
        "than the first; what comes of each is compared, and a guardrail stops one (arms.md).",
    )
    limits: Limits | None = Field(
        None,
        description="The most that asking the cloud may cost. At a limit it is not asked, as if it were away. Without `state` a "
        "restart begins anew.",
    )
    egress: Egress | None = Field(
        None,
        description="Which data may leave the device: a call names its class, as in `infer(x, data_class=...)`. Without this "
        "section all of it.",
    )
    audit: Audit | None = Field(
        None, description="Compares a sample of answers with the cloud's, and tells when the promise of a certificate fails."
    )
    cache: Cache | None = Field(None, description="Keeps answers for inputs that come again. Without this section: none.")
    outbox: Outbox | None = Field(
        None,
        description='Requests that the cloud did not answer wait in `outbox.db` in the `state` folder; `offline = "queue"` puts '
        "them there, and needs this section only for other values than these.",
    )
    rule: Annotated[list[Rule], IN_ORDER] = Field(
        [],
        description="What changes while the device is short of battery, memory or power, hot or busy; several as `[[rule]]`. Of "
        "those in force that change the mode the first counts (rules.md).",
    )
    trace: Trace | None = Field(
        None, description="Writes how each answer came about, a line of JSON each. Without this section: nothing is written."
    )
    telemetry: Telemetry | None = Field(
        None, description="Metrics, spans and log records of requests (observe.md). Without this section: none."
    )
    parts: dict[str, dict[str, Any]] = Field(
        {}, description="Parts that installed packages bring, each a section `[parts.NAME]` with the part's own keys (extend.md)."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the signature is pydantic-settings'
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The sources that `load` made, the first one taking precedence."""
        return init_settings()["sources"]  # type: ignore[no-any-return]

    @model_validator(mode="wrap")
    @classmethod
    def _whole(cls, data: Any, inner: Any) -> Any:
        """Reports contradictions beside errors in single keys; pydantic would stop at the latter."""
        problems = contradictions(data)
        try:
            settings = inner(data)
        except ValidationError as e:
            raise Wrong(e, problems) from None
        if problems:
            raise Wrong(None, problems)
        return settings

    def arguments(self, folder: Path, consent: Consent | None = None, redact: Redact | None = None) -> dict[str, Any]:
        """The arguments of `Router`; `trace` and `instruments` are included only if the policy has those sections.

        Args:
            folder: base of relative paths in the policy.
            consent: as for `Egress`.
            redact: as for `Egress`.

        Raises:
            ModelMissing: a card or score named by the policy is missing.
            ModelError: a card or score is invalid.
            PolicyError: a certificate is missing or invalid.
        """
        with _named("score"):
            score, key = _score(self.score, folder)
        with _named("threshold"):
            threshold = _certified(self.threshold, folder)
        edges, clouds = ([_kept(section, folder, key) for section in sections] for sections in (self.edge, self.cloud))
        state = at(folder, self.state or "")  # unused without a state folder: a section that needs one would be a contradiction
        rules = self.egress or (None if consent is None and redact is None else Egress.model_validate({}))
        return {
            **self.model_dump(exclude={*SECTIONS, "parts"}),
            "threshold": threshold,
            "score": score,
            "state": state if self.state else None,
            "edge": grouped(edges, self.edge),
            "cloud": self._clouds(clouds),
            "candidate": _kept(self.candidate, folder, key) if self.candidate else None,
            "ab": self._arm(folder, key) if self.ab else None,
            "limits": self.limits.make() if self.limits else None,
            "egress": rules.make(consent, redact) if rules else None,
            "audit": self.audit.make() if self.audit else None,
            "cache": self.cache.make(state) if self.cache else None,
            "rules": [rule.make() for rule in self.rule] or None,
            "views": {
                (side, i): section.view
                for side, sections in (
                    ("edge", self.edge),
                    ("cloud", self.cloud),
                    ("candidate", [self.candidate] if self.candidate else []),
                )
                for i, section in enumerate(sections)
                if section.view is not None
            }
            or None,
            "outbox": self.outbox.make(state) if self.outbox else None,
            **({"trace": self.trace.make(folder, state)} if self.trace else {}),
            **({"instruments": self.telemetry.make()} if self.telemetry else {}),
            **({"parts": [_part(name, keys) for name, keys in self.parts.items()]} if self.parts else {}),
        }

    def _clouds(self, clouds: list[Any]) -> Any:
        """The endpoints, with their arms if they have some."""
        if self.cloud_arms is not None:
            return self.cloud_arms.make(dict(zip((section.name for section in self.cloud), clouds, strict=True)))
        return clouds[0] if len(clouds) == 1 else clouds or None

    def _arm(self, folder: Path, key: Any) -> Any:
        """Arm B: the model at its path, with those other keys of the edge that its runtime has."""
        assert self.ab is not None, "it was looked for"
        with _named("ab.path"):
            section = for_file(self.edge[0], self.ab.path, folder)
        with _named("ab.threshold"):
            return self.ab.make(_kept(section, folder, key), _certified(self.ab.threshold, folder))


_made: Shared[tuple[Any, ...], Any] = Shared()


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Names the key in what is wrong with the file that it names."""
    try:
        yield
    except EdgerouteError as e:
        raise type(e)(f"{key}: {e}") from e


def _part(name: str, keys: dict[str, Any]) -> Any:
    """Return the part that an installed package makes of its keys."""
    with _named(f"parts.{name}"):
        return plugged(PARTS, name, **keys)


PARTS = "edgeroute.parts"
"""Group of the entry points by which an installed package adds parts: `name = "module:Class"`."""


def _certified(threshold: Any, folder: Path) -> Any:
    """Replaces paths of certificates by the certificates."""
    if isinstance(threshold, list):
        return [_certified(one, folder) for one in threshold]
    if not isinstance(threshold, str):
        return threshold
    from edgeroute.confidence.certificate import Certificate

    return Certificate.load(at(folder, threshold))


def _score(score: str, folder: Path) -> tuple[Any, Any]:
    """The score, and its identity: the same object while its file is unchanged."""
    if score in SCORES:
        return score, score
    from edgeroute.confidence.learned import Learned

    path = at(folder, score)
    key = (path, file_stamp(path))
    made = _made.get(key)
    return (_made.first(key, Learned.load(path)) if made is None else made), key


def _kept(section: Target, folder: Path, score: Any) -> Any:
    """The object made from an equal section of an equal policy, while a router holds it.

    A reload reuses the backends whose model or endpoint is the same object. "Equal" includes the files that the section
    names, by time and size, so that a new model or certificate under an old name is a new object, and all that the model made
    from it says that it depends on; and the score, since another score means another backend, and the old one closes its
    model. The references are weak: what no router holds is freed.
    """
    paths = [at(folder, path) for path in section.files()]
    secrets = (getattr(section, "api_key", None), *getattr(section, "headers", {}).items())  # repr hides which they are
    own = section.model_copy(
        update={"view": None, **(dict.fromkeys(("variant", "group")) if hasattr(section, "variant") else {})}
    )  # the router's
    key = (repr(own), secrets, score, folder.resolve(), *((path, _stamp(path)) for path in paths))
    last = _made.get(key)
    made = None if last is None else _made.get((key, _files(last)))
    if made is None:
        made = section.make(folder)
        made = _made.first((key, _files(made)), made)
        _made.put(key, made)
    return made


def _stamp(path: Path) -> Any:
    """What tells whether a file is another one; of one that names a model's active version, that."""
    if path.suffix.lower() != SUFFIX:
        return file_stamp(path)
    with suppress(EdgerouteError):  # said where the model is made
        return version_of(path)
    return None


def _files(made: Any) -> Any:
    """What tells whether one of the files that a model's outputs depend on has changed."""
    return stamps(made) if is_model(made) else ()
