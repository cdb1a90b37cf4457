"""`/v1/embeddings` of the gateway, by OpenAI's own client: a real server of embeddings as the edge and as the cloud; refusals."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json

import httpx
import numpy as np
import pytest
from commands import started
from gateways import LONG, serving
from lazily import Later, needs

from edgeroute import AsyncRouter, Egress, Limits, LocalServer, OpenAIChat, PolicyError
from edgeroute.asgi import InProcess
from edgeroute.cloud.openai import MAX_REPLY
from edgeroute.testing import CannedServer, http_reply
from edgeroute.tools.server.gateway import app

needs("openai")
openai = Later("openai")
TEXTS = ["the quick brown fox", "a lazy dog", "the quick brown fox"]
SECRET = "my blood pressure is a hundred and eighty over a hundred"
RULES = Egress(never_leave=["private"], may_leave=["chat"], default_class="chat")
PRIVATE = {"x-edgeroute-data-class": "private"}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The address of a real llama-server of embeddings, in this process."""
    module = pytest.importorskip("xllamacpp")
    tiny_gguf = pytest.importorskip("tiny_gguf")
    params = module.CommonParams()
    params.model.path = str(tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", context=4096))
    params.n_ctx, params.n_parallel, params.verbosity, params.ui = 8192, 2, -1, False
    params.embedding, params.pooling_type = True, module.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = module.Server(params)
    yield server.listening_address
    del server


def chat(_):
    return "a chat", 0.9


@contextlib.contextmanager
def gateway(embeddings, router=None, **options):
    """-> a plain client of a gateway with chats, and with embeddings by this router."""
    with (
        InProcess(router or AsyncRouter(chat), embeddings=embeddings, **options) as served,
        served.client("httpx", base_url=served.url, timeout=LONG) as client,
    ):
        yield client


def ask(client, texts, **more):
    headers = more.pop("headers", None)
    return client.post("/embeddings", json={"model": "edgeroute", "input": texts, **more}, headers=headers)


def reply(*vectors, **more):
    """A reply of a server of embeddings."""
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 3, "total_tokens": 3}
    return http_reply(json.dumps({"object": "list", "data": data, "model": "m", "usage": usage, **more}).encode())


@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_the_vectors_are_those_of_the_server(real, side):
    """By OpenAI's clients, which ask for Base64, and as numbers; in the order of the texts, with the usage and the origin."""
    router = AsyncRouter(LocalServer(real)) if side == "edge" else AsyncRouter(cloud=OpenAIChat(real, model="tiny"))
    with (
        openai.OpenAI(base_url=f"{real}/v1", api_key="any") as direct,
        serving(AsyncRouter(chat), embeddings=router) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        theirs = direct.embeddings.create(model="tiny", input=TEXTS)
        got = client.embeddings.create(model="edgeroute", input=TEXTS)
        as_numbers = client.embeddings.create(model="edgeroute", input=TEXTS, encoding_format="float")
        one = client.embeddings.create(model="edgeroute", input=TEXTS[1], user="somebody", dimensions=len(got.data[0].embedding))

        async def main():
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as client:
                return await client.embeddings.create(model="edgeroute", input=TEXTS)

        later = asyncio.run(main())
    expected = np.array([row.embedding for row in theirs.data])
    for reply in (got, as_numbers, later):
        assert np.array([row.embedding for row in reply.data]) == pytest.approx(expected, abs=1e-4)
    assert one.data[0].embedding == pytest.approx(expected[1], abs=1e-4)
    assert [row.index for row in got.data] == [0, 1, 2]
    assert (got.usage.prompt_tokens, got.usage.total_tokens) == (theirs.usage.prompt_tokens, theirs.usage.total_tokens)
    assert (got.object, got.model, got.edgeroute["source"]) == ("list", "edgeroute", side)


@pytest.mark.parametrize("side", ["edge", "cloud"])
@pytest.mark.parametrize("form", ["base64", "float"])
def test_a_batch_of_many_texts(side, form):
    """May have a reply as long as its texts need: more than a chat's, in bytes and in numbers, whichever form the server gives."""
    count, size = (600, 4096) if form == "base64" else (110, 4096)
    vector = np.linspace(-1, 1, size).astype(np.float32)
    row = base64.b64encode(vector.tobytes()).decode() if form == "base64" else vector.tolist()
    with CannedServer(canned := reply(*[row] * count)) as server:
        local = LocalServer(f"http://127.0.0.1:{server.port}")
        router = AsyncRouter(local) if side == "edge" else AsyncRouter(cloud=OpenAIChat(server.url, model="m", retries=0))
        with gateway(router) as client:
            got = ask(client, ["text"] * count, encoding_format="base64").json()
    assert len(canned) > MAX_REPLY
    assert len(got["data"]) == count
    assert np.frombuffer(base64.b64decode(got["data"][-1]["embedding"]), "<f4") == pytest.approx(vector)


@pytest.mark.parametrize("side", ["edge", "cloud"])
def test_a_reply_of_embeddings_is_bounded(side):
    """By its number of texts, or by a larger `max_reply`, which the message names."""
    canned = reply("A" * (400 << 10))
    with CannedServer(canned) as server:
        for most, texts in ((1000, 1), (1000, 4), (1 << 20, 1)):
            if side == "edge":
                router = AsyncRouter(LocalServer(f"http://127.0.0.1:{server.port}", max_reply=most))
            else:
                router = AsyncRouter(cloud=OpenAIChat(server.url, model="m", retries=0, max_reply_bytes=most))
            with gateway(router) as client:
                said = ask(client, ["text"] * texts).text
            assert (f"answered more than {128 << 10} bytes: raise max_reply" in said) == (most == 1000 and texts == 1), said
            assert ("answered more than" in said) == (most == 1000 and texts == 1)


@pytest.mark.parametrize("form", ["base64", "float"])
def test_a_long_reply_leaves_others_their_turn(form):
    """It is written in parts, between which the loop runs other tasks."""
    vectors = np.random.default_rng(1).standard_normal((500, 4096)).astype(np.float32)
    turns = answered = 0

    async def embed(_):
        nonlocal answered
        answered = turns
        return vectors, None

    async def take_turns():
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def main():
        chats, embeds = AsyncRouter(chat), AsyncRouter(embed)
        transport = httpx.ASGITransport(app(chats, embeddings=embeds))
        async with chats, embeds, httpx.AsyncClient(transport=transport, base_url="http://localhost/v1") as client:
            others = asyncio.create_task(take_turns())
            got = await ask(client, ["text"] * len(vectors), encoding_format=form)
            others.cancel()
        return got, turns - answered

    got, between = asyncio.run(main())
    rows = [row["embedding"] for row in got.json()["data"]]
    sent = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows] if form == "base64" else rows
    assert np.array_equal(np.array(sent, np.float32), vectors)
    assert int(got.headers["content-length"]) == len(got.content)
    assert between > 30


def test_a_function_of_the_application():
    """Gets the list of texts and the size that was asked for; its vectors are the answer, and no tokens are counted."""
    asked = []

    def embed(x):
        asked.append(x)
        return [[float(len(text)), 1.0] for text in x["input"]], None

    with gateway(AsyncRouter(embed)) as client:
        got = ask(client, ["a", "bb"], dimensions=2).json()
        packed = ask(client, "ccc", encoding_format="base64").json()
        other = ask(client, "a", dimensions=3)
    assert [row["embedding"] for row in got["data"]] == [[1.0, 1.0], [2.0, 1.0]]
    assert np.frombuffer(base64.b64decode(packed["data"][0]["embedding"]), "<f4") == pytest.approx([3, 1])
    assert got["usage"] == {"prompt_tokens": 0, "total_tokens": 0}
    assert asked[0] == {"input": ["a", "bb"], "dimensions": 2}
    assert (other.status_code, "leave it out" in other.text) == (400, True)


def test_what_is_not_a_vector_for_each_text():
    """Is the model's fault, and never sent."""
    values = [
        [1.0, 2.0], [[1.0], [2.0], [3.0]], [[1.0], [2.0, 3.0]], [[float("nan")], [1.0]], [["a"], ["b"]], None, "text", [[], []],
    ]  # fmt: skip
    left = iter(values)
    with gateway(AsyncRouter(lambda x: (next(left), None))) as client:
        for value in values:
            got = ask(client, ["a", "b"])
            assert (got.status_code, got.json()["error"]["code"]) == (500, "model"), value


def test_requests_that_are_refused():
    """With 400, before anything is asked; LangChain's numbers of tokens with a hint."""
    asked = []
    wrong = [
        {"input": None}, {"input": []}, {"input": ""}, {"input": ["a", ""]}, {"input": [1, 2]}, {"input": [[1, 2]]}, {"input": {"a": 1}},
        {"input": ["a", 1]}, {"input": ["a"] * 2049}, {"encoding_format": "int8"}, {"encoding_format": []}, {"dimensions": 0},
        {"dimensions": True}, {"dimensions": 1 << 20}, {"dimensions": "8"}, {"stream": True}, {"temperature": 0}, {"other": 1},
    ]  # fmt: skip
    with gateway(AsyncRouter(lambda x: asked.append(x) or ([[1.0]], None))) as client:
        for more in wrong:
            got = client.post("/embeddings", json={"model": "edgeroute", "input": "a", **more})
            assert (got.status_code, got.json()["error"]["code"]) == (400, "bad_input"), more
        assert "check_embedding_ctx_length" in ask(client, [[1, 2]]).text
        assert ask(client, "a", model="another").status_code == 404
    assert asked == []


def test_there_are_none_unless_the_gateway_has_them():
    """A policy of chats is not asked for vectors."""
    asked = []
    with gateway(None, AsyncRouter(lambda x: asked.append(x) or ("a", 0.9))) as client:
        assert ask(client, "a").status_code == 404
    assert asked == []


def test_two_models_are_never_mixed():
    """A router with an edge and a cloud is refused at the start, and a policy that gets a second one from then on."""
    both = AsyncRouter(lambda x: ([[1.0]], None), lambda x: ([[2.0]], None), threshold=0.5)
    chats = AsyncRouter(chat)
    with pytest.raises(PolicyError, match=r"one \[edge\] or one \[cloud\]"):
        app(chats, embeddings=both)
    for router in (both, chats):
        asyncio.run(router.close())


def test_a_policy_that_gets_a_second_model(tmp_path, real):
    """Is refused with 400, although its edge could answer; the first again, as before."""
    path = tmp_path / "embeddings.toml"
    alone = f'mode = "only_edge"\n[edge]\npath = "{real}"\n'
    path.write_text(alone)
    router = AsyncRouter.from_policy(path)
    with CannedServer(reply([1.0])) as far, gateway(router) as client:
        assert ask(client, "a").status_code == 200
        path.write_text(f'threshold = 0\n[edge]\npath = "{real}"\n[cloud]\nprotocol = "openai"\nmodel = "m"\nurl = "{far.url}"\n')
        router.reload()
        got = ask(client, "a")
        path.write_text(alone)
        router.reload()
        assert ask(client, "a").status_code == 200
        assert far.requests == []
    assert (got.status_code, got.json()["error"]["code"]) == (400, "policy")


def test_a_cloud_that_fails_has_no_stand_in():
    """The chat's edge would answer; the request fails, with 503, and so for replies that are no vectors."""
    bad = [
        reply([1.0], [2.0]), reply([1.0, float("nan")]), reply("!"), reply("AAA="), reply([]), reply([[1.0]]), reply({"a": 1}),
        http_reply(b'{"data": null}'), http_reply(b'{"data": [{"index": 1, "embedding": [1]}]}'), http_reply(b"{}", status=500),
        http_reply(b'{"data": [{"index": 0}]}'), http_reply(b'{"object": "list", "data": 7}'), http_reply(b"[]"),
    ]  # fmt: skip
    for canned in bad:
        with CannedServer(canned) as far, gateway(AsyncRouter(cloud=OpenAIChat(far.url, model="m", retries=0))) as client:
            got = ask(client, "hello")
            assert (got.status_code, got.json()["error"]["code"]) == (503, "no_answer"), canned
            assert len(far.requests) == 1


def test_what_is_sent():
    """The policy's model, Base64, and of the client's keys those of embeddings and of the allow list."""
    with CannedServer(reply([1.0, 2.0])) as far:
        router = AsyncRouter(cloud=OpenAIChat(far.url, model="large", max_tokens=9, system="Be brief.", api_key="k3y"))
        with gateway(router, allow=["input_type"]) as client:
            assert ask(client, "hello", dimensions=2, input_type="query", user="u", encoding_format="float").status_code == 200
            assert ask(client, "hello", top_k=1).status_code == 400
        (sent,) = far.requests
    head, _, body = sent.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/embeddings ")
    assert json.loads(body) == {
        "input": ["hello"], "dimensions": 2, "input_type": "query", "encoding_format": "base64", "model": "large",
    }  # fmt: skip


def test_private_inputs_stay():
    """By their class, and texts of a private turn of a chat by what they say; nothing leaves. On the edge they are embedded."""
    with CannedServer(reply([1.0, 2.0])) as far:
        router = AsyncRouter(cloud=OpenAIChat(far.url, model="m", retries=0), egress=RULES)
        chats = AsyncRouter(chat, lambda x: ("far", 0.9), threshold=0.5, egress=RULES)
        with gateway(router, chats) as client:
            private = ask(client, SECRET, headers=PRIVATE)
            again = ask(client, ["first", SECRET])
            told = {"model": "edgeroute", "messages": [{"role": "user", "content": "the door code of the old house is 4711"}]}
            assert client.post("/chat/completions", json=told, headers=PRIVATE).status_code == 200
            quoted = ask(client, "the door code of the old house is 4711")
            unknown = ask(client, "hello", headers={"x-edgeroute-data-class": "other"})
            fine = ask(client, "hello")
        sent = b"".join(far.requests)
    assert [got.status_code for got in (private, again, quoted, unknown, fine)] == [403, 403, 403, 400, 200]
    assert b"blood" not in sent
    assert b"4711" not in sent
    with gateway(AsyncRouter(lambda x: ([[1.0]], None), egress=RULES)) as client:
        assert ask(client, SECRET, headers=PRIVATE).status_code == 200


def test_a_private_text_binds_a_chat():
    """What was embedded as private on the device does not leave with a later chat; what was not, does."""
    asked = []
    chats = AsyncRouter(lambda x: ("near", 0.1), lambda x: asked.append(x) or ("far", 0.9), threshold=0.5, egress=RULES)
    with gateway(AsyncRouter(lambda x: ([[1.0]], None), egress=RULES), chats) as client:
        assert ask(client, SECRET, headers=PRIVATE).status_code == 200
        assert ask(client, "a page of the manual of the washing machine").status_code == 200
        sources = [
            client.post("/chat/completions", json={"model": "edgeroute", "messages": [{"role": "user", "content": text}]}).json()
            for text in (SECRET, "a page of the manual of the washing machine")
        ]
    assert [got["edgeroute"]["source"] for got in sources] == ["edge", "cloud"]
    assert len(asked) == 1


def test_limits_and_the_ledger(tmp_path):
    """Its calls are booked with their tokens, and those beyond the policy's limit are not sent."""
    with CannedServer(reply([1.0, 2.0])) as far:
        router = AsyncRouter(
            cloud=OpenAIChat(far.url, model="m", retries=0), limits=Limits(calls_per_minute=1), state=tmp_path / "state"
        )
        with gateway(router) as client:
            statuses = [ask(client, "hello").status_code for _ in range(2)]
        assert len(far.requests) == 1
    entries = [json.loads(line) for line in (tmp_path / "state" / "egress.jsonl").read_text().splitlines()]
    assert statuses == [200, 503]
    assert len(entries) == 1


@pytest.mark.slow
def test_the_command_and_its_policies(tmp_path, real):
    """`[gateway] embeddings` names another policy, or the same file; both are closed at the end."""
    (tmp_path / "embeddings.toml").write_text(f'mode = "only_edge"\n[edge]\npath = "{real}"\n')
    chats = tmp_path / "chats.toml"
    chats.write_text(f'mode = "only_edge"\n[edge]\npath = "{real}"\n[gateway]\nembeddings = "embeddings.toml"\n')
    same = tmp_path / "same.toml"
    same.write_text(f'mode = "only_edge"\n[edge]\npath = "{real}"\n[gateway]\nembeddings = "same.toml"\n')
    for policy in (chats, same):
        with started("gateway", "--policy", policy) as (process, url):
            got = httpx.post(f"{url}/v1/embeddings", json={"model": policy.stem, "input": TEXTS}, timeout=LONG)
            process.terminate()
            out, err = process.communicate(timeout=LONG)
        assert (got.status_code, len(got.json()["data"]), process.returncode, out, err) == (200, 3, 0, "", "")
