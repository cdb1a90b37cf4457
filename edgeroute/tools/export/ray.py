"""Export for Ray Serve (`edgeroute export ray`): programs, models and `serve.yaml`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeroute.errors import PolicyError
from edgeroute.tools.export.exported_models import FILE, Subject, filled, new_folder, programs, subjects, text_of, write
from edgeroute.tools.export.programs.arms import checked_shares


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
    served = [model.name for model in models]
    config = filled(
        "serve.yaml", {"wait_s": f"{wait_s:.6f}"}, models=served, max_batch=max_batch,
        models_per_replica=min(models_per_replica, len(models)), splits=shares, at_once=max(64, 2 * max_batch), queue=queue,
        least=low, most=high, target=max(1, max_batch // 2),
    )  # fmt: skip
    with new_folder(out, "ray", models, force=force) as folder:
        files = {"by_card.py": "by_card.py", "oip.py": "oip.py", "arms.py": "arms.py", "ray_app.py": "app.py"}
        programs(folder, files)
        for model in models:
            to = folder / "models" / model.name
            write(to / "model.json", text_of(model.about(f"onnx/{FILE}")))
            write(to / "client.json", text_of(model.client()))
            model.copy(to / "onnx")
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
