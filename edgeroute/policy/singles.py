"""Sections that occur once: limits, egress, audit, cache, outbox, trace, telemetry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from edgeroute.cloud import guard
from edgeroute.core import rules, spending
from edgeroute.core.egress import Unknown
from edgeroute.core.policy import OnAlarm
from edgeroute.core.rules import OF, Of, Then
from edgeroute.errors import PolicyError
from edgeroute.policy.units import SHARE, Delay, Duration, Share, Size, expected, share, text
from edgeroute.policy.values import Amount, AnyTexts, Count, Flag, Rate, Text, Texts, not_only_cloud, refused

if TYPE_CHECKING:
    from edgeroute.record import trace
    from edgeroute.record.instruments import Instrument
    from edgeroute.stores import cache, outbox
    from edgeroute.trials import drift


# Base of all policy sections, and path resolution.

_folder = ContextVar("folder", default=Path())


@contextmanager
def paths_from(folder: Path) -> Iterator[None]:
    """Paths in the policy that is validated meanwhile start from that folder."""
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def policy_folder() -> Path:
    """The folder of the policy that is validated."""
    return _folder.get()


class Section(BaseModel):
    """Keys that belong together. No other key is taken, and no value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True)


def at(folder: Path, given: str) -> Path:
    """Absolute path without `..`; a link at its end is not followed, since a model's card is beside the link.

    Raises:
        PolicyError: no file can have that name.
    """
    path = folder / given
    try:
        found = path.parent.resolve() / path.name
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found.lstat()
    except (OSError, RuntimeError, ValueError) as e:  # too long, links in a circle, a null byte
        raise PolicyError(f"{given[:80]!r} cannot be a path: {e.strerror if isinstance(e, OSError) else e}") from None
    return found


class Limits(Section):
    """What asking the cloud may cost, by the prices in its sections."""

    usd_per_day: Amount | None = Field(None, description="Dollars in any 24 hours. Without it: no limit.")
    mb_per_day: Amount | None = Field(
        None, description="Millions of bytes, sent and received, in any 24 hours. Without it: no limit."
    )
    joules_per_hour: Amount | None = Field(
        None,
        description="The device's energy in any hour: of calls by those prices, and of the edge's runs as far as it is "
        "known what they take (rules.md). No run is refused for it. Without it: no limit.",
    )
    calls_per_minute: Amount | None = Field(None, description="Requests in any minute. Without it: no limit.")

    def make(self) -> spending.Limits:
        """Makes the limits."""
        return spending.Limits(**self.model_dump(exclude_none=True))


class Egress(Section):
    """Which data classes may leave the device."""

    never_leave: Texts | None = Field(None, description="Data classes that stay on the device, whatever the mode.")
    may_leave: AnyTexts | None = Field(
        None, description='Data classes that may leave. `[]`: nothing may, unless `unknown_class` is `"allow"`.'
    )
    unknown_class: Unknown = Field(
        "deny", description="What a class means that is in neither list; so does naming none, without a `default_class`."
    )
    default_class: Text | None = Field(None, description="The class of a call that names none.")

    def make(self, consent: guard.Consent | None, redact: guard.Redact | None) -> guard.Egress:
        """Makes the egress rules, with the functions that a file cannot contain."""
        return guard.Egress(**self.model_dump(exclude_none=True), consent=consent, redact=redact)


class Audit(Section):
    """Watches whether what a certificate promises still holds."""

    share: Share = Field(
        "0.5%",
        validate_default=True,
        description="The share of requests that are audited: of those that the edge answers the cloud is asked later, "
        "where data class, limits and link allow it; of the others the comparison is free. 0: only deferral rates are watched.",
    )
    on_alarm: OnAlarm = Field(
        "tell",
        description='When the promise fails: `"tell"`: log, reasons and `edgeroute status` say so; `"raise"`: and half of what '
        'was accepted is deferred from then on, at each alarm; `"defer"`: and all of it. One of the deferral rate only tells.',
    )
    scene: Count = Field(
        30,
        description="How many requests in a row may have inputs that are alike, as frames of a film or a burst: alarms count "
        "requests that are at least so far apart. 1: the inputs are independent.",
    )
    labelled: Flag = Field(
        False,
        description="Right values are reported (`router.report`): alarms test the loss, and not how often the answers differ.",
    )

    def make(self) -> drift.Audit:
        """Makes the audit settings."""
        from edgeroute.trials.drift import Audit

        return Audit(**self.model_dump())


class Cache(Section):
    """Answers kept for inputs that come again."""

    ttl: Delay = Field("1h", validate_default=True, description='How long an answer is fresh; `"0s"`: it never is.')
    max_size: Size = Field("16MiB", validate_default=True, description="The most memory that it takes.")
    disk: Flag = Field(False, description="Keep answers on disk too, in `cache.db` in the `state` folder.")
    disk_max: Size = Field("256MiB", validate_default=True, description="The most that this file takes.")
    stale_while_revalidate: Delay = Field(
        "0s", validate_default=True, description="How long after its time an answer is given while it is renewed."
    )
    stale_if_offline: Delay = Field(
        "1d", validate_default=True, description='How long after its time `offline = "stale"` may still give an answer.'
    )
    negative_ttl: Delay = Field(
        "60s", validate_default=True, description="How long it is remembered that the endpoint refused an input."
    )
    never: Texts | None = Field(None, description="Data classes whose answers are not kept.")

    def make(self, state: Path) -> cache.Cache:
        """Makes the cache; `state` is the state folder."""
        from edgeroute.stores.cache import Cache

        return Cache(
            max_bytes=self.max_size,
            ttl_s=self.ttl,
            stale_while_revalidate_s=self.stale_while_revalidate,
            stale_if_offline_s=self.stale_if_offline,
            negative_ttl_s=self.negative_ttl,
            disk=state / "cache.db" if self.disk else None,
            disk_max_bytes=self.disk_max,
            never=frozenset(self.never or ()),
        )


class Outbox(Section):
    """Requests that wait on disk until the cloud answers."""

    max_size: Size = Field("64MiB", validate_default=True, description="The most that all of it takes.")
    ttl: Duration = Field("7d", validate_default=True, description="What has waited so long is dropped.")
    drop: Literal["oldest", "least_important", "newest"] = Field(
        "oldest", description="What makes room when it is full; with newest the new request is refused."
    )
    ordered: Flag = Field(False, description="Send what waits for an endpoint one by one, in the order in which it came.")
    parallel: Count = Field(2, description="Requests under way at a time.")
    rate: Rate = Field(10, description="Requests that are sent in a second, at most.")
    spread: Delay = Field(
        "60s",
        validate_default=True,
        description="After the cloud has failed, what waits is sent after a random part of this, or of more once it has waited "
        'long, so that many devices do not return as one; `"0s"`: as soon as it may be.',
    )

    def make(self, state: Path) -> outbox.Outbox:
        """Makes the outbox; `state` is the state folder."""
        from edgeroute.stores.outbox import Outbox

        return Outbox(
            state / "outbox.db",
            max_bytes=self.max_size,
            ttl_s=self.ttl,
            drop=self.drop,
            ordered=self.ordered,
            parallel=self.parallel,
            rate_per_s=self.rate,
            spread_s=self.spread,
        )


class Trace(Section):
    """How each answer came about, as a line of JSON in a file."""

    file: Text | None = Field(None, description="The file; without it `trace.jsonl` in the `state` folder.")
    sample: Share = Field("100%", validate_default=True, description='The share of answers that are traced, as `"1%"` or 0.01.')
    inputs: Flag = Field(False, description="Have the inputs in it: it holds user data then.")
    max_size: Size = Field("4MiB", validate_default=True, description="The size at which a file is full, and the next is begun.")
    keep: Count = Field(4, description="Full files that are kept.")

    def make(self, folder: Path, state: Path) -> trace.Trace:
        """Makes the trace; a relative path starts from `folder`."""
        from edgeroute.record.trace import Trace

        file = at(folder, self.file) if self.file else state / "trace.jsonl"
        return Trace(file, sample=self.sample, inputs=self.inputs, max_bytes=self.max_size, keep=self.keep)


class Telemetry(Section):
    """Metrics, spans and log records for systems that watch a fleet; none has an input or an answer in it (observe.md)."""

    prometheus: Flag = Field(
        False,
        description="Count for Prometheus; the gateway then has `/metrics`. Needs the extra `prometheus`.",
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
        """Makes the instruments.

        Raises:
            RuntimeMissing: an extra is not installed.
        """
        made: list[Instrument] = []
        if self.prometheus:
            from edgeroute.record.prometheus import Prometheus

            made.append(Prometheus(router=self.router or ""))
        if self.opentelemetry:
            from edgeroute.record.opentelemetry import OpenTelemetry

            made.append(OpenTelemetry(propagate=self.propagate or ()))
        if self.requests:
            from edgeroute.record.request_log import RequestLog

            made.append(RequestLog())
        return made


# Sections `[[rule]]`: what changes while the device is short of something, or hot.

_WORDS: Final = {"heat": "degrees Celsius, a number such as 80", "power": "watts, a number such as 12.5"}


def _level(value: Any, info: ValidationInfo) -> float | None:
    """A level in the unit of what the rule is of."""
    of = info.data.get("of")
    if of is None or of == "throttled":  # what is wrong there, is said there
        return 0.0
    if OF[of].share:
        return share(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:  # noqa: PLR2004 - nor a NaN
        raise expected(_WORDS[of])
    return float(value)


Level = Annotated[
    float | None,
    PlainValidator(_level),
    WithJsonSchema({"anyOf": [text("percentage", SHARE, "20%"), {"type": "number"}]}),
]


class Rule(Section):
    """What changes while the device is short of something, or hot."""

    of: Of = Field(
        description="What of the device: `battery` and `memory` are shares of what there is; `heat` degrees Celsius of the "
        "hottest part; `load` and `gpu` shares of their time; `power` watts; `throttled`: whether the processor is slowed down."
    )
    enter: Level = Field(
        None, description="Where the rule comes into force: below it for battery and memory, above it for others but `throttled`."
    )
    leave: Level = Field(
        None,
        description="Where it ends, on the other side of `enter`. Without it: 5 percentage points more for battery and memory, "
        "10 less for load and gpu, 5 degrees less, a tenth of the power less.",
    )
    hold: Delay = Field(
        "0s", validate_default=True, description="How long the readings have to ask for a change before it is made."
    )
    then: Annotated[Then, BeforeValidator(not_only_cloud)] = Field(
        description="A mode in place of the policy's; `small_model`: only the smallest edge model; `cheapest_energy`: the side "
        "that takes less energy first; `unload`: the edge models are freed, and asked after every cloud (rules.md)."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        if self.of == "throttled" and self.model_fields_set & {"enter", "leave"}:
            raise refused("a rule of throttled has neither enter nor leave")
        if problem := rules.problem(self.make()):
            raise refused(problem)
        return self

    def make(self) -> rules.Rule:
        """Makes the rule."""
        return rules.Rule(self.of, self.then, self.enter, self.leave, self.hold)
