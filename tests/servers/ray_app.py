"""The models of the contract as a Ray Serve application with its own HTTP ingress: python ray_app.py PORT TEMPORARY_FOLDER.

An application of Ray defines its protocol itself: this one takes JSON and binary tensors, and has no gRPC.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

import contract
import fastapi
import ray
from ray import serve

np = contract.np
app = fastapi.FastAPI()
LENGTH = "inference-header-content-length"


# these come first: what is in force as the class is decorated is copied to the workers
def model(name, version):
    if name not in contract.MODELS or version not in contract.VERSIONS.get(name, ("1",)):
        raise fastapi.HTTPException(404, "there is no such model")
    return contract.MODELS[name]


def array(tensor, raw):
    if raw is None:
        return np.array(tensor["data"], contract.NUMPY[tensor["datatype"]]).reshape(tensor["shape"])
    if tensor["datatype"] != "BYTES":
        return np.frombuffer(raw, contract.NUMPY[tensor["datatype"]]).reshape(tensor["shape"])
    texts, at = [], 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        texts.append(raw[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return np.array(texts, object).reshape(tensor["shape"])


def data(found):
    if found.dtype != object:
        return found.tobytes()
    return b"".join(len(one).to_bytes(4, "little") + one for one in (str(text).encode() for text in found.ravel()))


@serve.deployment(max_ongoing_requests=16)
@serve.ingress(app)
class Contract:
    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def metadata(self, name: str, version: str = "1"):
        _, inputs, outputs = model(name, version)
        there = list(contract.VERSIONS.get(name, ("1",)))
        described = [
            [{"name": one, "datatype": kind, "shape": [-1, width]} for one, (kind, width) in given.items()]
            for given in (inputs, outputs)
        ]
        return {"name": name, "versions": there, "platform": "ray", "inputs": described[0], "outputs": described[1]}

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def ready(self, name: str, version: str = "1"):
        model(name, version)
        return {"ready": True}

    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(self, request: fastapi.Request, name: str, version: str = ""):
        version = version or contract.VERSIONS.get(name, ("1",))[-1]
        function, takes, gives = model(name, version)
        body = await request.body()
        cut = int(request.headers.get(LENGTH, len(body)))
        head = json.loads(body[:cut])
        inputs, at = {}, cut
        for one in head["inputs"]:
            size = one.get("parameters", {}).get("binary_data_size")
            inputs[one["name"]] = array(one, body[at : at + (size or 0)] if size is not None else None)
            at += size or 0
        for one, (_, width) in takes.items():
            if one not in inputs or inputs[one].shape[1:] != (width,):
                raise fastapi.HTTPException(400, f"no input {one} of the right shape")
        found = await asyncio.to_thread(function, version, inputs)
        wanted = [one["name"] for one in head.get("outputs", ())] or list(gives)
        raw = cut < len(body)
        outputs, parts = [], []
        for one in wanted:
            output = {"name": one, "datatype": gives[one][0], "shape": list(found[one].shape)}
            if raw:
                parts.append(data(found[one]))
                output["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                output["data"] = found[one].ravel().tolist()
            outputs.append(output)
        text = json.dumps({"model_name": name, "model_version": version, "outputs": outputs}).encode()
        headers = {LENGTH: str(len(text))} if raw else {}
        return fastapi.Response(
            b"".join([text, *parts]), headers=headers, media_type="application/octet-stream" if raw else "application/json"
        )


if __name__ == "__main__":
    import ray_app  # what is of a module by name is imported by Ray's workers, and what is of this program is copied to them

    port, folder = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ray.init(num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=folder, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(ray_app.Contract.bind(), route_prefix="/")
    try:
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()
