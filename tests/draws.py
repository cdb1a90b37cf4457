"""What the fast tests leave to the slow ones: most examples of a property (all with TEST_SHARE=1), and values of a parameter."""

import os

import pytest

SHARE = float(os.environ.get("TEST_SHARE", "0.125"))


def draws(examples):
    """Returns the share of these examples that is drawn, ten at least."""
    return max(10, round(examples * SHARE))


def slow(*values):
    """Returns these values of a parameter, or rows of several parameters, each for the slow tests alone."""
    return [pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow) for value in values]
