"""Recording of requests: traces, instruments, audits, drift alarms, checkpoints."""
