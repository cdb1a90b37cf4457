"""Load reports in replies: the header `endpoint-load-metrics` (ORCA, Open Request Cost Aggregation), as TEXT or JSON.

> endpoint-load-metrics: TEXT application_utilization=0.83, named_metrics.queue_s=0.4
> endpoint-load-metrics: JSON {"cpu_utilization": 0.7}

Envoy and gRPC balance by it; `edgeroute serve`, the Ray export, Triton and vLLM send it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import isfinite
from typing import Any, Final

from edgeroute.core.performance_estimates_and_encoding_choice import Report
from edgeroute.system.json_codec_and_short_repr import json_loads

HEADER: Final = "endpoint-load-metrics"
ASK: Final = ("endpoint-load-metrics-format", "text")  # request header by which Triton and vLLM are asked for reports
LONGEST: Final = 2048  # maximum characters of a header to read
MOST: Final = 64  # maximum metrics of a header to read
LARGEST: Final = 1e6  # maximum value of a metric
# Metrics of utilisation: the first above 0 counts, as in gRPC's weighted round robin; the last two are Triton's and vLLM's.
_USED: Final = ("application_utilization", "cpu_utilization", "kv_cache_utilization", "kv_cache_usage_perc")


def report_in(headers: Mapping[str, str]) -> Report | None:
    """Return the load report in a reply's headers, with names in lower case; None: none, or unreadable. Never raises."""
    text = headers.get(HEADER)
    return None if text is None or len(text) > LONGEST else _report(text)


@lru_cache(256)  # a server's numbers have few digits, and to read them takes as long as to send a small request
def _report(text: str) -> Report | None:
    """Return the load report in a header's text: the first utilisation of `_USED` above 0, and the queue's wait in seconds.

    None: it has no metric of load. Cached.
    """
    metrics = _metrics(text.strip())
    used = next((value for name in _USED if (value := metrics.get(name, 0.0)) > 0), 0.0)
    queue_s = metrics.get("queue_s", 0.0)
    if not used and not queue_s and not any(name in metrics for name in (*_USED, "queue_s")):
        return None
    return Report(used, queue_s)


def _metrics(text: str) -> dict[str, float]:
    """Return the metrics of a header, in the form TEXT or JSON, by name; those of `named_metrics` without that word.

    Values that are no number from 0 to `LARGEST`, and all after the first `MOST`, are left out.
    """
    form, _, rest = text.partition(" ")
    if form.upper() == "JSON" or text.startswith("{"):
        raw_metrics = _flat(rest if form.upper() == "JSON" else text)
    else:
        pairs = (part.partition("=")[::2] for part in (rest if form.upper() == "TEXT" else text).split(","))
        raw_metrics = {name.strip(): value for name, value in pairs}
    metrics: dict[str, float] = {}
    for name, raw in list(raw_metrics.items())[:MOST]:
        value = _number(raw)
        if value is not None:
            metrics[name.removeprefix("named_metrics.")] = value
    return metrics


def _flat(text: str) -> dict[str, Any]:
    """Return the values of a JSON object by name, those of `named_metrics` among them, unchecked; {} if it is no JSON object."""
    try:
        document = json_loads(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(document, dict):
        return {}
    named = document.pop("named_metrics", None)
    return {**(named if isinstance(named, dict) else {}), **document}


def _number(cell: Any) -> float | None:
    """Return a number, or text of one, from 0 to `LARGEST` as a float; None for other values."""
    if isinstance(cell, bool) or not isinstance(cell, int | float | str) or (isinstance(cell, str) and len(cell) > 40):  # noqa: PLR2004 - longer than any number
        return None
    try:
        value = float(cell)
    except (ValueError, OverflowError):
        return None
    return value if isfinite(value) and 0 <= value <= LARGEST else None
