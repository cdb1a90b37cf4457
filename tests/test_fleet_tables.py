"""Digests of a fleet as tables: what is counted, what is refused by name, and what damage and hostile names do."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import fleets
import pytest
from commands import cli

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
    from edgeroute.tools.fleet.digest_tables import open_store

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
    assert (again.added, again.refused["repeated"]) == (0, len(digests))
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
    assert (code, out) == (0, "0 digests added\n")
    assert "12 refused: already in the store" in err


def test_hostile_names_are_data(tmp_path):
    """Of folders, with quotes and patterns of the shell, and of sites, with SQL; a connection reads no other file."""
    from edgeroute.tools.fleet.digest_tables import open_store

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
