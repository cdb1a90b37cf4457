"""Arguments of a wrong type are refused when a router is made, with what to pass instead."""

import threading

import pytest
from both import sure, unsure

from edgeroute import AsyncRouter, Audit, Cache, Egress, Instrument, Limits, Outbox, PolicyError, Router, Saver
from edgeroute.record.trace import Trace

KINDS = {"audit": Audit, "cache": Cache, "egress": Egress, "limits": Limits, "outbox": Outbox, "saver": Saver}
WRONG = [
    *((name, value) for name in KINDS for value in (True, 1, {"a": 1}, object())),
    *KINDS.items(),  # the class, and not one of it
    *(("trace", value) for value in (True, 1, {"a": 1}, Instrument())),
    *(("instruments", value) for value in (True, "x", Instrument(), {"a": 1}, [1], [Instrument], iter([]))),
    *(("metered", value) for value in (1, "yes")),
    *(("sensors", value) for value in (True, {"battery": 1})),
    *(("state", value) for value in (True, 1)),
]


@pytest.mark.parametrize("router", [Router, AsyncRouter])
@pytest.mark.parametrize(("name", "value"), WRONG)
def test_an_argument_of_a_wrong_type(router, name, value):
    """The message names the argument and what it takes; nothing has begun."""
    threads = threading.active_count()
    with pytest.raises(PolicyError, match=f"^{name}= takes .*, not ") as e:
        router(unsure, sure, threshold=0.5, **{name: value})
    assert name not in KINDS or f"{name}={KINDS[name].__name__}(...)" in str(e.value)
    assert threading.active_count() == threads


def test_what_is_wrong_is_not_quoted():
    """It may hold secrets."""
    with pytest.raises(PolicyError, match="not dict") as e:
        Router(unsure, sure, threshold=0.5, egress={"api_key": "very-secret"})
    assert "secret" not in str(e.value)


class Half:
    """An instrument that hears one kind of event."""

    def request_ended(self, ended):
        """Nothing."""


def test_arguments_of_the_right_types(tmp_path):
    """Objects, functions, paths, and instruments of one's own kind."""
    given = {"audit": Audit(), "cache": Cache(), "egress": Egress(), "limits": Limits(), "outbox": Outbox(tmp_path / "o.db")}
    for trace in (print, "trace.jsonl", tmp_path / "trace.jsonl", Trace(print)):
        more = {"trace": trace, "instruments": (Half(),), "metered": bool, "sensors": None, "state": str(tmp_path / "state")}
        with Router(unsure, sure, threshold=0.5, saver=Saver(), **given, **more):
            pass
