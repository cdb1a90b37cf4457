"""Instruments that record requests: traces, counts, metrics, spans and logs; and a checkpoint for the next run."""
