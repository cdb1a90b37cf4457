"""Digests of a fleet as tables: what is counted, what is refused by name, and what damage and hostile names do."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from datetime import date, timedelta
from pathlib import Path

import fleets
import pytest
from both import LONG
from commands import PYTHON, cli

from edgeroute import StoreError
from edgeroute.fleet.digest_encoding_and_coarsening import encode, path_of

pytestmark = pytest.mark.matrix
duckdb = pytest.importorskip("duckdb")

TODAY = date(2026, 11, 29)


def fleet(folder, devices=6, days=2, **more):
    """Digests below `folder/in`."""
    digests = list(fleets.random_fleet(devices, days, **more))
    fleets.put(folder / "in", digests)
    return digests


def collect(folder, **rules):
    """A run over `folder/in` into `folder/store`."""
    from edgeroute.tools.fleet.digest_collection import Rules
    from edgeroute.tools.fleet.digest_collection import collect as run
    from edgeroute.tools.fleet.digest_sources import source_of

    return run(source_of(str(folder / "in")), folder / "store", Rules(TODAY, **rules))


def sums(folder):
    """Requests, audits and rows of digests in the store."""
    from edgeroute.tools.fleet.digest_parquet_store import open_store

    with open_store(folder / "store") as store:
        sql = "SELECT (SELECT sum(requests) FROM requests), (SELECT sum(audited) FROM audits), (SELECT count(*) FROM digests)"
        return store.execute(sql).fetchone()


def expected(digests):
    """The same of the digests themselves."""
    return (
        sum(row[2] for d in digests for row in d.requests),
        sum(row[3] for d in digests for row in d.audits),
        len(digests),
    )


def test_the_tables_have_what_the_digests_have(tmp_path):
    """A second run adds nothing, and a store that is written directly reads alike."""
    digests = fleet(tmp_path)
    assert collect(tmp_path).added == len(digests)
    assert sums(tmp_path) == expected(digests)
    again = collect(tmp_path)
    assert (again.added, again.repeated, again.refused) == (0, len(digests), {})
    assert sums(tmp_path) == expected(digests)
    direct = tmp_path / "direct"
    fleets.write_store(direct / "store", digests)
    assert sums(direct) == expected(digests)


def test_the_highest_revision_counts(tmp_path):
    """In one run, after an older one is in the store, and not after a newer one."""
    digests = fleet(tmp_path)
    newer = [digests[0]._replace(revision=r, requests=digests[0].requests[:r]) for r in (3, 2)]
    fleets.put(tmp_path / "in", newer)
    assert collect(tmp_path).added == len(digests)
    digests[0] = newer[0]
    assert sums(tmp_path) == expected(digests)
    late = digests[1]._replace(revision=5, audits=())
    fleets.put(tmp_path / "in", [late, digests[2]._replace(revision=1, requests=())])
    assert collect(tmp_path).added == 1
    digests[1] = late
    assert sums(tmp_path) == expected(digests)


def test_the_command_prints_what_it_did(tmp_path):
    """As JSON, and in words."""
    fleet(tmp_path)
    code, out, err = cli("fleet", "collect", tmp_path / "in", "--to", tmp_path / "store", "--json")
    assert (code, json.loads(out)["added"], err) == (0, 12, "")
    code, out, err = cli("fleet", "collect", tmp_path / "in", "--to", tmp_path / "store")
    assert (code, out) == (0, "0 digests added; in the store already: 12\n")
    assert "refused" not in err


def test_hostile_names_are_data(tmp_path):
    """Of folders, with quotes and patterns of the shell, and of sites, with SQL; a connection reads no other file."""
    from edgeroute.tools.fleet.digest_parquet_store import open_store

    folder = Path(tmp_path, 'it\'s [a-z]* "store"; --')
    digests = fleet(folder)
    site = "'); DROP VIEW requests; --"
    digests += [digests[0]._replace(device="0" * 32, site=site)]
    fleets.put(folder / "in", digests[-1:])
    assert collect(folder).added == len(digests)
    assert sums(folder) == expected(digests)
    with open_store(folder / "store") as store:
        assert store.execute("SELECT count(DISTINCT device) FROM requests WHERE site = ?", [site]).fetchone() == (1,)
        for sql in (
            "FROM read_text('/etc/hostname')",
            "COPY (SELECT 1) TO '/dev/null'",
            "INSTALL httpfs",
            "SET memory_limit = '9GB'",
        ):
            with pytest.raises(duckdb.Error):
                store.execute(sql)


KEY = b"key of the fleet"


def forged(digest):
    """Signed with another key."""
    return path_of(digest), encode(digest, b"another key")


def cut(digest):
    """Without the last bytes."""
    return path_of(digest), encode(digest, KEY)[:-9]


def changed(digest):
    """With a number that is not signed: the text is compressed anew."""
    text = zlib.decompress(encode(digest, KEY))
    return path_of(digest), zlib.compress(text.replace(b'"revision":1', b'"revision":1 '), 9)


def large(digest):
    """More bytes than a digest may have."""
    return path_of(digest), os.urandom(2000)


def bomb(digest):
    """A few bytes that become many."""
    return path_of(digest), zlib.compress(bytes(900_000), 9)


def renamed(digest):
    """Under another device's name."""
    return path_of(digest._replace(device="f" * 32)), encode(digest, KEY)


def of_another_day(digest):
    """In another day's folder, as a copy would be."""
    return path_of(digest._replace(day="2026-11-20")), encode(digest, KEY)


def of_tomorrow(digest):
    """Of a day that has not begun."""
    digest = digest._replace(day=str(TODAY + timedelta(days=1)))
    return path_of(digest), encode(digest, KEY)


def of_long_ago(digest):
    """By a device whose clock was reset."""
    digest = digest._replace(day="1970-01-01")
    return path_of(digest), encode(digest, KEY)


def of_an_unknown_model(digest):
    """In one of its groups."""
    digest = digest._replace(groups=(("small:ffffffffffff", *digest.groups[0][1:]), *digest.groups[1:]))
    return path_of(digest), encode(digest, KEY)


def picture(digest):
    """A file of something else."""
    return f"digests/{digest.day}/cat.png", b"\x89PNG"


def text(digest):
    """No digest, under a digest's name."""
    return path_of(digest), b"{}"


def folder(digest):
    """A folder under a digest's name."""
    return path_of(digest), None


BAD = {
    forged: "forged", changed: "forged", cut: "truncated", large: "too_large", bomb: "too_large", renamed: "misnamed", of_another_day: "misnamed",
    of_tomorrow: "future", of_long_ago: "stale", of_an_unknown_model: "unknown_model", picture: "foreign", text: "malformed",
    folder: "unread",
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "why"), BAD.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_bad_digest_is_named_and_in_no_sum(tmp_path, spoil, why):
    """It is counted apart; the others count, and the good one in its place later."""
    digests = list(fleets.random_fleet(4, 2))
    fleets.put(tmp_path / "in", digests[1:], KEY)
    name, data = spoil(digests[0])
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is None:
        path.mkdir()
    else:
        path.write_bytes(data)
    rules = {"key": KEY, "models": frozenset({"small:0123456789ab", "large"})}
    result = collect(tmp_path, **rules)
    assert (result.added, +result.refused) == (len(digests) - 1, {why: 1})
    assert sums(tmp_path) == expected(digests[1:])
    lines = [json.loads(line) for line in (tmp_path / "store" / "refused.jsonl").read_text().splitlines()]
    assert [(line["name"], line["why"]) for line in lines] == [(name.removeprefix("digests/"), why)]
    if data is None:
        path.rmdir()
    fleets.put(tmp_path / "in", digests[:1], KEY)
    assert collect(tmp_path, **rules).added == 1
    assert sums(tmp_path) == expected(digests)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
def test_links_and_pipes_stop_no_collection(tmp_path):
    """Whoever may write to the folder makes no other be read, and nothing wait: each is refused by name."""
    digests = list(fleets.random_fleet(3, 1))
    day = fleets.put(tmp_path / "in", digests)[0].parent
    (day.parent / "loop").symlink_to("loop")
    (day.parent / "2026-11-03").symlink_to(day)
    os.mkfifo(day / f"{'1' * 32}.1.digest")
    (day / f"{'2' * 32}.1.digest").symlink_to("/dev/zero")
    result = collect(tmp_path)
    assert (result.added, +result.refused) == (len(digests), {"foreign": 2, "unread": 2})
    assert sums(tmp_path) == expected(digests)


def test_a_forged_later_revision_does_not_hide_the_true_one(tmp_path):
    """Whoever may write to the folder, and has no key, removes nothing."""
    digests = list(fleets.random_fleet(3, 1))
    fleets.put(tmp_path / "in", digests, KEY)
    fleets.put(tmp_path / "in", [digests[0]._replace(revision=99, requests=())], b"another key")
    assert collect(tmp_path, key=KEY).added == len(digests)
    assert sums(tmp_path) == expected(digests)


def test_the_report_of_refusals_is_bounded(tmp_path, monkeypatch):
    """It has some, each once, however often they are refused."""
    from edgeroute.tools.fleet import digest_collection

    monkeypatch.setattr(digest_collection, "MOST_NAMED", 5)
    here = tmp_path / "in" / "digests" / "2026-11-02"
    here.mkdir(parents=True)
    for i in range(9):
        (here / f"{i}.txt").write_text("x")
    for _ in range(2):
        assert collect(tmp_path).refused["foreign"] == 9
    lines = (tmp_path / "store" / "refused.jsonl").read_text().splitlines()
    assert len({json.loads(line)["name"] for line in lines}) == len(lines) == 5


def test_the_report_of_refusals_can_always_be_read_again(tmp_path):
    """Whatever the names are: those of control characters and of other planes are twelve times as long in JSON."""
    from edgeroute.tools.fleet.digest_collection import MOST_NAMED, Refusal, report_refusals

    names = [f"{i:05}" + "\U0001f600\x01" * 120 for i in range(MOST_NAMED)]
    for turn in (names[: MOST_NAMED // 2], names[MOST_NAMED // 2 :], names[:1]):
        report_refusals(tmp_path, [Refusal(name, "foreign") for name in turn])
    path = tmp_path / "refused.jsonl"
    lines = path.read_text().splitlines()
    assert 1000 < len(lines) < MOST_NAMED
    assert [json.loads(line)["name"][:5] for line in lines[-2:]] == [names[-1][:5], names[0][:5]]
    assert path.stat().st_size < 2**24


@pytest.mark.parametrize("kind", ["large", "bytes", "folder"])
def test_a_report_of_refusals_that_cannot_be_read_is_set_aside(tmp_path, kind):
    digests, path = fleet(tmp_path, 2, 1), tmp_path / "store" / "refused.jsonl"
    (tmp_path / "in" / "digests" / "2026-11-02" / "x.txt").write_text("x")
    path.parent.mkdir()
    if kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"x\n" * 2**23 + b"x" if kind == "large" else b"\xff")
    result = collect(tmp_path)
    assert (result.added, result.refused["foreign"]) == (len(digests), 1)
    assert [json.loads(line)["why"] for line in path.read_text().splitlines()] == ["foreign"]
    assert path.with_name("refused.jsonl.damaged").exists()


def test_damaged_tables_are_written_again(tmp_path):
    """Cut off, or without a column, or by other thresholds: the file is set aside, and the next run reads the day's digests again."""
    digests = fleet(tmp_path)
    collect(tmp_path)
    tables = tmp_path / "store"
    for table in ("requests", "digests"):
        path = tables / table / "day=2026-11-02" / "rows.parquet"
        path.write_bytes(path.read_bytes()[:-5])
    shutil.copy(tables / "audits" / "day=2026-11-03" / "rows.parquet", tables / "confidences" / "day=2026-11-03" / "rows.parquet")
    path, parquet = max((tables / "audits").glob("day=*/rows.parquet")), pytest.importorskip("pyarrow.parquet")
    table = parquet.ParquetFile(path).read()
    parquet.write_table(table.rename_columns(["index" if name == "grid" else name for name in table.column_names]), path)
    assert collect(tmp_path).added == len(digests)
    assert sums(tmp_path) == expected(digests)
    assert len([*tables.rglob("*.damaged")]) == 5


def test_a_damaged_day_whose_digests_are_gone_is_named(tmp_path):
    """The bucket was emptied meanwhile: each report says which table lacks the day, until its digests are collected again."""
    from edgeroute.tools.fleet.digest_parquet_store import open_store

    digests = fleet(tmp_path)
    collect(tmp_path)
    path = tmp_path / "store" / "requests" / "day=2026-11-02" / "rows.parquet"
    path.write_bytes(path.read_bytes()[:-5])
    (tmp_path / "in" / "digests").rename(tmp_path / "kept")
    assert collect(tmp_path).added == 0
    with open_store(tmp_path / "store") as connection:
        lost = connection.execute("SELECT file FROM refused ORDER BY file").fetchall()
    assert lost == [(f"{table}/day=2026-11-02/rows.parquet",) for table in ("digests", "requests")]
    (tmp_path / "kept").rename(tmp_path / "in" / "digests")
    collect(tmp_path)
    assert sums(tmp_path) == expected(digests)
    with open_store(tmp_path / "store") as connection:
        assert connection.execute("SELECT * FROM refused").fetchall() == []


def test_a_killed_run_leaves_a_store_that_reads_and_goes_on(tmp_path):
    """Killed whenever a further table of a day is there: nothing is counted twice, and the next run adds the rest."""
    digests = fleet(tmp_path, devices=60, days=4)
    command = [*PYTHON, "fleet", "collect", str(tmp_path / "in"), "--to", str(tmp_path / "store")]
    for table, day in (("requests", "02"), ("audits", "03"), ("digests", "04"), ("confidences", "05")):
        path = tmp_path / "store" / table / f"day=2026-11-{day}" / "rows.parquet"
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            until = time.monotonic() + LONG
            while not path.exists() and process.poll() is None and time.monotonic() < until:
                pass
            process.send_signal(signal.SIGKILL)
        requests, _, there = sums(tmp_path)
        assert requests <= expected(digests)[0]
        assert there <= len(digests)
    collect(tmp_path)
    assert sums(tmp_path) == expected(digests)
    assert not (tmp_path / "store" / ".parts").exists()


def test_many_digests_are_read_by_several_processes(tmp_path, monkeypatch):
    """With the same result as by one."""
    from edgeroute.tools.fleet import digest_collection

    monkeypatch.setattr(digest_collection, "FEW", 10)
    monkeypatch.setattr(digest_collection, "PART", 25)
    monkeypatch.setattr(digest_collection, "MERGE", 60)
    digests = fleet(tmp_path, devices=50, days=3)
    fleets.put(tmp_path / "in", [digests[0]._replace(revision=2)])
    assert collect(tmp_path).added == len(digests)
    assert sums(tmp_path) == expected(digests)


def test_a_second_run_at_the_same_time_is_refused(tmp_path):
    """It would write the same files."""
    from edgeroute.stores.json_lines_and_process_locks import ProcessLock

    fleet(tmp_path)
    lock = ProcessLock(tmp_path / "store" / ".collect.lock")
    assert lock.take()
    with pytest.raises(StoreError, match="another collect"):
        collect(tmp_path)
    lock.leave()


def test_a_store_that_cannot_be_written_is_an_error(tmp_path):
    """Of one line."""
    fleet(tmp_path)
    (tmp_path / "store").write_text("a file")
    code, _, err = cli("fleet", "collect", tmp_path / "in", "--to", tmp_path / "store")
    assert (code, err.count("\n")) == (2, 1)


def test_a_full_disk_leaves_the_store_as_it_was(tmp_path):
    """The cause is named in one line; the run after, with room, adds what is missing."""
    digests = fleet(tmp_path, devices=200, days=1)
    collect(tmp_path)
    late = digests[0]._replace(revision=2, requests=())
    fleets.put(tmp_path / "in", [late])
    store = tmp_path / "store"
    most = (store / "requests" / "day=2026-11-02" / "rows.parquet").stat().st_size * 2 // 3
    limit = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most})); "
    code = "runpy.run_module('edgeroute', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", limit + code, "fleet", "collect", str(tmp_path / "in"), "--to", str(store)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "File too large" in run.stderr
    assert "make room" in run.stderr
    assert sums(tmp_path) == expected(digests)
    (store / "digests" / "day=2026-11-02" / ".rows.new").mkdir()  # the last file of the day cannot be written
    with pytest.raises(StoreError):
        collect(tmp_path)
    assert sums(tmp_path) == expected(digests)
    (store / "digests" / "day=2026-11-02" / ".rows.new").rmdir()
    assert collect(tmp_path).added == 1
    assert sums(tmp_path) == expected([late, *digests[1:]])


def test_a_damaged_page_of_a_table_is_named(tmp_path):
    """No command reads on; the next collect that has to write the day sets the file aside, and the one after reads the digests again."""
    digests = fleet(tmp_path)
    collect(tmp_path)
    path = tmp_path / "store" / "requests" / "day=2026-11-02" / "rows.parquet"
    data = bytearray(path.read_bytes())
    data[10:1500] = bytes(1490)
    path.write_bytes(data)
    name = "requests/day=2026-11-02/rows.parquet"
    for command in ("report", "alarm"):
        code, _, err = cli("fleet", command, tmp_path / "store")
        assert (code, err.count("\n"), name in err) == (2, 1, True)
    late = digests[0]._replace(revision=2)
    fleets.put(tmp_path / "in", [late])
    with pytest.raises(StoreError, match=name):
        collect(tmp_path)
    collect(tmp_path)
    assert sums(tmp_path) == expected([late, *digests[1:]])


@pytest.mark.parametrize("table", ["requests", "digests"])
def test_a_damaged_page_is_written_again_though_nothing_is_new(tmp_path, table):
    """As the report's error says that collect does."""
    digests = fleet(tmp_path)
    collect(tmp_path)
    path = tmp_path / "store" / table / "day=2026-11-02" / "rows.parquet"
    data = bytearray(path.read_bytes())
    data[10:400] = bytes(390)
    path.write_bytes(data)
    assert cli("fleet", "report", tmp_path / "store")[0] == 2
    assert collect(tmp_path).added > 0
    assert sums(tmp_path) == expected(digests)
    assert cli("fleet", "report", tmp_path / "store")[0] == 0


def test_no_sum_overflows(tmp_path):
    """Devices that tell the largest numbers that a digest may have do not stop the report."""
    digests = list(fleets.random_fleet(700, 1))
    huge = [
        d._replace(requests=tuple((*row[:2], 10**9, 10**9, 0, 0, 10**15, 10**15, *row[8:]) for row in d.requests))
        for d in digests
    ]
    fleets.write_store(tmp_path / "store", huge)
    for day in range(5, 25):
        shutil.copytree(
            tmp_path / "store" / "requests" / "day=2026-11-02", tmp_path / "store" / "requests" / f"day=2026-10-{day:02}"
        )
    code, out, _ = cli("fleet", "report", tmp_path / "store", "--json")
    assert code == 0
    assert json.loads(out)["total"]["bytes"] > 2**63


def test_idle_devices_are_a_report(tmp_path):
    """Digests without a request: devices are counted, and shares are unknown."""
    fleets.write_store(
        tmp_path / "store", [d._replace(requests=(), audits=(), confidences=()) for d in fleets.random_fleet(3, 2)]
    )
    code, out, _ = cli("fleet", "report", tmp_path / "store", "--html", tmp_path / "page.html", "--budget", "5")
    assert code == 0
    assert "Too little is known" in out
