"""Sections of `[edge]` for all runtimes but ONNX Runtime, also registered ones: their keys are the class's keyword arguments.

May import a runtime's class; one that cannot be imported is logged and left out.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WrapValidator, create_model
from pydantic.errors import PydanticUserError
from pydantic_core import InitErrorDetails

from edgeroute.catalog.installed_versions_and_active_loading import model_file
from edgeroute.edge.answer_structure_checks import Given
from edgeroute.edge.runtimes_variants_ensemble import ACTIVE, BUILT_IN, SCHEMES, class_of, suffix_of, suffixes, target_of
from edgeroute.errors import CatalogError, EdgerouteError, ModelMissing, PolicyError, StoreError, nearest
from edgeroute.policy.model_and_endpoint_sections import Edge, Model, Target
from edgeroute.policy.policy_keys_from_signatures import parameters_of
from edgeroute.policy.policy_problems_and_contradictions import quote_value, wrong_word
from edgeroute.policy.single_sections import at, paths_from, policy_folder
from edgeroute.policy.value_types import Check, message_error
from edgeroute.system.sanitised_logs_and_contained_errors import log

WRITTEN = ".onnx"  # suffix whose section is written by hand, as `targets.Edge`


class Registered(Model):
    """A model on the device, whose keys are its class's arguments."""

    model_config = ConfigDict(protected_namespaces=())
    target: ClassVar[str]  # the runtime's class, `module:Class`

    def __repr_name__(self) -> str:
        return self.target

    def given(self) -> dict[str, Any]:
        """Return argument -> value of the keys that are set, except the router's."""
        return self.model_dump(by_alias=True, exclude_unset=True, exclude={*Model.model_fields})


def registered_section(path: object) -> type[Registered] | None:
    """Return the section type for a model file by its suffix: a runtime's, which may be imported for that.

    None for ONNX Runtime, whose section is `Edge`, and if there is no runtime or no path. Of a catalog's model the active version
    decides.

    Raises:
        PolicyError, RuntimeMissing: the runtime's class cannot be imported.
        ModelMissing, CatalogError, StoreError: the active version of a catalog's model is unknown.
    """
    suffix = suffix_of(path) if isinstance(path, str) else None
    if suffix == ACTIVE:
        suffix = suffix_of(model_file(at(policy_folder(), str(path))))
    if suffix is None or (target := target_of(suffix)) == BUILT_IN[WRITTEN]:
        return None
    return _section(suffix, target)


def all_registered() -> dict[str, type[Registered]]:
    """Return suffix -> section type of all runtimes but ONNX Runtime.

    Imports them; one that cannot be imported is logged and left out.
    """
    sections: dict[str, type[Registered]] = {}
    for suffix in (*suffixes(), SCHEMES[0]):
        try:
            section = registered_section(suffix if suffix in SCHEMES else f"model{suffix}")
        except EdgerouteError as e:
            log.warning("the keys for a model in %s are not known: %s", suffix, e)
            continue
        if section is not None:
            sections[suffix] = section
    return sections


@lru_cache(maxsize=64)
def _section(suffix: str, target: str) -> type[Registered]:
    """Return a new section type for a runtime, with a key for each argument of its class that a policy can give. Cached.

    Imports the class.
    """
    runtime_class = class_of(suffix)
    # by alias: a parameter may have a name that pydantic uses itself
    fields: dict[str, Any] = {
        f"key_{i}": (annotation, Field(_default(parameter), alias=parameter.name, description=text))
        for i, (parameter, annotation, text) in enumerate(_parameters(runtime_class))
    }
    section = create_model(
        f"{runtime_class.__name__}{suffix}", __base__=Registered, __doc__=inspect.getdoc(runtime_class), **fields
    )
    section.target = target
    return section


def _parameters(runtime_class: Any) -> Iterator[tuple[inspect.Parameter, Any, str]]:
    """Yield the parameters of a runtime's class that a policy can give, with their types and texts.

    They are those after the path, but not the section's own keys, nor those of a type that JSON does not have.
    """
    for parameter, hint, text in islice(parameters_of([runtime_class]), 1, None):
        if parameter.name in Registered.model_fields:
            continue
        annotation = Check | None if hint == Given | None else _plain(hint)
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY} and _usable(annotation):
            yield parameter, annotation, text


def _plain(annotation: Any) -> Any:
    """Return a parameter's type as a policy has it; only unions change.

    Where text or a path is allowed, it is a path, which starts from the policy's folder; an iterable becomes a list of texts.
    """
    if get_origin(annotation) not in {Union, UnionType}:
        return annotation
    parts = [part for part in get_args(annotation) if part is not str or Path not in get_args(annotation)]
    parts = [Sequence[str] if get_origin(part) is Iterable else part for part in parts]
    return Union[tuple(parts)]  # noqa: UP007 - of a tuple


def _usable(annotation: Any) -> bool:
    """Return True if JSON can have values of a type."""
    try:
        TypeAdapter(annotation).json_schema()
    except PydanticUserError:
        return False
    return True


def _default(parameter: inspect.Parameter) -> Any:
    """Return the default that the reference shows; a key that is not given is not passed. None for a default that JSON lacks."""
    if parameter.default is parameter.empty:
        return ...
    return parameter.default if isinstance(parameter.default, bool | int | float | str | NoneType) else None


def _by_runtime(data: Any, built_in: Any) -> Any:
    """Validate the data of an `[edge]` section by the runtime that its path selects, and return the section.

    `built_in` validates it as `Edge`: for ONNX Runtime, without a runtime, and where a catalog's active version is unknown.
    Raises ValidationError; a runtime that cannot be imported is a problem of `path`.
    """
    try:
        section = registered_section(data.get("path") if isinstance(data, dict) else None)
    except (ModelMissing, CatalogError, StoreError) as e:  # said where the model is made, unless its keys have to be known before
        try:
            return built_in(data)
        except ValidationError:
            raise _errors([(("path",), f"what keys its runtime has is not known: {e}", data["path"])]) from None
    except EdgerouteError as e:
        raise _errors([(("path",), str(e), data["path"])]) from None
    if section is None:
        return built_in(data)
    try:
        return section.model_validate_json(json.dumps(data, default=str))  # as JSON: a list may be a tuple, and text a path
    except ValidationError as e:
        problems = e.errors(include_url=False)
        raise _errors([(problem["loc"], _text(section, problem), problem["input"]) for problem in problems]) from None


ByRuntime = WrapValidator(_by_runtime)


def for_file(section: Target, path: str, folder: Path) -> Target:
    """Return a new section for another model file, with the keys of this one that its runtime has, without hash and card.

    Keys that its runtime lacks are dropped. May import the runtime.

    Raises:
        PolicyError: one of them has a value that this runtime does not take.
        ModelMissing, CatalogError, StoreError, RuntimeMissing: as `registered_section`.
    """
    with paths_from(folder):
        kind = registered_section(path) or Edge
    aliases = {field.alias or name: name for name, field in kind.model_fields.items()}
    if type(section) is kind:
        keys = section.model_dump(by_alias=True, exclude_unset=True)
        return section.model_copy(update={"path": path} | {aliases[key]: None for key in ("sha256", "card") if keys.get(key)})
    known = aliases.keys() - {"path", "sha256", "card"}
    keys = section.model_dump(mode="json", by_alias=True, exclude_unset=True)
    try:
        return kind.model_validate_json(json.dumps({"path": path} | {key: keys[key] for key in keys if key in known}))
    except ValidationError as e:
        raise PolicyError("; ".join(f"{error['loc'][0]}: {error['msg']}" for error in e.errors(include_url=False))) from e


def _errors(problems: list[tuple[Any, str, Any]]) -> ValidationError:
    """Return a pydantic error from (place, text, value) of several problems."""
    details = [InitErrorDetails(type=message_error(text), loc=loc, input=value) for loc, text, value in problems]
    return ValidationError.from_exception_data("edge", details)


def _text(section: type[Registered], error: Any) -> str:
    """Return the message for one pydantic error of a runtime's section: what was expected, or the nearest word, and the value."""
    kind, key, context = error["type"], str(error["loc"][0]), error.get("ctx", {})
    if kind == "policy":
        return str(error["msg"])
    if kind == "extra_forbidden":
        return f"there is no such key: {nearest(key, keys(section))}"
    if kind == "missing":
        return f"is missing. {keys(section)[key]}".rstrip()
    if kind == "literal_error":
        return wrong_word(error["input"], context["expected"])
    if kind == "expected":
        return f"expected {context['words']}, found {quote_value(error['input'])}"
    words = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"expected {words}, found {quote_value(error['input'])}"


def keys(section: type[Registered]) -> Mapping[str, str]:
    """Return key -> description."""
    return {field.alias or name: field.description or "" for name, field in section.model_fields.items()}
