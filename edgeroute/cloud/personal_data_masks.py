"""Masks: personal data in texts, replaced by placeholders in what is sent, and put back into the answer.

The placeholders of a request follow from its texts alone, numbered by first appearance: so they are stable within a conversation,
nothing is stored between calls, and an answer cannot name data of another conversation.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache, partial
from html import unescape
from itertools import accumulate, count
from math import inf
from typing import Any, Final, TypeAlias
from unicodedata import category, decimal, normalize

from edgeroute.core.error_codes_and_texts import class_name
from edgeroute.core.walk import Delta, Prediction
from edgeroute.errors import BadInput, BadReply, PolicyError, nearest
from edgeroute.system.late_imports_and_plugins import import_needed, load_plugin, plugin_targets

Span: TypeAlias = tuple[int, int, str]  # start, end, kind
View: TypeAlias = tuple[str, Sequence[int], Sequence[int]]  # text as finders read it, beginning and end of each of its characters
Finder: TypeAlias = Callable[[str], Iterable[Span]]
# Digits without which a finder sees no text, if that has no @; the finder; a library's answer: which parts of a span are data.
Named: TypeAlias = tuple[float, Finder, Callable[[str], list[tuple[int, int]]] | None]
GROUP: Final = "edgeroute.finders"  # entry points: a name, and a function that returns a finder
NEEDS: Final = "mask = [\"{}\"] needs a library: pip install 'edgeroute[mask]'"
MEDIA: Final = frozenset({"image_url", "input_audio", "file", "video_url"})  # keys of a message's part that has no text
PARTS: Final = frozenset({"input_image", "input_file", "base64"})  # types of parts that have no text
SOURCED: Final = frozenset({"image", "audio", "video", "document"})  # types of parts whose `source` or `image` is none
ENCODED: Final = frozenset({"data", "bytes", "blob", "image", "images", "audio", "video"})  # keys that may have Base64
FORM: Final = frozenset({"role", "type", "name", "id", "tool_call_id"})  # keys of texts that come between those of messages
# Characters on each side of a border between two texts within which data that it divides is found, if they have an @ or so many
# digits.
BORDER, FEW = 64, 7
CHECKED: Final = "iban", "card"  # kinds whose numbers have check digits: others would be found in any sequence of digits
# A number from here on is searched as a text. Most characters of a number of a library. Digits of a card.
SHORTEST, MOST_LETTERS, CARDS = 10**6, 24, range(13, 20)

# Placeholders, as they are sent and as they are read: a model may drop the brackets or the number, change the case, and write
# spaces, hyphens or an escaped underscore. Without a number there are brackets, or capitals alone. Backslashes before both
# brackets belong to it, as Markdown has them, two in JSON; before the first alone they are of the text.
_GAP, _KIND = r"[\\_ \xa0\u2011-]{1,3}", "((?:(?!MASKED)[A-Z]){1,24})"
PLACEHOLDER: Final = re.compile(
    rf"(?i)(?:\\{{1,2}}(?=\[MASKED{_GAP}[A-Z]{{1,24}}(?:{_GAP})?[0-9]{{0,7}}\\{{1,2}}\]))?"
    rf"(?:\[?MASKED{_GAP}{_KIND}(?:{_GAP})?([0-9]{{1,7}})(?:\\{{0,2}}\])?|\[MASKED{_GAP}{_KIND}\\{{0,2}}\]|(?-i:MASKED{_GAP}{_KIND})(?![\w\\-]))"
)
# Beginning of a placeholder at the end of a text, perhaps empty.
_BEGUN: Final = rf"(?:M|MA|MAS|MASKE?|MASKED(?:{_GAP}[A-Z]{{0,24}}(?:{_GAP})?[0-9]{{0,7}}\\{{0,2}})?)"
BEGINNING: Final = re.compile(rf"(?i)\\{{0,2}}\[?{_BEGUN}?\Z")

# Finders. They read a text without what hides data from them: see `_view`.

# Escapes of HTML, of addresses, and of strings as in JSON; also of escaped ones.
ESCAPE: Final = re.compile(
    r"&(?:amp;)*(#(?:[0-9]{1,7}|[xX][0-9A-Fa-f]{1,6});?|[A-Za-z]{2,31};|nbsp|shy)"
    r"|%(?:25)*([0-7][0-9A-Fa-f]|[C-Fc-f][0-9A-Fa-f](?:%(?:25)*[89ABab][0-9A-Fa-f]){1,3})"
    r"|(?<!\\)\\+(?:(u[0-9A-Fa-f]{4}|u\{[0-9A-Fa-f]{1,5}\}|x[0-9A-Fa-f]{2}|U000[0-9A-Fa-f]{5})|[nrt](?=[0-9A-Z+(\s\\])|(?=[@._+()\-/]))"
)
EMAIL: Final = re.compile(r"\w[\w.%+'!#$*^~-]{0,63}@\[?(?:(?:[\w-]{1,63}\.){1,8}[^\W\d_]{2,63}|[0-9.]{7,15})")
PHONE: Final = re.compile(
    r"[+(0-9](?<![0-9][(0-9])(?:(?<=\+) ?[(]?[0-9](?:[ ().\-/]{0,4}[0-9]){6,20}"  # international
    # national, no date; a date may begin five pairs
    r"|(?<=0)(?<![0-9][.,]0)(?:(?=[1-9]([.\-/])[0-9]{2}(?:\1[0-9]{2}){3}(?![.\-/]?[0-9]))"
    r"|(?!\.|[0-9]?[.\-/][0-9]{1,2}[.\-/](?:19|20)?[0-9]{2}(?![0-9])))(?:[ ().\-/]{0,4}[0-9]){6,20}"
    # after an area code in parentheses; with a mark between them that is no year, and no date follows
    r"|(?<=\()[0-9]{2,5}\)(?: ?|(?<!\((?:19|20)..\)) ?[.\-/] ?(?!(?:[0-3]?|(?:19|20)[0-9])[0-9]([.\-/])[01]?[0-9]\2[0-9]))"
    r"[0-9](?:[ .\-/]{0,3}[0-9]){4,12}"
    r"|(?<=[2-9])[0-9]{2}(?:[ .\-][0-9]{3}[ .\-]?[0-9]{3,4}|([ .\-])[0-9]{2}\3[0-9]{2}\3[0-9]{2})(?![0-9]))"
)
NUMBERS: Final = re.compile(r"(?<![0-9])[+(]?[0-9](?:[ ().\-/]{0,4}[0-9]){4,20}")
# Groups of a card's number or an IBAN may be on lines of their own, or in columns.
CARD: Final = re.compile(r"[2-6](?<![0-9][2-6])(?=([0-9]{2,18}(?:[\s._/\-]{0,3}[0-9]{2,16}){0,5}))")
WORD: Final = re.compile("[A-Za-z0-9]+")
# Up to seven words of a number, of which one of the first three has a digit.
WORDS: Final = re.compile(
    r"(?<![^\W_])(?=((?:[A-Za-z]{1,3}[ .\-/]|[A-Z]{3} [A-Z]{3} )?[A-Za-z]*[0-9][A-Za-z0-9]*(?:[ .\-/][A-Za-z0-9]+){0,6}))"
)
DIGITS: Final = re.compile("(?:[^0-9]*[0-9]){4}")  # the least of them
# Texts, long numbers and ends of objects in JSON; a colon after a key.
TOKEN: Final = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"(?:(?=\s*(:))|)|(?<![\w.])-?[0-9][0-9.]{6,}|\}', re.DOTALL)
# A date with its year, which is no part of a number that is spread over texts; nor are others of prices, times, shorter dates,
# years and numbers of a list, or of one of these and short numbers.
DATE: Final = re.compile(
    r"(?<![0-9+.,/\-])(?:(?:19|20)[0-9]{2}([.\-/])[01]?[0-9]\1[0-3]?[0-9]"
    r"|[0-3]?[0-9]([.\-/])[0-3]?[0-9]\2(?:19|20)[0-9]{2})(?![0-9])"
)
HARMLESS: Final = re.compile(
    r"(?<![0-9+.,/\-])(?:[0-3]?[0-9]([.\-/])[01]?[0-9]\1(?:[0-9]{2})?|[0-2]?[0-9]:[0-5][0-9](?::[0-5][0-9])?"
    r"|(?:0|[1-9][0-9]{0,5}|[1-9][0-9]{0,2}(?:,[0-9]{3})+)[.,][0-9]{2}|(?:19|20)[0-9]{2}|[1-9][0-9]?[.)](?=\s))(?![0-9])"
)
DATA_URL: Final = re.compile(r"data:[^,\s]{0,200};base64,", re.IGNORECASE)
# Base64 of a picture, PDF, archive, sound or film, by its first bytes; any Base64; so much of it that it is no name or digest.
BINARY: Final = re.compile(r"\s*(?:iVBORw0KGgo|/9j/[\w+/]{4}|R0lGOD[dl]h|JVBERi0|UklGR|UEsDB|SUkqA|T2dnUw|AAAA..Z0eXA)")
BASE64: Final = re.compile(r"[\w+/=\s-]+", re.ASCII)
LONG_BASE64: Final = re.compile(r"\s*(?:[\w+/-][\r\n]{0,2}){129}", re.ASCII)
# Country and length of an IBAN, from SWIFT's registry, release 99.
_LENGTHS: Final = (
    "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27GB22GE22GI23GL18"
    "GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20MR27MT31MU30NI28NL18NO15"
    "OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26UA29VA22VG24XK20YE30"
)
LENGTHS: Final = {country: int(length) for country, length in re.findall("(..)(..)", _LENGTHS)}
IBAN: Final = re.compile(rf"(?i)(?:(?<![A-Za-z0-9])|(?<=IBAN))({'|'.join(LENGTHS)})[0-9]{{2}}(?=[\s._/\-]{{0,3}}[A-Za-z0-9])")
_DOUBLED: Final = str.maketrans("0123456789", "0246813579")
_ALIKE: Final = dict(zip("АВЕКМНОРСТХаеорсхіΑΒΕΗΙΚΜΝΟΡΤΧο。", "ABEKMHOPCTXaeopcxiABEHIKMNOPTXo.", strict=True))  # noqa: RUF001 - Cyrillic, Greek


def _matches(pattern: re.Pattern[str], kind: str, text: str) -> Iterator[Span]:
    """Yield the spans (start, end, kind) of a pattern's matches in a text."""
    for match in pattern.finditer(text):
        yield (*match.span(), kind)


def _card(text: str) -> Iterator[Span]:
    """Yield the spans of card numbers: 13 to 19 digits, perhaps in groups, of which the last is the check digit (Luhn).

    Each length that has a valid check digit is yielded, so that spans may overlap.
    """
    for number in CARD.finditer(text):
        start, digits = number.start(), number[0]
        for part in WORD.finditer(text, number.end(), number.end(1)):
            digits += part[0]
            # Luhn's sum, ISO/IEC 7812
            if len(digits) in CARDS and sum(map(int, digits[::-2] + digits[-2::-2].translate(_DOUBLED))) % 10 == 0:
                yield start, part.end(), "CARD"


def _iban(text: str) -> Iterator[Span]:
    """Yield the spans of IBANs, with or without groups: of the length of their country, and with valid check digits."""
    for head in IBAN.finditer(text):
        rest = re.compile(rf"(?:[\s._/\-]{{0,3}}[A-Za-z0-9]){{{LENGTHS[head[1].upper()] - 4}}}").match(text, head.end())
        # ISO 7064, MOD 97-10
        if rest and int("".join(str(int(c, 36)) for c in re.sub(r"[\s._/\-]", "", rest[0]) + head[0])) % 97 == 1:
            yield head.start(), rest.end(), "IBAN"


def _words(text: str) -> Iterator[Span]:
    """Yield the spans of what may be an identity number: up to seven words with digits, `MOST_LETTERS` characters at most.

    Each number of words is yielded, so that spans overlap.
    """
    for words in WORDS.finditer(text):
        start, end = words.span(1)
        few = DIGITS.match(text, start, min(end, start + MOST_LETTERS))
        for word in WORD.finditer(text, few.end() - 1 if few else end, end):
            if word.end() - start <= MOST_LETTERS:
                yield start, word.end(), "ID"


FINDERS: Final[Mapping[str, Named]] = {
    "email": (inf, partial(_matches, EMAIL, "EMAIL"), None), "phone": (FEW, partial(_matches, PHONE, "PHONE"), None),
    "iban": (2, _iban, None), "card": (CARDS[0], _card, None),
}  # fmt: skip


def _named(name: str) -> Named:
    """Return the finder of a name: `email`, `phone`, `iban`, `card`, `phone:DE` (a region), `nl.bsn` (country and number).

    Any other name is that of an entry point of `GROUP`, whose package is imported.

    Raises:
        PolicyError: the name is unknown.
        RuntimeMissing: its library is not installed.
    """
    family, dot, number = (name := str(name)).partition(":" if name.startswith("phone:") else ".")
    if family == "phone" and dot:
        library = import_needed("phonenumbers", NEEDS.format(name))
        if number in library.SUPPORTED_REGIONS:
            matcher = partial(library.PhoneNumberMatcher, region=number, leniency=library.Leniency.POSSIBLE)
            # its own search of a whole text takes 4 ms a KB
            return 5, partial(_matches, NUMBERS, "PHONE"), lambda digits: [(each.start, each.end) for each in matcher(digits)]
    elif dot:
        module = import_needed("stdnum", NEEDS.format(name)).get_cc_module(family, number)
        if module is not None:
            return 4, _words, lambda words: [(0, len(words))] if module.is_valid(words) else []
    elif name in FINDERS or name in plugin_targets(GROUP):
        return FINDERS.get(name) or (0, load_plugin(GROUP, name), None)
    known = [*FINDERS, "phone:DE", "nl.bsn", *plugin_targets(GROUP)]
    raise PolicyError(f"mask: {name!r} is no kind of data, or entry point of {GROUP}: {nearest(name, known)}")


@lru_cache(maxsize=4096)
def _plain(c: str) -> str:
    """Return a character as finders read it: a digit, dash, space or look-alike as ASCII, others unchanged; cached.

    Empty for characters that are not seen, such as a soft hyphen or a combining accent.
    """
    kind, same = category(c), _ALIKE.get(c) or normalize("NFKC", c)
    plain = str(decimal(c)) if kind == "Nd" else same if same.isascii() else c
    return {"Cf": "", "Mn": "", "Me": "", "Zs": " ", "Pd": "-"}.get(kind, plain)


def _unescaped(escape: re.Match[str]) -> str:
    r"""Return the text of an entity, percent octets or a code point; a space for \n, \r and \t, nothing for another backslash."""
    entity, octets, code = escape.groups()
    if octets:
        return bytes.fromhex(re.sub("%(?:25)*", "", octets)).decode(errors="replace")
    if code:
        return chr(int(code.strip("uxU{}"), 16))
    return unescape(f"&{entity}") if entity else " " if escape[0][-1] in "nrt" else ""


def _view(text: str) -> View:
    """Return the view of a text: its escapes are read first, then its characters (see `_plain`)."""
    starts: Sequence[int] = range(len(text))
    ends: Sequence[int] = range(1, len(text) + 1)
    if "&" in text or "%" in text or "\\" in text:
        parts, at, to, last = list[str](), list[int](), list[int](), 0
        for escape in ESCAPE.finditer(text):
            start, end, plain = *escape.span(), _unescaped(escape)
            parts += text[last:start], plain
            at += *starts[last:start], *[start] * len(plain)
            to += *ends[last:start], *[end] * len(plain)
            last = end
        text, starts, ends = "".join([*parts, text[last:]]), [*at, *starts[last:]], [*to, *ends[last:]]
    seen = {} if text.isascii() else {c: plain for c in set(text) if not c.isascii() and (plain := _plain(c)) != c}
    if all(len(plain) == 1 for plain in seen.values()):
        return text.translate({ord(c): plain for c, plain in seen.items()}) if seen else text, starts, ends
    places = [i for i, c in enumerate(text) for _ in seen.get(c, c)]
    return "".join(seen.get(c, c) for c in text), [starts[i] for i in places], [ends[i] for i in places]


def _is_medium(x: Mapping[Any, Any]) -> bool:
    """Return True for an image, sound or file, or a message's part of one, as OpenAI, Anthropic, Google and MCP write them."""
    kind, source, types = x.get("type"), x.get("source"), [x.get(key) for key in ("media_type", "mime_type", "mimeType")]
    is_source = isinstance(source, Mapping) and source.get("type") not in ("text", "content")  # which are of texts
    if isinstance(kind, str) and (not MEDIA.isdisjoint(x) or kind in PARTS or (kind in SOURCED and (is_source or "image" in x))):
        return True
    return kind != "text" and any(types) and any(isinstance(x.get(key), str) and BASE64.fullmatch(x[key]) for key in ENCODED)


def _in_json(leaf: Callable[[str, str], str], text: str, key: str) -> str:
    """Return `leaf(text, key)`; if the text is JSON, return it with each of its texts and long numbers replaced so, in turn.

    So it stays JSON. Keys and short numbers have the key of an id, since data that is divided between texts has them between.
    """
    try:
        if text.lstrip()[:1] not in {"{", "["} or json.loads(text) is None:
            return leaf(text, key)
    except (ValueError, RecursionError):
        return leaf(text, key)

    def replaced(match: re.Match[str]) -> str:
        nonlocal key
        found = json.loads(match[0]) if "\\" in match[0] else match[0].strip('"')
        if match[1] or match[0] == "}":
            key = found  # no key after the end of an object, rather than that of the one around it
        is_between = match[1] or (match[0][0] in "-0123456789" and abs(float(found)) < SHORTEST)
        new = match[0] if match[0] == "}" else _in_json(leaf, found, "id" if is_between else key)
        return match[0] if new == found else json.dumps(new, ensure_ascii=False)

    return TOKEN.sub(replaced, text)


def _rebuild(x: Any, leaf: Callable[[str, str], str], key: str = "", *, strict: bool) -> Any:
    """Return a copy of a value of texts, numbers, lists, tuples and mappings, with each text replaced by `leaf(text, key)`.

    The key is that of the nearest mapping; empty: none. Keys are replaced, too, but for identifiers without digits. With `strict`
    a number of `SHORTEST` or more counts as a text, and stays a number if that does not change; without it other values stay.

    Raises:
        BadInput: with `strict`, for a value of another type, or a message's part of an image, sound or file.
    """
    if isinstance(x, str):
        return leaf(str.__str__(x), key)  # its own `str` may be another text, as an enum's is
    if isinstance(x, Mapping) and not (strict and _is_medium(x)):
        names = {name: name if _is_plain(name) else _rebuild(name, leaf, strict=strict) for name in x}
        return {names[name]: _rebuild(value, leaf, name, strict=strict) for name, value in x.items()}
    if type(x) in (list, tuple):
        return type(x)([_rebuild(value, leaf, key, strict=strict) for value in x])
    if strict and isinstance(x, int | float) and abs(x) >= SHORTEST:
        text = (float if isinstance(x, float) else int).__repr__(x)
        return x if (masked := leaf(text, key)) == text else masked
    if strict and not isinstance(x, int | float | None):
        raise BadInput(f"the input is {class_name(x)}, or has it in it, and a mask takes texts alone")
    return x


def _note(texts: list[tuple[str, str]], text: str, key: str) -> str:
    """Add a text with its key to a list, and return it. Raise BadInput for one in Base64 that is no text."""
    is_coded = DATA_URL.search(text) or BINARY.match(text) or (key in ENCODED and LONG_BASE64.match(text))
    if is_coded or (key == "file_data" and BASE64.fullmatch(text)):
        raise BadInput("a text has data that is no text")
    texts.append((text, key))
    return text


def _found(asked: Callable[..., Any], view: View, finders: Iterable[Named], is_wanted: Any = None) -> list[Span]:
    """Return the spans in the original text that these finders find in its view.

    A library is asked about those of which `is_wanted(start, end)` is true; without it, about those that do not lie within one of
    an earlier finder, which would be left out.
    """
    text, starts, ends = view
    found, digits = list[Span](), inf if "@" in text else sum(map(str.isdigit, text))
    for _, find, ask in (named for named in finders if digits >= named[0]):
        spans: Iterable[Span] = find(text)
        if ask:
            before = sorted(span[:2] for span in found)
            reach = [*accumulate((end for _, end in before), max, initial=0)]
            is_new = is_wanted or partial(_ends_beyond, before, reach)
            spans = [
                (start + begin, start + stop, kind) for start, end, kind in spans if is_new(starts[start], ends[end - 1])
                for begin, stop in asked(ask, text[start:end])
            ]  # fmt: skip
        found += [(starts[start], ends[end - 1], kind) for start, end, kind in spans]
    return found


def _ends_beyond(before: list[tuple[int, int]], reach: list[int], start: int, end: int) -> bool:
    """Return True if a span ends beyond all sorted spans that begin no later; `reach`: furthest end of the first i of them."""
    return end > reach[bisect_left(before, (start + 1,))]


def _is_harmless(text: str, start: int, end: int, *, first: bool) -> bool:
    """Return True if a part of a text lies within a match of `HARMLESS`, or is not the first one, and a text of few digits."""
    return (not first and len(text) < FEW - 1 and text.isdecimal()) or any(
        match.start() <= start and end <= match.end() for match in HARMLESS.finditer(text)
    )


def _is_plain(key: Any) -> bool:
    """Return True if a key is an identifier without digits, which has no personal data."""
    return isinstance(key, str) and key.isidentifier() and not any(map(str.isdigit, key))


class Mask:
    """Redaction that finds personal data in texts, and returns with each input what puts it back into the answer.

    Args:
        kinds: as `mask` of `Egress`.

    Raises:
        PolicyError: a kind is unknown.
        RuntimeMissing: its library is not installed.
    """

    def __init__(self, kinds: Iterable[str | Finder]) -> None:
        self._kinds = [*kinds]
        self._named = [_named(kind) for kind in self._kinds if not callable(kind)]
        self._checked = [FINDERS[kind] for kind in CHECKED if kind in self._kinds]
        self._others = [find for find in self._named if find not in self._checked]
        self._functions = [kind for kind in self._kinds if callable(kind)]

    def mask(self, x: Any) -> tuple[Any, MaskedData]:
        """Return a copy of an input with placeholders in place of personal data, and the data that they stand for.

        Data that is spread over several texts is found as well. The input is not changed.

        Raises:
            BadInput: it has parts that are no text.
            ValueError: a finder returned no spans of the text.
        """
        texts, data, numbers = list[tuple[str, str]](), MaskedData({}), count()
        _rebuild(x, partial(_in_json, partial(_note, texts)), strict=True)
        divided = defaultdict[int, list[Span]](list)
        places = [i for i, (text, key) in enumerate(texts) if text and key not in FORM]
        find = partial(_found, cache(lambda ask, part: ask(part)))
        own = cache(lambda text, checked: find(_view(text), self._checked if checked else self._named))
        for nth, span in self._spread([texts[i][0] for i in places], find, own):
            divided[places[nth]].append(span)

        def replaced(text: str, _: str) -> str:
            spans, parts, last = [*self.spans(text, own(text, False)), *divided.get(next(numbers), ())], list[str](), 0
            for start, end, kind in sorted(spans, key=lambda span: (span[0], -span[1])):
                if end > last:  # of overlapping ones each has what those before it leave
                    parts += [text[last:start], data.placeholder(kind, text[max(start, last) : end])]
                    last = end
            return "".join([*parts, text[last:]])

        return _rebuild(x, partial(_in_json, replaced), strict=True), data

    def spans(self, text: str, named: Iterable[Span] | None = None) -> list[Span]:
        """Return the spans (start, end, kind) that all finders find in a text, in no order, perhaps overlapping.

        What looks like a placeholder is one of them. A kind of a caller's function is reduced to at most 24 capital letters,
        without the word MASKED; without any it is DATA. Raise ValueError for a span outside the text. `named`: what all but
        these functions find, if it is known.
        """
        spans = [(*match.span(), "TEXT") for match in PLACEHOLDER.finditer(text)] if "masked" in text.casefold() else []
        for start, end, kind in (span for find in self._functions for span in find(text)):
            if not 0 <= start < end <= len(text):
                raise ValueError("a finder returned no span of the text")
            spans.append((int(start), int(end), re.sub("[^A-Z]|MASKED", "", str(kind).upper())[:24] or "DATA"))
        return [*spans, *(_found(lambda ask, part: ask(part), _view(text), self._named) if named is None else named)]

    def _spread(self, texts: Sequence[str], find: Callable[..., Any], own: Callable[..., Any]) -> Iterator[tuple[int, Span]]:
        """Yield (index of the text, span) of each part of data that is spread over several texts, as in a message sent in parts.

        It is searched within `BORDER` characters on each side of a border, of those so near at once, if these have an @ or `FEW`
        digits; numbers with check digits first. Data that overlaps what a text has alone, of these numbers or of all kinds, is
        left out; so are dates, and what consists of `HARMLESS` parts.
        """
        together = "".join(DATE.sub(lambda date: "x" * len(date[0]), text) for text in texts)
        begins = [*accumulate(map(len, texts), initial=0)]
        left = first = last = 0  # of the borders that have been searched

        def parts_of(start: int, end: int) -> list[Any]:
            of = range(bisect_right(begins, first + start) - 1, bisect_left(begins, first + end))
            crosses = of.start < min(last, of.stop - 1) and of.stop > left
            return [(i, max(0, first + start - begins[i]), min(len(texts[i]), first + end - begins[i])) for i in of if crosses]

        while last + 2 < len(begins):
            left, last = last + 1, bisect_right(begins, begins[last + 1] + BORDER, hi=len(begins) - 1) - 1
            first = max(0, begins[left] - BORDER)
            near = _view(together[first : begins[last] + BORDER])
            if "@" not in near[0] and sum(map(str.isdigit, near[0])) < FEW:
                continue
            for finders in (self._checked, self._others):
                for start, end, kind in find(near, finders, parts_of):
                    parts = parts_of(start, end)
                    if not any(
                        begin < e and b < stop for i, begin, stop in parts for b, e, _ in own(texts[i], finders is self._checked)
                    ) and not all(_is_harmless(texts[i], *part, first=i == parts[0][0]) for i, *part in parts):
                        yield from ((i, (begin, stop, kind)) for i, begin, stop in parts)

    def identity(self, of: Callable[[Any], str]) -> str:
        """Return the identity for caches and certificates."""
        return " ".join(["Mask", *(kind if isinstance(kind, str) else of(kind) for kind in self._kinds)])


class MaskedData:
    """Data of one request, by their placeholders, and their return into its answer, whole or in pieces.

    Attributes:
        originals: name of a placeholder -> the data.
    """

    def __init__(self, originals: dict[str, str]) -> None:
        self.originals, self._names, self._counts = originals, dict[str, str](), Counter[str]()
        self._held, self._unknown = "", False
        self._in_json: bool | None = None  # of an answer in pieces; None: not known yet

    def placeholder(self, kind: str, original: str) -> str:
        """Return the placeholder of some data, as in `[MASKED_EMAIL_1]`, and store the data.

        Placeholders are numbered in each kind by first appearance. The same data has the same placeholder.
        """
        if original not in self._names:
            self._counts[kind] += 1
            self._names[original] = f"{kind}_{self._counts[kind]}"
            self.originals[self._names[original]] = original
        return f"[MASKED_{self._names[original]}]"

    def restore(self, answer: Any) -> Any:
        """Return an answer with the data in place of the placeholders, as a new `Prediction`.

        If it has a placeholder that was not sent, return a BadReply, which does not count for the breaker, with the answer as
        `partial`. An exception is returned itself, with the data put into its `partial`. Other values are returned unchanged.
        """
        part = getattr(answer, "partial", None) if (has_failed := isinstance(answer, BaseException)) else answer
        if type(part) is not Prediction:
            return answer
        restored = Prediction(*(_rebuild(each, self._leaf, strict=False) for each in part))
        if not has_failed and not self._unknown:
            return restored
        error: Any = answer if has_failed else BadReply("its answer has a placeholder that was not sent")
        error.partial, error.counts = restored, error.counts and has_failed
        return error

    def piece(self, piece: Any) -> Any:
        """Return a piece of an answer with the data in place of placeholders, after the text that was held back before.

        What may be the beginning of a placeholder at its end is held back for the next piece, or `rest`. A piece that is no text
        is returned as a copy.
        """
        if not isinstance(piece, str):
            return _rebuild(piece, self._leaf, strict=False)
        text = self._held + piece
        if self._in_json is None and (begun := text.lstrip()):
            self._in_json = begun[0] == "{"
        end = next(BEGINNING.finditer(text, max(0, len(text) - BORDER))).start()
        self._held = text[end:]
        shown = self._text(text[: end + 1], self._in_json)  # the next character decides whether a word has ended
        return shown[: len(shown) - bool(self._held)]

    def show(self, send: Callable[[Any], object], delta: Delta) -> None:
        """Send a piece of an answer with the data; nothing while all of it may belong to a placeholder."""
        if piece := self.piece(delta.piece):
            send(delta._replace(piece=piece))

    def rest(self) -> str:
        """Return the text that was held, at the end of the pieces."""
        return self._text(self._held, self._in_json)

    def _leaf(self, text: str, key: str) -> str:
        """Return a text of an answer with the data (see `_text`); it is JSON if it begins with {, or is a tool's arguments."""
        return self._text(text, key == "arguments" or text.lstrip()[:1] == "{")

    def _text(self, text: str, in_json: bool | None) -> str:
        """Return a text with the data in place of placeholders, escaped if the text is JSON.

        A placeholder that was not sent stays, and is noted, so that `restore` refuses the answer. So is one without a number if
        several of its kind were sent. Other spellings than that which is sent may be prose: they count for kinds that were sent.
        """

        def original(placeholder: re.Match[str]) -> str:
            kind = next(filter(None, placeholder.groups())).upper()
            several = not placeholder[2] and f"{kind}_2" in self.originals
            data = None if several else self.originals.get(f"{kind}_{int(placeholder[2] or 1)}")
            self._unknown |= data is None and (f"{kind}_1" in self.originals or placeholder[0].count("_") > 1)
            return placeholder[0] if data is None else json.dumps(data, ensure_ascii=False)[1:-1] if in_json else data

        return PLACEHOLDER.sub(original, text) if "masked" in text.casefold() else text
