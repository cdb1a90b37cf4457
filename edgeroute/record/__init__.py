"""What is recorded of each request: traces, instruments, audits, drift, checkpoints."""
