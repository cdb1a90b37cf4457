"""Test helpers: scripted models and clouds, a server with canned replies, a faulty relay, contracts of models and endpoints.

Servers listen on 127.0.0.1 only, in a thread that ends with their `with` block.
"""

from typing import TYPE_CHECKING, Any

from edgeroute.edge.runtimes import fresh_runtimes
from edgeroute.system.late_imports import import_tool
from edgeroute.testing.canned_server import CannedServer, chat_events, http_reply, sse_reply
from edgeroute.testing.fakes import Answers, FakeCloud, FakeModel
from edgeroute.testing.faulty_relay import Relay

if TYPE_CHECKING:
    from edgeroute.tools.contracts.edge_contract import ContractBroken, edge_contract
    from edgeroute.tools.contracts.endpoint_contract import endpoint_contract

__all__ = [
    "Answers", "CannedServer", "ContractBroken", "FakeCloud", "FakeModel", "Relay", "chat_events", "edge_contract",
    "endpoint_contract", "fresh_runtimes", "http_reply", "sse_reply",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a contract, a program of edgeroute/tools/, at its first use. Stores the value in the module."""
    if name not in __all__:
        raise AttributeError(f"module 'edgeroute.testing' has no attribute {name!r}")
    module = import_tool(f"contracts.{'endpoint' if name == 'endpoint_contract' else 'edge'}_contract")
    value = globals()[name] = getattr(module, name)
    return value
