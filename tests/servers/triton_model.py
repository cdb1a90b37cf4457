"""A model of the contract for Triton's Python backend; the folder that it is in has the model's name."""

from __future__ import annotations

import json

import contract
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.name, self.version = config["name"], args["model_version"]
        self.function, self.inputs, self.outputs = {**contract.MODELS, **contract.BRAIN, **contract.LARGE}[config["name"]]

    def execute(self, requests):
        return [self.one(request) for request in requests]

    def one(self, request):
        if self.name in contract.BRAIN:
            given = pb.get_input_tensor_by_name(request, "x_bf16")
            return pb.InferenceResponse([pb.Tensor.from_dlpack("y_bf16", given.to_dlpack())])
        inputs = {name: pb.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
        try:
            found = self.function(self.version, inputs)
        except RuntimeError as e:
            return pb.InferenceResponse(error=pb.TritonError(str(e)))
        return pb.InferenceResponse([pb.Tensor(name, found[name]) for name in self.outputs])
