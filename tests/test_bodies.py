"""Bodies of requests to HTTP APIs: templates of JSON, multipart and form fields; and inputs that cannot be encoded."""

from __future__ import annotations

import base64
import json
import math
import pathlib
from email import message_from_bytes
from urllib.parse import parse_qs

import numpy as np
import pytest
import routes
from both import CALLS, DOWN, GOOD, Tasks, Threads, ask, header, sure, unsure
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from edgeroute import BadInput, NoAnswer, Outbox, PlainJson, PolicyError, Router
from edgeroute.cloud import json_and_form_body_templates as encoding
from edgeroute.cloud.json_and_form_body_templates import MAX_NESTED, MAX_TEXT, MAX_VALUES, Body
from edgeroute.system.quotable_codes_and_secrets import quote
from edgeroute.testing import CannedServer, http_reply

pytestmark = pytest.mark.pure

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256))
PHOTO = {
    "jpeg": JPEG,
    "image": np.arange(6, dtype=np.uint8).reshape(2, 3),
    "lang": "de",
    "n": np.int64(3),
    "meta": {"tags": ["a", "b"]},
}


def body_of(request):
    return request.partition(b"\r\n\r\n")[2]


def parts_of(content_type, body):
    """(name, file name, content type, content) of each part, as Python's own parser of MIME reads them."""
    message = message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    return [
        (
            part.get_param("name", header="content-disposition"),
            part.get_filename(),
            part["Content-Type"],
            part.get_payload(decode=True),
        )
        for part in message.get_payload()
    ]


# ----------------------------------------------------------------------------------------------------------------- JSON


def filled(template, x=PHOTO, **options):
    kind, body = Body(template, **options)(x)
    assert kind == "application/json"
    return json.loads(body)


@pytest.mark.parametrize(
    ("template", "made"),
    [
        ({"requests": [{"image": {"content": "{input.jpeg|base64}"}}]}, {"requests": [{"image": {"content": base64.b64encode(JPEG).decode()}}]}),
        ({"a": "{input.image}", "b": "{ input.n }"}, {"a": [[0, 1, 2], [3, 4, 5]], "b": 3}),
        ({"url": "data:image/jpeg;base64,{input.jpeg|base64}"}, {"url": "data:image/jpeg;base64," + base64.b64encode(JPEG).decode()}),
        (["{input.meta.tags.1}", "{input.image.0}", 1, 2.5, True, None, "as it is"], ["b", [0, 1, 2], 1, 2.5, True, None, "as it is"]),
        ("{input.meta}", {"tags": ["a", "b"]}),
        ({"p": "{{{input.lang}}} {{x}} {input.n}"}, {"p": "{de} {x} 3"}),
        ({"{{k}}": "{input.meta|json}"}, {"{k}": '{"tags":["a","b"]}'}),
        ({"m": "{input.meta|json|base64}"}, {"m": base64.b64encode(b'{"tags":["a","b"]}').decode()}),
        ({"i": "{input.image|base64}"}, {"i": base64.b64encode(bytes(range(6))).decode()}),
        ({"t": "{input.lang|text}{input.lang}"}, {"t": "dede"}),
    ],
)  # fmt: skip
def test_a_template_is_filled(template, made):
    """A text that is one placeholder becomes the value; in a longer one the value is a part; two braces are one."""
    assert filled(template) == made


def test_without_a_template_the_input_is_sent():
    """Arrays and numbers of numpy's, anywhere in it, as lists and numbers."""
    x = {"a": [np.float32(0.5), {"b": np.zeros((1, 2))}], "c": (np.bool_(True), np.array([1, "x"], object)), "d": np.str_("e")}
    call = PlainJson("http://h/x").encode([x])
    assert json.loads(call.body) == {"input": {"a": [0.5, {"b": [[0.0, 0.0]]}], "c": [True, [1, "x"]], "d": "e"}}
    assert call.headers == [("Content-Type", "application/json")]


class Tensor:
    """As torch's: neither numpy's nor a sequence."""

    dtype = "float32"

    def tolist(self):
        """Its numbers."""
        return [1.0, 2.0]


class Endless(Tensor):
    """One whose list is another one, as of a mock."""

    def tolist(self):
        """No list."""
        return Endless()


def test_a_tensor_is_a_list():
    """Whatever has `dtype` and `tolist`."""
    assert json.loads(PlainJson("http://h/x").encode([{"t": Tensor()}]).body) == {"input": {"t": [1.0, 2.0]}}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(), part, max_size=4),
        max_leaves=10,
    )
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_value_becomes_a_part_of_the_body(value):
    """Quotes, braces, placeholders and keys in a value are its own: what is decoded is what was given, beside the rest."""
    template = {"given": "{input.x}", "again": ["{input.x}"], "constant": "c"}
    assert filled(template, {"x": value}) == {"given": value, "again": [value], "constant": "c"}
    if isinstance(value, str):
        assert filled({"t": "<{input.x}>", "constant": "c"}, {"x": value}) == {"t": f"<{value}>", "constant": "c"}


@pytest.mark.parametrize(
    ("template", "kind", "why"),
    [
        ("{imput.jpeg}", "json", r'there is no {imput.jpeg}: did you mean "input"'),
        ({"a": [{"b": "{input|bas64}"}]}, "json", r'body.a\[0\].b: .*there is no filter \'bas64\': did you mean "base64"'),
        ({"a": "{input.__class__}", "b": "{input[0]}"}, "json", "body.b: there is no {input.0.}: did you mean"),
        ("{input.a b}", "json", "after a dot comes a key of letters, digits, _ and -, or an index"),
        ("{input.}", "json", "after a dot comes a key"),
        ("{input!r}", "json", "there is no {input!r}"),
        ("{}", "json", "there is no {}"),
        ("{input", "json", "a single '{': a placeholder is {input}, a brace is written twice"),
        ("input} {input}", "json", "a single '}'"),
        ({"{input}": 1}, "json", "a key is text without placeholders"),
        ({1: "{input}"}, "json", "a key is text"),
        ({"a": 1}, "json", "the input is missing in it"),
        ("{{input}}", "json", "the input is missing in it"),
        ({"a": {1, 2}, "b": "{input}"}, "json", "body.a: a body takes what JSON has, not a value of the type set"),
        ({"a": float("nan"), "b": "{input}"}, "json", "body.a: a body takes what JSON has"),
        ({"a": b"{input}"}, "json", "body.a: a body takes what JSON has, not 7 bytes"),
        ("{input}\ud800", "json", "half of one"),
        ("{input}" + "x" * MAX_TEXT, "json", "characters"),
        (["{input}"] * MAX_VALUES, "json", "values"),
        ("{input}", "mulipart", 'there is no body_type \'mulipart\': did you mean "multipart"'),
        (["{input}"], "form", "a form body is a table of fields"),
        ("{input|json}", "multipart", "a multipart body is a table of fields"),
        ({"a": {"b": "{input}"}}, "form", "body.a: the value of a field is text, a number, true or false$"),
        ({"a": None, "b": "{input}"}, "multipart", "body.a: the value of a field is text, a number, true or false, or a file"),
        ({"a": [["{input}"]]}, "multipart", "body.a: the value of a field is"),
        ({"a\r\nEvil: 1": "{input}"}, "multipart", "a field's name is text on one line"),
        ({"": "{input}"}, "form", "a field's name is text on one line"),
        ({"a": {"file": "{input}", "filname": "x"}}, "multipart", 'a file has no \'filname\': did you mean "filename"'),
        ({"a": {"file": 3, "filename": "{input}"}}, "multipart", "body.a: a file takes its content"),
        ({"a": {"filename": "{input}"}}, "multipart", "body.a: a file takes its content"),
        ({"a": {"file": "{input}", "filename": "a\r\nb"}}, "multipart", "body.a.filename: expected text on one line"),
        ({"a": {"file": "{input}", "filename": ""}}, "multipart", "body.a.filename: expected text on one line"),
        ({"a": {"file": "{input}", "type": "image/jpeg\r\nEvil: 1"}}, "multipart", "body.a.type: expected a media type"),
        ({"a": {"file": "{input}", "type": "{input}"}}, "multipart", "body.a.type: expected a media type"),
    ],
)  # fmt: skip
def test_a_template_that_is_none_is_refused(template, kind, why):
    """When the endpoint is made, with the place in it and the nearest name."""
    with pytest.raises(PolicyError, match=why):
        PlainJson("http://h/x", body=template, body_type=kind)


def test_a_template_is_not_nested_without_end():
    """Nor built in itself."""
    deep = "{input}"
    for _ in range(MAX_NESTED + 1):
        deep = [deep]
    with pytest.raises(PolicyError, match="levels"):
        Body(deep)
    itself = ["{input}"]
    itself.append(itself)
    with pytest.raises(PolicyError, match="levels"):
        Body(itself)


def test_there_is_one_way_to_make_a_body():
    """Not two that would contradict each other."""
    for more in ({"body": "{input}"}, {"body_type": "form"}):
        with pytest.raises(PolicyError, match="encode= makes the whole body"):
            PlainJson("http://h/x", encode=lambda x: x, **more)
    with pytest.raises(PolicyError, match="headers has Content-Type, which a form body has of its own"):
        PlainJson("http://h/x", body_type="form", headers={"content-type": "text/plain"})


# ----------------------------------------------------------------------------------------------------------- multipart, form


def test_a_multipart_body():
    """Files with name and type, bytes as a file, constants, numbers, and several values of one field."""
    template = {
        "photo": {"file": "{input.jpeg}", "filename": 'a "b" {input.lang}.jpg', "type": "image/jpeg"},
        "raw": "{input.jpeg}",
        "lang": "{input.lang}",
        "n": "{input.n}",
        "tag": ["x", True, 2.5],
        "note": {"file": "text {input.lang}"},
    }
    kind, body = Body(template, "multipart")(PHOTO)
    assert parts_of(kind, body) == [
        ("photo", "a %22b%22 de.jpg", "image/jpeg", JPEG),
        ("raw", "raw", "application/octet-stream", JPEG),
        ("lang", None, None, b"de"),
        ("n", None, None, b"3"),
        ("tag", None, None, b"x"), ("tag", None, None, b"true"), ("tag", None, None, b"2.5"),
        ("note", "note", "application/octet-stream", b"text de"),
    ]  # fmt: skip


def test_a_boundary_is_in_no_value():
    """It is another one each time, so nobody can give a value that ends a part."""
    make = Body({"a": "{input}"}, "multipart")
    kinds = {make(b"x")[0] for _ in range(8)}
    assert len(kinds) == 8
    kind, body = make('--\r\nContent-Disposition: form-data; name="evil"\r\n\r\nx')
    ((name, _, _, content),) = parts_of(kind, body)
    assert (name, content) == ("a", b'--\r\nContent-Disposition: form-data; name="evil"\r\n\r\nx')


def test_the_fields_of_the_input():
    """Without a template the input's own keys are the fields; bytes are files in a multipart body."""
    kind, body = Body("{input}", "multipart")({"jpeg": JPEG, 'ä"': "ü", "n": 1})
    assert parts_of(kind, body)[0] == ("jpeg", "jpeg", "application/octet-stream", JPEG)
    assert 'name="ä%22"\r\n\r\nü\r\n'.encode() in body
    call = PlainJson("http://h/x", body_type="form").encode([{"a b": "x&y=z\r\n", "n": np.float32(0.5), "t": True}])
    assert call.headers == [("Content-Type", "application/x-www-form-urlencoded")]
    assert parse_qs(call.body.decode()) == {"a b": ["x&y=z\r\n"], "n": ["0.5"], "t": ["true"]}


@pytest.mark.parametrize(
    ("template", "kind", "x", "why"),
    [
        ("{input}", "form", [1], "takes a mapping, not a value of the type list"),
        ("{input}", "form", {"a\r\nb": 1}, "a key that cannot be a field's name"),
        ("{input}", "multipart", {1: 1}, "a key that cannot be a field's name"),
        ("{input}", "form", {"a": b"x"}, "a form takes text: write .base64 after it"),
        ("{input}", "multipart", {"a": {"file": "x"}}, "takes text or a number, not a value of the type dict: write .json"),
        ({"a": "{input}"}, "form", None, "takes text or a number, not a value of the type NoneType"),
        ({"a": "{input}"}, "form", np.zeros(2), r"not an array of float64 \[2\]"),
        ({"a": "{input}"}, "form", float("inf"), "takes text or a number"),
        ({"a": {"file": "{input.f}", "filename": "{input.n}"}}, "multipart", {"f": b"", "n": "a\r\nEvil: 1"}, "takes text on one line"),
        ({"a": {"file": "{input.f}", "filename": "{input.n}"}}, "multipart", {"f": b"", "n": 3}, "takes text on one line"),
        ({"a": {"file": "{input}"}}, "multipart", np.zeros(2), "takes bytes or text: encode it in a view"),
    ],
)  # fmt: skip
def test_a_value_that_no_field_takes(template, kind, x, why):
    """Is the caller's error, and says what to write."""
    with pytest.raises(BadInput, match=why):
        Body(template, kind)(x)


# ------------------------------------------------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize(
    ("template", "x", "why"),
    [
        ("{input.jpg}", PHOTO, 'input has no \'jpg\': did you mean "jpeg"'),
        ("{input.meta.tgs}", PHOTO, 'input.meta has no \'tgs\': did you mean "tags"'),
        ("{input.meta.tags.2}", PHOTO, "input.meta.tags has no item 2: there are 2"),
        ("{input." + "9" * 30 + "}", [1], "input has no item 9{20}: there are 1"),
        ("{input.0}", np.array(1), "input has no item 0: there are 0"),
        ("{input.a}", "text", "input is text of 4 characters, which has no 'a': give a mapping"),
        ("{input.real}", 1, "input is a value of the type int, which has no 'real'"),
        ("{input.a}", {}, "input has no 'a': it has no keys"),
        ("{input|base64}", PHOTO, "{input.base64} is a value of the type dict, and base64 takes bytes, text or an array"),
        ("{input.jpeg|text}", PHOTO, "260 bytes that are no text in UTF-8: write .base64"),
        ("x{input.jpeg}", PHOTO, "is a part of a text, which takes text or a number, not 260 bytes: write .base64"),
        ("x{input.meta}", PHOTO, "not a value of the type dict: write .json after it"),
        ("{input}", {"a": [b"x"]}, "the body has 1 bytes at 'a.0', which JSON does not have: give the endpoint a body"),
        ({"q": "{input}"}, pathlib.Path("secret.txt"), "a value of the type .*Path at 'q', .*give the file's content, as path.read_bytes"),
        ("{input}", Image.new("RGB", (2, 2)), "the body is a value of the type Image, .*give its pixels"),
        ("{input}", {"a": {1, 2}}, "a value of the type set at 'a', .*give the endpoint encode="),
        ("{input}", {(1, 2): 3}, "a key of the type tuple, and JSON's keys are text"),
        ("{input}", np.array(["2020-01-01"], "M8[D]"), "an array of datetime64"),
        ("{input}", np.zeros(2, complex), "an array of complex128"),
        ("{input}", Endless(), "a value of the type Endless"),
    ],
)  # fmt: skip
def test_an_input_that_does_not_fit(template, x, why):
    """It is the caller's error: the message says what there is, where, and what to write; and quotes nothing of it."""
    with pytest.raises(BadInput, match=why) as e:
        Body(template)(x)
    assert "secret" not in str(e.value)


@pytest.mark.parametrize("quick", [True, False], ids=["orjson", "json"])
@pytest.mark.parametrize(
    "x",
    [
        math.nan,
        -math.inf,
        np.float32("nan"),
        np.array(np.inf),
        np.array([1, np.nan]),
        [None, {"a": math.inf}],
        np.float16([np.inf]),
    ],
)
def test_what_json_would_write_as_null(monkeypatch, quick, x):
    """NaN, infinity and what is masked are not sent as something that the API takes for a missing number; null itself is."""
    if not quick:
        monkeypatch.setattr(encoding, "QUICK", False)
    for template in ("{input}", {"a": ["{input}"]}, {"a": "{input|json}"}):
        with pytest.raises(BadInput, match="NaN or infinity"):
            Body(template)(x)
    with pytest.raises(BadInput, match="a masked array"):
        encoding.to_json({"a": np.ma.array([1, 2], mask=[0, 1])})
    assert encoding.to_json({"a": [None, "null", np.ma.array([1.0])]}) == b'{"a":[null,"null",[1.0]]}'


@pytest.mark.parametrize("quick", [True, False], ids=["orjson", "json"])
def test_nothing_is_written_as_something_else(monkeypatch, quick):
    """Not even beside null, with which Python's encoder would write a path as text. An input in itself has an end, too."""
    if not quick:
        monkeypatch.setattr(encoding, "QUICK", False)
    with pytest.raises(BadInput, match=r"Path at 'b\.0'"):
        encoding.to_json({"a": None, "b": [pathlib.Path("x")], "c": 10**30})
    itself = []
    itself.append(itself)
    with pytest.raises(BadInput, match="nested too deeply for JSON, or in itself"):
        encoding.to_json(itself)
    assert json.loads(encoding.to_json({"n": 10**30, 1: np.float32(2)})) == {"n": 10**30, "1": 2.0}


@pytest.mark.parametrize(
    ("template", "x"),
    [
        ("{input|base64}", b"x" * 800),
        (["{input}"] * 30, "x" * 40),
        ({"a": "{input}"}, np.zeros(600)),
        ({"a": "{input|json}"}, [0] * 1000),
        ("{input}", {"a": ["x" * 500] * 3}),
    ],
)
def test_a_body_has_a_limit(template, x):
    """Before what is longer is built, where that can be known."""
    with pytest.raises(BadInput, match=r"would be .* bytes or more, and 1,000 are the most \(max_body\)"):
        Body(template, max_bytes=1000)(x)
    assert Body(template, max_bytes=1_000_000)(x)
    with pytest.raises(PolicyError, match="max_body_bytes"):
        PlainJson("http://h/x", max_body_bytes=0)


def test_what_is_too_long_is_not_built(monkeypatch):
    """Base64, texts and arrays are counted before the body is written: a template may have the input many times."""
    monkeypatch.setattr("edgeroute.cloud.json_and_form_body_templates.to_json", None)
    for template, x in (("{input|base64}", b"x" * 800), (["{input}"] * 30, "x" * 40), ({"a": "{input}"}, np.zeros(600))):
        with pytest.raises(BadInput, match=r"\(max_body\)"):
            Body(template, max_bytes=1000)(x)


@pytest.mark.parametrize("name", ["X\r\nEvil: 1", "X Y", "", "X:", "Ä"])
def test_a_header_has_a_name(name):
    """Nothing is sent with one that would end the header."""
    with pytest.raises(PolicyError, match="headers has an invalid name"):
        PlainJson("http://h/x", headers={name: "v"})


# ------------------------------------------------------------------------------------------------------------------- routed


UNFIT = [pathlib.Path("x"), Image.new("RGB", (2, 2)), {"a": b"x"}]


@pytest.mark.parametrize("make", [Threads, Tasks])
@pytest.mark.parametrize("call", CALLS)
def test_an_edge_answer_is_given_all_the_same(make, call):
    """The caller's error costs no answer that the edge has; the reason names it, and no fault of the cloud's."""
    with CannedServer(GOOD) as server, make(unsure, PlainJson(server.url), threshold=0.5) as router:
        for x in UNFIT * 2:
            answer = ask(router, call, x)
            assert (answer.value, answer.source, answer.degraded) == ("edge", "edge", True)
            assert (routes.code(answer), answer.reason_code) == ("bad_input", "bad_input")
        assert ask(router, call, "text").source == "cloud", "the breaker has counted no fault"
        assert len(server.requests) == 1


@pytest.mark.parametrize("make", [Threads, Tasks])
@pytest.mark.parametrize("call", CALLS)
def test_without_an_edge_answer_it_is_raised(make, call):
    """`BadInput`, and not that the cloud gave no answer: also where `offline` is "raise"."""
    with CannedServer(GOOD) as server:
        for options in ({"edge": None}, {"edge": unsure, "mode": "only_cloud"}, {"edge": unsure, "offline": "raise"}):
            with make(options.pop("edge"), PlainJson(server.url), threshold=0.5, **options) as router:
                for x in UNFIT:
                    with pytest.raises(BadInput, match="which JSON does not have"):
                        ask(router, call, x)
        with make(sure, PlainJson(server.url), threshold=0.5, offline="raise") as router:
            assert ask(router, call, UNFIT[0]).value == "edge", "where the cloud is not needed, nothing is wrong"
        assert server.requests == []


def test_where_another_target_failed_too_both_are_told():
    """A broken edge is not the caller's fault."""

    def broken(x):
        raise RuntimeError("no memory")

    with Router(broken, PlainJson("http://127.0.0.1:9/x"), threshold=0.5) as router, pytest.raises(NoAnswer) as e:
        router.infer(UNFIT[0])
    assert {leg: type(error) for leg, error in e.value.errors.items()} == {"edge": RuntimeError, "cloud": BadInput}


def test_the_next_cloud_may_take_it():
    """Each endpoint has an encoding of its own."""
    with CannedServer(GOOD) as server:
        second = PlainJson(server.url, body={"b": "{input|base64}"})
        with Router(unsure, [PlainJson("http://127.0.0.1:9/x"), second], threshold=0.5) as router:
            assert router.infer(b"bytes").leg == "cloud-2"


@pytest.mark.parametrize("make", [Threads, Tasks])
def test_a_row_that_cannot_be_encoded_fails_alone(make):
    """The others of its batch are answered by the cloud."""
    with CannedServer(GOOD) as server, make(unsure, PlainJson(server.url), threshold=0.5) as router:
        assert [answer.source for answer in router.infer_many(["a", UNFIT[0], "b"])] == ["cloud", "edge", "cloud"]


def test_it_is_not_queued(tmp_path):
    """It would fail again each time."""
    box = Outbox(tmp_path / "outbox.db")
    with Router(unsure, PlainJson("http://127.0.0.1:9/x", retries=0), threshold=0.5, offline="queue", outbox=box) as router:
        answer = router.infer(UNFIT[0])
        assert (answer.final, box.size("waiting")) == (True, 0)
        assert routes.queued(answer) == ""


@pytest.mark.parametrize("make", [Threads, Tasks])
@pytest.mark.parametrize("kind", ["json", "multipart", "form"])
def test_a_body_on_the_wire(make, kind):
    """With the credentials in the headers, and the id as the idempotency key."""
    template = {"model": "m", "photo": "{input.jpeg|base64}"} if kind != "multipart" else {"model": "m", "photo": "{input.jpeg}"}
    with CannedServer(http_reply(b'{"responses": [{"label": "cat", "score": 0.8}]}')) as server:
        cloud = PlainJson(
            f"{server.url}/v1/annotate", body=template, body_type=kind, value="responses.0.label", confidence="responses.0.score",
            headers={"X-Goog-Api-Key": "a-key"},
        )  # fmt: skip
        with make(unsure, cloud, threshold=0.5) as router:
            answer = router.infer(PHOTO)
    assert (answer.value, answer.confidence, answer.source) == ("cat", 0.8, "cloud")
    (request,) = server.requests
    assert (header(request, "X-Goog-Api-Key"), header(request, "Idempotency-Key")) == ("a-key", answer.id)
    body, encoded = body_of(request), base64.b64encode(JPEG).decode()
    if kind == "json":
        assert json.loads(body) == {"model": "m", "photo": encoded}
    elif kind == "form":
        assert parse_qs(body.decode()) == {"model": ["m"], "photo": [encoded]}
    else:
        assert [part[3] for part in parts_of(header(request, "Content-Type"), body)] == [b"m", JPEG]


def test_a_queued_body_is_sent_as_it_was_made(tmp_path):
    """Boundary and all."""
    replies = [DOWN, GOOD]
    with CannedServer(lambda _: replies.pop(0) if len(replies) > 1 else replies[0]) as server:
        cloud = PlainJson(server.url, body={"photo": "{input.jpeg}"}, body_type="multipart", retries=0)
        box = Outbox(tmp_path / "outbox.db", spread_s=0.0, rate_per_s=1e6)
        with Router(unsure, cloud, threshold=0.5, offline="queue", outbox=box) as router:
            answer = router.infer(PHOTO)
            server.wait_for(lambda: len(server.requests) > 1)
    first, second = server.requests[:2]
    assert answer.source == "edge"
    assert (body_of(first) and parts_of(header(first, "Content-Type"), body_of(first))) == parts_of(
        header(second, "Content-Type"), body_of(second)
    )
    assert header(second, "Idempotency-Key") == answer.id


def test_a_body_decides_an_answer():
    """So it is in the identity that cache keys have, and in the codec of a certificate."""
    templates = [(None, "json"), ("{input}", "json"), ({"a": "{input}"}, "json"), (None, "form"), (None, "multipart")]
    clouds = [PlainJson("http://h/x", body=body, body_type=kind) for body, kind in templates]
    for said in ([str(cloud.identity(str)) for cloud in clouds], [cloud.codec(str) for cloud in clouds]):
        assert len(set(said)) == len(templates)
    assert clouds[0].codec(str) == ""


# ------------------------------------------------------------------------------------------------------------------ quoting


def test_an_error_quotes_nothing_that_was_sent_in_another_writing():
    """A server that echoes what it decoded: base64, form fields or parts."""
    error = json.dumps({"error": {"code": "invalid_memory"}}).encode()
    assert quote(error, b'{"a": 1}', ()) == "invalid_memory"
    text = "the argument of memory"
    bodies = [
        Body({"a": "{input|base64}"})(text)[1], Body({"a": "x,{input|base64}"})(text)[1],
        Body({"a": "{input}"}, "form")("the%argument of+memory")[1], Body({"a": "{input}"}, "multipart")(text.encode())[1],
    ]  # fmt: skip
    for body in bodies:
        assert quote(error, body, ()) == "", body
