"""What a server says, and what a key or an input looks like, in every place where texts go: none of it where it must not be."""

import base64
import contextlib
import copy
import json
import os
import pickle
import threading
import traceback

import pytest
import routes
from both import CALLS, Tasks, Threads, ask, header, unsure
from commands import cli

from edgeroute import Cache, CloudError, EdgerouteError, OpenInference, Outbox, PlainJson, Router, Secret
from edgeroute.http.messages_addresses_and_secrets import Address
from edgeroute.stores.sqlite_file_and_key_values import Database
from edgeroute.system.json_codec_and_short_repr import to_json_types
from edgeroute.system.quotable_codes_and_secrets import MOST_COMPARED, MOST_READ, quote
from edgeroute.system.sanitised_logs_and_contained_errors import log
from edgeroute.testing import CannedServer, http_reply

LABELS = ["cat", "dog"]
KEY = "sk-CANARY-0123456789"
INPUT = "patient John Doe, born 19571124"
JSON = [("Content-Type", "application/json")]


pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]


@pytest.fixture(params=[Threads, Tasks], ids=["threads", "asyncio"])
def make(request):
    """Makes routers of either kind, and closes them."""
    with contextlib.ExitStack() as stack:
        yield lambda cloud, **policy: stack.enter_context(request.param(unsure, cloud, threshold=0.5, **policy))


def error(status, said):
    return http_reply(json.dumps(said).encode(), status=status, headers=JSON)


def auth(request):
    return f"Authorization: {header(request, 'authorization')}"


def body(request):
    return request.partition(b"\r\n\r\n")[2]


ECHOES = {
    "the input, as FastAPI": lambda r: error(422, {"detail": [{"type": "value_error", "msg": "no", "input": json.loads(body(r))}]}),
    "the input in a message": lambda r: error(422, {"detail": [{"msg": f"{json.loads(body(r))['input']} is not valid"}]}),
    "the body": lambda r: error(500, {"error": "cannot handle " + body(r).decode()}),
    "the key": lambda r: error(401, {"error": {"message": "Incorrect API key: " + auth(r), "code": auth(r).split()[-1]}}),
    "the key in pieces": lambda r: error(500, {"error": " ".join(auth(r))}),
    "the key in small letters": lambda r: error(500, {"error": auth(r).lower()}),
    "the key in base64": lambda r: error(500, {"error": base64.b64encode(auth(r).encode()).decode()}),
    "a header line that is none": lambda r: b"HTTP/1.1 200 OK\r\n" + auth(r).replace(":", "").encode() + b"\r\n\r\n",
    "a status line that is none": lambda r: auth(r).encode() + b"\r\n\r\n",
    "a header": lambda r: http_reply(b"oops", status=500, headers=[("X-Echo", auth(r))]),
    "an encoding": lambda r: http_reply(b"{}", headers=[("Content-Encoding", auth(r).split()[-1])]),
    "keys": lambda r: http_reply(json.dumps({auth(r): 1, json.loads(body(r))["input"]: 1}).encode()),
    "a redirect": lambda r: http_reply(status=307, headers=[("Location", "/" + auth(r).split()[-1])]),
    "escapes": lambda r: error(500, {"error": f"x\n2026-01-01 {INPUT} {KEY}\x1b[2J\x1b]0;y\x07"}),
}  # fmt: skip


def assert_clean(name, text, inputs=("John", "Doe", "19571124")):
    """No key and no input, whole or re-encoded, and no escapes."""
    squeezed = "".join(text.split()).lower()
    encoded = base64.b64encode(f"Authorization: Bearer {KEY}".encode()).decode().lower()
    for secret in (KEY, encoded, *inputs):
        assert secret.lower() not in squeezed, (name, secret)
    assert "\x1b" not in text, name
    assert "\n2026" not in text, name


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
@pytest.mark.parametrize("echo", ECHOES)
def test_what_a_server_echoes_is_nowhere(echo, level, make, tmp_path, caplog):
    """Not in reasons, traces, exceptions, the log, the files of the state, or the command line; at level DEBUG the log has inputs."""
    caplog.set_level(level)
    state = tmp_path / "state"
    with CannedServer(ECHOES[echo], close=True) as server:
        cloud = PlainJson(server.url, api_key=Secret(KEY), retries=0)
        router = make(cloud, offline="queue", state=state, trace=tmp_path / "trace.jsonl", cache=Cache(disk=state / "cache.db"))
        texts = {}
        with pytest.raises(EdgerouteError) as caught:  # first, while the breaker is closed
            router.infer(INPUT, mode="only_cloud")
        for call in CALLS:
            answer = ask(router, call, INPUT)
            assert answer.value == "edge"
            texts |= {f"{call}: {i}": text for i, text in enumerate([answer.reason, repr(answer), json.dumps(answer.trace)])}
        texts["exception"] = "".join(traceback.format_exception(caught.value))
        texts["outbox"] = repr([entry.error for entry in router.engine.queue.outbox.list()])
    router.close()
    assert_clean("log", caplog.text, *([()] if level == "DEBUG" else []))
    assert ("is not valid" in caplog.text) == (level == "DEBUG" and echo == "the input in a message")
    texts["trace"] = (tmp_path / "trace.jsonl").read_text()
    for command in ("status", "egress", "outbox list"):
        texts[command] = "".join(cli(*command.split(), "--state", state)[1:])
    for name, text in texts.items():
        assert_clean(name, text)
    assert all(len(text) < 2000 for name, text in texts.items() if ": 0" in name)
    for path in state.iterdir():
        assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("wrong", [b"HTTP/1.1 200 OK\r\nno colon " + KEY.encode() + b"\r\n\r\n", KEY.encode() + b"\r\n\r\n"])
def test_what_is_not_http_is_named_and_not_quoted(wrong, make):
    """Its kind alone."""
    with CannedServer(wrong, close=True) as server:
        assert "illegal" in (reason := make(PlainJson(server.url, retries=0)).infer(1).reason)
    assert KEY not in reason


class Careless(PlainJson):
    """A protocol of one's own, which quotes what it gets."""

    def decode(self, reply, count):
        """Says what came."""
        raise CloudError(f"{count} gave {bytes(reply.body).decode()}\x1b[2J" + "x" * 1000)


def test_an_endpoint_that_quotes_its_replies_shows_no_key(make):
    """Its own errors go through the same hands: keys are masked, escapes lost, and there is a limit."""
    with CannedServer(lambda request: http_reply(auth(request).upper().encode())) as server:
        answer = make(Careless(server.url, api_key=KEY)).infer(1)
    error = routes.error(answer).removeprefix("CloudError: ")
    assert error.startswith("1 gave AUTHORIZATION: BEARER ***\ufffd[2Jxxx")
    assert error in answer.reason
    assert len(answer.reason) < 500


def test_of_a_function_that_fails_the_reason_has_the_type(make):
    """Its text may quote the input; one that cannot even be formatted costs nothing."""

    class Odd(Exception):
        def __str__(self):
            raise ValueError

    def fails(x):
        raise Odd if x else RuntimeError("a\nb\x1b[2J" + "x" * 1000)

    router = make(fails)
    answer = router.infer(0)
    assert routes.error(answer) == "RuntimeError"
    assert "xxx" not in answer.reason + str(answer.trace)
    answer = router.infer(1)
    assert "Odd" in answer.reason
    assert json.dumps(answer.trace)


@pytest.mark.parametrize(
    ("said", "sent", "quoted"),
    [
        ({"error": {"code": "rate_limit_exceeded", "message": f"{INPUT} is too much"}}, {"input": INPUT}, "rate_limit_exceeded"),
        ({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow down"}}, {}, "RESOURCE_EXHAUSTED"),
        ({"error": {"type": "invalid_request_error", "code": "model_not_found"}}, {"model": "m"}, "model_not_found, invalid_request_error"),
        ({"detail": [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": 1}]}, {}, "missing"),
        ({"error": "InvalidArgument"}, {}, "InvalidArgument"),
        ({"error": "HTTPError"}, {"input": "no"}, "HTTPError"),
        ({"error": "invalid_grant"}, {}, "invalid_grant"),
        ({"error": "model is not loaded"}, {"input": "dog"}, ""),
        ({"detail": "Input should be a valid string"}, {"input": 7}, ""),
        ({"title": "Too Many Requests", "status": 429, "type": "about:blank"}, {}, ""),
        ({"error": "unknown_user_JaneMiller"}, {"first": "jane", "last": "miller"}, ""),
        ({"error": "unknown_user_janemiller"}, {"first": "jane", "last": "miller"}, ""),
        ({"code": "userJane"}, {}, ""),
        ({"code": "UserJane"}, {"input": "jane"}, ""),
        ({"code": "unknown_dogs"}, {"input": "dog"}, ""),
        ({"code": "unknown_labels"}, {"input": "label"}, ""),
        ({"code": "unknown_labels"}, {"input": "La, bel"}, ""),
        ({"code": "unknown_label"}, {"input": "labels"}, ""),
        ({"code": "strasse_unknown"}, {"input": "Stra\u00dfe"}, ""),
        ({"code": "Jurgen"}, {"input": "J\u00fcrgen"}, ""),
        ({"code": "john"}, {"input": "line\nJohn"}, ""),
        ({"code": "value_50"}, {"input": 0.5}, ""),
        ({"code": 404}, {}, ""),
        ({"code": "Sm9obg"}, {"input": "John"}, ""),
        ({"code": "4a6f686e"}, {"input": "John"}, ""),
        ({"code": "alice_is_locked"}, {}, ""),
        ({"code": "bad\nbad"}, {}, ""),
        ({"code": "long_" * 100 + "long"}, {}, ""),
        ({"error": ""}, {}, ""),
        ("text", {}, ""),
        (["text"], {}, ""),
        (7, {}, ""),
    ],
)  # fmt: skip
def test_what_is_quoted_of_an_error(said, sent, quoted):
    """Codes, if the request has no such word, and no word that is in them; no text and no number."""
    basic = "Basic " + base64.b64encode(b"alice:hunter2").decode()
    assert quote(json.dumps(said).encode(), json.dumps(sent).encode() if sent else b"", [basic]) == quoted


def chain(error):
    """The error with its causes and contexts, as an error tracker walks them."""
    todo, seen = [error], []
    while todo:
        found = todo.pop()
        if found is not None and found not in seen:
            seen.append(found)
            todo += [found.__cause__, found.__context__, *getattr(found, "errors", {}).values()]
    return seen


def ok(said):
    return http_reply(json.dumps(said).encode(), headers=JSON)


def tensor(**changed):
    return ok({"outputs": [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]} | changed]})


NUMBER = "19571124"
NOT_UNDERSTOOD = {
    "a status line that is none": f"{INPUT} {KEY}\r\n\r\n".encode(),
    "a status that is none": f"HTTP/1.1 {INPUT} {KEY}\r\n\r\n".encode(),
    "a header line that is none": f"HTTP/1.1 200 OK\r\n{INPUT} {KEY}\r\n\r\n".encode(),
    "a length that is none": f"HTTP/1.1 200 OK\r\nContent-Length: {INPUT}\r\n\r\n".encode(),
    "a length that is not kept": f"HTTP/1.1 200 OK\r\nContent-Length: {NUMBER[:6]}\r\n\r\n".encode(),
    "a chunk": f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{INPUT} {KEY}\r\n".encode(),
    "HTML": http_reply(f"<html>{INPUT} {KEY}".encode()),
    "text": http_reply(f"{INPUT} {KEY}".encode()),
    "broken JSON": http_reply(f'{{"value": {INPUT} {KEY}'.encode()),
    "no value": ok({INPUT: KEY}),
    "a label that is none": ok({"value": f"{INPUT} {KEY}", "confidence": 0.9}),
    "a number as a label": ok({"value": int(NUMBER), "confidence": 0.9}),
    "a confidence that is text": ok({"value": "cat", "confidence": f"{INPUT} {KEY}"}),
    "logits that are text": ok({"value": KEY, "logits": [INPUT, KEY]}),
    "logits as an object": ok({"value": KEY, "logits": {INPUT: KEY}}),
    "a datatype that is none": tensor(datatype=f"{INPUT} {KEY}"),
    "a shape of text": tensor(shape=[1, INPUT]),
    "another number of rows": tensor(shape=[int(NUMBER), 1]),
    "a size below 1": tensor(shape=[1, -int(NUMBER)]),
    "another shape": tensor(shape=[1, int(NUMBER)], data=[1]),
    "bytes that are not there": tensor(shape=[1, int(NUMBER)], parameters={"binary_data_size": 1}),
    "tensors of text": tensor(data=[INPUT, KEY]),
    "probabilities that are none": tensor(data=[1.0, int(NUMBER)]),
    "probabilities in text": ok({"probabilities": INPUT}),
}  # fmt: skip
METADATA = ok({"inputs": [{"name": "x", "shape": [-1, 2], "datatype": "FP32"}]})


def endpoint(kind, url):
    """An endpoint of that protocol which asks this server."""
    if kind == "openinference":
        return OpenInference(url, model="m", api_key=Secret(KEY), retries=1, binary=False, kind="probabilities")
    return PlainJson(url, api_key=Secret(KEY), retries=1, labels=LABELS, logits="logits" if kind == "logits" else None)


@pytest.mark.parametrize("kind", ["value", "logits", "openinference"])
@pytest.mark.parametrize("reply", NOT_UNDERSTOOD)
def test_no_error_in_a_chain_has_what_was_not_understood(reply, kind, make):
    """Not its message, its arguments or attributes, nor those of its causes and contexts, which error trackers walk."""
    with CannedServer(lambda r: METADATA if r.startswith(b"GET") else NOT_UNDERSTOOD[reply], close=True) as server:
        router = make(endpoint(kind, server.url))
        with pytest.raises(EdgerouteError) as caught:
            router.infer([0.25, 0.5] if kind == "openinference" else INPUT, mode="only_cloud")
        reason = router.infer([0.25, 0.5] if kind == "openinference" else INPUT).reason
    errors = chain(caught.value)
    assert any(isinstance(error, CloudError) for error in errors)
    for text in (reason, *(f"{error!r} {error} {error.args} {vars(error)}" for error in errors)):
        for secret in (KEY, "John", NUMBER, NUMBER[:6]):
            assert secret not in text, (secret, text)


def test_of_an_answer_that_is_no_label_its_kind_is_said(make, tmp_path):
    """In the reason, and in the outbox's dead letter and on the command line; not the text, which may be an echo."""
    refused = []

    def echo(request):
        if not refused:
            refused.append(request)
            return http_reply(status=503)
        return ok({"value": f"{json.loads(body(request))['input']} {auth(request)}", "confidence": 0.9})

    state = tmp_path / "state"
    with CannedServer(echo) as server:
        cloud = PlainJson(server.url, labels=LABELS, api_key=Secret(KEY), retries=0)
        router = make(cloud, offline="queue", state=state, outbox=Outbox(state / "outbox.db", spread_s=0))
        router.infer(INPUT)
        with pytest.raises(EdgerouteError, match=r"the answer, text of \d+ characters, is none of the 2 labels"):
            router.infer(INPUT, mode="only_cloud")
        outbox, pause = router.engine.queue.outbox, threading.Event()
        while not outbox.size("dead"):  # it is delivered in the background
            pause.wait(0.002)
        error = outbox.list()[0].error
    router.close()
    shown = "".join(cli("outbox", "list", "--state", state)[1:])
    assert "text of " in error
    for name, text in {"outbox": error, "command line": shown}.items():
        assert_clean(name, text)


def test_what_cannot_be_compared_is_not_quoted():
    """A large error, one for a large request, one that is not JSON; and no word that is in a binary request."""
    error = json.dumps({"error": "model_not_loaded"}).encode()
    assert quote(error, b"x" * MOST_COMPARED, []) == "model_not_loaded"
    assert quote(error, b"x" * (MOST_COMPARED + 1), []) == ""
    common = b'{"error": {"code": "RequestTooLarge", "type": "resource_exhausted", "status": "patient_too_large"}}'
    assert quote(common, b"x" * (MOST_COMPARED + 1), []) == "RequestTooLarge, resource_exhausted"
    problem = b'{"type": "https://host.example/problems/out-of-credit", "title": "Patient"}'
    assert quote(problem, b"", []) == "out-of-credit"
    assert quote(problem, b"credit", []) == ""
    assert quote(error + b" " * MOST_READ, b"", []) == ""
    assert quote(b"{", b"", []) == ""
    assert quote(error, b'{"inputs": []}\x00\xff', []) == "model_not_loaded"
    assert quote(error, b'{"inputs": []}\x00\xffLoaded', []) == ""


def test_a_secret_is_not_pickled():
    """Nor is what has one in it; a copy is the same; one in the environment is only its name."""
    secret = Secret(KEY)
    for thing in (secret, [secret], PlainJson("http://h", api_key=KEY), Address("http://h", headers={"X-Key": KEY})):
        with pytest.raises(TypeError, match="env="):
            pickle.dumps(thing)
        assert KEY not in repr(thing) + str(thing) + f"{thing}" + json.dumps(to_json_types(thing))
    assert copy.copy(secret) is copy.deepcopy(secret) is secret
    assert copy.deepcopy({"key": secret})["key"] is secret
    named = Secret(env="CLOUD_KEY")
    assert pickle.loads(pickle.dumps(named)) == named


@pytest.mark.parametrize("url", [f"https://u:{KEY}@h/x", f"https://u:{KEY}%40h/x", f"https://u:{KEY}://x@h/", f"u:{KEY}@h", KEY])
@pytest.mark.parametrize("given", ["file", "variable"])
def test_a_url_with_a_password_is_refused_by_the_command_line_without_being_quoted(url, given, tmp_path, monkeypatch):
    """From a policy, and from an environment variable."""
    path = tmp_path / "policy.toml"
    path.write_text('mode = "only_cloud"\n[cloud]\n' + (f"url = {json.dumps(url)}\n" if given == "file" else ""))
    if given == "variable":
        monkeypatch.setenv("EDGEROUTE_CLOUD__URL", url)
    code, out, err = cli("check", "-p", path)
    assert code == 2
    assert KEY not in out + err
    assert "Traceback" not in err


def test_the_log_has_no_lines_of_others(caplog):
    """Arguments are printable text on one line, and a traceback's lines begin with spaces."""
    evil = "x\n2026-01-01 CRITICAL forged\x1b[2J"
    error = RuntimeError(evil)
    log.error("%s and %s failed, %d times", evil, error, 3, exc_info=error)
    assert "failed, 3 times" in caplog.text
    assert "\n2026-01-01" not in caplog.text
    assert "\x1b" not in caplog.text


def test_the_command_line_shows_no_escapes(tmp_path, monkeypatch):
    """Not those of a policy's name, or of a damaged state."""
    evil = "a\x1b]0;pwned\x07.toml"
    code, out, err = cli("check", "-p", tmp_path / evil)
    assert code == 2
    assert "pwned" in err
    assert "\x1b" not in err + out


def test_what_is_deleted_is_overwritten(tmp_path):
    """Whatever SQLite's build does by itself."""
    database = Database(tmp_path / "x.db", "CREATE TABLE IF NOT EXISTS t (x)", durable=False)
    with database.transaction() as connection:
        connection.execute("INSERT INTO t VALUES (?)", (KEY * 3,))
        assert connection.execute("PRAGMA secure_delete").fetchone() == (1,)
    with database.transaction() as connection:
        connection.execute("DELETE FROM t")
    database.close()
    assert KEY.encode() not in (tmp_path / "x.db").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="POSIX's modes")
def test_a_state_folder_is_its_owners(tmp_path):
    """One that is made; one that was there stays as it was."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir(0o755)
    old.chmod(0o755)
    for state in (old, new):
        with Router(unsure, None, threshold=0.5, state=state) as router:
            router.infer(1)
    assert old.stat().st_mode & 0o777 == 0o755
    assert new.stat().st_mode & 0o777 == 0o700
    with contextlib.closing(Outbox(tmp_path / "box" / "outbox.db")) as box:
        box.counts()
    assert (tmp_path / "box").stat().st_mode & 0o777 == 0o700
