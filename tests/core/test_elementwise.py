"""A rule's formula says the same of one device and of many."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeroute.core import endpoint_breaker_and_limits as admission
from edgeroute.core.performance_estimates_and_encoding_choice import least, most

NUMBERS = st.lists(st.floats(0, 1e4), min_size=4, max_size=4)


@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_one_or_many(rows):
    """Each formula of the breaker and the budget, element by element."""
    many = np.array(rows).T
    a, b, now, jitter = many
    for formula, arguments in (
        (least, (a, b)),
        (most, (a, b)),
        (admission.tripped, (a,)),
        (admission.open_s, (a, jitter)),
        (admission.grown_s, (a,)),
        (admission.due, (a, b, now)),
        (admission.held_until, (a, b, now)),
        (admission.affords, (a,)),
        (admission.balance_after_success, (a,)),
    ):
        each = [formula(*one) for one in zip(*[argument.tolist() for argument in arguments], strict=True)]
        assert formula(*arguments).tolist() == each
    assert admission.allowed(a < b, b, now).tolist() == [admission.allowed(*one) for one in zip(a < b, b, now, strict=True)]
