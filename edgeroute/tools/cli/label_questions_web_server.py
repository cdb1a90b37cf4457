"""Page on 127.0.0.1, with a token, on which a person answers the questions of `calibrate --ask --page`; a server in a thread."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from functools import partial
from queue import Empty
from typing import TYPE_CHECKING, Any

from edgeroute.errors import BadInput, PolicyError, RuntimeMissing
from edgeroute.system.json_codec_and_short_repr import json_dumps
from edgeroute.system.mailbox import Mailbox
from edgeroute.tools.cli.label_questions_and_answers import REPLIES, Asked, Reply

try:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from edgeroute.tools.dashboard.web_app_and_metrics import OPEN, START_S, json_reply, page_reply, serve_in_thread
    from edgeroute.tools.server.access_limits_call_options import HANDLERS, Guard
    from edgeroute.tools.server.uvicorn_with_client_limits import notify_alive, run
except ImportError as e:
    raise RuntimeMissing(f"{e.name} is not installed: pip install 'edgeroute[dashboard]'") from e

if TYPE_CHECKING:
    from typing_extensions import Self

LOOK_S = 1.0  # interval at which a waiting question checks that the server lives, seconds


class LabelPage:
    """Server of the page, for the length of a `with` block: `ask` shows a question, and waits for the reply.

    The page is open to whoever reaches 127.0.0.1, and has no data. Questions and replies need the token, which is in the page's
    address and, as a header, in every request of the page. Requests of other sites' pages are refused.

    Raises:
        PolicyError: no port can be listened on.
        RuntimeMissing: starlette or uvicorn is not installed.
    """

    def __init__(self) -> None:
        self._token = secrets.token_urlsafe(24)
        self._question: dict[str, Any] = {"number": 0}
        self._replies = Mailbox[tuple[int, Reply]]()
        self._stop: Callable[[], object] = lambda: None
        self.url = ""

    def __enter__(self) -> Self:
        serve = partial(run, self._app(), "127.0.0.1", 0, partial(notify_alive, "asking"), stops=self._set_stop)
        self._thread, url = serve_in_thread("edgeroute-label-page", serve)
        self.url = f"{url}/#token={self._token}"
        print(f"answer on {self.url}", file=sys.stderr, flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._thread.join(START_S)

    def ask(self, asked: Asked) -> Reply:
        """Show a question on the page, in place of the one before, and wait for its reply, without a limit.

        Replies to earlier questions, as of another tab, are dropped.

        Raises:
            PolicyError: the server has ended.
        """
        number = self._question["number"] + 1
        parts = [{"kind": part.kind, "data": part.data} for part in asked.parts]
        self._question = {**asked._asdict(), "parts": parts, "number": number}
        while self._thread.is_alive():
            try:
                of, reply = self._replies.get(timeout=LOOK_S)  # Ctrl-C does not end a wait without a limit on Windows
            except Empty:
                continue
            if of == number:  # else a second reply to a question before, as of another tab
                return reply
        raise PolicyError("the page's server has ended: the same command goes on")

    def _set_stop(self, stop: Callable[[], object]) -> None:
        """Store the function that stops the server."""
        self._stop = stop

    def _app(self) -> Starlette:
        """Return the web application: the page, open to all, and the question and replies, which need the token."""
        guard = Middleware(Guard, token=self._token, without_token=OPEN, what="calibrate", links=OPEN)
        page = Route("/", lambda _: page_reply("edgeroute.tools.cli", "label_questions_page.html"))
        routes = [page, Route("/question", self._show), Route("/reply", self._take)]
        return Starlette(routes=routes, exception_handlers=HANDLERS, middleware=[guard])

    async def _show(self, request: Request) -> Response:
        """Return the question as JSON; its number alone if the page has it already, by `seen=NUMBER`."""
        question = self._question
        seen = request.query_params.get("seen") == str(question["number"])
        return json_reply(json_dumps({"number": question["number"]} if seen else question))

    async def _take(self, request: Request) -> Response:
        """Take a reply to the present question for `ask`, which waits for it.

        Raises:
            BadInput: it is no reply, or to another question.
        """
        number = request.query_params.get("number", "")
        reply = next((known for known in REPLIES.values() if known == request.query_params.get("reply")), None)
        if reply is None or number != str(self._question["number"]):
            raise BadInput("expected /reply?number=N&reply=R: N of the question that is shown, R 1, 2, neither or unknown")
        self._replies.put((int(number), reply))
        return json_reply(b"{}")
