"""Export for KServe (`edgeroute export kserve`): an InferenceService with its ServingRuntime, or plain Kubernetes objects.

Both serve the models with Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgeroute import __version__
from edgeroute.core.error_codes import clean
from edgeroute.errors import PolicyError
from edgeroute.tools.export.exported_models import Subject, new_folder, subjects, write, yaml_of
from edgeroute.tools.export.kubernetes import METRICS, MIB, Cluster, container, manifests, object_name, volumes
from edgeroute.tools.export.triton import Backend, Batching, check_parts, write_repository

HTTP, GRPC = 8080, 9000
"""Ports at which KServe expects the protocol."""
BESIDE = 1 << 29
"""Bytes of memory beside the models: Triton itself, Python, inputs and outputs in progress."""


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
        RuntimeMissing: PyYAML is not installed.
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
    about = {"edgeroute": __version__, "format": "kserve", "models": [model.name for model in models]}
    annotations = {"edgeroute/models": ", ".join(clean(model.model.name) for model in models), "edgeroute/version": __version__}
    plain = yaml_of(*manifests(label, cluster, annotations), head=PLAIN)
    served = yaml_of(runtime(label, cluster, storage), service(label, cluster, storage, annotations), head=KSERVE)
    with new_folder(Path(out), about, force=force) as folder:
        write_repository(folder / "repository", models, backend, batching)
        write(folder / "kubernetes.yaml", plain)
        write(folder / "kserve.yaml", served)
    return models


def memory_of(models: Sequence[Subject], batching: Batching) -> int:
    """Estimate the bytes of a replica: 512 MiB, the weights once for each instance, and once more to load."""
    weights = sum(file.stat().st_size for model in models for file, _ in model.files(Path()))
    return BESIDE + weights * (batching.instances + 1) // MIB * MIB


def runtime(name: str, cluster: Cluster, storage: str | None) -> dict[str, Any]:
    """Return the ServingRuntime: Triton, for models of the format "triton"."""
    repository = "/models" if storage is None else "/mnt/models"
    return {
        "apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": f"{name}-triton"},
        "spec": {
            "annotations": {"prometheus.kserve.io/port": str(METRICS), "prometheus.kserve.io/path": "/metrics"},
            "supportedModelFormats": [{"name": "triton", "version": "2"}],
            "protocolVersions": ["v2", "grpc-v2"],
            "containers": [container(cluster, repository, name="kserve-container", http=HTTP, grpc=GRPC)],
            "volumes": volumes(),
        },
    }  # fmt: skip


def service(name: str, cluster: Cluster, storage: str | None, annotations: dict[str, str]) -> dict[str, Any]:
    """Return the InferenceService."""
    low, high = cluster.replicas
    model = {"modelFormat": {"name": "triton", "version": "2"}, "protocolVersion": "v2", "runtime": f"{name}-triton"}
    predictor = {"minReplicas": low, "maxReplicas": high, "scaleMetric": "cpu", "scaleTarget": 70}
    return {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {"name": name, "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment", **annotations}},
        "spec": {"predictor": {**predictor, "model": {**model, **({} if storage is None else {"storageUri": storage})}}},
    }  # fmt: skip


PLAIN = """\
# Without KServe: build the image of repository/Dockerfile, push it under the name below, and kubectl apply -f kubernetes.yaml
# Nothing here authenticates callers: put an Ingress or a gateway before the Service. Replicas follow the load of the processors.
"""
KSERVE = """\
# kubectl apply -f kserve.yaml, in a cluster with KServe. The image is that of repository/Dockerfile, with ONNX Runtime and Pillow
# for Triton's Python backend; with storageUri the contents of repository/ are fetched from there, else they are in the image.
"""
