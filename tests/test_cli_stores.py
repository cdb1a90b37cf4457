"""`edgeroute outbox` and `edgeroute egress` as they are run, on the files that routers leave and use."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
from datetime import datetime
from math import inf, nan

import pytest
import routes
import typer
from commands import cli

from edgeroute import Egress, Outbox, PolicyError, Prediction, Router, Unreachable
from edgeroute.stores.json_lines_and_process_locks import Journal
from edgeroute.stores.outbox import Waiting
from edgeroute.stores.sqlite_file_and_key_values import KeyValueStore
from edgeroute.system import wall_clock
from edgeroute.testing import CannedServer, FakeCloud
from edgeroute.tools.cli.outbox_egress_and_state_folder import parse_time
from edgeroute.tools.cli.tables_and_options import local_time

LONG = 120.0
"""Seconds after which a test that waits for something has failed."""
DAY_S = 86400.0
COMMANDS = [
    ["outbox", "list"], ["outbox", "retry", "--all"], ["outbox", "drop", "--all-dead", "--yes"], ["outbox", "export"], ["egress"],
]  # fmt: skip


def entries(state, *args):
    """What `outbox list --json` says of each entry, by id; and the counts."""
    code, out, err = cli("outbox", "list", "--json", "--state", state, *args)
    assert (code, err) == (0, "")
    said = json.loads(out)
    return {entry["id"]: entry for entry in said["entries"]}, said["counts"]


def at(text):
    """The instant that a table shows in the machine's time."""
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S").astimezone().timestamp()


def rows(text):
    """The cells of each row of the tables in a text, without their headings."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


@pytest.fixture
def state(tmp_path):
    """A folder with an outbox of three: one waits, one is answered, one is dead, of a server that tries to steer terminals."""
    box = Outbox(tmp_path / "outbox.db", ttl_s=365 * DAY_S)
    now = wall_clock.now()
    box.put(
        Waiting(
            "w-1", "cloud", "call", b"\x00body", "POST", "/x", [("A", "b")], "photo", queued_at=now - 30 * DAY_S, ready_at=now
        )
    )
    box.put(Waiting("a-2", "cloud", "call", b"2", importance=float("inf"), provisional={"value": "cat"}))
    box.put(Waiting("d-3", "other", "call", b"3"))
    box.answer("a-2", Prediction("dog", 0.9, None), attempts=1)
    box.bury("d-3", "other answered 400: \x1b[31m[bold]no")
    box.close()
    return tmp_path


@pytest.fixture
def ledger(tmp_path):
    """A folder with an egress ledger of four lines in two files, and half a line."""
    journal = Journal(tmp_path / "egress.jsonl", max_bytes=300)
    for at, to, size, name in [
        (1_700_000_000.0, "https://a.example/x", 100, "photo"),
        (1_700_000_100.0, "https://b.example/x", 1000, None),
        (1_700_000_200.0, "https://a.example/x", 10_000, "photo"),
        (1_700_000_300.0, "https://a.example/x", 1, "text"),
    ]:
        journal.append({"at": at, "to": to, "bytes": size, "data_class": name, "rule": "a rule", "request": f"r-{size}"})
    journal.close()
    assert (tmp_path / "egress.jsonl.1").exists()
    with (tmp_path / "egress.jsonl").open("a") as file:
        file.write('{"at": 17')
    return tmp_path


# --------------------------------------------------------------------------------------------------- outbox
def test_status_beside_a_program_that_has_the_outbox_for_itself(state):
    """It says so at once, and shows the rest."""
    store = KeyValueStore(state / "state.db")
    store.put("latency", {})
    store.close()
    with contextlib.closing(sqlite3.connect(state / "outbox.db", isolation_level=None)) as holder:
        holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        code, out, err = cli("status", "--state", state)
        assert (code, "outbox: cannot be read now" in out) == (0, True), err
    assert "1 waiting" in cli("status", "--state", state)[1]


def test_list_in_a_table(state):
    """Each entry is a row, a dash stands for nothing, what would steer a terminal is not printed; the counts follow."""
    code, out, err = cli("outbox", "list", "--state", state)
    assert (code, err) == (0, "")
    (waiting, answered, dead) = rows(out)
    assert waiting[:4] == ["w-1", "waiting", "cloud", "photo"]
    assert answered[:4] == ["a-2", "answered", "cloud", "-"]
    assert dead[:4] == ["d-3", "dead", "other", "-"]
    assert [row[5] for row in (waiting, answered, dead)] == ["0", "1", "1"]
    assert at(waiting[4]) == pytest.approx(wall_clock.now() - 30 * DAY_S, abs=120)
    assert dead[7] == "other answered 400: \ufffd[31m[bold]no"
    assert "since the file was made: 3 stored, 1 delivered, 0 called, 1 dead" in out
    assert "now: 1 waiting, " in out


def test_list_as_json(state):
    """The entries and the counts, in JSON that any reader takes; `--state-is` leaves out the others."""
    found, counts = entries(state)
    assert {name: entry["state"] for name, entry in found.items()} == {"w-1": "waiting", "a-2": "answered", "d-3": "dead"}
    assert found["a-2"]["importance"] is None  # infinity is not JSON
    assert (counts["stored"], counts["waiting"], counts["delivered"]) == (3, 1, 1)
    assert counts["bytes"] == sum(entry["bytes"] for entry in found.values())
    for name in ("waiting", "answered", "dead"):
        assert [entry["state"] for entry in entries(state, "--state-is", name)[0].values()] == [name]
    assert cli("outbox", "list", "--state", state, "--state-is", "lost")[0] == 2


def test_looking_drops_nothing(state):
    """What is older than any time to live is shown: when it is too old is a matter of the policy that a router has."""
    for _ in range(2):
        found, counts = entries(state)
        assert found["w-1"]["queued_at"] < wall_clock.now() - 29 * DAY_S
        assert counts["dropped_expired"] == 0


def test_a_long_list_is_cut(tmp_path):
    """The table has the latest five hundred, and says so; JSON has them all."""
    box = Outbox(tmp_path / "outbox.db")
    box.put(Waiting("first", "cloud", "call", b""))
    box.close()
    with sqlite3.connect(tmp_path / "outbox.db") as c:
        columns = [row[1] for row in c.execute("PRAGMA table_info(outbox_entries)") if row[1] not in {"seq", "id"}]
        names = ", ".join(columns)
        c.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 503)"
            f" INSERT INTO outbox_entries (id, {names}) SELECT 'e-' || i, {names} FROM n, outbox_entries WHERE seq = 1"
        )
    c.close()
    code, out, _ = cli("outbox", "list", "--state", tmp_path)
    found = rows(out)
    assert (code, len(found), found[0][0], found[-1][0]) == (0, 500, "e-4", "e-503")
    assert "the latest 500 of 503" in out
    assert len(entries(tmp_path)[0]) == 503


def test_retry(state):
    """Dead entries wait again, those that are named or all; one that is not dead is named, and the exit code tells."""
    code, out, err = cli("outbox", "retry", "w-1", "d-3", "d-3", "none", "--state", state)
    assert (code, out) == (1, "waiting again: 1\n")
    assert err == "error: w-1: there is no dead entry with this id\nerror: none: there is no dead entry with this id\n"
    assert entries(state)[0]["d-3"]["state"] == "waiting"
    box = Outbox(state / "outbox.db", ttl_s=365 * DAY_S)
    for name in ("w-1", "d-3"):
        box.bury(name, "no")
    box.close()
    assert cli("outbox", "retry", "--all", "--state", state) == (0, "waiting again: 2\n", "")
    assert cli("outbox", "retry", "--all", "--state", state) == (0, "waiting again: 0\n", "")


def test_drop_asks_first(state):
    """No answer and "n" remove nothing, "y" does; `--yes` does not ask."""
    for said in ("", "n\n"):
        code, out, err = cli("outbox", "drop", "w-1", "d-3", "--state", state, input=said)
        assert (code, out.strip()) == (130, "")
        assert "remove 2 (dead, waiting) for good?" in err
        assert len(entries(state)[0]) == 3
    code, out, _ = cli("outbox", "drop", "w-1", "--state", state, input="y\n")
    assert (code, out.strip()) == (0, "1 removed")
    assert cli("outbox", "drop", "a-2", "a-2", "w-1", "--yes", "--state", state) == (
        1, "1 removed\n", "error: w-1: there is no entry with this id\n",
    )  # fmt: skip
    found, counts = entries(state)
    assert ([*found], counts["dropped_by_hand"]) == (["d-3"], 2)


def test_drop_all_dead(state):
    """The others stay; where there is none, nobody is asked."""
    assert cli("outbox", "drop", "--all-dead", "--yes", "--state", state) == (0, "1 removed\n", "")
    assert {*entries(state)[0]} == {"w-1", "a-2"}
    assert cli("outbox", "drop", "--all-dead", "--state", state) == (0, "0 removed\n", "")


@pytest.mark.parametrize("args", [["retry"], ["retry", "x", "--all"], ["drop"], ["drop", "x", "--all-dead"], []])
def test_wrong_usage(state, args):
    """Neither ids nor all, or both, or no command at all."""
    code, _, err = cli("outbox", *args, *(["--state", state] if args else []))
    assert (code, "Traceback" in err) == (2, False)
    assert len(entries(state)[0]) == 3


def test_export(state):
    """A line for each entry, with all that it holds."""
    code, out, err = cli("outbox", "export", "--state", state)
    assert (code, err) == (0, "")
    waiting, answered, dead = map(json.loads, out.splitlines())
    assert base64.b64decode(waiting["body"]) == b"\x00body"
    assert (waiting["headers"], waiting["data_class"]) == ([["A", "b"]], "photo")
    assert (answered["value"], answered["provisional"], answered["body"]) == ("dog", {"value": "cat"}, None)
    assert dead["id"] == "d-3"


def test_export_to_a_file(state):
    """A new one, for the owner's eyes; one that is there is left alone, and one that cannot be made is said."""
    out = state / "out.jsonl"
    assert cli("outbox", "export", "--out", out, "--state", state) == (0, f"entries in {out}: 3\n", "")
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    before = out.read_bytes()
    assert [json.loads(line)["id"] for line in before.splitlines()] == ["w-1", "a-2", "d-3"]
    code, _, err = cli("outbox", "export", "--out", out, "--state", state)
    assert (code, err) == (2, f"error: {out} exists: choose another name\n")
    assert out.read_bytes() == before
    code, _, err = cli("outbox", "export", "--out", state / "none" / "out", "--state", state)
    assert (code, err) == (2, f"error: {state / 'none' / 'out'} cannot be written: No such file or directory\n")
    code, _, err = cli("outbox", "export", "--out", out / "below", "--state", state)
    assert (code, err) == (2, f"error: {out / 'below'} cannot be written: Not a directory\n")


def test_export_to_a_full_disk(state):
    """No part of the entries is left, which would look like all of them."""
    pytest.importorskip("resource")
    out, box = state / "part.jsonl", Outbox(state / "outbox.db", ttl_s=365 * DAY_S)
    box.put(Waiting("large", "cloud", "call", bytes(1 << 20)))
    box.close()
    command = ["edgeroute", "outbox", "export", "--out", str(out), "--state", str(state)]
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, 1 << 19))"
    program = f"{limit}; sys.argv = {command}; from edgeroute.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=LONG)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {out} cannot be written: File too large\n")
    assert not [*state.glob("part.jsonl*")]


def test_a_reader_that_stops_is_no_crash(state):
    """As `| head` does; the pipe is full long before the end."""
    box = Outbox(state / "outbox.db", ttl_s=365 * DAY_S)
    box.put(Waiting("large", "cloud", "call", bytes(1 << 20)))
    box.close()
    command = [sys.executable, "-m", "edgeroute", "outbox", "export", "--state", str(state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_beside_a_router(tmp_path):
    """While a router has the files: they are shown and changed, and it is the router that sends, not the command."""
    cloud = FakeCloud(lambda x: Unreachable("away") if x == 1 else ("dog", 0.9))
    with Router(lambda _: ("cat", 0.1), cloud, threshold=0.5, offline="queue", state=tmp_path) as router:
        answer = router.infer(1)
        assert routes.queued(answer) == routes.WAITING
        found, counts = entries(tmp_path)
        assert (found[answer.id]["state"], counts["waiting"]) == ("waiting", 1)
        assert cli("outbox", "drop", answer.id, "--yes", "--state", tmp_path)[0] == 0
        assert entries(tmp_path)[0] == {}
        again = router.infer(1)
        assert [*entries(tmp_path)[0]] == [again.id]
        assert answer.id in cli("egress", "--state", tmp_path)[1]


def test_the_router_sends_what_is_retried(tmp_path):
    """The command makes it due; whoever delivers finds it."""
    box = Outbox(tmp_path / "outbox.db")
    box.put(Waiting("d-1", "cloud", "input", b"7", headers=[("Content-Type", "application/json")]))
    box.bury("d-1", "refused")
    box.close()
    cloud = FakeCloud([("dog", 0.9)])
    with Router(lambda _: ("cat", 0.1), cloud, threshold=0.5, offline="queue", state=tmp_path):
        assert cli("outbox", "retry", "d-1", "--state", tmp_path)[0] == 0
        assert cloud.begun.wait(LONG)


def test_nothing_is_sent(tmp_path):
    """A policy whose cloud would answer, and a request that is due: no command connects to it."""
    box = Outbox(tmp_path / "kept" / "outbox.db")
    box.put(Waiting("w-1", "cloud", "call", b"{}", "POST", "/"))
    box.close()
    with CannedServer(None) as server:
        policy = tmp_path / "policy.toml"
        policy.write_text(f'state = "kept"\noffline = "queue"\n[cloud]\nprotocol = "json"\nurl = "{server.url}"\n')
        for args in COMMANDS[:4]:
            assert cli(*args, "--policy", policy)[0] == 0
        assert server.connections == 0
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["outbox.db"]
    assert entries(tmp_path / "kept")[0]["w-1"]["attempts"] == 0


# -------------------------------------------------------------------------------------------------- folders
@pytest.mark.parametrize("args", COMMANDS)
def test_where_there_is_nothing(args, tmp_path):
    """It is said, and nothing is made: not in a folder, and no folder."""
    for folder in (tmp_path, tmp_path / "none"):
        code, out, err = cli(*args, "--state", folder)
        assert (code, out) == (1, "")
        assert err.startswith(f"error: {folder}/")
        assert "there is no " in err
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("args", COMMANDS)
def test_one_of_the_two_is_needed(args, state):
    """Neither a policy nor a folder, and both."""
    for given in ([], ["--policy", state / "p.toml", "--state", state]):
        code, out, err = cli(*args, *given)
        assert (code, out) == (2, "")
        assert "--policy or --state" in err


def test_a_policys_folder(state, tmp_path):
    """Relative to the policy, wherever the command is run; a variable overrules it; without one nothing is kept."""
    folder = tmp_path / "home" / "kept"
    folder.mkdir(parents=True)
    (state / "outbox.db").rename(folder / "outbox.db")
    policy = folder.parent / "policy.toml"
    policy.write_text('state = "kept"\n[edge]\npath = "none.onnx"\n')
    code, out, err = cli("outbox", "list", "--policy", policy, "--json")
    assert (code, err, len(json.loads(out)["entries"])) == (0, "", 3)
    code, _, err = cli("outbox", "list", "--policy", policy, env={**os.environ, "EDGEROUTE_STATE": "elsewhere"})
    assert (code, err.startswith(f"error: {folder.parent / 'elsewhere'}/outbox.db: there is no outbox")) == (1, True)
    policy.write_text('[edge]\npath = "none.onnx"\n')
    code, out, err = cli("egress", "--policy", policy, "--json")
    assert (code, out, json.loads(err)["kind"]) == (2, "", PolicyError.__name__)
    assert "has no state folder" in err


def test_a_broken_outbox(tmp_path):
    """It is said in a line."""
    (tmp_path / "outbox.db").write_bytes(b"not a database, by far" * 100)
    code, out, err = cli("outbox", "list", "--state", tmp_path, "--json")
    assert (code, out) == (2, "")
    assert json.loads(err.splitlines()[-1])["kind"] == "StoreError"


# --------------------------------------------------------------------------------------------------- egress
@pytest.mark.parametrize("at", [1e30, -1e30, inf, nan, 10.0**12])
def test_an_instant_that_no_calendar_has(at):
    """A file may hold it: it is shown as it is."""
    assert local_time(at) == f"{at:g} s"


def test_egress_in_tables(ledger):
    """A row for each attempt, oldest first and from all files; then the totals; what cannot be read is counted."""
    code, out, err = cli("egress", "--state", ledger)
    assert code == 0
    assert err == "1 incomplete lines were skipped, as after a power cut or on a full disk\n"
    found = rows(out)
    assert [row[1:] for row in found[:4]] == [
        ["https://a.example/x", "100", "photo", "a rule", "r-100"],
        ["https://b.example/x", "1,000", "-", "a rule", "r-1000"],
        ["https://a.example/x", "10,000", "photo", "a rule", "r-10000"],
        ["https://a.example/x", "1", "text", "a rule", "r-1"],
    ]
    assert at(found[0][0]) == 1_700_000_000
    assert found[4:] == [
        ["https://a.example/x", "photo", "2", "10,100"],
        ["https://b.example/x", "-", "1", "1,000"],
        ["https://a.example/x", "text", "1", "1"],
    ]


@pytest.mark.parametrize(
    ("args", "sizes"),
    [
        ([], [100, 1000, 10_000, 1]),
        (["--class", "photo"], [100, 10_000]),
        (["--to", "b.example"], [1000]),
        (["--class", "photo", "--to", "b.example"], []),
        (["--since", "2023-11-14T22:16:00+00:00"], [10_000, 1]),
        (["--since", "1h"], []),
    ],
)
def test_egress_as_json(ledger, args, sizes):
    """What matches, its totals and how many lines were skipped."""
    code, out, err = cli("egress", "--json", "--state", ledger, *args)
    said = json.loads(out)
    assert (code, err, [line["bytes"] for line in said["sent"]]) == (0, "", sizes)
    assert all(line.keys() == {"at", "to", "bytes", "data_class", "rule", "request"} for line in said["sent"])
    assert (sum(t["bytes"] for t in said["totals"]), sum(t["attempts"] for t in said["totals"])) == (sum(sizes), len(sizes))
    assert said["skipped"] == 1


def test_egress_where_nothing_matches(ledger):
    """It is said."""
    code, out, _ = cli("egress", "--state", ledger, "--class", "none")
    assert (code, out) == (0, "the ledger has no such attempts\n")


@pytest.mark.parametrize(
    "line",
    ["{}", "[1]", '{"at": "now", "to": "x", "bytes": 1, "data_class": null, "rule": "", "request": ""}',
     '{"at": 1, "to": "x", "bytes": null, "data_class": null, "rule": "", "request": ""}'],
)  # fmt: skip
def test_lines_that_are_none(tmp_path, line):
    """JSON that is no line of a ledger is skipped, too."""
    (tmp_path / "egress.jsonl").write_text(line + "\n")
    said = json.loads(cli("egress", "--json", "--state", tmp_path)[1])
    assert said == {"sent": [], "totals": [], "skipped": 1}


def test_egress_after_the_first_file_was_renamed(ledger):
    """In the moment in which a full file has its new name, and the next is not begun."""
    (ledger / "egress.jsonl").unlink()
    assert json.loads(cli("egress", "--json", "--state", ledger)[1])["sent"]


def test_a_routers_ledger(tmp_path):
    """What a router notes is what is shown: an attempt that failed, too, and its request's id; reading adds nothing."""
    cloud, rules = FakeCloud([Unreachable("away"), ("dog", 0.9)]), Egress(may_leave=["photo"])
    with Router(lambda _: ("cat", 0.1), cloud, threshold=0.5, state=tmp_path, egress=rules) as router:
        ids = [router.infer(1, data_class=name).id for name in ("photo", "diary", "photo")]
        before = (tmp_path / "egress.jsonl").read_bytes()
        said = json.loads(cli("egress", "--json", "--state", tmp_path)[1])
        assert [(line["request"], line["data_class"]) for line in said["sent"]] == [(ids[0], "photo"), (ids[2], "photo")]
        assert (tmp_path / "egress.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "ago_s"), [("1h", 3600), ("90m", 5400), ("7d", 7 * DAY_S), (" 1.5 d ", 1.5 * DAY_S), ("200ms", 0.2)]
)
def test_times_ago(text, ago_s):
    """Seconds before now, in any unit."""
    first = wall_clock.now()
    assert first - ago_s <= parse_time(text) <= wall_clock.now() - ago_s


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
def test_dates(zone, monkeypatch):
    """By the machine's own clock, unless they say otherwise."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        midnight = 1_795_478_400 - (9 * 3600 if zone != "UTC" else 0)
        assert parse_time("2026-11-24") == midnight
        assert parse_time("2026-11-24T12:30") == midnight + 12.5 * 3600
        assert parse_time("2026-11-24T00:00+00:00") == 1_795_478_400
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("text", ["", "yesterday", "1", "-1h", "1w", "2026-13-01", "24.11.2026"])
def test_times_that_are_none(text):
    """What would be right is said."""
    with pytest.raises(typer.BadParameter, match="a time ago, as in 90m"):
        parse_time(text)
