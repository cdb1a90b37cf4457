"""The operating system and Python: time of day, forks, threads, logs, imports on first use, copies."""
