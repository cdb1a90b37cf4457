"""Score of an input alone: decided before the model on the device runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgeroute.confidence.scores import Unscored
from edgeroute.core.words import UNIDENTIFIED, named
from edgeroute.errors import PolicyError
from edgeroute.system.logs import Failures
from edgeroute.system.process import contained


class InputScore:
    """Confidence that the edge's answer will do, from the input alone: below the threshold others are asked before it runs.

    `calibrate` and `evaluate` use it as any other score. The edge then stands by for failures of the others, as in prefer_cloud.

    Args:
        function: of the input, or of what `features` makes of it -> the confidence, higher is surer; such as a `Learned` that was
            fitted to a table. It is called before each request, in the caller's thread or on the event loop, so it is quick.
        features: of a text, such as `prompt_features`: then the input is a text, messages, or a request, whose text it is given.
        name: in certificates and reasons.

    Raises:
        PolicyError: one of the two is no function.
    """

    def __init__(
        self, function: Callable[[Any], float], *, features: Callable[[str], Any] | None = None, name: str = "input"
    ) -> None:
        if not callable(function) or not (features is None or callable(features)):
            raise PolicyError("InputScore takes functions: of the input, and, as features=, of its text")
        self.function, self.features, self.name = function, features, name
        self._failures = Failures()

    def of_input(self, x: Any) -> float:
        """The confidence for an input; without a number, or if the function fails, there is none, which says why."""
        try:
            given = x if self.features is None else contained(self.features, text_of(x))
            return float(contained(self.function, given))
        except Exception as e:  # noqa: BLE001 - there is an answer all the same
            self._failures.log("the score of the input", e)
            return Unscored(f"the score of the input failed: {named(e)}")

    def identity(self, of: Callable[[Any], str]) -> str:
        """What it is, for certificates and caches; `of` takes the fingerprint of a function."""
        parts = [getattr(one, "fingerprint", None) or of(one) for one in (self.function, self.features) if one is not None]
        unknown = f"{UNIDENTIFIED} " if any(UNIDENTIFIED in part for part in parts) else ""
        return f"{unknown}input {' of '.join(parts)}"

    def __call__(self, outputs: Any) -> float:  # noqa: ARG002 - as scores are called
        """Of outputs it says nothing."""
        raise PolicyError("a score of the input has no confidence for outputs")


def text_of(x: Any) -> str:
    """The text of an input: itself; or that of its messages, one a line.

    Raises:
        TypeError: it has none.
    """
    if isinstance(x, str):
        return x
    if isinstance(x, Mapping):
        x = x.get("messages", x.get("prompt"))
        if isinstance(x, str):
            return x
    if not isinstance(x, list | tuple) or not all(isinstance(one, Mapping) for one in x):
        raise TypeError(f"the input is a {type(x).__name__}, and no text, messages or request")
    parts = [part for one in x for part in _parts(one.get("content"))]
    return "\n".join(parts)


def _parts(content: Any) -> list[str]:
    if isinstance(content, str):
        return [content]
    found = content if isinstance(content, list | tuple) else ()
    return [str(part["text"]) for part in found if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
