"""Score of a text by its first tokens: the decision is made before the answer is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp
from typing import Any, Final, Literal

from edgeroute.confidence.forms import SUM_SLACK
from edgeroute.confidence.scores import quantile
from edgeroute.core.words import UNIDENTIFIED
from edgeroute.errors import BadReply, PolicyError, check_number
from edgeroute.system.process import contained

Rule = Literal["quantile", "mean", "min", "first"]
RULES: Final[tuple[Rule, ...]] = ("quantile", "mean", "min", "first")
"""How a confidence is taken from log-probabilities of tokens: the exponential of their 10 % quantile, mean, least, or first."""


class Prefix:
    """Confidence from the log-probabilities of an answer's first tokens; of all of them where there are fewer.

    A stream is decided as soon as these tokens are there. `infer`, `calibrate` and `evaluate` take the same tokens of the whole
    answer, so that a threshold is for one score. It is in the fingerprint that certificates are bound to, with `tokens` and `of`.

    Args:
        tokens: how many.
        of: one of `RULES`; or a function of these log-probabilities, a list of natural logarithms, as `fit_text` returns one.

    Raises:
        PolicyError: an argument is invalid.
    """

    def __init__(self, tokens: int, of: Rule | Callable[[list[float]], float] = "quantile") -> None:
        check_number("tokens", tokens, least=1, whole=True)
        if not callable(of) and of not in RULES:
            raise PolicyError(f"of= takes one of {', '.join(RULES)}, or a function of log-probabilities, not {of!r}")
        self.tokens, self.of = int(tokens), of
        rule = of if isinstance(of, str) else getattr(of, "name", getattr(of, "__name__", "function"))
        self.name = f"{rule} of the first {self.tokens} tokens"

    def identity(self, of: Callable[[Any], str]) -> str:
        """What it is, for certificates and caches; `of` takes the fingerprint of a function."""
        rule = self.of if isinstance(self.of, str) else getattr(self.of, "fingerprint", None) or of(self.of)
        return rule if UNIDENTIFIED in rule else f"prefix {self.tokens} {rule}"

    def __call__(self, outputs: Any) -> float:
        """outputs: a completion in OpenAI's JSON, `(text, log-probabilities)`, or log-probabilities.

        Raises:
            BadReply: it has none.
        """
        if not (logprobs := token_logprobs(outputs)):
            raise BadReply("the answer has no log-probabilities of its tokens")
        return self.score(logprobs)

    def score(self, logprobs: Sequence[float]) -> float:
        """logprobs: natural logarithms, in order, of one token or more; those after the first are not looked at.

        Raises:
            ValueError: one is no number, NaN, or above 0.
        """
        first = _numbers(logprobs[: self.tokens])
        if impossible(first):
            raise ValueError(IMPOSSIBLE)
        first = [min(one, 0.0) for one in first]
        return of_tokens(first, self.of) if isinstance(self.of, str) else float(self.of(first))

    def watch(self) -> Callable[[Any], float | None]:
        """A function of the pieces of one answer, in order -> the score, with the piece that brings its last token; else None."""
        seen: list[float] = []

        def add(piece: Any) -> float | None:
            if len(seen) >= self.tokens:
                return None
            seen.extend(getattr(piece, "logprobs", ()))
            if len(seen) < self.tokens:
                return None
            try:
                return contained(self.score, seen)
            except Exception:  # noqa: BLE001 - it fails of the whole answer, too, where it is logged
                return None

        return add

    def __repr__(self) -> str:
        return f"Prefix({self.tokens}, {self.of!r})"


IMPOSSIBLE: Final = "log-probabilities of its tokens above 0, or NaN"


def impossible(logprobs: Iterable[float]) -> bool:
    """Whether one is NaN, or above 0 by more than rounding: then there is no confidence."""
    return not all(one <= SUM_SLACK for one in logprobs)


def of_tokens(logprobs: Sequence[float], rule: str) -> float:
    """A confidence by one of `RULES`, 0..1. logprobs: of one token or more, none above 0."""
    if rule == "quantile":
        return quantile(logprobs)  # type: ignore[arg-type]  # a sequence is an array
    return exp({"mean": sum(logprobs) / len(logprobs), "min": min(logprobs)}.get(rule, logprobs[0]))


def token_logprobs(outputs: Any) -> list[float]:
    """The log-probabilities of an answer's tokens without the end's, which streams do not have; empty: there are none."""
    if isinstance(outputs, Mapping):
        try:
            choice = outputs["choices"][0]
        except (LookupError, TypeError):
            return []
        return _numbers(one["logprob"] for one in token_entries(choice.get("logprobs")) if one.get("token") != "")
    found = outputs[1] if type(outputs) is tuple and len(outputs) == 2 else outputs  # noqa: PLR2004 - a pair
    if isinstance(found, str | bytes) or not hasattr(found, "__iter__"):
        return []
    return _numbers(found)


def _numbers(found: Iterable[Any]) -> list[float]:
    """Log-probabilities as numbers.

    Raises:
        ValueError: one is none. Python's own error would quote it, and it may be what the model said.
    """
    try:
        return [_number(one) for one in found]
    except (TypeError, ValueError):
        raise ValueError("the answer has log-probabilities of its tokens that are no numbers") from None


def _number(one: Any) -> float:
    if isinstance(one, str | bytes):  # of which float() makes numbers
        raise TypeError
    return float(one)


def token_entries(logprobs: Any) -> list[Any]:
    """One mapping with a `logprob` for each token, from either form that OpenAI's JSON has for them."""
    if type(logprobs) is not dict and not isinstance(logprobs, Mapping):
        return []
    if "token_logprobs" in logprobs:  # of a completion
        tokens = logprobs.get("tokens") or [None] * len(logprobs["token_logprobs"] or ())
        pairs = zip(tokens, logprobs["token_logprobs"] or (), strict=False)
        return [{"token": token, "logprob": logprob} for token, logprob in pairs if logprob is not None]
    return list(logprobs.get("content") or ())
