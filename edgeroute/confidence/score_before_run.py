"""Score of an input alone (`InputScore`), by which the router decides before the model runs; the text of an input in any form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgeroute.confidence.scores import Unscored
from edgeroute.core.error_codes_and_texts import UNIDENTIFIED, failure_text
from edgeroute.errors import PolicyError
from edgeroute.system.contained_calls_and_tasks import call_contained
from edgeroute.system.sanitised_logs_and_contained_errors import Failures


class InputScore:
    """Confidence from the input alone that the edge's answer will do: below the threshold the cloud is asked first.

    `calibrate` and `evaluate` use it as any other score. The edge then stands by for failures of the others, as in prefer_cloud.

    Args:
        function: function of the input, or of the result of `features`, to the confidence: higher is surer. Such as a `Learned`
            fitted to a table. It is called before each request, in the caller's thread or on the event loop, so it has to be
            quick.
        features: function of a text, such as `prompt_features`: then the input is a text, messages, or a request.
        name: name in certificates and reasons.

    Raises:
        PolicyError: `function` or `features` is not callable.
    """

    def __init__(
        self, function: Callable[[Any], float], *, features: Callable[[str], Any] | None = None, name: str = "input"
    ) -> None:
        if not callable(function) or not (features is None or callable(features)):
            raise PolicyError("InputScore takes functions: of the input, and, as features=, of its text")
        self.function, self.features, self.name = function, features, name
        self._failures = Failures()

    def of_input(self, x: Any) -> float:
        """Return the confidence for an input; an `Unscored` (NaN) with the reason if a function fails, which is logged."""
        try:
            value = x if self.features is None else call_contained(self.features, text_of(x))
            return float(call_contained(self.function, value))
        except Exception as e:  # noqa: BLE001 - there is an answer all the same
            self._failures.log("the score of the input", e)
            return Unscored(f"the score of the input failed: {failure_text(e)}")

    def identity(self, of: Callable[[Any], str]) -> str:
        """Return a text that identifies the score, for certificates and caches; `of` returns the fingerprint of a function."""
        parts = [
            getattr(function, "fingerprint", None) or of(function)
            for function in (self.function, self.features)
            if function is not None
        ]
        unknown = f"{UNIDENTIFIED} " if any(UNIDENTIFIED in part for part in parts) else ""
        return f"{unknown}input {' of '.join(parts)}"

    def __call__(self, outputs: Any) -> float:  # noqa: ARG002 - as scores are called
        """Raise PolicyError: this score needs the input, not the outputs."""
        raise PolicyError("a score of the input has no confidence for outputs")


def text_of(x: Any) -> str:
    """Return the text of an input: itself, or the texts of its messages, joined by line breaks.

    A request's `messages` go before its `prompt`.

    Raises:
        TypeError: the input has no text.
    """
    if isinstance(x, str):
        return x
    if isinstance(x, Mapping):
        x = x.get("messages", x.get("prompt"))
        if isinstance(x, str):
            return x
    if not isinstance(x, list | tuple) or not all(isinstance(message, Mapping) for message in x):
        raise TypeError(f"the input is a {type(x).__name__}, and no text, messages or request")
    parts = [part for message in x for part in _parts(message.get("content"))]
    return "\n".join(parts)


def _parts(content: Any) -> list[str]:
    """Return the texts of a message's content, a text or a list of parts. Parts without text, and all else, are left out."""
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list | tuple) else ()
    return [str(part["text"]) for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
