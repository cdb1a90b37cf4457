"""Helpers around the operating system and Python: wall clock, forks, thread pool, log, imports on first use, copies of inputs."""
