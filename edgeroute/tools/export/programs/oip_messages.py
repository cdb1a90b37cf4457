"""Server side of the Open Inference Protocol v2: `read` parses a request, `write` encodes its reply.

Copied by `edgeroute export`; needs no edgeroute.
"""

from __future__ import annotations

import base64
import json
from math import prod
from typing import Any, NamedTuple

import numpy as np
from by_card import BadInput, datatype

LENGTH = "inference-header-content-length"
MOST_DIGITS = 20  # most digits of a length
MOST_TEXTS = 1 << 20  # most texts or files of one request


class Ask(NamedTuple):
    """Parsed infer request."""

    feed: dict[str, Any]  # arrays [n, ...] by name; picture files as object [n]
    outputs: list[tuple[str, bool]]  # (name, True if it is sent as binary), in the order of the reply
    id: str | None


def read(body: bytes, length: str | None, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> Ask:
    """Parse and validate an infer request.

    Args:
        body: JSON, or JSON and binary tensors.
        length: length of the JSON, from the header of binary requests; None: all of the body.
        inputs: the model's inputs, as in `model.json`; an input with a picture also takes BYTES, files.
        outputs: the model's outputs, as in `model.json`.

    Raises:
        BadInput: it is no such request, or does not fit this model.
    """
    digits = length is None or (length.isascii() and length.isdigit() and len(length) < MOST_DIGITS)
    if not digits or (length is not None and int(length) > len(body)):
        raise BadInput(f"{LENGTH} is no length of the JSON in a body of {len(body)} bytes")
    try:
        ask, end = _read(body, len(body) if length is None else int(length), inputs, outputs)
    except BadInput:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as e:
        raise BadInput(f"this is no request of the Open Inference Protocol: {type(e).__name__}") from e
    if missing := [spec["name"] for spec in inputs if spec["name"] not in ask.feed]:
        raise BadInput(f"the model also needs {missing}")
    if unknown := [name for name, _ in ask.outputs if name not in {spec["name"] for spec in outputs}]:
        raise BadInput(f"there is no output {unknown[0]!r}")
    if end != len(body):
        raise BadInput(f"the body has {len(body)} bytes, JSON and inputs make {end}")
    return ask


def _read(body: bytes, offset: int, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> tuple[Ask, int]:
    """Parse the request; return it with the end of its last binary tensor. `offset`: end of its JSON.

    Raises:
        BadInput: an input is unknown, there twice, longer than the body, or does not fit the model.
        KeyError, TypeError, ValueError, AttributeError: it is no such JSON; `read` turns these into BadInput.
    """
    head, feed = json.loads(body[:offset]), dict[str, Any]()
    for entry in head["inputs"]:
        name, size = str(entry["name"]), _parameter(entry, "binary_data_size")
        spec = next((spec for spec in inputs if spec["name"] == name), None)
        if spec is None or name in feed:
            raise BadInput(f"there is no input {name!r}" if spec is None else f"{name} is there twice")
        if size is not None and not (type(size) is int and 0 <= size <= len(body) - offset):
            raise BadInput(f"{name}: more binary data is announced than came")
        feed[name] = _tensor(entry, spec, None if size is None else body[offset : offset + size])
        offset += size or 0
    default = bool(_parameter(head, "binary_data_output"))
    wanted = [(str(entry["name"]), bool(_parameter(entry, "binary_data", default))) for entry in head.get("outputs") or ()]
    identity = None if head.get("id") is None else str(head["id"])
    return Ask(feed, wanted or [(spec["name"], default) for spec in outputs], identity), offset


def _parameter(message: dict[str, Any], key: str, default: Any = None) -> Any:
    """Return a parameter of a tensor or request, or the default."""
    return (message.get("parameters") or {}).get(key, default)


def _tensor(entry: dict[str, Any], spec: dict[str, Any], raw: bytes | None) -> Any:
    """Return a copy of an input's array from its JSON data or its bytes; files, decoded from base64, as an array of bytes.

    Raises:
        BadInput: type, shape or values do not fit the model.
        KeyError, TypeError, ValueError: the entry lacks a part, or its values are no numbers or base64.
    """
    name, kind, shape = spec["name"], entry["datatype"], [int(size) for size in entry["shape"]]
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
        if encoded and _parameter(entry, "content_type") != "base64":
            raise BadInput(f'{name}: files in JSON are base64, with "parameters": {{"content_type": "base64"}}')
        texts = _texts(raw) if raw is not None else entry["data"]
        if len(texts) != prod(shape):
            raise BadInput(f"{name}: {len(texts)} values came for {shape}")
        values = np.empty(len(texts), object)
        values[:] = [base64.b64decode(text, validate=True) for text in texts] if encoded else list(texts)
        return values.reshape(shape)
    dtype = np.dtype(spec["dtype"])
    if raw is None:
        array = np.asarray(entry["data"])
        if array.dtype.kind not in ("b" if dtype.kind == "b" else "iu" if dtype.kind in "iu" else "iuf"):
            raise BadInput(f"{name}: the data is no list of {kind}")
        numbers = array.astype(dtype)
        if dtype.kind in "iu" and not (numbers == array).all():
            raise BadInput(f"{name}: the data has numbers that are no {kind}")
    else:
        numbers = np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False)
    if numbers.size != prod(shape):
        raise BadInput(f"{name}: {numbers.size} values came for {shape}")
    return numbers.reshape(shape)


def _texts(raw: bytes) -> list[bytes]:
    """Return the texts of BYTES data, each with its length of four bytes before it; stops beyond a million.

    Raises:
        BadInput: one is cut off.
    """
    texts, offset = list[bytes](), 0
    while offset < len(raw) and len(texts) <= MOST_TEXTS:
        size = int.from_bytes(raw[offset : offset + 4], "little")
        if offset + 4 + size > len(raw):
            raise BadInput("a text is longer than what came")
        texts.append(raw[offset + 4 : offset + 4 + size])
        offset += 4 + size
    return texts


def write(ask: Ask, results: dict[str, Any], model: str, **parameters: str) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of the reply to a request, whose `parameters` are those given.

    NaN and infinity are null in JSON. A missing output raises KeyError.
    """
    outputs, parts = [], list[bytes]()
    for name, binary in ask.outputs:
        array = results[name]
        texts = array.dtype.kind in "OU"
        tensor: dict[str, Any] = {
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
            tensor["parameters"] = {"binary_data_size": len(part)}
            parts.append(part)
        else:
            flat = array.reshape(-1)
            if not texts and flat.dtype.kind == "f" and not np.isfinite(flat).all():  # JSON has no such numbers
                flat = np.where(np.isfinite(flat), flat.astype(object), None)
            tensor["data"] = [str(text) for text in flat] if texts else flat.tolist()
        outputs.append(tensor)
    head = {"model_name": model, "model_version": "1", **({} if ask.id is None else {"id": ask.id}), "outputs": outputs}
    text = json.dumps({**head, "parameters": parameters} if parameters else head).encode()
    if not parts:
        return {"content-type": "application/json"}, text
    return {"content-type": "application/octet-stream", LENGTH: str(len(text))}, b"".join([text, *parts])
