"""`kill -9` and a full disk at each step of an update: the active version is whole, and the update can be made again.

Run as a program, it makes updates in forked children that end, or fail, at one step each.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

if __name__ != "__main__":
    pytest.importorskip("tuf")
    pytest.importorskip("cryptography")

from catalogs import SECOND, Publisher

from edgeroute import StoreError
from edgeroute.catalog import Catalog

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")]
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.copyfile"}
PAD = 600_000


def update(store):
    """Pulls and activates the second version, and rolls it back."""
    catalog = Catalog(store)
    catalog.pull("doors")
    catalog.activate("doors")
    catalog.rollback("doors")
    catalog.activate("doors", "1.1")


class Steps:
    """Counts what is done to files in a folder, by Python's own audit events, and does something at one of them."""

    def __init__(self, folder, at, act):
        self.folder, self.left, self.act = str(folder), at, act

    def hook(self, event, args):
        """Of `sys.addaudithook`."""
        writes = event in WRITES or (event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"))
        writes = writes or (event == "open" and args[1] is None and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not writes or self.folder not in str(args[0]):
            return
        self.left -= 1
        if self.left == 0:
            self.act(str(args[0]))


def killed(_):
    os.kill(os.getpid(), signal.SIGKILL)


def full(path):
    raise OSError(errno.ENOSPC, "No space left on device", path)


def whole(store):
    """The version that is active, whose files are what was signed."""
    catalog = Catalog(store)
    catalog.verify("doors")
    return catalog.active("doors").version


def program(home, act):
    """Ends, or fails, at each step in turn -> how many there are, and what was active after each."""
    found = []
    for at in range(1, 1000):
        store = home / f"store-{at}"
        shutil.copytree(home / "template", store, symlinks=True)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                steps = Steps(store, at, act)
                sys.addaudithook(steps.hook)
                update(store)
                code = 0 if steps.left > 0 else 4  # it did without
            except StoreError:
                code = 3
            except BaseException:  # noqa: BLE001 - its code says so
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in {0, 3, 4, -signal.SIGKILL}, code
        found.append((at, code, whole(store)))
        Catalog(store).pull("doors")  # whatever was left behind
        assert Catalog(store).activate("doors", "1.1").version == "1.1"
        shutil.rmtree(store)
        if code == 0:
            break
    print(json.dumps(found))  # noqa: T201 - a program


def tmpfs(home):
    """Updates on file systems of several sizes -> what came of it, what is active, and what is left of the download."""
    import edgeroute.catalog.model_folder_and_downloads as module

    module.SPARE = -(1 << 40)  # it fills up meanwhile
    print(json.dumps([on_disk(home, home / f"disk-{size}", size) for size in (120, 300, 500, 640, 760, 1600)]))  # noqa: T201 - likewise


def on_disk(home, disk, size):
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(disk)], check=True)
    shutil.copytree(home / "template", disk / "store", symlinks=True)
    try:
        update(disk / "store")
        did = "updated"
    except StoreError as e:
        did = str(e)
    return did, whole(disk / "store"), [path.name for path in (disk / "store" / "parts").glob("*")]


@pytest.fixture(scope="module")
def home():
    """A folder with a catalog of two versions, and a store in which the first one is active; in memory, if it can be."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield filled(Path(folder))


def filled(folder):
    publisher = Publisher(folder)
    publisher.publish("1.0")
    device = publisher.device()
    device.pull("doors")
    device.activate("doors")
    publisher.publish("1.1", SECOND, pad=PAD)
    (folder / "store").rename(folder / "template")
    return folder


def run(*args, before=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [*before, sys.executable, __file__, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, env=environment)


@pytest.mark.parametrize("act", ["killed", "full"])
def test_at_each_step(home, act):
    """It is the old version or the new one, whole, and the next update succeeds; none of them waits for a lock of the dead."""
    done = run("program", home, act)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) > 25
    assert {code for _, code, _ in found} == ({0, -signal.SIGKILL} if act == "killed" else {0, 3, 4})
    versions = [version for _, _, version in found]
    assert versions.count("1.0") > 10
    assert versions[-1] == "1.1"


def test_a_file_system_that_is_full(home):
    """A real one: the update is refused, what was downloaded is removed, and the active version stays whole."""
    done = run("tmpfs", home, before=["unshare", "--user", "--map-root-user", "--mount"])
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(f"no file system of its own here: {done.stderr[-100:]}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for did, active, parts in found:
        assert did == "updated" or "the disk is full" in did or "No space left" in did
        assert active == ("1.1" if did == "updated" else "1.0")
        assert parts == []
    assert found[-1][0] == "updated"
    assert sum(did != "updated" for did, _, _ in found) >= 3


def test_too_little_room_is_said_before(home, monkeypatch):
    """Before a byte is downloaded, with how much is needed."""
    store = home / "store-small"
    shutil.copytree(home / "template", store)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 30, used=1 << 30, free=1000))
    with pytest.raises(StoreError, match=r"doors 1\.1 needs 1,6\d\d,\d\d\d bytes, and 1,000 are free"):
        Catalog(store).pull("doors")
    assert list((store / "parts").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_file_that_the_system_lets_grow_no_further(home):
    """A limit of the process is like a full disk."""
    store = home / "store-limited"
    shutil.copytree(home / "template", store)
    code = f"""
import resource
from pathlib import Path
from types import SimpleNamespace
from edgeroute import StoreError
from edgeroute.catalog import Catalog
catalog = Catalog(Path({str(store)!r}))
catalog.refresh()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    catalog.pull("doors")
except StoreError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=100)
    assert "the disk is full; what was downloaded of doors is removed" in done.stdout, done.stderr
    assert whole(store) == "1.0"


def test_one_updates_at_a_time(home):
    """Another process is told; a rollback does not wait for a download."""
    store = home / "store-busy"
    shutil.copytree(home / "template", store)
    one, other = Catalog(store), Catalog(store)
    with one.store.downloading():
        with pytest.raises(StoreError, match="another process is updating"):
            other.pull("doors")
        other.pin("doors")
        assert other.active("doors").pinned


if __name__ == "__main__":
    if sys.argv[1] == "program":
        program(Path(sys.argv[2]), {"killed": killed, "full": full}[sys.argv[3]])
    else:
        tmpfs(Path(sys.argv[2]))
