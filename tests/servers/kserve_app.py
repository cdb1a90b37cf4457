"""The models of the contract for KServe's SDK: python kserve_app.py HTTP_PORT GRPC_PORT. It would listen on all addresses."""

from __future__ import annotations

import asyncio
import sys

import contract
import grpc
import uvicorn
from kserve import InferOutput, InferResponse, Model, ModelServer
from kserve.errors import InferenceError


class ContractModel(Model):
    def __init__(self, name):
        super().__init__(name)
        self.function, self.takes, self.gives = contract.MODELS[name]
        self.ready = True

    async def get_input_types(self):
        return [{"name": name, "datatype": kind, "shape": [-1, width]} for name, (kind, width) in self.takes.items()]

    async def get_output_types(self):
        return [{"name": name, "datatype": kind, "shape": [-1, width]} for name, (kind, width) in self.gives.items()]

    async def predict(self, payload, headers=None, response_headers=None):
        inputs = {one.name: one.as_numpy() for one in payload.inputs}
        if missing := self.takes.keys() - inputs.keys():
            raise InferenceError(f"no input {missing}")
        found = await asyncio.to_thread(self.function, "1", inputs)
        outputs = []
        binary = payload.use_binary_outputs or any(one.binary_data for one in payload.request_outputs or ()) or payload.from_grpc
        for name, (kind, _) in self.gives.items():
            output = InferOutput(name=name, shape=list(found[name].shape), datatype=kind)
            output.set_data_from_numpy(found[name], binary_data=binary)
            outputs.append(output)
        return InferResponse(
            response_id="", model_name=self.name, infer_outputs=outputs, use_binary_outputs=payload.use_binary_outputs,
            requested_outputs=payload.request_outputs,
        )  # fmt: skip


def on_loopback(add, http):
    """As `add`, which is given an address or has one by default."""

    def added(self, *given, **named):
        if http:
            return add(self, *given, **{**named, "host": "127.0.0.1"})
        return add(self, given[0].replace("[::]", "127.0.0.1"), *given[1:])

    return added


if __name__ == "__main__":
    uvicorn.Config.__init__ = on_loopback(uvicorn.Config.__init__, http=True)
    grpc.aio.Server.add_insecure_port = on_loopback(grpc.aio.Server.add_insecure_port, http=False)
    http, rpc = map(int, sys.argv[1:])
    server = ModelServer(http_port=http, grpc_port=rpc, workers=1, enable_docs_url=False)
    server.start([ContractModel(name) for name in contract.MODELS])
