"""Calibration of a deferral threshold, fitting of a score, and evaluation, from examples that edge and cloud have answered."""
