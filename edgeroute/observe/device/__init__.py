"""Readers of a device's sensors, one subject a file: batteries and power; load, memory and GPU; heat; phones and desktops."""
