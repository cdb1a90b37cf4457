"""Masks on texts: units of personal data that are sent, answers that come back as they were, and milliseconds a KB.

    python benchmarks/masks.py [NUMBER] [--texts FILE.csv]

The cloud is simulated: it repeats the text, in order or with its placeholders shuffled, and is read whole and in pieces. Texts, data and
their spellings are drawn; the finders have not been fitted to them. Phone numbers are phonenumbers' examples of all regions, as each
region writes them for others and for itself. FILE.csv has texts in place of drawn ones, as PUPA has them: the column `user_query`, and
`pii_units` with the units of each, separated by ||. A unit leaks if eight characters of it in a row are sent, or a shorter one whole.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from time import process_time
from typing import NamedTuple

import phonenumbers
from figures import size

from edgeroute.cloud.personal_data_masks import Mask, MaskedData
from edgeroute.core.walk import Prediction

KINDS = ["email", "phone", "iban", "card"]
NATIONAL = "phone, national"
WORDS = [
    "the",
    "a",
    "of",
    "to",
    "and",
    "order",
    "on",
    "in",
    "please",
    "write",
    "about",
    "my",
    "for",
    "meeting",
    "with",
    "invoice",
    "number",
    "tomorrow",
    "is",
    "call",
    "me",
    "2026-11-30",
    "12",
    "3.50",
]
NAMES = ["ann", "jürgen", "o'brien", "li", "maria-luisa", "ivan", "søren", "zoë"]
IBANS = [
    "DE89370400440532013000",
    "GB82WEST12345698765432",
    "FR1420041010050500013M02606",
    "NO9386011117947",
    "NL91ABNA0417164300",
]
CARDS = ["4111111111111111", "5555555555554444", "378282246310005", "6011111111111117", "3530111333300000"]
REGIONS = sorted(phonenumbers.SUPPORTED_REGIONS)


class Case(NamedTuple):
    """Text with its units of personal data, and the region of its national phone numbers; empty: unknown."""

    text: str
    units: list[tuple[str, str]]  # kind, unit
    region: str


def grouped(rng: random.Random, digits: str) -> str:
    """Return digits as people write them: together, or in groups of four."""
    return rng.choice(["", " ", "-"]).join(re.findall(".{1,4}", digits))


def number(rng: random.Random, region: str, form: int) -> str:
    """Return an example of a region's phone numbers, of a landline or a mobile, in one of phonenumbers' formats."""
    kinds = [phonenumbers.PhoneNumberType.FIXED_LINE, phonenumbers.PhoneNumberType.MOBILE]
    found = [example for kind in kinds if (example := phonenumbers.example_number_for_type(region, kind))]
    return str(phonenumbers.format_number(rng.choice(found or [phonenumbers.example_number(region)]), form))


def unit(rng: random.Random, kind: str, region: str) -> str:
    """Return a random unit of personal data: an address, phone number, account or card, in one of its spellings."""
    if kind == "email":
        local = rng.choice(NAMES) + rng.choice(["", ".", "_", "+", "-"]) + rng.choice(NAMES)
        return f"{local}@{rng.choice(['mail', 'sub.mail', 'bücher', 'x-y'])}.{rng.choice(['com', 'de', 'co.uk', 'example'])}"
    if kind == "phone":
        return number(rng, rng.choice(REGIONS), phonenumbers.PhoneNumberFormat.INTERNATIONAL)
    if kind == NATIONAL:
        return number(rng, region, phonenumbers.PhoneNumberFormat.NATIONAL)
    return grouped(rng, rng.choice(IBANS if kind == "iban" else CARDS))


def drawn(rng: random.Random, count: int) -> Iterator[Case]:
    """Yield so many random texts."""
    for _ in range(count):
        region = rng.choice(REGIONS)
        units = [(kind, unit(rng, kind, region)) for kind in rng.choices([*KINDS, NATIONAL], k=rng.randint(1, 6))]
        words = [
            *rng.choices(WORDS, k=rng.randint(20, 150)),
            *(rng.choice(["{}", "({}),", '"{}".', "<{}>", "{}?"]).format(text) for _, text in units),
        ]
        rng.shuffle(words)
        yield Case(" ".join(words), units, region)


def read(path: Path) -> Iterator[Case]:
    """Yield the texts of a file with their units; raises KeyError if it has no column `user_query`."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            units = [("any", part) for each in (row.get("pii_units") or "").split("||") if (part := each.strip())]
            yield Case(row["user_query"], units, "")


def is_sent(unit: str, sent: str, others: Iterable[str]) -> bool:
    """Return True if eight characters of a unit in a row are in what is sent, or all of a shorter one, in any case.

    What is sent of the others is left out, since a number may be the end of another one.
    """
    unit, sent = unit.casefold(), sent.casefold()
    for other in others:
        sent = sent if other.casefold() == unit else sent.replace(other.casefold(), "\n")
    return any(unit[i : i + 8] in sent for i in range(max(1, len(unit) - 7)))


class Result(NamedTuple):
    """What became of texts under one set of masks."""

    leaked: list[str]  # kinds of the units that leaked
    restored: int  # answers of two a text
    changed: int  # other words that were masked
    ms: float  # of CPU a KB


@cache
def mask_of(kinds: tuple[str, ...]) -> Mask:
    """Return the mask of some kinds; one for all texts."""
    return Mask(kinds)


def kinds_of(case: Case, *, national: bool) -> tuple[str, ...]:
    """Return the kinds for a text: all, and if wanted the numbers of its region."""
    return (*KINDS, f"phone:{case.region}") if national and case.region else (*KINDS,)


def result(cases: list[Case], *, national: bool) -> Result:
    """Mask the texts, answer them in order and shuffled, and restore the answers whole and in pieces."""
    rng, leaked, restored, changed, took_s = random.Random(27), list[str](), 0, 0, 0.0
    for text, units, region in cases:
        mask = mask_of(kinds_of(Case(text, units, region), national=national))
        begun = process_time()
        sent, masked = mask.mask(text)
        took_s += process_time() - begun
        plain = re.sub(r"\[MASKED_\w+\]", "", sent)
        leaked += [kind for kind, data in units if is_sent(data, plain, (other for _, other in units))]
        changed += len([word for word in text.split() if word in WORDS]) - len([word for word in plain.split() if word in WORDS])
        parts = re.split(r"(\[MASKED_\w+\])", sent)
        parts[1::2] = rng.sample(parts[1::2], len(parts) // 2)
        for answer in (sent, "".join(parts)):
            reader = MaskedData(masked.originals)
            whole = masked.restore(Prediction(answer, None, None))
            cuts = [answer[i : i + 3] for i in range(0, len(answer), 3)]
            pieces = "".join([*map(reader.piece, cuts), reader.rest()])
            wanted = re.sub(r"\[MASKED_(\w+)\]", lambda match, data=masked.originals: data[match[1]], answer)
            restored += getattr(whole, "value", None) == pieces == wanted and (answer != sent or wanted == text)
    return Result(leaked, restored, changed, took_s * 1000 / kb(cases))


def kb(cases: Iterable[Case]) -> float:
    """Return the KB of the texts."""
    return sum(len(case.text.encode()) for case in cases) / 1024


def alone(cases: list[Case], kind: str) -> str:
    """Return the milliseconds of CPU a KB that one kind takes by itself."""
    masks = [mask_of((f"phone:{case.region}" if kind == NATIONAL else kind,)) for case in cases]
    begun = process_time()
    for mask, case in zip(masks, cases, strict=True):
        mask.mask(case.text)
    return f"{(process_time() - begun) * 1000 / kb(cases):.3f}"


def forms(rng: random.Random) -> dict[str, str]:
    """Return JSON texts of some 5 KB by their form."""
    records = [
        {
            "id": i,
            "name": "Ann",
            "email": unit(rng, "email", ""),
            "phone": f"+49 30 {901820 + i}",
            "iban": rng.choice(IBANS),
            "card": rng.choice(CARDS),
            "note": " ".join(rng.choices(WORDS[:20], k=8)),
        }
        for i in range(30)
    ]
    readings = [{"t": 1764700000 + i, "temp": round(rng.random() * 40, 2), "id": f"s{i}", "n": i} for i in range(90)]
    dates = [{"date": f"2026-{1 + i % 12:02}-{1 + i % 28:02}T08:{i % 60:02}:00Z", "price": f"{i}.50"} for i in range(90)]
    nested = {"mail": ["a@b.example", {"phone": [{"area": "+49 30", "number": str(901820 + i)} for i in range(90)]}]}
    values = {
        "records of address, phone, IBAN and card": records,
        "the same as a JSON text of JSON": {"result": json.dumps(records)},
        "readings of a sensor": readings,
        "times and prices": dates,
        "nested objects": nested,
        "700 numbers of four digits, as texts": [str(rng.randint(0, 9999)) for _ in range(700)],
        "500 numbers of seven to nine digits": [rng.randint(10**6, 10**9) for _ in range(500)],
        "120 UUIDs": ["-".join(f"{rng.getrandbits(4 * n):0{n}x}" for n in (8, 4, 4, 4, 12)) for _ in range(120)],
    }
    return {name: json.dumps(value) for name, value in values.items()}


def least_ms(kinds: tuple[str, ...], text: str) -> str:
    """Return the least milliseconds of CPU a KB that masking a text takes, of 50 times."""
    took = list[float]()
    for _ in range(50):
        begun = process_time()
        mask_of(kinds).mask(text)
        took.append(process_time() - begun)
    return f"{min(took) * 1000 / (len(text.encode()) / 1024):.2f}"


def main(count: int, file: Path | None) -> None:
    """Print the figures of so many random texts, or of a file's: units that leak by kind, answers restored, words masked, time."""
    cases = list(read(file) if file else drawn(random.Random(27), count))
    one, both = result(cases, national=False), None if file else result(cases, national=True)
    print("| units of data | number | leaked | leaked with `phone:REGION`, too | ms of CPU a KB, alone |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for kind in ["any"] if file else [*KINDS, NATIONAL]:
        units = sum(kind == other for case in cases for other, _ in case.units)
        shares = [f"{each.leaked.count(kind) / max(1, units):.2%}" if each else "-" for each in (one, both)]
        print(f"| {kind} | {units:,} | {shares[0]} | {shares[1]} | {'-' if file else alone(cases, kind)} |")
    print("\n| mask | texts | KB | answers restored | other words masked | ms of CPU a KB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, each in ((", ".join(KINDS), one), ("with `phone:REGION`, too", both)):
        if each is None:
            continue
        answers, words = f"{each.restored / (2 * len(cases)):.2%}", "-" if file else f"{each.changed:,}"
        print(f"| {name} | {len(cases):,} | {kb(cases):,.0f} | {answers} | {words} | {each.ms:.3f} |")
    libraries = "phone:DE", "nl.bsn", "email"
    print(f"\n| JSON | KB | {', '.join(KINDS)}: ms of CPU a KB | {', '.join(libraries)} |\n| --- | ---: | ---: | ---: |")
    for name, text in forms(random.Random(27)).items():
        print(f"| {name} | {len(text) / 1024:.1f} | {least_ms((*KINDS,), text)} | {least_ms(libraries, text)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("number", nargs="?", type=int, default=size(2000, 100), help="of texts that are drawn")
    parser.add_argument("--texts", type=Path, help="a file of texts in place of drawn ones")
    given = parser.parse_args()
    main(given.number, given.texts)
