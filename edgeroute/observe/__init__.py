"""Observation of the router's surroundings: latencies and counts, the device's sensors, the network, the health of endpoints."""
