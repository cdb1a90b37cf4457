"""Simulates a fleet of devices against one cloud: what an outage does to both."""
