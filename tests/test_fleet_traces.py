"""Traces as Parquet: what JSON has, Parquet has; its size; and files that are damaged, foreign or too large."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
from math import inf
from pathlib import Path
from random import Random

import pytest
from both import LONG, flat
from commands import cli
from draws import draws
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeroute import BadInput, Cache, EdgerouteError, Function, PlainJson, PolicyError, Router, RuntimeMissing, Trace
from edgeroute.policy import load
from edgeroute.stores.json_lines_and_process_locks import Journal
from edgeroute.stores.json_lines_and_process_locks import read as lines
from edgeroute.system.json_codec_and_short_repr import json_dumps, json_loads, to_json_types
from edgeroute.tools.replay import parquet_trace_format as parquet
from edgeroute.tools.replay import read
from edgeroute.tools.replay.read_and_pack_traces import TraceRecords, pack, traces

pytestmark = pytest.mark.matrix
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def plain(record):
    """The record as a journal writes it."""
    return json_loads(json_dumps(record, to_json_types), exact=True)


def back(tmp_path, records):
    """The records, written and read, whose JSON texts are compared, too."""
    path = tmp_path / "trace.parquet"
    records = [plain(record) for record in records]
    assert parquet.write_parquet(path, records) == len(records)
    found = list(parquet.read_parquet(path))
    assert found == records
    return path, found


def recorded(**given):
    """Records of a router of this process, in which requests are served by all ways: edge, cloud, cache, batch, stream."""
    records = []
    policy = {"threshold": 0.5, "deadline": LONG, **given}
    cloud = policy.pop("cloud", Function(lambda x: ("cloud", 0.9), usd_per_call=0.1, joules_per_call=0.3))
    with Router(lambda x: ("edge", x), cloud, **flat(trace=Trace(records.append, inputs=True), **policy)) as router:
        for x in (0.9, 0.1, 0.1, float("nan"), None):
            router.infer(x)
        with contextlib.suppress(EdgerouteError):
            router.infer(inf)
        router.infer_many([0.8, 0.2, 0.3])
        list(router.refine(0.2))
        router.infer(0.3, data_class="caf\u00e9")
    return records


@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"cache": Cache()},
        {"hedge_after": 0.0},
        {"mode": "only_edge"},
        {"mode": "prefer_cloud"},
        {"threshold": inf},
        {"cloud": PlainJson("http://127.0.0.1:9/x", retries=0), "offline": "edge"},
        {"offline": "edge", "cloud": Function(lambda x: 1 / 0)},
    ],
)
def test_what_a_router_records(tmp_path, policy):
    """Batches, refinements, the cache, hedges, failures, inputs, unusual confidences: the text of the JSON is the same."""
    records = [plain(record) for record in recorded(**policy)]
    _, found = back(tmp_path, records)
    if "cloud" not in policy:  # the codes of an error come after its cost
        assert [json.dumps(record) for record in found] == [json.dumps(record) for record in records]


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.text(max_size=4), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
        st.sampled_from([0.0, -0.0, 0, 1e-7, 0.123456, 1e15, 1e300, 2**53, -1, 10**30, "inf", "\ud800", "\0"]),
    ),
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(st.sampled_from(["a", "confidence", "at_s", "leg"]) | st.text(max_size=3), parts, max_size=3),
    max_leaves=6,
)  # fmt: skip
EVENTS = st.lists(
    st.fixed_dictionaries(
        {"at_s": st.floats(0, 1).map(lambda x: round(x, 6)) | JSON, "leg": st.sampled_from(["edge", "cloud"]) | JSON, "what": st.just("start") | JSON},
        optional=dict.fromkeys((*parquet.EVENT[2:], "check", "status", "again"), JSON),
    ),
    max_size=3,
)  # fmt: skip
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "at": st.floats(1e9, 2e9).map(lambda x: round(x, 3)) | JSON,
        "latency_s": st.floats(0, 10).map(lambda x: round(x, 6)) | JSON,
        "events": EVENTS | JSON,
        "facts": st.dictionaries(st.sampled_from([*parquet.FACTS, "busy"]), st.floats(0, 1) | JSON) | JSON,
        "reading": st.dictionaries(st.sampled_from(["age_s", "battery", "mains", "x"]), st.floats(0, 1).map(lambda x: round(x, 6)) | JSON)
        | JSON,
        "input": st.fixed_dictionaries({"type": st.just("json"), "base64": st.binary().map(lambda b: base64.b64encode(b).decode())}) | JSON,
        **dict.fromkeys(("version", "id", "mode", "deadline_s", "data_class", "answered_by", "accepted", "reason_code", "shape", "read_at"), JSON),
    },
)  # fmt: skip


def same(left, right):
    """Equal, and of the same types, with the same signs of zero, the same keys, but in any order."""
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


@settings(max_examples=draws(300), deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=4))
def test_any_object_of_json(tmp_path_factory, records):
    """Whatever the values and types of known and unknown keys."""
    path = tmp_path_factory.mktemp("any") / "x.parquet"
    parquet.write_parquet(path, records)
    found = list(parquet.read_parquet(path))
    assert all(same(*pair) for pair in zip(found, records, strict=True))


def test_convert_both_ways(tmp_path):
    """A trace with its rotated files and a line that a power cut truncated; and back."""
    path, records = tmp_path / "trace.jsonl", recorded()
    journal = Journal(path, max_bytes=2_000, keep=100)
    for record in records:
        journal.append(record)
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"at": 1')
    code, out, err = cli("trace", "convert", path, tmp_path / "t.parquet")
    assert (code, err) == (0, "")
    assert f"{len(records)} records" in out
    assert "left out 1 incomplete line" in out
    code, out, _ = cli("trace", "convert", tmp_path / "t.parquet", tmp_path / "back.jsonl")
    assert code == 0
    assert list(lines(tmp_path / "back.jsonl")) == list(lines(path))
    code, _, err = cli("trace", "convert", path, tmp_path / "t.parquet")
    assert (code, err.count("\n"), "--force" in err) == (2, 1, True)
    assert cli("trace", "convert", path, tmp_path / "t.parquet", "--force")[0] == 0
    for source, name, suffix in ((path, "o.jsonl", ".parquet"), (tmp_path / "t.parquet", "o.parquet", ".jsonl")):
        code, _, err = cli("trace", "convert", source, tmp_path / name)
        assert (code, (tmp_path / name).exists()) == (1, False)
        assert f"is written as {suffix}, not as" in err
    assert "is written as" not in cli("trace", "convert", tmp_path / "none", tmp_path / "o.jsonl")[2]
    if os.name == "posix":
        assert (tmp_path / "t.parquet").stat().st_mode & 0o077 == 0
    assert not list(tmp_path.glob("*.new"))


WRITES = """
import sys
from pathlib import Path
from edgeroute.tools.replay.parquet_trace_format import replacing
with replacing(Path(sys.argv[1])) as new:
    print(new, flush=True)
    sys.stdin.read()
"""


def test_a_conversion_deletes_what_a_killed_one_left(tmp_path):
    """What another process is writing to the same file stays, and so does what is no such file."""
    trace, out = tmp_path / "trace.jsonl", tmp_path / "out.parquet"
    trace.write_text('{"at": 1.0, "id": "a"}\n')
    others = [out.with_name("out.parquet.mine.new"), out.with_name("out.parquet.0123456789ab.new.txt")]
    for other in others:
        other.touch()
    with contextlib.ExitStack() as stack:
        files = []
        for _ in range(2):
            argv = [sys.executable, "-c", WRITES, out]
            process = stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            files.append((process, Path(process.stdout.readline().strip())))
        (killed, left), (lives, written) = files
        assert left.exists()
        killed.kill()
        killed.wait(LONG)
        assert cli("trace", "convert", trace, out)[0] == 0
        assert sorted([written, out, trace, *others]) == sorted(tmp_path.iterdir())
        lives.communicate(timeout=LONG)
    assert not written.exists()


def test_a_trace_is_converted_on_a_file_system_without_locks(tmp_path, monkeypatch):
    """As on some network mounts; nothing but the new file is there afterwards."""
    trace, out = tmp_path / "trace.jsonl", tmp_path / "out.parquet"
    trace.write_text('{"at": 1.0, "id": "a"}\n')

    def no_locks(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    code, _, err = cli("trace", "convert", trace, out)
    assert (code, err) == (0, "")
    assert sorted(tmp_path.iterdir()) == [out, trace]


def test_a_folder_is_converted(tmp_path):
    """Each trace below it, and the new ones are replayed as the old ones."""
    for name in ("a", "b"):
        journal = Journal(tmp_path / "in" / name / "trace.jsonl")
        for record in recorded():
            journal.append(record)
        journal.close()
    assert cli("trace", "convert", tmp_path / "in", tmp_path / "out")[0] == 0
    assert sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.parquet")) == [
        "a/trace.parquet", "b/trace.parquet",
    ]  # fmt: skip
    (tmp_path / "in" / "empty.jsonl").write_text("")
    code, out, err = cli("trace", "convert", tmp_path / "in", tmp_path / "out", "--force")
    assert (code, len(out.splitlines()), err.count("\n"), "empty.jsonl" in err) == (1, 2, 1, True)
    ours, theirs = (read(path) for path in (tmp_path / "in" / "a" / "trace.jsonl", tmp_path / "out" / "a" / "trace.parquet"))
    assert ours.requests == theirs.requests or repr(ours.requests) == repr(theirs.requests)  # a NaN is unequal to itself
    assert ours.readings == theirs.readings


@pytest.mark.parametrize("sensors", [False, True])
def test_fifteen_bytes_a_line(tmp_path, sensors):
    """Of requests at random times, of random confidences in 53 bits, with random latencies: where JSON has 800.

    With readings of sensors, every ten seconds of as many requests, confidences have 24 bits, as most models give them.
    """
    names = {"site": "plant-7", "policy": "0123456789ab", "models": {"edge": "edge:0123456789ab"}, "signed": "shop-7"}
    rng, template = Random(1), [plain(record) for record in recorded() if len(record.get("events", ())) in {2, 4}]
    records, time, kinds, seen = [], 1.7e9, [template[0]] * 4 + [template[1]], 11.0
    for i in range(20_000):
        record = json.loads(json.dumps(rng.choice(kinds)))
        time += round(rng.expovariate(1 if sensors else 1 / 30), 3)
        for event in record["events"]:
            event["at_s"] = 0.0 if event is record["events"][0] else round(rng.lognormvariate(-5, 0.5), 6)
            if "confidence" in event and event["leg"] == "edge":
                event["confidence"] = rng.getrandbits(24) / 2**24 if sensors else rng.random()
        record |= {"id": f"10baaf7ecee8-{i}", "at": round(time, 3), "latency_s": record["events"][-1]["at_s"], "fleet": names}
        record.pop("reading", None)
        if sensors:
            age_s = round(time % 10, 3)
            if age_s < seen:  # another reading
                shares = {name: round(rng.random(), 3) for name in ("battery", "cpu", "cpu_pressure", "memory_available")}
                reading = {**shares, "temperature_c": round(rng.uniform(40, 60), 1), "power_w": round(rng.uniform(2, 9), 2)}
            seen, record["reading"] = age_s, {"age_s": age_s, **reading, "mains": True}
        record.pop("input", None)
        records.append(record)
    path, _ = back(tmp_path, records)
    assert path.stat().st_size / len(records) < 15
    assert sum(len(json.dumps(record)) for record in records) / len(records) > 500


def test_lines_are_read_in_order(tmp_path, monkeypatch):
    """Of many row groups too, in each of which records of a kind follow each other."""
    monkeypatch.setattr(parquet, "ROWS", 8)
    records = [{**record, "id": f"r-{i}"} for i, record in enumerate(recorded() * 3)]
    path, _ = back(tmp_path, records)
    lines = pq.read_table(path).column("line").to_pylist()
    assert pq.ParquetFile(path).num_row_groups == -(-len(records) // 8)
    assert sorted(lines) == [*range(len(records))] != lines


def stored_once(path, name, encoding):
    """Write a trace of 2,000 records whose ids, or inputs, are the same 20,000 bytes, which the file has once."""
    rows = 2000
    parquet.write_parquet(path, (plain(record) for record in recorded()[:1] * rows))
    table, cells = pq.read_table(path), pa.array([b"x" * 20_000] * rows, parquet.schema().field(name).type)
    table = table.set_column(table.schema.names.index(name), table.schema.field(name), cells)
    delta = {} if encoding == "dictionary" else {"use_dictionary": False, "column_encoding": {name: encoding}}
    pq.write_table(table, path, compression="zstd", store_schema=False, **delta)
    parquet.seal(path)


@pytest.mark.parametrize("encoding", ["dictionary", "DELTA_BYTE_ARRAY"])
@pytest.mark.parametrize("name", ["id", "input"])
def test_cells_that_are_stored_once(tmp_path, monkeypatch, name, encoding):
    """They count as often as they are there: the file is small, and so is what it says of its size."""
    path = tmp_path / "trace.parquet"
    stored_once(path, name, encoding)
    assert path.stat().st_size < 100_000
    assert len(list(parquet.read_parquet(path))) == 2000
    monkeypatch.setattr(parquet, "MOST_BYTES", 1 << 24)
    monkeypatch.setattr(parquet, "PART", 1 << 22)
    with pytest.raises(BadInput, match=r"trace\.parquet: row group 0 unpacks to more"):
        list(parquet.read_parquet(path))
    code, out, err = cli("trace", "convert", path, tmp_path / "out.jsonl")
    assert (code, out, err.count("\n"), "trace.parquet" in err) == (1, "", 1, True), err


def test_texts_of_events_are_shared(tmp_path, monkeypatch):
    """An error that many events have is in memory once; what else they have is bounded in each record, as templates are."""
    record = plain(recorded()[0])
    event = {"at_s": 0.0, "leg": "edge", "what": "x", "error": "e" * 2000}
    _, (found,) = back(tmp_path, [{**record, "events": [event] * 50}])
    assert len({id(event["error"]) for event in found["events"]}) == 1
    for long in ({"events": [{**event, "also": "m" * 2000}] * 50}, {"also": "m" * 100_000}):
        path, _ = back(tmp_path, [{**record, **long}])
        with monkeypatch.context() as patched:
            patched.setattr(parquet, "LONGEST", 50_000)
            with pytest.raises(BadInput, match="too long"):
                list(parquet.read_parquet(path))


@pytest.mark.parametrize(("name", "most"), [("MOST_BYTES", 1 << 18), ("MOST_ROWS", 64)])
def test_what_is_written_is_read(tmp_path, monkeypatch, name, most):
    """A row group ends before it is too large for its readers, by inputs and by events."""
    record = plain(recorded()[0])
    data = {"type": "bytes", "base64": base64.b64encode(os.urandom(6000)).decode()}
    monkeypatch.setattr(parquet, name, most)
    path, _ = back(tmp_path, [{**record, "id": f"r-{i}", "input": data} for i in range(100)])
    assert pq.ParquetFile(path).num_row_groups > 1


def test_typed_columns(tmp_path):
    """Any reader of Parquet has times, confidences and costs without the template."""
    path, records = back(tmp_path, recorded())
    table = pq.read_table(path).sort_by("line")
    assert table.column("latency_us").to_pylist() == [round(record["latency_s"] * 1e6) for record in records]
    assert [at.timestamp() for at in table.column("at").to_pylist()] == pytest.approx([record["at"] for record in records])
    assert table.column("answered_by").to_pylist() == [record["answered_by"] for record in records]
    usd = [sum(event.get("usd") or 0 for event in record.get("events", ())) for record in records]
    assert [sum(event["usd"] or 0 for event in events or ()) for events in table.column("events").to_pylist()] == pytest.approx(
        usd
    )


def ids(path):
    """The ids of a trace, in order."""
    return [request.id for request in read(path).requests]


def test_full_files_become_parquet(tmp_path):
    """Each answer once and in order: in files of Parquet, in the two latest files of JSON, and what `keep` dropped."""
    path = tmp_path / "trace.jsonl"
    trace = Trace(path, max_bytes=4_000, keep=1000, format="parquet")
    with Router(lambda x: ("edge", x), threshold=0.0, trace=trace) as router:
        expected = [router.infer(0.9).id for _ in range(200)]
    pack(path, 1000)
    names = sorted(file.name for file in tmp_path.iterdir() if file.suffix != ".lock")
    assert {"trace.jsonl", "trace.jsonl.1", "trace.jsonl.00000001.parquet"} <= {*names}
    assert not any(name.endswith((".packing", ".new", ".2")) for name in names)
    assert ids(path) == expected
    assert [*traces(tmp_path)] == ["trace.jsonl"]
    pack(path, 3)
    assert len([*tmp_path.glob("*.parquet")]) == 2
    assert ids(path) == expected[-len(ids(path)) :]


def test_files_that_are_full_while_others_become_parquet(tmp_path, monkeypatch):
    """Writers go on in the middle of a packing, and the answers keep their order."""
    path = tmp_path / "trace.jsonl"
    rename = Path.rename
    with Router(lambda x: ("edge", x), threshold=0.0, trace=Trace(path, max_bytes=4_000, keep=1000)) as router:
        expected = [router.infer(0.9).id for _ in range(50)]

        def write_first(file, target):
            expected.extend(router.infer(0.9).id for _ in range(20))
            return rename(file, target)

        monkeypatch.setattr(Path, "rename", write_first)
        pack(path, 1000)
        monkeypatch.undo()
        expected += [router.infer(0.9).id for _ in range(50)]
        pack(path, 1000)
    assert len(expected) > 120
    assert len([*tmp_path.glob("*.parquet")]) > 5
    assert ids(path) == expected


WRITER = """
import sys
from edgeroute import Router, Trace
trace = Trace(sys.argv[1], max_bytes=20_000, keep=1000, format="parquet")
with Router(lambda x: ("edge", x), threshold=0.0, trace=trace) as router:
    print("ready", flush=True)
    while True:
        router.infer(0.9)
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_kill_9_costs_no_line(tmp_path):
    """Whenever a process is killed, while it writes or makes Parquet: what it had written is read, each line once."""
    path, last = tmp_path / "trace.jsonl", 0
    for wait_s in (0.3, 0.6, 0.9):
        with subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE) as process:
            assert process.stdout.readline() == b"ready\n"
            threading.Event().wait(wait_s)  # any instant will do
            process.kill()
        found = ids(path)
        runs = {}
        for name in found:
            runs.setdefault(name.partition("-")[0], []).append(int(name.partition("-")[2]))
        assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in runs.values())
        assert len(found) >= last
        last = len(found)
    pack(path, 1000)
    pack(path, 1000)
    assert len(ids(path)) == last
    assert not [*tmp_path.glob("*.packing")]


def test_a_pack_leaves_another_writers_file(tmp_path):
    """A conversion beside the trace is not one that a killed process left."""
    path = tmp_path / "trace.jsonl"

    def records():
        for record in map(plain, recorded()):
            pack(path, 9)
            yield record

    path.touch()
    assert parquet.write_parquet(tmp_path / "trace.jsonl.1.parquet", records()) > 0


def test_a_pack_that_was_cut_off(tmp_path):
    """Files of JSON that were to become Parquet are read, and the next call goes on with them; what is both counts once."""
    path = tmp_path / "trace.jsonl"
    lines_of = [json.dumps(record) + "\n" for record in map(plain, recorded())]
    (tmp_path / "trace.jsonl.00000001.packing").write_text("".join(lines_of[:2]))
    parquet.write_parquet(tmp_path / "trace.jsonl.00000001.parquet", map(json.loads, lines_of[:2]))
    (tmp_path / "trace.jsonl.00000002.packing").write_text("".join(lines_of[2:4]))
    path.write_text("".join(lines_of[4:]))
    expected = [json.loads(line) for line in lines_of]
    assert list(TraceRecords(path, exact=True)) == expected
    pack(path, 9)
    assert list(TraceRecords(path, exact=True)) == expected
    assert len([*tmp_path.glob("*.parquet")]) == 2


def test_the_format_of_a_trace(tmp_path, monkeypatch):
    """A policy names it; without pyarrow, of a function, or of another name it is an error at the start."""
    (tmp_path / "policy.toml").write_text('threshold = 0.5\nstate = "s"\n[trace]\nformat = "parquet"\n')
    assert load(tmp_path / "policy.toml", ["edge"]).trace.format == "parquet"
    for to, name in ((print, "parquet"), (tmp_path / "x", "csv")):
        with pytest.raises(PolicyError, match="parquet"):
            Trace(to, format=name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(RuntimeMissing, match=r"edgeroute\[parquet\]"):
        Trace(tmp_path / "x", format="parquet")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    code, _, err = cli("top", "--record", tmp_path / "x.parquet")
    assert (code, err.count("\n"), "jsonl" in err) == (1, 1, True)


def damaged(tmp_path):
    """Name -> content of files that are no traces in Parquet."""
    path, _ = back(tmp_path, recorded())
    good = path.read_bytes()
    other = tmp_path / "other"
    pq.write_table(pa.table({"a": [1, 2]}), other)
    form = parquet.schema()
    bomb = tmp_path / "bomb"
    rows = parquet.MOST_ROWS + 1
    nulls = pa.table([pa.nulls(rows, field.type) for field in form], schema=form)
    pq.write_table(nulls, bomb, row_group_size=rows, store_schema=False)
    shapeless = tmp_path / "shapeless"
    pq.write_table(pa.table([pa.nulls(3, field.type) for field in form], schema=form), shapeless, store_schema=False)
    unsealed = other.read_bytes()
    for path in (other, bomb, shapeless):
        parquet.seal(path)
    return {
        "truncated": good[:-20], "half": good[: len(good) // 2], "magic": b"PAR1", "unsealed": unsealed, "other": other.read_bytes(),
        "hole": good[:400] + bytes(600) + good[1000:], "bomb": bomb.read_bytes(), "shapeless": shapeless.read_bytes(),
    }  # fmt: skip


def test_damaged_and_foreign_files(tmp_path):
    """Each is refused in one line with its name, by `replay` and by `convert`, which writes nothing."""
    for name, content in damaged(tmp_path).items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(content)
        with pytest.raises(BadInput) as refused:
            read(path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
        code, out, err = cli("trace", "convert", path, tmp_path / "out.jsonl")
        assert (code, out, err.count("\n"), name in err) == (1, "", 1, True), err
        assert not list(tmp_path.glob("out.jsonl*"))


def test_any_damage_is_an_error_of_one_line(tmp_path):
    """Bytes flipped at random: the records are those that were written, or the file is refused, and nothing else happens."""
    path, records = back(tmp_path, recorded())
    good, rng = path.read_bytes(), Random(7)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(len(bad))] = rng.randrange(256)
        path.write_bytes(bytes(bad))
        error = None
        try:
            assert len(list(parquet.read_parquet(path))) <= len(records)
        except BadInput as e:
            error = str(e)
        assert error is None or (str(path) in error and "\n" not in error)
