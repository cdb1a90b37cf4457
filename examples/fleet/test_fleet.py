"""The example as it stands, with 80 devices: the better policy reaches them, the bad one stops, fog raises the alarm."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from page import html

HERE = Path(__file__).parent
lacking = [
    name for name in ("duckdb", "moto", "obstore", "paho", "pyarrow", "securesystemslib", "tuf") if find_spec(name) is None
]
pytestmark = pytest.mark.skipif(bool(lacking), reason=f"not installed: {lacking}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What main.py writes: the results, and the page."""
    out = tmp_path_factory.mktemp("fleet")
    command = [sys.executable, HERE / "main.py", "--devices", "80", "--rings", "25%,50%,100%", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "fleet.json").read_text()), (out / "index.html").read_text()


def test_each_digest_arrives(run):
    """By the bucket and by the broker; a day whose audits ended late is told twice, and counts once."""
    result, _ = run
    assert [day["waiting"] for day in result["days"]] == [0] * len(result["days"])
    assert all(day["added"] >= result["devices"] for day in result["days"])
    requests = sum(numbers[1] for day in result["days"] for numbers in day["policies"].values())
    assert requests == 24 * result["devices"] * len(result["days"])


def test_the_better_policy_reaches_all(run):
    """Ring by ring."""
    result, _ = run
    reach = [day["policies"].get("shop-2", [0])[0] for day in result["days"][: result["bad"]]]
    assert reach[0] == 0
    assert 0 < reach[result["good"]] < result["devices"] / 2
    assert reach[-1] == result["devices"]


def test_the_bad_policy_stops_in_its_first_ring(run):
    """It is halted or rolled back before a second ring, and the contents before are back on all devices."""
    result, _ = run
    steps = [day["step"]["did"] for day in result["days"][result["bad"] :]]
    stopped = next(i for i, step in enumerate(steps) if step in {"halt", "roll_back"})
    assert "go_on" not in steps[:stopped]
    reach = max(day["policies"].get("shop-3", [0])[0] for day in result["days"])
    assert 0 < reach < result["devices"] / 2
    assert "shop-3" not in result["days"][-1]["policies"]


def test_fog_raises_the_alarm(run):
    """Not before there is fog."""
    result, _ = run
    alarms = [day["day"] for day in result["days"] if day["alarm"]["alarm"]]
    assert alarms
    assert min(alarms) >= result["drift"]


def test_the_models_are_identified(run):
    """By digits after their names, so that another model under the same name would be another one."""
    result, _ = run
    models = {stream["model"] for stream in result["days"][-1]["alarm"]["streams"]}
    assert models
    assert all(re.fullmatch(r"[\w-]+:[0-9a-f]{12}", model) for model in models), models


def test_the_page_shows_each(run):
    """Three drawings, and the events in words."""
    _, page = run
    assert page.count("<svg") == 3
    assert all(words in page for words in ("better policy", "bad policy", "go on: ", "ALARM: ", "fog"))


def test_an_outage_is_on_the_page():
    """Devices whose digest waits are on top of the bar of that day, in the palette's colour and words, and in the list."""
    usual = {"alarm": {"streams": []}, "step": {"did": "wait", "text": ""}, "sites": {"plant-1": [10, 1]}, "waiting": 0}
    days = [{**usual, "day": day, "added": 20, "policies": {"shop-1": [20, 480, 48]}} for day in range(4)]
    result = {"devices": 20, "good": 1, "bad": 2, "drift": 3, "drifting": 0, "fog": ["plant-1"], "broker": "none", "took_s": 1.0}
    whole = html({**result, "days": days})
    days[2] |= {"waiting": 15, "policies": {"shop-1": [5, 120, 12]}}
    cut = html({**result, "days": days})
    assert "OUTAGE: \u25cb 15 digests wait on their devices" in cut
    assert "\u25cb digest not here yet" in cut
    assert "OUTAGE" not in whole
    assert "not here yet" not in whole
    high = [float(x) for x in re.findall(r'height="([\d.]+)" fill="url\(#hatch-waiting\)"', cut)]
    assert [x > 0 for x in high] == [False, False, True, False]
