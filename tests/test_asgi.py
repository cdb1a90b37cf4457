"""A router in a web service: its lifespan, the status of each error, WebSockets, mounted applications, clients that go, the shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
from both import GOOD, LONG, sure, unsure
from lazily import needs

from edgeroute import (
    AsyncRouter,
    BadInput,
    Closed,
    Egress,
    Held,
    MayNotLeave,
    ModelError,
    ModelMissing,
    NoAnswer,
    PlainJson,
    PolicyError,
    Refused,
    Router,
    TimedOut,
    Unreachable,
    asgi,
)
from edgeroute.asgi import Disconnected, Errors, error_reply, lifespan, while_connected
from edgeroute.errors import Busy, Unfit
from edgeroute.testing import CannedServer, http_reply

needs("httpx", "starlette", "uvicorn")
import uvicorn  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.background import BackgroundTask  # noqa: E402
from starlette.middleware import Middleware  # noqa: E402
from starlette.middleware.base import BaseHTTPMiddleware  # noqa: E402
from starlette.middleware.cors import CORSMiddleware  # noqa: E402
from starlette.responses import JSONResponse, StreamingResponse  # noqa: E402
from starlette.routing import Mount, Route, WebSocketRoute  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402
from starlette.websockets import WebSocketDisconnect  # noqa: E402

MARK = "patient-4711"


async def ask(request):
    """Answer the body of a request by the router; its query has the data class."""
    body = (await request.body()).decode()
    answer = await while_connected(request, request.state.router.infer(body, data_class=request.query_params.get("data_class")))
    return JSONResponse(answer.as_dict())


async def talk(socket):
    """Answer each text of a WebSocket."""
    await socket.accept()
    while True:
        answer = await socket.state.router.infer(await socket.receive_text())
        await socket.send_text(answer.value)


def service(make, *routes, warm=True, middleware=(), **options):
    """An application with a router, and further routes."""
    own = [Route("/", ask, methods=["POST"]), WebSocketRoute("/ws", talk), *routes]
    return Starlette(routes=own, lifespan=lifespan(make, warm=warm), middleware=[*middleware, Middleware(Errors, **options)])


@contextlib.contextmanager
def client(*given, **options):
    """A client of an application, which has begun; exceptions of the application are replies of status 500."""
    with TestClient(service(*given, **options), raise_server_exceptions=False) as opened:
        yield opened


@contextlib.contextmanager
def serving(application):
    """The application on uvicorn, in a thread -> its address and the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname(), server
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def raises(error):
    """An edge, or a cloud, that raises this."""

    def run(_):
        raise error

    return run


# ------------------------------------------------------------------------------------------------------------- statuses
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BadInput(MARK), 422, "bad_input"),
        (Unfit(MARK, code="context"), 422, "bad_input"),
        (NoAnswer(MARK, {"a": BadInput(MARK), "b": Refused(MARK, status=413)}), 422, "bad_input"),
        (NoAnswer(MARK, {"a": BadInput(MARK), "b": Unreachable(MARK)}), 503, "unavailable"),
        (NoAnswer(MARK), 503, "unavailable"),
        (MayNotLeave(MARK), 403, "may_not_leave"),
        (Busy(MARK), 503, "unavailable"),
        (Closed(MARK), 503, "unavailable"),
        (Held(MARK), 503, "unavailable"),
        (Unreachable(MARK), 503, "unavailable"),
        (Refused(MARK, status=429), 503, "unavailable"),
        (Refused(MARK, status=401), 502, "bad_gateway"),
        (TimedOut(MARK), 504, "timeout"),
    ],
)
def test_the_status_of_an_error(error, status, code):
    """Its text is in the body on request alone."""
    body, found, headers = error_reply(error)
    assert (found, body["code"]) == (status, code)
    assert MARK not in json.dumps(body)
    assert ("Retry-After" in headers) == (status == 503)
    assert error_reply(error, messages=True)[0]["detail"] == MARK


@pytest.mark.parametrize("error", [ModelError("broken"), ModelMissing("gone"), PolicyError("no such mode")])
def test_a_fault_of_the_service_is_raised(error):
    with pytest.raises(type(error)) as caught:
        error_reply(error)
    assert caught.value is error


def test_the_longest_wait_of_a_leg_is_passed_on():
    """From 1 s to an hour."""
    held, refused = Held("open", wait_s=7.2), Refused("busy", status=503, retry_after_s=3)
    assert error_reply(NoAnswer("none", {"a": held, "b": refused}))[2] == {"Retry-After": "8"}
    assert error_reply(Held("open", wait_s=1e9))[2] == {"Retry-After": "3600"}


def test_an_input_that_a_model_does_not_take(tmp_path):
    """A real model; its message is in the log, and in the body on request."""
    path = tiny.linear(tmp_path / "m.onnx")

    async def vector(request):
        return JSONResponse((await request.app.state.router.infer(np.array(await request.json(), np.float32))).as_dict())

    route = Route("/vector", vector, methods=["POST"])
    for messages in (False, True):
        with client(lambda: AsyncRouter(path, threshold=0.5), route, messages=messages) as opened:
            assert opened.post("/vector", json=[0, 2, 1, 5]).status_code == 200
            reply = opened.post("/vector", json=[1])
        assert reply.status_code == 422
        assert ("expected" in reply.json()["detail"]) is messages


@pytest.mark.parametrize("data_class", ["medical", ""])
def test_what_must_not_leave(data_class):
    def make():
        return AsyncRouter(cloud=sure, egress=Egress(never_leave=["medical"]))

    with client(make) as opened:
        assert opened.post("/?data_class=other", content=b"x").status_code == 403
        assert opened.post(f"/?data_class={data_class}", content=b"x").json()["code"] == "may_not_leave"


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (http_reply(b"", status=400), 422),
        (http_reply(b"", status=403), 502),
        (http_reply(b"", status=503), 503),
        (b"?", 503),
        (http_reply(b"?"), 502),
        (None, 504),
    ],
)
def test_the_only_model_is_a_server(reply, status):
    """That refuses, is away, replies with nonsense, or does not reply."""
    with CannedServer(reply) as server:

        def make():
            cloud = PlainJson(server.url, retries=0)
            return AsyncRouter(cloud=cloud, mode="only_cloud", deadline=0.3 if reply is None else LONG)

        with client(make) as opened:
            found = opened.post("/", content=MARK)
    assert found.status_code == status
    assert MARK not in found.text
    assert str(server.port) not in found.text


def test_nothing_of_an_input_is_in_a_reply_or_the_log(caplog):
    """Exceptions of the service's own functions quote it."""
    error = RuntimeError(f"cannot read {MARK}")
    for make in (
        lambda: AsyncRouter(raises(error), raises(error), threshold=0.5, offline="raise"),
        lambda: AsyncRouter(raises(BadInput(f"cannot read {MARK}")), threshold=0.5),
    ):
        with caplog.at_level(logging.WARNING), client(make) as opened:
            reply = opened.post("/", content=MARK)
            assert reply.status_code in {422, 503}
            assert MARK not in reply.text + str(reply.headers)
            with opened.websocket_connect("/ws") as channel:
                channel.send_text(MARK)
                with pytest.raises(WebSocketDisconnect) as ended:
                    channel.receive_text()
            assert MARK not in ended.value.reason
        assert MARK not in caplog.text


def test_a_degraded_answer_is_a_success():
    with client(lambda: AsyncRouter(unsure, raises(Unreachable("away")), threshold=0.5)) as opened:
        reply = opened.post("/", content=b"x")
    assert (reply.status_code, reply.json()["degraded"]) == (200, True)


# ------------------------------------------------------------------------------------------ exceptions that are not its own
def test_exceptions_of_the_application_are_not_swallowed():
    """Nor is a model that is broken."""
    for error in (KeyError(MARK), ValueError(MARK), ModelError("broken")):

        async def fails(_, error=error):
            raise error

        app = service(lambda: AsyncRouter(sure), Route("/fails", fails))
        with TestClient(app) as opened, pytest.raises(type(error)) as caught:
            opened.get("/fails")
        assert caught.value is error
        with TestClient(app, raise_server_exceptions=False) as opened:
            reply = opened.get("/fails")
        assert (reply.status_code, reply.text) == (500, "Internal Server Error")


def test_a_reply_of_status_500_is_sent_as_it_is():
    """Whole, in parts, and with work after it."""
    done = []

    async def whole(_):
        return JSONResponse({"own": 1}, 500, background=BackgroundTask(done.append, 1))

    async def parts(_):
        return StreamingResponse(iter(["a", "b"]), 500)

    with client(lambda: AsyncRouter(sure), Route("/whole", whole), Route("/parts", parts)) as opened:
        reply = opened.get("/whole")
        assert (reply.status_code, reply.json(), done) == (500, {"own": 1}, [1])
        reply = opened.get("/parts")
        assert (reply.status_code, reply.text) == (500, "ab")


def test_an_error_after_the_beginning_of_a_reply_ends_the_connection():
    """Bytes of a second reply would be taken for the first one's."""

    async def begins(request):
        async def pieces():
            yield "begun"
            raise BadInput(MARK)

        return StreamingResponse(pieces())

    app = service(lambda: AsyncRouter(sure), Route("/begins", begins))
    with TestClient(app) as opened, pytest.raises(BadInput):
        opened.get("/begins")


def test_middleware_between_and_around():
    """An error passes through Starlette's own kind, and its reply has the headers of cross-origin requests."""

    async def passes(request, call_next):
        return await call_next(request)

    app = service(
        lambda: AsyncRouter(raises(BadInput("no")), threshold=0.5),
        middleware=[Middleware(CORSMiddleware, allow_origins=["*"]), Middleware(BaseHTTPMiddleware, dispatch=passes)],
    )
    app.add_middleware(BaseHTTPMiddleware, dispatch=passes)
    with TestClient(app) as opened:
        reply = opened.post("/", content=b"x", headers={"Origin": "https://example.com"})
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (422, "*")

    inner = Starlette(
        routes=[Route("/", ask, methods=["POST"])], middleware=[Middleware(BaseHTTPMiddleware, dispatch=passes)],
        lifespan=lifespan(lambda: AsyncRouter(raises(BadInput("no")), threshold=0.5)),
    )  # fmt: skip
    with TestClient(Errors(inner)) as opened:
        assert opened.post("/", content=b"x").status_code == 422


@pytest.mark.parametrize("debug", [False, True])
def test_a_mounted_application_has_the_router_and_the_statuses(debug):
    """Though it replies 500, or with a page of its variables, before its error comes up."""
    mounted = Mount("/inner", Starlette(routes=[Route("/", ask, methods=["POST"]), WebSocketRoute("/ws", talk)], debug=debug))
    for edge, status in ((sure, 200), (raises(BadInput(MARK)), 422)):
        with client(lambda edge=edge: AsyncRouter(edge, threshold=0.5), mounted) as opened:
            reply = opened.post("/inner/", content=MARK)
            assert reply.status_code == status
            assert MARK not in reply.text


# ------------------------------------------------------------------------------------------------------------ WebSockets
@pytest.mark.parametrize(
    ("error", "code"),
    [(BadInput("no"), 1008), (MayNotLeave("no"), 1008), (Unreachable("no"), 1013), (Refused("no", status=401), 1011)],
)
def test_a_websocket_is_closed_with_a_code(error, code):
    with client(lambda: AsyncRouter(raises(error), threshold=0.5)) as opened, opened.websocket_connect("/ws") as channel:
        channel.send_text("x")
        with pytest.raises(WebSocketDisconnect) as ended:
            channel.receive_text()
    assert ended.value.code == code
    assert ended.value.reason


def test_the_reason_of_a_websocket_fits_its_frame():
    """123 bytes of UTF-8 at most."""
    make, text = (lambda: AsyncRouter(raises(BadInput("ä" * 300)), threshold=0.5)), "ä" * 61
    with client(make, messages=True) as opened, opened.websocket_connect("/ws") as channel:
        channel.send_text("x")
        with pytest.raises(WebSocketDisconnect) as ended:
            channel.receive_text()
    assert ended.value.reason == text


def test_a_websocket_before_it_is_accepted_and_one_that_is_over():
    """The first is rejected; to the second nothing more can be sent, so the error is the server's."""

    async def early(socket):
        raise BadInput(MARK)

    async def late(socket):
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            await socket.receive_text()
        raise BadInput(MARK)

    routes = [WebSocketRoute("/early", early), WebSocketRoute("/late", late)]
    with TestClient(service(lambda: AsyncRouter(sure), *routes)) as opened:
        with pytest.raises(WebSocketDisconnect) as ended, opened.websocket_connect("/early"):
            pass
        assert ended.value.code == 1008
        with pytest.raises(BadInput), opened.websocket_connect("/late"):
            pass


# -------------------------------------------------------------------------------------------------------------- lifespan
def test_a_start_without_its_model_is_a_clear_error(tmp_path):
    """Of a path without a file, of a file that is none, and of a policy with a mistake."""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    policy = tmp_path / "service.toml"
    policy.write_text("treshold = 0.5\n")
    for make, kind, text in (
        (lambda: AsyncRouter(tmp_path / "none.onnx"), ModelMissing, "none.onnx"),
        (lambda: AsyncRouter(broken), ModelError, "broken.onnx"),
        (lambda: Router(broken), ModelError, "broken.onnx"),
        (policy, PolicyError, "treshold"),
    ):
        with pytest.raises(kind, match=text), client(make):
            pass
    with client(lambda: AsyncRouter(broken, sure, threshold=0.5), warm=False) as opened:
        assert opened.post("/", content=b"x").json()["source"] == "cloud"
    with pytest.raises(PolicyError, match=r"lifespan\(lambda: AsyncRouter"):
        lifespan(42)


def test_uvicorn_ends_with_that_error(tmp_path):
    """Its last line but the server's own names the file."""
    program = tmp_path / "service.py"
    program.write_text(
        "from starlette.applications import Starlette\nfrom edgeroute.asgi import lifespan\n"
        "app = Starlette(lifespan=lifespan('service.toml'))\n"
    )
    (tmp_path / "service.toml").write_text('threshold = 0.5\n[edge]\npath = "none.onnx"\n')
    command = [sys.executable, "-m", "uvicorn", "service:app", "--port", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=4 * LONG)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("edgeroute.errors.")]
    assert lines
    assert all(line.startswith("edgeroute.errors.ModelMissing: ") and "none.onnx" in line for line in lines)


@pytest.mark.parametrize("kind", [AsyncRouter, Router])
def test_each_start_has_a_router_of_its_own(kind):
    """Which is closed at the end, also if the application fails in between."""
    made = []

    def make():
        made.append(kind(sure))
        return made[-1]

    app = service(make)
    for _ in range(2):
        with TestClient(app):
            assert not app.state.router.engine.closed
    assert len(made) == 2
    assert all(router.engine.closed for router in made)

    async def fails():
        async with lifespan(make)(object()) as state:
            assert state["router"] is made[-1]
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(fails())
    assert made[-1].engine.closed


def test_a_router_for_threads_in_functions_that_block():
    """Starlette runs them in threads."""

    def blocks(request):
        return JSONResponse(request.state.router.infer(1).as_dict())

    with client(lambda: Router(sure), Route("/blocks", blocks)) as opened:
        assert opened.get("/blocks").json()["value"] == "edge"


def test_lifespans_are_composed():
    """Each as a context manager of the other; requests have the state of both."""
    events = []

    @asynccontextmanager
    async def both(app):
        async with lifespan(lambda: AsyncRouter(sure))(app) as state:
            events.append(not state["router"].engine.closed)
            yield {**state, "own": 7}
            events.append(not state["router"].engine.closed)

    async def own(request):
        answer = await request.state.router.infer(1)
        return JSONResponse([request.state.own, answer.value])

    with TestClient(Starlette(routes=[Route("/", own)], lifespan=both)) as opened:
        assert opened.get("/").json() == [7, "edge"]
    assert events == [True, True]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked where there is a fork")
def test_forked_workers_of_an_application_that_is_loaded(tmp_path):
    """As gunicorn's with --preload; the parent has served a request before."""
    path = tiny.linear(tmp_path / "m.onnx")
    program = tmp_path / "service.py"
    program.write_text(
        "import os, sys\nimport numpy as np\n"
        "from starlette.applications import Starlette\nfrom starlette.responses import JSONResponse\n"
        "from starlette.routing import Route\nfrom starlette.testclient import TestClient\n"
        "from edgeroute import AsyncRouter\nfrom edgeroute.asgi import Errors, lifespan\n"
        "async def ask(request):\n"
        "    x = np.array([0, 2, 1, 5], np.float32)\n"
        "    return JSONResponse((await request.state.router.infer(x)).as_dict())\n"
        "app = Starlette(routes=[Route('/', ask)], lifespan=lifespan(lambda: AsyncRouter(sys.argv[1], threshold=0.1)))\n"
        "app.add_middleware(Errors)\n"
        "def serve():\n"
        "    with TestClient(app) as client:\n"
        "        return client.get('/').status_code\n"
        "assert serve() == 200\n"
        "children = []\n"
        "for _ in range(2):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        os._exit(0 if serve() == 200 else 1)\n"
        "    children.append(pid)\n"
        "assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]\n"
        "print(serve())\n"
    )
    command = [sys.executable, "-W", "ignore", str(program), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=4 * LONG)
    assert (done.returncode, done.stdout) == (0, "200\n"), done.stderr


# ------------------------------------------------------------------------------------ clients that go, and the shutdown
REQUEST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx"


@pytest.mark.parametrize("between", [False, True])
def test_the_call_of_a_client_that_goes_is_cancelled(between):
    """The cloud's coroutine is cancelled; the next client is answered. Also behind a middleware that wraps the request."""

    async def passes(request, call_next):
        return await call_next(request)

    begun, cancelled = threading.Event(), threading.Event()

    async def cloud(x):
        if x != "x":
            return "cloud", 0.9
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    app = service(lambda: AsyncRouter(unsure, cloud, threshold=0.5))
    if between:
        app.add_middleware(BaseHTTPMiddleware, dispatch=passes)
    with serving(app) as (address, _):
        with socket.create_connection(address, LONG) as connection:
            connection.sendall(REQUEST)
            assert begun.wait(LONG)
        assert cancelled.wait(LONG)
        with socket.create_connection(address, LONG) as connection:
            connection.sendall(REQUEST[:-1] + b"y")
            assert b"200 OK" in connection.recv(65536)


def test_a_call_ends_with_its_handler():
    """A handler that is cancelled, as at the end of a server's patience, cancels the call, and waits for its end."""
    ended = []

    async def main():
        begun, never = asyncio.Event(), asyncio.Event()

        async def call():
            begun.set()
            try:
                await never.wait()
            finally:
                ended.append(True)

        class Request:
            receive = never.wait

        task = asyncio.ensure_future(while_connected(Request(), call()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert ended == [True]


def test_a_request_that_cannot_be_read_is_no_client_that_has_gone():
    """The exception of its channel is raised, and the call is cancelled."""

    class Request:
        async def receive(self):
            raise RuntimeError("read before")

    async def main():
        with pytest.raises(RuntimeError, match="read before"):
            await while_connected(Request(), asyncio.Event().wait())

    asyncio.run(main())


@pytest.mark.parametrize(
    "also", [False, pytest.param(True, marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="3.11 counts cancellations"))]
)
@pytest.mark.parametrize("value", [None, "an answer all the same"])
def test_a_client_that_goes_leaves_its_handler_whole(also, value):
    """The handler may go on: it is not cancelled itself, unless somebody else cancels it, too."""

    async def main():
        begun, gone, stopped = asyncio.Event(), asyncio.Event(), asyncio.Event()

        class Request:
            async def receive(self):
                await gone.wait()
                return {"type": "http.disconnect"}

        async def call():
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if also:
                    stopped.set()
                    await asyncio.Event().wait()
                if value is None:
                    raise
            return value

        async def handler():
            try:
                answer = await while_connected(Request(), call())
            except Disconnected:
                answer = None
            await asyncio.sleep(0)
            return answer

        task = asyncio.ensure_future(handler())
        await begun.wait()
        gone.set()
        if also:
            await stopped.wait()
            task.cancel()
        return await task

    if also:
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(main())
    else:
        assert asyncio.run(main()) == value


def test_an_exception_of_the_call_passes():
    with client(lambda: AsyncRouter(raises(BadInput("no")), threshold=0.5)) as opened:
        assert opened.post("/", content=b"x").status_code == 422


@pytest.mark.skipif(os.name == "nt", reason="SIGTERM ends a process of Windows at once")
@pytest.mark.parametrize("replies", [True, False])
def test_a_shutdown_answers_what_is_under_way(tmp_path, replies):
    """By the cloud where it replies in time, else by the edge at the deadline; then the process ends."""
    program = tmp_path / "service.py"
    program.write_text(
        "import os\nfrom starlette.applications import Starlette\nfrom starlette.responses import JSONResponse\n"
        "from starlette.routing import Route\nfrom edgeroute import AsyncRouter, PlainJson\n"
        "from edgeroute.asgi import Errors, lifespan\n"
        "def make():\n"
        "    cloud = PlainJson(os.environ['CLOUD'], retries=0)\n"
        "    return AsyncRouter(lambda x: ('edge', 0.1), cloud, threshold=0.5, deadline=float(os.environ['DEADLINE']))\n"
        "async def ask(request):\n"
        "    return JSONResponse((await request.state.router.infer('x')).as_dict())\n"
        "app = Starlette(routes=[Route('/', ask, methods=['POST'])], lifespan=lifespan(make))\n"
        "app.add_middleware(Errors)\n"
    )
    with CannedServer(GOOD) as cloud, socket.create_server(("127.0.0.1", 0)) as listener:
        environment = {**os.environ, "CLOUD": cloud.url, "DEADLINE": str(LONG) if replies else "6"}
        command = [sys.executable, "-m", "uvicorn", "service:app", "--fd", str(listener.fileno())]
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment, pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                with socket.create_connection(listener.getsockname(), 2 * LONG) as first:  # after which nothing is imported
                    first.sendall(REQUEST)
                    assert first.recv(65536)
                cloud.shut()
                connections = [socket.create_connection(listener.getsockname(), 2 * LONG) for _ in range(3)]
                for connection in connections:
                    connection.sendall(REQUEST)
                cloud.wait_for(lambda: len(cloud.requests) > len(connections), timeout_s=2 * LONG)
                process.send_signal(signal.SIGTERM)
                while "Shutting down" not in (line := process.stderr.readline()):
                    assert line, "the server ended"
                if replies:
                    cloud.open()
                for connection in connections:
                    reply = b"".join(iter(lambda connection=connection: connection.recv(65536), b""))
                    assert b"200 OK" in reply
                    assert json.loads(reply.partition(b"\r\n\r\n")[2])["source"] == ("cloud" if replies else "edge")
                    connection.close()
                assert "Traceback" not in process.communicate(timeout=2 * LONG)[1]
            finally:
                process.kill()


# --------------------------------------------------------------------------------------------------------------- the module
def test_the_module_needs_no_web_framework():
    """It imports none; a name that it lacks is an AttributeError."""
    code = (
        "import sys; from edgeroute.asgi import Disconnected, Errors, error_reply, lifespan, while_connected;"
        "print({'starlette', 'fastapi', 'flask', 'uvicorn', 'anyio'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    with pytest.raises(AttributeError, match="no attribute 'lifespans'"):
        asgi.lifespans  # noqa: B018


def test_fastapi_has_both():
    """With a dependency, and a router of routes."""
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI(lifespan=lifespan(lambda: AsyncRouter(raises(BadInput(MARK)), threshold=0.5)))
    app.add_middleware(Errors)

    def router(request: fastapi.Request):
        return request.state.router

    @app.post("/")
    async def ask(x: str, found=fastapi.Depends(router)):  # noqa: B008 - as FastAPI has it
        return await found.infer(x)

    with TestClient(app) as opened:
        reply = opened.post("/", params={"x": MARK})
    assert reply.status_code == 422
    assert MARK not in reply.text


# ------------------------------------------------------------------------------------------------------ Flask and Gradio
PAGE = Path(__file__).parents[1] / "docs" / "webservice.md"


def snippet(name):
    """Python or TOML of the page, from the name in its first line on."""
    return re.search(rf"^```\w+\n# {name}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]


@pytest.fixture
def desk(tmp_path, monkeypatch, fashion):
    """A folder with the policy of the page, whose endpoint is away, and the models."""
    (tmp_path / "models").symlink_to(fashion.parent)
    (tmp_path / "service.toml").write_text(snippet("service.toml").replace(":8080", ":9").replace('"2s"', '"120s"'))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "pixels",
    [
        [[1, 2]],
        [[1, 2], [3]],
        [],
        [[0] * 28] * 27 + [[0] * 27],
        [[0] * 28] * 27 + [[256] * 28],
        [[-1] * 28] * 28,
        [[2**70] * 28] * 28,
    ],
    ids=["small", "ragged", "empty", "short row", "too large", "negative", "beyond 64 bits"],
)
def test_the_page_answers_what_is_no_image(desk, pixels):
    """By 422 and the model's input, whatever is wrong with the numbers."""
    pytest.importorskip("fastapi")
    names = {"__name__": "service"}
    exec(snippet("service.py"), names)
    with TestClient(names["app"]) as opened:
        reply = opened.post("/classify", json=pixels)
    assert (reply.status_code, reply.json()["code"], reply.json()["field"]) == (422, "bad_input", "image")


def test_flask(desk, fashion):
    """Whose handler of errors is the function as it is; what is a fault of the service is a 500 of Flask's."""
    pytest.importorskip("flask")
    names = {"np": np, "__name__": "__main__"}
    exec(snippet("flask_service.py"), names)
    images = np.load(fashion / "sample.npz")["images"]
    app, client = names["app"], names["app"].test_client()
    for path, error in (("/broken", ModelError(MARK)), ("/away", Held("busy", wait_s=5))):
        app.add_url_rule(path, path, raises(error), defaults={"_": 1})
    with names["router"]:
        assert client.post("/classify", json=images[0].tolist()).json["value"] == "Ankle boot"
        assert client.post("/classify", json=[[1, 2], [3]]).status_code == 422
        reply = client.get("/away")
        assert (reply.status_code, reply.headers["Retry-After"], reply.json["code"]) == (503, "5", "unavailable")
        assert client.get("/broken").status_code == 500
        assert MARK not in client.get("/broken").text
    assert client.post("/classify", json=images[0].tolist()).status_code == 503


@pytest.mark.matrix
def test_gradio(desk, fashion, tmp_path):
    """The page of the docs, asked by Gradio's own client."""
    pytest.importorskip("gradio")
    pytest.importorskip("PIL.Image").fromarray(np.load(fashion / "sample.npz")["images"][0]).save("boot.png")
    program = tmp_path / "page.py"
    program.write_text(
        "from edgeroute import Router\nrouter = Router.from_policy('service.toml')\n" + snippet("gradio_page.py")
        + "from gradio_client import Client, handle_file\n"
        "page.launch(prevent_thread_lock=True, quiet=True)\n"
        "print(Client(page.local_url, verbose=False).predict(handle_file('boot.png'), api_name='/label')['label'])\n"
        "page.close()\nrouter.close()\n"
    )  # fmt: skip
    environment = {**os.environ, "GRADIO_ANALYTICS_ENABLED": "False"}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False, timeout=4 * LONG
    )
    assert (done.returncode, done.stdout.splitlines()[:1]) == (0, ["Ankle boot"]), done.stderr
