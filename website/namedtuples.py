"""A griffe extension: the fields of a NamedTuple are the parameters of its constructor, as those of a dataclass are."""

from __future__ import annotations

from typing import Any

from griffe import Attribute, Class, Extension, Function, Parameter, ParameterKind, Parameters


class NamedTuples(Extension):
    """Adds the constructor that `typing.NamedTuple` makes."""

    def on_class_members(self, *, cls: Class, **_: Any) -> None:
        """Give a NamedTuple an `__init__` with its fields."""
        if "NamedTuple" not in map(str, cls.bases) or "__init__" in cls.members:
            return
        fields = [
            member
            for member in cls.members.values()
            if isinstance(member, Attribute) and member.annotation is not None and not member.name.startswith("_")
        ]
        kind = ParameterKind.positional_or_keyword
        made = [Parameter(field.name, annotation=field.annotation, kind=kind, default=field.value) for field in fields]
        cls.set_member("__init__", Function("__init__", parameters=Parameters(*made), lineno=cls.lineno, endlineno=cls.endlineno))
