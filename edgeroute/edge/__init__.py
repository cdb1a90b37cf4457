"""Models on the device: one runtime a file, imported when a model needs it."""
