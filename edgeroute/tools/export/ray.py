"""Export for Ray Serve (`edgeroute export ray`): programs, models and `serve.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeroute import __version__
from edgeroute.errors import PolicyError
from edgeroute.tools.export.exported_models import FILE, Subject, copies, new_folder, programs, subjects, text_of, write, yaml_of
from edgeroute.tools.export.programs.arms import checked_shares

INGRESS_AT_ONCE = 64
"""Most requests at a time of one replica of the ingress: with few the models behind it never look busy."""
LOOK_BACK_S = 5.0
"""Seconds over which the load is averaged; Ray's own 30 s are longer than most bursts."""


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
) -> list[Subject]:
    """Write a Ray Serve application, i.e. programs, models, and `serve.yaml`; return the models.

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
        PolicyError: a name, a share, or `out` is invalid.
        RuntimeMissing: PyYAML is not installed.
        StoreError: the disk is full.
    """
    models = subjects(paths, names)
    low, high = replicas
    if not 1 <= low <= high:
        raise PolicyError(f"replicas must be LEAST-MOST with 1 <= LEAST <= MOST, not {low}-{high}")
    shares = _splits(splits or {}, models)
    models_per_replica = len(models) if models_per_replica is None else models_per_replica
    if models_per_replica < 1:
        raise PolicyError("a replica has at least one model in memory")
    args = {
        "models": [model.name for model in models], "max_batch": max_batch, "wait_s": wait_s,
        "models_per_replica": min(models_per_replica, len(models)),
    }  # fmt: skip
    about = {"edgeroute": __version__, "format": "ray", "models": args["models"]}
    config = yaml_of(_config(args, queue, low, high, max(1, max_batch // 2), shares), head=HEAD)
    with new_folder(Path(out), about, force=force) as folder:
        files = {"by_card.py": "by_card.py", "oip.py": "oip.py", "arms.py": "arms.py", "ray_app.py": "app.py"}
        programs(folder, files)
        for model in models:
            to = folder / "models" / model.name
            write(to / "model.json", text_of(model.about(f"onnx/{FILE}")))
            write(to / "client.json", text_of(model.client()))
            copies(model.files(to / "onnx"))
            model.check_copied(to / "onnx" / FILE)
        write(folder / "serve.yaml", config)
        write(folder / "requirements.txt", "ray[serve]>=2.50\nonnxruntime>=1.20\nnumpy\npillow\n")
    return models


def _splits(splits: Mapping[str, Mapping[str, float]], models: Sequence[Subject]) -> dict[str, dict[str, float]]:
    """Validate the shares of models.

    Raises:
        PolicyError: shares do not add up, or models that share a name differ in inputs, outputs or labels.
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


def _config(
    args: dict[str, Any], queue: int, low: int, high: int, target: int, splits: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Return the contents of `serve.yaml`: an ingress, and models that scale from `low` to `high` replicas."""
    scaling = {
        "min_replicas": low, "max_replicas": high, "target_ongoing_requests": target, "metrics_interval_s": 1.0,
        "look_back_period_s": LOOK_BACK_S, "upscale_delay_s": 3.0, "downscale_delay_s": 60.0,
    }  # fmt: skip
    ingress = {
        "name": "Ingress", "num_replicas": 2, "max_ongoing_requests": INGRESS_AT_ONCE, "ray_actor_options": {"num_cpus": 0.1},
        "user_config": {"key_header": "x-edgeroute-key", "splits": splits},
    }  # fmt: skip
    models = {
        "name": "Models", "max_ongoing_requests": max(INGRESS_AT_ONCE, 2 * args["max_batch"]), "max_queued_requests": queue,
        "autoscaling_config": scaling, "ray_actor_options": {"num_cpus": 1}, "health_check_period_s": 5.0,
        "graceful_shutdown_timeout_s": 20.0,
    }  # fmt: skip
    application = {
        "name": "edgeroute", "route_prefix": "/", "import_path": "app:build", "args": args, "deployments": [ingress, models],
    }  # fmt: skip
    return {"proxy_location": "EveryNode", "http_options": {"host": "127.0.0.1", "port": 8000}, "applications": [application]}


HEAD = """\
# serve run serve.yaml         in this folder, with the packages of requirements.txt
# serve deploy serve.yaml      to a cluster whose nodes have this folder on their PYTHONPATH; there host is 0.0.0.0, which anybody
#                              who reaches it may call: put a proxy that authenticates before it
#
# Models scales up while more than target_ongoing_requests are in progress for each replica, averaged over look_back_period_s. It
# sees no more than the ingress lets through: max_ongoing_requests of Ingress times its replicas should be several such targets.
# Shares of A/B and canaries are in splits, {name for callers: {model: share}}: change and deploy them again; nothing restarts.
"""
