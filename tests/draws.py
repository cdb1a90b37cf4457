"""How many examples a property is tried on: an eighth in the fast tests, all of them with TEST_SHARE=1 (`make test-all`)."""

import os

SHARE = float(os.environ.get("TEST_SHARE", "0.125"))


def draws(examples):
    """Returns the share of these examples that is drawn, ten at least."""
    return max(10, round(examples * SHARE))
