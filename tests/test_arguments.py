"""Arguments of a wrong type are refused when a router is made, with what to pass instead."""

import inspect
import threading
from pathlib import Path

import numpy as np
import pytest
from both import flat, sure, unsure

from edgeroute import (
    AsyncRouter,
    Audit,
    Cache,
    CallableModel,
    DeviceSensors,
    EdgerouteError,
    Egress,
    Function,
    Instrument,
    Limits,
    OnnxModel,
    Options,
    Outbox,
    PlainJson,
    PolicyError,
    Reading,
    Router,
    Rule,
    Semantic,
    Trace,
    Trial,
)
from edgeroute.confidence import calibrate

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


@pytest.mark.parametrize("router", [Router, AsyncRouter])
def test_an_argument_that_is_not_there(router):
    """Python's own error, also for what is a field of `Options`; there are 16."""
    assert len(inspect.signature(router).parameters) == 16
    with pytest.raises(TypeError, match="unexpected keyword argument 'rules'"):
        router(unsure, sure, threshold=0.5, rules=[])


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


HUGE_SETTINGS = [
    *((Limits, name, {}) for name in Limits._fields),
    *((Audit, name, {"share": 0.1}) for name in ("share", "scene")),
    *((Rule, name, {"of": "heat", "then": "only_edge", "enter": 80}) for name in ("enter", "leave", "hold_s")),
    *((Trial, name, {"edge": sure}) for name in Trial._fields if name not in {"device", "salt"}),
]


@pytest.mark.parametrize(
    ("kind", "name", "others"), HUGE_SETTINGS, ids=[f"{kind.__name__}.{name}" for kind, name, _ in HUGE_SETTINGS]
)
@pytest.mark.parametrize("value", [10**400, -(10**400)], ids=["huge", "least"])
def test_a_setting_above_any_float(kind, name, others, value):
    """It is a mistake that is told, like any other number out of range."""
    setting = kind(**{**others, name: value})
    options = {"rules": [setting], "sensors": Reading} if kind is Rule else {}
    arguments = {} if kind is Rule else {kind.__name__.lower(): setting}
    with pytest.raises(PolicyError):
        Router(sure, sure, threshold=0.5, options=Options(**options), **arguments)


@pytest.mark.parametrize(
    "name", [name for name in Options._fields if name not in {"parts", "instruments", "rules", "views", "sensors"}]
)
def test_an_option_above_any_float(name):
    """Nor is one: whatever it takes, that is none of it."""
    with pytest.raises(PolicyError):
        Router(sure, sure, threshold=0.5, options=Options(**{name: 10**400}))


@pytest.mark.parametrize(
    "call",
    [
        lambda: DeviceSensors(fresh_s=10**400), lambda: DeviceSensors(every_s=10**400), lambda: calibrate(np.ones(9), np.ones(9, bool), max_error=10**400),
        lambda: calibrate(np.ones(9), np.ones(9, bool), max_error=0.1, sure=10**400), lambda: CallableModel(sure, parallel=10**400),
        lambda: Router(sure, sure, threshold=[10**400]), lambda: Router(sure, sure, threshold=0.5, deadline=10**400),
        lambda: OnnxModel("m.onnx", threads=10**400).load(), lambda: PlainJson("http://127.0.0.1:9", timeout_s=10**400),
    ],
)  # fmt: skip
def test_an_argument_above_any_float(call):
    """Of a model, an endpoint, the sensors and a calibration."""
    with pytest.raises(EdgerouteError):
        Router(call(), sure, threshold=0.5)
