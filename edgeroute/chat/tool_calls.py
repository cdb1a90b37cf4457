"""Calls of tools that come in pieces, put together: not all servers number them as OpenAI does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


class ToolCalls:
    """The calls of one answer.

    A part belongs to the last call with its index. A new call begins with another id than that one's; with a name, where there
    is no index; and with another name, or whole arguments once more, after that one has its arguments: Gemini's endpoint and
    others give each call the index 0, and not all of them ids.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[int, dict[str, Any]]] = []
        """Each with its index, as they began."""
        self._function: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._calls or self._function)

    def add(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """Adds parts of calls, as a delta has them in `tool_calls`."""
        for part in parts:
            call = self._begun(part)
            call.update({key: part[key] for key in ("id", "type") if part.get(key)})
            _join(call["function"], part.get("function") or {})

    def add_function(self, part: Mapping[str, Any]) -> None:
        """Adds a part of the one call that OpenAI's API had before it had tools, as a delta has it in `function_call`."""
        self._function = self._function or {"name": "", "arguments": ""}
        _join(self._function, part)

    def message(self) -> dict[str, Any]:
        """What a message has of them."""
        calls = [call for _, call in sorted(self._calls, key=lambda one: one[0])]
        return {**({"tool_calls": calls} if calls else {}), **({"function_call": self._function} if self._function else {})}

    def _begun(self, part: Mapping[str, Any]) -> dict[str, Any]:
        """The call that a part belongs to."""
        given, own, function = part.get("index"), part.get("id"), part.get("function") or {}
        last = self._calls[-1][0] if self._calls else 0
        index = last if given is None else int(given)
        if given is None and own:
            call = next((call for _, call in self._calls if call.get("id") == own), None)
        else:
            call = next((call for i, call in reversed(self._calls) if i == index), None)
        if call is None or (not own and given is None and function.get("name")) or _is_another(call, own, function):
            call = {"type": "function", "function": {"name": "", "arguments": ""}}
            self._calls.append((index, call))
        return call


def _is_another(call: Mapping[str, Any], own: Any, function: Mapping[str, Any]) -> bool:
    """Whether a part with this id and function begins another call than the one with its index."""
    if own and call.get("id"):
        return bool(own != call["id"])
    if not function.get("name") or not (arguments := call["function"]["arguments"]):
        return False
    return function["name"] != call["function"]["name"] or (
        bool((function.get("arguments") or "").strip()) and _is_whole(arguments)
    )


def _is_whole(arguments: str) -> bool:
    try:
        return isinstance(json.loads(arguments), dict)
    except (RecursionError, ValueError):
        return False


def _join(function: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Adds a part to the name and the arguments of a function. Some servers repeat the name with each part."""
    for key, value in part.items():
        if key != "name" or value != function["name"]:
            function[key] = function.get(key, "") + (value or "")
