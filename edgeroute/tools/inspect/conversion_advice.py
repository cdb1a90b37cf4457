"""Advice, in words, on what is given as a model and no runtime runs: the step that makes one that does; and on addresses."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeroute.edge.runtimes_variants_ensemble import suffix_of, suffixes

_EXPORT = "torch.onnx.export(model, example, 'model.onnx')"
# Suffixes of files that no runtime runs -> the step that makes one that does, with a place for the path.
STEPS = {
    (".pt", ".pth", ".pt2", ".ckpt", ".torchscript", ".bin"): "`edgeroute convert {} --trust --sample input.npy` writes an ONNX "
    f"file of a whole PyTorch model; with weights alone, build the model in Python, and {_EXPORT}",
    (".safetensors", ".pte"): f"build the PyTorch model in Python, and {_EXPORT}",
    (".task",): "it is an archive of MediaPipe's: `unzip {}`, and give the .tflite file that classifies",
    (".keras",): "`edgeroute convert {}` writes an ONNX file; or convert it to .tflite",
    (".h5", ".hdf5", ".pb"): "`edgeroute convert {} --trust` writes an ONNX file; or convert it to .tflite",
    (".pkl", ".pickle", ".joblib"): "`edgeroute convert {} --trust` writes an ONNX file; or load it in Python, and pass the "
    "object, edge=model, if it has predict_proba",
    (".json", ".ubj", ".txt", ".cbm"): "`edgeroute convert {}` writes an ONNX file of a model of XGBoost, LightGBM or CatBoost",
    (".engine", ".plan", ".trt"): "give the ONNX file that it was built from: `providers` has TensorRT build an engine of it",
    (".nemo",): "export it in NeMo: model.export('model.onnx')",
}  # fmt: skip


def of_torch(module: type) -> str:
    """Return the step that makes an edge of a module of PyTorch of this class."""
    name = module.__name__
    if any(kind.__module__.startswith("transformers.") for kind in module.__mro__):
        return f"edge= takes a function, and {name} takes token ids: write edge=pipeline(task, model, tokenizer=tokenizer)"
    return (
        f"edge= takes a function of one input, and {name} is a torch.nn.Module, which takes a batch of tensors: write "
        f"edge=lambda x: net(torch.as_tensor(x)[None])[0].detach().numpy() after net.eval(), or {_EXPORT} and edge='model.onnx'"
    )


def of_estimator(side: str, value: Any, *, classifier: bool) -> str:
    """Return what to write in place of an estimator, or a method of one, which is no model as it is.

    Args:
        side: edge or cloud, the argument.
        value: the estimator, or its method.
        classifier: it has the probabilities of one answer's classes.
    """
    model = getattr(value, "__self__", value)
    shown = type(model).__name__ if value is model else f"{type(model).__name__}.{value.__name__}"
    remedy = "lambda x: model.predict([x])[0]"
    if classifier:
        remedy = "model"
    elif type(model).__name__ == "Booster":
        large = 'lambda x: large.infer(x).value after large = Router("model.onnx", mode="only_edge")'
        remedy = ('"model.onnx"' if side == "edge" else large) + ", a file that `edgeroute convert` writes of its own"
    elif {kind.__module__.partition(".")[0] for kind in type(model).__mro__} & {"keras", "tf_keras"}:
        remedy = "lambda x: model.predict(x[None], verbose=0)[0]"  # a batch of one
    elif side == "edge" and getattr(model, "voting", "") == "hard":
        remedy = 'VotingClassifier(..., voting="soft").fit(X, y), which gives probabilities'
    elif side == "edge" and hasattr(model, "decision_function") and hasattr(model, "classes_"):
        remedy = "CalibratedClassifierCV(model).fit(X, y), of sklearn.calibration, which gives probabilities"
    elif side == "edge":
        remedy = 'lambda x: (model.predict([x])[0], None), with a confidence for None, or no_confidence="accept"'
    return f"{side}= takes no {shown} as it is: write {side}={remedy}"


def of_address(address: str, *, chats: bool) -> str:
    """Return what to write in place of a text that is no URL of a model.

    Args:
        address: the text, without secrets, quoted.
        chats: True if it is the URL of an API of chats.
    """
    text = address.strip("'\"").rstrip("/")
    if "://" not in text and address.startswith("'"):
        return f"cloud={address} is no URL: if it is a model's file, run `edgeroute serve {text}` and pass the URL of its model"
    if "api.anthropic.com" in text:
        return f"{address} speaks as Anthropic does: pass OpenAIChat('https://api.anthropic.com/v1', model=...), its other API"
    if chats or "api.openai.com" in text:
        return f"{address} speaks as OpenAI does, and serves many models: pass OpenAIChat(url, model=...)"
    if text.startswith("grpc"):
        return f"{address} is written OpenInferenceGrpc('http://HOST:PORT', model=...); with TLS https://"
    return f"what does {address} speak? Pass OpenInference(url, model=...), OpenAIChat(url, model=...) or PlainJson(url)"


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
