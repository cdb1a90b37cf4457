from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeroute.cli.compressing import Data, Force, Model, Out, examples, show
from edgeroute.cli.exits import OK
from edgeroute.cli.options import Json, share
from edgeroute.errors import PolicyError


def prune(
    model: Model,
    *,
    data: Data,
    sparsity: Annotated[
        float, typer.Option("--sparsity", "-s", parser=share, metavar="SHARE", help="What goes: 0.5, or 50%.", show_default=False)
    ],
    out: Out = None,
    structured: Annotated[
        bool, typer.Option("--structured", help="Remove channels, in place of single weights, which become zero.")
    ] = False,
    finetune: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            show_default=False,
            help="Is called with the pruned model's path, inputs and labels, and trains the file in place.",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> int:
    """Prunes a model by the size of its weights, has it fine-tuned, and measures what that changes.

    Without --structured the file keeps its size, and is smaller compressed; with it file, memory and time shrink.
    """
    from edgeroute import compress

    tune = None if finetune is None else _function(finetune)
    inputs, labels = examples(model, data)
    result = compress.prune(
        model, inputs, labels, sparsity=sparsity, structured=structured, finetune=tune, out=out, overwrite=force
    )
    show(result, as_json=as_json)
    return OK


def _function(name: str) -> Any:
    """The function by its name in Python.

    Raises:
        PolicyError: there is none.
    """
    from importlib import import_module

    module, _, path = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        thing: Any = import_module(module)
        for part in path.split("."):
            thing = getattr(thing, part)
    except (ImportError, AttributeError, ValueError) as e:
        raise PolicyError(f"--finetune {name}: there is no such function, as module:function: {e}") from e
    finally:
        sys.path.pop(0)
    if not callable(thing):
        raise PolicyError(f"--finetune {name} is no function")
    return thing
