"""A program as users write them, without an error for strict type checkers: tests/test_typed_program.py."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from edgeroute import Answer, AsyncRouter, BadInput, Cache, Egress, Limits, NoAnswer, OpenInference, Options, PlainJson, Router
from edgeroute.asgi import Errors, lifespan
from edgeroute.observe.stats_and_status_types import LegStats


def edge(text: str) -> tuple[str, float]:
    return text.upper(), 1 / len(text)


def cloud(text: str) -> tuple[str, float]:
    return text.title(), 0.9


def show(answer: Answer[str]) -> str:
    sure = "" if answer.confidence is None else f" {answer.confidence:.2f}"
    trace: Mapping[str, object] = answer.trace
    return f"{answer.value}{sure} from {answer.leg}, {answer.latency_s >= 0}, {trace['reason_code']}"


def route(texts: list[str]) -> list[str]:
    router: Router[str] = Router(
        edge, cloud, threshold=0.8, deadline=30.0, limits=Limits(usd_per_day=1.0), cache=Cache(), state=None
    )
    with router:

        @router.on_late
        def late(answer: object) -> None:
            lines.append(str(answer))

        lines = [show(router.infer(text, data_class="product")) for text in texts]
        lines += [show(answer) for answer in router.infer_many(texts)]
        lines += [answer.reason for answer in router.refine("again")]
        with router.stream("in pieces") as pieces:
            lines += [str(piece) for piece in pieces] + [pieces.answer.reason]
        stats, check, decision = router.stats(), router.check(), router.decide("where to")
        times: dict[str, float | None] = {leg.name: leg.p50_s for leg in stats.legs}
        slowest: list[LegStats] = sorted(stats.legs, key=lambda leg: leg.p99_s or 0.0)
        held: bool | None = router.evaluate(texts, [text.title() for text in texts]).held
        return [*lines, *check.lines, *decision.sends_to, f"{stats.deferral_rate:.1f} {len(times)} {len(slowest)} {held}"]


async def ask(text: str) -> str:
    egress, options = Egress(never_leave=["patient"]), Options(hedge_after="p90")
    async with AsyncRouter(edge, [cloud], threshold=0.8, egress=egress, options=options) as router:
        try:
            answer = await router.infer(text, data_class="patient")
            shown = [each.final async for each in router.refine(text, data_class="patient")]
            return f"{answer.value} {answer['degraded']} {shown} {dict(answer)['source']}"
        except (BadInput, NoAnswer) as error:
            return type(error).__name__


def save(folder: Path, texts: list[str]) -> dict[str, str]:
    with Router(edge, cloud, threshold=0.8) as router:
        result = router.calibrate(texts, [text.title() for text in texts], max_defer=0.9, sure=None)
        return {"guarantee": result.certificate.guarantee, **result.save(folder / "certificate.json")}


LARGE = OpenInference("http://127.0.0.1:9/v2/models/large", api_key="key")
SERVICE = (lifespan(lambda: AsyncRouter(edge, [PlainJson("http://127.0.0.1:9/score"), LARGE], threshold=0.8)), Errors)

if __name__ == "__main__":
    print(*route(["an ankle boot", "a bag"]), asyncio.run(ask("a scan")), save(Path(), ["a", "bag"]), sep="\n")  # noqa: T201 - a program
