"""Policy sections derived from the classes that they configure.

A setting is declared once, in the signature and docstring of its class: name, type, unit, default, text. `configures` makes a key
from each; a number of seconds becomes "300ms" there. A value with another form in policy files than in Python has a row in
`FORMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, signature
from math import isinf
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

import edgeroute.policy.value_types as values
from edgeroute.confidence.output_reader import Kind
from edgeroute.core.policy_egress_and_options import Terms
from edgeroute.edge.runtime_base import ModelFile
from edgeroute.http.messages_addresses_and_secrets import Address
from edgeroute.policy.units_as_text import Delay, Duration, Period, Share, Size, expected_error, to_text
from edgeroute.system.read_and_check_signatures import argument_texts, argument_types, unit_of

S = TypeVar("S", bound=BaseModel)
# Words of a docstring -> words of the reference of policy files.
WORDS = {"; None:": "; without it:", "None:": "Without it:", "inf:": "Without it:", ", seconds": "", ", 0..1": "", "docs/": ""}
# Name of a parameter `**name` -> the class whose arguments it takes.
FURTHER: Mapping[str, Any] = {"address": Address, "file": ModelFile, "terms": Terms}
# Argument -> key, where that is another name and not only one without the unit.
KEYS = {"max_bytes": "max_size", "rate_per_s": "rate"}
# (kind of unit, True if its least value is excluded) -> type of the key.
UNITS: Mapping[tuple[str, bool], Any] = {
    ("duration", False): Delay, ("duration", True): Duration, ("size", False): Size,
    ("share", False): Share, ("share", True): Share, ("amount", False): values.Amount, ("rate", True): values.Rate,
    ("count", False): values.Count, ("whole", False): values.Whole,
}  # fmt: skip
# Path of a file; a relative one starts from the policy's folder.
File = Annotated[values.PathText, AfterValidator(lambda text: Path(text))]  # noqa: PLW0108 - a class has no signature that fits
CARD = "the path of a card, or false"


def _no_number(value: Any) -> Any:
    """Return a value unchanged; raise PydanticCustomError for a whole number, as 0 equals false."""
    if type(value) is int:
        raise expected_error(CARD)
    return value


# Path of a card; false: no card is read.
CardFile = Annotated[
    Literal[False] | values.PathText,
    values.with_message(CARD),
    AfterValidator(lambda text: text and Path(text)),
    BeforeValidator(_no_number),
]
# Argument -> type of its key, where a policy file writes the value otherwise than Python, or checks more than its type.
FORMS: Mapping[str, Any] = {
    "api_key": values.SecretReference, "binary": values.Binary, "body": values.BodyTemplate, "card": CardFile,
    "cert": values.Cert, "check": values.Check, "client": values.Client, "codec": values.PayloadCodec, "headers": values.Headers,
    "hedge_after": values.Hedge, "kind": Kind, "labels": values.Texts, "max_concurrent": values.Concurrent,
    "mask": values.Texts, "may_leave": values.AnyTexts, "metered": values.Flag, "none_found": Literal["defer", "accept", "score"],
    "pin": values.Pins, "ping_path": values.PingPath, "providers": values.Providers, "retries": values.Retries,
    "score": values.Score, "sensors_every": Period, "sha256": values.Sha256, "threads": values.Threads, "verify": values.Verify,
}  # fmt: skip


def text_of(section: type[BaseModel]) -> str:
    """Return the description of a section, from its docstring."""
    return " ".join((section.__doc__ or "").split())


class Section(BaseModel):
    """Base of sections: keys that belong together. Other keys, and values of other types, are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)
    makes: ClassVar[Any] = None  # class of the object that the section configures
    configured: ClassVar[Mapping[str, str]] = {}  # field -> argument of that class

    if TYPE_CHECKING:  # of a derived key

        def __getattr__(self, name: str) -> Any: ...

    def given(self) -> dict[str, Any]:
        """Return argument -> value of the keys that are set."""
        return {argument: getattr(self, key) for key, argument in self.configured.items() if key in self.model_fields_set}

    def make(self, *args: Any, **more: Any) -> Any:
        """Make the configured object from the keys that are set, and from further arguments, which replace them."""
        return self.makes(*args, **{**self.given(), **more})


def configures(*classes: Any, **forms: Any) -> Callable[[type[S]], type[S]]:
    """Return a decorator that makes a section type anew, with the keys of classes added; existing keys of the section stay.

    Its `make` makes the first class. A parameter whose type a policy file cannot have gets no key.

    Args:
        classes: class that the section configures, and others whose arguments it takes.
        forms: argument -> type of its key, in place of that in `FORMS`; None: no key.
    """

    def derived(base: type[S]) -> type[S]:
        fields, arguments = dict[str, Any](), dict[str, str]()
        for parameter, annotation, text in parameters_of(classes):
            name, key = parameter.name, _key(parameter.name, annotation)
            form = forms[name] if name in forms else _form(name, annotation)
            if form is not None and key not in {*base.model_fields, *fields}:
                fields[key], arguments[key] = _field(form, parameter.default, annotation, text), name
        section = create_model(base.__name__, __base__=base, __doc__=base.__doc__, __module__=base.__module__, **fields)
        section.makes, section.configured = classes[0], arguments  # type: ignore[attr-defined]
        return section

    return derived


def parameters_of(classes: Any) -> Iterator[tuple[Parameter, Any, str]]:
    """Yield the parameters of classes with their types and texts; a type that cannot be had is `Any`.

    In place of `**address`, `**file` and `**terms` come the parameters of the class in `FURTHER`.
    """
    for configured in classes:
        texts, types = argument_texts(configured), argument_types(configured)
        for parameter in signature(configured).parameters.values():
            if parameter.kind is Parameter.VAR_KEYWORD and parameter.name in FURTHER:
                yield from parameters_of([FURTHER[parameter.name]])
            else:
                yield parameter, types.get(parameter.name, Any), texts.get(parameter.name, "")


def _key(name: str, annotation: Any) -> str:
    """Return the key for an argument: its name without the unit, or the one in `KEYS`.

    Only durations and sizes lose their unit.
    """
    unit, _ = unit_of(annotation)
    suffix = {"duration": "_s", "size": "_bytes"}.get(unit.kind, "") if unit is not None else ""
    return KEYS.get(name) or name.removesuffix(suffix)


def _form(name: str, annotation: Any) -> Any:
    """Return the type of the key for an argument: by its name in `FORMS`, its unit in `UNITS`, or from its own type.

    None: a policy file cannot have the argument, as with a union of several types or an object.
    """
    unit, _ = unit_of(annotation)
    if name in FORMS or unit is not None:
        return FORMS.get(name) or UNITS[unit.kind, unit.above]  # type: ignore[union-attr]
    is_union = get_origin(annotation) in {Union, UnionType}
    parts = [part for part in get_args(annotation) if part is not NoneType] if is_union else [annotation]
    if Path in parts:
        return File
    if len(parts) != 1:
        return None
    origin, within = get_origin(parts[0]), get_args(parts[0])
    if parts[0] in (bool, str):
        return values.Flag if parts[0] is bool else values.Text
    if origin is Literal:
        return parts[0]
    if isinstance(origin, type) and issubclass(origin, Mapping) and within == (str, Any):
        return values.Table
    return values.Texts if within and within[0] is str and origin is not type and not issubclass(origin, Mapping) else None


def _field(form: Any, default: Any, annotation: Any, text: str) -> tuple[Any, Any]:
    """Return the type and the pydantic field of a key, with its default as policy files have it.

    Python's words in the text become those of policy files.

    Args:
        form: type of the key.
        default: default of the argument.
        annotation: type of the argument.
        text: description of the argument.
    """
    unit, _ = unit_of(annotation)
    for python, words in WORDS.items():
        text = text.replace(python, words)
    text = text[:1].upper() + text[1:]
    if default is Parameter.empty:
        return form, Field(description=text)
    if default is None or (isinstance(default, float) and isinf(default)) or default in ((), frozenset()):
        return form | None, Field(None, description=text)
    if unit is not None and unit.kind in {"duration", "size", "share"}:
        return form, Field(to_text(unit.kind, default), validate_default=True, description=text)
    return form, Field(list(default) if isinstance(default, tuple) else default, description=text)
