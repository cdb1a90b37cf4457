"""A campaign over forms of conversations: roles, parts, pictures, calls, answers, order and containers."""

import pytest
import talks


def test_forms_of_conversations_that_stay():
    """A few hundred; what has nothing of them leaves."""
    assert talks.run(3, range(300)) == ([], [])


@pytest.mark.slow
def test_ten_thousand_forms_of_conversations_that_stay():
    """The same, with others."""
    assert talks.run(4, range(10_000)) == ([], [])
