"""The keys of a policy, section by section, and what is made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, Any, Literal
from weakref import WeakValueDictionary

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from edgeroute.cloud.openinference import OpenInference
from edgeroute.cloud.plain import PlainJson
from edgeroute.core.policy import Mode, NoConfidence, OnExhausted
from edgeroute.edge.load import load
from edgeroute.settings import values
from edgeroute.settings.problems import Wrong, contradictions
from edgeroute.settings.units import Delay, Duration, Size
from edgeroute.settings.values import Text, Texts

Score = Literal["msp", "margin", "entropy", "energy", "quantile"]


class Section(BaseModel, ABC):
    """One model or endpoint."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @abstractmethod
    def files(self) -> list[str]:
        """The files that it names."""

    @abstractmethod
    def make(self, folder: Path) -> Any:
        """What the router is given for it; relative paths start from `folder`."""


class Edge(Section):
    """A model on the device."""

    path: values.ModelPath = Field(description="The model file; its suffix picks the runtime.")
    providers: Texts = Field(["CPUExecutionProvider"], description="Execution providers, best first.")
    threads: values.Threads = Field(1, description="Threads for one run; more than one slows a busy device down.")
    on_downgrade: Literal["error", "record"] = Field(
        "error", description="When the first provider asked for is not there: fail, or run on another and record it."
    )
    sha256: values.Sha256 | None = Field(None, description="SHA-256 of the model file; without it the card's, if that has one.")
    card: Text | None = Field(None, description="The model's card, where it is not beside the model.")

    def files(self) -> list[str]:
        """The model and its card."""
        return [self.path, self.card or str(Path(self.path).with_suffix(".json"))]

    def make(self, folder: Path) -> Any:
        """The model, not loaded yet."""
        options = self.model_dump(exclude={"path", "card"})
        return load(_at(folder, self.path), **options, card=_at(folder, self.card) if self.card else None)


class Cloud(Section):
    """An endpoint over HTTP."""

    url: values.Url = Field(description="Where it is, without user, password or query.")
    name: Text = Field("cloud", description="What answers, traces and messages call it.")
    labels: Texts | None = Field(None, description="The classes' names in order; without them the edge model's.")
    api_key: values.SecretReference | None = Field(None, description="Sent as `Authorization: Bearer ...`.")
    headers: values.Headers = Field(
        {}, description='Sent with each request. A value is text, or `{ env = "NAME" }`, which a secret has to be.'
    )
    verify: values.Verify = Field(
        True, description="Check the server's certificate: true, by the authorities in this file alone, or false for not at all."
    )
    cert: values.Cert | None = Field(None, description="Paths of the client's certificate and key, for mutual TLS.")
    timeout: Duration = Field(
        "10s", validate_default=True, description="For a request with its retries; a deadline may end it sooner."
    )
    retries: values.Retries = Field(2, description="How often a request that failed is sent again.")
    max_reply: Size = Field("16MiB", validate_default=True, description="A longer reply is refused before it is read.")

    def files(self) -> list[str]:
        """The certificates."""
        return [*([self.verify] if isinstance(self.verify, str) else []), *(self.cert or [])]

    def address(self, folder: Path) -> dict[str, Any]:
        """What `Address` takes, the URL apart."""
        return {
            "api_key": self.api_key,
            "headers": self.headers,
            "verify": _at(folder, self.verify) if isinstance(self.verify, str) else self.verify,
            "cert": tuple(_at(folder, path) for path in self.cert) if self.cert else None,
            "timeout_s": self.timeout,
            "retries": self.retries,
            "max_reply_bytes": self.max_reply,
        }


class OpenInferenceCloud(Cloud):
    """A model behind the Open Inference Protocol v2."""

    protocol: Literal["openinference"] = Field("openinference", description="How the endpoint is talked to.")
    model: Text | None = Field(None, description="The model's name, where the URL does not end in `/v2/models/NAME`.")
    binary: values.Binary = Field("auto", description="Send tensors as bytes; auto asks the server once, with zeros.")
    kind: Literal["logits", "probabilities"] = Field("logits", description="What the outputs are.")
    output: Text | None = Field(None, description="The output that is read; without it the first.")
    card: Text | None = Field(None, description="A card with the preprocessing that the input needs first.")

    @model_validator(mode="after")
    def _which(self) -> OpenInferenceCloud:
        if self.model is None and not self.url.partition("/v2/models/")[2].strip("/"):
            raise values.refused("which model? Give model, or a url that ends in /v2/models/NAME")
        return self

    def files(self) -> list[str]:
        """The certificates and the card."""
        return [*super().files(), *([self.card] if self.card else [])]

    def make(self, folder: Path) -> OpenInference:
        """The endpoint."""
        options = self.model_dump(include={"model", "name", "binary", "labels", "kind", "output"})
        return OpenInference(self.url, **options, card=_at(folder, self.card) if self.card else None, **self.address(folder))


class JsonCloud(Cloud):
    """Any server that takes and gives JSON: `{"input": ...}` is posted to the URL."""

    protocol: Literal["json"] = Field(description="How the endpoint is talked to.")
    value: Text = Field("value", description="Where the value is in the reply, as in `result.0.label`.")
    confidence: Text = Field("confidence", description="Where the confidence is, if the reply has one.")
    logits: Text | None = Field(None, description="Where an array with a number for each class is, instead of `value`.")
    ping_path: values.PingPath | None = Field(
        None, description="A path that answers 200 when the server is well; without it only the connection is tried."
    )

    def make(self, folder: Path) -> PlainJson:
        """The endpoint."""
        options = self.model_dump(include={"name", "value", "confidence", "logits", "labels", "ping_path"})
        return PlainJson(self.url, **options, **self.address(folder))


CLOUDS: dict[str, type[Cloud]] = {"openinference": OpenInferenceCloud, "json": JsonCloud}
"""By protocol."""


def _protocol(section: Any) -> str:
    return str(section.get("protocol", "openinference")) if isinstance(section, dict) else "openinference"


AnyCloud = Annotated[
    Annotated[OpenInferenceCloud, Tag("openinference")] | Annotated[JsonCloud, Tag("json")], Discriminator(_protocol)
]
# the sources give sections by number, "0" and on, so that a variable can be laid over one of several
IN_ORDER = BeforeValidator(lambda given: list(given.values()) if isinstance(given, dict) else given)


class Settings(BaseSettings):
    """A policy as the file and the variables have it, checked."""

    model_config = SettingsConfigDict(extra="forbid", strict=True, case_sensitive=True)

    mode: Mode = Field("prefer_edge", description="Which side is asked first, and whether the other is asked at all.")
    threshold: values.Thresholds | None = Field(
        None,
        description="Confidence from which an edge answer is accepted and nothing is sent; one, or one for each edge model. "
        "Required with both sides and mode prefer_edge.",
    )
    deadline: Duration | None = Field(
        None, description="From call to answer; then the best there is stands. Without it: no limit."
    )
    hedge_after: Delay | None = Field(
        None, description='Ask the next target too after this long without an answer; `"0s"` is a race. Without it: never.'
    )
    score: Score = Field("msp", description="How the confidence is taken from a model's outputs.")
    no_confidence: NoConfidence = Field("defer", description="An answer without a confidence: ask the next target, or accept it.")
    on_exhausted: OnExhausted = Field(
        "answer", description="When no answer was accepted: give the best one, marked degraded, or raise NoAnswer."
    )
    edge: Annotated[list[Edge], IN_ORDER] = Field(
        [], description="The model on the device; several as `[[edge]]`, the smallest first."
    )
    cloud: Annotated[list[AnyCloud], IN_ORDER] = Field(
        [], description="The endpoint; several as `[[cloud]]`, in order of trying. Without it nothing can leave the device."
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
        """Those that `load` made, the first one on top."""
        return init_settings()["sources"]  # type: ignore[no-any-return]

    @model_validator(mode="wrap")
    @classmethod
    def _whole(cls, data: Any, inner: Any) -> Any:
        """Tells of contradictions beside the errors in single keys, where pydantic would stop at the latter."""
        problems = contradictions(data)
        try:
            settings = inner(data)
        except ValidationError as e:
            raise Wrong(e, problems) from None
        if problems:
            raise Wrong(None, problems)
        return settings

    def arguments(self, folder: Path) -> dict[str, Any]:
        """The arguments of `Router`; relative paths in the policy start from `folder`.

        Raises:
            ModelMissing: a card that the policy names is not there.
            ModelError: a card is not one.
        """
        edges, clouds = ([_kept(section, folder, self.score) for section in sections] for sections in (self.edge, self.cloud))
        return {
            **self.model_dump(exclude={"edge", "cloud"}),
            "edge": edges[0] if len(edges) == 1 else edges or None,
            "cloud": clouds[0] if len(clouds) == 1 else clouds or None,
        }


_made: WeakValueDictionary[tuple[Any, ...], Any] = WeakValueDictionary()


def _kept(section: Section, folder: Path, score: str) -> Any:
    """What an equal section of an equal policy was made into, while a router has it.

    A reload keeps the runners whose model or endpoint is the same object. "Equal" takes in the files that the section
    names, by time and size, so that a new model or certificate under an old name is a new object; and the score, since
    another score means another runner, and the old one closes its model. The references are weak: what no router has
    any more is gone.
    """
    paths = [_at(folder, path) for path in section.files()]
    key = (repr(section), score, folder.resolve(), *((path, _stamp(path)) for path in paths))
    made = _made.get(key)
    return _made.setdefault(key, section.make(folder)) if made is None else made


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _at(folder: Path, given: str) -> Path:
    """Absolute, without the dots; a link at its end stays, since the card is beside the link."""
    path = folder / given
    return path.parent.resolve() / path.name
