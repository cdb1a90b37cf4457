"""Test helpers: scripted models and clouds, a server with canned replies, a faulty relay, contracts of models and endpoints.

Servers listen on 127.0.0.1 only, in a thread that ends with their `with` block.
"""

from typing import TYPE_CHECKING, Any

from edgeroute.edge.runtimes_variants_ensemble import fresh_runtimes
from edgeroute.system.late_imports_and_plugins import import_tool

if TYPE_CHECKING:
    from edgeroute.tools.contracts.canned_server import CannedServer, chat_events, http_reply, sse_reply
    from edgeroute.tools.contracts.edge_contract import ContractBroken, edge_contract
    from edgeroute.tools.contracts.endpoint_contract import endpoint_contract
    from edgeroute.tools.contracts.faulty_relay import Relay
    from edgeroute.tools.contracts.scripted_models_and_clouds import Answers, FakeCloud, FakeModel

_MODULE_OF = {
    **dict.fromkeys(("CannedServer", "chat_events", "http_reply", "sse_reply"), "canned_server"),
    **dict.fromkeys(("ContractBroken", "edge_contract"), "edge_contract"), "endpoint_contract": "endpoint_contract",
    **dict.fromkeys(("Answers", "FakeCloud", "FakeModel"), "scripted_models_and_clouds"), "Relay": "faulty_relay",
}  # fmt: skip

__all__ = [
    "Answers", "CannedServer", "ContractBroken", "FakeCloud", "FakeModel", "Relay", "chat_events", "edge_contract",
    "endpoint_contract", "fresh_runtimes", "http_reply", "sse_reply",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a helper, a program of edgeroute/tools/, at its first use. Stores the value in the module."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'edgeroute.testing' has no attribute {name!r}")
    value = globals()[name] = getattr(import_tool(f"contracts.{_MODULE_OF[name]}"), name)
    return value
