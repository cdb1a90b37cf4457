"""Command `edgeroute export`: exports models for Triton, Ray Serve, KServe and Kubernetes."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edgeroute.core.error_codes_and_texts import printable
from edgeroute.tools.cli.command_runner import command
from edgeroute.tools.cli.tables_and_options import Json, seconds, share

if TYPE_CHECKING:
    from edgeroute.tools.export.models_folders_and_templates import Subject

export = typer.Typer(name="export", no_args_is_help=True, help="Export models for Triton, Ray Serve, KServe or Kubernetes.")

Models = Annotated[list[Path], typer.Argument(metavar="MODEL...", help=".onnx files, each with its card beside it.")]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The new folder.")]
Names = Annotated[
    list[str] | None,
    typer.Option("--name", metavar="NAME", help="Name of a model on the server, for each in turn.", show_default="the card's"),
]
Most = Annotated[int, typer.Option("--max-batch", min=1, max=4096, metavar="N", help="Most rows of one run.")]
Wait = Annotated[Any, typer.Option(parser=seconds, metavar="TIME", help="Time that a request waits for others.")]
Force = Annotated[bool, typer.Option("--force", help="Replace all of an earlier export.")]
Queue = Annotated[int, typer.Option(min=1, metavar="N", help="Most waiting requests; further ones are refused (503).")]
Replicas = Annotated[str, typer.Option("--replicas", metavar="LOW-HIGH", help="Least and most replicas.")]


Runs = Annotated[
    Literal["python", "onnxruntime"],
    typer.Option("--backend", help="Runner of the file: a program with ONNX Runtime, or Triton's own backend, if it has that."),
]


@command(export)
def triton(
    models: Models,
    *,
    out: Out,
    name: Names = None,
    backend: Runs = "python",
    max_batch: Most = 32,
    wait: Wait = "2ms",
    queue: Queue = 256,
    instances: Annotated[int, typer.Option(min=1, metavar="N")] = 1,
    gpu: bool = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a model repository for Triton, with dynamic batching; where a card has a picture, it takes JPEG, PNG and WebP.

    Args:
        instances: Instances of each model, on each GPU.
        gpu: Run on the server's GPUs.

    Prints the models' names. An existing folder is refused without `force`.
    """
    from edgeroute.tools.export import triton_kserve_ray_exports as exports

    batching = exports.Batching(max_batch, wait, queue, instances, gpu)
    _report(exports.triton(models, out, names=name or (), backend=backend, batching=batching, force=force), out, as_json)


@command(export)
def ray(
    models: Models,
    *,
    out: Out,
    name: Names = None,
    max_batch: Most = 32,
    wait: Wait = "2ms",
    queue: Queue = 256,
    replicas: Replicas = "1-4",
    kept: Annotated[int | None, typer.Option(min=1, metavar="N", show_default="all")] = None,
    split: Annotated[list[str] | None, typer.Option(metavar="NAME=MODEL:SHARE,...")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write an application for Ray Serve: batches, autoscaling, several models, A/B and canaries by weight.

    Args:
        kept: Most models in a replica's memory.
        split: A/B or canary: models that answer callers of NAME.

    Prints the models' names. An existing folder is refused without `force`, and replicas or splits in another form.
    """
    from edgeroute.tools.export import triton_kserve_ray_exports as exports

    exported = exports.ray(
        models, out, names=name or (), max_batch=max_batch, wait_s=wait, queue=queue, replicas=_range(replicas),
        models_per_replica=kept,
        splits=dict(map(_parse_split, split or ())), force=force,
    )  # fmt: skip
    _report(exported, out, as_json)


@command(export)
def kserve(
    models: Models,
    *,
    out: Out,
    image: Annotated[str, typer.Option(metavar="IMAGE")],
    name: Names = None,
    service: Annotated[str | None, typer.Option(metavar="NAME", show_default="the model's")] = None,
    storage: Annotated[str | None, typer.Option(metavar="URI", show_default="in the image")] = None,
    backend: Runs = "python",
    max_batch: Most = 32,
    wait: Wait = "2ms",
    queue: Queue = 256,
    replicas: Replicas = "2-10",
    cpu: Annotated[float, typer.Option(min=0.1, metavar="N")] = 1.0,
    gpu: Annotated[int, typer.Option(min=0, metavar="N")] = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a model repository, an InferenceService for KServe, and plain objects of Kubernetes.

    Args:
        image: Name under which you push the image of repository/Dockerfile.
        service: Name of the objects.
        storage: Address of the repository for KServe.
        cpu: Cores of a replica.
        gpu: GPUs of a replica.

    Prints the models' names; builds and pushes nothing. An existing folder is refused without `force`.
    """
    from edgeroute.tools.export import triton_kserve_ray_exports as exports

    batching = exports.Batching(max_batch, wait, queue, gpu=gpu > 0)
    cluster = exports.Cluster(image, _range(replicas), cpu, gpu=gpu)
    exported = exports.kserve(
        models, out, cluster=cluster, name=service, names=name or (), storage=storage, backend=backend, batching=batching,
        force=force,
    )  # fmt: skip
    _report(exported, out, as_json)


def _range(text: str) -> tuple[int, int]:
    """Parse `LEAST-MOST`, or a single number for both; raise `typer.BadParameter`, about --replicas, for all else."""
    match = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text)
    if match is None:
        raise typer.BadParameter(f"replicas must be a number or two, as in 1-4, not {text!r}", param_hint="--replicas")
    return int(match[1]), int(match[2] or match[1])


def _parse_split(text: str) -> tuple[str, dict[str, float]]:
    """Parse `NAME=MODEL:SHARE,MODEL:SHARE` to the name and model -> share, 0..1; raise `typer.BadParameter` for all else."""
    name, _, arms = text.partition("=")
    pairs = [pair.rpartition(":") for pair in arms.split(",")]
    if not name or not all(arm and part for arm, _, part in pairs):
        raise typer.BadParameter(f"a split must be NAME=MODEL:SHARE,MODEL:SHARE, not {text!r}", param_hint="--split")
    return name, {arm: share(part) for arm, _, part in pairs}


def _report(exported: Sequence[Subject], out: Path, as_json: bool) -> None:
    """Print each exported model's file, folder and name; as JSON also its inputs and outputs."""
    if as_json:
        models = [{"name": model.name, "inputs": model.inputs, "outputs": model.outputs} for model in exported]
        print(json.dumps({"out": str(out), "models": models}))
        return
    for model in exported:
        print(printable(f"{model.model.path} is in {out} as {model.name}"))
