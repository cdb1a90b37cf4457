"""Nothing leaves a device that may send nothing: packets counted outside of it, by the kernel."""

import http.server
import json
import socket
import sys
import threading

import pytest
from netns import LONG, Namespace, needs_namespaces

pytestmark = [pytest.mark.slow, needs_namespaces]
CLOUD = f"http://{Namespace.peer}:8123/answer"
REPLY = json.dumps({"value": "cloud", "confidence": 0.9}).encode()

ASK = """
import json, sys
import numpy as np
from edgeroute import PlainJson, Router

edge, cloud, mode, count = json.loads(sys.argv[1])
if edge is None:
    edge, inputs = (lambda x: ("edge", 0.1)), [[i] for i in range(count)]
else:
    inputs = np.random.default_rng(1).integers(0, 256, (count, 28, 28), np.uint8)
if cloud is not None and cloud.endswith("/answer"):
    cloud = PlainJson(cloud)
with Router(edge=edge, cloud=cloud, threshold=1.0, mode=mode) as router:
    answers = [router.infer(x) for x in inputs]
    print(json.dumps([len(answers), sum(a.degraded for a in answers), str(answers[-1].value)]))
"""


def ask(ns, edge, cloud, mode, count=200):
    """200 inputs of which the edge is sure of none. -> how many answers, how many of them degraded, and the last one."""
    environment = {"PATH": "/usr/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    argv = [sys.executable, "-c", ASK, json.dumps([edge and str(edge), cloud, mode, count])]
    return json.loads(ns.run(argv, env=environment, cwd="/", timeout=10 * LONG))


class Cloud(http.server.BaseHTTPRequestHandler):
    """Answers, and counts."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    asked = 0

    def do_POST(self):
        """Answers."""
        self.rfile.read(int(self.headers["Content-Length"]))
        type(self).asked += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(REPLY)))
        self.end_headers()
        self.wfile.write(REPLY)

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def ns():
    with Namespace() as made:
        yield made


@pytest.fixture
def cloud(ns):
    """A cloud on the peer."""
    Cloud.asked = 0
    with ns.at_peer(lambda: http.server.ThreadingHTTPServer((ns.peer, 8123), Cloud)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Cloud
        server.shutdown()
        thread.join()


def test_every_packet_is_seen(ns):
    """A name that is looked up, a connection that is tried and a datagram leave one packet each, at the least."""
    assert ns.packets() == 0
    tries = {
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))": b"\xc0\x00\x02\x01",
        "socket.create_connection(('192.0.2.7', 80), 0.1)": b"\xc0\x00\x02\x07",
        "socket.getaddrinfo('cloud.example', 80)": b"\x05cloud\x07example",
    }
    for code, sign in tries.items():
        before = ns.packets()
        ns.run([sys.executable, "-c", f"import contextlib, socket\nwith contextlib.suppress(OSError): {code}"])
        assert ns.packets() > before
        assert any(sign in packet for packet in ns.seen[before:])


@pytest.mark.parametrize("cloud", [f"http://{Namespace.peer}:8123/v2/models/m", "http://cloud.example/v2/models/m", CLOUD, None])
def test_only_edge_sends_nothing(ns, cloud):
    """200 unsure inputs and a cloud that is configured by address or by name, or none: not one packet."""
    count, _, value = ask(ns, None, cloud, "only_edge")
    assert (count, value) == (200, "edge")
    assert ns.packets() == 0


@pytest.mark.parametrize("cloud", ["http://cloud.example/v2/models/m", None])
def test_only_edge_with_a_real_model_sends_nothing(ns, fashion, cloud):
    """The same with the shipped model, so with all that ONNX Runtime does by itself."""
    assert ask(ns, fashion / "edge.int8.onnx", cloud, "only_edge")[0] == 200
    assert ns.packets() == 0


def test_prefer_edge_sends(ns, cloud):
    """The control: the same inputs in the other mode, and the cloud is asked for each."""
    assert ask(ns, None, CLOUD, "prefer_edge") == [200, 0, "cloud"]
    assert ns.packets() > 200
    assert cloud.asked == 200


def test_prefer_edge_looks_up_names(ns):
    """The control for names: the lookup of the cloud's is seen, and the edge's answers stand."""
    assert ask(ns, None, "http://cloud.example/v2/models/m", "prefer_edge", 1) == [1, 1, "edge"]
    assert ns.packets() > 0
    assert all(b"\x05cloud\x07example" in packet for packet in ns.seen)


def test_a_cut_is_silent(ns):
    """Behind a cut nothing comes and nobody says so; mended, a new connection works, and with the cable out there is no way."""
    connect = f"""
import socket, sys
try:
    socket.create_connection(("{ns.peer}", 8123), float(sys.argv[1])).close()
    print("connected")
except OSError as e:
    print(type(e).__name__, e.errno)
"""

    def tried(timeout_s=LONG):
        return ns.run([sys.executable, "-c", connect, str(timeout_s)])

    with ns.at_peer(lambda: socket.create_server((ns.peer, 8123))):
        assert tried() == "connected\n"
        ns.cut()
        assert tried(0.2) == "TimeoutError None\n"
        ns.mend()
        assert tried() == "connected\n"
        ns.down()
        assert tried() == "OSError 101\n"
        ns.up()
        assert tried() == "connected\n"
