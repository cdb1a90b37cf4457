"""Calibration and evaluation as self-contained HTML: no external resources, no scripts, light and dark mode; and progress."""
