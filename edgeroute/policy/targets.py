"""Sections of targets: models on the device, endpoints over HTTP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from edgeroute.cloud.body import Body, BodyType
from edgeroute.cloud.grpc import OpenInferenceGrpc
from edgeroute.cloud.json_api import PlainJson
from edgeroute.cloud.openai import OpenAIChat
from edgeroute.cloud.openinference import OpenInference
from edgeroute.confidence.prefix import Rule
from edgeroute.confidence.scores import SCORES
from edgeroute.core.policy import Terms
from edgeroute.edge.providers import parse_providers
from edgeroute.edge.runtimes import ACTIVE, Variants, load
from edgeroute.errors import PolicyError
from edgeroute.policy.singles import Section, at
from edgeroute.policy.units import Duration, Size
from edgeroute.policy.values import (
    Amount,
    Binary,
    BodyTemplate,
    Cert,
    Client,
    Concurrent,
    Count,
    Flag,
    Headers,
    ModelPath,
    PayloadCodec,
    PingPath,
    Pins,
    Providers,
    Rate,
    Retries,
    Score,
    SecretReference,
    Sha256,
    Table,
    Text,
    Texts,
    Threads,
    Url,
    Verify,
    Whole,
    checked_body,
    refused,
)
from edgeroute.system.plugins import installed, plugged

VARIANT = (
    "Its name in a group of variants, of which one runs (rules.md#variants): neighbours that have one, and the same `group`, are "
    "a group. In `[[edge.variant]]` it is `name`."
)
GROUP = "Any text: tells two groups of variants apart that are next to each other. In `[[edge.variant]]` it is not needed."
Kind = Literal["logits", "probabilities", "logprobs", "label+probabilities", "value", "boxes", "answers"]
NoneFound = Literal["defer", "accept", "score"]


def loaded_score(score: str, folder: Path) -> Any:
    """The score of this name, or the one saved at this path."""
    if score in SCORES:
        return score
    from edgeroute.confidence.learned import Learned

    return Learned.load(at(folder, score))


def cards(path: str) -> list[str]:
    """Where the card of a model file may be."""
    return [str(Path(path).with_suffix(".json")), f"{path}.json"]


class Target(Section, ABC):
    """One model or endpoint."""

    @abstractmethod
    def files(self) -> list[str]:
        """Paths of the files that it names."""

    @abstractmethod
    def make(self, folder: Path) -> Any:
        """Makes the router's argument for it; relative paths start from `folder`."""


class Edge(Target):
    """A model on the device."""

    path: ModelPath = Field(description="The model file; its suffix picks the runtime.")
    providers: Providers = Field(
        ["cpu"],
        description='Execution providers, best first: names, or tables with a name and options, as `{ name = "tensorrt", fp16 = '
        "true }` (providers.md).",
    )
    threads: Threads = Field(1, description="Threads for one run; more than one slows a busy device down.")
    on_downgrade: Literal["error", "record"] = Field(
        "error",
        description="When a provider asked for is not there, or the first takes no node: fail, or run on another and record it.",
    )
    sha256: Sha256 | None = Field(None, description="SHA-256 of the model file; without it the card's, if that has one.")
    card: Text | None = Field(None, description="The model's card, where it is not beside the model.")
    output: Text | None = Field(None, description="The output that is read; without it the card's, else all.")
    kind: Kind | None = Field(None, description="What the outputs are; without it the card's, else read by their form.")
    labels: Texts | None = Field(None, description="The classes' names in order; without them the card's.")
    score: Score | None = Field(None, description="For this model, in place of the policy's `score`.")
    none_found: NoneFound | None = Field(
        None, description="What it means that a detector finds nothing: ask the next, accept, or one minus its best score."
    )
    view: Text | None = Field(
        None, description="What this side takes of an input that is a mapping: the key. Without it: all of the input."
    )
    variant: Text | None = Field(None, description=VARIANT)
    group: Text | None = Field(None, description=GROUP)

    def files(self) -> list[str]:
        """The model, its card and its score."""
        own = [self.score] if self.score is not None and self.score not in SCORES else []
        return [self.path, *([self.card] if self.card else cards(self.path)), *own]

    def make(self, folder: Path) -> Any:
        """Makes the model, not loaded yet."""
        follows = self.path.lower().endswith(ACTIVE)  # the defaults are those of its runtime
        options = self.model_dump(exclude={"path", "card", "score", "view", "variant", "group"}, exclude_unset=follows)
        if "providers" in options:
            options["providers"] = parse_providers(self.providers, folder)
        if follows:
            options |= {} if self.score is None else {"score": loaded_score(self.score, folder)}
            return load(at(folder, self.path), **options, **({"card": at(folder, self.card)} if self.card else {}))
        score = None if self.score is None else loaded_score(self.score, folder)
        return load(at(folder, self.path), **options, score=score, card=at(folder, self.card) if self.card else None)


class Cloud(Target):
    """An endpoint over HTTP."""

    url: Url = Field(description="Where it is, without user, password or query.")
    name: Text = Field("cloud", description="What answers, traces and messages call it.")
    labels: Texts | None = Field(None, description="The classes' names in order; without them the edge model's.")
    kind: Kind | None = Field(
        None, description="What the outputs, or the array at `logits`, are; without it they are read by their form."
    )
    api_key: SecretReference | None = Field(None, description="Sent as `Authorization: Bearer ...`.")
    headers: Headers = Field(
        {}, description='Sent with each request. A value is text, or `{ env = "NAME" }`, which a secret has to be.'
    )
    verify: Verify = Field(
        True, description="Check the server's certificate: true, by the authorities in this file alone, or false for not at all."
    )
    cert: Cert | None = Field(None, description="Paths of the client's certificate and key, for mutual TLS.")
    pin: Pins | None = Field(
        None, description="`sha256/BASE64` of the server's public key, or a list of them: its certificate must hold one."
    )
    client: Client | None = Field(
        None, description="`httpx`: carried by httpx, for SOCKS proxies, say. Without it: by connections of its own."
    )
    timeout: Duration = Field(
        "10s", validate_default=True, description="For a request with its retries; a deadline may end it sooner."
    )
    retries: Retries = Field(2, description="How often a request that failed is sent again.")
    max_reply: Size = Field(
        "1MiB", validate_default=True, description="A longer reply is refused before it is read; of a batch, 16 times as long."
    )
    usd_per_call: Amount = Field(0, description="Dollars that a request costs.")
    usd_per_mb: Amount = Field(0, description="Dollars for a million bytes, sent or received.")
    usd_per_million_input_tokens: Amount = Field(0, description="Dollars for a million tokens of requests, of a language model.")
    usd_per_million_output_tokens: Amount = Field(0, description="Dollars for a million tokens of its answers.")
    joules_per_call: Amount = Field(0, description="The device's energy for a request, whatever its size.")
    joules_per_mb: Amount = Field(0, description="The device's energy for a million bytes, sent or received.")
    calls_per_s: Rate | None = Field(
        None, description="More requests a second are not sent, as if the endpoint were away. Without it: no limit."
    )
    max_concurrent: Concurrent = Field(
        64,
        description='More requests at a time wait for their turn, until their deadline. `"auto"`: as many as it answers without '
        "getting slower, and further ones keep the edge's answer at once (scale.md#load).",
    )
    view: Text | None = Field(
        None, description="What this side takes of an input that is a mapping: the key. Without it: all of the input."
    )

    def files(self) -> list[str]:
        """The TLS certificates."""
        return [*([self.verify] if isinstance(self.verify, str) else []), *(self.cert or [])]

    def address(self, folder: Path) -> dict[str, Any]:
        """The arguments of `Address`, except the URL."""
        return {
            "api_key": self.api_key,
            "headers": self.headers,
            "verify": at(folder, self.verify) if isinstance(self.verify, str) else self.verify,
            "cert": tuple(at(folder, path) for path in self.cert) if self.cert else None,
            "pin": self.pin,
            "client": self.client,
            "timeout_s": self.timeout,
            "retries": self.retries,
            "max_reply_bytes": self.max_reply,
            **self.model_dump(include={*Terms._fields}, exclude_none=True),
        }


class ServedCloud(Cloud):
    """A model behind the Open Inference Protocol v2."""

    model: Text | None = Field(None, description="The model's name, where the URL does not end in `/v2/models/NAME`.")
    version: Text | None = Field(None, description="The model's version; without it the one that the server chooses.")
    output: Text | None = Field(None, description="The output that is read; without it the first, or all if the kind needs it.")
    card: Text | None = Field(None, description="A card with the preprocessing that the input needs first.")
    codec: PayloadCodec | None = Field(
        None,
        description='How inputs are sent: `"jpeg:85"`, `"webp"`, `"png"`, `"fp16"`, `"zstd"`, or a table, as `{ name = "uint8", '
        "scale = 0.004 }`; or a list of them, best first, of which the best that is predicted to arrive in time is sent "
        "(payloads.md). Without it: as the model's tensors.",
    )
    send_edge: Flag = Field(
        False, description="Send the edge's answer along, in the request's parameter `edge_answers` (payloads.md)."
    )

    @model_validator(mode="after")
    def _which(self) -> ServedCloud:
        if self.model is None and not self.url.partition("/v2/models/")[2].strip("/"):
            raise refused("which model? Give model, or a url that ends in /v2/models/NAME")
        return self

    def files(self) -> list[str]:
        """The TLS certificates and the card."""
        return [*super().files(), *([self.card] if self.card else [])]

    def options(self, folder: Path) -> dict[str, Any]:
        """The arguments of the endpoint, except the URL."""
        own = {"model", "version", "name", "binary", "labels", "kind", "output", "codec", "send_edge"}
        options = self.model_dump(include=own)
        return {**options, "card": at(folder, self.card) if self.card else None, **self.address(folder)}


class OpenInferenceCloud(ServedCloud):
    """A model behind the Open Inference Protocol v2, over HTTP ([servers](servers.md))."""

    protocol: Literal["openinference"] = Field("openinference", description="How the endpoint is talked to.")
    binary: Binary = Field("auto", description="Send tensors as bytes; auto asks the server once, with zeros.")

    def make(self, folder: Path) -> OpenInference:
        """Makes the endpoint."""
        return OpenInference(self.url, **self.options(folder))


class OpenInferenceGrpcCloud(ServedCloud):
    """A model behind the Open Inference Protocol v2, over gRPC ([servers](servers.md)); needs `edgeroute[grpc]`."""

    protocol: Literal["openinference-grpc"] = Field(description="How the endpoint is talked to.")

    def make(self, folder: Path) -> OpenInferenceGrpc:
        """Makes the endpoint."""
        return OpenInferenceGrpc(self.url, **self.options(folder))


class JsonCloud(Cloud):
    """Any HTTP API that answers JSON: `{"input": ...}`, or a body of your own, is posted to the URL."""

    protocol: Literal["json"] = Field(description="How the endpoint is talked to.")
    send_edge: Flag = Field(
        False, description="Send the edge's answer along, where `body` has `{edge}`; without `body` as `edge` (payloads.md)."
    )
    body_type: BodyType = Field("json", description="How the body is written: as JSON, or as the fields of a form or upload.")
    body: BodyTemplate | None = Field(
        None,
        description='The body, with placeholders: `{ image = "{input.jpeg|base64}" }` (inputs.md). Without it '
        '`{ input = "{input}" }`, or of fields those of the input.',
    )
    max_body: Size = Field("64MiB", validate_default=True, description="A longer body is not sent.")
    value: Text = Field("value", description="Where the value is in the reply, as in `result.0.label`.")
    confidence: Text = Field("confidence", description="Where the confidence is, if the reply has one.")
    logits: Text | None = Field(None, description="Where an array with a number for each class is, instead of `value`.")
    ping_path: PingPath | None = Field(
        None, description="A path that answers 200 when the server is well; without it only the connection is tried."
    )

    @field_validator("body", mode="after")
    @classmethod
    def _template(cls, body: Any, info: ValidationInfo) -> Any:
        kind = info.data.get("body_type", "json")
        return checked_body(lambda: Body(body, kind, edge=bool(info.data.get("send_edge"))), body)

    def make(self, folder: Path) -> PlainJson:
        """Makes the endpoint."""
        read = {"value", "confidence", "logits", "kind", "labels"}
        options = self.model_dump(include={"name", "ping_path", "body", "body_type", "send_edge", *read})
        return PlainJson(self.url, **options, max_body_bytes=self.max_body, **self.address(folder))


class OpenAICloud(Cloud):
    """A language model behind OpenAI's API: a hosted one, vLLM, llama-server, Ollama (chat.md)."""

    protocol: Literal["openai"] = Field(description="How the endpoint is talked to.")
    model: Text = Field(description="The model's name there.")
    chat: Flag = Field(True, description="Whether a text is what a user says; if not, it is a text to be continued.")
    system: Text | None = Field(None, description="What the model is told first, unless the messages begin with that themselves.")
    max_tokens: Count | None = Field(None, description="Tokens of an answer, at most. Without it: as many as the server allows.")
    temperature: Amount | None = Field(None, description="0: the most probable token each time. Without it the server's.")
    seed: Whole | None = Field(None, description="Of what is drawn. Without it the server's.")
    stop: Texts | None = Field(None, description="Texts at which an answer ends.")
    response_format: Table | None = Field(
        None, description="What form an answer has, as OpenAI's API takes it: it is passed on as it is."
    )
    request: Table | None = Field(None, description="Further keys of each request, as the server takes them.")
    logprobs: Flag = Field(False, description="Ask for the log-probabilities of tokens: without them there is no confidence.")
    confidence: Rule = Field("quantile", description="The confidence is exp of the 10 % quantile, mean, least or first of them.")
    stream: Flag = Field(True, description="Ask for answers in pieces, also where they are not shown: a stall is then noticed.")
    usage: Flag = Field(True, description="Ask for the number of tokens in streams, by `stream_options`.")
    between: Duration = Field(
        "30s", validate_default=True, description="An answer that has begun, and of which nothing comes for so long, has failed."
    )
    version: Text | None = Field(None, description="Changed by you whenever the server has another model under that name.")
    timeout: Duration = Field(
        "60s", validate_default=True, description="Until an answer begins, with all retries; a deadline ends the whole answer."
    )
    max_reply: Size = Field("8MiB", validate_default=True, description="A longer reply is given up.")

    def make(self, folder: Path) -> OpenAIChat:
        """Makes the endpoint."""
        own = {
            "model", "name", "chat", "system", "max_tokens", "temperature", "seed", "response_format", "request", "logprobs",
            "confidence", "stream", "usage", "version", "labels",
        }  # fmt: skip
        options = self.model_dump(include=own)
        return OpenAIChat(self.url, **options, stop=self.stop or (), between_s=self.between, **self.address(folder))


class InstalledCloud(Cloud):
    """An endpoint whose protocol an installed package brings: further keys are arguments of its factory ([extend](extend.md))."""

    model_config = ConfigDict(extra="allow")
    protocol: Text = Field(
        description="The name of an entry point in the group `edgeroute.protocols`.",
        json_schema_extra=lambda made: made.update({"not": {"enum": [*CLOUDS]}}),
    )

    def make(self, folder: Path) -> Any:
        """Call the factory with the URL, the name, the further keys and the arguments of `Address`; return the endpoint."""
        given = self.model_dump(include={"labels", "kind"}, exclude_none=True)
        made = plugged(
            PROTOCOLS, self.protocol, self.url, name=self.name, **given, **(self.model_extra or {}), **self.address(folder)
        )
        if not hasattr(made, "talk"):
            raise PolicyError(f"the entry point {self.protocol} of {PROTOCOLS} made no endpoint, but a {type(made).__name__}")
        return made


PROTOCOLS = "edgeroute.protocols"
"""Group of the entry points by which an installed package adds protocols: `name = "module:Class"`."""
CLOUDS: dict[str, type[Cloud]] = {
    "openinference": OpenInferenceCloud, "openinference-grpc": OpenInferenceGrpcCloud, "json": JsonCloud, "openai": OpenAICloud,
}  # fmt: skip
"""Protocol -> section type."""


def _protocol(section: Any) -> str:
    name = str(section.get("protocol", "openinference")) if isinstance(section, dict) else "openinference"
    return name if name in CLOUDS or name not in installed(PROTOCOLS) else PROTOCOLS


AnyCloud = Annotated[
    Annotated[OpenInferenceCloud, Tag("openinference")]
    | Annotated[OpenInferenceGrpcCloud, Tag("openinference-grpc")]
    | Annotated[JsonCloud, Tag("json")]
    | Annotated[OpenAICloud, Tag("openai")]
    | Annotated[InstalledCloud, Tag(PROTOCOLS)],
    Discriminator(_protocol),
]


def grouped(models: list[Any], sections: Sequence[Any]) -> Any:
    """The router's `edge`, of models and their sections: neighbours that are variants of the same group are one.

    Raises:
        PolicyError: a group has one member, or two of one name.
    """
    found = list[Any]()
    for (named, _), run in groupby(zip(models, sections, strict=True), lambda one: (one[1].variant is not None, one[1].group)):
        members = list(run)
        if not named:
            found += [model for model, _ in members]
            continue
        variants = {str(section.variant): model for model, section in members}
        if len(variants) < len(members):
            raise PolicyError("edge: two variants have the same name")
        found.append(Variants(**variants))
    return found[0] if len(found) == 1 else found or None
