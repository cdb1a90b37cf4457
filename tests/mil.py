"""Executes a Core ML program operation by operation in numpy, where there is no Core ML. For tests.

Results have the type that the program declares, so float16 is rounded as on a device, after sums in float32.
"""

import logging

import numpy as np

ARRAY_TYPES = {"fp16": np.float16, "fp32": np.float32, "int8": np.int8, "uint8": np.uint8, "int32": np.int32, "bool": np.bool_}


def f32(x):
    return np.asarray(x, np.float32)


def conv(x, weight, bias=None, strides=(1, 1), pad_type="valid", pad=(0, 0, 0, 0), dilations=(1, 1), groups=1):
    """Two-dimensional, without groups and dilations, which a test's program would have to bring."""
    assert (pad_type, groups, *dilations) in {("custom", 1, 1, 1), ("valid", 1, 1, 1)}
    top, bottom, left, right = pad if pad_type == "custom" else (0, 0, 0, 0)
    padded = np.pad(f32(x), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]  # [n, channels, height, width, *kernel]
    out = np.tensordot(windows, f32(weight), ([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)
    return out if bias is None else out + f32(bias)[:, None, None]


def dequantized(quantized_data, zero_point, scale, axis=0):
    along = [1] * quantized_data.ndim
    along[axis] = -1
    return (f32(quantized_data) - f32(zero_point).reshape(along)) * f32(scale).reshape(along)


def softmax(x, axis):
    powers = np.exp(f32(x) - f32(x).max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


OPERATIONS = {
    "add": lambda x, y: f32(x) + f32(y),
    "cast": lambda x, dtype: x,
    "constexpr_affine_dequantize": dequantized,
    "conv": conv,
    "identity": lambda x: x,
    "linear": lambda x, weight, bias: f32(x) @ f32(weight).T + f32(bias),
    "mul": lambda x, y: f32(x) * f32(y),
    "reduce_mean": lambda x, axes, keep_dims: f32(x).mean(tuple(axes), keepdims=bool(keep_dims)),
    "relu": lambda x: np.maximum(x, 0),
    "reshape": lambda x, shape: np.reshape(x, [len(x) if i == 0 and size == 1 else size for i, size in enumerate(shape)]),
    "softmax": softmax,
    "squeeze": lambda x, axes: np.squeeze(x, tuple(axes)),
}  # fmt: skip


class Program:
    """The program of a package, to be run.

    Args:
        path: the .mlpackage.
    """

    def __init__(self, path):
        logging.getLogger("coremltools").setLevel(logging.ERROR)  # it lists what is missing here
        from coremltools.converters.mil.frontend.milproto.load import load
        from coremltools.proto.Model_pb2 import Model

        data = path / "Data" / "com.apple.CoreML"  # not read by coremltools, which would write to the package
        spec = Model.FromString((data / "model.mlmodel").read_bytes())
        self.function = load(spec, spec.specificationVersion, str(data / "weights")).functions["main"]
        self.constants = {}

    def __call__(self, feed):
        """name -> array, to name -> array. Where each row is by itself, more rows than the program says give as many."""
        values = {name: np.asarray(feed[name], ARRAY_TYPES[type_of(var)]) for name, var in self.function.inputs.items()}
        for op in self.function.operations:
            (out,) = op.outputs
            if op.op_type == "const":
                continue
            if op.op_type.startswith("constexpr_"):
                if out.name not in self.constants:
                    self.constants[out.name] = self.result(op, {})
                values[out.name] = self.constants[out.name]
            else:
                values[out.name] = self.result(op, values)
        return {out.name: values[out.name] for out in self.function.outputs}

    @staticmethod
    def result(op, values):
        """Of one operation."""
        arguments = {name: values.get(var.name, var.val) for name, var in op.inputs.items() if var is not None}
        (out,) = op.outputs
        return np.asarray(OPERATIONS[op.op_type](**arguments)).astype(ARRAY_TYPES[type_of(out)])


def type_of(var):
    from coremltools.converters.mil.mil import types

    return types.builtin_to_string(var.dtype)
