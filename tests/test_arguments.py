"""Arguments of a wrong type are refused when a router is made, with what to pass instead."""

import threading
from pathlib import Path

import numpy as np
import pytest
from both import flat, sure, unsure

from edgeroute import (
    AsyncRouter,
    Audit,
    Cache,
    Egress,
    Function,
    Instrument,
    Limits,
    Outbox,
    PlainJson,
    PolicyError,
    Router,
    Semantic,
    Trace,
)

KINDS = {"audit": Audit, "cache": Cache, "egress": Egress, "limits": Limits, "outbox": Outbox}
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
    threads = set(threading.enumerate())
    with pytest.raises(PolicyError, match=f"^{name}= takes .*, not ") as e:
        router(unsure, sure, **flat(threshold=0.5, **{name: value}))
    assert name not in KINDS or f"{name}={KINDS[name].__name__}(...)" in str(e.value)
    assert not set(threading.enumerate()) - threads


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
        with Router(unsure, sure, **flat(threshold=0.5, **given, **more)):
            pass


NAN, INF, HUGE = float("nan"), float("inf"), 10**5000


def function(**terms):
    """A cloud with these terms."""
    return Function(sure, **terms)


def address(**options):
    """Another, over HTTP."""
    return PlainJson("http://127.0.0.1:9", **options)


def semantic(**options):
    """A semantic cache."""
    return Semantic(len, **options)


def outbox(**options):
    """An outbox, whose file is never made."""
    return Outbox("never", **options)


def traced(**options):
    """A trace."""
    return Trace(print, **options)


def limited(**limits):
    """A router with limits."""
    Router(unsure, sure, threshold=0.5, limits=Limits(**limits)).close()


def audited(share):
    """A router that audits."""
    Router(unsure, sure, threshold=0.5, audit=Audit(share)).close()


PRICES = ("usd_per_call", "usd_per_mb", "joules_per_call", "joules_per_mb")
NONE = (NAN, -1, True, "5", HUGE, -HUGE)
"""No number is any of these; an unset one is left out and is not None."""
NUMBERS = [
    *((make, name, (*NONE, None, INF), (0, 0.5, np.float32(2))) for make in (function, address) for name in PRICES),
    (function, "calls_per_s", (*NONE, None, 0), (0.01, INF)),
    (function, "max_concurrent", (*NONE, None, 0, 1.5, INF), (1, np.int64(3))),
    (address, "timeout_s", (*NONE, None, 0, INF), (0.1, 10)),
    (address, "retries", (*NONE, None, 0.5, INF), (0, 2)),
    (address, "max_reply_bytes", (*NONE, None, 0, 0.5, INF), (1, 1 << 20)),
    *((limited, name, (*NONE, None), (0, 0.5, INF)) for name in Limits._fields),
    (audited, "share", (*NONE, None, 1.5, INF), (0, 0.5, 1)),
    *((Cache, name, (*NONE, None, 0.5, INF), (0, 1 << 20)) for name in ("max_bytes", "disk_max_bytes")),
    *(
        (Cache, name, (*NONE, None), (0, 0.5, INF))
        for name in ("ttl_s", "stale_while_revalidate_s", "stale_if_offline_s", "negative_ttl_s")
    ),
    (semantic, "threshold", (NAN, -2, True, "5", HUGE, None, 1.5), (-1, 0.9, 1)),
    (semantic, "max_entries", (*NONE, None, 0, 1.5, INF), (1, 100)),
    (semantic, "ttl_s", (*NONE, None), (0, 0.5, INF)),
    (outbox, "max_bytes", (*NONE, None, 0.5, INF), (0, 1 << 20)),
    (outbox, "ttl_s", (*NONE, None), (0, 0.5, INF)),
    (outbox, "parallel", (*NONE, None, 0, 1.5, INF), (1, 2)),
    (outbox, "rate_per_s", (*NONE, None, 0), (0.1, INF)),
    (outbox, "spread_s", (*NONE, None, INF), (0, 0.5)),
    (traced, "sample", (*NONE, None, 1.5, INF), (0, 0.5, 1)),
    (traced, "max_bytes", (*NONE, None, 0, 0.5, INF), (1, 1 << 20)),
    (traced, "keep", (*NONE, None, 0, 0.5, INF), (1, 4)),
]


@pytest.mark.parametrize(("make", "name", "wrong", "right"), NUMBERS)
def test_numbers_that_cannot_be(make, name, wrong, right):
    """Refused as it is made, as a policy file refuses them: a price of NaN would switch off each limit that it is booked under."""
    for value in wrong:
        with pytest.raises(PolicyError, match=rf"\b{name}= takes a (whole )?number.*, not ") as told:
            make(**{name: value})
        assert len(str(told.value)) < 120
    for value in right:
        make(**{name: value})


def test_paths_may_be_text(tmp_path):
    """Wherever a file or a folder is named."""
    for disk in (tmp_path / "a" / "cache.db", str(tmp_path / "b" / "cache.db")):
        with Router(
            unsure, sure, threshold=0.5, cache=Cache(disk=disk), state=str(tmp_path), trace=str(tmp_path / "t")
        ) as router:
            assert router.infer(1).source == "cloud"
        assert (tmp_path / "t").stat().st_size
    assert Path(disk).exists()
