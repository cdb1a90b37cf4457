"""The cloud: an HTTP endpoint that reads with the larger models and table, on this machine or another. `python main.py cloud`."""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from reader import answer, upright
from words import CLOUD, Table

MOST_BYTES = 4 << 20
MOST_PIXELS = 4 << 20
"""Of a picture: in a few kilobytes there may be hundreds of millions, and each takes three bytes or more as it is read."""
MOST_SCANS = 100
"""Of a picture: each is decoded by itself, over all pixels, and a few bytes are enough for one. Photographs have some ten."""
LONGEST = 10
"""Times its width, or its height: of longer pictures the pipeline makes huge ones, or some without pixels."""


OWN = ("127.0.0.1", "localhost")
"""Names under which a cloud on loopback is asked: another would be a foreign page whose name leads here."""
_DECODING = threading.BoundedSemaphore(2)


class LargeReader:
    """PP-OCRv6 small, from the wheel of rapidocr 3: twice the size of the device's models. threads: for one run."""

    def __init__(self, threads: int = 1) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported
        from rapidocr import RapidOCR

        self._pipeline = RapidOCR(
            params={
                "Global.use_cls": True,
                "Global.log_level": "error",
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )
        steps = self._pipeline.run_ocr_steps

        def upright_steps(*given: Any) -> Any:
            detected, turned, lines, pieces = steps(*given)
            if detected.boxes is not None and lines.txts is not None:
                found = upright(detected.boxes, turned.cls_res, zip(lines.txts, lines.scores, strict=True))
                detected.boxes = np.array([box for box, _, _ in found])
            return detected, turned, lines, pieces

        self._pipeline.run_ocr_steps = upright_steps
        self._table, self._lock = Table(CLOUD, close=True), threading.Lock()  # a call changes the pipeline's settings

    def __call__(self, picture: Any) -> dict[str, Any]:
        """Reads a picture, uint8 [rows, columns, 3], red first."""
        with self._lock:
            found = self._pipeline(np.ascontiguousarray(picture[:, :, ::-1]), text_score=0)
        lines = () if found.txts is None else zip(found.boxes, found.txts, found.scores, strict=True)
        words, confidence = answer(lines, self._table)
        return {"words": words, "confidence": confidence}


def app(read: Any, hosts: Sequence[str] = OWN) -> Any:
    """Return the application: `POST /read` takes {"image": a JPEG file in base64}, and gives {"words": [...], "confidence": ...}.

    Bodies of more than 4 MiB get 413, no picture 400, and web pages 403. hosts: names under which it is asked; "*": any.
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def asked(request: Request) -> Response:
        if "origin" in request.headers:
            return JSONResponse({"error": "this is for devices, not for web pages"}, 403)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return JSONResponse({"error": "a body is application/json"}, 415)
        body = b""
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                return JSONResponse({"error": f"a body has at most {MOST_BYTES} bytes"}, 413)
        try:
            picture = await run_in_threadpool(decoded, body)
        except ValueError as e:
            return JSONResponse({"error": str(e)}, 400)
        return JSONResponse(await run_in_threadpool(read, picture))

    async def well(_: Request) -> Response:
        return Response("ok")

    guard = Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    return Starlette(routes=[Route("/read", asked, methods=["POST"]), Route("/health", well)], middleware=[guard])


def decoded(body: bytes) -> Any:
    """Return the picture of a request's body.

    Raises:
        ValueError: there is none in it, or one of too many pixels or scans or of such a shape that it cannot be read.
    """
    try:
        return picture_of(base64.b64decode(json.loads(body)["image"], validate=True))
    except (KeyError, TypeError, ValueError, RecursionError) as e:
        raise ValueError(str(e) if isinstance(e, TooLarge) else 'expected {"image": a JPEG file in base64}') from e


class TooLarge(ValueError):
    """A picture that is not read: of too many pixels or scans, or too long."""


def picture_of(file: bytes) -> Any:
    """Return the pixels of a JPEG file, uint8 [rows, columns, 3]. Two are decoded at a time; others wait.

    Raises:
        ValueError: it is none.
        TooLarge: it has too many pixels or scans, or such a shape that it cannot be read.
    """
    if file.count(b"\xff\xda") > MOST_SCANS:
        raise TooLarge(f"a picture has at most {MOST_SCANS} scans")
    try:
        with _DECODING, Image.open(BytesIO(file), formats=["JPEG"]) as image:
            short, long = sorted(image.size)
            if short * long <= MOST_PIXELS and long <= LONGEST * short:  # as its head says: nothing is decoded yet
                return np.asarray(image.convert("RGB"))
    except (OSError, Image.DecompressionBombError) as e:
        raise ValueError("no JPEG file") from e
    raise TooLarge(f"a picture has at most {MOST_PIXELS} pixels, and is at most {LONGEST} times as long as wide")


def port(text: str) -> int:
    """Return an argument that is a port, or 0 for any that is free.

    Raises:
        ValueError: it is none.
    """
    if not 0 <= int(text) < 1 << 16:
        raise ValueError
    return int(text)


def main(arguments: list[str]) -> None:
    """Listen, load the reader, print the URL, and serve until it is ended; with `--with-parent` until standard input ends.

    Raises:
        SystemExit: the port is taken.
    """
    import uvicorn

    parser = argparse.ArgumentParser(prog="main.py cloud", description="Reads text in pictures, for devices that ask.")
    parser.add_argument("--host", default="127.0.0.1", help="an address of this machine; it asks for no token")
    parser.add_argument("--port", type=port, default=8766, help="0: any that is free")
    parser.add_argument("--threads", type=int, default=1, help="for one picture")
    parser.add_argument("--with-parent", action="store_true", help="end once standard input ends, as it does with its parent")
    given = parser.parse_args(arguments)
    try:
        listener = socket.create_server((given.host, given.port))
    except OSError as e:
        raise SystemExit(f"the cloud cannot have {given.host}:{given.port}: {e.strerror}. --port 0 takes any that is free") from e
    here = given.host == "localhost" or given.host.startswith("127.")
    hosts = (*OWN, given.host) if here else ("*",)  # elsewhere it has names that are not known here
    server = uvicorn.Server(uvicorn.Config(app(LargeReader(given.threads), hosts), log_level="warning"))
    if given.with_parent:

        def wait() -> None:
            sys.stdin.read()
            server.should_exit = True

        threading.Thread(target=wait, daemon=True).start()
    try:
        print(f"http://{given.host}:{listener.getsockname()[1]}/read", flush=True)
    except BrokenPipeError:
        os._exit(1)  # who started it has ended meanwhile: there is nobody to be told, nor to serve
    server.run(sockets=[listener])


@contextlib.contextmanager
def started() -> Iterator[str]:
    """Start a cloud in a process of its own, and provide its URL.

    It ends with the block, 5 s later at most, or with this process.

    Raises:
        SystemExit: it did not start.
    """
    command = [sys.executable, str(Path(__file__).with_name("main.py")), "cloud", "--port", "0", "--with-parent"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, start_new_session=True, **pipes)  # noqa: S603 - this program; Ctrl+C is not for it
    assert child.stdin is not None, "a pipe"
    assert child.stdout is not None, "a pipe"
    try:
        url = child.stdout.readline().strip()
        if not url:
            raise SystemExit("the cloud did not start: `main.py cloud` says why")
        yield url
    finally:
        child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(5)
        child.kill()
        child.wait()
        child.stdout.close()
