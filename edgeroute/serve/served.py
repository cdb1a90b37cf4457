"""A served model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import Scope

from edgeroute.cloud.datatypes import NAMES, TEXTS
from edgeroute.errors import BadInput, ModelError
from edgeroute.serve.batching import Batcher, Tensors
from edgeroute.serve.encoded import ENCODED, Decoder, Files
from edgeroute.serve.feeding import EDGES, fed, platform_of
from edgeroute.serve.protocol import VERSION, Ask, describe, edge_answers
from edgeroute.types import EdgeModel


class Served:
    """One model: its metadata and its batcher."""

    def __init__(self, model: EdgeModel, *, max_batch: int, queue: int) -> None:
        self.model = fed(model)
        self.name, self.inputs, only = self.model.name, self.model.inputs, self.model.only
        self.outputs = tuple(spec for spec in self.model.outputs if only in (None, spec.name))
        if odd := [spec.name for spec in self.inputs if spec.dtype not in NAMES]:
            raise ModelError(f"{self.name} cannot be served: its inputs {odd} are no numbers")
        self.decoders = {spec.name: Decoder(spec, self.model.card) for spec in self.inputs}
        self.about = describe(model.name, platform_of(model), self.inputs, self.outputs)
        self.batcher = Batcher(self.model, self.outputs, max_batch=max_batch, queue=queue)

    def submit(self, ask: Ask) -> asyncio.Future[Tensors]:
        """Queues a request; see `Batcher.submit`.

        Raises:
            BadInput: its inputs have different numbers of rows, or none; or the edge's answers are not as many.
        """
        if self.model.takes_edge:
            first = next(iter(ask.feed.values()))
            answers = edge_answers(ask.edges, len(first) if first.ndim else 1)
            ask = ask._replace(feed={**ask.feed, EDGES: answers})
        if not self.batcher.merges:
            return self.batcher.submit(ask.feed, 1)
        rows = {len(array) for array in ask.feed.values()}
        if len(rows) != 1 or 0 in rows:
            raise BadInput(f"the inputs have {sorted(rows)} rows: send the same number for each, at least 1")
        return self.batcher.submit(ask.feed, rows.pop())

    def decoded_bytes(self, ask: Ask) -> int | None:
        """How many bytes the files of a request make once they are decoded, as far as shapes tell; None: it has none."""
        found = [self.decoders[name].bytes * len(one) for name, one in ask.feed.items() if isinstance(one, Files)]
        return sum(found) if found else None

    def decoded(self, ask: Ask) -> Ask:
        """The request with arrays in place of its files. Takes long, as pictures do.

        Raises:
            BadInput, RuntimeMissing: as `Decoder`.
        """
        feed = {name: self.decoders[name](one) if isinstance(one, Files) else one for name, one in ask.feed.items()}
        return ask._replace(feed=feed)

    def described(self, name: str) -> dict[str, Any]:
        """Metadata under that name: the model's own, or the one by which it takes files of pictures."""
        if name == self.name:
            return self.about
        files = {"datatype": TEXTS, "shape": [-1, 1]}
        takes = [{**one, **files} if self.decoders[one["name"]].pictures else one for one in self.about["inputs"]]
        return {**self.about, "name": name, "inputs": takes}

    def close(self) -> None:
        """Ends its threads after the run in progress."""
        self.batcher.close()
        self.model.close()

    def stats(self) -> dict[str, Any]:
        """Counts since the start: inferences are rows, executions are runs of the model."""
        b = self.batcher
        requests = {"success": {"count": b.requests}, "fail": {"count": b.failed}}
        counts = {"inference_count": b.rows, "execution_count": b.runs, "inference_stats": requests}
        return {"name": self.name, "version": VERSION, **counts}


def find(served: Mapping[str, Served], scope: Scope) -> Served:
    """The model that a path names.

    Raises:
        HTTPException: 404, there is none.
    """
    name, which = scope["path_params"]["name"], scope["path_params"].get("version", VERSION)
    plain = name.removesuffix(ENCODED)
    if name not in served and plain in served and any(one.pictures for one in served[plain].decoders.values()):
        name = plain
    if name not in served:
        raise HTTPException(404, f"there is no model {name!r} here, only {', '.join(sorted(served))}")
    if which != VERSION:
        raise HTTPException(404, f"{name} has no version {which!r}, only {VERSION}")
    return served[name]
