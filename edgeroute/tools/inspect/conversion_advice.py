"""Advice, in words, on model files and objects that no runtime runs: the step that makes one that does. Converts nothing."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from edgeroute.edge.runtimes_variants_ensemble import suffix_of, suffixes

_EXPORT = "torch.onnx.export(model, example, 'model.onnx')"
# Suffixes of files that no runtime runs -> the step that makes one that does, with a place for the path.
STEPS = {
    (".pt", ".pth", ".pt2", ".ckpt", ".torchscript", ".bin"): "`edgeroute convert {} --trust --sample input.npy` writes an ONNX "
    f"file of a whole PyTorch model; with weights alone, build the model in Python, and {_EXPORT}",
    (".safetensors", ".pte"): f"build the PyTorch model in Python, and {_EXPORT}",
    (".keras",): "`edgeroute convert {}` writes an ONNX file; or convert it to .tflite",
    (".h5", ".hdf5", ".pb"): "`edgeroute convert {} --trust` writes an ONNX file; or convert it to .tflite",
    (".pkl", ".pickle", ".joblib"): "`edgeroute convert {} --trust` writes an ONNX file; or load it in Python, and pass the "
    "object, edge=model, if it has predict_proba",
    (".json", ".ubj", ".txt", ".cbm"): "`edgeroute convert {}` writes an ONNX file of a model of XGBoost, LightGBM or CatBoost",
    (".engine", ".plan", ".trt"): "give the ONNX file that it was built from: `providers` has TensorRT build an engine of it",
    (".nemo",): "export it in NeMo: model.export('model.onnx')",
}  # fmt: skip


def of_torch(name: str) -> str:
    """Return the step that makes an edge of a module of PyTorch with this class."""
    return (
        f"edge= takes a function of one input, and {name} is a torch.nn.Module, which takes a batch of tensors: write "
        f"edge=lambda x: net(torch.as_tensor(x)[None])[0].detach().numpy() after net.eval(), or {_EXPORT} and edge='model.onnx'"
    )


def step(path: str, hub: re.Match[str] | None) -> str:
    """Return the step, in words, that makes a runnable file of a file, a folder (which is listed) or a name on a hub.

    If none is known, the text names the suffixes that can be run.

    Args:
        path: what was given as the model.
        hub: match of its name on a hub, whose second group is the name without an address; None: it has the form of none.
    """
    folder, names = Path(path), list[str]()
    with suppress(OSError, ValueError):
        names = sorted(file.name for file in folder.iterdir())
    if "saved_model.pb" in names:
        return STEPS[".h5", ".hdf5", ".pb"].format(path)
    if inside := next(filter(suffix_of, names), None):
        return f"it is a folder: give the file in it, {str(folder / inside)!r}"
    name = path if hub is None or names else hub[2]
    way = (
        f"if it is a model on a hub, write edge=pipeline(model={name!r}) of transformers; or give the file that "
        f"`optimum-cli export onnx --model {name} OUT` writes"
    )
    if "config.json" in names or (hub and not folder.exists()):
        return way
    if path.lower().endswith((".toml", ".yaml", ".yml")):
        return f"expected a model's file; a policy's is read by Router.from_policy({path!r})"
    if re.fullmatch(r"[\w-]+", path):
        return f"{way}; a file ends in {', '.join(suffixes())}"
    return next((step.format(path) for ends, step in STEPS.items() if path.lower().endswith(ends)), None) or (
        f"expected a file that ends in {', '.join(suffixes())}; another one is added by "
        'edgeroute.register(".suffix", "package.module:Class")'
    )
