"""Replay of many devices' traces: shards, exact sums, engines that agree to the bit, and traces that cannot be read."""

from __future__ import annotations

import json
from random import Random

import pytest
from both import flat
from commands import cli

from edgeroute import BadInput, Function, Router
from edgeroute.stores.json_lines_and_process_locks import Journal
from edgeroute.tools.replay import Battery, Setup, read, replay
from edgeroute.tools.replay.read_and_pack_traces import traces
from edgeroute.tools.replay.sharded_replay import replay_fleet

POLICY = """
threshold = 0.7

[edge]
path = "edge.onnx"

[cloud]
url = "http://127.0.0.1:9/v2/models/cloud"
usd_per_call = 0.1
joules_per_call = 0.3

[limits]
usd_per_day = 2.05
"""
EXACT = ("requests", "edge", "cloud", "degraded", "deferred", "calls", "held", "edge_runs")


def policy(folder):
    """A policy file under which a device may make twenty calls a day."""
    path = folder / "policy.toml"
    path.write_text(POLICY)
    return path


def record(path, requests, seed):
    """A device's trace, by a router that asks an edge of random confidence and a cloud at a price that no float has exactly."""
    rng = Random(seed)
    cloud = Function(lambda _: ("cloud", 0.9), usd_per_call=0.1, joules_per_call=0.3)
    records = []
    with Router(lambda x: ("edge", x), cloud, **flat(threshold=0.2, trace=records.append)) as router:
        for _ in range(requests):
            router.infer(rng.random())
    journal = Journal(path, max_bytes=20_000, keep=100)
    for i, line in enumerate(records):
        journal.append({**line, "id": f"d{seed}-{i}", "at": 1e9 + 10 * i})
    journal.close()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Five devices, one of whose traces is rotated, one is empty and one no trace; and a state folder's other journals."""
    folder = tmp_path_factory.mktemp("fleet")
    for seed, requests in enumerate((90, 5, 40, 0, 30)):
        record(folder / f"site-{seed % 2}" / f"device-{seed}" / "trace.jsonl", requests, seed)
    (folder / "site-1" / "device-3").mkdir()
    (folder / "site-1" / "device-3" / "trace.jsonl").write_text("")
    (folder / "foreign.jsonl").write_text('{"a": 1}\n')
    (folder / "site-0" / "device-0" / "egress.jsonl").write_text('{"at": 1}\n')
    return folder


def test_each_trace_is_a_device(fleet):
    """With its rotated files, but without the other journals of a state folder."""
    names = [*traces(fleet)]
    assert names == [
        "foreign.jsonl",
        *(f"site-{seed % 2}/device-{seed}/trace.jsonl" for seed in (0, 2, 4, 1, 3)),
    ]
    assert (fleet / "site-0" / "device-0" / "trace.jsonl.1").exists()


def test_the_sums_are_those_of_the_devices(fleet, tmp_path):
    """Limits hold for each device, latencies are rounded by 2**-12 alone, and what cannot be read is named."""
    setup = Setup.read(policy(tmp_path))
    result = replay_fleet(fleet, setup, processes=1)
    assert (result.devices, result.left_out, [*result.damaged]) == (4, 2, ["foreign.jsonl", "site-1/device-3/trace.jsonl"])
    alone = [replay(path, setup) for name, path in traces(fleet).items() if name not in result.damaged]
    for name in EXACT:
        assert getattr(result.replay.replayed, name) == sum(getattr(one.replayed, name) for one in alone)
        assert getattr(result.replay.recorded, name) == sum(getattr(one.recorded, name) for one in alone)
    assert result.replay.replayed.usd == pytest.approx(sum(one.replayed.usd for one in alone))
    assert result.replay.changed == sum(one.changed for one in alone) > 0
    assert max(one.replayed.calls for one in alone) == 20
    assert result.replay.gates["cloud"].held == sum(one.gates["cloud"].held for one in alone) > 0
    latencies = sorted(
        second for name, path in traces(fleet).items() if name not in result.damaged for second in read(path).recorded.latencies
    )
    assert result.replay.recorded.p50_s == pytest.approx(latencies[int(0.5 * len(latencies))], rel=2**-12)
    first = next(one for one in alone if one.replayed.requests == 90)  # its latencies are drawn by its name
    assert [(e.id, e.recorded) for e in result.replay.examples] == [(e.id, e.recorded) for e in first.examples]


OPTIONS = {"network": "3g", "seed": 3, "battery": Battery(0.5, 0.001, 0.01), "thermal": "hot"}


@pytest.mark.parametrize("options", [{}, pytest.param(OPTIONS, marks=pytest.mark.slow)])
def test_engines_agree_to_the_bit(fleet, tmp_path, options):
    """One process and three, whatever the order in which they end."""
    one, three = (replay_fleet(fleet, policy(tmp_path), processes=n, **options) for n in (1, 3))
    assert json.dumps(one.as_dict()) == json.dumps(three.as_dict())
    assert str(one) == str(three)
    assert one == replay_fleet(fleet, policy(tmp_path), processes=1, **options)


def test_the_draws_of_a_device_are_its_own(fleet, tmp_path):
    """So a folder with one device fewer changes nothing of the others."""
    some = tmp_path / "some"
    for name in ("site-0/device-2", "site-0/device-4"):
        (some / name).mkdir(parents=True)
        (some / name / "trace.jsonl").write_bytes((fleet / name / "trace.jsonl").read_bytes())
    first = tmp_path / "first" / "site-0" / "device-2"
    first.mkdir(parents=True)
    (first / "trace.jsonl").write_bytes((fleet / "site-0" / "device-2" / "trace.jsonl").read_bytes())
    both, only = (replay_fleet(path, policy(tmp_path), processes=1, network="3g") for path in (some, tmp_path / "first"))
    assert [change for change in both.replay.examples if change.id.startswith("d2-")] == [*only.replay.examples]
    assert only.devices == 1


@pytest.mark.matrix
@pytest.mark.filterwarnings("ignore")  # of Ray itself
def test_ray_agrees_to_the_bit(fleet, tmp_path):
    """Ray Data on this machine, whose tasks end in any order."""
    pytest.importorskip("ray.data")
    ray, one = (replay_fleet(fleet, policy(tmp_path), engine=engine, processes=1) for engine in ("ray", "local"))
    assert json.dumps(ray.as_dict()) == json.dumps(one.as_dict())


def test_an_engine_that_there_is_not(fleet, tmp_path):
    """It is refused, rather than taken for the local one."""
    with pytest.raises(BadInput, match="local or ray, not 'Ray'"):
        replay_fleet(fleet, policy(tmp_path), engine="Ray")


@pytest.mark.slow
def test_the_command(fleet, tmp_path):
    """Of a folder the command sums up; a file takes no engine; a folder of damaged traces is an error of one line."""
    code, out, err = cli("replay", fleet, "--policy", policy(tmp_path), "--processes", "2")
    assert (code, err) == (0, "")
    assert out.startswith("4 traces, each of a device of its own\n2 left out:\n")
    code, out, _ = cli("replay", fleet, "--policy", policy(tmp_path), "--engine", "local", "--json")
    assert (code, json.loads(out)["devices"], json.loads(out)["replayed"]["requests"]) == (0, 4, 165)
    file = fleet / "site-0" / "device-2" / "trace.jsonl"
    code, _, err = cli("replay", file, "--policy", policy(tmp_path), "--engine", "local")
    assert (code, "folder" in err) == (2, True)
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = cli("replay", empty, "--policy", policy(tmp_path))
    assert (code, err.count("\n"), str(empty) in err) == (1, 1, True)
    (empty / "x.jsonl").write_text("nonsense\n")
    with pytest.raises(BadInput, match=r"x\.jsonl"):
        replay_fleet(empty, policy(tmp_path), processes=1)
