"""Policy sections that occur once (limits, egress, audit, cache, outbox, trace, telemetry, gateway, fleet), `[[rule]]`, paths."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo, WithJsonSchema, model_validator

from edgeroute.cloud import egress_consent_and_redaction as egress_settings
from edgeroute.core import device_rules as rules
from edgeroute.core import spending_limits as spending
from edgeroute.core.device_rules import OF, Then
from edgeroute.errors import PolicyError
from edgeroute.policy.policy_keys_from_signatures import Section, configures
from edgeroute.policy.units_as_text import SHARE, Duration, expected_error, share, text
from edgeroute.policy.value_types import (
    AnyTexts,
    DigestsTo,
    Flag,
    PathText,
    SecretReference,
    Text,
    Texts,
    message_error,
    not_only_cloud,
)
from edgeroute.record import trace
from edgeroute.stores import cache, outbox
from edgeroute.system.contained_calls_and_tasks import set_within
from edgeroute.trials import audit_setting_and_drift_monitor as drift

if TYPE_CHECKING:
    from edgeroute.record.instrument_interface import Instrument


# Resolution of paths.

_folder = ContextVar("folder", default=Path())


def paths_from(folder: Path) -> AbstractContextManager[None]:
    """Within the block, resolve relative paths of the validated policy from a folder."""
    return set_within(_folder, folder)


def policy_folder() -> Path:
    """Return the folder of the policy that is validated."""
    return _folder.get()


def at(folder: Path, given: str) -> Path:
    """Return a path from a folder, absolute and without `..`; it need not exist.

    Links to folders are followed, one at its end is not, since a model's card is beside the link.

    Raises:
        PolicyError: no file can have that name.
    """
    path = folder / given
    try:
        resolved = path.parent.resolve() / path.name
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            resolved.lstat()
    except (OSError, RuntimeError, ValueError) as e:  # too long, links in a circle, a null byte
        raise PolicyError(f"{given[:80]!r} cannot be a path: {e.strerror if isinstance(e, OSError) else e}") from None
    return resolved


@configures(spending.Limits)
class Limits(Section):
    """Limits of the cost of calls to the cloud. At a limit the cloud is not called, as if it were down.

    Without `state` a restart begins anew.
    """


@configures(egress_settings.Egress)
class Egress(Section):
    """Rules for what may leave the device: a call names its class, as in `infer(x, data_class=...)`.

    Without this section all data without a class may leave.
    """


@configures(drift.Audit)
class Audit(Section):
    """Comparison of a sample of answers with the cloud's, with an alarm when a guarantee fails."""


@configures(cache.Cache)
class Cache(Section):
    """Cache of answers for repeated inputs. Without this section: none."""

    disk: Flag = Field(False, description="Keep answers on disk too, in `cache.db` in the `state` folder.")

    def make(self, state: Path) -> Any:
        """Make the cache; `state` is the state folder."""
        never = frozenset(self.given().get("never", ()))
        return super().make(disk=state / "cache.db" if self.disk else None, never=never)


@configures(outbox.Outbox, path=None, ttl_s=Duration)
class Outbox(Section):
    """Queue in `outbox.db` in the `state` folder, for requests that the cloud did not answer.

    `offline = "queue"` uses it, and needs this section only for other values than these.
    """


@configures(trace.Trace, to=None)
class Trace(Section):
    """File with a line of JSON on how each answer came about. Without this section: none."""

    file: PathText | None = Field(None, description="The file; without it `trace.jsonl` in the `state` folder.")

    def make(self, folder: Path, state: Path) -> Any:
        """Make the trace; a relative path starts from `folder`."""
        return super().make(at(folder, self.file) if self.file else state / "trace.jsonl")


class Telemetry(Section):
    """Metrics, spans and log records of requests, without inputs and answers (observe.md). Without this section: none."""

    prometheus: Flag = Field(
        False, description="Count for Prometheus; the gateway then has `/metrics`. Needs the extra `prometheus`."
    )
    router: Text | None = Field(None, description="Value of the label `router` of these metrics. Without it: none.")
    opentelemetry: Flag = Field(
        False, description="Spans, by the providers that the program or its environment has set up. Needs the extra `otel`."
    )
    propagate: Texts | None = Field(
        None, description="Hosts of endpoints whose calls carry `traceparent`, so that they join the trace. Without it: none."
    )
    requests: Flag = Field(False, description="A log record for each request, of the logger `edgeroute.requests`.")

    def make(self) -> list[Instrument]:
        """Make the instruments that are switched on, and import their packages; [] for none.

        Raises:
            RuntimeMissing: an extra is not installed.
        """
        instruments: list[Instrument] = []
        if self.prometheus:
            from edgeroute.record.prometheus import Prometheus

            instruments.append(Prometheus(router=self.router or ""))
        if self.opentelemetry:
            from edgeroute.record.opentelemetry import OpenTelemetry

            instruments.append(OpenTelemetry(propagate=self.propagate or ()))
        if self.requests:
            from edgeroute.record.structured_logging import RequestLog

            instruments.append(RequestLog())
        return instruments


class Gateway(Section):
    """Requests of the gateway's clients (gateway.md); read at its start."""

    allow: AnyTexts = Field([], description="Further keys of a request that reach the model and the cloud, with any value.")
    embeddings: PathText | None = Field(None, description="Policy of the one model of `/v1/embeddings`, or this file.")


class Fleet(Section):
    """The device's part of a fleet (fleet.md). This section and `[local]` are the device's own: no signed policy changes them."""

    to: DigestsTo | None = Field(
        None,
        description="Where counts of each day go, without inputs and answers: a folder, `https://`, `s3://BUCKET/PREFIX` or "
        "`mqtts://HOST/TOPIC`; with a user or a query: `{ env = ... }`. A digest's name is appended to the address, or replaces "
        "its `{name}`, which a query needs: presigned addresses, of one object, are refused. Without it: nothing is counted.",
    )
    site: Text | None = Field(None, description="Text that comes with the counts, such as a plant's name.")
    key: SecretReference | None = Field(None, description="Key with which the digests are signed. Without it they are not.")
    rotate: Duration | None = Field(None, description="Age at which the device's random id is replaced. Without it: never.")
    every: Duration | None = Field(None, description="Time between two digests of a day. Without it: one, when the day is over.")
    policy: Text | None = Field(None, description="Signed policy to follow, under the device's own `[local]`. Needs `state`.")
    catalog: PathText | None = Field(None, description="Catalog with the signed policy: a folder, or an address with https://.")
    root: PathText | None = Field(None, description="The owner's `root.json`, whose signatures count.")
    refresh: Duration = Field("10m", validate_default=True, description="Time between two requests to the catalog.")
    pinned: Flag = Field(False, description="Stay at the version in force. Emergency orders and the fleet's budget still count.")

    @model_validator(mode="after")
    def _complete(self) -> Fleet:
        """Refuse a policy without a catalog and its root."""
        if self.policy and not (self.catalog and self.root):
            raise message_error("a signed policy has a catalog and a root: give both")
        return self

    def keys(self, folder: Path) -> dict[str, Any]:
        """Return the arguments of `edgeroute.fleet.device_request_counts.Fleet`; {} if nothing is counted."""
        to = self.to if not isinstance(self.to, str) or "://" in self.to else str(at(folder, self.to))
        names = {"site", "key", "rotate", "every"} & self.model_fields_set
        return {name: getattr(self, name) for name in names} | {"to": to} if to else {}


# Sections `[[rule]]`: what changes while the device is short of something, or hot.

_WORDS: Final = {"heat": "degrees Celsius, a number such as 80", "power": "watts, a number such as 12.5"}


def _parse_rule_level(value: Any, info: ValidationInfo) -> float | None:
    """Return a rule's level as a number: of a share, text or number is parsed; of degrees or watts, it must be a number.

    Returns 0 for a rule without levels, and for one whose quantity `of` is invalid, which is reported on its own. Raises
    PydanticCustomError for any other value.
    """
    of = info.data.get("of")
    if of is None or of == "throttled":  # what is wrong there, is said there
        return 0.0
    if OF[of].share:
        return share(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:  # noqa: PLR2004 - nor a NaN
        raise expected_error(_WORDS[of])
    return float(value)


Level = Annotated[
    float | None,
    PlainValidator(_parse_rule_level),
    WithJsonSchema({"anyOf": [text("percentage", SHARE, "20%"), {"type": "number"}]}),
]


@configures(rules.Rule, enter=Level, leave=Level, then=Annotated[Then, BeforeValidator(not_only_cloud)])
class Rule(Section):
    """Changes while the device is short of battery, memory or power, hot or busy; several as `[[rule]]`.

    Of those in force that change the mode the first counts (rules.md).
    """

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        """Return the rule; raise PydanticCustomError if its keys contradict each other."""
        if problem := rules.problem(self.make()):
            raise message_error(problem)
        return self
