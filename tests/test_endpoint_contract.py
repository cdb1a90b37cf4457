"""The contract of endpoints as a suite: it passes on those that come with edgeroute, and says of a broken one what is wrong."""

# ruff: noqa: D101, D102 - what a broken endpoint does is in its name

from __future__ import annotations

import json
from itertools import count

import numpy as np
import pytest

from edgeroute import BadInput, BadReply, OpenAIChat, OpenInference, PlainJson, Secret
from edgeroute.http.messages_addresses_and_secrets import Address, Call, Reply
from edgeroute.testing import ContractBroken, endpoint_contract

KEY = "a-key-for-this-test"


def plain(call):
    """The server of `PlainJson`."""
    if call.method != "POST":
        return Reply(200, {}, b"")
    return Reply(200, {}, json.dumps({"value": json.loads(call.body)["input"], "confidence": 0.9}).encode())


def served(call):
    """One of the Open Inference Protocol, in JSON: twice the input."""
    if call.method == "GET":
        tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
        return Reply(200, {}, json.dumps({"name": "m", "inputs": [tensor], "outputs": [{**tensor, "name": "y"}]}).encode())
    (given,) = json.loads(call.body)["inputs"]
    output = {"name": "y", "datatype": "FP32", "shape": given["shape"], "data": [2 * x for x in given["data"]]}
    return Reply(200, {}, json.dumps({"model_name": "m", "outputs": [output]}).encode())


def chat(call):
    """One of OpenAI's API, without streams."""
    if call.method == "GET":
        return Reply(200, {}, json.dumps({"object": "list", "data": [{"id": "m"}]}).encode())
    said = json.loads(call.body)["messages"][-1]["content"]
    message = {"index": 0, "message": {"role": "assistant", "content": said.upper()}, "finish_reason": "stop"}
    whole = {"id": "1", "object": "chat.completion", "choices": [message]}
    return Reply(200, {"content-type": "application/json"}, json.dumps(whole).encode())


def test_those_that_come_with_edgeroute():
    """Each keeps it."""
    endpoint_contract(PlainJson("http://h/ask", api_key=KEY), ["a", "b"], plain)
    rows = [np.array([1, 2], np.float32), np.array([3, 4], np.float32)]
    bad = [np.zeros(3, np.float32), "text"]
    endpoint_contract(OpenInference("http://h/v2/models/m", binary=False, api_key=KEY), rows, served, bad=bad)
    endpoint_contract(OpenAIChat("http://h/v1", model="m", stream=False, api_key=KEY), ["a", "b"], chat, bad=[3, []])


class Sound:
    """A text is posted; the reply has a label and its probability."""

    one_by_one = True
    kind, labels, name = "answers", None, "sound"

    def __init__(self):
        self.address = Address("http://h/ask", api_key=KEY)
        self.where = "http://h/ask"

    def encode(self, inputs):
        return self.call(inputs[0]) if len(inputs) == 1 else None

    def call(self, x):
        if not isinstance(x, str):
            raise BadInput("a text, please")
        return Call("POST", "/ask", (), x.encode())

    def talk(self, inputs):
        answers = []
        for x in inputs:
            answers += self.decode((yield self.call(x)), 1)
        return answers

    def decode(self, reply, count):
        label, _, sure = reply.body.decode(errors="replace").partition(" ")
        number = sure.replace(".", "", 1)
        if not (label.isalpha() and number.isascii() and number.isdigit() and float(sure) <= 1):
            raise BadReply("no label and probability")
        return [(label, float(sure))]

    def ping(self):
        yield Call("GET", "/ask")

    def health(self):
        return self.ping()


class NoHealth(Sound):
    health = property()


class OddAddress(Sound):
    def __init__(self):
        super().__init__()
        self.address = "http://h/ask"


class Counts(Sound):
    """An id that is another each time."""

    asked = 0

    def call(self, x):
        self.asked += 1
        return super().call(x)._replace(headers=[("X-Id", str(self.asked))])


class Together(Sound):
    """A batch has one answer."""

    one_by_one = False

    def talk(self, inputs):
        answers = yield from super().talk(inputs[:1])
        return answers * len(inputs)


class Shares(Sound):
    """What belongs to a talk is kept in the endpoint."""

    def talk(self, inputs):
        self.reply = yield self.call(inputs[0])
        self.reply = yield self.call(inputs[0])
        yield Call("GET", "/ask")
        return self.decode(self.reply, 1)


class Other(Sound):
    """What is sent later is another request."""

    def encode(self, inputs):
        return self.call(inputs[0] + inputs[0])


class Trusts(Sound):
    """It takes every reply for a good one."""

    def decode(self, reply, count):
        label, sure = reply.body.decode().split(" ")
        return [(label, float(sure))]


class Chains(Sound):
    """Its BadReply holds an error that quotes the reply."""

    def decode(self, reply, count):
        try:
            return Trusts.decode(self, reply, count)
        except ValueError as e:
            raise BadReply("no label and probability") from e


class Quotes(Sound):
    """Its BadReply quotes the reply."""

    def decode(self, reply, count):
        try:
            return super().decode(reply, count)
        except BadReply:
            pass
        raise BadReply(f"no label and probability in {reply.body!r}")


class TakesAll(Sound):
    def call(self, x):
        return super().call(x if isinstance(x, str) else repr(type(x)))


class Breaks(Sound):
    def call(self, x):
        return Call("POST", "/ask", (), x.encode())


class Repeats(Sound):
    """Its probe is what was sent last."""

    last = b""

    def call(self, x):
        made = super().call(x)
        self.last = made.body
        return made

    def ping(self):
        yield Call("POST", "/ask", (), self.last)


class Twice(Sound):
    def health(self):
        yield from self.ping()
        yield from self.ping()


class Shows(Sound):
    def __repr__(self):
        return f"Shows({KEY})"


class Constant(Sound):
    """It does not read the reply."""

    def decode(self, reply, count):
        return [("good", 0.9)]


class Forgives(Sound):
    """What it cannot read has an answer as well."""

    def decode(self, reply, count):
        try:
            return super().decode(reply, count)
        except BadReply:
            return [("unknown", 0.0)]


class Wraps(Sound):
    """Its probe holds what was sent last."""

    last = b""

    def call(self, x):
        made = super().call(x)
        self.last = made.body
        return made

    def ping(self):
        yield Call("POST", "/ask", (), b'{"ping": "%s"}' % self.last)


class InPath(Wraps):
    def ping(self):
        yield Call("GET", "/ask?like=" + "".join(f"%{byte:02x}" for byte in self.last))


class ShowsHeader(Sound):
    def __init__(self):
        super().__init__()
        self.address = Address("http://h/ask", headers={"X-Key": Secret("secret-of-a-header")})

    def __repr__(self):
        return "ShowsHeader(secret-of-a-header)"


class Endless(Sound):
    def talk(self, inputs):
        while True:
            yield self.call(inputs[0])


def spoken(call):
    """Their server."""
    return Reply(200, {}, {b"fine": b"good .9", b"awful": b"bad .8"}.get(call.body, b"bad .5"))


def test_a_sound_one():
    """Keeps it."""
    endpoint_contract(Sound(), ["fine", "awful"], spoken, bad=[None])


class Named(Sound):
    """A header that says what it is, and no credential; a body that can be written to."""

    def __init__(self):
        super().__init__()
        self.address = Address("http://h/ask", headers={"X-Model": "sentiment-large", "authorization": f"Bearer {KEY}"})
        self.where = "http://h/ask (sentiment-large)"

    def call(self, x):
        made = super().call(x)
        return made._replace(body=bytearray(made.body))


class Recovers(Sound):
    """What it cannot read it asks for again."""

    def talk(self, inputs):
        (x,) = inputs
        reply = yield self.call(x)
        try:
            return self.decode(reply, 1)
        except BadReply:
            return self.decode((yield self.call(x)), 1)


class Says(Sound):
    """Any text is an answer."""

    def decode(self, reply, count):
        return [reply.body.decode(errors="backslashreplace")]


def test_sound_ones_that_look_odd():
    """Keep it: a header is no secret for its length, a reply may be asked for again, and any text may be an answer."""
    for sound in (Named(), Recovers(), Says()):
        endpoint_contract(sound, ["fine", "awful"], lambda call: spoken(call._replace(body=bytes(call.body))), bad=[None])


def test_a_server_that_says_the_same():
    """Or what differs by chance alone: then it is not known whether the replies are read."""
    endpoint_contract(Sound(), ["fine", "awful"], lambda _: Reply(200, {}, b"good .9"))
    ids = count()

    class Tagged(Sound):
        def decode(self, reply, count):
            return super().decode(reply._replace(body=reply.body.partition(b"#")[0]), count)

    endpoint_contract(Tagged(), ["fine", "awful"], lambda _: Reply(200, {}, b"good .9#%d" % next(ids)))


@pytest.mark.parametrize(
    ("broken", "check", "problem"),
    [
        (NoHealth, "members", "it lacks health"),
        (OddAddress, "members", "address is a str"),
        (Counts, "talk", "other calls of 'fine' the second time"),
        (Together, "batch", "one output per input"),
        (Shares, "two at once", "keep what belongs to a talk in it"),
        (Other, "encode and decode", "decode of the reply"),
        (Trusts, "damaged replies", "raised ValueError.*raise BadReply"),
        (Chains, "damaged replies", "an error that it is chained to, quotes the reply"),
        (Quotes, "damaged replies", "its BadReply, or"),
        (TakesAll, "bad input", "raise BadInput"),
        (Breaks, "bad input", "raised AttributeError.*raise BadInput"),
        (Repeats, "ping and health", "what an earlier request sent"),
        (Constant, "talk", "'good' at 0.9 to every sample, although the server's replies differ"),
        (Forgives, "damaged replies", "'unknown' at 0 to a reply of b'', and to one of b'<html>log in</html>'"),
        (Wraps, "ping and health", "what an earlier request sent"),
        (InPath, "ping and health", "what an earlier request sent"),
        (ShowsHeader, "secrets", "a credential is in"),
        (Twice, "ping and health", "health takes 2 calls"),
        (Shows, "secrets", "a credential is in"),
        (Endless, "talk", "goes on after 100 calls"),
    ],
)
def test_a_broken_one(broken, check, problem):
    """Is told by the check that is about it."""
    with pytest.raises(ContractBroken, match=problem) as told:
        endpoint_contract(broken(), ["fine", "awful"], spoken)
    assert check in {name for name, _ in told.value.problems}
    assert "contract of endpoints" in str(told.value)


def test_one_that_writes_to_its_input():
    """A caller's input is the caller's."""

    def encode(x):
        x["seen"] = True
        return {"input": "a"}

    with pytest.raises(ContractBroken, match="writes to its input"):
        endpoint_contract(PlainJson("http://h", encode=encode), [{"a": 1}, {"a": 2}], plain)


def test_a_secret_of_the_environment(monkeypatch):
    """Is looked for as well."""
    monkeypatch.setenv("KEY_OF_THIS_TEST", KEY)
    endpoint_contract(PlainJson("http://h/ask", api_key=Secret(env="KEY_OF_THIS_TEST")), ["a", "b"], plain)
    with pytest.raises(ValueError, match="two samples"):
        endpoint_contract(Sound(), ["fine"], spoken)
