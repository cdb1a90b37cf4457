"""Web services: `lifespan`, `Errors`, `error_reply` and `while_connected`; and `InProcess`, for frameworks' HTTP clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeroute.system.late_imports_and_plugins import import_tool

if TYPE_CHECKING:
    from edgeroute.tools.server.asgi_lifespan_and_errors import Disconnected, Errors, error_reply, lifespan, while_connected
    from edgeroute.tools.server.socketless_gateway import InProcess

__all__ = ["Disconnected", "Errors", "InProcess", "error_reply", "lifespan", "while_connected"]


def __getattr__(name: str) -> Any:
    """Import the program of the web services, or of clients in the process, at the first use of a name, and return its value.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(
        import_tool("server.socketless_gateway" if name == "InProcess" else "server.asgi_lifespan_and_errors"), name
    )
    return value
