"""A LiteLLM Router, or a model of pydantic-ai, as the cloud of a router: their providers, with the router's rules.

Deadlines, data classes, consent, redaction, limits and the egress ledger hold, since each call of the library is a call of a
function: what may not leave, or is beyond a limit, never reaches the library. At a deadline an `AsyncRouter` cancels it. A reply
without a text is none, so the device's answer stands; keys of a request are passed on, and one that a library lacks is refused.

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
from collections.abc import Collection, Mapping
from typing import Any

from edgeroute import AsyncRouter, BadInput, BadReply, Function, PolicyError, Prediction

# Keys of a request that LiteLLM takes as arguments of the same name; its others have addresses, keys and prices.
PASSED = {
    "temperature", "top_p", "frequency_penalty", "presence_penalty", "max_tokens", "max_completion_tokens", "seed", "stop",
    "logit_bias", "tools", "tool_choice", "parallel_tool_calls", "response_format",
}  # fmt: skip
# Keys of a request -> settings of pydantic-ai.
SETTINGS = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "max_tokens"), "stop": "stop_sequences",
    **{name: name for name in ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "logit_bias")},
}  # fmt: skip


def messages_of(chat: Any) -> list[Mapping[str, Any]]:
    """The messages of an input: a text, a list of messages, or a mapping with one, as a gateway's request is."""
    if isinstance(chat, str):
        return [{"role": "user", "content": chat}]
    if isinstance(chat, Mapping) and "messages" not in chat:
        raise BadInput("this recipe is for chats: send messages")
    return list(chat["messages"] if isinstance(chat, Mapping) else chat)


def keys_of(chat: Any, passed: Collection[str]) -> dict[str, Any]:
    """The other keys of a request, all of which the library must take."""
    plain = {"response_format": {"type": "text"}}  # as without
    keys = {k: v for k, v in chat.items() if k != "messages" and plain.get(k) != v} if isinstance(chat, Mapping) else {}
    if unknown := [str(key)[:40] for key in keys if key not in passed]:
        raise BadInput(f"this recipe does not pass on {', '.join(unknown)}: leave that out")
    return keys


def silent(reason: object) -> BadReply:
    """The error for a reply without a text, which is no fault of the provider."""
    error = BadReply(f"the reply has no text: {reason}")
    error.counts = False
    return error


def litellm_cloud(models: Any, model: str, **terms: Any) -> Function:
    """One of the models of a `litellm.Router`; terms as of `edgeroute.Function`, such as usd_per_call."""
    from litellm import UnsupportedParamsError

    async def litellm(chat: Any) -> Prediction:
        history, keys = messages_of(chat), keys_of(chat, PASSED)
        try:
            reply = await models.acompletion(model=model, messages=history, num_retries=0, **keys)
        except UnsupportedParamsError as e:
            lacks = ", ".join(key for key in keys if key in str(e))
            raise BadInput(f"the provider of {model} does not take {lacks}: leave that out") from None
        choice = reply.choices[0]
        text, calls = choice.message.content or "", keys.get("tools") and choice.message.tool_calls
        if not (text.strip() or calls):
            raise silent(choice.finish_reason)
        return Prediction(text, None, reply.model_dump())  # with calls of tools and usage

    return Function(litellm, version=model, **terms)


def pydantic_ai_cloud(model: Any, **terms: Any) -> Function:
    """A model of pydantic-ai, or its name, `openai:gpt-5`; for texts. Give OpenAI's client `max_retries=0`.

    A model has connections of the event loop of its first call, on which alone it is asked; a name serves each event loop.
    """
    from pydantic_ai import direct, messages

    parts = {"system": messages.SystemPromptPart, "user": messages.UserPromptPart}
    first: dict[str, asyncio.AbstractEventLoop] = {}

    async def pydantic_ai(chat: Any) -> str:
        loop = asyncio.get_running_loop()
        if not isinstance(model, str) and first.setdefault("loop", loop) is not loop:
            # its request would be sent, and the reply lost
            raise PolicyError("this model of pydantic-ai is of another event loop: give its name, or make it in each asyncio.run")
        chats = messages_of(chat)
        settings: Any = {SETTINGS[key]: value for key, value in keys_of(chat, SETTINGS).items()}
        if isinstance(settings.get("stop_sequences"), str):
            settings["stop_sequences"] = [settings["stop_sequences"]]
        history: list[Any] = []
        for message in chats:
            role, text = message["role"], message.get("content")
            if not isinstance(text, str) or role not in {*parts, "assistant"}:
                raise BadInput("this recipe is for texts: it sends no images, and no calls of tools")
            answered = role == "assistant"
            history.append(
                messages.ModelResponse([messages.TextPart(text)]) if answered else messages.ModelRequest([parts[role](text)])
            )
        reply = await direct.model_request(model, history, model_settings=settings)
        if not (reply.text or "").strip():
            raise silent(reply.finish_reason)
        return str(reply.text)

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
