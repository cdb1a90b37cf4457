"""A chat in the browser, and the last questions of all programs: who answered, why, what it cost, and in the cloud alone."""

from __future__ import annotations

import json
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from time import time
from typing import Any

from cloud import Cloud, CloudFailed
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgeroute.core.error_codes_and_texts import clean
from edgeroute.record.instrument_interface import Instrument, RequestEnded
from edgeroute.tools.state_colours_and_marks import STATES, answer_state, css
from edgeroute.types import Answer

FILE = Path(__file__).with_name("page.html")
KEPT, LONGEST = 50, 200
"""Questions, and characters of one."""
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class Questions(Instrument):
    """The last questions, in memory alone. The text of one that never leaves the device is not kept at all.

    Args:
        usd_per_token: of a question and of an answer, in the cloud.
        secret: data classes whose texts are not kept.

    Attributes:
        away: True once the router has given the cloud up, until a probe has reached it.
    """

    def __init__(self, usd_per_token: tuple[float, float], secret: frozenset[str]) -> None:
        self._prices, self._secret = usd_per_token, secret
        self._rows = deque[dict[str, Any]](maxlen=KEPT)
        self._lock = threading.Lock()
        self._count, self._usd, self._alone = 0, 0.0, 0.0
        self.away = False

    def breaker_changed(self, target: str, state: str) -> None:  # noqa: ARG002 - there is one cloud
        """Note that the cloud is away, or back."""
        self.away = state != "closed"

    def request_ended(self, ended: RequestEnded) -> None:
        """Add a row for a request, without a private question's text, and its cost, if known, to the sums; drop the oldest of 51.

        The text of a question without an answer is not kept either: nothing tells its data class.
        """
        answer, usd, alone, question = ended.answer, 0.0, None, ""
        row: dict[str, Any] = {"at": time(), "state": None, "private": False}
        if answer is None:
            row["reason"] = clean(ended.error, 2 * LONGEST)
        else:
            trace = answer.trace
            row["state"] = answer_state(answer.source, answer.reason_code, degraded=answer.degraded, final=answer.final)
            row["reason"], row["took_s"] = clean(answer.reason, 2 * LONGEST), answer.latency_s
            row["private"] = bool(trace.get("stays")) or trace.get("data_class") in self._secret
            question = "" if row["private"] else question_of(ended.inputs)
            usd = sum(event.get("usd") or 0.0 for event in trace.get("events", ()))
            alone = usd if answer.source == "cloud" else None if answer.degraded else self._alone_usd(answer)
        with self._lock:
            self._rows.appendleft({**row, "question": question, "usd": usd, "alone": alone})
            self._count += 1
            if alone is not None:  # what a call without an answer has cost is not known, nor what it would have
                self._usd, self._alone = self._usd + usd, self._alone + alone

    def shown(self) -> dict[str, Any]:
        """Return the rows, the newest first, and the sums of all questions since the start."""
        with self._lock:
            return {"rows": [*self._rows], "count": self._count, "usd": self._usd, "alone": self._alone}

    def _alone_usd(self, answer: Answer[Any]) -> float | None:
        """Return what the cloud would have taken for an answer with as many tokens; None if they were not counted."""
        usage = answer.outputs.get("usage") if isinstance(answer.outputs, Mapping) else None
        if not isinstance(usage, Mapping):
            return None
        counts = (usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))
        return sum(count * price for count, price in zip(counts, self._prices, strict=True))


def question_of(request: Any) -> str:
    """Return the first 200 characters of a request's last message, or of its prompt; pictures and the like are left out."""
    messages = request.get("messages") if isinstance(request, Mapping) else None
    content = messages[-1].get("content") if messages else request.get("prompt") if isinstance(request, Mapping) else request
    if isinstance(content, list):
        content = " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")[:LONGEST]


def routes_of(questions: Questions, cloud: Cloud | None, link_up: Callable[[], object]) -> list[Route]:
    """Return the routes of the page, for `edgeroute.tools.server.gateway.gateway(routes=...)`, which keeps others' pages out.

    Args:
        questions: those to show.
        cloud: the one that the page can send away; None: it has no switch.
        link_up: called once the cloud is back, so that the router asks it again at once.
    """

    async def page(_: Request) -> Response:
        """Return the page, with a new nonce."""
        nonce = secrets.token_urlsafe(16)
        states = {state.word: {"mark": state.mark, "meaning": state.meaning} for state in STATES.values()}
        text = FILE.read_text(encoding="utf-8").replace("/*PALETTE*/", css()).replace("/*STATES*/", json.dumps(states))
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {**HEADERS, "Content-Security-Policy": policy}
        return Response(text.replace("@NONCE@", nonce), headers=headers, media_type="text/html")

    async def last(_: Request) -> Response:
        """Return the last questions, and where the cloud is."""
        away = questions.away or (cloud is not None and cloud.away)
        return JSONResponse({**questions.shown(), "away": away, "switch": cloud is not None}, headers=HEADERS)

    async def switch(request: Request) -> Response:
        """Send the cloud away, or bring it back; returns when it is done."""
        to = request.path_params["to"]
        if cloud is None or to not in {"away", "here"}:
            raise HTTPException(404, "there is no such switch")
        try:
            await run_in_threadpool(cloud.go if to == "away" else cloud.come)
        except CloudFailed as e:
            raise HTTPException(503, str(e)) from e
        if to == "here":
            link_up()
        return await last(request)

    return [Route("/", page), Route("/questions", last), Route("/cloud/{to:str}", switch, methods=["POST"])]
