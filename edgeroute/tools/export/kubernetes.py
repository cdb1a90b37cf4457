"""Kubernetes objects of a Triton that serves an exported repository: Deployment, Service, autoscaler, disruption budget."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from edgeroute.errors import PolicyError

HTTP, GRPC, METRICS = 8000, 8001, 8002
USER = 1000
"""User id of triton-server in Triton's images."""
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


def labels(name: str) -> dict[str, str]:
    """Return the labels by which the objects find each other."""
    return {"app.kubernetes.io/name": name, "app.kubernetes.io/component": "triton"}


def container(cluster: Cluster, repository: str, *, name: str = "triton", http: int = HTTP, grpc: int = GRPC) -> dict[str, Any]:
    """Return the container of Triton for a Deployment or ServingRuntime.

    No root, no privileges, no writable disk but its volumes.
    """
    command = [
        "tritonserver", f"--model-repository={repository}", f"--http-port={http}", f"--grpc-port={grpc}",
        f"--metrics-port={METRICS}", "--exit-on-error=true", "--exit-timeout-secs=20",
    ]  # fmt: skip
    resources: dict[str, Any] = {
        "requests": {"cpu": _cores(cluster.cpu), "memory": _memory(cluster.memory)},
        "limits": {"memory": _memory(cluster.memory)},
    }  # fmt: skip
    if cluster.gpu:
        resources["limits"]["nvidia.com/gpu"] = resources["requests"]["nvidia.com/gpu"] = str(cluster.gpu)
    ready = {"httpGet": {"path": "/v2/health/ready", "port": http}}
    return {
        "name": name,
        "image": cluster.image,
        "command": command[:1],
        "args": command[1:],
        "ports": [
            {"name": "http", "containerPort": http}, {"name": "grpc", "containerPort": grpc},
            {"name": "metrics", "containerPort": METRICS},
        ],
        "startupProbe": {**ready, "periodSeconds": 5, "failureThreshold": 60},
        "readinessProbe": {**ready, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 3},
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": http}, "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3,
        },
        "resources": resources,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - in the container
    }  # fmt: skip


def volumes() -> list[dict[str, Any]]:
    """Return the volumes: shared memory between Triton and its Python backend, and temporary files."""
    return [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
    ]  # fmt: skip


def manifests(name: str, cluster: Cluster, annotations: dict[str, str]) -> list[dict[str, Any]]:
    """Return the objects for `kubectl apply`.

    Args:
        name: name of all objects, from `object_name`.
        cluster: resources to request.
        annotations: annotations for people.
    """
    selector, (low, high) = labels(name), cluster.replicas
    about = {"name": name, "labels": selector}
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 40,
        "containers": [
            # the endpoint leaves the Service before Triton ends, so that a stopping replica refuses no request
            {**container(cluster, "/models"), "lifecycle": {"preStop": {"exec": {"command": ["sleep", "10"]}}}}
        ],
        "volumes": volumes(),
        "topologySpreadConstraints": [
            {
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector},
            }
        ],
    }  # fmt: skip
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {**about, "annotations": annotations},
        "spec": {
            "selector": {"matchLabels": selector},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": selector}, "spec": pod},
        },
    }  # fmt: skip
    ports = [
        {"name": port_name, "port": port, "targetPort": port_name}
        for port_name, port in (("http", HTTP), ("grpc", GRPC), ("metrics", METRICS))
    ]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": {"selector": selector, "ports": ports}}
    scaler = {
        "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": about,
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": low, "maxReplicas": high,
            "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}
            ],
            "behavior": {
                "scaleUp": {"policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]},
                "scaleDown": {"stabilizationWindowSeconds": 300},
            },
        },
    }  # fmt: skip
    budget = {
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": about,
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}},
    }  # fmt: skip
    return [deployment, service, scaler, budget]


def _cores(cpu: float) -> str:
    """Return cores as Kubernetes writes them: `2`, or `500m` for a fraction."""
    return f"{cpu:g}" if cpu == int(cpu) else f"{round(cpu * 1000)}m"


def _memory(size: int) -> str:
    """Return bytes as Kubernetes writes them, rounded up to MiB."""
    return f"{-(-size // MIB)}Mi"
