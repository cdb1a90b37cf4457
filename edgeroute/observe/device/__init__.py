"""Readers of a device's sensors, one subject a file: battery and power, load and memory, heat and throttling, GPU, network."""
