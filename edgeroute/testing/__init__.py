"""Test doubles for routing: scripted models and clouds, an HTTP server with canned replies, and a faulty TCP relay.

Servers listen on 127.0.0.1 only, in a thread that ends with their `with` block.
"""

from edgeroute.testing.fakes import Answers, FakeCloud, FakeModel
from edgeroute.testing.relay import Relay
from edgeroute.testing.server import CannedServer, http_reply

__all__ = ["Answers", "CannedServer", "FakeCloud", "FakeModel", "Relay", "http_reply"]
