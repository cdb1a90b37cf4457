"""Evaluation report as one self-contained HTML file: no external resources, no scripts, light and dark mode."""
