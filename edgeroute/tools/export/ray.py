"""`edgeroute export ray`: an application for Ray Serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeroute import __version__
from edgeroute.errors import PolicyError
from edgeroute.tools.export.folder import FILE, Subject, copies, programs, subjects, text_of, whole, write, yaml_of
from edgeroute.tools.export.programs.arms import checked

INGRESS_AT_ONCE = 64
"""Requests that one replica of the ingress has at once: with few the models behind it never look busy."""
LOOK_BACK_S = 5.0
"""The load is the average of so long; Ray's own 30 s are longer than most bursts."""


def ray(
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    names: Sequence[str] = (),
    max_batch: int = 32,
    wait_s: float = 0.002,
    queue: int = 256,
    replicas: tuple[int, int] = (1, 4),
    kept: int | None = None,
    splits: Mapping[str, Mapping[str, float]] | None = None,
    force: bool = False,
) -> list[Subject]:
    """Writes a Ray Serve application: programs, models, and `serve.yaml`.

    Args:
        paths: .onnx files, each with its card beside it.
        out: the new folder.
        names: of the models on the server.
        max_batch: requests of one run at most.
        wait_s: how long the first one waits for others.
        queue: requests that wait at most; what comes then is refused (503).
        replicas: of the models, at least and at most.
        kept: models that a replica has in memory at most; None: all of them.
        splits: name for callers -> model -> share, for A/B and canaries.
        force: replace an earlier export.

    Raises:
        ModelError: a model cannot be exported.
        PolicyError: a name, a share, or `out` cannot be used.
        RuntimeMissing: PyYAML is not installed.
        StoreError: the disk is full.
    """
    found = subjects(paths, names)
    low, high = replicas
    if not 1 <= low <= high:
        raise PolicyError(f"replicas are at least 1 and at most as many as the most, not {low} to {high}")
    shares = _splits(splits or {}, found)
    kept = len(found) if kept is None else kept
    if kept < 1:
        raise PolicyError("a replica has at least one model in memory")
    args = {
        "models": [one.name for one in found], "max_batch": max_batch, "wait_s": wait_s,
        "models_per_replica": min(kept, len(found)),
    }  # fmt: skip
    about = {"edgeroute": __version__, "format": "ray", "models": args["models"]}
    config = yaml_of(_config(args, queue, low, high, max(1, max_batch // 2), shares), head=HEAD)
    with whole(Path(out), about, force=force) as folder:
        files = {"by_card.py": "by_card.py", "oip.py": "oip.py", "arms.py": "arms.py", "ray_app.py": "app.py"}
        programs(folder, files)
        for one in found:
            to = folder / "models" / one.name
            write(to / "model.json", text_of(one.about(f"onnx/{FILE}")))
            write(to / "client.json", text_of(one.client()))
            copies(one.files(to / "onnx"))
            one.check_copied(to / "onnx" / FILE)
        write(folder / "serve.yaml", config)
        write(folder / "requirements.txt", "ray[serve]>=2.50\nonnxruntime>=1.20\nnumpy\npillow\n")
    return found


def _splits(splits: Mapping[str, Mapping[str, float]], found: Sequence[Subject]) -> dict[str, dict[str, float]]:
    """Checks what callers may be split between.

    Raises:
        PolicyError: shares do not add up, or models that share a name take or give other tensors.
    """
    there = {one.name: one for one in found}
    try:
        shares = checked(splits, there)
    except (TypeError, ValueError) as e:
        raise PolicyError(str(e)) from e
    for name, arms in shares.items():
        alike = {repr(([(s["name"], s["dtype"], s["shape"], s["picture"] is None) for s in there[arm].inputs], there[arm].outputs,
                       there[arm].model.labels)) for arm in arms}  # fmt: skip
        if len(alike) > 1:
            raise PolicyError(f"the models that share the name {name} have other inputs, outputs or labels than each other")
    return shares


def _config(
    args: dict[str, Any], queue: int, low: int, high: int, target: int, splits: dict[str, dict[str, float]]
) -> dict[str, Any]:
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
# serve run serve.yaml         in this folder, with what requirements.txt names
# serve deploy serve.yaml      to a cluster whose nodes have this folder on their PYTHONPATH; there host is 0.0.0.0, which anybody
#                              may ask who reaches it: put what authenticates before it
#
# Models grows while more than target_ongoing_requests are under way for each replica, on the average of look_back_period_s. It
# sees no more than the ingress lets through: max_ongoing_requests of Ingress times its replicas is to be several such targets.
# Shares of A/B and canaries are in splits, {name for callers: {model: share}}: change and deploy them again; nothing restarts.
"""
