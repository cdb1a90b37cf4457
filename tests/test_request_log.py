"""Log records of requests, and records as JSON: ids, codes and times, and no text of anybody."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys

import httpx
import pytest
from both import sure
from commands import ROOT, started

from edgeroute import BadInput, Options, RequestLog, Router
from edgeroute.record.structured_logging import JsonFormatter
from edgeroute.testing import FakeCloud

SECRET = "a-text-of-the-user"
WAIT = 60


def made(record):
    return json.loads(JsonFormatter().format(record))


def test_a_record_for_each_request(caplog):
    """With its id, source, reason and time as fields; an error with its code."""
    caplog.set_level(logging.INFO, "edgeroute.requests")

    def edge(x):
        if x == "bad":
            raise BadInput(SECRET)
        return x, 0.1

    with Router(edge, FakeCloud([SECRET, OSError(SECRET)]), threshold=0.5, options=Options(instruments=[RequestLog()])) as router:
        answers = [router.infer(SECRET), router.infer(SECRET)]
        with pytest.raises(BadInput):
            router.infer("bad")
    lines = [made(record) for record in caplog.records if record.name == "edgeroute.requests"]
    assert [line.get("request") for line in lines[:2]] == [answer.id for answer in answers]
    assert [(line.get("source"), line.get("reason"), line.get("error")) for line in lines] == [
        ("cloud", "below", None), ("edge", "failed", None), (None, None, "bad_input"),
    ]  # fmt: skip
    assert (lines[0]["level"], lines[0]["message"], lines[1]["degraded"]) == ("info", "answered by cloud: below", True)
    assert lines[0]["latency_s"] > 0
    assert SECRET not in json.dumps(lines)


def test_a_level_that_is_off(caplog):
    """Nothing is made of the request then."""
    caplog.set_level(logging.WARNING, "edgeroute.requests")
    with Router(sure, None, options=Options(instruments=[RequestLog()])) as router:
        router.infer("x")
    assert not caplog.records


def test_any_record_as_json():
    """On one line, whatever is in it; fields that nobody knows are left out, tracebacks are a text."""
    record = logging.LogRecord("other", logging.ERROR, __file__, 1, "two\nlines \x1b[31m %s", (float("nan"),), None)
    record.password = SECRET
    record.confidence = 0.5
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["confidence"]) == ("error", "other", 0.5)
    assert "\x1b" not in found["message"]
    assert SECRET not in line
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        failed = logging.LogRecord("edgeroute", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    assert made(failed)["traceback"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize("confidence", [float("nan"), None])
def test_a_confidence_that_json_lacks(caplog, confidence):
    """Is left out: NaN would be no JSON."""
    caplog.set_level(logging.INFO, "edgeroute.requests")
    with Router(lambda _: ("a", confidence), None, options=Options(instruments=[RequestLog()])) as router:
        router.infer("x")
    assert "confidence" not in made(caplog.records[-1])


def ended(process):
    """The records of requests in its log, once it has ended."""
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=WAIT)
    return [found for line in err.splitlines() if (found := json.loads(line))["logger"] == "edgeroute.requests"]


TEXT = """
import logging
from edgeroute import Options, RequestLog, Router
from edgeroute.tools.cli.tables_and_options import set_up_logging
set_up_logging("text")
with Router(lambda _: ("ok", 0.9), options=Options(instruments=[RequestLog()])) as router:
    print(router.infer(0).id)
logging.getLogger("edgeroute").warning("no request")
"""


def test_as_text():
    """`--log text` has the request's id at the end of its line; other records have none."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", TEXT], check=True, capture_output=True, text=True, timeout=WAIT, env=env)
    first, second = done.stderr.splitlines()
    assert first.endswith(f" {done.stdout.strip()}")
    assert second.rstrip().endswith("WARNING edgeroute no request")


ROW = {"inputs": [{"name": "image", "datatype": "UINT8", "shape": [1, 28, 28], "data": [0] * 784}]}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_commands_that_serve(tmp_path, fashion):
    """A device's gateway and the server that it asks log the same id, as JSON; and both have metrics."""
    pytest.importorskip("prometheus_client")
    policy = tmp_path / "policy.toml"
    logs, model = ("--log", "json", "--metrics"), "fashion-large"
    with started("serve", "fashion", *logs) as (server, cloud):
        edge = (fashion / "edge.int8.onnx").as_posix()
        policy.write_text(
            f'mode = "prefer_cloud"\n[edge]\npath = "{edge}"\n[cloud]\nurl = "{cloud}/v2/models/{model}"\ntimeout = "60s"\n'
        )
        with started("gateway", "--policy", policy, *logs) as (gateway, url):
            reply = httpx.post(f"{url}/v2/models/policy/infer", json=ROW, timeout=WAIT)
            assert (reply.status_code, reply.headers["x-edgeroute-source"]) == (200, "cloud")
            assert "edgeroute_request_duration_seconds_bucket" in httpx.get(f"{url}/metrics", timeout=WAIT).text
            (asked,) = ended(gateway)
        assert "edgeroute_serve_inferences_total" in httpx.get(f"{cloud}/metrics", timeout=WAIT).text
        served = ended(server)[-1]
    assert (asked["source"], asked["reason"], served["model"], served["status"]) == ("cloud", "first", model, 200)
    assert served["request"].partition("/")[0] == asked["request"]
