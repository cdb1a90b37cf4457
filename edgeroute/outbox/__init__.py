"""Requests that could not be sent: kept on disk, delivered later, their answers given to the app."""

from __future__ import annotations

from edgeroute.outbox.delivery import Delivery
from edgeroute.outbox.entries import Late, Listed, Put, Waiting
from edgeroute.outbox.inputs import decode_input, encode_input
from edgeroute.outbox.late import Callbacks
from edgeroute.outbox.store import Outbox
from edgeroute.outbox.tx import Tx

__all__ = ["Callbacks", "Delivery", "Late", "Listed", "Outbox", "Put", "Tx", "Waiting", "decode_input", "encode_input"]
