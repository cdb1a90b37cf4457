"""Answer cache: exact (memory and disk) and semantic, with stale-while-revalidate, negative caching and singleflight."""

from edgeroute.stores.cache.entry import Entry
from edgeroute.stores.cache.key import digest, fingerprint
from edgeroute.stores.cache.semantic import Semantic
from edgeroute.stores.cache.store import Cache, CacheStats, Flight, Flights, State

__all__ = ["Cache", "CacheStats", "Entry", "Flight", "Flights", "Semantic", "State", "digest", "fingerprint"]
