"""Export for KServe (`edgeroute export kserve`): an InferenceService with its ServingRuntime, or plain Kubernetes objects.

Both serve the models with Triton. The objects are written in `templates`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import NamedTuple
from urllib.parse import urlsplit

from edgeroute import __version__
from edgeroute.core.error_codes import clean
from edgeroute.errors import PolicyError
from edgeroute.tools.export.exported_models import Subject, filled, new_folder, subjects, write
from edgeroute.tools.export.triton import Backend, Batching, check_parts, write_repository

BESIDE = 1 << 29
"""Bytes of memory beside the models: Triton itself, Python, inputs and outputs in progress."""
MIB = 1 << 20
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}")
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
        """Validate the values.

        Raises:
            PolicyError: a value that no cluster accepts.
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
) -> list[Subject]:
    """Write a Triton model repository and the YAML with which a cluster serves it; return the models.

    Args:
        paths: .onnx files, each with its card beside it.
        out: the new folder.
        cluster: resources to request; `memory` is a minimum, which grows with the models' size.
        name: name of the objects; None: derived from the first model's.
        names: names of the models on the server.
        storage: address from which KServe fetches the repository, such as s3://..., gs://... or pvc://...; None: it is in the
            image.
        backend: backend of `triton`.
        batching: batching of `triton`.
        force: True replaces an earlier export.

    Raises:
        ModelError: a model cannot be exported.
        PolicyError: a name, the image, the address or `out` is invalid.
        StoreError: the disk is full.
    """
    batching = batching or Batching(gpu=cluster.gpu > 0)
    cluster.check()
    batching.check()
    if storage is not None and (not urlsplit(storage).scheme or not storage.isprintable() or " " in storage):
        raise PolicyError("the storage is no address: write it as s3://BUCKET/FOLDER, gs://... or pvc://...")
    models = subjects(paths, names)
    check_parts(models, backend)
    cluster = cluster._replace(memory=max(cluster.memory, memory_of(models, batching)))
    label = object_name(name or models[0].name)
    if name is not None and label != name:
        raise PolicyError(f"{clean(name, 80)!r} is no name for objects of Kubernetes: small letters, digits and `-`, 50 at most")
    about_models = {"edgeroute/models": ", ".join(clean(model.model.name) for model in models), "edgeroute/version": __version__}
    replicas = {"least": cluster.replicas[0], "most": cluster.replicas[1]}
    labels = {"app.kubernetes.io/name": label, "app.kubernetes.io/component": "triton"}
    plain = filled(
        "kubernetes.yaml", {"container": container(cluster, 10, "triton", "/models")}, name=label, labels=labels,
        annotations=about_models, **replicas,
    )  # fmt: skip
    runtime, repository = f"{label}-triton", "/models" if storage is None else "/mnt/models"
    model = {"modelFormat": {"name": "triton", "version": "2"}, "protocolVersion": "v2", "runtime": runtime}
    served = filled(
        "kserve.yaml", {"container": container(cluster, 6, "kserve-container", repository, http=8080, grpc=9000)},
        name=label, annotations={"serving.kserve.io/deploymentMode": "RawDeployment", **about_models}, runtime=runtime,
        model=model if storage is None else {**model, "storageUri": storage}, **replicas,
    )  # fmt: skip
    with new_folder(out, "kserve", models, force=force) as folder:
        write_repository(folder / "repository", models, backend, batching)
        write(folder / "kubernetes.yaml", plain)
        write(folder / "kserve.yaml", served)
    return models


def memory_of(models: Sequence[Subject], batching: Batching) -> int:
    """Estimate the bytes of a replica: 512 MiB, the weights once for each instance, and once more to load."""
    weights = sum(file.stat().st_size for model in models for file, _ in model.files(Path()))
    return BESIDE + weights * (batching.instances + 1) // MIB * MIB


def container(cluster: Cluster, depth: int, name: str, repository: str, http: int = 8000, grpc: int = 8001) -> str:
    """Return the container of Triton, indented by `depth` spaces; http, grpc: its ports, by default Triton's own."""
    gpu = f', nvidia.com/gpu: "{cluster.gpu}"' if cluster.gpu else ""
    text = filled(
        "container.yaml", {"repository": repository, "gpu": gpu}, container=name, image=cluster.image, http=http, grpc=grpc,
        cpu=_cores(cluster.cpu), memory=_memory(cluster.memory),
    )  # fmt: skip
    return indent(text.rstrip(), " " * depth)


def _cores(cpu: float) -> str:
    """Return cores as Kubernetes writes them: `2`, or `500m` for a fraction."""
    return f"{cpu:g}" if cpu == int(cpu) else f"{round(cpu * 1000)}m"


def _memory(size: int) -> str:
    """Return bytes as Kubernetes writes them, rounded up to MiB."""
    return f"{-(-size // MIB)}Mi"
