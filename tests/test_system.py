"""JSON by either library, what a file's stamp tells, and time limits on an event loop."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from math import inf, isfinite, nan
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from both import LONG
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from edgeroute.system import json_codec_and_short_repr
from edgeroute.system.contained_calls_and_tasks import await_within
from edgeroute.system.files_and_lock_waits import file_stamp, replace_file
from edgeroute.system.fork_safety import ForkSafe, initially, per_process, per_process_of
from edgeroute.system.json_codec_and_short_repr import json_dumps, json_loads, to_json_types

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(params=["orjson", "json"], autouse=True)
def library(request, monkeypatch):
    """With the fast library and without."""
    if request.param == "json":
        monkeypatch.setattr(json_codec_and_short_repr, "orjson", None)


def finite(value):
    """The value as JSON has it."""
    if isinstance(value, list):
        return [finite(part) for part in value]
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


@given(values)
@example(2**70 + 1)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_is_read(value):
    """To the last bit of a number; what JSON has no words for is null, and never a word of Python's."""
    text = json_dumps(value)
    assert json_loads(text, exact=True) == finite(value)
    assert json.loads(text) == finite(value)


@pytest.mark.parametrize("word", ["NaN", "-Infinity", "Infinity"])
@pytest.mark.parametrize("exact", [True, False])
def test_pythons_own_words_are_no_json(word, exact):
    """A text is taken or refused whichever library is installed."""
    with pytest.raises(ValueError, match=r"is not JSON|line 1 column"):
        json_loads(f'{{"a": {word}}}'.encode(), exact=exact)


def test_what_json_has_no_type_for_goes_to_default():
    """Or is an error; arrays are written as they are where that is asked for, whatever numbers are in them."""
    assert json_dumps({"a": {1}}, sorted) == b'{"a":[1]}'
    with pytest.raises(TypeError):
        json_dumps({"a": {1}})
    array = np.array([0.5, nan])
    assert json_dumps([array], to_json_types, arrays=True) == b"[[0.5,null]]"
    assert json_dumps([inf, array[::-1]], to_json_types) == b"[null,[null,0.5]]"


def test_a_value_whose_list_is_itself_becomes_text():
    """Extended precision has no counterpart among Python's numbers."""
    assert to_json_types([np.longdouble(0.5), np.float64(0.5), np.bool_(True)]) == ["0.5", 0.5, True]


def test_a_file_that_was_written_anew_has_another_stamp(tmp_path):
    """Also with the time and the size of the one before; where there is none to be read there is no stamp."""
    path = tmp_path / "p"
    assert file_stamp(path) is None
    path.write_bytes(b"1")
    first = file_stamp(path)
    assert first == file_stamp(path)
    os.utime(path, ns=(0, 0))
    second = file_stamp(path)
    other = tmp_path / "other"
    other.write_bytes(b"2")
    os.utime(other, ns=(0, 0))
    other.replace(path)
    third = file_stamp(path)
    path.write_bytes(b"12")
    assert len({first, second, third, file_stamp(path)}) == 4


def test_a_file_is_replaced_as_a_whole(tmp_path):
    """Also where a link leads to it, which stays."""
    file, link = tmp_path / "file", tmp_path / "link"
    replace_file(file, "one")
    link.symlink_to(file)
    replace_file(link, "two é")
    assert (file.read_text(encoding="utf-8"), link.is_symlink()) == ("two é", True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]
    with pytest.raises(OSError, match="directory"):
        replace_file(tmp_path, "three")


@pytest.mark.skipif(os.name != "posix", reason="it has other permissions")
def test_a_private_file_is_private_before_it_has_a_content(tmp_path, monkeypatch):
    """Its new file has the old one's permissions first."""
    file, sizes, chmod = tmp_path / "file", [], Path.chmod
    file.write_text("old")
    file.chmod(0o600)
    monkeypatch.setattr(Path, "chmod", lambda path, mode: [sizes.append(path.stat().st_size), chmod(path, mode)])
    replace_file(file, "new" * 100_000)
    assert (sizes, file.stat().st_mode & 0o777, file.read_text()) == ([0], 0o600, "new" * 100_000)


def test_of_two_writers_the_last_one_counts(tmp_path):
    """None gets an error of the other, and a reader sees the whole text of one."""
    file, texts = tmp_path / "file", ["a" * 300_000, "b" * 300_000]
    replace_file(file, texts[0])
    start = threading.Barrier(2)

    def write(text):
        start.wait()
        return all(replace_file(file, text) is None and file.read_text() in texts for _ in range(50))

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(write, texts)) == [True, True]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_link_beside_it_is_not_written_through(tmp_path):
    """As another user of the folder may have put there."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "file.new").symlink_to(mine)
    replace_file(tmp_path / "file", "one")
    assert (mine.read_text(), (tmp_path / "file").read_text()) == ("mine", "one")


def test_what_is_no_file_is_written_to(tmp_path):
    """A pipe or a device, as by `--out /dev/stdout`: it is not replaced, even where that is allowed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        replace_file(pipe, "a certificate")
        assert os.read(reader, 100) == b"a certificate"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_that_comes_as_the_steps_end_is_not_forgotten(turns):
    """A task that could be cancelled is cancelled, however far its steps had come; `asyncio.wait_for` of Python 3.10 goes on."""

    async def steps(gate):
        await gate
        return "over"

    async def main():
        gate = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(await_within(30.0, steps(gate)))
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        gate.set_result(None)
        for _ in range(turns):
            await asyncio.sleep(0.0)
        taken = task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, asyncio.CancelledError) if taken else outcome == "over"

    asyncio.run(main())


def test_steps_have_ended_once_their_limit_is_over():
    """They clean up before their caller goes on; what they raise, it gets."""

    async def main():
        seen = []

        async def steps():
            try:
                await asyncio.sleep(30.0)
            finally:
                await asyncio.sleep(0.0)
                seen.append("cleaned up")

        async def broken():
            await asyncio.sleep(0.0)
            raise ValueError("theirs")

        with pytest.raises(asyncio.TimeoutError):
            await await_within(0.001, steps())
        assert seen == ["cleaned up"]
        task = asyncio.create_task(await_within(30.0, steps()))
        await asyncio.sleep(0.0)
        await asyncio.sleep(0.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen == ["cleaned up"] * 2
        for left_s in (30.0, inf):
            with pytest.raises(ValueError, match="theirs"):
                await await_within(left_s, broken())

    asyncio.run(main())


class Held(ForkSafe):
    """Has what belongs to one process, and what does not."""

    dropped: ClassVar[list[object]] = []
    lock = per_process(threading.RLock)
    calls: list[int] = per_process(list, dropped.append)
    count = initially(0)
    twice = per_process_of(lambda self: 2 * self.given)

    def __init__(self, given):
        self.given = given


def test_a_child_makes_what_belongs_to_a_process_anew():
    """What disposes of it is called with the parent's; the rest is inherited."""
    Held.dropped.clear()
    held, untouched = Held(3), Held(4)
    lock = held.lock
    held.calls.append(1)
    held.count += 1
    held.twice += 1
    for thing in held, untouched:
        thing.after_fork()
    assert Held.dropped == [[1], []]
    assert held.lock is not lock
    assert (held.calls, held.count, held.twice, held.given) == ([], 0, 6, 3)
    assert (untouched.calls, untouched.count, untouched.given) == ([], 0, 4)


def test_threads_that_come_at_once_share_what_is_made():
    """Nobody holds another lock than the others."""
    held, gate = Held(1), threading.Barrier(8)

    def use():
        gate.wait(LONG)
        return held.lock

    with ThreadPoolExecutor(8) as pool:
        locks = {id(future.result(LONG)) for future in [pool.submit(use) for _ in range(8)]}
    assert len(locks) == 1


FORK = """
import os
from edgeroute.system.fork_safety import ForkSafe

class Thing(ForkSafe):
    def __init__(self, error=None):
        self.error, self.renewed = error, False

    def after_fork(self):
        self.renewed = True
        if self.error is not None:
            raise self.error

things = [Thing(), ERRORS, Thing()]
child = os.fork()
if not child:
    os._exit(0 if all(thing.renewed for thing in things) else 1)
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("errors", "said"),
    [
        ("Thing(AttributeError('half made'))", 0),
        ("Thing(AttributeError('half made')), Thing(OSError('one')), Thing(OSError('two'))", 1),
    ],
)
def test_what_fails_in_the_child_of_a_fork_keeps_nothing_else_from_it(errors, said):
    """The others are renewed, and then the first error is raised, which Python prints; what is half made is left out."""
    done = subprocess.run([sys.executable, "-c", FORK.replace("ERRORS", errors)], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
    assert done.stderr.count("OSError") == said
    assert "half made" not in done.stderr
