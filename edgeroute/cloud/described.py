"""An endpoint of which only its metadata is known: what it says of its outputs, and all of them in a reply."""

from __future__ import annotations

from typing import Any

from edgeroute.cloud.base import Reply, Talk
from edgeroute.cloud.datatypes import DTYPES
from edgeroute.cloud.openinference import OpenInference
from edgeroute.system import json_loads
from edgeroute.types import TensorSpec


class Described(OpenInference):
    """A model behind the Open Inference Protocol, of which every output is read. No zeros are sent to it.

    Args:
        url: of the model.
        boxes: whether its outputs are those of a detector, which have no batch axis.
        address: as for `OpenInference`.

    Attributes:
        specs: of the outputs, by the server's metadata, after `ping`; empty: it does not describe them.
    """

    def __init__(self, url: str, *, boxes: bool = False, **address: Any) -> None:
        super().__init__(url, binary=False, kind="boxes" if boxes else "value", **address)
        self._all = True
        self.specs: tuple[TensorSpec, ...] = ()

    def _meet(self) -> Talk:
        talk = super()._meet()
        reply: Reply = yield next(talk)
        try:
            talk.send(reply)
        except StopIteration:
            kinds = _datatypes(reply)
            self.specs = tuple(TensorSpec(name, kinds.get(name, "object"), shape) for name, shape in self.outputs.items())


def _datatypes(reply: Reply) -> dict[str, str]:
    """Dtype of each output; the metadata has been read before, so it has the form that it should have."""
    return {str(t["name"]): DTYPES.get(str(t.get("datatype")), "object") for t in json_loads(reply.body).get("outputs", ())}
