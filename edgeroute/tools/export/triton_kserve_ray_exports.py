"""Exports of models: `triton`, `kserve` (and Kubernetes) and `ray` write the folders; `Batching` and `Cluster` are settings.

`Parts` makes Triton's configurations, which `dumps` writes as text of protocol buffers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any, Literal, NamedTuple

from edgeroute import __version__
from edgeroute.core.error_codes_and_texts import clean
from edgeroute.errors import PolicyError
from edgeroute.tools.export import models_folders_and_templates as common
from edgeroute.tools.export.programs.weighted_split import checked_shares

Backend = Literal["python", "onnxruntime"]
VERSION_FOLDER = "1"
# numpy dtype -> Triton's data type; integers have their names in capitals.
TYPES = {"object": "TYPE_STRING", "bool": "TYPE_BOOL", "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64"}
MOST_BATCH = 4096


class Batching(NamedTuple):
    """Settings of dynamic batching, by which requests of different callers share a run of the model.

    Attributes:
        most: most rows of one run.
        wait_s: time that the first request waits for others, seconds.
        queue: most waiting rows; further requests are refused (503), and a client answers on its device.
        instances: instances of the model, each with its own session.
        gpu: True runs them on the server's GPUs.
    """

    most: int = 32
    wait_s: float = 0.002
    queue: int = 256
    instances: int = 1
    gpu: bool = False

    def check(self) -> None:
        """Check that the values are ones that a server accepts.

        Raises:
            PolicyError: a batch, wait, queue or number of instances is out of range.
        """
        if not 1 <= self.most <= MOST_BATCH:
            raise PolicyError(f"a batch must have 1 to {MOST_BATCH} rows, not {self.most}")
        if not 0 <= self.wait_s <= 1:
            raise PolicyError(f"a request may wait 0 to 1 s for others, not {self.wait_s:g} s")
        if self.queue < self.most or self.instances < 1:
            raise PolicyError(f"a queue must have at least the {self.most} rows of a batch, and instances must be at least 1")

    def preferred(self) -> list[int]:
        """Return the batch sizes that run without waiting for more: a quarter, half and all of the most."""
        return sorted({max(1, self.most // part) for part in (4, 2, 1)} - {1}) or [1]


def triton(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    names: Sequence[str] = (),
    backend: Backend = "python",
    batching: Batching | None = None,
    force: bool = False,
) -> list[common.Subject]:
    """Load models, write a model repository for Triton with a Dockerfile into a new folder, and return the models.

    Args:
        paths: .onnx files, each with its card beside it.
        out: the new folder.
        names: names of the models on the server.
        backend: "python": a program runs the file with ONNX Runtime, which works on any Triton; "onnxruntime": Triton's own
            backend runs it.
        batching: batching of requests; None: the defaults.
        force: True replaces an earlier export.

    Raises:
        ModelError: a model cannot be exported so.
        PolicyError: a name, a setting, or `out`, is invalid.
        StoreError: the disk is full.
    """
    batching = batching or Batching()
    batching.check()
    models = common.subjects(paths, names)
    check_parts(models, backend)
    with common.new_folder(out, "triton", models, force=force) as folder:
        write_repository(folder, models, backend, batching)
    return models


def check_parts(models: Sequence[common.Subject], backend: Backend) -> None:
    """Check that these models can be in one repository with that backend.

    Raises:
        PolicyError: a model needs a program around it, or two would have a part of the same name, in small letters.
    """
    for model in models:
        if backend == "onnxruntime" and not model.plain:
            raise PolicyError(
                f"{model.model.path}: constants, or a batch axis that is not the first, are more than Triton's onnxruntime "
                "backend can: use --backend python"
            )
    names = [name.lower() for model in models for name in Parts(model, backend, Batching()).names]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PolicyError(f"two models would have a part called {twice[0]}: give them other names, with --name")


def write_repository(folder: Path, models: Sequence[common.Subject], backend: Backend, batching: Batching) -> None:
    """Write a repository: the folders of each model, and the Dockerfile (for GPUs if batching uses them)."""
    for model in models:
        repository(folder, model, backend, batching)
    runtime = "onnxruntime-gpu" if batching.gpu else "onnxruntime"
    common.write(folder / "Dockerfile", common.filled("Dockerfile", {"onnxruntime": runtime}))


def repository(folder: Path, model: common.Subject, backend: Backend, batching: Batching) -> None:
    """Write the folders of one model into a repository: configurations, programs, a checked copy of the file, clients' card.

    A model that takes pictures has a step that decodes them; one for "onnxruntime" that needs preprocessing has a step for that.
    """
    parts = Parts(model, backend, batching)
    for name, config in parts.configs().items():
        common.write(folder / name / "config.pbtxt", dumps(config))
        (folder / name / VERSION_FOLDER).mkdir(exist_ok=True)  # ensembles have an empty one
    if (labels := model.model.labels) and parts.labels_output():
        common.write(folder / parts.runs / "labels.txt", "".join(f"{clean(label)}\n" for label in labels))
    if backend == "python":
        to = folder / model.name / VERSION_FOLDER
        common.programs(to, {"by_card.py": "by_card.py", "triton_model.py": "model.py"})
        common.write(to / "model.json", common.text_of(model.about(f"onnx/{common.FILE}")))
        model.copy(to / "onnx")
    else:
        to = folder / parts.runs / VERSION_FOLDER
        model.copy(to)
        if model.prepared:
            _write_front(folder / parts.prepares, model, "prepare")
    if model.pictures:
        _write_front(folder / parts.decodes, model, "decode")
    common.write(folder / model.name / "client.json", common.text_of(model.client()))


def _write_front(folder: Path, model: common.Subject, front: str) -> None:
    """Write the program and description of a step before the model: to "prepare" its inputs, or to "decode" pictures."""
    common.programs(folder / VERSION_FOLDER, {"by_card.py": "by_card.py", "triton_preprocessing.py": "model.py"})
    common.write(folder / VERSION_FOLDER / "model.json", common.text_of(model.about(front=front)))


class Parts:
    """Triton models that make up one exported model: the file itself, steps before it, and ensembles."""

    def __init__(self, model: common.Subject, backend: Backend, batching: Batching) -> None:
        self.one, self.backend, self.batching = model, backend, batching
        self.ensemble = backend == "onnxruntime" and model.prepared
        self.runs = f"{model.name}-onnx" if self.ensemble else model.name
        self.prepares, self.decodes, self.encoded = f"{model.name}-prepare", f"{model.name}-decode", f"{model.name}-encoded"
        # All names that the model may have in a repository, used or not.
        self.names = [model.name, f"{model.name}-onnx", self.prepares, self.decodes, self.encoded]
        fixed = backend == "onnxruntime" and model.size is not None
        # Triton's max_batch_size; 0: no batches, and shapes include the first axis.
        self.most = 0 if fixed or model.rowless else batching.most
        self._lead = [] if self.most else [model.size if fixed and model.size else -1]

    def configs(self) -> dict[str, dict[str, Any]]:
        """Return each part's configuration by its name: the model, steps before it, ensembles (chains of parts) if needed."""
        subject, parts = self.one, dict[str, dict[str, Any]]()
        names = [spec["name"] for spec in subject.inputs]
        sent = [self._tensor_config(spec) for spec in subject.inputs]
        tensors = [
            self._tensor_config({**spec, "dtype": spec["tensor"]["dtype"], "shape": spec["tensor"]["shape"][1:]})
            for spec in subject.inputs
        ]
        parts[self.runs] = self._model_config(tensors if self.ensemble else sent)
        steps = [(self.runs, names, [spec["name"] for spec in subject.outputs])]
        if self.ensemble:
            parts[self.prepares] = self._python_config(self.prepares, sent, tensors)
            steps.insert(0, (self.prepares, names, names))
            parts[subject.name] = self._ensemble_config(subject.name, sent, steps)
        if subject.pictures:
            files = [
                self._tensor_config({**spec, "dtype": common.TEXTS, "shape": [1]} if spec["picture"] is not None else spec)
                for spec in subject.inputs
            ]
            parts[self.decodes] = self._python_config(self.decodes, files, sent)
            steps.insert(0, (self.decodes, names, names))
            parts[self.encoded] = self._ensemble_config(self.encoded, files, steps)
        return parts

    def _model_config(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the configuration of the model itself: backend, tensors, instances, batching, parameters and warm-up.

        Batches, and the queue's limit, only if the model takes any number of rows.
        """
        native = {"backend": "onnxruntime", "default_model_filename": common.FILE}
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
        """Return the setting of a first run on zeros at the loading; {} without batches, with an unknown size, or for texts."""
        if not self.most or any(-1 in tensor["dims"] or tensor["data_type"].text == "TYPE_STRING" for tensor in inputs):
            return {}
        values = [{"data_type": tensor["data_type"], "dims": tensor["dims"], "zero_data": True} for tensor in inputs]
        zeros = [{"key": tensor["name"], "value": value} for tensor, value in zip(inputs, values, strict=True)]
        return {"model_warmup": [{"name": "zeros", "batch_size": 1, "inputs": zeros}]}

    def _python_config(self, name: str, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the configuration of a step for the Python backend."""
        group = [{"count": self.batching.instances, "kind": Word("KIND_CPU")}]
        io = {"input": inputs, "output": outputs, "instance_group": group}
        return {"name": name, "backend": "python", "max_batch_size": self.most, **io}

    def _ensemble_config(
        self, name: str, inputs: list[dict[str, Any]], steps: list[tuple[str, list[str], list[str]]]
    ) -> dict[str, Any]:
        """Return the configuration of an ensemble: a chain of steps, each (model, inputs, outputs), up to the model's outputs.

        Tensors between two steps get names that the model does not use. Labels of outputs are left out.
        """
        taken = {spec["name"] for spec in (*self.one.inputs, *self.one.outputs)}
        between = "step"
        while any(other.startswith(between) for other in taken):
            between += "_"
        entries, names = [], {spec["name"]: spec["name"] for spec in self.one.inputs}
        for i, (model, takes, gives) in enumerate(steps):
            new = {key: key if i == len(steps) - 1 else f"{between}{i}_{j}" for j, key in enumerate(gives)}
            maps = [[{"key": k, "value": v} for k, v in pairs.items()] for pairs in ({k: names[k] for k in takes}, new)]
            entries.append({"model_name": model, "model_version": -1, "input_map": maps[0], "output_map": maps[1]})
            names = new
        return {
            "name": name, "platform": "ensemble", "max_batch_size": self.most, "input": inputs,
            "output": [self._tensor_config(spec) for spec in self.one.outputs],
            "ensemble_scheduling": {"step": entries}, "parameters": self._parameters(),
        }  # fmt: skip

    def _tensor_config(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Return the configuration of an input or output."""
        kind = TYPES.get(spec["dtype"], f"TYPE_{spec['dtype'].upper()}")
        return {"name": spec["name"], "data_type": Word(kind), "dims": [*self._lead, *spec["shape"]]}

    def _outputs(self) -> list[dict[str, Any]]:
        """Return the configurations of the outputs, with the file of labels where it applies."""
        labelled = self.labels_output()
        return [
            {**self._tensor_config(spec), **({"label_filename": "labels.txt"} if spec["name"] == labelled else {})}
            for spec in self.one.outputs
        ]

    def labels_output(self) -> str | None:
        """Return the output whose numbers the labels name, for Triton's classification extension; None if there is none."""
        labels, outputs = self.one.model.labels, self.one.outputs
        fits = labels and len(outputs) == 1 and outputs[0]["shape"] == [len(labels)] and outputs[0]["dtype"].startswith("float")
        return outputs[0]["name"] if fits else None

    def _parameters(self) -> list[dict[str, Any]]:
        """Return the model's name, description, kind, labels and sha256 as parameters of Triton, without empty ones."""
        about = self.one.about()
        known = {key: about[key] for key in ("name", "description", "kind", "labels", "sha256") if about[key]}
        texts = {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in known.items()}
        return [{"key": key, "value": {"string_value": text}} for key, text in texts.items()]


# Text format of protocol buffers, for Triton's configurations.


class Word(NamedTuple):
    """Name of an enumeration, written without quotes."""

    text: str


def dumps(message: Mapping[str, Any], indent: str = "") -> str:
    """Return a message as protobuf text: mappings are messages, lists of them repeat, lists of plain values are in brackets."""
    lines = list[str]()
    for key, value in message.items():
        for item in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(item, Mapping):
                body = dumps(item, indent + "  ")
                lines.append(f"{indent}{key} {{\n{body}{indent}}}\n" if body else f"{indent}{key} {{ }}\n")
            elif isinstance(item, list):
                lines.append(f"{indent}{key}: [{', '.join(map(_value, item))}]\n")
            else:
                lines.append(f"{indent}{key}: {_value(item)}\n")
    return "".join(lines)


def _value(value: Any) -> str:
    """Return a value in protobuf text: a `Word` bare, booleans in lower case, texts quoted."""
    if isinstance(value, Word):
        return value.text
    if isinstance(value, bool):
        return "true" if value else "false"
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """Write a string in quotes; each byte that is no printable ASCII is escaped, so that nothing can end the quotes."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode()) + '"'  # noqa: PLR2004 - ASCII


BESIDE = 1 << 29  # bytes of memory beside the models: Triton itself, Python, inputs and outputs in progress
MIB = 1 << 20
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,511}(@sha256:[0-9a-f]{64})?")  # no user and password
MOST_CORES = 1e6


class Cluster(NamedTuple):
    """Resources to request from a cluster.

    Attributes:
        image: image of Triton with the repository in it, as its Dockerfile builds it.
        replicas: least and most replicas.
        cpu: cores of each replica.
        memory: bytes of each replica.
        gpu: GPUs of each replica.
    """

    image: str
    replicas: tuple[int, int] = (2, 10)
    cpu: float = 1.0
    memory: int = 1 << 30
    gpu: int = 0

    def check(self) -> None:
        """Check the values.

        Raises:
            PolicyError: the image's name, the cores or the replicas are ones that no cluster accepts. Memory and GPUs are not
                checked.
        """
        low, high = self.replicas
        if not _IMAGE.fullmatch(self.image):
            raise PolicyError("the image has no valid name: write it as registry.example/models/NAME:VERSION")
        if not 0 < self.cpu < MOST_CORES:
            raise PolicyError(f"cores must be more than 0, not {self.cpu:g}")
        if not 1 <= low <= high:
            raise PolicyError(f"replicas must be LEAST-MOST with 1 <= LEAST <= MOST, not {low}-{high}")


def object_name(name: str) -> str:
    """Derive a name for Kubernetes objects (RFC 1035): lower-case letters, digits and `-`, a letter first, 50 at most."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (slug if slug[:1].isalpha() else f"model-{slug}")[:50].strip("-")


def kserve(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    cluster: Cluster,
    name: str | None = None,
    names: Sequence[str] = (),
    storage: str | None = None,
    backend: Backend = "python",
    batching: Batching | None = None,
    force: bool = False,
) -> list[common.Subject]:
    """Load models, write a Triton repository of them and YAML with which a cluster serves it to a new folder; return the models.

    `kserve.yaml` is for KServe, `kubernetes.yaml` for a cluster without it.

    Args:
        paths: .onnx files, each with its card beside it.
        out: the new folder.
        cluster: resources to request; `memory` is a minimum, which grows with the models' size.
        name: name of the objects; None: derived from the first model's.
        names: names of the models on the server.
        storage: address from which KServe fetches the repository, such as s3://..., gs://... or pvc://...; None: it is in the
            image.
        backend: backend of `triton`.
        batching: batching of `triton`; None: the defaults, on GPUs if the cluster has any.
        force: True replaces an earlier export.

    Raises:
        ModelError: a model cannot be exported.
        PolicyError: a name, the image, the address, another setting, or `out` is invalid.
        StoreError: the disk is full.
    """
    batching = batching or Batching(gpu=cluster.gpu > 0)
    cluster.check()
    batching.check()
    if storage is not None:
        _check_storage(storage)
    models = common.subjects(paths, names)
    check_parts(models, backend)
    cluster = cluster._replace(memory=max(cluster.memory, memory_of(models, batching)))
    label = object_name(name or models[0].name)
    if name is not None and label != name:
        raise PolicyError(f"{clean(name, 80)!r} is no name for objects of Kubernetes: small letters, digits and `-`, 50 at most")
    about_models = {"edgeroute/models": ", ".join(clean(model.model.name) for model in models), "edgeroute/version": __version__}
    replicas = {"least": cluster.replicas[0], "most": cluster.replicas[1]}
    labels = {"app.kubernetes.io/name": label, "app.kubernetes.io/component": "triton"}
    plain = common.filled(
        "kubernetes.yaml", {"container": container(cluster, 10, "triton", "/models")}, name=label, labels=labels,
        annotations=about_models, **replicas,
    )  # fmt: skip
    runtime, repository = f"{label}-triton", "/models" if storage is None else "/mnt/models"
    model = {"modelFormat": {"name": "triton", "version": "2"}, "protocolVersion": "v2", "runtime": runtime}
    served = common.filled(
        "kserve.yaml", {"container": container(cluster, 6, "kserve-container", repository, http=8080, grpc=9000)},
        name=label, annotations={"serving.kserve.io/deploymentMode": "RawDeployment", **about_models}, runtime=runtime,
        model=model if storage is None else {**model, "storageUri": storage}, **replicas,
    )  # fmt: skip
    with common.new_folder(out, "kserve", models, force=force) as folder:
        write_repository(folder / "repository", models, backend, batching)
        common.write(folder / "kubernetes.yaml", plain)
        common.write(folder / "kserve.yaml", served)
    return models


def _check_storage(storage: str) -> None:
    """Raise PolicyError, which quotes nothing of it, for what is no address, or has a user, password, query or fragment."""
    if not re.match(r"[a-z][a-z0-9+.-]*://[^/]", storage) or not storage.isprintable() or " " in storage:
        raise PolicyError("the storage is no address: write it as s3://BUCKET/FOLDER, gs://... or pvc://...")
    if any(mark in storage for mark in ("@", "%40", "?", "#")):
        raise PolicyError(
            "the storage's address has a user, password, query or fragment, which would be written into kserve.yaml: leave it "
            "out; a service account of the cluster has the credentials"
        )


def memory_of(models: Sequence[common.Subject], batching: Batching) -> int:
    """Return an estimate of a replica's bytes: 512 MiB, the weights' files once for each instance, and once more to load."""
    weights = sum(file.stat().st_size for model in models for file, _ in model.files(Path()))
    return BESIDE + weights * (batching.instances + 1) // MIB * MIB


def container(cluster: Cluster, depth: int, name: str, repository: str, http: int = 8000, grpc: int = 8001) -> str:
    """Return the YAML of Triton's container, indented by `depth` spaces; http, grpc: its ports, by default Triton's own."""
    gpu = f', nvidia.com/gpu: "{cluster.gpu}"' if cluster.gpu else ""
    text = common.filled(
        "container.yaml", {"repository": repository, "gpu": gpu}, container=name, image=cluster.image, http=http, grpc=grpc,
        cpu=f"{cluster.cpu:g}" if cluster.cpu == int(cluster.cpu) else f"{round(cluster.cpu * 1000)}m",
        memory=f"{-(-cluster.memory // MIB)}Mi",
    )  # fmt: skip
    return indent(text.rstrip(), " " * depth)


def ray(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    names: Sequence[str] = (),
    max_batch: int = 32,
    wait_s: float = 0.002,
    queue: int = 256,
    replicas: tuple[int, int] = (1, 4),
    models_per_replica: int | None = None,
    splits: Mapping[str, Mapping[str, float]] | None = None,
    force: bool = False,
) -> list[common.Subject]:
    """Load models, write a Ray Serve application (programs, models and `serve.yaml`) to a new folder; return the models.

    Args:
        paths: .onnx files, each with its card beside it.
        out: the new folder.
        names: names of the models on the server.
        max_batch: most requests of one run.
        wait_s: time that the first request waits for others, seconds.
        queue: most waiting requests; further ones are refused (503).
        replicas: least and most replicas of the models.
        models_per_replica: most models in a replica's memory; None: all of them.
        splits: name for callers -> model -> share, for A/B and canaries.
        force: True replaces an earlier export.

    Raises:
        ModelError: a model cannot be exported.
        PolicyError: a name, a share, a number, or `out` is invalid.
        StoreError: the disk is full.
    """
    models = common.subjects(paths, names)
    low, high = replicas
    if not 1 <= low <= high:
        raise PolicyError(f"replicas must be LEAST-MOST with 1 <= LEAST <= MOST, not {low}-{high}")
    shares = _splits(splits or {}, models)
    models_per_replica = len(models) if models_per_replica is None else models_per_replica
    if models_per_replica < 1:
        raise PolicyError("a replica has at least one model in memory")
    served = [model.name for model in models]
    config = common.filled(
        "serve.yaml", {"wait_s": f"{wait_s:.6f}"}, models=served, max_batch=max_batch,
        models_per_replica=min(models_per_replica, len(models)), splits=shares, at_once=max(64, 2 * max_batch), queue=queue,
        least=low, most=high, target=max(1, max_batch // 2),
    )  # fmt: skip
    with common.new_folder(out, "ray", models, force=force) as folder:
        common.programs(folder, {f"{name}.py": f"{name}.py" for name in ("by_card", "oip_messages", "weighted_split")})
        common.programs(folder, {"ray_app.py": "app.py"})
        for model in models:
            to = folder / "models" / model.name
            common.write(to / "model.json", common.text_of(model.about(f"onnx/{common.FILE}")))
            common.write(to / "client.json", common.text_of(model.client()))
            model.copy(to / "onnx")
        common.write(folder / "serve.yaml", config)
        common.write(folder / "requirements.txt", "ray[serve]>=2.50\nonnxruntime>=1.20\nnumpy\npillow\n")
    return models


def _splits(splits: Mapping[str, Mapping[str, float]], models: Sequence[common.Subject]) -> dict[str, dict[str, float]]:
    """Return the checked shares of models, as numbers.

    Raises:
        PolicyError: shares do not add up, name no model, or models that share a name differ in inputs, outputs or labels.
    """
    by_name = {model.name: model for model in models}
    try:
        shares = checked_shares(splits, by_name)
    except (TypeError, ValueError) as e:
        raise PolicyError(str(e)) from e
    for name, arms in shares.items():
        alike = set()
        for model in (by_name[arm] for arm in arms):
            inputs = [(spec["name"], spec["dtype"], spec["shape"], spec["picture"] is None) for spec in model.inputs]
            alike.add(repr((inputs, model.outputs, model.model.labels)))
        if len(alike) > 1:
            raise PolicyError(f"the models that share the name {name} differ in inputs, outputs or labels")
    return shares
