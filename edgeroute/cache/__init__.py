"""Answers kept for inputs that come again: in memory, on disk, and by meaning; and one asker for many that ask at once."""

from edgeroute.cache.entry import Entry
from edgeroute.cache.fingerprint import fingerprint
from edgeroute.cache.flight import Flight, Flights
from edgeroute.cache.key import digest
from edgeroute.cache.semantic import Semantic
from edgeroute.cache.store import Cache, CacheStats, State

__all__ = ["Cache", "CacheStats", "Entry", "Flight", "Flights", "Semantic", "State", "digest", "fingerprint"]
