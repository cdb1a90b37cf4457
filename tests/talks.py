"""Generated forms of one conversation: what stays must be recognised in each of them, and others must leave."""

from __future__ import annotations

import base64
import collections
import dataclasses
import json
import random
import unicodedata
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from edgeroute import Egress, Router

SECRETS = (
    "My HIV test number {n} was positive, what should I eat?",
    "Ich leide seit {n} Tagen an Übergewicht und Ängsten",
    "我的第{n}次艾滋病检测呈阳性,我应该吃什么才好呢",
    "मुझे {n} साल से मधुमेह है और सलाह चाहिए",
    "I live in Baker Street {n}. My insurance number is {n}77. Can I still drive?",
    "عندي مرض السكري منذ {n} سنوات وأريد نصيحة",
)
FILLERS = (
    "Hello",
    "Thanks",
    "And drink?",
    "ok",
    "Explain photosynthesis, please.",
    "What is the capital of France?",
    "yes",
    "Why?",
)
SYSTEM = "You are a helpful assistant of a large company."
INSTRUCTION = "Answer in at most three sentences."
ROLES = ("user", "assistant", "tool", "system", "developer", "human", "ai")


@dataclasses.dataclass
class Said:
    """Message of an application."""

    role: str
    content: object


class Chat(list):
    """As applications have them."""


class Named(NamedTuple):
    """Message that is a tuple."""

    role: str
    content: object


class Slots:
    """Message without a dict."""

    __slots__ = ("content", "role")

    def __init__(self, role, content):
        self.role, self.content = role, content


def changed(rng, text):
    """Returns the text in another form of the same content."""
    forms = [
        lambda t: t, str.upper, str.lower, lambda t: f"  {t}\n\n", lambda t: t.replace(" ", "\n\t "), lambda t: t + "!",
        lambda t: unicodedata.normalize("NFD", t), lambda t: t.replace(" ", " \u200b"), lambda t: f'"{t}"',
        lambda t: "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in t),
    ]  # fmt: skip
    for _ in range(rng.randrange(3)):
        text = rng.choice(forms)(text)
    return text


def parts(rng, text):
    """Returns the text as the content of a message, in one of the forms of an API."""
    cut = rng.choice([n for n in range(1, len(text)) if not unicodedata.combining(text[n])])  # within no letter
    part = lambda t, **k: {"type": rng.choice(["text", "input_text", "output_text"]), "text": t, **k}  # noqa: E731
    return rng.choice([
        text, [part(text)], [text], {"text": text}, [part(text, cache_control={"type": "ephemeral"})], [part(text, annotations=[])],
        [part(text[:cut]), part(text[cut:])], [part("please answer"), part(text)], [part(text), part("again please")],
        f"{text}\n\nAnd drink?", f"1) {text}", f"<p>{text}</p>", f"I said, {text}", text.encode(), f"And this: {text}. And drink?", [SimpleNamespace(type="text", text=text)],
    ])  # fmt: skip


def picture(rng, data):
    """Returns the content of a message with the picture, in one of the forms of an API."""
    plain = base64.b64encode(data).decode()
    text = rng.choice(
        [
            plain,
            plain.rstrip("="),
            plain + "=",
            f"\n {plain} ",
            base64.urlsafe_b64encode(data).decode(),
            plain[:40] + "\n" + plain[40:],
        ]
    )
    url = f"data:image/{rng.choice(['png', 'jpeg'])};base64,{text.replace(chr(10), '')}"
    part = rng.choice([
        {"type": "image_url", "image_url": {"url": url}}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        {"type": "image_url", "image_url": url}, {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": text}}, {"type": "image", "image": data},
        {"inline_data": {"mime_type": "image/png", "data": text}}, {"type": "image", "image": np.frombuffer(data, np.uint8)},
        {"type": "image_url", "image_url": {"url": url}, "cache_control": {"type": "ephemeral"}}, {"type": "image", "image": bytearray(data)},
    ])  # fmt: skip
    beside = {"type": "text", "text": rng.choice(FILLERS)}
    return rng.choice([[part], [beside, part], [part, beside]])


def call(rng, arguments):
    """Returns the message of a call with these arguments."""
    items = [*arguments.items()]
    rng.shuffle(items)
    text = json.dumps(dict(items), indent=rng.choice([None, 2]))
    function = {"name": "save", "arguments": rng.choice([text, dict(items)])}
    return rng.choice([
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]},
        {"role": "assistant", "content": "", "function_call": function},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "2", "name": "save", "input": dict(items)}]},
    ])  # fmt: skip


def message(rng, role, content):
    """Returns a message in one of the forms of applications."""
    return rng.choice([
        {"role": role, "content": content}, {"role": role, "content": content, "name": "x"}, Said(role, content),
        SimpleNamespace(role=role, content=content), Named(role, content), Slots(role, content), {"content": content},
        {"role": role, "parts": content if isinstance(content, list) else [{"text": content}]},
        SimpleNamespace(type="human", content=content),
    ])  # fmt: skip


def contained(rng, messages):
    """Returns messages in one of the containers of applications."""
    objects = np.empty(len(messages), object)
    objects[:] = messages
    return rng.choice([
        messages, tuple(messages), collections.deque(messages, 50), collections.UserList(messages), Chat(messages),
        {"messages": messages, "temperature": 0}, {"messages": collections.deque(messages)}, SimpleNamespace(messages=messages),
        {"model": "m", "input": messages}, {"body": {"messages": messages}}, {"chat": messages}, ("m", messages), {"contents": messages}, dict(enumerate(messages)).values(), [messages], objects,
        collections.OrderedDict(messages=messages), collections.ChainMap({"messages": messages}),
        {"messages": [{"role": "user", "content": "fix this"}], "prediction": {"type": "content", "content": messages}},
    ])  # fmt: skip


def address(rng, url):
    """Returns the content of a message with a picture by its address, in one of the forms of an API."""
    part = rng.choice([
        {"type": "image_url", "image_url": {"url": url, "detail": rng.choice(["low", "high"])}}, {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url, "detail": "auto"}, {"type": "image", "source": {"type": "url", "url": url}},
        {"file_data": {"mime_type": "image/png", "file_uri": url}}, {"type": "image", "url": f" {url}\n", "cache_control": None},
    ])  # fmt: skip
    return rng.choice([[part], [{"type": "text", "text": rng.choice(FILLERS)}, part]])


class Secret:
    """Something that may not leave, in many forms.

    Attributes:
        answer: answer of the edge to the call that may not leave.
    """

    def __init__(self, rng, number):
        self.kind = rng.choice(["text", "text", "picture", "call", "answer", "prefill", "turn", "address"])
        self.text = rng.choice(SECRETS).format(n=number)
        self.other = f"Besides, patient {number} takes twelve different pills each day, and sleeps badly."
        self.url = f"https://pictures.example/patients/{number}.png"
        cut = rng.randrange(8, len(self.text) - 8)
        self.begun = self.text[:cut] if self.kind == "prefill" else ""
        self.answer = self.text[len(self.begun) :] if self.kind in {"answer", "prefill"} else "no"
        self.data = rng.randbytes(rng.randrange(90, 200))
        self.arguments = {"diagnosis": f"HIV positive {number}", "ward": number}

    def first(self):
        """Returns the messages as their client sends them first."""
        if self.kind == "turn":
            return [{"role": "user", "content": self.text}, {"role": "user", "content": self.other}]
        if self.kind == "prefill":
            return [{"role": "user", "content": "Please go on with my story."}, {"role": "assistant", "content": self.begun}]
        return [self._plain(), *([{"role": "user", "content": "ok"}] if self.kind == "call" else [])]

    def _plain(self):
        if self.kind == "answer":
            return {"role": "user", "content": "What do you know of me?"}
        if self.kind == "address":
            return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": self.url}}]}
        if self.kind == "picture":
            url = "data:image/png;base64," + base64.b64encode(self.data).decode()
            return {
                "role": "user",
                "content": [{"type": "text", "text": "Well?"}, {"type": "image_url", "image_url": {"url": url}}],
            }
        if self.kind == "call":
            function = {"name": "save", "arguments": json.dumps(self.arguments)}
            return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}
        return {"role": "user", "content": self.text}

    def resent(self, rng):
        """Returns it as another client sends it later."""
        if self.kind == "call":
            return [call(rng, self.arguments)]
        if self.kind in {"picture", "address"}:
            contents = [picture(rng, self.data) if self.kind == "picture" else address(rng, self.url)]
        elif self.kind == "turn":  # in another order, joined, or one of them alone, which is long enough
            both = [changed(rng, self.text), self.other]
            rng.shuffle(both)
            contents = rng.choice([both, ["\n".join(both)], [[{"type": "text", "text": text} for text in both]], [self.other]])
        else:
            contents = [parts(rng, changed(rng, self.text))]
        return [message(rng, rng.choice(ROLES), content) for content in contents]


def filler(rng, number):
    """Returns some ordinary messages."""
    said = lambda: rng.choice([*FILLERS, f"Question {number} on topic {rng.random()}"])  # noqa: E731
    return [{"role": rng.choice(["user", "assistant"]), "content": said()} for _ in range(rng.randrange(3))]


def run(seed, numbers):
    """Returns the numbers of the conversations that left though they had to stay, and of those that stayed though they might leave."""
    left, stayed = [], []
    for number in numbers:
        rng, sent = random.Random(f"{seed} {number}"), []
        secret = Secret(rng, number)
        with Router(lambda _, secret=secret: (secret.answer, 0.1), lambda x, to=sent: to.append(x) or "so", threshold=0.5,
                    egress=Egress(never_leave=["medical"], may_leave=["chat"], default_class="chat")) as router:  # fmt: skip
            before = [{"role": "system", "content": SYSTEM}, *filler(rng, number)] if rng.random() < 0.5 else []
            first = [*before, {"role": "user", "content": INSTRUCTION}, *secret.first()]
            router.infer(first, **rng.choice([{"data_class": "medical"}, {"mode": "only_edge"}]))
            later = [*filler(rng, -number), *secret.resent(rng), *filler(rng, -number)]
            router.infer(contained(rng, later))
            if sent:
                left.append(number)
            sent.clear()
            other = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": INSTRUCTION}, *filler(rng, -number)]
            other += [{"role": "user", "content": f"What is the matter with subject {number}?"}]
            router.infer(contained(rng, other))
            if not sent:
                stayed.append(number)
    return left, stayed
