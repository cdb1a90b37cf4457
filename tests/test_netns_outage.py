"""Outages of a real link: one machine in a namespace, its cloud in another, and the kernel's news of the cable between."""

import http.server
import json
import sys
import threading

import pytest
from netns import LONG, Namespace, needs_namespaces

pytestmark = [pytest.mark.slow, needs_namespaces]
PORT = 8123
REPLY = json.dumps({"value": "cloud", "confidence": 0.9}).encode()

DEVICE = """
import asyncio, json, sys, threading
from time import monotonic
from edgeroute import AsyncRouter, PlainJson, Router

kind, policy = json.loads(sys.argv[1])
cloud = PlainJson("http://{peer}:{port}/answer", timeout_s=600, retries=0, ping_path="/health")

def main(infer, router):
    guard = router.engine.snapshot.clouds[0].guard
    if policy.get("offline") == "queue":
        @router.on_late
        def late(answer):
            print(json.dumps(["late", answer.id, answer.value, answer.provisional["value"]]), flush=True)
    for line in sys.stdin:
        command, *rest = json.loads(line)
        if command == "infer":
            answer = infer(rest[0], deadline=rest[1])
            told = [answer.value, answer.source, answer.degraded, answer.final, answer.id, answer.reason_code]
        elif command == "state":
            told = [guard.state, guard.rules.breaker.opened]
        elif command == "for ever":  # the opening time is not what ends the outage
            with guard.lock:
                guard.rules.breaker.due = monotonic() + 1e6  # private: a pause as long as that is not waited for
            told = [guard.state]
        elif command == "closed":  # closed, or open again for seconds: the probe ran into its limit
            pause, until = threading.Event(), monotonic() + {long}
            while guard.state != "closed" and guard.rules.breaker.due > monotonic() + 1e5 and monotonic() < until:  # private: as above
                pause.wait(0.01)
            while guard.state == "half-open" and monotonic() < until:
                pause.wait(0.01)
            told = [guard.state]
        print(json.dumps([command, *told]), flush=True)

if kind == "threads":
    with Router(lambda x: ("edge", 0.1), cloud, threshold=0.5, **policy) as router:
        main(router.infer, router)
else:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    router = AsyncRouter(lambda x: ("edge", 0.1), cloud, threshold=0.5, **policy)

    def run(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result({long})

    main(lambda *args, **more: run(router.infer(*args, **more)), router)
    run(router.close())
    run(loop.shutdown_default_executor())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
"""


class Cloud(http.server.BaseHTTPRequestHandler):
    """Answers, and its server keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        """Is well."""
        self.server.asked.append((self.path, b""))
        self._say(b"{}")

    def do_POST(self):
        """Answers."""
        self.server.asked.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self._say(REPLY)

    def _say(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Says nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Its connections may be cut off in the middle of anything, or bring something when it is closed and the next test runs."""

    daemon_threads = True

    def __init__(self, *args):
        self.asked = []
        super().__init__(*args)

    def handle_error(self, request, client_address):
        """A connection that broke is what these tests are about."""


class Device:
    """The program in the namespace: told what to do, a line each."""

    def __init__(self, program):
        self._program, self.late = program, []

    def __call__(self, *command):
        """Has it done. -> what it says of it."""
        print(json.dumps(command), file=self._program.stdin, flush=True)
        while (told := self._told())[0] != command[0]:
            self.late.append(told)
        return told[1:]

    def _told(self):
        line = self._program.stdout.readline()
        assert line, "it has ended"
        return json.loads(line)

    def end(self):
        """Ends it; it has nothing to complain about."""
        _, said = self._program.communicate(timeout=LONG)
        assert (self._program.returncode, said.count("Traceback")) == (0, 0), said

    def await_late(self, count):
        """The late answers, once there are so many."""
        while len(self.late) < count:
            self.late.append(self._told())
        return self.late

    def edge(self, deadline):
        """Asks, and has the edge's answer. -> the reason's code."""
        value, source, degraded, _, _, reason = self("infer", "private-datum", deadline)
        assert (value, source, degraded) == ("edge", "edge", True), reason
        return reason

    def cloud(self):
        """Asks, and has the cloud's answer."""
        value, source, degraded, final, _, reason = self("infer", "private-datum", LONG)
        assert (value, source, degraded, final) == ("cloud", "cloud", False, True), reason


@pytest.fixture
def ns():
    with Namespace() as made:
        yield made


@pytest.fixture
def cloud(ns):
    """What the cloud at the peer was asked."""
    with ns.at_peer(lambda: Server((ns.peer, PORT), Cloud)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.asked
        server.shutdown()
        thread.join()


@pytest.fixture(params=["threads", "asyncio"])
def start(request, ns, cloud):
    """Starts the program with a policy, and ends it."""
    running = []

    def start(**policy):
        code = DEVICE.replace("{peer}", ns.peer).replace("{port}", str(PORT)).replace("{long}", str(LONG))
        argv = [sys.executable, "-W", "error", "-c", code, json.dumps([request.param, policy])]
        running.append(ns.popen(argv, stdin=-1, stdout=-1, stderr=-1, text=True))
        return Device(running[-1])

    yield start
    for program in running:
        with program:
            if program.poll() is None:
                program.communicate(timeout=LONG)


def of(asked, path):
    return [body for where, body in asked if where == path]


def connections(ns):
    """Those that the device has tried: their ports. The kernel may repeat what was sent on one, long after that was closed."""
    ns.packets()
    return {packet[20:24] for packet in ns.seen}


def outage(ns, device, cable):
    """The cable is pulled, or the peer says nothing any more: three faults, and from then on nothing is tried."""
    if cable:
        ns.down()
    else:
        ns.cut()
    faults = [device.edge(1.0) for _ in range(5)]
    assert device("state") == ["open", 1], faults
    assert faults[-1] == "breaker"
    assert device("for ever") == ["open"]


def back(ns, device):
    """Puts the cable back until the endpoint was found to be well: on a busy machine the kernel may drop packets for seconds."""
    for _ in range(5):
        ns.up()
        if device("closed") == ["closed"]:
            return
        ns.down()
        device("for ever")
    pytest.fail("five times the link came up, and no probe succeeded")


@pytest.mark.parametrize("cable", [True, False], ids=["the cable is pulled", "the peer is silent"])
def test_the_kernels_news_ends_an_outage(ns, cloud, start, cable):
    """As the link comes up the endpoint is tried once, with nothing of the user's, and the next input goes to it."""
    device = start()
    device.cloud()
    outage(ns, device, cable)
    if not cable:
        before = connections(ns)
        for _ in range(20):
            assert device.edge(LONG) == "breaker"
        assert connections(ns) == before
        ns.mend()
        ns.down()
    asked = len(cloud)
    assert device.edge(LONG) == "breaker"
    back(ns, device)
    device.cloud()
    probes = of(cloud[asked:], "/health")
    assert probes
    assert set(probes) == {b""}
    assert len(of(cloud, "/answer")) in {2, 3}, "the kernel may deliver what was given up on the connection that there was"
    assert all(b"private-datum" in body for body in of(cloud, "/answer"))
    device.end()


def test_a_link_without_an_endpoint_is_no_end(ns, cloud, start):
    """The cable is back, but the peer is silent still: it stays open, and nobody waits for it."""
    device = start()
    outage(ns, device, cable=True)
    ns.cut()
    ns.up()
    for _ in range(3):
        assert device.edge(LONG) == "breaker"
    ns.mend()
    assert of(cloud, "/answer") == []
    device.end()


def test_what_was_queued_is_delivered(ns, cloud, start, tmp_path):
    """Once the link is back, each once, and the program is told the cloud's answers."""
    device = start(offline="queue", state=str(tmp_path / "state"))
    ns.down()  # before there is a connection, whose packets would be on their way for as long as there is time
    queued = []
    for i in range(5):
        value, _, degraded, final, name, reason = device("infer", f"datum {i}", LONG)
        assert (value, degraded, final) == ("edge", True, False), reason
        queued.append(name)
    assert device("state") == ["open", 1]
    device("for ever")
    ns.up()
    late = device.await_late(5)
    assert sorted(told[1] for told in late) == sorted(queued)
    assert all(told[2:] == ["cloud", "edge"] for told in late)
    assert device("closed") == ["closed"]
    assert sorted(of(cloud, "/answer")) == [json.dumps({"input": f"datum {i}"}, separators=(",", ":")).encode() for i in range(5)]
    device.end()
