"""An owner with keys and a catalog of signed policies, and devices that follow them."""

from __future__ import annotations

import json
import shutil

import tiny

from edgeroute.tools.catalog_keys_and_publishing import keygen, sign_files
from edgeroute.tools.fleet.policy_rollout_by_rings import publish

ONE_CLOUD = {"name": "main", "protocol": "json"}


class Fleet:
    """An owner with keys and a catalog, and devices with policy files of their own, below a folder."""

    def __init__(self, home, url="http://127.0.0.1:9/v2/models/x"):
        self.home, self.keys, self.catalog, self.url = home, home / "keys", home / "catalog", url
        keygen(self.keys)
        sign_files(self.catalog, {}, keys=self.keys)
        shutil.copyfile(self.catalog / "root.json", home / "root.json")
        tiny.linear(
            home / "m.onnx", size=4, weights=[[3, 0, 0], [0, 3, 0], [0, 0, 3], [0, 0, 0]], card={"labels": ["a", "b", "c"]}
        )
        self.policy(0.5)

    def policy(self, threshold, **more):
        """Write the owner's file."""
        path = self.home / "policy.json"
        path.write_text(json.dumps({"threshold": threshold, "edge": {"path": "m.onnx"}, "cloud": ONE_CLOUD, **more}))
        return path

    def publish(self, threshold=None, **more):
        """Sign a version with this threshold, for all devices unless `rings` says otherwise."""
        orders = {key: more.pop(key) for key in ("rings", "only_edge", "freeze", "requires", "halt") if key in more}
        path = None if threshold is None else self.policy(threshold, **more)
        return publish(self.catalog, "shop", path, keys=self.keys, **orders)

    def device(self, name="device", catalog="catalog", refresh="20ms", local="", ring=None, **fleet):
        """Write a device's file, whose state folder is its name."""
        more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in fleet.items())
        path = self.home / f"{name}.toml"
        path.write_text(f"""
threshold = 0.9
state = "{name}"
[edge]
path = "m.onnx"
[cloud]
name = "main"
protocol = "json"
url = "{self.url}"
[fleet]
policy = "shop"
catalog = "{catalog}"
root = "root.json"
refresh = "{refresh}"
{more}
[local.cloud]
name = "main"
url = "{self.url}"
[local]
{local}
""")
        if ring is not None:
            (self.home / name / "fleet").mkdir(parents=True, exist_ok=True)
            (self.home / name / "fleet" / "ring").write_text(ring)
        return path


def threshold(router):
    """The threshold that a router has in force."""
    return router.engine.snapshot.targets[0].threshold
