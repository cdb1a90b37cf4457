"""Real catalogs: keys, a folder that a publisher made, a server that behaves badly, and a device's store."""

from __future__ import annotations

import json
import ssl
import threading
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import tiny

from edgeroute.catalog import Catalog
from edgeroute.tools.catalog_keys_and_publishing import keygen, publish

LABELS = ["a", "b", "c"]
FIRST = [[3, 0, 0], [0, 3, 0], [0, 0, 3], [0, 0, 0]]
SECOND = [[0, 0, 9], [9, 0, 0], [0, 9, 0], [0, 0, 0]]
"""Another model: what the first calls a, it calls c."""


class Publisher:
    """A publisher with keys, and a catalog in a folder."""

    def __init__(self, home: Path) -> None:
        self.home, self.keys, self.catalog = home, home / "keys", home / "catalog"
        self.root = self.catalog / "root.json"
        keygen(self.keys)

    def publish(self, version, weights=FIRST, *, name="doors", size=4, pad=0, **more):
        """Publishes a linear model, with a card. pad: bytes of a file beside it."""
        model = tiny.linear(self.home / f"{name}.onnx", size=size, weights=weights, card={"labels": LABELS})
        files = [model]
        if pad:
            (self.home / "beside.bin").write_bytes(bytes(range(256)) * (pad // 256))
            files.append(self.home / "beside.bin")
        return publish(self.catalog, name, version, files, keys=self.keys, **more)

    def device(self, where=None, **more):
        """A device's catalog, whose store is beside."""
        return Catalog(self.home / "store", self.catalog if where is None else where, root=self.root, **more)


class Web:
    """A server of a folder on this machine, over TLS if it has a certificate.

    Attributes:
        asked: (path, Range) of each request.
        folder: with the files.
        behave: function of the handler and the path, which has answered if it returns True.
    """

    def __init__(self, folder: Path, certificate=None) -> None:
        self.asked, self.behave, self.folder = [], lambda handler, path: False, folder
        web = self

        class Handler(SimpleHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def __init__(self, *args):
                super().__init__(*args, directory=str(folder))

            def log_message(self, *args):
                pass

            def do_GET(self):
                path = self.path.lstrip("/")
                web.asked.append((path, self.headers.get("Range")))
                if not web.behave(self, path):
                    web.send(self, folder / path)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *args: None  # a peer that goes away is what is tested
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        scheme = "http" if certificate is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_address[1]}"

    @staticmethod
    def send(handler, path, *, most=None, tag='"one"', ranges=True):
        """Answers with a file, or a part of it; breaks off after `most` bytes of it."""
        if not path.is_file():
            handler.send_error(404)
            return
        data, begin = path.read_bytes(), 0
        asked = handler.headers.get("Range")
        if ranges and asked and handler.headers.get("If-Range") == tag:
            begin = int(asked.removeprefix("bytes=").rstrip("-"))
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        handler.send_header("Content-Length", str(len(data) - begin))
        if tag:
            handler.send_header("ETag", tag)
        handler.end_headers()
        body = data[begin:]
        handler.wfile.write(body if most is None else body[:most])
        if most is not None and most < len(body):
            handler.wfile.flush()
            handler.close_connection = True

    @contextmanager
    def running(self):
        """Serves meanwhile."""
        thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            thread.join()
            self.server.server_close()


def edited(path: Path, change):
    """Changes the JSON of a file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
