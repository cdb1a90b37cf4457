"""Test helpers: scripted models and clouds, a server with canned replies, a faulty relay, contracts of models and endpoints.

Servers listen on 127.0.0.1 only, in a thread that ends with their `with` block.
"""

from edgeroute.edge.runtimes import fresh_runtimes
from edgeroute.testing.canned_server import CannedServer, chat_events, http_reply, sse_reply
from edgeroute.testing.edge_contract import ContractBroken, edge_contract
from edgeroute.testing.endpoint_contract import endpoint_contract
from edgeroute.testing.fakes import Answers, FakeCloud, FakeModel
from edgeroute.testing.faulty_relay import Relay

__all__ = [
    "Answers", "CannedServer", "ContractBroken", "FakeCloud", "FakeModel", "Relay", "chat_events", "edge_contract",
    "endpoint_contract", "fresh_runtimes", "http_reply", "sse_reply",
]  # fmt: skip
