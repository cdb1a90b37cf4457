"""Simulation of a fleet: many devices against one cloud, through an outage."""
