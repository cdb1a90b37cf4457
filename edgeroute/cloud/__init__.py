"""Cloud endpoints: one protocol per file, without I/O; their calls, limits, costs and retries."""
