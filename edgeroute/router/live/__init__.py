"""Live sources: frames and audio, answered as they come."""
