"""Policies whose model is of a catalog: the keys of the active version's runtime; stores where there are no links."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from catalogs import LABELS, SECOND, Publisher

pytest.importorskip("tuf")
pytest.importorskip("cryptography")
pytest.importorskip("ai_edge_litert")

import tflite_models

from edgeroute import LiteRTModel, ModelMissing, OnnxModel, PolicyError, Router
from edgeroute.edge.model_card import sha256_of
from edgeroute.policy import load, schema
from edgeroute.tools.catalog_keys_and_publishing import publish

X = np.array([1, 0, 0, 0], np.float32)


@pytest.fixture
def publisher(tmp_path):
    """With three versions of doors: ONNX, TFLite, ONNX."""
    made = Publisher(tmp_path)
    made.publish("1.0")
    tflite = tflite_models.linear(tmp_path / "doors.tflite")
    tflite.with_suffix(".json").write_text(json.dumps({"labels": LABELS}))
    publish(made.catalog, "doors", "2.0", [tflite], keys=made.keys)
    made.publish("3.0", SECOND)
    return made


@pytest.fixture
def device(publisher):
    made = publisher.device()
    for version in ("1.0", "2.0", "3.0"):
        made.pull("doors", version)
    return made


@pytest.fixture
def write(tmp_path):
    """Writes a policy whose model is the active version, with these other keys of [edge], and returns its path."""

    def write(name="store/doors.active", **keys):
        path = tmp_path / "policy.json"
        path.write_text(json.dumps({"mode": "only_edge", "edge": {"path": name, **keys}}))
        return path

    return write


def test_the_keys_are_those_of_the_active_versions_runtime(device, write):
    """And with another runtime's version those of that."""
    device.activate("doors", "2.0")
    policy = write(threads=2, runtime="litert")
    with Router.from_policy(policy) as router:
        model = router.engine.snapshot.backends[0].model
        assert isinstance(model, LiteRTModel)
        assert router.infer(X).value is not None
    with pytest.raises(PolicyError, match=r"edge\.delegat: there is no such key: did you mean \"delegate\"\?"):
        load(write(delegat="libedgetpu.so.1"))
    with pytest.raises(PolicyError, match=r"edge\.runtime: found \"maybe\""):
        load(write(runtime="maybe"))
    device.activate("doors", "1.0")
    with pytest.raises(PolicyError, match=r"edge\.runtime: there is no such key"):
        load(policy)
    with Router.from_policy(write(providers=["cpu"], threads=1)) as router:
        assert isinstance(router.engine.snapshot.backends[0].model, OnnxModel)
    with Router.from_policy(write("store/doors@2.0.active", runtime="litert")) as router:
        assert isinstance(router.engine.snapshot.backends[0].model, LiteRTModel)


def test_variables_set_the_keys_of_that_runtime(device, write, monkeypatch):
    device.activate("doors", "2.0")
    monkeypatch.setenv("EDGEROUTE_EDGE__RUNTIME", "litert")
    assert load(write()).edge[0].given() == {"runtime": "litert"}
    device.activate("doors", "1.0")
    with pytest.raises(PolicyError, match="EDGEROUTE_EDGE__RUNTIME: there is no such variable"):
        load(write())


def test_a_policy_elsewhere_than_the_working_folder(device, write, monkeypatch, tmp_path):
    """The path starts from the policy's folder."""
    device.activate("doors", "2.0")
    policy = write(runtime="litert")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load(policy).edge[0].given() == {"runtime": "litert"}
    monkeypatch.chdir(tmp_path)
    assert load("policy.json").edge[0].given() == {"runtime": "litert"}


def test_before_a_version_is_active(device, write):
    """The policy is one, and the model is missing; keys that depend on its runtime cannot be judged."""
    policy = write(threads=1)
    assert load(policy).edge[0].threads == 1
    with pytest.raises(ModelMissing, match="edgeroute models activate doors"):
        Router.from_policy(policy)
    with pytest.raises(PolicyError, match=r"edge\.path: what keys its runtime has is not known: no version of doors is active"):
        load(write(runtime="litert"))


def test_an_update_to_another_runtime(device, write):
    """A version of a runtime that lacks a key of the policy is refused while it is tried; else it is taken."""
    from edgeroute.catalog import Updater

    device.activate("doors", "2.0")
    with Router.from_policy(write(runtime="litert")) as router:
        step = Updater(device, "doors", router).step()
        assert (step.did, step.version) == ("refused", "3.0")
        assert "runtime" in step.text
        assert isinstance(router.engine.snapshot.backends[0].model, LiteRTModel)
    device.activate("doors", "2.0")
    shutil.copytree(device.store.folder, device.store.folder.with_name("other"))
    device = type(device)(device.store.folder.with_name("other"))
    device.mark("doors", refused=())
    with Router.from_policy(write("other/doors.active", threads=1)) as router:
        assert Updater(device, "doors", router).step().did == "updated"
        assert isinstance(router.engine.snapshot.backends[0].model, OnnxModel)


def test_a_store_below_a_link(device, write, tmp_path):
    """As /tmp is one on macOS: a trial finds its model."""
    from edgeroute.catalog import Catalog, Updater

    device.activate("doors", "2.0")
    (tmp_path / "link").symlink_to(tmp_path / "store")
    linked = Catalog(tmp_path / "link")
    with Router.from_policy(write("link/doors.active")) as router:
        assert Updater(linked, "doors", router).step().did == "updated"
        assert router.engine.snapshot.backends[0].model.release.version == "3.0"


def test_arms_of_two_runtimes(device, write, tmp_path):
    """B has those keys of [edge] that its runtime has."""
    device.activate("doors", "1.0")
    policy = write(threads=2, providers=["cpu"])
    policy.write_text(json.dumps({**json.loads(policy.read_text()), "trial": {"edge": "store/doors@2.0.active", "share": 1.0}}))
    with Router.from_policy(policy) as router:
        a, b = router.engine.snapshot.backends[0].model, router.engine.snapshot.trial.backends[0].model
        assert (type(a), type(b)) == (OnnxModel, LiteRTModel)
        assert router.infer(X).leg == "edge-trial"


def test_editors_know_the_keys():
    """The schema takes each runtime's keys for a model of a catalog, too."""
    forms = [one for one in schema()["properties"]["edge"]["anyOf"][0]["anyOf"] if "delegate" in one.get("properties", {})]
    assert [bool(re.search(forms[0]["properties"]["path"]["pattern"], f"doors{end}")) for end in (".tflite", ".active", ".onnx")] == [
        True, True, False,
    ]  # fmt: skip


def test_a_store_without_links(publisher, monkeypatch, tmp_path):
    """As on FAT: the catalog is read, updated, activated and rolled back all the same."""

    def none(*args, **options):
        raise OSError(1, "Operation not permitted")

    for name in ("symlink", "link"):
        monkeypatch.setattr(os, name, none)
    for name in ("symlink_to", "hardlink_to"):
        monkeypatch.setattr(Path, name, none)
    device = publisher.device()
    device.pull("doors", "1.0")
    device.activate("doors", "1.0")
    publisher.publish("4.0", SECOND)
    device.pull("doors")
    device.activate("doors")
    assert device.active("doors")[:2] == ("4.0", "1.0")
    with Router(device.path("doors")) as router:
        assert router.infer(X).value == "c"
        device.rollback("doors")
        router.reload()
        assert router.infer(X).value == "a"
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_symlink()] == []


def test_arm_b_has_neither_the_hash_nor_the_card_of_a(device, write, tmp_path):
    """Of another file they would be wrong; for a runtime by registration, too."""
    device.activate("doors", "2.0")
    folder = device.store.version("doors", "2.0")
    shutil.copy(folder / "doors.tflite", tmp_path / "a.tflite")
    shutil.copy(folder / "doors.json", tmp_path / "card.json")
    policy = write("a.tflite", sha256=sha256_of(tmp_path / "a.tflite"),
                   card="card.json", threads=2)  # fmt: skip
    policy.write_text(json.dumps({**json.loads(policy.read_text()), "trial": {"edge": "b.tflite", "share": 1.0}}))
    other = tflite_models.linear(tmp_path / "b.tflite", weights=np.array(SECOND, np.float32))
    other.with_suffix(".json").write_text(json.dumps({"labels": LABELS}))
    with Router.from_policy(policy) as router:
        b = router.engine.snapshot.trial.backends[0].model
        assert b.threads == 2
        assert b.card.path == other.with_suffix(".json")
        assert router.infer(X).value == "c"
