"""Parts and protocols of other packages: by entry points, from a policy file and from Python."""

from __future__ import annotations

import logging

import pytest
from both import CALLS, ask, makes

from edgeroute import Options, Part, PolicyError, Router, RuntimeMissing
from edgeroute.policy import load, schema
from edgeroute.testing import CannedServer, fresh_runtimes, http_reply

pytestmark = pytest.mark.usefixtures("leaves_nothing")
make = makes(threshold=0.5)

MODULE = '''
import json
from pathlib import Path

from edgeroute.http.messages_addresses_and_secrets import Address, Call
from edgeroute import Part


class Watch(Part):
    """Writes down what it is told."""

    name = "watch"

    def __init__(self, word, times=1):
        self.word, self.times, self.told, self.runs = word, times, [], 0

    def check(self, snapshot):
        self.told.append("check")

    def opened(self, status):
        self.told.append("opened")
        assert not status().closed

    def began(self, request):
        self.told.append("began")

    def around(self, requests, proceed):
        results = yield from proceed(requests)
        for result in results:
            result.add_note(self.word * self.times, final=True)
        return results

    def ended(self, request, result):
        self.told.append(f"ended {result.value}")

    def stats(self):
        return {"runs": self.runs}

    def dump(self):
        return {"runs": self.runs + 1}

    def load(self, state):
        self.runs = state["runs"]

    def close(self):
        self.told.append("close")


class Shout:
    """Sends a text in capitals."""

    one_by_one, kind, labels = True, "answers", None

    def __init__(self, url, *, name, mark="!", **address):
        self.address, self.name, self.mark = Address(url, **address), name, mark
        self.where = self.address.origin + self.address.path

    def talk(self, inputs):
        answers = []
        for x in inputs:
            reply = yield self.encode([x])
            answers += self.decode(reply, 1)
        return answers

    def encode(self, inputs):
        body = json.dumps({"text": inputs[0].upper() + self.mark}).encode()
        return Call("POST", self.address.path, [("Content-Type", "application/json")], body)

    def decode(self, reply, count):
        return [(json.loads(bytes(reply.body))["said"], 0.9)]

    def ping(self):
        yield Call("GET", "/")

    def health(self):
        return self.ping()


def nothing(*given, **options):
    return 7
'''
POINTS = """
[edgeroute.parts]
watch = others:Watch
none = others:nothing
gone = others:Missing
away = another_module:Part
[edgeroute.protocols]
shout = others:Shout
none = others:nothing
"""


def dist(folder, name, points):
    """An installed package with entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a folder on sys.path, and what writes a policy beside it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "others.py").write_text(MODULE)
    dist(tmp_path, "others", POINTS)

    def policy(text):
        path = tmp_path / "policy.toml"
        path.write_text(text)
        return path

    with fresh_runtimes():
        yield policy
    monkeypatch.delitem(__import__("sys").modules, "others", raising=False)


def test_both_from_a_policy_file(package, tmp_path):
    """The part follows each call, and has its state in the folder; what the endpoint sends passes the ledger and the prices."""
    with CannedServer(http_reply(b'{"said": "HI"}')) as server:
        path = package(
            f'threshold = 0.5\nstate = "state"\n[cloud]\nprotocol = "shout"\nurl = "{server.url}/say"\nmark = "?"\n'
            'usd_per_call = 0.5\n[parts.watch]\nword = "seen"\ntimes = 2\n'
        )
        for runs in (0, 1):
            with Router.from_policy(path, edge=lambda _: ("edge", 0.1)) as router:
                watch = next(part for part in router.engine.parts.all if part.name == "watch")
                answer = router.infer("hello")
                stats = router.stats()
                assert (answer.value, answer.source, stats.usd_today) == ("HI", "cloud", 0.5 * (runs + 1))
                assert "seenseen" in answer.reason
                assert stats.parts == {"watch": {"runs": runs}}
                assert router.engine.snapshot.clouds[0].terms.usd_per_call == 0.5
                router.reload()
            assert watch.told == ["check", "opened", "began", "ended HI", "check", "close"]
        assert b'{"text": "HELLO?"}' in server.requests[0]
    assert len((tmp_path / "state" / "egress.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[parts.wach]\n", "parts.wach: no installed package has the entry point wach of edgeroute.parts: did you mean .watch"),
        ("[parts.watch]\n", "parts.watch: the entry point watch of edgeroute.parts, others:Watch, does not take what .*word"),
        (
            "[parts.gone]\n",
            "parts.gone: the entry point gone of edgeroute.parts is registered as others:Missing, and others has no",
        ),
        ("[parts.none]\n", "parts= takes objects of subclasses of edgeroute.Part, not int"),
        ("[parts]\nwatch = 3\n", "parts"),
        ('[cloud]\nprotocol = "shoot"\nurl = "http://127.0.0.1:9"\n', 'cloud.protocol: found "shoot": did you mean "shout"'),
        (
            '[cloud]\nprotocol = "shout"\nurl = "http://127.0.0.1:9"\nmarks = 1\n',
            "the entry point shout of edgeroute.protocols, others:Shout, does not take what it is given: .*marks",
        ),
        ('[cloud]\nprotocol = "shout"\nurl = "http://127.0.0.1:9"\ntimeout = 3\n', "cloud.timeout: expected a duration"),
        (
            '[cloud]\nprotocol = "none"\nurl = "http://127.0.0.1:9"\n',
            "the entry point none of edgeroute.protocols made no endpoint",
        ),
    ],
)
def test_what_is_wrong(package, text, says):
    """Is said with the file, the key and the entry point."""
    path = package("threshold = 0.5\n" + text)
    with pytest.raises(PolicyError, match=rf"policy\.toml: .*{says}" if not text.startswith("[parts.none") else says):
        Router.from_policy(path, edge=lambda _: ("edge", 0.9))


def test_what_cannot_be_imported(package, tmp_path):
    """Is missing, and which entry point needs it is said; two of one name are refused."""
    path = package("threshold = 0.5\n[parts.away]\n")
    with pytest.raises(
        RuntimeMissing, match=r"the entry point away of edgeroute\.parts, another_module:Part, cannot be imported"
    ):
        Router.from_policy(path, edge=lambda _: ("edge", 0.9))
    dist(tmp_path, "more", "[edgeroute.parts]\nwatch = more:Watch\n")
    with fresh_runtimes(), pytest.raises(PolicyError, match="2 installed packages have the entry point watch"):
        Router.from_policy(package("threshold = 0.5\n[parts.watch]\n"), edge=lambda _: ("edge", 0.9))


def test_the_schema_takes_it(package):
    """Editors do not complain about another package's protocol and parts, and still check the others' keys."""
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(schema()).is_valid
    cloud = {"protocol": "shout", "url": "http://127.0.0.1:9", "mark": "?"}
    assert check({"edge": {"path": "m.onnx"}, "cloud": cloud, "parts": {"watch": {"word": "seen"}}})
    assert not check({"cloud": {**cloud, "protocol": "json"}})
    assert (
        load(package('mode = "only_cloud"\n[cloud]\nprotocol = "shout"\nurl = "http://127.0.0.1:9"\n')).cloud[0].protocol
        == "shout"
    )


def _raises(event):
    def raises(*_):
        raise RuntimeError(event)

    return raises


class Fails(Part):
    """Raises at every event."""

    began, ended, left, opened, changed, stats, dump, close = map(
        _raises, ("began", "ended", "left", "opened", "changed", "stats", "dump", "close")
    )

    def __init__(self, when="before"):
        self.when = when

    def around(self, requests, proceed):
        """Raises before the walk, after it, or after a part of it; or returns too little."""
        if self.when == "before":
            raise RuntimeError("before")
        results = yield from proceed(requests[:1] if self.when == "half" else requests)
        if self.when == "short":
            return results[1:]
        raise RuntimeError("after")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("when", ["before", "after", "half", "short"])
def test_a_part_that_raises_loses_no_answer(make, call, when, caplog, tmp_path):
    """Each of its events is logged once, and all requests are walked once."""
    caplog.set_level(logging.ERROR, "edgeroute")
    asked = []
    router = make(lambda x: asked.append(x) or ("edge", 0.9), parts=[Fails(when)], state=tmp_path)
    for x in (1, 2):
        assert ask(router, call, x).value == "edge"
    assert asked == [1, 2]
    assert [answer.value for answer in router.infer_many([3, 4, 5])] == ["edge"] * 3
    assert sorted(asked[2:]) == [3, 4, 5]
    assert router.stats().parts == {"Fails": {}}
    events = [record.getMessage().partition(" failed:")[0] for record in caplog.records]
    assert events.count("the part Fails at around") == events.count("the part Fails at ended") == 1


def test_what_the_walk_raises_is_the_callers(make):
    """A stage lets it pass."""

    class Passes(Part):
        def around(self, requests, proceed):
            """As without it."""
            return (yield from proceed(requests))

    def edge(x):
        raise KeyError(x)

    router = make(edge, parts=[Passes()])
    with pytest.raises(KeyError):
        router.infer(1)


def test_a_part_that_answers_itself(make):
    """Its requests never reach the edge."""

    class First(Part):
        kept = None

        def around(self, requests, proceed):
            """Walks the first request alone."""
            if self.kept is None:
                self.kept = yield from proceed(requests)
            return self.kept

    asked = []
    router = make(lambda x: asked.append(x) or ("edge", 0.9), parts=[First()])
    assert router.infer(1) is router.infer(2)
    assert asked == [1]


def test_one_name_each():
    """Figures and state go by it."""
    with pytest.raises(PolicyError, match="two have the name 'Fails'"):
        Router(lambda _: ("edge", 0.9), threshold=0.5, options=Options(parts=[Fails(), Fails()]))
    with pytest.raises(PolicyError, match="not the class Fails"):
        Router(lambda _: ("edge", 0.9), threshold=0.5, options=Options(parts=[Fails]))


def test_check_refuses_a_policy():
    """As the router is made."""

    class Refuses(Part):
        def check(self, snapshot):
            """Refuses all of them."""
            raise PolicyError("no cloud is wanted here")

    with pytest.raises(PolicyError, match="no cloud is wanted here"):
        Router(lambda _: ("edge", 0.9), lambda _: ("cloud", 0.9), threshold=0.5, options=Options(parts=[Refuses()]))


def test_no_other_package_decides_what_is_sent():
    """The policy of a request is chosen by trials alone."""

    class Chooses(Part):
        def choose(self, snapshot, identity, x):
            """Another policy."""
            return snapshot, ""

    with pytest.raises(PolicyError, match="the part Chooses has a method choose, which decides what is sent"):
        Router(lambda _: ("edge", 0.9), threshold=0.5, options=Options(parts=[Chooses()]))


def test_a_part_that_does_nothing_costs_nothing(make):
    """A router calls no method that a part does not override, and keeps its short way; what a walk leaves comes before the answer."""

    class Walks(Part):
        def __init__(self):
            self.seen = []

        def walked(self, walks):
            """Writes down the ids of a call's rows."""
            self.seen.append([one.request.id for one in walks])

        def closing(self):
            """Writes down the end."""
            self.seen.append("closing")

    idle, walks = Part(), Walks()
    router = make(lambda _: ("edge", 0.9), parts=[idle, walks])
    assert router.engine.plain
    assert (router.engine.ended, router.engine.changed, router.engine.choosers) == ((), (), ())
    ids = [router.infer(1).id, *(answer.id for answer in router.infer_many([2, 3]))]
    router.close()
    assert walks.seen == [[ids[0]], ids[1:], "closing"]
