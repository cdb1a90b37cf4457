"""Checks the types of a router's arguments, so that a wrong one fails at construction and not later inside a call."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any

from edgeroute.core.policy import INF
from edgeroute.errors import PolicyError, check_number
from edgeroute.record.instruments import Instrument
from edgeroute.record.trace import Trace

CLASSES: Mapping[str, tuple[str, str]] = {
    "audit": ("edgeroute.record.drift_monitor", "Audit"),
    "cache": ("edgeroute.stores.cache", "Cache"),
    "egress": ("edgeroute.cloud.egress", "Egress"),
    "limits": ("edgeroute.core.spending", "Limits"),
    "outbox": ("edgeroute.stores.outbox", "Outbox"),
    "saver": ("edgeroute.core.policy", "Saver"),
}
"""Argument -> module and name of its class, imported only if it is given."""
EVENTS = [name for name in vars(Instrument) if not name.startswith("_")]


def check_types(given: Mapping[str, Any]) -> None:
    """Checks those of the arguments that are given; None is an argument that is not.

    Raises:
        PolicyError: one has the wrong type; the message says what to pass.
    """
    for name, (module, kind) in CLASSES.items():
        value = given.get(name)
        if value is not None and not isinstance(value, getattr(import_module(module), kind)):
            raise _wrong(name, f"an edgeroute.{kind}, as in {name}={kind}(...)", value)
    _check_numbers(given)
    trace, metered, sensors, state = (given.get(name) for name in ("trace", "metered", "sensors", "state"))
    if not (trace is None or callable(trace) or isinstance(trace, str | os.PathLike | Trace)):
        raise _wrong("trace", "a function, the path of a file, or an edgeroute.Trace", trace)
    if not (metered is None or callable(metered) or isinstance(metered, bool)):
        raise _wrong("metered", "True, False, or a function that returns either", metered)
    if not (sensors is None or callable(sensors)):
        raise _wrong("sensors", "a function that returns a Reading", sensors)
    if not (state is None or isinstance(state, str | os.PathLike)):
        raise _wrong("state", "the path of a folder", state)
    instruments = given.get("instruments", ())
    if not isinstance(instruments, Collection) or isinstance(instruments, str | bytes | Mapping):
        raise _wrong("instruments", "a list of instruments", instruments)
    for one in instruments:
        if isinstance(one, type) or not any(hasattr(one, event) for event in EVENTS):
            raise _wrong("instruments", "a list of instruments, objects with methods as edgeroute.Instrument has", one)


def _check_numbers(given: Mapping[str, Any]) -> None:
    """Checks the numbers in plain data, which cannot refuse them itself."""
    limits, audit, saver = (given.get(name) for name in ("limits", "audit", "saver"))
    for name, value in ({} if limits is None else limits._asdict()).items():
        check_number(f"limits: {name}", value, infinite=True)
    if audit is not None:
        check_number("audit: share", audit.share, most=1)
    if saver is not None:
        check_number("saver: battery_below", saver.battery_below, most=1)
        check_number("saver: hotter_than_c", saver.hotter_than_c, least=-INF, infinite=True)


def _wrong(name: str, wanted: str, value: Any) -> PolicyError:
    found = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__  # not quoted: it may hold secrets
    return PolicyError(f"{name}= takes {wanted}, not {value if isinstance(value, bool) else found}")
