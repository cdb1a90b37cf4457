"""What is observed: latencies and counts, sensors, the network, the health of endpoints."""
