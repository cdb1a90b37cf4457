"""Policy sections of targets: models on the device, and endpoints of the cloud."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationInfo, field_validator

from edgeroute.cloud.grpc import OpenInferenceGrpc
from edgeroute.cloud.json_and_form_body_templates import Body
from edgeroute.cloud.json_api import PlainJson
from edgeroute.cloud.openai import OpenAIChat
from edgeroute.cloud.openinference import OpenInference
from edgeroute.confidence.output_reader import Kind
from edgeroute.confidence.scores import SCORES
from edgeroute.edge.onnx import OnnxModel
from edgeroute.edge.onnx_provider_options import parse_providers
from edgeroute.edge.runtimes_variants_ensemble import Variants, is_address, load
from edgeroute.errors import PolicyError
from edgeroute.http.messages_addresses_and_secrets import Address
from edgeroute.policy.policy_keys_from_signatures import Section, configures
from edgeroute.policy.single_sections import at
from edgeroute.policy.value_types import ModelPath, Text, Texts, Url, checked_body
from edgeroute.system.late_imports_and_plugins import load_plugin, plugin_targets

VIEW = "What this side takes of an input that is a mapping: the key. Without it: all of the input."
VARIANT = "Name in a group of variants, of which one runs (rules.md#variants): neighbours with the same `group`."
GROUP = "Any text that tells two neighbouring groups of variants apart."


def loaded_score(score: str, folder: Path) -> Any:
    """Return a score's name itself, or the `Learned` score read from the file at a path. Raises as `Learned.load`."""
    if score in SCORES:
        return score
    from edgeroute.confidence.learned_scores_and_blends import Learned

    return Learned.load(at(folder, score))


def cards(path: str) -> list[str]:
    """Return the two paths at which the card of a model file may be."""
    return [str(Path(path).with_suffix(".json")), f"{path}.json"]


class Target(Section):
    """Base of sections of a model or an endpoint."""

    def files(self) -> list[str]:
        """Return the paths of the files that the section names."""
        lists = (value if isinstance(value, list | tuple) else [value] for value in self.given().values())
        return [str(path) for values in lists for path in values if isinstance(path, Path)]

    def resolved(self, folder: Path) -> dict[str, Any]:
        """Return argument -> value of the keys that are set; relative paths start from `folder`."""
        return {name: _resolve_paths(value, folder) for name, value in self.given().items()}


def _resolve_paths(value: Any, folder: Path) -> Any:
    """Return a value with each `Path`, also in lists and tuples, made absolute from the folder; others unchanged."""
    if isinstance(value, list | tuple):
        return type(value)([_resolve_paths(item, folder) for item in value])
    return at(folder, str(value)) if isinstance(value, Path) else value


class Model(Target):
    """The model on the device; several as `[[edge]]`, the smallest first."""

    path: ModelPath = Field(description="The model file or folder; its suffix picks the runtime.")
    view: Text | None = Field(None, description=VIEW)
    variant: Text | None = Field(None, description=VARIANT)
    group: Text | None = Field(None, description=GROUP)

    def files(self) -> list[str]:
        """Return the paths of the model, its score, and of other files that the section names, as they are written there.

        Without `card` the two places of the card are among them. The model's and the card's are left out for a model at an
        address.
        """
        given, paths = self.given(), super().files()
        score = given.get("score")
        paths += [score] if isinstance(score, str) and score not in SCORES else []
        return paths if is_address(self.path) else [self.path, *([] if "card" in given else cards(self.path)), *paths]

    def make(self, folder: Path) -> Any:
        """Make the model, not loaded yet, by the runtime of its file's suffix or of its server's address; read a saved score.

        Relative paths start from `folder`.

        Raises PolicyError, ModelMissing, ModelError or RuntimeMissing.
        """
        options = self.resolved(folder)
        if isinstance(score := options.get("score"), str):
            options["score"] = loaded_score(score, folder)
        if "providers" in options:
            options["providers"] = parse_providers(options["providers"], folder)
        return load(self.path if is_address(self.path) else at(folder, self.path), **options)


@configures(OnnxModel)
class Edge(Model):
    """The model on the device; several as `[[edge]]`, the smallest first."""


class Cloud(Target):
    """The endpoint; several as `[[cloud]]`, in order of trying. Without it nothing can leave the device.

    An installed package may add a `protocol` (extend.md).
    """

    url: Url = Field(description="Where it is, without user, password or query.")
    view: Text | None = Field(None, description=VIEW)

    def make(self, folder: Path) -> Any:
        """Make the endpoint. Opens no connection. Raises PolicyError."""
        return self.makes(self.url, **self.resolved(folder))


PROTOCOL = "How the endpoint is talked to."


@configures(OpenInference)
class OpenInferenceCloud(Cloud):
    """A model behind the Open Inference Protocol v2, over HTTP ([servers](servers.md))."""

    protocol: Literal["openinference"] = Field("openinference", description=PROTOCOL)


@configures(OpenInferenceGrpc)
class OpenInferenceGrpcCloud(Cloud):
    """A model behind the Open Inference Protocol v2, over gRPC ([servers](servers.md)); needs `edgeroute[grpc]`."""

    protocol: Literal["openinference-grpc"] = Field(description=PROTOCOL)


@configures(PlainJson)
class JsonCloud(Cloud):
    """Any HTTP API that answers JSON: `{"input": ...}`, or a body of your own, is posted to the URL."""

    protocol: Literal["json"] = Field(description=PROTOCOL)

    @field_validator("body", mode="after", check_fields=False)
    @classmethod
    def _template(cls, body: Any, info: ValidationInfo) -> Any:
        """Check the body's template."""
        kind = info.data.get("body_type", "json")
        return checked_body(lambda: Body(body, kind, edge=bool(info.data.get("send_edge"))), body)


@configures(OpenAIChat)
class OpenAICloud(Cloud):
    """A language model behind OpenAI's API: a hosted one, vLLM, llama-server, Ollama (chat.md)."""

    protocol: Literal["openai"] = Field(description=PROTOCOL)


@configures(Address)
class InstalledCloud(Cloud):
    """An endpoint whose protocol an installed package brings: further keys are arguments of its factory ([extend](extend.md))."""

    model_config = ConfigDict(extra="allow")
    protocol: Text = Field(
        description="The name of an entry point in the group `edgeroute.protocols`.",
        json_schema_extra=lambda made: made.update({"not": {"enum": [*CLOUDS]}}),
    )
    name: Text = Field("cloud", description="Name of the endpoint in answers, traces and messages.")
    labels: Texts | None = Field(None, description="Class index -> value; without it the edge model's.")
    kind: Kind | None = Field(None, description="Kind of the outputs; without it their form decides.")

    def make(self, folder: Path) -> Any:
        """Call the protocol's factory with URL, name, the further keys and the arguments of `Address`; return the endpoint.

        Imports the package. Raises PolicyError if it makes no endpoint, and as `load_plugin`.
        """
        given = self.model_dump(include={"name", "labels", "kind"}, exclude_none=True)
        endpoint = load_plugin(PROTOCOLS, self.protocol, self.url, **given, **(self.model_extra or {}), **self.resolved(folder))
        if not hasattr(endpoint, "talk"):
            raise PolicyError(f"the entry point {self.protocol} of {PROTOCOLS} made no endpoint, but a {type(endpoint).__name__}")
        return endpoint


# Group of the entry points by which an installed package adds protocols: `name = "module:Class"`.
PROTOCOLS = "edgeroute.protocols"
# Protocol -> section type.
CLOUDS: dict[str, type[Cloud]] = {
    "openinference": OpenInferenceCloud, "openinference-grpc": OpenInferenceGrpcCloud, "json": JsonCloud, "openai": OpenAICloud,
}  # fmt: skip


def _protocol(section: Any) -> str:
    """Return the tag of a section's type, by its protocol. An unknown protocol is returned as it is, to be refused."""
    name = str(section.get("protocol", "openinference")) if isinstance(section, dict) else "openinference"
    return name if name in CLOUDS or name not in plugin_targets(PROTOCOLS) else PROTOCOLS


if TYPE_CHECKING:
    AnyCloud: TypeAlias = Cloud
else:
    _TAGGED = [Annotated[kind, Tag(name)] for name, kind in {**CLOUDS, PROTOCOLS: InstalledCloud}.items()]
    AnyCloud = Annotated[Union[tuple(_TAGGED)], Discriminator(_protocol)]  # noqa: UP007 - of a tuple


def group_variants(models: list[Any], sections: Sequence[Any]) -> Any:
    """Return the router's `edge` from models and their sections: a list, one model by itself, or None for no models.

    Neighbouring variants of one group become one `Variants`, of which one model runs.

    Raises:
        PolicyError: a group has one member, or two of one name.
    """
    edges = list[Any]()
    for (named, _), run in groupby(zip(models, sections, strict=True), lambda pair: (pair[1].variant is not None, pair[1].group)):
        members = list(run)
        if not named:
            edges += [model for model, _ in members]
            continue
        variants = {str(section.variant): model for model, section in members}
        if len(variants) < len(members):
            raise PolicyError("edge: two variants have the same name")
        edges.append(Variants(**variants))
    return edges[0] if len(edges) == 1 else edges or None
