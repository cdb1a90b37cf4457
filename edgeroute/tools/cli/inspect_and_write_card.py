"""Command `edgeroute inspect`: shows a model's inputs and outputs; `--write` writes its card, once a router has run it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.errors import ModelError
from edgeroute.tools.cli.command_runner import FAILED, OK
from edgeroute.tools.cli.tables_and_options import File, Json, Name, Whole, seconds

if TYPE_CHECKING:
    from edgeroute.tools.cli.inspect_report import Report


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False)],
    *,
    sample: File | None = None,
    index: Whole = 0,
    write: bool = False,
    force: bool = False,
    timeout: Annotated[Any, typer.Option(parser=seconds, metavar="TIME", show_default="10s")] = "10s",
    key_env: Name | None = None,
    as_json: Json = False,
) -> int:
    """Show a model's inputs and outputs, which facts are certain, guessed and open, and write its card.

    Args:
        model: A model file (.onnx, .tflite, .mlpackage, .gguf), or the URL of a model behind the Open Inference Protocol:
            http://HOST/v2/models/NAME.
        sample: Input: .npy, .npz (for several inputs, by name), .png, .jpg, or - for stdin. Sent if MODEL is a URL.
        index: The row of an .npz file.
        write: Write the card, NAME.json beside the model.
        force: Replace an existing card.
        timeout: Limit for the runs, or the endpoint.
        key_env: Environment variable with the endpoint's key.

    A file is loaded and run on zeros, random numbers and the sample; of a .gguf file only the header is read. The card is written
    only if a router runs the model with it. Returns exit code 1 if the sample has no answer in any way.

    Raises:
        typer.BadParameter: `write` for a URL, or over a card without `force`; a sample for a .gguf file.
        ModelError, CloudError: the model cannot be loaded or reached.
    """
    report: Report
    if model.lower().startswith(("http://", "https://")):
        if write:
            raise typer.BadParameter("a card is beside a model file; an endpoint has [cloud] in the policy", param_hint="--write")
        from edgeroute.tools.cli.inspect_oip_by_sample import inspect_url

        report = inspect_url(model, sample, index, timeout, key_env)
    else:
        path = Path(model)
        if write:
            _check_free(path, force=force)
        from edgeroute.tools.cli.inspect_by_runs_and_guessed_card import inspect_file, inspect_gguf

        gguf = path.suffix.lower() == ".gguf"
        if gguf and sample is not None:
            raise typer.BadParameter("a language model is run by `edgeroute infer`", param_hint="--sample")
        report = inspect_gguf(path) if gguf else inspect_file(path, sample, index, timeout)
        if write and report.card is not None:
            report.written = str(_write(path, report.card, force=force))
    if as_json:
        print(report.as_json())
    else:
        report.show()
    return FAILED if report.shown and all(answer.error for answer in report.shown) else OK


def _check_free(path: Path, *, force: bool) -> None:
    """Raise `typer.BadParameter` if the model's card exists, even as a broken link, unless `force` is set."""
    from edgeroute.edge.model_card import card_path

    card = card_path(path)
    if not force and (card.exists() or card.is_symlink()):
        raise typer.BadParameter(f"{card} exists already: --force replaces it", param_hint="--write")


def _write(path: Path, card: dict[str, Any], *, force: bool) -> Path:
    """Write the card beside the model, if a router runs the model with it, and return its path. Writes all or nothing.

    The card is tried under a temporary name in the same folder.

    Raises:
        ModelError: the model does not run with it, or it cannot be written.
        typer.BadParameter: a card exists, and `force` is not set.
    """
    from edgeroute.edge.model_card import card_path
    from edgeroute.edge.runtimes_variants_ensemble import load
    from edgeroute.router.router import Router
    from edgeroute.tools.cli.inspect_report import card_text

    target = card_path(path)
    new_card = path.with_name(f".{path.stem}.{os.getpid()}.json")
    try:
        with new_card.open("x", encoding="utf-8") as file:
            file.write(card_text(card))
        with Router(load(path, card=new_card), threshold=0.5) as router:
            report = router.check()
        if not report.ok:
            raise ModelError(f"the card was not written, because the model does not run with it: {report.lines[0]}")
        if force:
            new_card.replace(target)
        else:
            _rename_new(new_card, target)
    except FileExistsError:
        raise typer.BadParameter(f"{target} exists already: --force replaces it", param_hint="--write") from None
    except OSError as e:
        if isinstance(e, ModelError):
            raise
        raise ModelError(f"{target} cannot be written: {e.strerror}") from e
    finally:
        new_card.unlink(missing_ok=True)
    return target


def _rename_new(new_card: Path, target: Path) -> None:
    """Rename a file, unless the new name exists; raise `FileExistsError` then. `new_card` may remain, as a second name.

    Where there are no hard links, an empty file takes the new name first.
    """
    try:
        target.hardlink_to(new_card)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with target.open("x"):
            pass
        new_card.replace(target)
