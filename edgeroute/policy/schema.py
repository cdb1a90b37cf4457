"""JSON Schema of the policy's keys, for editors, and their reference in Markdown, for readers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from edgeroute.edge.runtimes import ACTIVE, BUILT_IN, SCHEMES
from edgeroute.errors import EdgerouteError
from edgeroute.policy.edge_runtime_sections import Registered, all_registered, registered_section
from edgeroute.policy.policy_keys import LISTS, SECTIONS, Settings
from edgeroute.policy.sections_from_classes import text_of
from edgeroute.policy.target_sections import Cloud

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
"""JSON Schema of `[edge]` with `[[edge.variant]]`."""


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
    """Return the JSON Schema of the policy, draft 2020-12; `built_in`: without the keys of registered runtimes."""
    document = Settings.model_json_schema(schema_generator=_Plain)
    keys = document["properties"]
    runtimes = [] if built_in else [_runtime(suffix, section) for suffix, section in all_registered().items()]
    tried = document["$defs"]["Trial"]["properties"]
    path = {"type": "string", "title": "path"}
    tried["edge"] = {"anyOf": [path, {"$ref": "#/$defs/Edge"}, *runtimes], "description": tried["edge"]["description"]}
    for section, (kind, *several) in SECTIONS.items():
        text = text_of(Cloud if several else kind)
        if section not in LISTS:
            keys[section]["description"] = text
            continue
        item = keys[section].pop("items")
        if section == "edge" and runtimes:
            item = {"anyOf": [item, *runtimes]}
        if section == "edge":
            item = {"anyOf": [*item.get("anyOf", [item]), VARIANTS]}
        keys[section] = {"anyOf": [item, {"type": "array", "items": item}], "description": text}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **document,
        "title": "edgeroute policy",
        "description": "How edgeroute routes between models on the device and in the cloud.",
    }


def _runtime(suffix: str, section: type[Registered]) -> dict[str, Any]:
    """Return the schema of `[edge]` for model files with this suffix."""
    document = section.model_json_schema(schema_generator=_Plain)
    ends = f"({re.escape(suffix)}|{re.escape(ACTIVE)})$"  # a model of a catalog has the keys of its version's runtime
    document["properties"]["path"]["pattern"] = ends if suffix.startswith(".") else f"^({'|'.join(SCHEMES)})"
    return document


def keys_of(paths: Iterable[object]) -> dict[str, Any]:
    """Return key -> schema of `[edge]` for these model files, as far as their runtimes are registered ones.

    Runtimes that cannot be imported are skipped.
    """
    properties: dict[str, Any] = {}
    for path in paths:
        try:
            section = registered_section(path)
        except EdgerouteError:  # said where the section is validated
            continue
        properties |= {} if section is None else _runtime("", section)["properties"]
    return properties


@lru_cache(1)
def sections() -> dict[str, Mapping[str, Any]]:
    """Return section -> key -> schema, with built-in runtimes only; the top level is "". Cached."""
    document = schema(built_in=True)
    by_name: dict[str, Mapping[str, Any]] = {"": document["properties"]}
    for name, models in SECTIONS.items():
        by_name[name] = {key: value for model in models for key, value in document["$defs"][model.__name__]["properties"].items()}
    return by_name


def reference() -> str:
    """Return the keys with types, defaults and meanings, as Markdown: the text of docs/policy.md."""
    document = schema(built_in=True)
    parts = [
        INTRODUCTION,
        "## Keys\n\n### At the top of the file\n",
        _list(document, {*document["properties"]} - {*SECTIONS}, set()),
    ]
    for name, models in SECTIONS.items():
        described = link_pages(document["properties"][name]["description"])
        kinds = [document["$defs"][model.__name__] for model in models]
        common = {key for key, value in kinds[0]["properties"].items() if all(k["properties"].get(key) == value for k in kinds)}
        several = " These keys are every endpoint's:" if len(kinds) > 1 else ""
        listed = set[str]()
        parts += [f"### `[{name}]`\n\n{described}{several}\n", _list(kinds[0], common, listed)]
        if name == "edge":
            runtimes = dict.fromkeys(target for suffix, target in sorted(BUILT_IN.items()) if suffix not in {".onnx", ACTIVE})
            parts += [text for runtime in runtimes for text in _for_models(runtime, listed)]
        for i, kind in enumerate(kinds if several else ()):
            protocol = kind["properties"]["protocol"]["const"]
            parts += [f'### `[{name}]` with `protocol = "{protocol}"`\n\n{link_pages(kind["description"])}\n']
            parts += [_list(kind, {*kind["properties"]} - common - ({"protocol"} if i else set()), listed)]
    return "\n".join(parts)


def link_pages(text: str) -> str:
    """Return a description with the pages that it names as links: `(rules.md)` becomes `([rules](rules.md))`."""
    return re.sub(r"(?<!\])\(([a-z-]+)\.md(#[a-z-]+)?\)", r"([\1](\1.md\2))", text)


def _for_models(runtime: str, listed: set[str]) -> list[str]:
    """Return the keys of `[edge]` for the model files of a built-in runtime."""
    suffixes = sorted(suffix for suffix, target in BUILT_IN.items() if target == runtime)
    address = suffixes[0] in SCHEMES
    section = registered_section(suffixes[0] if address else f"model{suffixes[0]}")
    assert section is not None, "ONNX Runtime has the section Edge"
    document = _runtime(suffixes[0], section)
    for value in document["properties"].values():
        text = value["description"].replace("; None:", "; without it:").replace("None:", "Without it:")
        value["description"] = text[:1].upper() + text[1:]
    what = "the address of a server" if address else f"a {' or '.join(f'`{suffix}`' for suffix in suffixes)} model"
    return [f"### `[edge]` with {what}\n", _list(document, {*document["properties"]}, listed)]


def _list(section: Mapping[str, Any], keys: set[str], listed: set[str]) -> str:
    """Return these keys as a list. A key that `listed` has with the same default and meaning is only named; others are added."""
    rows, named = [], []
    for key, value in section["properties"].items():
        if key in keys:
            shown, meaning = _shown(value, required=key in section.get("required", ())), link_pages(value["description"])
            known = f"{key}{value.get('default')}: {meaning}"
            named += [f"`{key}`"] if known in listed else []
            rows += [] if known in listed else [f"* `{key}`{shown}: {meaning}"]
            listed.add(known)
    return "\n".join([*rows, *([f"* As above: {', '.join(named)}."] if named else []), ""])


def _shown(value: Mapping[str, Any], *, required: bool) -> str:
    """Return type and default of a key in parentheses; text is not named, nor a type that the default shows."""
    default = "required" if required else f"default {_code(value['default'])}" if value.get("default") not in (None, "") else ""
    kind = _type(value)
    plain = kind == "text" or (default.startswith("default") and "`" not in kind)
    parts = [part for part in ("" if plain else kind, default) if part]
    return f" ({'; '.join(parts)})" if parts else ""


def _type(value: Mapping[str, Any]) -> str:
    """Return the words for a key's type."""
    if "$ref" in value:
        return "table"
    if "anyOf" in value and "title" not in value:
        return " or ".join(_type(option) for option in value["anyOf"])
    if "enum" in value or "const" in value:
        return ", ".join(map(_code, value.get("enum") or [value["const"]]))
    if value.get("type") == "array":
        return f"list of {_type(value['items'])}s"
    return str(value.get("title") or _WORDS.get(value["type"], value["type"]))


_WORDS = {"string": "text", "integer": "whole number", "boolean": "true, false", "object": "table"}


def _code(value: Any) -> str:
    """Return a value as JSON in backquotes."""
    return f"`{json.dumps(value)}`"


INTRODUCTION = """\
# Policy files

A policy says which models there are, which is asked first, and when something may leave the device. Write it as TOML, JSON or
YAML (`pip install 'edgeroute[yaml]'`); the suffix says which. Relative paths start from the policy's folder.

```toml
# policy.toml
mode = "prefer_edge"
# at this confidence the edge's answer is final, and nothing is sent
threshold = 0.85
deadline = "2s"
# the cloud does not answer: the edge's answer stands, marked degraded
offline = "edge"

[edge]
path = "models/fashion/edge.int8.onnx"
threads = 1

[cloud]
url = "http://127.0.0.1:8080/v2/models/fashion-large"
# the name of an environment variable (export CLOUD_KEY=...), never the key itself
api_key = { env = "CLOUD_KEY" }
headers = { "X-Tenant" = "shop-7" }
timeout = "2s"
retries = 1
max_reply = "4MiB"
usd_per_call = 0.002

[limits]
# from then on nothing is sent that costs money
usd_per_day = 5

[egress]
never_leave = ["medical"]
# a class in neither list stays on the device, too
may_leave = ["product"]
```

```python
import numpy as np
from edgeroute import Router

image = np.load("models/fashion/sample.npz")["images"][0]
with Router.from_policy("policy.toml", watch=True) as router:
    answer = router.infer(image, data_class="product")
```

* **`watch=True`**: a change of the file takes effect a second later, except for `state`, `[cache]`, `[outbox]`, `[trace]`,
  `[telemetry]` and `[gateway]`.
* **Arguments of the program**, as in `Router.from_policy("policy.toml", edge=model)`, replace the file's; the file need not
  have an edge, cloud or threshold then.
* **Several models or endpoints** are several sections, `[[edge]]` and `[[cloud]]`, in the order in which they are asked.
* **Durations** are text with a unit: `"300ms"`, `"2s"`, `"1m"`, `"12h"`, `"7d"`. **Sizes**, too: `"512KB"` (1000 bytes each),
  `"16MiB"` (1024 times 1024). A bare number is refused.
* **Secrets** are never in the file: `{ env = "NAME" }` is read when a request is sent, and no message, trace or log shows it.
* **Environment variables** beat the file: `EDGEROUTE_MODE=only_edge`; with `__` between a section and its key,
  `EDGEROUTE_CLOUD__URL=...`; of several sections with a number from 0, `EDGEROUTE_CLOUD__1__URL`. Lists and tables are JSON:
  `EDGEROUTE_EDGE__PROVIDERS='["CPUExecutionProvider"]'`. `EDGEROUTE_CLOUD__API_KEY` may hold the key itself.
* **A key without a type** below takes text.
* **Editors** complete and check the keys with the JSON Schema that `edgeroute schema` prints.
* More policies, to copy from: [examples/policies](../examples/policies).

All mistakes are reported at once, a line each, before anything is loaded or sent:

```text
policy.toml: treshold: there is no such key: did you mean "threshold"?
policy.toml: deadline: expected a duration such as "300ms", "2s" or "12h", found 300; did you mean "300ms" or "300s"?
EDGEROUTE_MODE: found "only_egde": did you mean "only_edge"?
```
"""
