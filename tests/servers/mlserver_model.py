"""The models of the contract for MLServer."""

from __future__ import annotations

import asyncio

import contract
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.errors import InferenceError
from mlserver.types import InferenceResponse, MetadataTensor


class ContractModel(MLModel):
    async def load(self):
        self.function, inputs, outputs = contract.MODELS[self.name]
        self.datatypes = {name: datatype for name, (datatype, _) in (*inputs.items(), *outputs.items())}
        self.inputs, self.outputs = ([_tensor(name, *one) for name, one in given.items()] for given in (inputs, outputs))
        return True

    async def predict(self, payload):
        inputs = {}
        for one in payload.inputs:
            if one.name not in self.datatypes:
                raise InferenceError(f"no input {one.name}")
            inputs[one.name] = _array(one)
        found = await asyncio.to_thread(self.function, self.version, inputs)
        outputs = [_output(name, found[name], self.datatypes[name]) for name in (one.name for one in self.outputs)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


def _tensor(name, datatype, width):
    return MetadataTensor(name=name, datatype=datatype, shape=[-1, width])


def _array(given):
    if given.datatype != "BYTES":
        return NumpyCodec.decode_input(given)
    return contract.np.array(StringCodec.decode_input(given), object).reshape(given.shape)


def _output(name, array, datatype):
    if datatype != "BYTES":
        return NumpyCodec.encode_output(name, array)
    output = StringCodec.encode_output(name, [str(one) for one in array.ravel()])
    output.shape = list(array.shape)
    return output
