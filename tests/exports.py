"""Models for exports, and a Triton that serves one."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import urllib.error
import urllib.request
from time import monotonic, sleep

import numpy as np
import pytest
import real_servers
import tiny
from onnx import TensorProto, helper

WEIGHTS = np.random.default_rng(0).normal(size=(3 * 8 * 8, 4)).astype(np.float32)
EVIL = 'doors "x"\n} evil: \'\'\' """ \\ ${a} é'
"""A name that would end quotes of any language, if it stood in one."""
PICTURE = {
    "name": EVIL, "description": "a: b\n'''\"\"\" \\ {{ x }} %s",
    "input": {"name": "image", "dtype": "float32", "shape": [-1, 3, 8, 8], "layout": "CHW"},
    "preprocess": {"dtype": "uint8", "shape": [8, 8, 3], "layout": "HWC", "resize": 10, "crop": 8, "scale": 1 / 255,
                   "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "output": {"name": "logits", "kind": "logits"}, "labels": ["a\nb", 'c"} ', "é", "d: - x"],
}  # fmt: skip


def pictures(path, card=None, batch="n"):
    """image [n, 3, 8, 8] -> logits [n, 4]."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["logits"])]
    io = [value("image", TensorProto.FLOAT, [batch, 3, 8, 8])], [value("logits", TensorProto.FLOAT, [batch, 4])]
    tiny.save(path, nodes, *io, [("w", WEIGHTS)])
    path.with_suffix(".json").write_text(json.dumps(PICTURE if card is None else card))
    return path


def columns(path):
    """a [2, n], b [2, n], and a constant number of times: total [2, n] = (a + b) * times; the second axis counts the inputs."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Mul", ["sum", "times"], ["total"])]
    given = [value(name, TensorProto.FLOAT, [2, "n"]) for name in "ab"] + [value("times", TensorProto.FLOAT, [])]
    tiny.save(path, nodes, given, [value("total", TensorProto.FLOAT, [2, "n"])])
    axis = [{"name": name, "batch": 1} for name in "ab"]
    card = {"inputs": [*axis, {"name": "times", "value": 3}], "output": {"batch": 1}, "name": path.stem}
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


def jpeg(shape, seed=0, format="JPEG", **options):  # noqa: A002 - Pillow's word
    """The file of a picture of that shape."""
    image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, *shape[2:]), np.uint8)
    image.fromarray(noise).resize(shape[1::-1]).save(out, format, **options)
    return out.getvalue()


@contextlib.contextmanager
def triton(repository, folder):
    """Triton with that repository -> its origin, and where its log is."""
    home = real_servers.ENVIRONMENTS / "triton"
    if not (home / "made").exists():
        pytest.skip("no environment for triton: make server-triton")
    argv, env, (http, _) = real_servers.triton_command(home, folder, repository, "--exit-on-error=false")
    log = folder / "log"
    with log.open("wb") as out:
        env = {**real_servers._environment(), **env}
        process = subprocess.Popen(argv, env=env, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
    try:
        until = monotonic() + real_servers.STARTS_S
        while get(f"http://127.0.0.1:{http}/v2/health/live")[0] != 200:
            assert process.poll() is None, log.read_text(errors="replace")[-4000:]
            assert monotonic() < until, log.read_text(errors="replace")[-4000:]
            sleep(0.1)  # between looks at a process that starts
        yield f"http://127.0.0.1:{http}", log
    finally:
        real_servers._end(process)


def get(url):
    """-> status, JSON of the reply; 0: nobody is there."""
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return reply.status, json.loads(reply.read() or b"null")
    except urllib.error.HTTPError as e:
        return e.code, None
    except OSError:
        return 0, None


def infer_bytes(url, name, files):
    """Sends files as the BYTES input of that name -> status, outputs by name, or the error."""
    raw = b"".join(len(one).to_bytes(4, "little") + one for one in files)
    tensor = {"name": name, "datatype": "BYTES", "shape": [len(files), 1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{url}/infer", head + raw, headers), timeout=30) as reply:
            said = json.loads(reply.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())["error"]
    return 200, {one["name"]: np.array(one["data"]).reshape(one["shape"]) for one in said["outputs"]}
