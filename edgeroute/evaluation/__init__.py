"""Evaluation of a threshold on examples: collecting answers of edge and cloud, calibration, and statistics."""
