"""Command `edgeroute distil`: trains a text classifier on the cloud's answers, certifies it, and prints lines for a policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from edgeroute.core.policy_egress_and_options import Rules
from edgeroute.tools.cli.calibrate_from_examples_or_audits import path_in_policy
from edgeroute.tools.cli.command_runner import NOT_READY, OK, TOO_FEW
from edgeroute.tools.cli.outbox_egress_and_state_folder import state_folder
from edgeroute.tools.cli.tables_and_options import File, Json, OptionalPolicy, OptionalState, pairs, print_notes, share


def distil(
    source: Annotated[list[Path], typer.Argument(metavar="FILE")],
    *,
    kind: Annotated[
        Literal["openai-log", "litellm-log", "langfuse-log", "trace", "outbox", "audits", "csv"], typer.Option("--from")
    ],
    out: File,
    policy: OptionalPolicy = None,
    state: OptionalState = None,
    max_loss: Annotated[Any, typer.Option(parser=share, metavar="SHARE")] = "3%",
    sure: Annotated[Any, typer.Option(parser=share, metavar="SHARE")] = "95%",
    force: bool = False,
    as_json: Json = False,
) -> int:
    """Train a small text classifier on the cloud's answers, certify it on others, and print the lines for a hidden trial.

    Sends nothing. Inputs of a data class that may not leave are not used.

    Args:
        source: Logs, traces, or tables with the columns text and answer.
        kind: Kind of the files. A trace has texts with `inputs = true`; `outbox` adds to it answers that wait in the outbox for a
            callback, `audits` takes its audited requests alone.
        out: The new .onnx file.
        max_loss: Share of answers that may differ from the cloud's.
        sure: Confidence level of the guarantee.
        force: Replace files; write a model that is not worth a trial.

    Returns exit code 5 if there are too few examples for a threshold, 4 if the model is not worth a trial; then nothing is
    written without `force`. The policy is read for its rules on data classes, and not changed.
    """
    from edgeroute import policy as settings
    from edgeroute.tools import distil_text_classifier as classifier
    from edgeroute.tools.replay.logs.answer_pairs_and_samples import LeftOut

    section = None if policy is None else settings.load(policy).egress
    rules, left_out = Rules() if section is None else section.make().rules, LeftOut()
    needed = kind in {"outbox", "audits"} and state is None
    folder = state_folder(policy, None) if needed else state or Path()
    examples = classifier.read_examples(source, kind, rules, left_out, folder)
    done = classifier.distil(examples, out, max_loss=max_loss, sure=sure, force=force, left_out=left_out)
    path = str(out) if policy is None else path_in_policy(policy, out)
    lines = ["[trial]", f"edge = {json.dumps(path, ensure_ascii=False)}", "shown = false"] if done.out else []
    code = OK if not done.why else TOO_FEW if done.threshold is None else NOT_READY
    if as_json:
        print(json.dumps({**done._asdict(), "policy": lines}))
        return code
    print_notes([*done.left_out, *done.notes])
    pairs([
        ("trained on", f"{done.trained:,} answers of {done.classes} classes"),
        ("held out", f"{done.held_out:,}, and it agrees on {done.agreement * 100:.1f} % of them"),
        ("deferred", f"{done.deferral * 100:.1f} % at the certified threshold" if done.guarantee else "unknown"),
        ("guarantee", done.guarantee or "none"),
        ("size", f"{done.bytes / 1000:,.0f} KB"),
        ("written", done.out or "nothing"),
    ])  # fmt: skip
    if done.why:
        print(f"not worth a trial: {done.why}")
    if lines:
        print("\n".join(['next, in a policy with an [edge]; or name the file as [edge], with mode = "shadow":', *lines]))
    return code
