"""`/metrics` of the dashboard: the same numbers as the instrument has in the router's own process, by Prometheus' own parser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from commands import started
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st
from watched import LONG, Records, monitor_of, page_of

from edgeroute import Cache, Function, Limits, Options, Reading, Router, Rule, Unreachable
from edgeroute.core.reason_text_and_trace_record import CODES
from edgeroute.errors import Unfit
from edgeroute.tools.dashboard.dashboard_data_and_tail import OLD_S, Monitor

pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families as parsed

from edgeroute import Prometheus, metrics
from edgeroute.record.prometheus import shown
from edgeroute.tools.dashboard.web_app_and_metrics import metrics_route
from edgeroute.tools.dashboard.web_app_and_metrics import page_of as page_of_metrics

ROOT = Path(__file__).parents[1]
TIMES = ("_seconds", "_bucket", "_sum", "age_seconds")
"""What is rounded in a trace, or measured anew at each scrape."""


def samples(text):
    """Sample -> value, as Prometheus reads them."""
    found = {}
    for family in parsed(text):
        for sample in family.samples:
            key = (sample.name, *sorted(sample.labels.items()))
            assert key not in found, "Prometheus refuses what is there twice"
            found[key] = sample.value
    return found


def of_records(records, **told):
    """Those of a dashboard that has read these records."""
    return samples(shown(page_of_metrics(monitor_of(records, **told))).body.decode())


def edge(x):
    """Says how sure it is; some inputs it does not take."""
    if x < 0:
        raise Unfit("too long", code="context") if x == -1 else RuntimeError("broken")
    return ("edge", x)


def cloud(x):
    """Answers, but for less than 0.1, unless it is negative."""
    if 0 <= x < 0.1:
        raise Unreachable("gone")
    return ("cloud", 0.9)


def test_it_has_the_numbers_of_the_instrument():
    """Under the same names and labels, of single requests, batches, failures, what was held, the cache, and the device."""
    records = []
    with Router(edge, Function(cloud, usd_per_call=0.25), threshold=0.5, trace=records.append, cache=Cache(), limits=Limits(calls_per_minute=6), options=Options(sensors=lambda: Reading(battery=0.1, mains=False), instruments=[Prometheus()], rules=[Rule("battery", "prefer_edge", enter=0.2)])) as router:  # fmt: skip
        for x in (0.9, 0.2, 0.2, 0.05, 0, 0.6, -1, 0.03, -2, 0.95, 0.4):
            router.infer(x)  # who gets an exception is not in a trace
        router.infer_many([0.7, 0.3, 0.35, 0.71])
        own = samples(metrics(router).body.decode())
    found = of_records(records)
    assert {key[0] for key in own} - {key[0] for key in found} <= {
        *(f"edgeroute_{name}" for name in ("queued_total", "late_total", "spared_total", "spent", "limit", "attempts_total")),
        *(f"edgeroute_attempt_duration_seconds_{part}" for part in ("bucket", "sum", "count")),
        "edgeroute_call_joules", "edgeroute_link_seconds", "edgeroute_device_reading_age_seconds",
    }  # fmt: skip
    names = {key[0] for key in found} & {key[0] for key in own}
    both = [{key for key in page if key[0] in names} for page in (found, own)]
    assert both[0] == both[1], "a series that one of them lacks"
    alike = {key for key in both[0] if not key[0].endswith(TIMES)}
    assert {
        "edgeroute_requests_total", "edgeroute_held_total", "edgeroute_deferral_ratio", "edgeroute_routed_total",
        "edgeroute_cached_total", "edgeroute_degraded_total", "edgeroute_sent_bytes_total", "edgeroute_leg_runs_total",
        "edgeroute_leg_duration_seconds_count", "edgeroute_request_duration_seconds_count", "edgeroute_rule",
        "edgeroute_device_battery_ratio", "edgeroute_breaker",
    } <= names  # fmt: skip
    assert {key: found[key] for key in alike} == {key: own[key] for key in alike}


def test_a_rule_is_in_force_as_long_as_the_trace_is_fresh():
    """An old record does not say what is in force now; a state that has it does."""
    records = []
    with Router(edge, cloud, threshold=0.5, trace=records.append, options=Options(sensors=lambda: Reading(battery=0.1, mains=False), rules=[Rule("battery", "prefer_edge", enter=0.2)])) as router:  # fmt: skip
        router.infer(0.9)
    (record,) = records
    (rule,) = [key for key in of_records([record]) if key[0] == "edgeroute_rule"]
    old = {**record, "at": record["at"] - OLD_S - 1}
    assert not [key for key in of_records([old]) if key[0] == "edgeroute_rule"]
    assert not [key for key in of_records([]) if key[0] == "edgeroute_rule"]
    told = {"in_force": [dict(rule[1:])["rule"]]}
    assert rule in of_records([old], state=lambda: told)


def test_what_a_stale_answer_hides():
    """As docs/dashboard.md says under "Not there": the record is the cache's, and says nothing of the walk before."""
    records, away = [], []

    def asked(x):
        if away:
            raise Unreachable("gone")
        return "cloud", 0.9

    with Router(
        edge, Function(asked), threshold=0.5, trace=records.append, options=Options(instruments=[Prometheus()]), cache=Cache(ttl_s=0), offline="stale"
    ) as router:  # fmt: skip
        router.infer(0.2)
        away.append(True)
        assert [router.infer(0.2).source for _ in range(2)] == ["stale", "stale"]
        own = samples(metrics(router).body.decode())
    found = of_records(records)
    shared = {key for key in found.keys() & own.keys() if not key[0].endswith(TIMES)}
    lower = {key[0] for key in shared if found[key] != own[key]}
    assert lower == {"edgeroute_routed_total", "edgeroute_deferred_total", "edgeroute_leg_runs_total"}
    assert all(found[key] < own[key] for key in shared if found[key] != own[key])


def test_what_a_state_folder_says(tmp_path):
    """Budgets, the outbox and alarms, as `edgeroute status` has them; without one they are left out, and not 0."""
    records = []
    with Router(edge, Function(cloud, usd_per_call=0.25), threshold=0.5, trace=records.append) as router:
        router.infer(0.2)
    state = {
        "spent": {"usd_per_day": {"spent": 0.25, "limit": 9.0}, "mb_per_day": {"spent": 0.5, "limit": None}},
        "outbox": {"waiting": 2, "bytes": 100, "sent": 1}, "joules": {"edge": 0.5}, "link": {"cloud": {"call_s": 0.1, "bytes_per_s": None}},
        "edges": [{"target": "edge", "audited": 7, "disagreed": 1, "limit": 0.1, "evidence": "inf", "alarm": {"what": "drift"}}],
    }  # fmt: skip
    none, found = of_records(records), of_records(records, state=lambda: state)
    assert {key[0] for key in found} - {key[0] for key in none} == {
        f"edgeroute_{name}" for name in (
            "spent", "limit", "outbox_waiting", "outbox_bytes", "outbox_total", "call_joules", "link_seconds", "audited_total",
            "disagreed_total", "drift_evidence", "drift_alarm",
        )
    }  # fmt: skip
    assert found["edgeroute_spent", ("limit", "usd_per_day"), ("router", "")] == 0.25
    assert found["edgeroute_drift_alarm", ("leg", "edge"), ("router", "")] == 1
    assert found["edgeroute_usd_total", ("leg", "cloud"), ("router", "")] == 0.25


def test_the_dashboard_of_grafana():
    """Has its metrics here, but those of attempts, tokens, and what a device does not have."""
    asked = set(re.findall(r"edgeroute_\w+", (ROOT / "examples/grafana.json").read_text()))
    state = {
        "spent": {"usd_per_day": {"spent": 0.25, "limit": 9.0}}, "outbox": {"waiting": 2}, "edges": [
        {"target": "edge", "audited": 7, "disagreed": 1, "limit": 0.1, "evidence": 1.0, "alarm": None}],
    }  # fmt: skip
    records = []
    with Router(edge, cloud, threshold=0.5, trace=records.append, limits=Limits(calls_per_minute=1), options=Options(sensors=lambda: Reading(battery=0.1, temperature_c=40.0, power_w=3.0, mains=False), rules=[Rule("battery", "prefer_edge", enter=0.2)])) as router:  # fmt: skip
        for x in (0.9, 0.2, 0.3):
            router.infer(x)
    there = {key[0] for key in of_records(records, state=lambda: state)}
    assert asked - there == {"edgeroute_attempts_total", "edgeroute_tokens_total"}


@settings(max_examples=draws(60), deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "reason_code": st.one_of(st.text(max_size=3), st.integers(), st.lists(st.none()), st.just("below")),
            "answered_by": st.sampled_from(["a", "cache", None, "stale"]),
            "leg": st.one_of(st.text(max_size=3), st.integers(), st.just("\ud800")),
            "reading": st.one_of(st.none(), st.dictionaries(st.sampled_from(["battery", "age_s", "cpu", "x"]), st.one_of(
                st.text(max_size=2), st.floats(), st.integers(), st.just(10**400)))),
            "plan": st.just([{"leg": "a", "side": "moon", "threshold": None, "label": ""}]),
            "events": st.just([{"what": "start", "leg": "a", "at_s": 0}, {"what": "accepted", "leg": "a", "at_s": 0.1}]),
            "accepted": st.booleans(),
        },
    )
)  # fmt: skip
def test_a_record_may_say_anything(record):
    """The page is one that Prometheus reads, with reasons of the list alone."""
    feed = Records([{"at": 1e9, "latency_s": 0.1, "id": "1", **record}])
    monitor = Monitor(feed)
    monitor.read()
    found = samples(shown(page_of_metrics(monitor)).body.decode())
    assert {value for key in found for name, value in key[1:] if name == "reason"} <= CODES


def test_who_may_scrape(tmp_path):
    """Behind the token as everything else; OpenMetrics if it is asked for; without the option there is nothing."""
    records = []
    with Router(edge, cloud, threshold=0.5, trace=records.append) as router:
        router.infer(0.9)
    monitor = Monitor(Records(records))
    with page_of(monitor, routes=[metrics_route(monitor)]) as address, httpx.Client(timeout=LONG) as client:
        url, _, token = address.partition("/#token=")
        assert client.get(f"{url}/metrics").status_code == 401
        right = {"Authorization": f"Bearer {token}"}
        reply = client.get(f"{url}/metrics", headers=right)
        assert 'edgeroute_routed_total{router=""} 1.0' in reply.text.splitlines()
        assert client.get(f"{url}/metrics", headers={**right, "Origin": "http://evil.example"}).status_code == 403
        assert client.get(f"{url}/metrics", headers={**right, "Host": "evil.example"}).status_code == 421
        reply = client.get(f"{url}/metrics", headers={**right, "Accept": "application/openmetrics-text; version=1.0.0"})
        assert reply.headers["content-type"].startswith("application/openmetrics-text")
    with page_of(Monitor(Records())) as address:
        url, _, token = address.partition("/#token=")
        assert httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=LONG).status_code == 404


def test_the_command(tmp_path):
    """Follows a trace that a router in another process writes."""
    path = tmp_path / "trace.jsonl"
    with Router(edge, cloud, threshold=0.5, trace=path) as router:
        router.infer(0.9)
        router.infer(0.2)
    with started("dashboard", "--record", path, "--metrics") as (_, address):
        url, _, token = address.partition("/#token=")
        text = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, timeout=LONG).text
    found = samples(text)
    below = ("degraded", "false"), ("leg", "cloud"), ("reason", "below"), ("router", ""), ("source", "cloud")
    assert found[("edgeroute_requests_total", *below)] == 1
    assert found["edgeroute_deferral_ratio", ("router", "")] == 0.5
    assert json.loads(path.read_text().splitlines()[1])["reason_code"] == "below"
