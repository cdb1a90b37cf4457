"""An endpoint of which only its metadata is known: what it says of its outputs, and all of them in a reply."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from edgeroute.cloud.base import Reply
from edgeroute.cloud.datatypes import DTYPES
from edgeroute.cloud.openinference import OpenInference
from edgeroute.types import TensorSpec


class Described(OpenInference):
    """A model behind the Open Inference Protocol, of which every output is read. No zeros are sent to it.

    Args:
        url: of the model.
        boxes: whether its outputs are those of a detector, which have no batch axis.
        address: as for `OpenInference`.
    """

    def __init__(self, url: str, *, boxes: bool = False, **address: Any) -> None:
        super().__init__(url, binary=False, kind="boxes" if boxes else "value", **address)
        self._all = True
        self._kinds: dict[str, str] = {}

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Of the outputs, by the server's metadata, after `ping`; empty: it does not describe them."""
        return tuple(TensorSpec(name, self._kinds.get(name, "object"), shape) for name, shape in self.outputs.items())

    def _description(self, reply: Reply) -> dict[str, Any]:
        said = super()._description(reply)
        with suppress(AttributeError, KeyError, TypeError):  # what is not the protocol's is refused later
            self._kinds = {str(t["name"]): DTYPES.get(str(t.get("datatype")), "object") for t in said["outputs"]}
        return said
