"""Statistics of examples that edge and cloud have answered: calibration, fitting a score, evaluation of a threshold."""
