"""A page that refuses to be framed, passed on so that the show can frame it: the gateway's and the dashboard's."""

from __future__ import annotations

import re
import threading
from contextlib import closing, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

LONG_S = 60.0
"""In so many seconds a request, and a piece of a reply, has to come."""
MOST_BYTES = 4 << 20
"""Of the body of a request."""


class Window(ThreadingHTTPServer):
    """Server that passes requests on to a page which refuses to be framed, so that the show alone can frame it.

    Close it once the page has ended: its port may be another program's then.

    Args:
        url: of the page.
        show: the address of the show.
    """

    daemon_threads = True

    def __init__(self, url: str, show: str) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.page, self.show = urlsplit(url), show
        self.url = self.page._replace(netloc=f"127.0.0.1:{self.server_port}").geturl()
        self.closed = False
        threading.Thread(target=self.serve_forever, args=[0.1], daemon=True).start()

    def close(self) -> None:
        """End it: what is asked from now on, or is not passed on yet, is not passed on. A second time is fine."""
        self.closed = True
        self.shutdown()
        self.server_close()


class Passing(BaseHTTPRequestHandler):
    """Passes a request on as one of the page's own, and its reply back, piece by piece."""

    server: Window
    timeout = LONG_S

    def do_GET(self) -> None:
        """Pass the request on and the reply back, if it is for the frame or from it; else reply 403, or 4xx to a wrong body.

        The reply's policy then lets the show frame the page.
        """
        own, there = f"http://127.0.0.1:{self.server.server_port}", self.server.page.netloc
        opened = (self.command, self.path, self.headers["Sec-Fetch-Mode"]) == ("GET", "/", "navigate")  # without any data
        if f"http://{self.headers['Host']}" != own or not (opened or self.headers["Sec-Fetch-Site"] == "same-origin"):
            self.send_error(403)
            return
        lengths = self.headers.get_all("Content-Length", ["0"])
        if "Transfer-Encoding" in self.headers:
            self.send_error(411)
            return
        if len(lengths) != 1 or not re.fullmatch("[0-9]{1,9}", lengths[0]):
            self.send_error(400)
            return
        if int(lengths[0]) > MOST_BYTES:
            self.send_error(413)
            return
        body = self.rfile.read(int(lengths[0]))
        if self.server.closed:
            return
        passed = {
            name: value for name, value in self.headers.items() if not name.lower().startswith(("sec-", "accept-enc", "conn"))
        }
        passed |= {"Host": there} | ({"Origin": f"http://{there}"} if "Origin" in self.headers else {})
        with suppress(ConnectionError), closing(HTTPConnection(there, timeout=LONG_S)) as page:  # either may have gone
            page.request(self.command, self.path, body, passed)
            reply = page.getresponse()
            self.send_response_only(reply.status)
            for name, value in reply.headers.items():
                if name.lower() not in {"transfer-encoding", "connection"}:
                    self.send_header(name, value.replace("frame-ancestors 'none'", f"frame-ancestors {self.server.show}"))
            self.end_headers()
            while piece := reply.read1():
                self.wfile.write(piece)

    def do_POST(self) -> None:
        """Pass it on likewise."""
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Print nothing of a request."""
