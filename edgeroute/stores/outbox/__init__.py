"""Outbox (store-and-forward): unsent requests on disk, delivered later; late answers go to the app's callback."""

from __future__ import annotations

from edgeroute.stores.outbox.delivery_and_callbacks import Callbacks, Delivery
from edgeroute.stores.outbox.outbox_entries import Late, Listed, Put, Waiting
from edgeroute.stores.outbox.sqlite_queue import Outbox, Tx
from edgeroute.stores.serialisation import decode_input, encode_input

__all__ = ["Callbacks", "Delivery", "Late", "Listed", "Outbox", "Put", "Tx", "Waiting", "decode_input", "encode_input"]
