"""A device that follows a signed policy: real TUF catalogs, real reloads of running routers, `kill -9`, and a publisher's attacks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("tuf")
pytest.importorskip("cryptography")
pytest.importorskip("onnxruntime")

import numpy as np
from both import LONG, wait_for
from commands import cli
from signed_fleet import ONE_CLOUD, Fleet, threshold

from edgeroute import BadInput, EdgerouteError, Held, PolicyError, Router
from edgeroute.catalog.signed_policy_follower import in_ring, overlay, position, signed_name, standing
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.catalog_keys_and_publishing import sign_files, signed_file
from edgeroute.tools.fleet.policy_rollout_by_rings import Decision, promote, publish, published, target

X = np.zeros(4, np.float32)
SURE = np.array([9, 0, 0, 0], np.float32)
HERE = Path(__file__).parent


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    monkeypatch.setattr("edgeroute.catalog.signed_policy_follower.LOOKS_S", 0.02)
    return Fleet(tmp_path)


def until(router, value):
    wait_for(lambda: threshold(router) == pytest.approx(value))


def nobody_follows():
    """Waits for the last look of routers that are closed, which close() does not wait for: it may write once more."""
    wait_for(lambda: not any(thread.name == "edgeroute-policy" for thread in threading.enumerate()))


def ring_in(salt, share, *, inside):
    """A ring identity that is in the ring of that share, or is not."""
    return next(text for text in map(str, range(10_000)) if in_ring(text, salt, share) is inside)


def test_a_signed_policy_reaches_the_ring_and_then_all(fleet):
    """The devices of the first ring get a policy; once it goes on, all do. Their own addresses and state folders stay."""
    fleet.publish(0.4)
    salt = fleet.publish(0.6, rings=(0.01, 1.0))["salt"]
    inside = fleet.device("inside", ring=ring_in(salt, 0.01, inside=True))
    outside = fleet.device("outside", ring=ring_in(salt, 0.01, inside=False))
    with Router.from_policy(inside, watch=True) as first, Router.from_policy(outside, watch=True) as second:
        until(first, 0.6)
        until(second, 0.4)
        wait_for(lambda: (signed_name(fleet.home / "inside"), signed_name(fleet.home / "outside")) == ("shop-2", "shop-1"))
        assert "127.0.0.1:9" in first.engine.snapshot.clouds[0].where
        promote(fleet.catalog, "shop", Decision("go_on", ""), keys=fleet.keys)
        until(second, 0.6)
        promote(fleet.catalog, "shop", Decision("roll_back", ""), keys=fleet.keys)
        until(first, 0.4)
        until(second, 0.4)
        wait_for(lambda: second.status().signed.startswith("shop-3"))
    with Router.from_policy(outside) as again:
        assert threshold(again) == pytest.approx(0.4)


def test_an_emergency_reaches_every_device_at_its_next_look(fleet):
    """After the order no call reaches the cloud, not even one that asks for it; pinned devices and other rings obey, too."""
    with CannedServer(http_reply(b'{"value": "b", "confidence": 0.9}')) as cloud:
        fleet.url = f"{cloud.url}/score"
        fleet.publish(0.99, rings=(1.0,))
        pinned = fleet.device("pinned", pinned=True)
        with Router.from_policy(pinned, watch=True) as router:
            assert router.infer(X).source == "cloud"
            fleet.publish(only_edge=True)
            wait_for(lambda: "by order" in router.status().signed)
            asked = len(cloud.requests)
            assert router.infer(X).source == "edge"
            with pytest.raises(Held):
                router.infer(X, mode="only_cloud")
            assert len(cloud.requests) == asked
            assert threshold(router) == pytest.approx(0.9)  # its own policy: it is pinned
            fleet.publish(only_edge=False)
            wait_for(lambda: "by order" not in router.status().signed)
            assert router.infer(X).source == "cloud"


@pytest.mark.parametrize(
    "policy",
    [
        {"audit": {"share": "10%"}, "offline": "queue", "cache": {}},
        {"mode": "shadow"},
        {"mode": "only_cloud", "edge": []},
        {"trial": {"edge": "m.onnx", "threshold": 0.3, "share": "50%", "shown": False}, "audit": {"share": "10%"}},
        {"rule": {"of": "battery", "enter": "20%", "then": "prefer_cloud"}, "hedge_after": "auto", "deadline": "1s"},
    ],
)
def test_an_emergency_is_obeyed_under_any_policy(fleet, monkeypatch, policy):
    """Whatever the mode and its parts, and whatever the device's own variables say."""
    monkeypatch.setenv("EDGEROUTE_LIMITS__CALLS_PER_MINUTE", "600")
    with CannedServer(http_reply(b'{"value": "b", "confidence": 0.9}')) as cloud:
        fleet.url = f"{cloud.url}/score"
        fleet.publish(0.4, **policy)
        with Router.from_policy(fleet.device(), watch=True) as router:
            wait_for(lambda: router.status().signed.startswith("shop-1"))
            assert router.status().limits.calls_per_minute == pytest.approx(600)
            fleet.publish(only_edge=True)
            wait_for(lambda: "by order" in router.status().signed)
            asked = len(cloud.requests)
            for mode in (None, "only_cloud", "prefer_cloud"):
                with contextlib.suppress(EdgerouteError):
                    router.infer(X, mode=mode)
            assert len(cloud.requests) == asked
        monkeypatch.setenv("EDGEROUTE_MODE", "prefer_cloud")
        with Router.from_policy(fleet.home / "device.toml") as router, contextlib.suppress(EdgerouteError):
            router.infer(X)
        assert len(cloud.requests) == asked


def test_a_signed_policy_changes_no_key_of_the_device(fleet):
    """Neither its state folder nor whom it follows, though the owner's program would allow it."""
    data = fleet.publish(0.4)
    data["versions"][-1]["policy"] |= {"state": "elsewhere", "fleet": {"policy": "evil", "catalog": "x", "root": "y"}}
    sign_files(fleet.catalog, {target("shop"): json.dumps(data).encode()}, keys=fleet.keys)
    with Router.from_policy(fleet.device(), watch=True) as router:
        wait_for(lambda: router.status().signed.startswith("shop-1"))
    with Router.from_policy(fleet.home / "device.toml", watch=True) as router:
        assert threshold(router) == pytest.approx(0.4)
        assert router.engine.state == fleet.home / "device"
        fleet.publish(0.6)
        until(router, 0.6)
    assert not (fleet.home / "elsewhere").exists()


def test_a_lost_metadata_folder_lets_no_old_policy_in(fleet):
    """TUF's own memory is gone, but a device never goes back to a lower version."""
    fleet.publish(0.4)
    shutil.copytree(fleet.catalog, fleet.home / "old")
    fleet.publish(0.6)
    with Router.from_policy(fleet.device(), watch=True) as router:
        until(router, 0.6)
        wait_for(lambda: router.status().signed.startswith("shop-2"))
    shutil.rmtree(fleet.home / "device" / "fleet" / "metadata")
    _replace(fleet.home / "old", fleet.catalog)
    with Router.from_policy(fleet.home / "device.toml", watch=True) as router:
        for order in (True, False):  # of the old catalog: the look that sees the second has ended the one that saw the first
            fleet.publish(only_edge=order)
            wait_for(lambda order=order: ("by order" in router.status().signed) is order)
        assert threshold(router) == pytest.approx(0.6)
        assert router.status().signed.startswith("shop-2")


def test_a_quiet_device_may_start_often(fleet):
    """Processes that end by themselves are no reason to go back, though few requests confirm a policy."""
    fleet.publish(0.4)
    device = fleet.device()
    for _ in range(5):
        with Router.from_policy(device, watch=True) as router:
            until(router, 0.4)
            wait_for(lambda router=router: router.status().signed == "shop-1, on trial")


def test_a_decision_about_another_version_is_not_carried_out(fleet):
    fleet.publish(0.4)
    before = fleet.publish(0.6, rings=(0.1, 1.0))["versions"][-1]
    fleet.publish(0.7, rings=(0.1, 1.0))
    with pytest.raises(BadInput, match="shop-3 was published meanwhile"):
        promote(fleet.catalog, "shop", Decision("go_on", ""), keys=fleet.keys, about=before)


def test_a_decision_is_carried_out_once(fleet):
    """Two runs at a time decide about the same ring: the second would skip the next one, of which nothing is known."""
    fleet.publish(0.4)
    fleet.publish(0.6, rings=(0.1, 0.5, 1.0))
    about, given = published(fleet.catalog, "shop")["versions"][-1], (fleet.catalog, "shop", Decision("go_on", ""))
    assert promote(*given, keys=fleet.keys, about=about)["versions"][-1]["share"] == pytest.approx(0.5)
    with pytest.raises(BadInput, match="shop-2 was promoted meanwhile"):
        promote(*given, keys=fleet.keys, about=about)
    assert published(fleet.catalog, "shop")["versions"][-1]["share"] == pytest.approx(0.5)


def test_several_publish_at_once(fleet, monkeypatch):
    """Each version gets a number of its own, and none is lost: the lock is one of files, between threads as between programs."""
    take = ProcessLock.take
    monkeypatch.setattr(ProcessLock, "take", lambda lock, wait_s=0.0: take(lock, 12 * wait_s))  # on a busy machine, too
    path = fleet.policy(0.4)
    with ThreadPoolExecutor(4) as threads:
        made = [threads.submit(publish, fleet.catalog, "shop", path, keys=fleet.keys) for _ in range(4)]
        assert sorted(each.result(LONG)["versions"][-1]["version"] for each in made) == [1, 2, 3, 4]


def test_a_policy_that_a_device_refuses_is_not_tried_again(fleet, caplog):
    """The last good policy stays in force, the status has the reason, and the next version is taken."""
    fleet.publish(0.4)
    with Router.from_policy(fleet.device(), watch=True) as router:
        until(router, 0.4)
        data = json.loads(signed_file(fleet.catalog, target("shop")))
        data["versions"].append({**data["versions"][-1], "version": 2, "policy": {"threshold": 0.5, "no_such_key": 1}})
        sign_files(fleet.catalog, {target("shop"): json.dumps(data).encode()}, keys=fleet.keys)
        wait_for(lambda: "shop-2 is not tried again" in router.status().signed)
        assert "no_such_key" in router.status().signed
        assert threshold(router) == pytest.approx(0.4)
        for order in (True, False):
            fleet.publish(only_edge=order)
            wait_for(lambda order=order: ("by order" in router.status().signed) is order)
        fleet.publish(0.7)
        until(router, 0.7)
    assert sum("shop-2 is refused" in record.getMessage() for record in caplog.records) == 1


def test_a_policy_whose_first_requests_fail_is_rolled_back(fleet):
    """The device goes back to its last good policy by itself, and only to that."""
    fleet.publish(0.4)
    with Router.from_policy(fleet.device(), watch=True) as router:
        until(router, 0.4)
        for _ in range(210):
            router.infer(SURE)
        wait_for(lambda: not standing(fleet.home / "device").trial)
        fleet.publish(0.4, mode="only_cloud", offline="raise")  # its cloud does not answer
        wait_for(lambda: standing(fleet.home / "device").version == 2)
        for _ in range(11):  # the number with which the version goes: a twelfth request may have the last good one
            with pytest.raises(EdgerouteError):
                router.infer(X)
        wait_for(lambda: "shop-2 is not tried again" in router.status().signed)
        assert threshold(router) == pytest.approx(0.4)
        assert router.infer(SURE).source == "edge"
        assert router.stats().requests == 222  # its statistics went on


@pytest.mark.parametrize("attack", ["rollback", "freeze", "expired", "forged", "gone", "newer", "nonsense"])
def test_the_last_good_policy_stays_under_attack(fleet, attack):
    """An old catalog, an expired or a forged one, and a file that no edgeroute knows change nothing, and the status says so."""
    fleet.publish(0.4)
    shutil.copytree(fleet.catalog, fleet.home / "old")
    fleet.publish(0.6)
    with Router.from_policy(fleet.device(), watch=True) as router:
        until(router, 0.6)
        if attack == "rollback":
            _replace(fleet.home / "old", fleet.catalog)
        elif attack in {"freeze", "expired"}:
            sign_files(fleet.catalog, {}, keys=fleet.keys, days=1e-5)
        elif attack == "forged":
            other = Fleet(_made(fleet.home / "other"))
            other.publish(0.1)
            _replace(other.catalog, fleet.catalog)
        elif attack == "gone":
            fleet.catalog.rename(fleet.home / "gone")
        elif attack == "newer":
            data = json.loads(signed_file(fleet.catalog, target("shop")))
            sign_files(fleet.catalog, {target("shop"): json.dumps({**data, "format": 2}).encode()}, keys=fleet.keys)
        else:
            sign_files(fleet.catalog, {target("shop"): b'{"format": 1, "name": "shop", "versions": 7}'}, keys=fleet.keys)
        wait_for(lambda: "last good policy stays" in router.status().signed)
        assert threshold(router) == pytest.approx(0.6)
        assert router.status().signed.startswith("shop-2, ")
        code, out, _ = cli("fleet", "following", "--policy", fleet.home / "device.toml")
        assert (code, "last good policy stays" in out) == (4, True)


def _made(folder):
    folder.mkdir()
    return folder


def _replace(source, to):
    shutil.rmtree(to)
    shutil.copytree(source, to)


def test_a_policy_for_a_newer_edgeroute_waits_for_it(fleet):
    fleet.publish(0.4)
    with Router.from_policy(fleet.device(), watch=True) as router:
        until(router, 0.4)
        fleet.publish(0.6, requires="99.0")
        wait_for(lambda: "shop-2 needs edgeroute 99.0" in router.status().signed)
        fleet.publish(only_edge=True)  # an order counts all the same
        wait_for(lambda: "by order" in router.status().signed)
        assert threshold(router) == pytest.approx(0.4)


def test_a_model_that_is_missing_is_waited_for(fleet):
    fleet.publish(0.4)
    with Router.from_policy(fleet.device(), watch=True) as router:
        until(router, 0.4)
        fleet.publish(0.6, edge={"path": "later.onnx"})
        wait_for(lambda: "shop-2 waits" in router.status().signed)
        assert threshold(router) == pytest.approx(0.4)
        shutil.copyfile(fleet.home / "m.json", fleet.home / "later.json")
        shutil.copyfile(fleet.home / "m.onnx", fleet.home / "later.onnx")
        until(router, 0.6)


def test_a_frozen_policy_changes_no_device(fleet):
    fleet.publish(0.4)
    with Router.from_policy(fleet.device(), watch=True) as router:
        until(router, 0.4)
        fleet.publish(0.6, freeze=True)
        for order in (True, False):  # the look that sees the second has ended the one that saw the first
            fleet.publish(only_edge=order)
            wait_for(lambda order=order: ("by order" in router.status().signed) is order)
        assert threshold(router) == pytest.approx(0.4)
        fleet.publish(freeze=False)
        until(router, 0.6)


def test_another_process_of_the_device_follows(fleet):
    """One process of a device reads the catalog, and the others put in force what it stores."""
    fleet.publish(0.4)
    with (
        Router.from_policy(fleet.device(), watch=True) as first,
        Router.from_policy(fleet.home / "device.toml", watch=True) as second,
    ):
        until(first, 0.4)
        until(second, 0.4)
        program = (
            "import sys\nfrom edgeroute import Router\n"
            "with Router.from_policy(sys.argv[1], watch=True) as router:\n"
            "    print(router.engine.snapshot.targets[0].threshold, flush=True)\n    sys.stdin.readline()\n"
            "    import time\n    until = time.monotonic() + 120\n"
            "    while abs(router.engine.snapshot.targets[0].threshold - .6) > 1e-9 and time.monotonic() < until: time.sleep(.01)\n"
            "    print(router.engine.snapshot.targets[0].threshold, flush=True)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, str(fleet.home / "device.toml")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert float(process.stdout.readline()) == pytest.approx(0.4)
            fleet.publish(0.6)
            process.stdin.write("\n")
            process.stdin.flush()
            assert float(process.stdout.readline()) == pytest.approx(0.6)
        until(first, 0.6)
        until(second, 0.6)


KILLED = """
import os, signal, sys, time
from edgeroute import Router
at = int(sys.argv[2])
def hook(event, args):
    global at
    if (event == "open" and "fleet" in str(args[0]) and isinstance(args[1], str) and set(args[1]) & set("wax+")) or (
        event == "os.rename" and "fleet" in str(args[0])):
        at -= 1
        if at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
with Router.from_policy(sys.argv[1], watch=True) as router:
    while abs(router.engine.snapshot.targets[0].threshold - .6) > 1e-9:
        time.sleep(0.01)
    print("in force", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no SIGKILL")
def test_a_kill_at_each_write_leaves_a_good_policy(fleet):
    """Whenever the process is killed, the next one starts with a whole policy, and ends with the new one."""
    fleet.publish(0.4)
    device = fleet.device()
    with Router.from_policy(device, watch=True) as router:
        until(router, 0.4)
        wait_for(lambda: standing(fleet.home / "device").version)  # stored once it is in force
    nobody_follows()
    shutil.copytree(fleet.home / "device", fleet.home / "template")
    fleet.publish(0.6)
    for at in range(1, 60):
        shutil.rmtree(fleet.home / "device")
        shutil.copytree(fleet.home / "template", fleet.home / "device")
        run = subprocess.run(
            [sys.executable, "-c", KILLED, str(device), str(at)], capture_output=True, text=True, timeout=4 * LONG, check=False
        )
        assert run.returncode in {0, -signal.SIGKILL}, run.stderr
        with Router.from_policy(device) as router:
            assert threshold(router) in (pytest.approx(0.4), pytest.approx(0.6))
        with Router.from_policy(device, watch=True) as router:
            until(router, 0.6)
        nobody_follows()
        if run.returncode == 0:
            break
    assert at > 6
    assert run.returncode == 0


@pytest.mark.slow
def test_a_process_that_ends_again_and_again_on_trial_goes_back(fleet):
    """Before the fourth start the last good policy is in force again, without a look at the catalog."""
    fleet.publish(0.4)
    with Router.from_policy(fleet.device(), watch=True) as router:
        until(router, 0.4)
        for _ in range(210):
            router.infer(SURE)
        wait_for(lambda: not standing(fleet.home / "device").trial)
        fleet.publish(0.6)
        until(router, 0.6)
        wait_for(lambda: standing(fleet.home / "device").trial == 1)  # stored once it is in force
    fleet.catalog.rename(fleet.home / "away")
    program = "import os, sys\nfrom edgeroute import Router\nRouter.from_policy(sys.argv[1], watch=True)\nos._exit(9)\n"
    for _ in range(2):
        (fleet.catalog / "..").resolve()
        shutil.copytree(fleet.home / "away", fleet.catalog)
        subprocess.run([sys.executable, "-c", program, str(fleet.home / "device.toml")], timeout=4 * LONG, check=False)
        shutil.rmtree(fleet.catalog)
    assert standing(fleet.home / "device").trial == 3
    with Router.from_policy(fleet.home / "device.toml", watch=True) as router:
        assert threshold(router) == pytest.approx(0.4)
        assert "ended 3 times" in router.status().signed


def test_the_disk_is_full(fleet, monkeypatch):
    """A policy that cannot be stored is not in force: after a restart it would not be either."""
    import edgeroute.catalog.signed_policy_follower as module

    fleet.publish(0.4)
    with Router.from_policy(fleet.device(), watch=True) as router:
        until(router, 0.4)
        real = module.replace_durably

        def full(path, data):
            if path.name == "policy.json" and (b'"version": 2' in data or b'"only_edge": true' in data):
                raise OSError(28, "No space left on device")
            real(path, data)

        monkeypatch.setattr(module, "replace_durably", full)
        fleet.publish(0.6)
        wait_for(lambda: "No space left" in router.status().signed)
        assert threshold(router) == pytest.approx(0.4)
        fleet.publish(only_edge=True)
        wait_for(lambda: router.engine.spending.limits.calls_per_minute == 0)  # it counts, though it cannot be stored
        assert all(router.engine.spending.limits.calls_per_minute == 0 for _ in range(100_000))  # at the next looks, too
        monkeypatch.setattr(module, "replace_durably", real)
        until(router, 0.6)
        wait_for(lambda: "by order" in router.status().signed)


@pytest.mark.slow
def test_an_emergency_counts_on_a_disk_without_room(fleet):
    """Not a byte can be written, also not of the catalog's metadata: the order is in force, and stays so after other reloads."""
    resource = pytest.importorskip("resource")
    fleet.publish(0.4)
    device = fleet.device()
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, (%d, {resource.RLIM_INFINITY}))\n"
    program = (
        "import resource, sys\nfrom both import wait_for\nfrom edgeroute import Router\n"
        "def ordered():\n"
        "    return (router.engine.spending.limits.calls_per_minute == 0, 'by order' in router.status().signed)\n"
        "with Router.from_policy(sys.argv[1], watch=True) as router:\n"
        "    wait_for(lambda: router.status().signed.startswith('shop-1'))\n"
        f"    {limit % 0}    print(ordered(), flush=True)\n"
        "    wait_for(lambda: ordered()[0])\n    router.reload()\n    print(ordered(), flush=True)\n"
        f"    sys.stdin.readline()\n    {limit % resource.RLIM_INFINITY}"
        "    wait_for(lambda: ordered() == (False, False))\n    print(ordered(), flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(device)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE) as process:
        try:
            assert process.stdout.readline() == "(False, False)\n"
            fleet.publish(only_edge=True)
            assert process.stdout.readline() == "(True, True)\n"
            assert not standing(fleet.home / "device").only_edge  # it is not stored
            fleet.publish(only_edge=False)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "(False, False)\n"
        finally:
            process.kill()


def test_a_damaged_state_is_read_anew(fleet):
    fleet.publish(0.4)
    device = fleet.device()
    with Router.from_policy(device, watch=True) as router:
        until(router, 0.4)
    wait_for(lambda: not any(thread.name == "edgeroute-policy" for thread in threading.enumerate()))  # it stores what it has read
    (fleet.home / "device" / "fleet" / "policy.json").write_bytes(b"\x00" * 100)
    fleet.catalog.rename(fleet.home / "away")
    with Router.from_policy(device, watch=True) as router:
        assert threshold(router) == pytest.approx(0.9)  # the device's own
        (fleet.home / "away").rename(fleet.catalog)
        until(router, 0.4)


def test_local_keys_are_over_the_signed_policy():
    """Sections are merged key by key, those of a list by their name, else by their place."""
    base = {
        "mode": "prefer_edge",
        "limits": {"usd_per_day": 1},
        "cloud": [{"name": "a", "url": "old"}, {"name": "b", "timeout": "1s"}],
    }
    local = {
        "limits": {"usd_per_day": 2, "mb_per_day": 3},
        "cloud": [{"name": "b", "url": "mine"}, {"name": "a", "url": "mine too"}],
    }
    assert overlay(base, local) == {
        "mode": "prefer_edge",
        "limits": {"usd_per_day": 2, "mb_per_day": 3},
        "cloud": [{"name": "a", "url": "mine too"}, {"name": "b", "timeout": "1s", "url": "mine"}],
    }
    assert overlay({"cloud": {"timeout": "1s"}}, {"cloud": [{"name": "c", "url": "mine"}]})["cloud"] == {
        "timeout": "1s",
        "name": "c",
        "url": "mine",
    }


@pytest.mark.parametrize(
    ("base", "local", "says"),
    [
        (
            [{"name": "a"}],
            [{"name": "z", "url": "https://user:secret@mine"}],
            "local.cloud: the policy in force has no section z",
        ),
        ([{"name": "a"}], [{"url": "mine"}, {"url": "secret"}], "local.cloud: the policy in force has no section 2"),
        ({"name": "a"}, [{"name": "a"}, {"name": "b", "headers": {"Authorization": "secret"}}], "has no section b"),
    ],
)
def test_a_local_section_without_a_counterpart_is_named(caplog, base, local, says):
    """Of a list, such as a cloud that the new policy has no more: by a warning without its content."""
    sections = overlay({"cloud": base}, {"cloud": local})["cloud"]
    assert len(sections if isinstance(sections, list) else [sections]) == 1
    assert says in caplog.text
    assert "secret" not in caplog.text


def test_a_look_under_way_keeps_the_lock_of_a_closed_router(fleet):
    """Closing does not wait for a catalog that hangs; no other process leads before that look has ended and written."""
    with CannedServer(http_reply(b"", status=503)) as server:
        server.shut()
        with Router.from_policy(fleet.device(catalog=server.url), watch=True):
            server.wait_for(lambda: server.requests)
        other = ProcessLock(fleet.home / "device" / "fleet" / "policy.lock")
        assert not other.take()
        server.open()
        wait_for(other.take)
        other.leave()


def test_rings_are_nested_and_of_their_size():
    places = np.array([position(str(device), "salt") for device in range(4000)])
    assert 0.005 < (places < 0.01).mean() < 0.02
    assert all(in_ring(str(device), "salt", 0.1) for device in np.flatnonzero(places < 0.01))
    assert all(in_ring(str(device), "salt", 1.0) for device in range(100))
    assert not any(in_ring(str(device), "salt", 0.0) for device in range(100))


def test_no_secret_and_no_local_key_is_published(fleet):
    """A literal secret is refused without its text; sections that are a device's own are left out."""
    with pytest.raises(PolicyError, match="does not belong in a file") as error:
        fleet.publish(0.5, cloud={"name": "main", "api_key": "sk-12345"})
    assert "sk-12345" not in str(error.value)
    for headers in ({"X-Shop": "tok_12345"}, {"Accept": {"env": "NAME"}, "x-shop": "tok_12345"}):
        with pytest.raises(PolicyError, match=r"(?i)headers\.x-shop would be published") as error:
            fleet.publish(0.5, cloud={**ONE_CLOUD, "headers": headers})
        assert "tok_12345" not in str(error.value)
    headers = {"user-agent": "shop/1", "X-Shop": {"env": "SHOP_KEY"}}
    assert fleet.publish(0.5, cloud={**ONE_CLOUD, "headers": headers})["versions"][-1]["policy"]["cloud"]["headers"] == headers
    data = fleet.publish(0.5, state="/var/x", local={"cloud": {"url": "https://10.0.0.1/x"}}, fleet={"site": "plant"})
    assert set(data["versions"][-1]["policy"]) == {"threshold", "edge", "cloud"}
    text = signed_file(fleet.catalog, target("shop")).decode()
    assert "10.0.0.1" not in text
    assert "/var/x" not in text
    with pytest.raises(PolicyError, match="no_such_key"):
        fleet.publish(0.5, no_such_key=1)


def test_models_and_endpoints_may_be_the_devices_own(fleet):
    """An owner's file without [edge] and [cloud] is published, and in force with those of the device."""
    (fleet.home / "own.toml").write_text("threshold = 0.4\n")
    publish(fleet.catalog, "shop", fleet.home / "own.toml", keys=fleet.keys)
    device = fleet.device(local='[local.edge]\npath = "m.onnx"\n')
    with Router.from_policy(device, watch=True) as router:
        until(router, 0.4)
    follows = fleet.home / "follows.toml"  # nothing is in force yet: no model, but a state folder
    text = device.read_text()
    follows.write_text('state = "device"\n' + text[text.index("[fleet]") :].partition("[local")[0])
    code, _, err = cli("fleet", "rotate", "--policy", follows)
    assert code == 0, err


def test_the_commands(fleet):
    """From the keys to a policy that is rolled back by hand, by the command line."""
    path = fleet.policy(0.4)
    given = ["--name", "shop", "--catalog", fleet.catalog, "--keys", fleet.keys]
    code, out, err = cli("fleet", "publish", path, *given, "--rings", "100%", "--json")
    assert code == 0, err
    code, out, err = cli("fleet", "publish", path, *given, "--halt", "degraded>2%, cost>+20%, alarm", "--json")
    assert json.loads(out)["versions"][-1] == {"version": 2, "share": 0.01, "halted": False}
    code, out, err = cli("fleet", "promote", *given, "--by-hand", "go-on", "--json")
    assert (code, json.loads(out)["versions"][-1]["share"]) == (0, 0.1)
    code, out, err = cli("fleet", "promote", *given, "--by-hand", "roll-back", "--json")
    assert (code, json.loads(out)["versions"][-1]["version"]) == (4, 3)
    with Router.from_policy(fleet.device(), watch=True) as router:
        until(router, 0.4)
        wait_for(lambda: router.status().signed.startswith("shop-3"))
    code, out, err = cli("fleet", "following", "--policy", fleet.home / "device.toml")
    assert (code, out.startswith("shop-3")) == (0, True)


def test_a_router_that_does_not_follow_warns(fleet, caplog):
    """An emergency order that reaches nobody is not left unsaid."""
    fleet.publish(0.4)
    device = fleet.device()
    with Router.from_policy(device):
        assert "watch=True" in caplog.text
    caplog.clear()
    with Router.from_policy(device, watch=True):
        pass
    assert "watch=True" not in caplog.text
    code, out, _ = cli("fleet", "following", "--policy", device)
    assert code == 0
    assert "shop" in out or "watch=True" in out
