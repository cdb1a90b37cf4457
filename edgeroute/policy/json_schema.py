"""JSON Schema of the policy's keys, for editors, and for the names of the environment variables. Cached."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from edgeroute.edge.runtimes_variants_ensemble import ACTIVE, SCHEMES
from edgeroute.errors import EdgerouteError
from edgeroute.policy.edge_sections_from_runtime_classes import Registered, all_registered, registered_section
from edgeroute.policy.model_and_endpoint_sections import Cloud
from edgeroute.policy.policy_keys_from_signatures import text_of
from edgeroute.policy.policy_settings import LISTS, SECTIONS, Settings

# JSON Schema of `[edge]` with `[[edge.variant]]`.
VARIANTS = {
    "type": "object",
    "title": "group of variants",
    "properties": {
        "variant": {
            "type": "array", "minItems": 2, "items": {"type": "object", "required": ["name", "path"]},
            "description": "Edge models of which one runs (rules.md), the smallest last: the keys of an edge, and a name.",
        },
        "view": {"type": "string"},
    },
    "required": ["variant"],
    "additionalProperties": False,
}  # fmt: skip


class _Plain(GenerateJsonSchema):
    """Schema without null, since an unset key is absent, and without titles generated from names."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """Return the schema of the type without null."""
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        """Return the schema without an empty default."""
        field = super().default_schema(schema)
        return {key: value for key, value in field.items() if key != "default" or value not in (None, [], {})}

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        """Return False: no titles are generated."""
        return False


def schema(*, built_in: bool = False) -> dict[str, Any]:
    """Return the JSON Schema of the policy, draft 2020-12, for editors.

    `built_in`: without the keys of registered runtimes; otherwise these are imported, and those that cannot be are logged and
    left out.
    """
    document = Settings.model_json_schema(schema_generator=_Plain)
    keys = document["properties"]
    runtimes = [] if built_in else [runtime_schema(suffix, section) for suffix, section in all_registered().items()]
    tried = document["$defs"]["Trial"]["properties"]
    path = {"type": "string", "title": "path"}
    tried["edge"] = {"anyOf": [path, {"$ref": "#/$defs/Edge"}, *runtimes], "description": tried["edge"]["description"]}
    for section, (kind, *several) in SECTIONS.items():
        text = text_of(Cloud if several else kind)
        if section not in LISTS:
            keys[section]["description"] = text
            continue
        item = keys[section].pop("items")
        if section == "edge":
            item = {"anyOf": [item, *runtimes, VARIANTS]}
        keys[section] = {"anyOf": [item, {"type": "array", "items": item}], "description": text}
    keys["local"] = {"type": "object", "description": "Keys of the device itself, over those of a signed policy."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **document,
        "title": "edgeroute policy",
        "description": "How edgeroute routes between models on the device and in the cloud.",
    }


def runtime_schema(suffix: str, section: type[Registered]) -> dict[str, Any]:
    """Return the schema of `[edge]` for model files with this suffix, of a runtime's section.

    Its path must end in the suffix, or in that of a catalog's model; for a runtime of addresses it must begin as one.
    """
    document = section.model_json_schema(schema_generator=_Plain)
    ends = f"({re.escape(suffix)}|{re.escape(ACTIVE)})$"  # a model of a catalog has the keys of its version's runtime
    document["properties"]["path"]["pattern"] = ends if suffix.startswith(".") else f"^({'|'.join(SCHEMES)})"
    return document


def keys_of(paths: Iterable[object]) -> dict[str, Any]:
    """Return key -> schema of `[edge]` for these model files, as far as their runtimes are registered ones; {} for others.

    May import the runtimes; those that cannot be imported are passed over.
    """
    properties: dict[str, Any] = {}
    for path in paths:
        try:
            section = registered_section(path)
        except EdgerouteError:  # said where the section is validated
            continue
        properties |= {} if section is None else runtime_schema("", section)["properties"]
    return properties


@lru_cache(1)
def sections() -> dict[str, Mapping[str, Any]]:
    """Return section -> key -> schema, with built-in runtimes only; the top level is "". Cached."""
    document = schema(built_in=True)
    by_name: dict[str, Mapping[str, Any]] = {"": document["properties"]}
    for name, models in SECTIONS.items():
        by_name[name] = {key: value for model in models for key, value in document["$defs"][model.__name__]["properties"].items()}
    return by_name
