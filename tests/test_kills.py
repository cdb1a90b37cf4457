"""`kill -9` before any write: files are the old or the new ones, whole, and what was acknowledged, or spent, is not forgotten.

Run as a program, it does one kind of work in forked children, the n-th of which ends before its n-th write.
"""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
from both import LONG, unsure, wait_for
from lazily import needs
from signed_fleet import Fleet

from edgeroute import BadInput, Function, Limits, ModelError, OnnxModel, Outbox, PolicyError, Prediction, Router
from edgeroute.catalog import Catalog
from edgeroute.catalog.catalog_source_and_verification import download_targets, source_of
from edgeroute.confidence import Certificate, Learned
from edgeroute.stores.outbox import Callbacks, Delivery, Waiting
from edgeroute.tools.catalog_keys_and_publishing import keygen, publish, rotate
from edgeroute.tools.cli.calibrate_from_examples_or_audits import calibrate
from edgeroute.tools.distil_text_classifier import distil
from edgeroute.tools.fleet.policy_rollout_by_rings import Decision, promote, published, target

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "os.truncate", "shutil.copyfile"}
RINGS = 0.01, 0.1, 1.0


def killed(work, folder, at=0, name=""):
    """Does that in a forked child, which is killed before its write number `at`, if not 0, of a file of that name -> whether it was.

    Counted are Python's audit events of writes below the folder, but not in `distil`'s own one, and SQLite's statements.
    """
    left, connect = [at], sqlite3.connect

    def step(*_):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, args):
        opens = event == "open" and (set(args[1]) & set("wax+") if args[1] else args[2] & (os.O_WRONLY | os.O_RDWR))
        path = str(args[event == "os.rename"]) if opens or event in WRITES else ""  # of a renaming, where to
        if str(folder) in path and "/.small." not in path and path.endswith(name):
            step()

    def traced(*args, **more):
        connection = connect(*args, **more)
        connection.set_trace_callback(step)
        return connection

    child, code = os.fork(), 1
    if not child:
        try:
            sqlite3.connect = traced
            sys.addaudithook(hook)
            work(folder)
            code = 0
        except BaseException:  # noqa: BLE001 - its code says so
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {0, -signal.SIGKILL}
    return code != 0


def note(folder, *words):
    with (folder / "said").open("a") as file:
        print(*words, file=file)


def said(folder, word):
    lines = (folder / "said").read_text().splitlines() if (folder / "said").exists() else []
    return [line.partition(" ")[2] for line in lines if line.startswith(word)]


# An outbox: what was stored as `put` returned is sent once at most by the next process, and its effect comes once.
def queue(folder, names=("a", "b")):
    outbox = Outbox(folder / "o.db", rate_per_s=1e6)
    for name in names:
        if outbox.put(Waiting(name, "cloud", "call", b"x", "POST", "/")).stored:
            note(folder, "put", name)

    def send(waiting):
        note(folder, "sent", waiting.id)
        return Prediction("value", 0.9, None)

    def tell(late, tx):
        tx.execute("CREATE TABLE IF NOT EXISTS effects (id TEXT)")
        tx.execute("INSERT INTO effects VALUES (?)", (late.id,))

    delivery, callbacks = Delivery(outbox, send, poll_s=0.05), Callbacks(outbox, poll_s=0.05)
    callbacks.register(tell)
    delivery.start()
    wait_for(lambda: not outbox.list())
    for each in (delivery, callbacks, outbox):
        each.close()


def queue_is_emptied(_, folder):
    before = said(folder, "sent")
    killed(partial(queue, names=()), folder)
    now = Counter(said(folder, "sent")[len(before) :])
    with contextlib.closing(sqlite3.connect(folder / "o.db")) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS effects (id TEXT)")
        effects = [name for (name,) in connection.execute("SELECT id FROM effects")]
    assert len(effects) == len({*effects})
    assert {*said(folder, "put")} <= {*effects} <= {*before, *now}
    assert set(now.values()) <= {1}


# A limit of five calls a day: no kills spend more, and one of them takes two calls of it at most.
def spend(folder):
    def paid(x):
        note(folder, "paid", str(x))
        return "cloud", 0.9

    cloud, limits = Function(paid, usd_per_call=0.01), Limits(usd_per_day=0.05)
    with Router(unsure, cloud, threshold=0.5, limits=limits, state=folder / "state") as router:
        for i in range(8):
            router.infer(i)


def limit_holds(at, folder):
    for each in (at, at, 0):
        killed(spend, folder, each)
    assert 1 <= len(said(folder, "paid")) <= 5


# `calibrate`, whose certificate is bound to a score: if one of them alone is new, both are refused.
def policy(folder):
    tiny.linear(folder / "edge.onnx", card={"labels": ["a", "b", "c"]})
    lines = 'threshold = "certificate.json"\nscore = "edge.score.json"\nuncalibrated = "error"\n[edge]\npath = "edge.onnx"\n'
    (folder / "policy.toml").write_text(lines)
    calibrated(folder, 0)


def calibrated(folder, seed=1):
    dice = np.random.default_rng(seed)
    x = dice.normal(size=(600, 3)).astype(np.float32)
    np.savez(folder / "data.npz", edge_logits=x, labels=(x + 0.3 * dice.normal(size=x.shape)).argmax(1))
    calibrate(policy=folder / "policy.toml", data=[folder / "data.npz"], max_error=0.1, score="learned")


def certificate_fits(_, folder):
    certificate, score = Certificate.load(folder / "certificate.json"), Learned.load(folder / "edge.score.json")
    fits = certificate.fingerprints["score"] == score.fingerprint
    with contextlib.nullcontext() if fits else pytest.raises(PolicyError, match="score"):
        Router.from_policy(folder / "policy.toml").close()


# `distil`: a model and its card are the old ones, or the new ones; else the card refuses it.
def distilled(folder, seed=1):
    from test_distil import tickets

    assert distil(tickets(400, seed), folder / "small.onnx", max_loss=0.1, force=True).out


def model_is_whole(at, folder):
    with pytest.raises(ModelError, match="is not the expected model") if at == 2 else contextlib.nullcontext():
        OnnxModel(folder / "small.onnx").load()
    distilled(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["small.json", "small.onnx"]


# `fleet promote` goes on from the ring that devices see, so that none is left out.
def fleet(folder):
    made = Fleet(folder)
    made.publish(0.4)
    made.publish(0.6, rings=RINGS)
    keygen(folder / "next")


def seen(folder):
    root, name = (folder / "root.json").read_bytes(), target("shop")
    texts, _ = download_targets(source_of(folder / "catalog"), folder / "device", root, {name: b""})
    return RINGS.index(json.loads(texts[name])["versions"][-1]["share"])


def promoted(folder):
    promote(folder / "catalog", "shop", Decision("go_on", "by hand"), keys=folder / "keys")


def no_ring_is_left_out(_, folder):
    before = seen(folder)
    assert RINGS.index(published(folder / "catalog", "shop")["versions"][-1]["share"]) == before < 2
    promoted(folder)
    assert seen(folder) == before + 1


# `models keygen --rotate`: devices that trust the old keys follow, and those that are set up with the new ones.
def rotated(folder):
    rotate(folder / "catalog", keys=folder / "keys", new=folder / "next")


def devices_follow(_, folder):
    for keys in ("next", "keys"):  # whatever is published next, with the keys that the catalog takes
        with contextlib.suppress(PolicyError):
            publish(folder / "catalog", "doors", "1.0", [folder / "m.onnx"], keys=folder / keys)
            break
    for _ in range(2):
        assert seen(folder) == 0
        Catalog(folder / "store", folder / "catalog", root=folder / "catalog" / "root.json").refresh()
        rotated(folder)


# `models publish`, from the first version of a catalog on, publishes what devices do not see yet.
def models(folder):
    for version in ("1.0", "1.1"):
        with contextlib.suppress(BadInput):  # devices have it
            publish(folder / "new", "doors", version, [folder / "m.onnx"], keys=folder / "keys")


def devices_see_all(_, folder):
    killed(models, folder, 1, "timestamp.json")  # once more, before the list that devices look at first
    models(folder)
    with Catalog(folder / "store", folder / "new", root=folder / "new" / "root.json") as device:
        assert [entry.version for entry in device.refresh()] == ["1.0", "1.1"]
        assert device.pull("doors").version == "1.1"


KINDS = {  # what is there before, the work, the check after it, and the least number of kills
    "outbox": (Path.exists, queue, queue_is_emptied, 20),
    "limit": (Path.exists, spend, limit_holds, 20),
    "calibrate": (policy, calibrated, certificate_fits, 4),
    "distil": (distilled, distilled, model_is_whole, 2),  # test_distil.py kills earlier
    "promote": (fleet, promoted, no_ring_is_left_out, 10),
    "rotate": (fleet, rotated, devices_follow, 10),
    "publish": (fleet, models, devices_see_all, 20),
}


def campaign(name, home, steps):
    """Kills that work before each of these writes, until it ends by itself -> how many times it was killed."""
    prepare, work, check, _ = KINDS[name]
    (home / "template").mkdir()
    killed(prepare, home / "template")
    kills = 0
    for at in steps:
        shutil.copytree(home / "template", folder := home / "run")
        was_killed = killed(work, folder, at)
        killed(partial(check, at), folder)  # in a child, too: none is forked of threads of a runtime
        shutil.rmtree(folder)
        kills += was_killed
        if not was_killed:
            break
    return kills


def kills(name, home, *steps):
    """Runs such a campaign, in a process without threads of other tests -> how many times it was killed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, __file__, name, str(home), *map(str, steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=4 * LONG, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_killed_before_each_write(tmp_path, name):
    """Until the work ends by itself."""
    needs(*("sklearn", "skl2onnx") if name == "distil" else ("tuf",))
    assert kills(name, tmp_path) >= KINDS[name][-1]


@pytest.mark.slow
def test_killed_as_a_step_is_signed(tmp_path):
    """Before the list that devices look at first."""
    needs("tuf")
    assert kills("promote", tmp_path, 15, 16, 17) == 3


if __name__ == "__main__":
    print(campaign(sys.argv[1], Path(sys.argv[2]), [int(at) for at in sys.argv[3:]] or range(1, 10_000)))  # noqa: T201 - a program
