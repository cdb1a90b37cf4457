"""`edgeroute check` and `edgeroute decide` look: queued requests stay queued, no file is made, and none changed but the ledger."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from commands import cli
from tiny import linear

from edgeroute import Router
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.cli.command_runner import FAILED
from edgeroute.tools.cli.example_options_and_routers import looking_router

UNSURE = np.zeros(4, np.float32)


def listing(folder):
    """Each file under a folder with its content."""
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def policy(folder, port, more=""):
    """A policy with an outbox whose endpoint is on that port."""
    path = folder / f"to-{port}.toml"
    path.write_text(
        f'threshold = 0.9\noffline = "queue"\nstate = "state"\n{more}\n[edge]\npath = "small.onnx"\n'
        f'[cloud]\nprotocol = "json"\nurl = "http://127.0.0.1:{port}/ask"\n[egress]\nmay_leave = ["product"]\n'
    )
    return path


@pytest.fixture
def looked(tmp_path):
    """Commands that look, on one input."""
    linear(tmp_path / "small.onnx")
    np.save(tmp_path / "x.npy", UNSURE)
    return lambda file: [("check", file), ("decide", "-p", file, tmp_path / "x.npy", "--class", "product")]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_queued_request_stays_queued(looked, tmp_path, elsewhere):
    """Also if the policy has another endpoint by now. A router that is no look delivers it."""
    reply = http_reply(b'{"value": 1}')
    with CannedServer(reply, close=True) as server, CannedServer(reply, close=True) as other:
        server.reply = http_reply(status=503)
        first = policy(tmp_path, server.port)
        with Router.from_policy(first) as router:
            assert not router.infer(UNSURE, data_class="product").final
        server.requests.clear()
        server.reply = reply
        before = listing(tmp_path)
        now = policy(tmp_path, other.port) if elsewhere else first
        before[now.name] = now.read_bytes()
        for command in looked(now):
            code, out, err = cli(*command)
            assert "Traceback" not in err
            assert code == 0 or command[0] == "check", err
            assert "may leave this device" in out or "so it would leave the device" in out
        after = listing(tmp_path)
        ledgers = [files.pop("state/egress.jsonl").splitlines() for files in (before, after)]
        assert after == before
        probes = [json.loads(line) for line in ledgers[1][len(ledgers[0]) :]]
        assert [(line["bytes"], line["rule"]) for line in probes] == [(0, "no user data")]
        assert [r for r in server.requests + other.requests if r.startswith(b"POST")] == []
        entries = json.loads(cli("outbox", "list", "--json", "--state", tmp_path / "state")[1])["entries"]
        assert [(entry["state"], entry["attempts"]) for entry in entries] == [("waiting", 0)]
        with Router.from_policy(first) as router:
            router.link_up()
            server.wait_for(lambda: any(request.startswith(b"POST") for request in server.requests))


def test_nothing_is_made(looked, tmp_path):
    """Neither the state folder, nor its outbox, cache or trace."""
    file = policy(tmp_path, 9, 'cache = { disk = true }\ntrace = {}\noutbox = { ttl = "1h" }')
    before = listing(tmp_path)
    for command in looked(file):
        _, out, err = cli(*command)
        assert "may leave this device" in out or "so it would leave the device" in out, err
    assert listing(tmp_path) == before


def test_earlier_runs_count(looked, tmp_path):
    """Also of a router that still runs, and one that was killed; a damaged file stays as it is."""
    with CannedServer(http_reply(b'{"value": 1}'), close=True) as server:
        file = policy(tmp_path, server.port, "limits = { usd_per_day = 9 }")
        file.write_text(file.read_text().replace("[egress]", "usd_per_call = 1\n[egress]"))
        with Router.from_policy(file) as router:
            assert router.infer(UNSURE, data_class="product").value == 1
            router.engine.checkpoint.store.flush()
            with looking_router(file) as look:
                assert look.status().spent.usd >= 1
            killed = shutil.copytree(tmp_path, tmp_path / "killed")
        with looking_router(killed / file.name) as look:
            assert look.status().spent.usd >= 1
        (tmp_path / "state" / "state.db").write_bytes(b"no database" * 1000)
        before = listing(tmp_path)
        for command in looked(file):
            _, out, err = cli(*command)
            assert "may leave this device" in out or "mode prefer_edge" in out, err
        assert (
            listing(tmp_path) | {"state/egress.jsonl": before["state/egress.jsonl"]} == before
        )  # which has the probe of `check`


@pytest.mark.parametrize("inside", ["", "/sub"])
def test_a_state_folder_that_cannot_be_used(looked, tmp_path, inside):
    """Is a problem of `check`, as nothing leaves without a ledger."""
    (tmp_path / "state").write_text("a file")
    file = policy(tmp_path, 9)
    file.write_text(file.read_text().replace('state = "state"', f'state = "state{inside}"'))
    before = listing(tmp_path)
    check, decide = looked(file)
    code, out, err = cli(*check)
    assert code == FAILED
    assert "what is not in the egress ledger does not leave" in out, err
    assert "cannot be read" in cli(*decide)[2]
    assert listing(tmp_path) == before


def test_infer_says_that_it_delivers(looked, tmp_path):
    """Before the first answer, how many requests wait; in its summary what became of them; nothing without an outbox."""
    with CannedServer(http_reply(status=503), close=True) as server:
        path = policy(tmp_path, server.port)
        with Router.from_policy(path) as router:
            router.infer(UNSURE, data_class="product")
        note = "the outbox is delivered to the cloud while this runs: 1 waiting"
        more = ("infer", "-p", path, tmp_path / "x.npy", "--class", "product", "--mode", "only_edge")
        code, out, err = cli(*more)
        assert (code, err.strip()) == (0, note)
        assert "0 delivered meanwhile, 1 waiting" in out
    plain = tmp_path / "plain.toml"
    plain.write_text('threshold = 0.9\n[edge]\npath = "small.onnx"\n')
    assert "outbox" not in cli("infer", "-p", plain, tmp_path / "x.npy")[1]
    assert "deliver what waits in the outbox" in " ".join(cli("infer", "--help")[1].split())
