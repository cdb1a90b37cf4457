"""The journal: real files, shared by threads and processes, cut off, full and torn."""

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeroute import StoreError
from edgeroute.stores.json_lines_and_process_locks import Journal, read
from edgeroute.system import json_codec_and_short_repr

WRITER = """
import sys
from edgeroute.stores.json_lines_and_process_locks import Journal

path, who, count, max_bytes, keep = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
journal = Journal(path, max_bytes=max_bytes, keep=keep)
print("ready", flush=True)
sys.stdin.readline()
i = 0
while i != count:
    journal.append({"who": who, "i": i, "pad": "x" * (i * 7 % 50)})
    i += 1
"""


def writers(path, count, *, number=4, max_bytes=1 << 30, keep=4):
    """Processes that append `count` lines each (-1: without end), and all begin at once."""
    argv = [sys.executable, "-c", WRITER, str(path)]
    started = [
        subprocess.Popen([*argv, *map(str, (who, count, max_bytes, keep))], stdin=-1, stdout=-1, text=True)
        for who in range(number)
    ]
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    return started


def end(processes):
    for process in processes:
        process.communicate()
    return [process.returncode for process in processes]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "down" / "journal.jsonl"


@pytest.fixture
def make(path):
    """Makes journals, and closes them."""
    made = []

    def make(**options):
        made.append(Journal(path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(params=["orjson", "json"])
def either(request, monkeypatch):
    """With the fast encoder and without."""
    if request.param == "json":
        monkeypatch.setattr(json_codec_and_short_repr, "orjson", None)


def test_lines(path, make):
    """Each record is a line of JSON in a file that only its owner may read; closed or not, the next one follows it."""
    old = os.umask(0)
    log = make()
    log.append({"at": 1.5, "to": "cloud"})
    os.umask(old)
    log.close()
    log.append(MappingProxyType({"at": 2}))
    assert path.read_bytes() == b'{"at":1.5,"to":"cloud"}\n{"at":2}\n'
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("either")
def test_what_json_lacks(path, make):
    """NaN and infinities become null, numpy's values plain ones, and whatever else text; no value is an error."""
    make().append({
        "nan": float("nan"), "inf": [-float("inf")], "numpy": {"f": np.float32(0.5), "n": np.float32("nan"), "a": np.arange(2), "d": np.float64("nan")},
        "set": {1}, "big": 1 << 80, "half": "\ud800", 5: (True, None), "path": path.name,
    })  # fmt: skip
    assert list(read(path)) == [{
        "nan": None, "inf": [None], "numpy": {"f": 0.5, "n": None, "a": [0, 1], "d": None},
        "set": "{1}", "big": 1 << 80, "half": "\ud800", "5": [True, None], "path": path.name,
    }]  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(records=st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=12), max_bytes=st.integers(1, 400))
def test_what_was_written_is_read(tmp_path_factory, records, max_bytes):
    """Any records come back, in order, whatever the size at which files are full."""
    path = tmp_path_factory.mktemp("journal") / "j"
    log = Journal(path, max_bytes=max_bytes, keep=20)
    for record in records:
        log.append(record)
    log.close()
    assert list(read(path)) == records
    assert all(p.stat().st_size for p in path.parent.iterdir())


def test_rotation(path, make):
    """A full file is renamed, the oldest goes, none is larger than it may be unless one line is, and the newest are there."""
    log = make(max_bytes=100, keep=2)
    for i in range(40):
        log.append({"i": i, "pad": "x" * 20})
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.1", f"{path.name}.2"]
    assert all(0 < p.stat().st_size <= 100 for p in path.parent.iterdir())
    numbers = [r["i"] for r in read(path)]
    assert numbers == list(range(numbers[0], 40))
    assert len(numbers) >= 5
    log.append({"pad": "x" * 500})
    log.append({"i": 41})
    assert [len(r.get("pad", "")) for r in read(path)][-2:] == [500, 0]


def test_a_rotation_that_was_cut_off(path, make):
    """Killed between two renames, it left a gap in the numbers: nothing is lost, then or by the next rotation."""
    path.parent.mkdir(parents=True)
    path.with_name(f"{path.name}.2").write_text('{"i":0}\n')
    path.write_text('{"i":1}\n')
    assert [r["i"] for r in read(path)] == [0, 1]
    make(max_bytes=1).append({"i": 2})
    assert [r["i"] for r in read(path)] == [0, 1, 2]


def test_processes_share_a_file(path):
    """Lines of several processes and their rotations never mix, and none is lost while files are kept."""
    assert end(writers(path, 3000, max_bytes=20_000, keep=100)) == [0] * 4
    reading = read(path)
    records = list(reading)
    assert reading.skipped == 0
    assert Counter(r["who"] for r in records) == dict.fromkeys(range(4), 3000)
    assert Counter((r["who"], r["i"]) for r in records).most_common(1)[0][1] == 1
    files = list(path.parent.iterdir())
    assert len(files) > 5
    assert all(p.stat().st_size for p in files)


def test_read_while_it_is_written(path):
    """A reader among writers and rotations sees each line once, each writer's in order, and none torn in a full file."""
    started = writers(path, 4000, number=2, max_bytes=20_000, keep=1000)
    rounds, total = 0, 0
    while total < 2 * 4000:
        reading = read(path)
        got = list(reading)
        total, rounds = len(got), rounds + 1
        assert len({(r["who"], r["i"]) for r in got}) == total
        assert reading.skipped <= 2
        if all(p.poll() is not None for p in started):
            total = len(list(read(path)))
            break
    assert end(started) == [0, 0]
    assert total == 2 * 4000


@pytest.mark.slow
def test_kill_9(path):
    """A process that is killed leaves whole lines but for its last, and those that follow go on."""
    rng = random.Random(5)
    for round_number in range(1, 6):
        started = writers(path, -1, number=2, max_bytes=50_000, keep=1000)
        enough = rng.randrange(2000)
        while len(list(read(path))) < round_number * enough:
            pass
        for process in started:
            process.send_signal(signal.SIGKILL)
        assert end(started) == [-9, -9]
        reading = read(path)
        assert all(set(r) == {"who", "i", "pad"} for r in reading)
        assert reading.skipped <= 2 * round_number


def test_a_torn_line_costs_no_other(path, make):
    """What a power cut left without its end is ended first, also where another process's write was cut while ours is open."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b'{"i":1}\n{"i":2,"wh')
    log = make()
    log.append({"i": 3})
    with path.open("ab") as other:
        other.write(b"\0\0\0")
    log.append({"i": 4})
    reading = read(path)
    assert [r["i"] for r in reading] == [1, 3, 4]
    assert reading.skipped == 2
    assert path.read_bytes().endswith(b'\0\0\0\n{"i":4}\n')


def test_what_is_no_record_is_skipped(path):
    """Lines that are no JSON, no object, or too deep are counted, and empty ones are nothing."""
    path.parent.mkdir(parents=True)
    path.write_bytes(b'\n[1]\n{"a":1}\n\xff\n' + b"[" * 100_000 + b'\n \n{"b":2}')
    reading = read(path)
    for _ in range(2):
        assert list(reading) == [{"a": 1}, {"b": 2}]
        assert reading.skipped == 3


def test_a_line_without_end_takes_little_memory(path):
    """A file of anything is no record, and the next line is read; a limit of the memory shows that it is not read at once."""
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for _ in range(150):
            file.write(b"x" * (1 << 20))
        file.write(b'\n{"a":1}\n')
    script = f"""import resource
from edgeroute.stores.json_lines_and_process_locks import read
reading = read({str(path)!r})
resource.setrlimit(resource.RLIMIT_DATA, (140 << 20, 140 << 20))
print(list(reading), reading.skipped)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[{'a': 1}] 1\n", "")


def test_since(path, make):
    """Records before that instant are left out; those without one are not."""
    log = make(max_bytes=30)
    for record in ({"at": 1.0}, {"at": 2}, {"i": 0}, {"at": "?"}, {"at": 3.5}):
        log.append(record)
    assert list(read(path, since=2.0)) == [{"at": 2}, {"i": 0}, {"at": "?"}, {"at": 3.5}]


def test_nothing_to_read(path):
    """No file is no record; a file that cannot be opened is a StoreError."""
    assert list(read(path)) == []
    (path.parent / "x.jsonl").mkdir(parents=True)
    with pytest.raises(StoreError, match=r"x\.jsonl: Is a directory"):
        list(read(path.parent / "x.jsonl"))


def test_copies_beside_it(path, make):
    """Other files of a like name are left alone, even one with a large number."""
    log = make(max_bytes=10)
    log.append({"i": 1})
    for name in ("gz", "2.bak", "x.1"):
        (path.parent / f"{path.name}.{name}").write_text("no")
    path.with_name(f"{path.name}.20240101").write_text('{"i":0}\n')
    log.append({"i": 2})
    reading = read(path)
    assert [r["i"] for r in reading] == [0, 1, 2]
    assert reading.skipped == 0


def test_a_file_that_is_taken_away(path, make):
    """Removed or renamed by somebody else, it is begun anew."""
    log = make()
    log.append({"i": 1})
    path.unlink()
    log.append({"i": 2})
    path.rename(path.with_name("elsewhere"))
    log.append({"i": 3})
    assert [r["i"] for r in read(path)] == [3]


def test_a_rotation_by_another(path, make):
    """Who finds the file full and another process at it goes on in the same file; the next time it rotates by itself."""
    import fcntl

    log = make(max_bytes=10)
    log.append({"i": 1})
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        log.append({"i": 2})
        assert path.read_bytes() == b'{"i":1}\n{"i":2}\n'
    log.append({"i": 3})
    assert path.read_bytes() == b'{"i":3}\n'


def test_what_another_has_rotated(path, make, monkeypatch):
    """A journal whose file was renamed by another writes into the new one, and does not rename again."""
    one, two = make(max_bytes=10), make(max_bytes=10)
    one.append({"i": 1})
    real = os.stat

    def stat(file):
        found = real(file)
        monkeypatch.undo()
        two.append({"i": 2})
        return found

    monkeypatch.setattr(os, "stat", stat)  # it finds the file full, and just then another rotates it
    one.append({"i": 3})
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.1"]
    assert path.read_bytes() == b'{"i":2}\n{"i":3}\n'


def test_a_rotation_while_files_are_opened(path, make, monkeypatch):
    """Files that are renamed between two that are opened are read once each."""
    log = make(max_bytes=10)
    log.append({"i": 1})
    log.append({"i": 2})
    real = os.fstat

    def rotate(fd):
        monkeypatch.undo()
        log.append({"i": 3})
        return real(fd)

    monkeypatch.setattr(os, "fstat", rotate)
    assert [r["i"] for r in read(path)] == [1, 2]
    assert [r["i"] for r in read(path)] == [1, 2, 3]


def descriptors(path):
    """Those of this process that are of this file."""
    for fd in [int(file.name) for file in Path("/dev/fd").iterdir()]:
        with contextlib.suppress(OSError):  # the one that listed them
            if os.path.samestat(os.fstat(fd), path.stat()):
                yield fd


def test_a_descriptor_that_went_bad(path, make):
    """After any failure the next line opens the file again."""
    log = make()
    log.append({"i": 1})
    (fd,) = descriptors(path)
    os.close(fd)
    with pytest.raises(StoreError, match="Bad file descriptor"):
        log.append({"i": 2})
    log.append({"i": 3})
    assert [r["i"] for r in read(path)] == [1, 3]


def test_a_full_disk(path, make):
    """No room for a whole line: it raises, and with room again the next line is whole. The lines before stay."""
    log = make()
    log.append({"i": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (14, hard))
        for _ in range(2):  # a part fits, then nothing
            with pytest.raises(StoreError, match="journal"):
                log.append({"i": 2, "pad": "x" * 50})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.append({"i": 3})
    reading = read(path)
    assert [r["i"] for r in reading] == [1, 3]
    assert reading.skipped == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_full_and_one_that_is_read_only(path):
    """A real file system without room, then without leave: it raises and says why, and works when that is over."""
    path.parent.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", path.parent], check=True)
    log = Journal(path)
    try:
        log.append({"i": 0})
        filler = path.parent / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(1 << 20))
        with pytest.raises(StoreError, match=r"No space|no room"):
            any(log.append({"i": i}) for i in range(1, 10_000))
        filler.unlink()
        log.append({"i": -1})
        reading = read(path)
        numbers = [r["i"] for r in reading]
        assert numbers[:-1] == list(range(len(numbers) - 1))
        assert numbers[-1] == -1
        assert reading.skipped <= 1
        log.close()
        subprocess.run(["mount", "-o", "remount,ro", path.parent], check=True)
        with pytest.raises(StoreError, match="Read-only"):
            log.append({"i": -2})
        subprocess.run(["mount", "-o", "remount,rw", path.parent], check=True)
        log.append({"i": -3})
        assert [r["i"] for r in read(path)][-2:] == [-1, -3]
    finally:
        log.close()
        subprocess.run(["umount", path.parent], check=True)


def test_threads(path, make):
    """Threads of one process share a journal, and its rotations."""
    log = make(max_bytes=5000, keep=1000)
    threads = [
        threading.Thread(target=lambda who=who: [log.append({"who": who, "i": i}) for i in range(500)]) for who in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = [(r["who"], r["i"]) for r in read(path)]
    assert sorted(records) == [(who, i) for who in range(4) for i in range(500)]
    assert all([i for w, i in records if w == who] == list(range(500)) for who in range(4))


def test_fork(path, make, monkeypatch):
    """A child goes on in the same file, though another thread was in the middle of a line, and both rotate."""
    log = make(max_bytes=300, keep=1000)
    log.append({"who": "before", "i": 0})
    held, forked, real = threading.Event(), threading.Event(), os.stat

    def stat(file, **options):
        if threading.current_thread() is thread:
            held.set()
            forked.wait(30)
        return real(file, **options)

    monkeypatch.setattr(os, "stat", stat)
    thread = threading.Thread(target=log.append, args=[{"who": "thread", "i": 0}])
    thread.start()
    assert held.wait(30)
    child = os.fork()
    forked.set()
    if not child:
        signal.alarm(30)  # it ends, whatever lock it waits for
    who = "parent" if child else "child"
    for i in range(300):
        log.append({"who": who, "i": i})
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    thread.join()
    assert Counter(r["who"] for r in read(path)) == {"before": 1, "thread": 1, "parent": 300, "child": 300}


def test_lines_are_json(path, make):
    """A line needs no reader of ours."""
    make().append({"a": "\n", "b": "\u2028"})
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == [{"a": "\n", "b": "\u2028"}]


def test_what_was_written_is_read_quickly(tmp_path):
    """The same but for integers that no JSON outside Python has; a line that was cut off is skipped either way."""
    log = Journal(tmp_path / "j")
    for record in ({"a": 1, "b": [0.5, None, "x"]}, {"a": 1 << 70}):
        log.append(record)
    log.close()
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"a": 1, "b"')
    reading = read(tmp_path / "j", exact=False)
    assert [float(record["a"]) for record in reading] == [1.0, float(1 << 70)]
    assert reading.skipped == 1
