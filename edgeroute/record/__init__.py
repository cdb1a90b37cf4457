"""Records of requests: traces, counts, metrics, spans and logs, by instruments; and a checkpoint for the next run."""
