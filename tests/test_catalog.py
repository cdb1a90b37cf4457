"""Catalogs of models: publishing, the list that a device trusts, its store, and the active version in a router."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import routes
import tiny
from catalogs import FIRST, LABELS, SECOND, Publisher, edited
from commands import cli

pytest.importorskip("tuf")
pytest.importorskip("cryptography")

from edgeroute import (
    AsyncRouter,
    BadInput,
    CatalogError,
    Closed,
    ModelMissing,
    Options,
    PolicyError,
    Router,
    StoreError,
    Trial,
    Variants,
)
from edgeroute.catalog import Catalog
from edgeroute.catalog import installed_versions_and_active_loading as installed
from edgeroute.catalog.catalog_entry import check_distinct, checked_name, checked_path, checked_version, entries, fits
from edgeroute.confidence import calibrate
from edgeroute.errors import CatalogAway
from edgeroute.router import policy_reload as reload
from edgeroute.router.policy_snapshot import build
from edgeroute.stores.json_lines_and_process_locks import ProcessLock
from edgeroute.tools.catalog_keys_and_publishing import keygen, publish, rotate, sign

X = np.array([1, 0, 0, 0], np.float32)
"""What FIRST calls a, and SECOND c."""


@pytest.fixture
def publisher(tmp_path):
    return Publisher(tmp_path)


@pytest.fixture
def device(publisher):
    """A device with the first of two versions active."""
    publisher.publish("1.0")
    publisher.publish("1.1", SECOND)
    catalog = publisher.device()
    catalog.pull("doors", "1.0")
    catalog.activate("doors")
    return catalog


@pytest.mark.parametrize(("model", "runtime"), [("doors.onnx", ".onnx"), ("v1.2/doors-1.2.tflite", ".tflite"), ("a.b/doors", "")])
def test_an_entry_names_the_runtime_by_its_last_suffix(publisher, model, runtime):
    """A version within the model's name is no suffix, nor is a dot of its folder."""
    assert publisher.publish("1.0")._replace(model=model).runtime == runtime


def test_a_model_from_the_publisher_to_the_router(publisher):
    """It is published, pulled, verified, activated, used, and rolled back."""
    entry = publisher.publish("1.0", notes="the first")
    assert (entry.runtime, entry.model, [file.path for file in entry.files]) == (
        ".onnx",
        "doors.onnx",
        ["doors.onnx", "doors.json"],
    )
    device, told = publisher.device(), []
    assert device.pull("doors", progress=told.append) == entry
    assert (told[-1].done, told[-1].total) == (entry.size, entry.size)
    with pytest.raises(ModelMissing, match="no version of doors is active"):
        Router(device.path("doors"))
    assert device.activate("doors").version == "1.0"
    with Router(device.path("doors")) as router:
        assert router.infer(X).value == "a"
        publisher.publish("1.1", SECOND)
        assert device.pull("doors").version == "1.1"
        router.reload()
        assert router.infer(X).value == "a"  # it is here, and not in use
        made = device.activate("doors")
        assert (made.version, made.previous) == ("1.1", "1.0")
        router.reload()
        assert router.infer(X).value == "c"
        assert device.rollback("doors").version == "1.0"
        router.reload()
        assert router.infer(X).value == "a"
    (status,) = device.status()
    assert (status.active, status.previous, status.here, status.newest) == ("1.0", "", ("1.0", "1.1"), "1.1")
    assert status.refused == (("1.1", "rolled back by hand"),)
    with pytest.raises(ModelMissing, match="no version of doors before"):
        device.rollback("doors")


def test_the_store_remembers_where_the_catalog_is(publisher):
    """And whose signatures count: both are said once."""
    publisher.publish("1.0")
    with pytest.raises(PolicyError, match="no catalog is known"):
        Catalog(publisher.home / "store").refresh()
    with pytest.raises(PolicyError, match=r"give the publisher's root\.json"):
        Catalog(publisher.home / "store", publisher.catalog).refresh()
    publisher.device().refresh()
    again = Catalog(publisher.home / "store")
    assert [entry.version for entry in again.refresh()] == ["1.0"]
    shutil.rmtree(publisher.catalog)
    with pytest.raises(CatalogAway):
        again.refresh()
    assert [entry.version for entry in again.entries()] == ["1.0"]


def test_a_catalog_that_is_away_at_the_start(device, publisher):
    """The active model answers, and so does what only reads the store."""
    publisher.catalog.rename(publisher.home / "moved")
    again = Catalog(publisher.home / "store")
    with Router(again.path("doors")) as router:
        assert router.infer(X).value == "a"
    for action in (again.refresh, lambda: again.pull("doors")):
        with pytest.raises(CatalogAway, match="no such folder"):
            action()
    assert again.verify("doors").version == "1.0"
    assert again.status()[0].active == "1.0"


def test_a_version_never_changes(device, publisher):
    """Not at the publisher, and not on a device, whatever a later list says."""
    with pytest.raises(BadInput, match=r"has doors 1\.0 already"):
        publisher.publish("1.0", SECOND)
    sign(publisher.catalog, keys=publisher.keys, withdraw=[("doors", "1.0")])
    publisher.publish("1.0", SECOND)
    with pytest.raises(CatalogError, match="a version never changes"):
        device.pull("doors", "1.0")
    assert device.verify("doors").version == "1.0"


def test_a_damaged_file_is_found_and_replaced(device):
    """`verify` says which; `pull` gets that file alone, and the version stays active."""
    path = device.store.version("doors", "1.0") / "doors.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CatalogError, match=r"doors\.onnx is not what was published"):
        device.verify("doors")
    assert "doors.onnx" in device.status()[0].problems[0]
    (device.store.version("doors", "1.0") / "doors.json").unlink()
    with pytest.raises(CatalogError, match=r"doors\.json is missing"):
        device.activate("doors", "1.0")
    device.pull("doors", "1.0")
    assert device.verify("doors").version == "1.0"


def test_what_is_not_here_is_not_activated(device):
    """Nor what the catalog does not have pulled."""
    with pytest.raises(ModelMissing, match=r"doors 1\.1 is not in"):
        device.activate("doors", "1.1")
    with pytest.raises(CatalogError, match=r"no doors 9: it has 1\.0, 1\.1"):
        device.pull("doors", "9")
    with pytest.raises(CatalogError, match="no model 'gates': it has doors"):
        device.pull("gates")
    assert device.active("doors").version == "1.0"


def test_versions_are_in_the_order_of_their_numbers(publisher):
    """Where the list of the catalog is not known, the newest here is that of the greatest number; what announces it is older."""
    order = ["0.9", "1.0-beta.2", "1.0rc1", "1.0", "1.0.1", "1.9.0", "1.10.0"]
    for version in order:
        publisher.publish(version)
    catalog = publisher.device()
    for version in reversed(order):
        catalog.pull("doors", version)
    assert catalog.store.versions("doors") == order
    (catalog.store.folder / installed.KNOWN).unlink()
    assert catalog.activate("doors").version == "1.10.0"


def test_pin_and_remove(device):
    """A pin keeps the version; the active one is not removed."""
    device.pull("doors")
    assert device.pin("doors").pinned
    assert device.pin("doors", "1.1") == device.active("doors")
    assert not device.pin("doors", pinned=False).pinned
    with pytest.raises(PolicyError, match="is active"):
        device.remove("doors", "1.1")
    device.remove("doors", "1.0")
    assert device.status()[0].here == ("1.1",)
    with pytest.raises(ModelMissing):
        device.rollback("doors")
    assert device.active("doors").version == "1.1"


def test_the_lowest_version_of_edgeroute(publisher):
    """The newest that this one can run is taken; a newer one is refused by name."""
    publisher.publish("1.0", requires="0.0.9")
    publisher.publish("2.0", requires="99.1")
    device = publisher.device()
    assert device.pull("doors").version == "1.0"
    with pytest.raises(CatalogError, match=r"needs edgeroute 99\.1"):
        device.pull("doors", "2.0")
    assert [fits(a, b) for a, b in (("1.2", "1.10"), ("1.2", "1.2.0"), ("1.2.1", "1.2"), ("", "0.1.0"), ("0.2", "0.2.dev3"))] == [
        True, True, False, True, True,
    ]  # fmt: skip


def test_the_status_of_many_models_reads_the_list_once(publisher, monkeypatch):
    """Whose time would grow with its square, otherwise."""
    publisher.publish("1.0")
    device = publisher.device()
    device.refresh()
    known, reads = device.entries()[0], []
    many = tuple(known._replace(name=f"m{i}", version=version) for i in range(50) for version in ("1", "2"))
    monkeypatch.setattr(installed, "entries", lambda text: reads.append(text) or many)
    assert [(one.name, one.newest) for one in device.status()] == sorted((f"m{i}", "2") for i in range(50))
    assert len(reads) == 1


def test_new_keys_are_followed(device, publisher):
    """By devices that trust the old ones; the old ones sign nothing any more."""
    new = publisher.home / "new"
    keygen(new)
    rotate(publisher.catalog, keys=publisher.keys, new=new)
    with pytest.raises(PolicyError, match="not the key of this catalog"):
        publisher.publish("1.2")
    publisher.keys = new
    publisher.publish("1.2")
    assert device.pull("doors").version == "1.2"
    assert Catalog(publisher.home / "other", publisher.catalog, root=publisher.root).refresh()


@pytest.mark.parametrize("name", ["1.snapshot.json", "timestamp.json"])
def test_a_damaged_list_is_said_before_anything_is_written(publisher, name):
    """Else devices had new keys, which had signed no list."""
    new = publisher.home / "new"
    keygen(new)
    publisher.publish("1.0")
    (publisher.catalog / "metadata" / name).write_bytes(b"{")
    files = {path: path.read_bytes() for path in publisher.catalog.rglob("*") if path.is_file()}
    with pytest.raises(CatalogError, match=name):
        rotate(publisher.catalog, keys=publisher.keys, new=new)
    with pytest.raises(CatalogError, match=name):
        publisher.publish("1.1")
    assert {path: path.read_bytes() for path in publisher.catalog.rglob("*") if path.is_file()} == files


def test_a_catalog_without_its_timestamp_is_restored_not_begun_anew(publisher):
    """Else a publisher would sign a list of one model, and replace files that devices have."""
    for version in ("1.0", "1.1"):
        publisher.publish(version)
    (publisher.catalog / "metadata" / "timestamp.json").unlink()
    with pytest.raises(CatalogError, match=r"timestamp\.json is missing"):
        publisher.publish("1.1")


def test_publishers_at_once(publisher, monkeypatch):
    """None is lost, in whatever order they come: each signs what those before have signed."""
    take = ProcessLock.take
    monkeypatch.setattr(ProcessLock, "take", lambda lock, wait_s=0.0: take(lock, 12 * wait_s))  # on a busy machine, too
    publisher.publish("1.0")
    names = [f"door{i}" for i in range(4)]
    with ThreadPoolExecutor(len(names)) as threads:
        assert len([*threads.map(lambda name: publisher.publish("1.0", name=name), names)]) == len(names)
    assert {item.name for item in publisher.device().refresh()} == {"doors", *names}


def test_keys_that_do_not_fit_on_the_disk(tmp_path):
    """Nothing is left of them, so that the next try makes both."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        with pytest.raises(StoreError, match="the keys cannot be written: File too large"):
            keygen(tmp_path / "keys")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [*(tmp_path / "keys").iterdir()] == []
    assert [path.name for path in keygen(tmp_path / "keys")] == ["root.pem", "models.pem"]


@pytest.mark.parametrize("suffix", [".tflite", ".onnx", ".mlpackage"])
def test_the_card_of_each_format(publisher, tmp_path, suffix):
    """`NAME.SUFFIX.json` goes with its model, and not `NAME.json`, which is another format's."""
    model = tmp_path / f"m{suffix}"
    model.write_bytes(b"model")
    for name, of in ((f"m{suffix}.json", model.name), ("m.json", "m.other")):
        (tmp_path / name).write_text(json.dumps({"file": of, "labels": LABELS}))
    entry = publish(publisher.catalog, "m", "1", [model], keys=publisher.keys)
    assert {file.path for file in entry.files} == {model.name, f"{model.name}.json"}


def test_files_of_others_in_the_store(device):
    """They are no models, and the status shows those that are."""
    store = device.store.folder
    (store / "we ird.active").write_text("{}")
    (store / ".active").mkdir()
    (store / "versions" / "Not One").mkdir()
    assert [status.name for status in device.status()] == ["doors"]


def test_keys_are_for_the_publisher_alone(publisher):
    """They are not overwritten, and a catalog is not signed without them."""
    if sys.platform != "win32":
        assert (publisher.keys / "root.pem").stat().st_mode & 0o077 == 0
    with pytest.raises(StoreError, match="exists already"):
        keygen(publisher.keys)
    publisher.publish("1.0")
    (publisher.keys / "root.pem").unlink()  # it is offline
    publisher.publish("1.1")
    (publisher.keys / "models.pem").write_text("no key")
    with pytest.raises(PolicyError, match="no private key"):
        publisher.publish("1.2")
    (publisher.keys / "models.pem").unlink()
    with pytest.raises(PolicyError, match="keygen makes the keys"):
        sign(publisher.catalog, keys=publisher.keys)


def test_a_folder_as_a_model(publisher, tmp_path):
    """Its files keep their places."""
    model = tmp_path / "doors.onnx"
    (model / "weights").mkdir(parents=True)
    (model / "weights" / "a.bin").write_bytes(b"a")
    (model / "graph").write_bytes(b"a")  # the same content twice
    from edgeroute.tools.catalog_keys_and_publishing import publish

    entry = publish(publisher.catalog, "doors", "1", [model], keys=publisher.keys)
    assert [file.path for file in entry.files] == ["doors.onnx/graph", "doors.onnx/weights/a.bin"]
    device = publisher.device()
    device.pull("doors")
    device.activate("doors")
    assert (device.store.version("doors", "1") / "doors.onnx" / "weights" / "a.bin").read_bytes() == b"a"


# --------------------------------------------------------------------------------------------------------- names and lists
@pytest.mark.parametrize("path", [
    "../up", "a/../../up", "/etc/passwd", "C:\\x", "C:x", "a\\b", "a//b", "a/./b", "a/", "", "nul", "a/NUL.txt", "COM1", "lpt9.onnx",
    "x ", "x.", "a\x00b", "a\nb", "a*b", "x" * 201, "entry.json", "\u202egnp.onnx", 7, None,
])  # fmt: skip
def test_a_path_that_leads_elsewhere_is_refused(path):
    """Or that is no file's name on some system."""
    with pytest.raises(CatalogError):
        checked_path(path)


def test_names_that_are_one_on_some_system():
    """Capitals, accents in two forms, and a file that is a folder of another."""
    for pair in (["a.onnx", "A.onnx"], ["\u00e9", "e\u0301"], ["a", "a/b"], ["A/b", "a"], ["stra\u00dfe", "STRASSE"]):
        with pytest.raises(CatalogError):
            check_distinct(pair)
    check_distinct(["a/b", "a/c", "b"])
    for name in ("", "Doors", "../x", "con", "a.b", "x" * 65, None):
        with pytest.raises(CatalogError):
            checked_name(name)
    for version in ("", "..", "1.", ".1", "a/b", "nul", "1 0", None):
        with pytest.raises(CatalogError):
            checked_version(version)


@pytest.mark.parametrize(("change", "says"), [
    (lambda e: e.update(name="../x"), "not a model"),
    (lambda e: e["files"][0].update(path="../../x.onnx"), "relative"),
    (lambda e: e["files"].append({**e["files"][0], "path": "DOORS.onnx"}), "the same file on systems"),
    (lambda e: e["files"][0].update(size=-1), "size is a number"),
    (lambda e: e["files"][0].update(size=True), "size is a number"),
    (lambda e: e["files"][0].update(size=1 << 50), "size is a number"),
    (lambda e: e["files"][0].update(sha256="0" * 63), "sha256 has 64"),
    (lambda e: e.update(model="other.onnx"), "not among its files"),
    (lambda e: e.update(certificate="x.json"), "not among its files"),
    (lambda e: e.update(requires="soon"), "requires is a version"),
    (lambda e: e.update(files=[]), "list of 1 to"),
    (lambda e: e.update(notes=5), "notes has to be a text"),
])  # fmt: skip
def test_an_entry_that_is_none(publisher, change, says):
    """Is refused in one line, though it is signed."""
    data = json.loads(json.dumps(publisher.publish("1.0").json()))
    change(data)
    with pytest.raises(CatalogError, match=says):
        entries(json.dumps({"format": 1, "models": [data]}).encode())


def test_a_list_that_is_none(publisher):
    """Of another format, nested too deeply, or with one version twice."""
    entry = publisher.publish("1.0a").json()
    for text in (b"{", b"[]", b'{"format": 2, "models": []}', b"[" * 100_000):
        with pytest.raises(CatalogError):
            entries(text)
    with pytest.raises(CatalogError, match="twice"):
        entries(json.dumps({"format": 1, "models": [entry, {**entry, "version": "1.0A"}]}).encode())


# ------------------------------------------------------------------------------------------------------------- in a router
def test_a_policy_file_with_a_model_of_a_catalog(device, publisher):
    """Its options are the runtime's; a reload takes the new version, and keeps the model otherwise."""
    policy = publisher.home / "policy.toml"
    policy.write_text('mode = "only_edge"\n[edge]\npath = "store/doors.active"\nthreads = 2\n')
    with Router.from_policy(policy) as router:
        model = router.engine.snapshot.backends[0].model
        assert (model.threads, str(model.release)) == (2, "doors 1.0")
        device.pin("doors")  # another file, and the same version
        router.reload()
        assert router.engine.snapshot.backends[0].model is model
        device.pull("doors")
        device.activate("doors")
        router.reload()
        assert router.infer(X).value == "c"
    policy.write_text('mode = "only_edge"\n[edge]\npath = "store/gates.active"\n')
    with pytest.raises(ModelMissing, match="no version of gates is active"):
        Router.from_policy(policy)


def test_a_watched_policy_follows_the_active_version(device, publisher, caplog):
    """Within a second or so, without a change of the policy itself; a version that cannot be used leaves the old one in force."""
    policy, changed = publisher.home / "policy.json", []
    policy.write_text(json.dumps({"mode": "only_edge", "edge": {"path": "store/doors.active"}}))
    device.pull("doors")
    with Router.from_policy(policy, watch=True) as router:
        from test_recertify import until

        device.activate("doors")
        until(lambda: router.infer(X).value == "c")
        (device.store.version("doors", "1.0") / "doors.onnx").write_bytes(b"broken")
        device.store.point("doors", device.active("doors")._replace(version="1.0"))
        until(lambda: "the policy in force stays" in caplog.text, every=0.01)
        changed.append(router.infer(X).value)
    assert changed == ["c"]


def test_an_old_call_ends_on_the_old_model(device):
    """And a batch does not mix them: a request has the model that it began with."""
    device.pull("doors")
    with Router(device.path("doors")) as router:
        old = router.engine.request(X, None, None, None)
        device.activate("doors")
        router.reload()
        backend = old.snapshot.backends[0]
        assert backend.run_one(X, None).value == "a"
        assert router.infer(X).value == "c"


def test_a_pointer_that_is_damaged(device):
    """Is said with what to do; a router that runs goes on."""
    with Router(device.path("doors")) as router:
        device.path("doors").write_text("{")
        with pytest.raises(CatalogError, match="edgeroute models activate doors"):
            router.reload()
        assert router.infer(X).value == "a"
        for text in ('{"version": "../../x"}', '{"version": "1.0", "trial": 1e999}'):
            device.path("doors").write_text(text)
            with pytest.raises(CatalogError, match="does not name a version"):
                router.reload()


def test_a_router_that_is_closed_is_not_reloaded(device, monkeypatch):
    """Nor one that is closed meanwhile: the new version would be loaded for nobody, and never freed."""
    device.pull("doors")
    with Router(device.path("doors")) as router:
        pass
    device.activate("doors")
    with pytest.raises(Closed):
        router.reload()
    freed = []
    with Router(device.path("doors")) as router:

        def closing(*given):
            made = build(*given)
            router.close()
            made.backends[0].close = lambda: freed.append(made)
            return made

        monkeypatch.setattr(reload, "build", closing)
        device.activate("doors", "1.0")
        with pytest.raises(Closed):
            router.reload()
    assert freed


def test_a_router_without_a_catalog_has_nothing_to_reload(tmp_path):
    with Router(tiny.linear(tmp_path / "m.onnx")) as router, pytest.raises(PolicyError, match="nothing to read again"):
        router.reload()


def certified(publisher, weights, cloud):
    """A certificate for a published model, in a file."""
    model = tiny.linear(publisher.home / "doors.onnx", weights=weights, card={"labels": LABELS})
    with Router(model, cloud, threshold=0.5) as router:
        made = calibrate(
            np.linspace(0, 1, 4000), np.ones(4000, bool), np.ones(4000, bool), max_loss=0.05, fingerprints=router.fingerprints()
        )
    path = publisher.home / "certificate.json"
    made.save(path)
    return path


def cloud(x):
    return "b"


def test_the_certificate_of_a_version_is_its_threshold(publisher):
    """With the model it changes; one for another model is not used, and a policy that requires one refuses the version."""
    path = certified(publisher, FIRST, cloud)
    publisher.publish("1.0", FIRST, certificate=path)
    publisher.publish("1.1", SECOND, certificate=path)  # the wrong one
    device = publisher.device()
    device.pull("doors", "1.0")
    device.pull("doors")
    device.activate("doors", "1.0")
    with Router(device.path("doors"), cloud) as router:
        assert router.engine.snapshot.certificates[0].broken() is None
        assert router.infer(X).source == "edge"
        device.activate("doors", "1.1")
        router.reload()
        assert router.infer(X).source == "cloud"  # its threshold is not used
        assert routes.uncalibrated(router.infer(X))
    with Router(device.path("doors"), cloud, threshold=0.5) as router:
        assert router.infer(X).value == "c"  # a number stays a number
    with pytest.raises(PolicyError, match="guarantees nothing here"):
        Router(device.path("doors"), cloud, options=Options(uncalibrated="error"))
    device.activate("doors", "1.0")
    with Router(device.path("doors"), cloud, options=Options(uncalibrated="error")) as router:
        device.activate("doors", "1.1")
        with pytest.raises(PolicyError, match="guarantees nothing here"):
            router.reload()
        assert router.infer(X).value == "a"


def test_a_model_without_a_certificate_needs_a_threshold(device):
    with pytest.raises(PolicyError, match="threshold= is missing"):
        Router(device.path("doors"), cloud)


def test_a_model_beside_one_with_a_certificate_needs_a_threshold(publisher):
    """All of its answers would be accepted, and nothing deferred."""
    publisher.publish("1.0", FIRST, certificate=certified(publisher, FIRST, cloud))
    device = publisher.device()
    device.pull("doors")
    device.activate("doors")
    for edges in ([lambda x: ("a", 0.01), device.path("doors")], Variants(a=device.path("doors"), b=lambda x: ("a", 0.01))):
        with pytest.raises(PolicyError, match="threshold= is missing"):
            Router(edges, cloud)
        with Router(edges, mode="only_edge") as router:
            assert router.infer(X).value == "a"


# --------------------------------------------------------------------------------------------------------------- warm-up
def test_warm(tmp_path):
    """Each model is loaded and run, on samples or zeros, with progress; nothing is counted."""
    small, large = (tiny.linear(tmp_path / f"{name}.onnx") for name in ("small", "large"))
    told = []
    with Router([small, large], threshold=0.5) as router:
        found = router.warm(progress=lambda *at: told.append(at))
        assert told == [(0, 2, "small"), (1, 2, "large"), (2, 2, "")]
        assert all(one.first_s is not None and one.load_s >= 0 for one in found)
        assert router.stats().requests == 0
        assert [one.name for one in router.warm([X, X])] == ["small", "large"]
        with pytest.raises(BadInput):
            router.warm([np.zeros(7, np.float32)])
        assert router.warm()[0].load_s < found[0].load_s
    with Router(lambda x: ("a", 0.9), options=Options(views={"edge": "n"})) as router:
        assert "not run: give samples=" in str(router.warm()[0])
        assert router.warm([{"n": 1}])[0].again_s is not None

    def one(x):
        assert x == 1
        return "a", 0.9

    with Router(one, trial=Trial(edge=one), options=Options(views={"edge": "n"})) as router:
        assert [warmed.name for warmed in router.warm([{"n": 1}])] == ["edge", "edge-trial"]
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with Router(tmp_path / "bad.onnx") as router, pytest.raises(Exception, match="cannot load"):
        router.warm()


def test_warm_is_awaited(tmp_path):
    """By AsyncRouter, whose async edges run on its loop."""
    import asyncio

    async def edge(x):
        await asyncio.sleep(0)
        return "a", 0.9

    async def number(x):
        assert x == 1
        return "a", 0.9

    async def main():
        told = []
        async with AsyncRouter(tiny.linear(tmp_path / "m.onnx")) as router:
            (one,) = await router.warm(progress=lambda *at: told.append(at))
            assert one.again_s is not None
        async with AsyncRouter(edge) as router:
            (one,) = await router.warm([1])
            assert one.first_s is not None
            assert (await router.warm())[0].first_s is None
        async with AsyncRouter(number, options=Options(views={"edge": "n"})) as router:
            assert (await router.warm([{"n": 1}]))[0].first_s is not None
        assert told == [(0, 1, "edge"), (1, 1, "")]

    asyncio.run(main())


def test_check_says_what_was_warmed(device):
    with Router(device.path("doors")) as router:
        assert "doors 1.0" in str(router.check())
        router.warm()
        assert "first run" in str(router.check())


# ----------------------------------------------------------------------------------------------------------- command line
def test_the_commands(tmp_path, monkeypatch):
    """From keys to a rollback, as a publisher and a device type them; --json is what programs read."""
    monkeypatch.chdir(tmp_path)
    tiny.linear(tmp_path / "doors.onnx", card={"labels": LABELS})
    np.savez(tmp_path / "inputs.npz", inputs=np.eye(4, dtype=np.float32)[:3])

    def models(*args, code=0):
        ended, out, err = cli("models", *args, "--json")
        assert ended == code, (args, out, err)
        return json.loads(out or err)

    models("keygen")
    made = models("publish", "doors", "doors.onnx", "--version", "1.0", "--canaries", "inputs.npz", "--record")
    assert made["entry"]["canaries"] == "canaries.npz"
    models("publish", "doors", "doors.onnx", "--version", "1.1")
    found = models("list", "--from", "catalog", "--root", "catalog/root.json")
    assert [(one["version"], one["here"]) for one in found] == [("1.0", False), ("1.1", False)]
    assert models("pull", "doors", "--version", "1.0")["version"] == "1.0"
    models("pull", "doors")
    models("activate", "doors", "--version", "1.0")
    assert models("activate", "doors") == {"text": "doors 1.1 is active", "version": "1.1", "previous": "1.0", "pinned": False}
    assert models("verify", "doors")["version"] == "1.1"
    assert models("pin", "doors")["pinned"]
    assert models("rollback", "doors")["version"] == "1.0"
    (one,) = models("status")
    assert (one["active"], one["refused"]) == ("1.0", {"1.1": "rolled back by hand"})
    models("sign", "--withdraw", "doors=1.1")
    assert [one["version"] for one in models("list")] == ["1.0"]
    assert "no model 'gates'" in models("pull", "gates", code=2)["error"]
    (tmp_path / "model-store/versions/doors/1.0/doors.onnx").write_bytes(b"")
    assert models("status", code=4)[0]["problems"]
    edited(tmp_path / "catalog/metadata/timestamp.json", lambda d: d["signed"].update(version=9))
    assert "wrong signature" in models("list", code=2)["error"]
    shown = "".join(cli("models", "status")[1:])
    assert "doors" in shown
    assert "! doors 1.0: doors.onnx is not what was published" in shown
