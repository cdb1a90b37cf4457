"""Answers kept for inputs that come again: in memory, on disk, and by meaning; and one asker for many that ask at once."""

from edgeroute.stores.cache.entry import Entry
from edgeroute.stores.cache.fingerprint import fingerprint
from edgeroute.stores.cache.key import digest
from edgeroute.stores.cache.semantic import Semantic
from edgeroute.stores.cache.singleflight import Flight, Flights
from edgeroute.stores.cache.store import Cache, CacheStats, State

__all__ = ["Cache", "CacheStats", "Entry", "Flight", "Flights", "Semantic", "State", "digest", "fingerprint"]
