from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeroute.cli.exits import FAILED, NO_ANSWER, OK, code_of, line
from edgeroute.cli.options import Json, Policy, seconds
from edgeroute.core.texts import printable
from edgeroute.errors import EdgerouteError, ModelMissing, PolicyError, RuntimeMissing

if TYPE_CHECKING:
    from edgeroute.cli.inputs import Item
    from edgeroute.router.router import Router
    from edgeroute.types import Answer


def infer(
    given: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUTS...",
            help=".npy, .npz, .png and .jpg files, and folders of them; each row of an .npz is an input. "
            "`-` is stdin: one such file, or a line of JSON for each input.",
            show_default=False,
        ),
    ],
    *,
    policy: Policy,
    mode: Annotated[str | None, typer.Option(help="Instead of the policy's.")] = None,
    deadline: Annotated[
        float | None, typer.Option(parser=seconds, metavar="TIME", help="Instead of the policy's, as in 300ms.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Inputs to answer together.")] = 1,
    as_json: Json = False,
) -> int:
    """Answers inputs. A failed input does not stop the others."""
    from edgeroute.cli.inputs import files, read
    from edgeroute.cli.tally import Tally
    from edgeroute.report.progress import bar
    from edgeroute.router.router import Router

    tally, failures = Tally(), list[EdgerouteError]()
    paths = files(given)
    with Router.from_policy(policy) as router, bar() as progress:
        keys = router.engine.snapshot.views.keys
        task = progress.add_task("answering", total=len(paths))

        def failed(error: EdgerouteError, **about: str) -> None:
            failures.append(error)
            progress.print(line(error, as_json=as_json, **about), markup=False, highlight=False, soft_wrap=True)

        def told(note: str) -> None:
            text = json.dumps({"note": note}) if as_json else printable(note)
            progress.print(text, markup=False, highlight=False, soft_wrap=True)

        def items() -> Iterator[Item]:
            total = len(paths)
            for path in paths:
                try:
                    rows = read(path, keys, told)
                except EdgerouteError as e:  # its message contains the path
                    failed(e, **({"input": str(path)} if as_json else {}))
                    progress.advance(task)
                    continue
                total += len(rows) - 1
                progress.update(task, total=total)
                yield from rows

        for item, answer in _answers(router, items(), batch, {"mode": mode, "deadline": deadline}):
            progress.advance(task)
            if isinstance(answer, EdgerouteError):
                failed(answer, input=item.name)
                continue
            tally.add(item, answer)
            if as_json:
                print(json.dumps(_plain(item, answer), allow_nan=False), flush=True)
        stats = router.stats()
    if not as_json:
        tally.show(stats, failed=len(failures), batch=batch)
    if failures and not tally.answered and all(code_of(e) == NO_ANSWER for e in failures):
        return NO_ANSWER
    return FAILED if failures else OK


def _answers(
    router: Router, items: Iterator[Item], batch: int, ask: dict[str, Any]
) -> Iterator[tuple[Item, Answer | EdgerouteError]]:
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(group) == batch:
            yield from _group(router, group, ask)
            group = []
    yield from _group(router, group, ask)


def _group(router: Router, group: list[Item], ask: dict[str, Any]) -> Iterator[tuple[Item, Answer | EdgerouteError]]:
    if len(group) > 1:
        try:
            answers = router.infer_many([item.x for item in group], **ask)
        except EdgerouteError:  # one invalid input fails the batch: find out which
            pass
        else:
            yield from zip(group, answers, strict=True)
            return
    for item in group:
        try:
            yield item, router.infer(item.x, **ask)
        except EdgerouteError as e:  # noqa: PERF203 - one input must not lose the others
            if isinstance(e, PolicyError | ModelMissing | RuntimeMissing):  # would recur for each input
                raise
            yield item, e


def _plain(item: Item, answer: Answer) -> dict[str, Any]:
    value, sure = answer.value, answer.confidence
    return {
        "id": answer.id,
        "input": item.name,
        "value": value.tolist() if hasattr(value, "tolist") else value,
        "source": answer.source,
        "confidence": None if sure is None or sure != sure else float(sure),  # noqa: PLR0124 - NaN is not JSON
        "degraded": answer.degraded,
        "reason": answer.reason,
        "latency_s": round(answer.latency_s, 6),
    }
