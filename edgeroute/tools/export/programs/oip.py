"""The Open Inference Protocol v2 on a server's side: bytes <-> arrays. Written by `edgeroute export`, which it does not need."""

from __future__ import annotations

import base64
import json
from math import prod
from typing import Any, NamedTuple

import numpy as np
from by_card import BadInput, datatype

LENGTH = "inference-header-content-length"
MOST_DIGITS = 20
"""Of a length."""
MOST_TEXTS = 1 << 20
"""Texts or files of one request."""


class Ask(NamedTuple):
    """A request that was read."""

    feed: dict[str, Any]
    """Arrays [n, ...] by name; files of pictures as object [n]."""
    outputs: list[tuple[str, bool]]
    """(name, whether it is sent as binary), in the order of the reply."""
    id: str | None


def read(body: bytes, length: str | None, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> Ask:
    """Reads a request.

    Args:
        body: JSON, or JSON and binary tensors.
        length: of the JSON, as the header of binary requests has it; None: all of it.
        inputs: of the model, as `model.json` has them; one with a picture also takes BYTES, files.
        outputs: likewise.

    Raises:
        BadInput: it is no such request, or not for this model.
    """
    digits = length is None or (length.isascii() and length.isdigit() and len(length) < MOST_DIGITS)
    if not digits or (length is not None and int(length) > len(body)):
        raise BadInput(f"{LENGTH} is no length of the JSON in a body of {len(body)} bytes")
    try:
        ask, at = _read(body, len(body) if length is None else int(length), inputs, outputs)
    except BadInput:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as e:
        raise BadInput(f"this is no request of the Open Inference Protocol: {type(e).__name__}") from e
    if missing := [spec["name"] for spec in inputs if spec["name"] not in ask.feed]:
        raise BadInput(f"the model also needs {missing}")
    if unknown := [name for name, _ in ask.outputs if name not in {one["name"] for one in outputs}]:
        raise BadInput(f"there is no output {unknown[0]!r}")
    if at != len(body):
        raise BadInput(f"the body has {len(body)} bytes, JSON and inputs make {at}")
    return ask


def _read(body: bytes, at: int, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> tuple[Ask, int]:
    """The request, and where its last binary tensor ends; `at`: where its JSON does."""
    head, feed = json.loads(body[:at]), dict[str, Any]()
    for one in head["inputs"]:
        name, size = str(one["name"]), _parameter(one, "binary_data_size")
        spec = next((spec for spec in inputs if spec["name"] == name), None)
        if spec is None or name in feed:
            raise BadInput(f"there is no input {name!r}" if spec is None else f"{name} is there twice")
        if size is not None and not (type(size) is int and 0 <= size <= len(body) - at):
            raise BadInput(f"{name}: more binary data is announced than came")
        feed[name] = _tensor(one, spec, None if size is None else body[at : at + size])
        at += size or 0
    default = bool(_parameter(head, "binary_data_output"))
    wanted = [(str(one["name"]), bool(_parameter(one, "binary_data", default))) for one in head.get("outputs") or ()]
    told = None if head.get("id") is None else str(head["id"])
    return Ask(feed, wanted or [(one["name"], default) for one in outputs], told), at


def _parameter(one: dict[str, Any], key: str, default: Any = None) -> Any:
    return (one.get("parameters") or {}).get(key, default)


def _tensor(one: dict[str, Any], spec: dict[str, Any], raw: bytes | None) -> Any:
    name, kind, shape = spec["name"], one["datatype"], [int(size) for size in one["shape"]]
    files = kind == "BYTES" and spec["picture"] is not None
    row = [] if files else spec["shape"]
    if files and len(shape) == 2 and shape[1] == 1:  # noqa: PLR2004 - [n, 1]
        shape = shape[:1]
    if not files and kind != datatype(spec["dtype"]):
        raise BadInput(f"{name}: the model takes {datatype(spec['dtype'])}, not {str(kind)[:20]!r}")
    if len(shape) != len(row) + 1 or any(b not in (-1, a) for a, b in zip(shape[1:], row, strict=True)) or min(shape) < 0:
        raise BadInput(f"{name}: the model takes [-1, {', '.join(map(str, row))}], -1 being any size, not {shape[:40]}")
    if kind == "BYTES":
        encoded = files and raw is None
        if encoded and _parameter(one, "content_type") != "base64":
            raise BadInput(f'{name}: files in JSON are base64, with "parameters": {{"content_type": "base64"}}')
        texts = _texts(raw) if raw is not None else one["data"]
        if len(texts) != prod(shape):
            raise BadInput(f"{name}: {len(texts)} values came for {shape}")
        found = np.empty(len(texts), object)
        found[:] = [base64.b64decode(text, validate=True) for text in texts] if encoded else list(texts)
        return found.reshape(shape)
    dtype = np.dtype(spec["dtype"])
    if raw is None:
        array = np.asarray(one["data"])
        if array.dtype.kind not in ("b" if dtype.kind == "b" else "iu" if dtype.kind in "iu" else "iuf"):
            raise BadInput(f"{name}: the data is no list of {kind}")
        made = array.astype(dtype)
        if dtype.kind in "iu" and not (made == array).all():
            raise BadInput(f"{name}: the data has numbers that are no {kind}")
    else:
        made = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False)
    if made.size != prod(shape):
        raise BadInput(f"{name}: {made.size} values came for {shape}")
    return made.reshape(shape)


def _texts(raw: bytes) -> list[bytes]:
    """BYTES: each with its length before it, four bytes."""
    found, at = list[bytes](), 0
    while at < len(raw) and len(found) <= MOST_TEXTS:
        size = int.from_bytes(raw[at : at + 4], "little")
        if at + 4 + size > len(raw):
            raise BadInput("a text is longer than what came")
        found.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    return found


def write(ask: Ask, results: dict[str, Any], model: str, **parameters: str) -> tuple[dict[str, str], bytes]:
    """The headers and the body of a reply."""
    outputs, parts = [], list[bytes]()
    for name, binary in ask.outputs:
        array = results[name]
        texts = array.dtype.kind in "OU"
        one: dict[str, Any] = {
            "name": name,
            "datatype": datatype("object" if texts else array.dtype.name),
            "shape": list(array.shape),
        }
        if binary:
            raw = [str(text).encode() for text in array.reshape(-1)] if texts else []
            part = (
                b"".join(len(text).to_bytes(4, "little") + text for text in raw)
                if texts
                else np.ascontiguousarray(array).tobytes()
            )
            one["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            flat = array.reshape(-1)
            if not texts and flat.dtype.kind == "f" and not np.isfinite(flat).all():  # JSON has no such numbers
                flat = np.where(np.isfinite(flat), flat.astype(object), None)
            one["data"] = [str(text) for text in flat] if texts else flat.tolist()
        outputs.append(one)
    said = {"model_name": model, "model_version": "1", **({} if ask.id is None else {"id": ask.id}), "outputs": outputs}
    text = json.dumps({**said, "parameters": parameters} if parameters else said).encode()
    if not parts:
        return {"content-type": "application/json"}, text
    return {"content-type": "application/octet-stream", LENGTH: str(len(text))}, b"".join([text, *parts])
