"""A LiteLLM Router, or a model of pydantic-ai, as the cloud of a router: their providers, with the router's rules.

Deadlines, data classes, consent, redaction, limits and the egress ledger hold, since each call of the library is a call of a
function: what may not leave, or is beyond a limit, never reaches the library. At a deadline an `AsyncRouter` cancels it.

The ledger has one line for each such call, with the function's name and no bytes. Neither the ledger nor a limit sees

* which provider was asked, and what the library sends besides: its own retries and fallbacks, and its callbacks. So both recipes
  switch retries off, and a fallback is better another cloud of the router, `cloud=[first, second]`.
* bytes and tokens: state what a call costs at most, `usd_per_call=0.01`; `mb_per_day` counts nothing here.
* LiteLLM's request for a list of prices when it is imported: set LITELLM_LOCAL_MODEL_COST_MAP=True.

`OPENAI_API_KEY=... python library_clouds.py "Why is the sky blue?"` asks both, after `pip install litellm
'pydantic-ai-slim[openai]'`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

from edgeroute import AsyncRouter, BadInput, Function


def messages_of(chat: Any) -> list[Mapping[str, Any]]:
    """The messages of an input: a text, a list of messages, or a mapping with one, as a gateway's request is."""
    if isinstance(chat, str):
        return [{"role": "user", "content": chat}]
    return list(chat["messages"] if isinstance(chat, Mapping) else chat)


def litellm_cloud(models: Any, model: str, **terms: Any) -> Function:
    """One of the models of a `litellm.Router`; terms as of `edgeroute.Function`, such as usd_per_call."""

    async def litellm(chat: Any) -> str:
        reply = await models.acompletion(model=model, messages=messages_of(chat), num_retries=0)
        return str(reply.choices[0].message.content)

    return Function(litellm, version=model, **terms)


def pydantic_ai_cloud(model: Any, **terms: Any) -> Function:
    """A model of pydantic-ai, or its name, `openai:gpt-5`; for texts. Give OpenAI's client `max_retries=0`."""
    from pydantic_ai import direct, messages

    parts = {"system": messages.SystemPromptPart, "user": messages.UserPromptPart}

    async def pydantic_ai(chat: Any) -> str:
        history: list[Any] = []
        for message in messages_of(chat):
            role, text = message["role"], message.get("content")
            if not isinstance(text, str) or role not in {*parts, "assistant"}:
                raise BadInput("this recipe is for texts: it sends no images, and no calls of tools")
            answered = role == "assistant"
            history.append(
                messages.ModelResponse([messages.TextPart(text)]) if answered else messages.ModelRequest([parts[role](text)])
            )
        reply = await direct.model_request(model, history)
        return reply.text or ""

    return Function(pydantic_ai, version=str(getattr(model, "model_name", model)), **terms)


async def main(question: str) -> None:
    """Ask a provider through each of the libraries."""
    import litellm

    deployment = {"model_name": "large", "litellm_params": {"model": "openai/gpt-5"}}
    clouds = litellm_cloud(litellm.Router([deployment]), "large"), pydantic_ai_cloud("openai:gpt-5")
    for cloud in clouds:
        async with AsyncRouter(lambda _: ("I do not know.", 0.1), cloud, threshold=0.5) as router:
            answer = await router.infer(question, deadline=30)
            print(f"{answer.value}  [{answer.source}: {answer.reason}]")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
