"""Types of the policy's values, with their validation and the words that messages use for them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PlainValidator, ValidationError, WithJsonSchema, WrapValidator
from pydantic_core import PydanticCustomError

from edgeroute.cloud.encoding_and_edge_answers import payload_of
from edgeroute.confidence.scores import SCORES
from edgeroute.core.device_rules import NO_ONLY_CLOUD
from edgeroute.core.policy_egress_and_options import HEDGE
from edgeroute.edge import onnx_provider_options as providers
from edgeroute.edge.answer_structure_checks import AnswerCheck
from edgeroute.edge.runtimes_variants_ensemble import step_of, suffixes
from edgeroute.errors import PolicyError, RuntimeMissing, nearest
from edgeroute.http.messages_addresses_and_secrets import Secret, bare, checked_pins
from edgeroute.policy.policy_problems_and_contradictions import quote_value
from edgeroute.policy.units_as_text import DURATION, duration, expected_error, text


def with_message(words: str) -> WrapValidator:
    """Return a validator that replaces the message of any ValidationError of the type by "expected `words`"."""

    def check(value: Any, inner: Any) -> Any:
        try:
            return inner(value)
        except ValidationError:
            raise expected_error(words) from None

    return WrapValidator(check)


def message_error(text: str) -> PydanticCustomError:
    """Return an error with this text, which quotes nothing."""
    return PydanticCustomError("policy", "{text}", {"text": text})


def checked_by(check: Callable[[Any], object]) -> AfterValidator:
    """Return a validator that calls a function with the value, which stays unchanged.

    A PolicyError or TypeError of the function becomes the message; other exceptions pass. A missing package is no problem here:
    it is reported when the value is used.
    """

    def validate(value: Any) -> Any:
        try:
            check(value)
        except RuntimeMissing:
            pass
        except (PolicyError, TypeError) as e:
            raise message_error(str(e)) from None
        return value

    return AfterValidator(validate)


def not_only_cloud(value: Any) -> Any:
    """Return the value; raise for "only_cloud" in a rule: the nearest valid name would be the opposite."""
    if value == "only_cloud":
        raise message_error(NO_ONLY_CLOUD)
    return value


def _model(path: str) -> str:
    """Return the path of a model file unchanged if a runtime has its suffix.

    Else raise PydanticCustomError, with the suffixes, or with the step by which such a file can be converted.
    """
    if (step := step_of(path)) is None:
        return path
    if step.startswith("expected"):
        raise expected_error(f"a file that ends in {' or '.join(suffixes())}")
    raise message_error(f"found {quote_value(path)}, which no runtime runs: {step}")


def _hedge(value: Any) -> float | str:
    """Parse a hedge: seconds of a duration, or a quantile or "auto" as text. Raises PydanticCustomError for others."""
    if isinstance(value, str) and re.fullmatch(HEDGE, value):
        return value
    return duration(value, words='a duration such as "300ms", a quantile from "p10" to "p99", or "auto"')


def _url(url: str) -> str:
    """Return an endpoint's address unchanged if it is http:// or https:// with a host, and has no user, query or fragment.

    Raise PydanticCustomError for others; it does not quote what may be a secret.
    """
    if "@" in url or "%40" in url:
        raise message_error("the address carries a user or password: give it as api_key or in headers")
    if "?" in url or "#" in url:
        raise message_error("the address has a query or fragment (? or #), which is not part of an endpoint's address")
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        words = "an address that begins with http:// or https://"
        # What is not bare may be a key or a token, and is not quoted.
        raise expected_error(words) if repr(url) == bare(url) else message_error(f"expected {words}")
    return url


LONGEST_NAME = 255  # bytes of a file's name
_JSON = r".+\.json"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
# "name: value" of a header that looks like a secret.
_SECRET_HEADER = re.compile(
    r"[^:]*(auth|cookie|key|token|secret|passw|credential|signature|session|jwt)|[^:]*: *(bearer|basic|token) ", re.IGNORECASE
)
_HEADER = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LITERAL = 'a secret does not belong in a file: put it in an environment variable, and write { env = "ITS_NAME" } here'


def _secret(value: Any) -> Secret:
    """Return the `Secret` of the mapping `{ env = "NAME" }`, without another key. The variable is not read.

    Raise PydanticCustomError for all else: a text, a name that is none of a variable, and a `Secret` itself.
    """
    if isinstance(value, str):
        raise message_error(_LITERAL)
    name = value.get("env") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(name, str) or not re.fullmatch(_VARIABLE, name):
        raise message_error('expected { env = "NAME" }, with the name of an environment variable')
    return Secret(env=name)


def _path(value: str) -> str:
    """Return a path or an address unchanged; raise PydanticCustomError, without quoting it, for a path that no file can have."""
    too_long = "://" not in value and max(len(name.encode(errors="replace")) for name in value.split("/")) > LONGEST_NAME
    if not value or "\0" in value or too_long:  # it may be a secret
        raise message_error("cannot be a path: it is empty, or has a null byte or too long a name")
    return value


def _destination(value: Any) -> str | Secret:
    """Return a folder or an address, a text, as it is, or the `Secret` of the mapping `{ env = "NAME" }`.

    Raise PydanticCustomError for an address with an @ or a query, which may be a secret, for what cannot be a path, and for what
    is neither.
    """
    if not isinstance(value, str):
        return _secret(value)
    if "://" not in value:
        return _path(value)
    if "@" in value or "?" in value:
        raise message_error(f"the address has a user or a query: {_LITERAL}")
    return value


def _score(value: Any) -> str:
    """Return the name of a score, or the path of a saved one, which is not read. Raise PydanticCustomError for all else."""
    if isinstance(value, str) and (value in SCORES or re.fullmatch(_JSON, value)):
        return value
    raise message_error(f"found {quote_value(value)}: {nearest(value, SCORES)}; the path of a saved score ends in .json")


def _thresholds(value: Any) -> Any:
    """Return a threshold (see `_threshold`), or a list of them; raise PydanticCustomError for all else, as for an empty list."""
    words = f"{_ONE_THRESHOLD}, or a list with one of them for each edge model"
    is_list = isinstance(value, list) and value
    return [_threshold(item, words=words) for item in value] if is_list else _threshold(value, words=words)


_ONE_THRESHOLD = "a number, the path of a certificate (.json)"


def _threshold(value: Any, *, words: str = _ONE_THRESHOLD.replace(", ", ", or ")) -> float | str:
    """Return a number as float, or the path of a certificate (.json), which is not read.

    Raise PydanticCustomError for all else, with these words for what is expected.
    """
    if isinstance(value, str) and re.fullmatch(_JSON, value):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    raise expected_error(words, "85 % is 0.85" if str(value).endswith("%") else "")


def _verify(value: bool | str) -> bool | Path:
    """Return a boolean as it is, any other text as a path.

    Raise PydanticCustomError for a word such as "yes", and for what cannot be a path.
    """
    if isinstance(value, str) and value.lower() in {"yes", "no", "true", "false", "on", "off"}:
        raise expected_error(_VERIFY, f"did you mean {'true' if value.lower() in {'yes', 'true', 'on'} else 'false'}?")
    return value if isinstance(value, bool) else Path(_path(value))


def _header(name: str) -> str:
    """Return a header's name for a message, unless it may be a whole header with its value."""
    return name if _HEADER.fullmatch(name) else "one of them"


def _headers(value: Any) -> dict[str, str | Secret]:
    """Return headers: texts as they are, each mapping `{ env = "NAME" }` as a `Secret`.

    Raise PydanticCustomError for a text that looks like a secret, by its header's name or its form, for invalid names and texts,
    for other values, a `Secret` among them, and for what is no mapping.
    """
    if not isinstance(value, dict):
        raise message_error('expected a table of header names and values, as in { "X-Tenant" = "shop-7" }')
    literal = [name for name, v in value.items() if isinstance(v, str) and _SECRET_HEADER.match(f"{name}: {v}")]
    if literal:
        raise message_error(f"{', '.join(map(_header, literal))}: {_LITERAL}")
    for name, v in value.items():
        if not _HEADER.fullmatch(name) or (isinstance(v, str) and not (v.isascii() and v.isprintable())):
            raise message_error(f"{_header(name)}: a header's name takes letters, digits and -, its value ASCII on one line")
    return {name: v if isinstance(v, str) else _secret(v) for name, v in value.items()}


# Names of a body's keys that look like a secret.
_SECRET_FIELD = re.compile(
    r"(api|access|secret|private)[_-]?key|.*(passw(or)?d|secret|credentials?)|(access|auth|api|bearer)[_-]?token|authorization"
)


def checked_body(make: Callable[[], object], body: Any) -> Any:
    """Check a body's template by making the body, and return the template unchanged.

    Raise PydanticCustomError if that raises PolicyError, or for a text under a key that looks like a secret's.
    """
    literal = next(_literals(body), None)
    if literal is not None:
        raise message_error(f'{literal}: a secret does not belong in a file: send it in headers, from {{ env = "ITS_NAME" }}')
    try:
        make()
    except PolicyError as e:
        raise message_error(str(e).removeprefix("body: ").removeprefix("body.")) from None
    return body


def _literals(body: Any) -> Iterator[str]:
    """Yield the keys of a body, at any depth, that look like a secret's and have a text that is no placeholder.

    They are cut to 40 characters.
    """
    if isinstance(body, dict):
        for key, value in body.items():
            if isinstance(value, str) and value and not value.startswith("{") and _SECRET_FIELD.fullmatch(str(key).lower()):
                yield str(key)[:40]
    for value in body.values() if isinstance(body, dict) else body if isinstance(body, list) else ():
        yield from _literals(value)


_THRESHOLD = [{"type": "number"}, text("path of a certificate", _JSON, "certificate.json")]
_REFERENCE: dict[str, Any] = {
    "type": "object",
    "title": '`{ env = "NAME" }`',
    "properties": {"env": {"type": "string", "pattern": f"^{_VARIABLE}$", "description": "Name of the environment variable."}},
    "required": ["env"],
    "additionalProperties": False,
}

_Text = Annotated[str, Field(min_length=1)]
_Number = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[_Text, with_message("text in quotes")]
PathText = Annotated[Text, AfterValidator(_path)]
AnyTexts = Annotated[list[_Text], with_message('a list of texts, as in ["a", "b"]')]
Texts = Annotated[list[_Text], Field(min_length=1), with_message('a list of texts, as in ["a", "b"]')]
_PROVIDERS = 'a list of providers, as in ["cpu"] or [{ name = "tensorrt", fp16 = true }, "cuda"]'
Providers = Annotated[
    list[Any],
    Field(min_length=1),
    with_message(_PROVIDERS),
    checked_by(providers.parse_providers),
    WithJsonSchema(providers.schema()),
]
Thresholds = Annotated[
    float | str | list[float | str],
    PlainValidator(_thresholds),
    WithJsonSchema(
        {
            "anyOf": [*_THRESHOLD, {"type": "array", "items": {"anyOf": _THRESHOLD}, "minItems": 1}],
            "title": "number, path of a certificate, or list of them",
        }
    ),
]
Threshold = Annotated[float | str, PlainValidator(_threshold), WithJsonSchema({"anyOf": _THRESHOLD})]
Score = Annotated[
    str,
    PlainValidator(_score),
    WithJsonSchema({"anyOf": [{"enum": [*SCORES]}, text("path of a saved score", _JSON, "edge.score.json")]}),
]
Threads = Annotated[int, Field(ge=1, le=1024), with_message("a whole number, 1 or more")]
Retries = Annotated[int, Field(ge=0, le=100), with_message("a whole number, 0 or more")]
Flag = Annotated[bool, with_message("true or false")]
Amount = Annotated[_Number, Field(ge=0), with_message("a number, 0 or more")]
Rate = Annotated[_Number, Field(gt=0), with_message("a number of more than 0")]
Whole = Annotated[int, Field(ge=0), with_message("a whole number, 0 or more")]
Table = Annotated[dict[str, Any], Field(min_length=1), with_message("a table, as in { top_p = 0.9 }")]
Count = Annotated[int, Field(ge=1), with_message("a whole number, 1 or more")]
Concurrent = Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], with_message('"auto", or a whole number, 1 or more')]
Hedge = Annotated[
    float | str,
    PlainValidator(_hedge),
    WithJsonSchema(text('duration, `"p10"` to `"p99"` or `"auto"`', f"{DURATION}|{HEDGE}", "p90")),
]
Binary = Annotated[Literal["auto"] | bool, with_message('"auto", true or false')]
_VERIFY = "true, false, or the path of a file with authorities in quotes"
Verify = Annotated[bool | _Text, with_message(_VERIFY), AfterValidator(_verify)]
Cert = Annotated[
    list[_Text],
    Field(min_length=2, max_length=2),
    with_message('two paths, as in ["client.pem", "client.key"]'),
    AfterValidator(lambda paths: tuple(Path(_path(path)) for path in paths)),
]
_PINS = 'sha256/ and a key\'s SHA-256 in Base64, as in "sha256/xxx...=", or a list of them'
Pins = Annotated[str | list[str], with_message(_PINS), checked_by(checked_pins)]
_CODEC = 'a codec\'s name, as in "jpeg:85", a table, as in { name = "jpeg" }, or a list of them, best first'
PayloadCodec = Annotated[str | dict[str, Any] | list[str | dict[str, Any]], with_message(_CODEC), checked_by(payload_of)]
_CHECK = '"json", "python", a pattern as in "/[0-9]+ kg/", or a JSON schema as a table'
Check = Annotated[str | dict[str, Any], with_message(_CHECK), checked_by(AnswerCheck)]
Client = Annotated[Literal["httpx"], with_message('"httpx"')]
Sha256 = Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$"), with_message("64 hexadecimal digits in quotes")]
PingPath = Annotated[str, Field(pattern="^/"), with_message('a path that begins with /, as in "/health"')]
ModelPath = Annotated[PathText, AfterValidator(_model)]
Url = Annotated[Text, AfterValidator(_url)]
SecretReference = Annotated[Secret, PlainValidator(_secret), WithJsonSchema({**_REFERENCE})]
DigestsTo = Annotated[
    str | Secret, PlainValidator(_destination), WithJsonSchema({"anyOf": [{"type": "string", "title": "text"}, _REFERENCE]})
]
BodyTemplate = Annotated[
    Any,
    WithJsonSchema({
        "anyOf": [{"type": kind} for kind in ("object", "array", "string")],
        "title": "table, list or text",
    }),
]  # fmt: skip
Headers = Annotated[
    dict[str, str | Secret],
    PlainValidator(_headers),
    WithJsonSchema({"type": "object", "title": "table", "additionalProperties": {"anyOf": [{"type": "string"}, _REFERENCE]}}),
]
