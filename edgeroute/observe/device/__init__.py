"""What a device tells of itself, one concern a file: battery, load, memory, heat, throttling, GPU, power, network."""
