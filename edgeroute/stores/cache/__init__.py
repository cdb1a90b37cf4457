"""Answer cache: exact (memory and disk) and semantic, with stale-while-revalidate, negative caching and singleflight."""

from edgeroute.stores.cache.answer_cache_and_singleflight import Cache, CacheStats, Flight, Flights, State
from edgeroute.stores.cache.cache_entries_and_copies import Entry
from edgeroute.stores.cache.input_keys_and_fingerprints import digest, fingerprint
from edgeroute.stores.cache.semantic_cache import Semantic

__all__ = ["Cache", "CacheStats", "Entry", "Flight", "Flights", "Semantic", "State", "digest", "fingerprint"]
