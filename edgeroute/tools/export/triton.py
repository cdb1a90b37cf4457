"""`edgeroute export triton`: a model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from edgeroute import __version__
from edgeroute.core.words import clean
from edgeroute.errors import PolicyError
from edgeroute.tools.export.folder import FILE, TEXTS, Subject, Word, copies, dumps, programs, subjects, text_of, whole, write

Backend = Literal["python", "onnxruntime"]
VERSION_FOLDER = "1"
TYPES = {"object": "TYPE_STRING", "bool": "TYPE_BOOL", "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64"}
"""numpy dtype -> Triton's data type; those of integers are their names in capitals."""
MOST_BATCH = 4096


class Batching(NamedTuple):
    """How requests of different callers become one run of the model.

    Attributes:
        most: rows of one run at most.
        wait_s: how long the first one waits for others.
        queue: rows that wait at most; what comes then is refused (503), and a client keeps it on its device.
        instances: of the model, each with its own session.
        gpu: whether they run on the server's GPUs.
    """

    most: int = 32
    wait_s: float = 0.002
    queue: int = 256
    instances: int = 1
    gpu: bool = False

    def check(self) -> None:
        """Refuses what makes no server.

        Raises:
            PolicyError: it does not.
        """
        if not 1 <= self.most <= MOST_BATCH:
            raise PolicyError(f"a batch has 1 to {MOST_BATCH} rows, not {self.most}")
        if not 0 <= self.wait_s <= 1:
            raise PolicyError(f"a request waits for others at most 1 s, not {self.wait_s:g} s")
        if self.queue < self.most or self.instances < 1:
            raise PolicyError(f"a queue has at least the {self.most} rows of a batch, and there is at least one instance")

    def preferred(self) -> list[int]:
        """Batch sizes that are run at once."""
        return sorted({max(1, self.most // part) for part in (4, 2, 1)} - {1}) or [1]


def triton(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    names: Sequence[str] = (),
    backend: Backend = "python",
    batching: Batching | None = None,
    force: bool = False,
) -> list[Subject]:
    """Writes a model repository.

    Args:
        paths: .onnx files, each with its card beside it.
        out: the new folder.
        names: of the models on the server.
        backend: "python": a program runs the file with ONNX Runtime, which any Triton can; "onnxruntime": Triton's own does.
        batching: of requests.
        force: replace an earlier export.

    Raises:
        ModelError: a model cannot be exported so.
        PolicyError: a name, or `out`, cannot be used.
        StoreError: the disk is full.
    """
    batching = batching or Batching()
    batching.check()
    found = subjects(paths, names)
    check_parts(found, backend)
    about = {"edgeroute": __version__, "format": "triton", "models": [one.name for one in found]}
    with whole(Path(out), about, force=force) as folder:
        filled(folder, found, backend, batching)
    return found


def check_parts(found: Sequence[Subject], backend: Backend) -> None:
    """Refuses models that cannot be in one repository.

    Raises:
        PolicyError: one needs a program around it, or two would have a part of the same name.
    """
    for one in found:
        if backend == "onnxruntime" and not one.plain:
            raise PolicyError(
                f"{one.model.path}: constants, or a batch axis that is not the first, are more than Triton's onnxruntime "
                "backend can: use --backend python"
            )
    made = [name.lower() for one in found for name in Parts(one, backend, Batching()).every()]
    if twice := sorted({name for name in made if made.count(name) > 1}):
        raise PolicyError(f"two models would have a part called {twice[0]}: give them other names, with --name")


def filled(folder: Path, found: Sequence[Subject], backend: Backend, batching: Batching) -> None:
    """Writes a repository."""
    for one in found:
        repository(folder, one, backend, batching)
    write(folder / "Dockerfile", DOCKERFILE.format(onnxruntime="onnxruntime-gpu" if batching.gpu else "onnxruntime"))


def repository(folder: Path, one: Subject, backend: Backend, batching: Batching) -> None:
    """Writes the folders of one model into a repository."""
    parts = Parts(one, backend, batching)
    for name, config in parts.configs().items():
        write(folder / name / "config.pbtxt", dumps(config))
        (folder / name / VERSION_FOLDER).mkdir(exist_ok=True)  # ensembles have an empty one
    if labels := one.model.labels:
        for name in parts.labelled():
            write(folder / name / "labels.txt", "".join(f"{clean(label)}\n" for label in labels))
    if backend == "python":
        to = folder / one.name / VERSION_FOLDER
        programs(to, {"by_card.py": "by_card.py", "triton_model.py": "model.py"})
        write(to / "model.json", text_of(one.about(f"onnx/{FILE}")))
        copies(one.files(to / "onnx"))
        one.check_copied(to / "onnx" / FILE)
    else:
        to = folder / parts.runs / VERSION_FOLDER
        copies(one.files(to))
        one.check_copied(to / FILE)
        if one.prepared:
            _front(folder / parts.prepares, one, "prepare")
    if one.pictures:
        _front(folder / parts.decodes, one, "decode")
    write(folder / one.name / "client.json", text_of(one.client()))


def _front(folder: Path, one: Subject, front: str) -> None:
    programs(folder / VERSION_FOLDER, {"by_card.py": "by_card.py", "triton_front.py": "model.py"})
    write(folder / VERSION_FOLDER / "model.json", text_of(one.about(front=front)))


class Parts:
    """The models of which Triton makes one: the file itself, and what is in front of it."""

    def __init__(self, one: Subject, backend: Backend, batching: Batching) -> None:
        self.one, self.backend, self.batching = one, backend, batching
        self.ensemble = backend == "onnxruntime" and one.prepared
        self.runs = f"{one.name}-onnx" if self.ensemble else one.name
        self.prepares, self.decodes, self.encoded = f"{one.name}-prepare", f"{one.name}-decode", f"{one.name}-encoded"
        fixed = backend == "onnxruntime" and one.size is not None
        self.most = 0 if fixed or one.rowless else batching.most
        """Triton's max_batch_size; 0: it makes no batches, and shapes are whole."""
        self._lead = [] if self.most else [one.size if fixed and one.size else -1]

    def every(self) -> list[str]:
        """All names that it may have in a repository."""
        return [self.one.name, f"{self.one.name}-onnx", self.prepares, self.decodes, self.encoded]

    def labelled(self) -> list[str]:
        """The folders that have the file of labels."""
        return [self.runs] if self._labels_output() else []

    def configs(self) -> dict[str, dict[str, Any]]:
        """Configuration of each, by its name."""
        one, found = self.one, dict[str, dict[str, Any]]()
        given = [self._io(spec) for spec in one.inputs]
        wants = [(spec, spec["tensor"]) for spec in one.inputs]
        tensors = [self._io({**spec, "dtype": tensor["dtype"], "shape": tensor["shape"][1:]}) for spec, tensor in wants]
        found[self.runs] = self._runs(tensors if self.ensemble else given)
        steps = [(self.runs, [spec["name"] for spec in one.inputs], [spec["name"] for spec in one.outputs])]
        names = [spec["name"] for spec in one.inputs]
        if self.ensemble:
            found[self.prepares] = self._python(self.prepares, given, tensors)
            steps.insert(0, (self.prepares, names, names))
            found[one.name] = self._ensemble(one.name, given, steps)
        if one.pictures:
            files = [
                self._io({**spec, "dtype": TEXTS, "shape": [1]} if spec["picture"] is not None else spec) for spec in one.inputs
            ]
            found[self.decodes] = self._python(self.decodes, files, given)
            steps.insert(0, (self.decodes, names, names))
            found[self.encoded] = self._ensemble(self.encoded, files, steps)
        return found

    def _runs(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        native = {"backend": "onnxruntime", "default_model_filename": FILE}
        config = {
            "name": self.runs, **({"backend": "python"} if self.backend == "python" else native), "max_batch_size": self.most,
            "input": inputs, "output": self._outputs(),
            "instance_group": [{"count": self.batching.instances, "kind": Word("KIND_GPU" if self.batching.gpu else "KIND_CPU")}],
        }  # fmt: skip
        if self.most:
            policy = {"max_queue_size": self.batching.queue, "allow_timeout_override": True, "timeout_action": Word("REJECT")}
            config["dynamic_batching"] = {
                "preferred_batch_size": self.batching.preferred(),
                "max_queue_delay_microseconds": round(self.batching.wait_s * 1e6),
                "default_queue_policy": policy,
            }
        return {**config, "parameters": self._parameters(), **self._warmup(inputs)}

    def _warmup(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """A first run when it is loaded, on zeros, where they have a size."""
        if not self.most or any(-1 in one["dims"] or one["data_type"].text == "TYPE_STRING" for one in inputs):
            return {}
        kept = ("data_type", "dims")
        zeros = [{"key": one["name"], "value": {**{key: one[key] for key in kept}, "zero_data": True}} for one in inputs]
        return {"model_warmup": [{"name": "zeros", "batch_size": 1, "inputs": zeros}]}

    def _python(self, name: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> dict[str, Any]:
        group = [{"count": self.batching.instances, "kind": Word("KIND_CPU")}]
        io = {"input": inputs, "output": outputs, "instance_group": group}
        return {"name": name, "backend": "python", "max_batch_size": self.most, **io}

    def _ensemble(self, name: str, inputs: list[dict[str, Any]], steps: list[tuple[str, list[str], list[str]]]) -> dict[str, Any]:
        """Steps in a row; what is between two of them has names that no tensor of the model has."""
        there = {spec["name"] for spec in (*self.one.inputs, *self.one.outputs)}
        between = "step"
        while any(other.startswith(between) for other in there):
            between += "_"
        said, names = [], {spec["name"]: spec["name"] for spec in self.one.inputs}
        for i, (model, takes, gives) in enumerate(steps):
            new = {key: key if i == len(steps) - 1 else f"{between}{i}_{j}" for j, key in enumerate(gives)}
            maps = [[{"key": k, "value": v} for k, v in pairs.items()] for pairs in ({k: names[k] for k in takes}, new)]
            said.append({"model_name": model, "model_version": -1, "input_map": maps[0], "output_map": maps[1]})
            names = new
        io = {"input": inputs, "output": [{k: v for k, v in one.items() if k != "label_filename"} for one in self._outputs()]}
        shape = {"name": name, "platform": "ensemble", "max_batch_size": self.most}
        return {**shape, **io, "ensemble_scheduling": {"step": said}, "parameters": self._parameters()}

    def _io(self, spec: dict[str, Any]) -> dict[str, Any]:
        kind = TYPES.get(spec["dtype"], f"TYPE_{spec['dtype'].upper()}")
        return {"name": spec["name"], "data_type": Word(kind), "dims": [*self._lead, *spec["shape"]]}

    def _outputs(self) -> list[dict[str, Any]]:
        labelled = self._labels_output()
        return [
            {**self._io(one), **({"label_filename": "labels.txt"} if one["name"] == labelled else {})} for one in self.one.outputs
        ]

    def _labels_output(self) -> str | None:
        """The output whose numbers the labels name, for Triton's classification extension."""
        labels, outputs = self.one.model.labels, self.one.outputs
        fits = labels and len(outputs) == 1 and outputs[0]["shape"] == [len(labels)] and outputs[0]["dtype"].startswith("float")
        return outputs[0]["name"] if fits else None

    def _parameters(self) -> list[dict[str, Any]]:
        about = self.one.about()
        told = {key: about[key] for key in ("name", "description", "kind", "labels", "sha256") if about[key]}
        texts = {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in told.items()}
        return [{"key": key, "value": {"string_value": text}} for key, text in texts.items()]


DOCKERFILE = """\
# docker build -t REGISTRY/NAME:VERSION . && docker push REGISTRY/NAME:VERSION
ARG BASE=nvcr.io/nvidia/tritonserver:25.06-py3
FROM ${{BASE}}
# numpy 1: with numpy 2 the Python backend of many releases answers without data
RUN pip install --no-cache-dir 'numpy<2' {onnxruntime} pillow
COPY . /models
CMD ["tritonserver", "--model-repository=/models", "--exit-on-error=true"]
"""
