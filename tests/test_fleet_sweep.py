"""Sweeps of thresholds without a walk: what DuckDB counts is what the walk decides, and where that is not so it says why."""

from __future__ import annotations

import json
from random import Random

import pytest
from both import flat
from commands import cli

from edgeroute import Function, PolicyError, Router
from edgeroute.tools.replay import Setup
from edgeroute.tools.replay.sharded_replay import replay_fleet

pytestmark = pytest.mark.matrix
pytest.importorskip("duckdb")
pytest.importorskip("pyarrow")
LEVELS = (0.0, 0.2, 0.35, 0.5, 0.99, 1.0)
POLICY = """
threshold = {}
[edge]
path = "edge.onnx"
[cloud]
url = "http://127.0.0.1:9/v2/models/cloud"
usd_per_call = 0.1
"""


def setup_of(folder, threshold=0.5, more=""):
    """A policy with this threshold."""
    path = folder / "policy.toml"
    path.write_text(POLICY.format(threshold) + more)
    return Setup.read(path)


def device(folder, name, requests, every_s=100.0, fails=False):
    """A device's trace in Parquet: requests so far apart, of confidences with two digits, some of them exactly a threshold."""
    from edgeroute.tools.replay.parquet_trace_format import write_parquet

    rng, records = Random(name), []

    def cloud(x):
        if fails and rng.random() < 0.5:
            raise OSError
        return "cloud", 0.9

    with Router(lambda x: ("edge", x), Function(cloud), **flat(threshold=0.4, trace=records.append)) as router:
        for _ in range(requests):
            router.infer(round(rng.random(), 2))
    path = folder / name / "trace.parquet"
    path.parent.mkdir(parents=True)
    write_parquet(path, [json.loads(json.dumps({**line, "at": 1e9 + every_s * i})) for i, line in enumerate(records)])


@pytest.mark.parametrize("fails", [False, True])
def test_counts_are_those_of_the_walk(tmp_path, fails):
    """For each threshold, over the devices of which it says so."""
    from edgeroute.tools.replay.threshold_sweep import sweep

    folder = tmp_path / "fleet [1]"
    for name in "abc":
        device(folder, name, 60)
    if fails:
        device(folder, "failing", 40, fails=True)
        device(folder, "busy", 40, every_s=0.0)
    result = sweep(folder, setup_of(tmp_path), LEVELS, [0.1, 0.3])
    assert (result.devices, sum(result.inexact.values())) == (3, 2 * fails)
    if fails:
        assert {"calls of the cloud that failed"} < {*result.inexact}
        for name in ("failing", "busy"):
            (folder / name / "trace.parquet").unlink()
    for point in result.points:
        walked = replay_fleet(folder, setup_of(tmp_path, point.threshold), processes=1).replay
        assert (point.requests, point.deferred) == (walked.replayed.requests, walked.replayed.deferred)
        assert point.deferred == walked.replayed.calls == walked.replayed.cloud
        assert (walked.unknown, walked.replayed.degraded, walked.replayed.deadline_misses) == ({}, 0, 0)
        assert point.usd[0] == pytest.approx(walked.replayed.usd)
        assert point.usd[1] == pytest.approx(3 * point.usd[0])


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("[limits]\nusd_per_day = 3\n", "limits"),
        ("calls_per_s = 3\n", "policy"),
        ("usd_per_mb = 3\n", "price"),
        ("[[rule]]\nof = 'battery'\nenter = '15%'\nthen = 'only_edge'\n", "rules"),
    ],
)
def test_a_policy_that_decides_by_more(tmp_path, more, why):
    """Is refused with what it decides by."""
    from edgeroute.tools.replay.threshold_sweep import sweep

    device(tmp_path / "fleet", "a", 3)
    with pytest.raises(PolicyError, match=why):
        sweep(tmp_path / "fleet", setup_of(tmp_path, more=more), LEVELS)


def test_the_command(tmp_path):
    """It prints a line a threshold, and refuses JSON lines, damage and what is no number in one line."""
    device(tmp_path / "fleet", "a", 20)
    setup_of(tmp_path)
    sweeps = ("replay", tmp_path / "fleet", "--policy", tmp_path / "policy.toml", "--sweep")
    code, out, err = cli(*sweeps, "0.5,0.9", "--prices", "0.1,0.2")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 5
    code, out, _ = cli(*sweeps, "0.5", "--json")
    assert (code, json.loads(out)["points"][0]["requests"]) == (0, 20)
    assert cli(*sweeps, "half")[0] == 2
    (tmp_path / "fleet" / "a" / "trace.jsonl").write_text("{}\n")
    code, _, err = cli(*sweeps, "0.5")
    assert (code, err.count("\n"), "trace convert" in err) == (1, 1, True)
