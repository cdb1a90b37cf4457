"""OpenAI's Embeddings API on the gateway: a router of one model, so that all vectors can be compared with each other."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import numpy as np

from edgeroute.errors import BadInput, ModelError, PolicyError
from edgeroute.router.policy_snapshot import Snapshot
from edgeroute.system.json_codec_and_short_repr import json_dumps, to_json_types
from edgeroute.tools.server import openai_chat_completions as openai
from edgeroute.tools.server.access_limits_call_options import Options
from edgeroute.types import Answer

HANDLED: Final = ("model", "input", "encoding_format")
MOST_TEXTS, MOST_DIMENSIONS = 2048, 16_384
PART = 1 << 16  # numbers that are written at a time: some 2 ms
KEYS: Final = {"dimensions": openai.Range(f"1..{MOST_DIMENSIONS:,}", lambda x: type(x) is int and 0 < x <= MOST_DIMENSIONS)}


def check_one_model(snapshot: Snapshot) -> None:
    """Raise PolicyError unless a policy has one model in all, and no trial, since vectors of two models cannot be compared."""
    if len(snapshot.targets) != 1 or snapshot.trials:
        names = ", ".join(target.name for target in snapshot.targets)
        raise PolicyError(f"a policy of embeddings has one [edge] or one [cloud], and no trial, and this one has {names}")


class EmbeddingRouting(openai.Routing):
    """Calls of a router of embeddings: one edge or one cloud, in each policy that is in force."""

    async def infer(self, x: Any, wanted: Options) -> Answer[Any]:
        """Check that the policy has one model, route one list of texts, check again, and return the answer.

        Raises:
            PolicyError: the policy has several models, also if a reload brought them meanwhile.
            NoAnswer: there is no answer, or the model raised an exception that is not edgeroute's.
        """
        check_one_model(self.router.engine.snapshot)
        answer = await super().infer(x, wanted)
        check_one_model(self.router.engine.snapshot)
        return answer


def read_request(body: Mapping[str, Any], *, names: Collection[str], allow: Collection[str] = ()) -> openai.CompletionRequest:
    """Validate the parsed body of `/v1/embeddings` and return the request for the router, in which `input` is a list of texts.

    Token numbers are refused: they are of one tokenizer, and cannot be compared with texts that may not leave.

    Raises:
        BadInput: the request has an unsupported or invalid option, no texts, an empty one, or more than 2,048.
        HTTPException: 404, for another model.
    """
    model, stream = openai.check_names(body, names)
    texts, form = body.get("input"), body.get("encoding_format", "float")
    if stream:
        raise BadInput("embeddings come at once: leave stream out")
    if form not in ("float", "base64", None):
        raise BadInput("encoding_format is float or base64")
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise BadInput("input takes texts, not token numbers (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)")
    if not 0 < len(texts) <= MOST_TEXTS or not all(texts):
        raise BadInput(f"input has 1 to {MOST_TEXTS} texts, none of them empty")
    x = {"input": texts, **openai.client_keys(body, HANDLED, allow, KEYS)}
    return openai.CompletionRequest(x, False, model, False, False, False, {"encoding_format": form})


class EmbeddingReply:
    """Builder of the reply to one request of `/v1/embeddings`."""

    def __init__(self, request: openai.CompletionRequest) -> None:
        self._request = request

    def parts(self, answer: Answer[Any]) -> Iterator[bytes]:
        """Yield the reply's JSON in parts: a vector for each text, numbers or Base64 as requested, and the origin as `edgeroute`.

        Usage is 0 if the model does not count. A part is written when it is asked for, and has `PART` numbers or one vector, so
        that an event loop can serve others before the next.

        Raises:
            ModelError: the answer is not one vector for each text.
            BadInput: the model's vectors have another size than the request's `dimensions`.
        """
        x, encode = self._request.x, self._request.echo["encoding_format"] == "base64"
        vectors = _vectors(answer.value, len(x["input"]))
        if (size := x.get("dimensions")) is not None and size != vectors.shape[1]:
            raise BadInput(f"dimensions is {size}, and this model's vectors have {vectors.shape[1]} numbers: leave it out")
        usage = answer.outputs.get("usage") if isinstance(answer.outputs, Mapping) else None
        end = {
            "model": self._request.model,
            "usage": usage if isinstance(usage, Mapping) else {"prompt_tokens": 0, "total_tokens": 0},
            "edgeroute": openai.origin_of(answer),
        }
        before, step = b'{"object":"list","data":[', max(1, PART // vectors.shape[1])
        for begin in range(0, len(vectors), step):
            part = vectors[begin : begin + step]
            rows = [b64encode(row.tobytes()).decode() for row in part] if encode else part
            data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(rows, begin)]
            yield before + json_dumps(data, to_json_types, arrays=True)[1:-1]
            before = b","
        yield b"]," + json_dumps(end, to_json_types)[1:]


def _vectors(value: Any, count: int) -> Any:
    """Return an answer's value as float32 [count, size], little-endian.

    Raises:
        ModelError: it is anything else, empty, or has a number that is not finite.
    """
    with suppress(TypeError, ValueError, OverflowError):
        vectors = np.ascontiguousarray(value, "<f4")
        if vectors.ndim == 2 and len(vectors) == count and vectors.size and np.isfinite(vectors).all():  # noqa: PLR2004 - rows and numbers
            return vectors
    raise ModelError(f"the model gave a {type(value).__name__}, not {count} vectors of one size: return (vectors, None)")
