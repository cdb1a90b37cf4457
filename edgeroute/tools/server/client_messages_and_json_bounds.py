"""Messages of the gateway's clients, checked and copied: what is passed on of messages, parts and calls; bounds of JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from edgeroute.core.error_codes_and_texts import clean
from edgeroute.errors import BadInput
from edgeroute.system.json_codec_and_short_repr import json_dumps

# Limits of a schema: levels, entries of a list or object, value of a length such as `maxItems`.
MOST_LEVELS, MOST_ENTRIES, MOST_LENGTH = 16, 128, 1000
MOST_MESSAGES = 2048  # most messages of a chat; their parts and calls of tools count, too
# Keys of a message that are passed on, and the type of their values.
MESSAGE: Final[Mapping[str, type]] = {
    "role": str, "content": list, "name": str, "tool_calls": list, "tool_call_id": str, "refusal": str, "reasoning_content": str,
    "reasoning_details": list,
}  # fmt: skip
# Keys of a message that cannot be left out without harm -> what to send instead.
REFUSED: Final = {"function_call": "tool_calls", "audio": "its text"}
# Keys of a part and of a call that are passed on, and those of their objects, of which the first has to be there: a `file_id`
# would name a file of the account at the cloud. Their values are texts, but for `arguments`, an object from some clients.
PART: Final[Mapping[str, Collection[str]]] = {
    "text": (), "refusal": (),
    "image_url": ("url", "detail"), "input_audio": ("data", "format"), "file": ("file_data", "filename"),
}  # fmt: skip
CALL: Final[Mapping[str, Collection[str]]] = {"function": ("name", "arguments"), "custom": ("name", "input")}
EXTRA: Final = "extra_content"  # key of a call with what its server wants back, such as Gemini's signature: passed on as it is
MOST_EXTRA = 128 << 10  # bytes of it in a call
# Keys of a part of `reasoning_details`, which a server such as OpenRouter wants back.
DETAIL: Final = frozenset({"type", "id", "format", "index", "text", "summary", "data", "signature"})


def is_bounded(data: Any, most_bytes: int) -> bool:
    """Return True if JSON has at most 16 levels, 128 entries in each, `most_bytes` bytes, and no entry of `_excess_of`."""
    return not excess(data, most_bytes)


def excess(data: Any, most_bytes: int) -> str:
    """Return what of JSON is beyond the bounds of `is_bounded`, for a message: the first such level or entry; empty: nothing."""
    for depth, level in enumerate(levels(data), 1):
        if depth > MOST_LEVELS:
            return f"more than {MOST_LEVELS} levels"
        for node in level:
            if len(node) > MOST_ENTRIES:
                return f"a list or object of {len(node)} entries, and {MOST_ENTRIES} are the most"
            for key, value in node.items() if isinstance(node, dict) else ():
                if why := _excess_of(key, value):
                    return why
    size = len(json_dumps(data))
    return f"{size:,} bytes, and {most_bytes:,} are the most" if size > most_bytes else ""


def levels(data: Any) -> Iterator[list[Any]]:
    """Yield the lists and objects of parsed JSON, level by level; the first has `data` itself."""
    level = [data]
    while level:
        yield level
        parts = [part for node in level for part in (node.values() if isinstance(node, dict) else node)]
        level = [part for part in parts if isinstance(part, dict | list)]


def _excess_of(key: str, value: Any) -> str:
    """Return why an entry of a schema is refused, if it may take for ever, refers to elsewhere, or has a length beyond the limit.

    Such entries are `pattern` and its kin, and references that depend on the way to them. A mapping as value of `pattern` or a
    reference is a property of that name, and no reason.
    """
    if key in {"patternProperties", "unevaluatedItems", "unevaluatedProperties"}:
        return f"{key}, which is not taken"
    if key in {"pattern", "$dynamicRef", "$recursiveRef"} or (key == "$ref" and not str(value).startswith("#")):
        where = " to elsewhere" if key == "$ref" else ""
        return "" if isinstance(value, dict) else f"{key}{where}, which is not taken"
    length = key[3:] in {"Length", "Items", "Properties", "Contains"} and isinstance(value, int | float)
    return (
        f"{clean(key, 40)} {clean(value, 20)}, and 0 to {MOST_LENGTH:,} are taken"
        if length and not 0 <= value <= MOST_LENGTH
        else ""
    )


def client_messages(messages: Any) -> list[dict[str, Any]]:
    """Return copies of a chat's messages with the keys in `MESSAGE`, in their parts and calls those in `PART` and `CALL`.

    Other keys are left out, and so is what is null.

    Raises:
        BadInput: it is no list of one or more objects, a value has a wrong type, a part or call has an unknown one, a key is in
            `REFUSED`, or messages, parts and calls of tools are more than 2,048 together.
    """
    if not (isinstance(messages, list) and messages and all(map(_is_message, messages))):
        raise BadInput('messages is a list of one or more {"role": ..., "content": ...}')
    lists = [part for message in messages for key in _LISTS if isinstance(part := message.get(key), list)]
    if len(messages) + sum(map(len, lists)) > MOST_MESSAGES:
        raise BadInput(f"messages has more than {MOST_MESSAGES} messages, parts and calls: send the last ones, or fewer")
    return [_kept_message(message, f"message {i}") for i, message in enumerate(messages)]


def _is_message(x: Any) -> bool:
    """Return True for an object whose `content` is a text, a list, null or missing."""
    return isinstance(x, dict) and isinstance(x.get("content"), str | list | None)


def _kept_message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a copy of a message with the keys in `MESSAGE`; `content` stays if it is null. Raise BadInput, which names a key."""
    for key, instead in REFUSED.items():
        if message.get(key) is not None:
            raise BadInput(f"{key} of {where} is not supported: send {instead}")
    kept = {key: message[key] for key in message if key in MESSAGE and (message[key] is not None or key == "content")}
    for key, value in kept.items():
        if not isinstance(value, MESSAGE[key]) and key != "content":
            raise BadInput(f"{key} of {where} is {_type_of(value)}: send {_type_of(MESSAGE[key]())}")
        if isinstance(value, list):
            kept[key] = [_LISTS[key](part, where) for part in value]
    return kept


def _kept_part(part: Any, where: str) -> Any:
    """Return a copy of a part of a message with the keys in `PART`; a text as it is. Raise BadInput for another part."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in PART or part.get(kind) is None:
        what = f"of type {clean(kind, 40)!r}" if isinstance(kind, str) else f"that is {_type_of(part)}, without a type"
        missing = f", without {kind}" if isinstance(kind, str) and kind in PART else ""
        raise BadInput(f"a part {what}{missing}, in {where}: send {', '.join(PART)}")
    return {"type": kind, **_kept(part, PART, f"a part of {where}")}


def _kept_call(call: Any, where: str) -> dict[str, Any]:
    """Return a copy of a call of a tool with the keys in `CALL`, id, type and extra content. Raise BadInput for another one."""
    where = f"a call of a tool in {where}"
    if not isinstance(call, dict) or not any(isinstance(call.get(key), dict) for key in CALL):
        raise BadInput(f"{where} has no function: send its name and arguments")
    kept = _kept(call, {"id": (), "type": (), **CALL}, where)
    if (extra := call.get(EXTRA)) is None:
        return kept
    if not isinstance(extra, dict) or not is_bounded(extra, MOST_EXTRA):
        raise BadInput(f"{EXTRA} of {where} is an object of at most {MOST_EXTRA >> 10} KiB, 16 levels and 128 entries in each")
    return {**kept, EXTRA: extra}


def _kept_detail(detail: Any, where: str) -> dict[str, Any]:
    """Return a copy of a part of `reasoning_details` with the keys in `DETAIL`. Raise BadInput for what is none."""
    if not isinstance(detail, dict):
        raise BadInput(f"reasoning_details of {where} has {_type_of(detail)}: send objects")
    kept = {key: value for key, value in detail.items() if key in DETAIL}
    if key := next((key for key, value in kept.items() if isinstance(value, dict | list)), ""):
        raise BadInput(f"{key} in reasoning_details of {where} is {_type_of(kept[key])}: send a text")
    return kept


# Key of a message with a list -> what checks and copies an entry.
_LISTS: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "content": _kept_part, "tool_calls": _kept_call, "reasoning_details": _kept_detail,
}  # fmt: skip


def _kept(part: Mapping[str, Any], keys: Mapping[str, Collection[str]], where: str) -> dict[str, Any]:
    """Return a copy of a part or call with these keys, and of its objects with theirs; without what is null.

    Raises BadInput for a value that is no text, and for an object without the first of its keys.
    """
    kept = {key: value for key, value in part.items() if key in keys and value is not None}
    for key, value in kept.items():
        names = [*keys[key]]
        if not isinstance(value, dict if names else str) and not (names and isinstance(value, str)):
            raise BadInput(f"{key} of {where} is {_type_of(value)}: send {_type_of({} if names else '')}")
        if isinstance(value, str):
            continue
        if value.get(names[0]) is None:
            stored = ", and a file_id is not supported" if value.get("file_id") is not None else ""
            raise BadInput(f"{key} of {where} has no {names[0]}{stored}: send {names[0]}")
        kept[key] = {name: value[name] for name in names if value.get(name) is not None}
        for name, one in kept[key].items():
            if not isinstance(one, str) and name != "arguments":
                raise BadInput(f"{name} in {key} of {where} is {_type_of(one)}: send a text")
    return kept


def _type_of(value: Any) -> str:
    """Return the name of a value's type in JSON."""
    names = {str: "a text", list: "a list", dict: "an object", bool: "a bool", type(None): "null"}
    return names.get(type(value), "a number")


def extra_of(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the extra content of a call, or of its item or block in another API, under its key; {} without any."""
    return {EXTRA: call[EXTRA]} if call.get(EXTRA) else {}
