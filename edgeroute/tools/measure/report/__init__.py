"""Reports of calibration and evaluation as self-contained HTML without external resources or scripts; and progress bars."""
