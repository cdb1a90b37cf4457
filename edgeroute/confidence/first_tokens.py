"""Score of a text by its first tokens, so that the router decides before the answer is complete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp
from typing import Any, Final, Literal

from edgeroute.confidence.output_forms_labels_and_comparison import SUM_SLACK
from edgeroute.confidence.scores import quantile
from edgeroute.core.error_codes_and_texts import UNIDENTIFIED
from edgeroute.errors import BadReply, PolicyError, check_number
from edgeroute.system.contained_calls_and_tasks import call_contained

Rule = Literal["quantile", "mean", "min", "first"]
# Rules from log-probabilities of tokens to a confidence: exponential of their 10 % quantile, mean, least, or first.
RULES: Final[tuple[Rule, ...]] = ("quantile", "mean", "min", "first")


class Prefix:
    """Confidence from the log-probabilities of an answer's first tokens; of all of them if there are fewer.

    A stream is decided as soon as these tokens are there. `infer`, `calibrate` and `evaluate` take the same tokens of the whole
    answer, so that a threshold is for one score. `tokens` and `of` are in the fingerprint that certificates are bound to.

    Args:
        tokens: number of tokens.
        of: one of `RULES`; or a function of these log-probabilities, a list of natural logarithms, such as `fit_text` returns.

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
        """Return a text that identifies the score, for certificates and caches; `of` returns the fingerprint of a function."""
        rule = self.of if isinstance(self.of, str) else getattr(self.of, "fingerprint", None) or of(self.of)
        return rule if UNIDENTIFIED in rule else f"prefix {self.tokens} {rule}"

    def __call__(self, outputs: Any) -> float:
        """Return the confidence of a whole answer.

        outputs: a completion in OpenAI's JSON, `(text, log-probabilities)`, or log-probabilities.

        Raises:
            BadReply: the answer has no log-probabilities.
        """
        if not (logprobs := token_logprobs(outputs)):
            raise BadReply("the answer has no log-probabilities of its tokens")
        return self.score(logprobs)

    def score(self, logprobs: Sequence[float]) -> float:
        """Return the confidence by log-probabilities, in order, of one token or more; only the first `tokens` count.

        One above 0 by rounding only counts as 0.

        Raises:
            ValueError: a log-probability is no number, NaN, or above 0.
        """
        first = _numbers(logprobs[: self.tokens])
        if impossible(first):
            raise ValueError(IMPOSSIBLE)
        first = [min(logprob, 0.0) for logprob in first]
        return of_tokens(first, self.of) if isinstance(self.of, str) else float(self.of(first))

    def watch(self) -> Callable[[Any], float | None]:
        """Return a function to call with each piece of one answer, in order.

        The function returns the score with the piece that brings the last of the `tokens`, and None for any other piece, or if
        the score fails.
        """
        seen: list[float] = []

        def add(piece: Any) -> float | None:
            if len(seen) >= self.tokens:
                return None
            seen.extend(getattr(piece, "logprobs", ()))
            if len(seen) < self.tokens:
                return None
            try:
                return call_contained(self.score, seen)
            except Exception:  # noqa: BLE001 - it fails of the whole answer, too, where it is logged
                return None

        return add

    def __repr__(self) -> str:
        return f"Prefix({self.tokens}, {self.of!r})"


IMPOSSIBLE: Final = "log-probabilities of its tokens above 0, or NaN"


def impossible(logprobs: Iterable[float]) -> bool:
    """Return True if a log-probability is NaN, or above 0 by more than rounding: then there is no confidence.

    False for no tokens.
    """
    return not all(logprob <= SUM_SLACK for logprob in logprobs)


def of_tokens(logprobs: Sequence[float], rule: str) -> float:
    """Return a confidence by one of `RULES`, 0..1. logprobs: log-probabilities of one token or more, none above 0.

    Any other rule than quantile, mean and min: the first token alone.
    """
    if rule == "quantile":
        return quantile(logprobs)  # type: ignore[arg-type]  # a sequence is an array
    return exp({"mean": sum(logprobs) / len(logprobs), "min": min(logprobs)}.get(rule, logprobs[0]))


def token_logprobs(outputs: Any) -> list[float]:
    """Return the log-probabilities of an answer's tokens, without the end token's, which streams lack; [] without any.

    outputs: a completion in OpenAI's JSON, a pair (text, log-probabilities), or these alone. Raises ValueError if one is no
    number.
    """
    if isinstance(outputs, Mapping):
        try:
            choice = outputs["choices"][0]
        except (LookupError, TypeError):
            return []
        return _numbers(entry["logprob"] for entry in token_entries(choice.get("logprobs")) if entry.get("token") != "")
    logprobs = outputs[1] if type(outputs) is tuple and len(outputs) == 2 else outputs  # noqa: PLR2004 - a pair
    if isinstance(logprobs, str | bytes) or not hasattr(logprobs, "__iter__"):
        return []
    return _numbers(logprobs)


def _numbers(values: Iterable[Any]) -> list[float]:
    """Return log-probabilities as floats.

    Raises:
        ValueError: one is no number. Python's own error would quote it, which may be the model's text.
    """
    try:
        return [_number(value) for value in values]
    except (TypeError, ValueError):
        raise ValueError("the answer has log-probabilities of its tokens that are no numbers") from None


def _number(value: Any) -> float:
    """Return a number as a float. Raise TypeError for a text, of which float() would make one, and as float() does."""
    if isinstance(value, str | bytes):  # of which float() makes numbers
        raise TypeError
    return float(value)


def token_entries(logprobs: Any) -> list[Any]:
    """Return a mapping with `logprob` for each token, from either form of log-probabilities in OpenAI's JSON.

    [] for anything but a mapping; entries without a log-probability are left out of the older form.
    """
    if type(logprobs) is not dict and not isinstance(logprobs, Mapping):
        return []
    if "token_logprobs" in logprobs:  # of a completion
        tokens = logprobs.get("tokens") or [None] * len(logprobs["token_logprobs"] or ())
        pairs = zip(tokens, logprobs["token_logprobs"] or (), strict=False)
        return [{"token": token, "logprob": logprob} for token, logprob in pairs if logprob is not None]
    return list(logprobs.get("content") or ())
