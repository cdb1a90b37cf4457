"""The reading of replies without I/O, by both parsers: framing, bounds, what two readers could take differently, any split."""

import contextlib
import subprocess
import sys

import h11
import pytest
from draws import draws
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgeroute import BadReply
from edgeroute.http import reply_parser as reading
from edgeroute.http.reply_parser import FRAMING, H11, Malformed, Reading

pytest.importorskip("httptools")
LIMIT = 1 << 16
reading.h11 = h11  # where there is httptools it is not imported

PARSERS = {"llhttp": reading.Llhttp, "h11": H11}
each = pytest.mark.parametrize("parser", PARSERS)


@contextlib.contextmanager
def using(parser):
    """Replies are read by this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "new_parser", PARSERS[parser])
        yield


def read(data, parser="llhttp", *, pieces=None, method="POST", limit=LIMIT):
    """What a connection that brings this, in pieces of these sizes, and then ends, comes to: a tuple, or the error's type."""
    got, at, sizes = Reading("http://a", method, limit), 0, iter(pieces or ())
    body = b""
    try:
        with using(parser):
            while not got.ended:
                most = got.most
                size = min(next(sizes, len(data)) or 1, most)
                got.feed(data[at : at + size])
                at = min(at + size, len(data))
                body += got.take()
    except (Malformed, BadReply) as e:
        return type(e)
    return got.status, got.headers, b"" if got.unread else body, got.reusable and at == len(data)


OK = b"HTTP/1.1 200 OK\r\n"
BAD = {
    "a length beside chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    "chunks beside a length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
    "a length twice": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde",
    "a list of lengths": OK + b"Content-Length: 5, 5\r\n\r\nabcde",
    "a signed length": OK + b"Content-Length: +5\r\n\r\nabcde",
    "a negative length": OK + b"Content-Length: -5\r\n\r\nabcde",
    "a length in other digits": OK + b"Content-Length: \xd9\xa5\r\n\r\nabcde",
    "a length without digits": OK + b"Content-Length:\r\n\r\nabcde",
    "a length of 2**64": OK + b"Content-Length: 18446744073709551617\r\n\r\na",
    "another coding": OK + b"Transfer-Encoding: gzip\r\n\r\nabcde",
    "two codings": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a coding with a tail": OK + b"Transfer-Encoding: chunked;x\r\n\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a continued line": OK + b"A: b\r\n Content-Length: 5\r\n\r\nabcde",
    "a continued length": OK + b"Content-Length:\r\n 5\r\n\r\nabcde",
    "a space before the colon": OK + b"Content-Length : 5\r\n\r\nabcde",
    "a space before the name": b"HTTP/1.1 200 OK\r\n Content-Length: 5\r\n\r\nabcde",
    "a name that is none": OK + b"Content\xffLength: 5\r\n\r\nabcde",
    "a header without a colon": OK + b"Content-Length\r\n\r\nabcde",
    "a bare line feed": OK + b"A: b\nContent-Length: 5\r\n\r\nabcde",
    "line feeds alone": b"HTTP/1.1 200 OK\nContent-Length: 5\n\nabcde",
    "a bare carriage return": OK + b"A: b\rContent-Length: 5\r\n\r\nabcde",
    "a NUL": OK + b"A: b\0\r\nContent-Length: 5\r\n\r\nabcde",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    "HTTP/0.9": b"abcde",
    "another protocol": b"RTSP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nabcde",
    "a status of two digits": b"HTTP/1.1 20 OK\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a line end first": b"\r\n" + OK + b"Content-Length: 5\r\n\r\nabcde",
    "an end of a head alone": b"\r\n\r\n",
    "nothing": b"",
    "interim ones alone": b"HTTP/1.1 100 Continue\r\n\r\n",
    "switched protocols": b"HTTP/1.1 101 -\r\nUpgrade: x\r\n\r\n",
    "a chunk's size that is none": OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n",
    "a chunk's size of 2**64": OK + b"Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\nabcde\r\n0\r\n\r\n",
    "a chunk without its end": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcdeX\r\n0\r\n\r\n",
    "a chunk's size ends in a line feed": OK + b"Transfer-Encoding: chunked\r\n\r\n5\nabcde\r\n0\r\n\r\n",
    "a body too short": OK + b"Content-Length: 5\r\n\r\nabcd",
    "no last chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
}  # fmt: skip
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GOOD = {
    "a length": (OK + b"Content-Length: 5\r\n\r\nabcde", b"abcde", True),
    "no content": (b"HTTP/1.1 204 -\r\n\r\n", b"", True),
    "a length of zero": (OK + b"Content-Length: 0\r\n\r\n", b"", True),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\na", b"a", True),
    "chunks": (CHUNKED + b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n", b"abcde", True),
    "chunks with extensions and trailers": (CHUNKED + b"2;a=b\r\nab\r\n0\r\nB: 9\r\nA: b\r\n\r\n", b"ab", True),
    "a coding in capitals": (OK + b"TRANSFER-ENCODING: Chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", b"a", True),
    "spaces about a value": (OK + b"Content-Length: \t5 \r\n\r\nabcde", b"abcde", True),
    "interim ones": (b"HTTP/1.1 100 -\r\n\r\nHTTP/1.1 103 -\r\nLink: a\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na", b"a", True),
    "to the end": (OK + b"\r\nabcde", b"abcde", False),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\na", b"a", False),
    "HTTP/1.0, kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\na", b"a", False),
    "closing": (OK + b"Connection: Close\r\nContent-Length: 1\r\n\r\na", b"a", False),
    "closing in a list": (OK + b"Connection: a, close\r\nContent-Length: 1\r\n\r\na", b"a", False),
    "closing in the second": (OK + b"Connection: close\r\nConnection: a\r\nContent-Length: 1\r\n\r\na", b"a", False),
    "more than its length": (OK + b"Content-Length: 1\r\n\r\nab", b"a", False),
    "more than its chunks": (CHUNKED + b"1\r\na\r\n0\r\n\r\nX", b"a", False),
    "a line end after its chunks": (CHUNKED + b"1\r\na\r\n0\r\n\r\n\r\n", b"a", False),
    "a carriage return after its chunks": (CHUNKED + b"1\r\na\r\n0\r\n\r\n\r", b"a", False),
    "another reply": (CHUNKED + b"1\r\na\r\n0\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nb", b"a", False),
    "closed after chunks, and more": (
        OK + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n" + OK, b"a", False,
    ),
    "no content with a body": (b"HTTP/1.1 204 -\r\nContent-Length: 1\r\n\r\na", b"", False),
    "not modified with chunks": (b"HTTP/1.1 304 -\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"", False),
}  # fmt: skip


@each
@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case, parser):
    """Whatever another reader of the connection could take for something else, or is no HTTP/1.1; whole or byte by byte."""
    assert read(BAD[case], parser) in (Malformed, BadReply)
    assert read(BAD[case], parser, pieces=[1] * len(BAD[case])) in (Malformed, BadReply)


@each
def test_a_switch_of_protocols_is_told(parser):
    """With the headers that go with it, too, as a server sends them that offers h2c."""
    for headers in (b"Upgrade: h2c\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n"):
        with using(parser), pytest.raises(Malformed, match="switched protocols"):
            Reading("http://a", "POST", LIMIT).feed(b"HTTP/1.1 101 -\r\n" + headers + b"\r\n")


@each
@pytest.mark.parametrize("case", GOOD)
def test_what_is_read(case, parser):
    """With its body, and whether the connection may be used again: whole or byte by byte."""
    data, body, reusable = GOOD[case]
    for pieces in (None, [1] * len(data)):
        _, _, got, again = read(data, parser, pieces=pieces)
        assert (got, again) == (body, reusable)


def test_a_reply_to_head_has_no_body():
    """Whatever length it says."""
    assert read(OK + b"Content-Length: 5\r\n\r\n", method="HEAD")[2:] == (b"", True)


@each
def test_a_head_is_bounded(parser):
    """Also where it never ends, comes byte by byte, or is of interim replies."""
    for data in (OK + b"A: b\r\n" * FRAMING, OK + b"A: " + b"b" * (3 * FRAMING), b"HTTP/1.1 100 -\r\n\r\n" * FRAMING):
        assert read(data, parser) in {BadReply, Malformed}
    data = OK + b"A: " + b"b" * (2 * FRAMING)
    assert read(data, parser, pieces=[100] * len(data)) in {BadReply, Malformed}


@each
def test_framing_is_bounded(parser):
    """Chunks of a byte, extensions and trailers without an end; a body in larger chunks is as long as it may be."""
    assert read(CHUNKED + b"1\r\na\r\n" * FRAMING, parser) is BadReply
    assert read(CHUNKED + b"1;" + b"a" * (3 * FRAMING), parser) in {BadReply, Malformed}
    assert read(CHUNKED + b"0\r\n" + b"A: b\r\n" * FRAMING, parser) in {BadReply, Malformed}
    body = b"400\r\n" + b"a" * 1024 + b"\r\n"
    assert len(read(CHUNKED + body * 1000 + b"0\r\n\r\n", parser, limit=1 << 20)[2]) == 1024 * 1000


@each
def test_a_body_is_bounded(parser):
    """A success is refused at the limit, and an error is left unread."""
    for framing in (b"Content-Length: 70000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n11170\r\n", b"\r\n"):
        assert read(OK + framing + bytes(70000), parser) is BadReply
        status, _, body, reusable = read(b"HTTP/1.1 500 -\r\n" + framing + bytes(70000), parser)
        assert (status, body, reusable) == (500, b"", False)


STATUS = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 200 OK", b"HTTP/1.0 200 ", b"HTTP/1.1 100 -", b"HTTP/1.1 204", b"HTTP/1.1 500 \xe9"]
)
LINES = st.sampled_from([
    b"Content-Length: 5", b"Content-Length: 05", b"content-length:5 ", b"Content-Length: 0", b"Content-Length: 5,5", b"Content-Length: ",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: CHUNKED ", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: \x0bchunked",
    b"Transfer-Encoding : chunked", b"Connection: close", b"Connection: keep-alive, Close", b"X: \xff\xfe", b"X:", b": x", b" folded", b"X: a\x00b",
    b"X: a\x7fb", b"Upgrade: h2c", b"X: \t y \t", b'"X": y', b"X", b"Content-Encoding: identity",
])  # fmt: skip
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n"])
BODIES = st.sampled_from([
    b"abcde", b"5\r\nabcde\r\n0\r\n\r\n", b"05\r\nabcde\r\n00\r\n\r\n", b'5;x="y"\r\nabcde\r\n0\r\n\r\n', b"5 \r\nabcde\r\n0\r\n\r\n",
    b"0\r\nT: u\r\n\r\n", b"0\r\nT : u\r\n\r\n", b"0\r\nT: u\n\r\n", b"0\r\n\n", b"5\r\nabcde0\r\n\r\n", b"5\r\nabcde\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    b"-5\r\nabcde\r\n0\r\n\r\n", b"0x5\r\nabcde\r\n0\r\n\r\n", b"5\r\nabcde\n0\r\n\r\n", b"", b"ab", b"5\r\nabc",
])  # fmt: skip


@st.composite
def replies(draw):
    """Replies about what a reader may take or refuse: most are close to one that is right."""
    parts = [draw(STATUS), draw(ENDS)]
    for line in draw(st.lists(LINES, max_size=3)):
        parts += [line, draw(ENDS)]
    data = b"".join(parts) + b"\r\n" + draw(BODIES)
    if draw(st.booleans()):
        data = bytearray(data)
        at = draw(st.integers(0, len(data) - 1))
        data[at] = draw(st.integers(0, 255))
    return bytes(data)


@settings(max_examples=draws(1500), deadline=None)
@given(replies(), st.lists(st.integers(1, 40), max_size=30))
@example(CHUNKED + b"5\r\nabcde\r\n0\r\n\r\n\r\n", [])
def test_both_parsers_and_any_split_read_the_same(data, pieces):
    """What both take they take for the same, status, headers, body and what is left over; and so in any pieces."""
    one, other = (read(data, parser) for parser in PARSERS)
    if isinstance(one, tuple) and isinstance(other, tuple):
        assert one == other
    for parser, whole in (("llhttp", one), ("h11", other)):
        split = read(data, parser, pieces=pieces)
        assert isinstance(whole, tuple) == isinstance(split, tuple)
        assert whole == split or not isinstance(whole, tuple)


@settings(max_examples=draws(300), deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", OK, CHUNKED, b"HTTP/1.1 "]))
def test_any_bytes(data, before):
    """Are read or refused, by either, and nothing else is raised."""
    for parser in PARSERS:
        read(before + data, parser)


def test_without_httptools():
    """Where it has no wheel, h11 reads: chosen by what can be imported. With it, h11 is not imported."""
    code = """
import sys
if sys.argv[1] == "h11":
    sys.modules["httptools"] = None
from edgeroute import PlainJson, Router
from edgeroute.testing import CannedServer, http_reply
with CannedServer(http_reply(b'{"value": "cloud"}')) as server:
    with Router(lambda x: ("edge", 0.1), PlainJson(server.url), threshold=0.5) as router:
        assert router.infer(1).value == "cloud"
from edgeroute.http import reply_parser as reading
assert reading.new_parser.__name__.lower() == sys.argv[1]
assert ("h11" in sys.modules) == (sys.argv[1] == "h11")
"""
    for parser in ("h11", "llhttp"):
        done = subprocess.run([sys.executable, "-c", code, parser], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
