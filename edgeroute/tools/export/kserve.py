"""`edgeroute export kserve`: an InferenceService with its ServingRuntime, and the same without KServe, both on Triton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgeroute import __version__
from edgeroute.core.words import clean
from edgeroute.errors import PolicyError
from edgeroute.tools.export.folder import Subject, subjects, whole, write, yaml_of
from edgeroute.tools.export.kubernetes import METRICS, MIB, Cluster, container, manifests, object_name, volumes
from edgeroute.tools.export.triton import Backend, Batching, check_parts, filled

HTTP, GRPC = 8080, 9000
"""The ports at which KServe looks for the protocol."""
BESIDE = 1 << 29
"""Bytes of memory beside the models: Triton itself, Python, inputs and outputs that are under way."""


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
    """Writes a model repository with what a cluster needs to serve it.

    Args:
        paths: .onnx files, each with its card beside it.
        out: the new folder.
        cluster: what a cluster is asked for; its `memory` is what is taken at least, as the models' size needs more.
        name: of the objects; None: made from the first model's.
        names: of the models on the server.
        storage: where KServe fetches the repository, as s3://..., gs://... or pvc://...; None: it is in the image.
        backend: as of `triton`.
        batching: likewise.
        force: replace an earlier export.

    Raises:
        ModelError: a model cannot be exported.
        PolicyError: a name, the image, the address or `out` cannot be used.
        RuntimeMissing: PyYAML is not installed.
        StoreError: the disk is full.
    """
    batching = batching or Batching(gpu=cluster.gpu > 0)
    cluster.check()
    batching.check()
    if storage is not None and (not urlsplit(storage).scheme or not storage.isprintable() or " " in storage):
        raise PolicyError("the storage is no address: s3://BUCKET/FOLDER, gs://..., pvc://...")
    found = subjects(paths, names)
    check_parts(found, backend)
    cluster = cluster._replace(memory=max(cluster.memory, memory_of(found, batching)))
    called = object_name(name or found[0].name)
    if name is not None and called != name:
        raise PolicyError(f"{clean(name, 80)!r} is no name for objects of Kubernetes: small letters, digits and `-`, 50 at most")
    about = {"edgeroute": __version__, "format": "kserve", "models": [one.name for one in found]}
    annotations = {"edgeroute/models": ", ".join(clean(one.model.name) for one in found), "edgeroute/version": __version__}
    plain = yaml_of(*manifests(called, cluster, annotations), head=PLAIN)
    served = yaml_of(runtime(called, cluster, storage), service(called, cluster, storage, annotations), head=KSERVE)
    with whole(Path(out), about, force=force) as folder:
        filled(folder / "repository", found, backend, batching)
        write(folder / "kubernetes.yaml", plain)
        write(folder / "kserve.yaml", served)
    return found


def memory_of(found: Sequence[Subject], batching: Batching) -> int:
    """Bytes that a replica takes, as far as files tell: weights lie in memory once for each instance, and once more to load."""
    weights = sum(file.stat().st_size for one in found for file, _ in one.files(Path()))
    return BESIDE + weights * (batching.instances + 1) // MIB * MIB


def runtime(name: str, cluster: Cluster, storage: str | None) -> dict[str, Any]:
    """The ServingRuntime: Triton, for models whose format is called triton."""
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
    """The InferenceService."""
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
# Nothing here authenticates callers: an Ingress or a gateway before the Service does. Replicas follow the load of the processors.
"""
KSERVE = """\
# kubectl apply -f kserve.yaml, in a cluster with KServe. The image is that of repository/Dockerfile, with ONNX Runtime and Pillow
# for Triton's Python backend; with storageUri the contents of repository/ are fetched from there, else they are in the image.
"""
