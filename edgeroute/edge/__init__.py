"""Models on the device: runtimes, each imported when a model needs it; their formats, cards, inputs, runs and answers' checks."""
