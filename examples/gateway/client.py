"""Asks a gateway by OpenAI's own client, which finds it by OPENAI_BASE_URL: `python client.py "What is it?"`."""

import os
import sys

from openai import OpenAI

os.environ.setdefault("OPENAI_BASE_URL", "http://127.0.0.1:8484/v1")
os.environ.setdefault("OPENAI_API_KEY", "none")  # the client wants one; with --token-env it is the token


def main(question: str, data_class: str = "chat") -> None:
    """Print the answer as it comes, and then where it came from. data_class: of the question, sent in a header."""
    with OpenAI(default_headers={"x-edgeroute-data-class": data_class}) as client:
        stream = client.chat.completions.create(
            model="edgeroute", messages=[{"role": "user", "content": question}], stream=True, max_tokens=64
        )
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                print(chunk.choices[0].delta.content, end="", flush=True)
        told = chunk.model_extra["edgeroute"]
    print(f"\n[{told['source']}: {told['reason']}]")


if __name__ == "__main__":
    main(*sys.argv[1:])
