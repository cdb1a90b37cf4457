"""Masks on generated texts: units of personal data that are sent, answers that come back as they were, and milliseconds a KB.

    python benchmarks/masks.py [texts]

The cloud is simulated: it repeats the text, in order or with its placeholders shuffled, and is read whole and in pieces. Data and
their spellings are drawn; the finders have not been fitted to them. Phone numbers are of phonenumbers' examples if it is installed.
"""

from __future__ import annotations

import random
import re
import sys
from time import process_time

from figures import size

from edgeroute.cloud.personal_data_masks import Mask, MaskedData
from edgeroute.core.walk import Prediction

KINDS = ["email", "phone", "iban", "card"]
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
PHONES = [
    "+49 30 901820",
    "0151 23456789",
    "(201) 555-0123",
    "201-555-0123",
    "+33 1 70 18 99 00",
    "06 12 34 56 78",
    "+47 21 23 45 67",
]


def examples() -> list[str]:
    """Return phone numbers of all regions as their regions write them for others; without phonenumbers a few."""
    try:
        import phonenumbers as library
    except ImportError:
        return PHONES
    numbers = [library.example_number(region) for region in library.SUPPORTED_REGIONS]
    return PHONES + [library.format_number(number, library.PhoneNumberFormat.INTERNATIONAL) for number in numbers if number]


def grouped(rng: random.Random, digits: str) -> str:
    """Return digits as people write them: together, or in groups of four."""
    return rng.choice(["", " ", "-"]).join(re.findall(".{1,4}", digits))


def unit(rng: random.Random, phones: list[str]) -> str:
    """Return a random unit of personal data: an address, phone number, account or card, in one of its spellings."""
    kind = rng.choice(KINDS)
    if kind == "email":
        local = rng.choice(NAMES) + rng.choice(["", ".", "_", "+", "-"]) + rng.choice(NAMES)
        return f"{local}@{rng.choice(['mail', 'sub.mail', 'bücher', 'x-y'])}.{rng.choice(['com', 'de', 'co.uk', 'example'])}"
    if kind == "phone":
        return rng.choice(phones)
    return grouped(rng, rng.choice(IBANS if kind == "iban" else CARDS))


def main(count: int) -> None:
    """Print the figures of so many random texts: units that leak, answers restored, other words masked, time."""
    rng, mask, phones = random.Random(27), Mask(KINDS), examples()
    units = leaked = restored = answers = changed = volume = 0
    took_s = 0.0
    for _ in range(count):
        data = [unit(rng, phones) for _ in range(rng.randint(1, 6))]
        words = [
            *rng.choices(WORDS, k=rng.randint(20, 150)),
            *(rng.choice(["{}", "({}),", '"{}".', "<{}>", "{}?"]).format(d) for d in data),
        ]
        rng.shuffle(words)
        text = " ".join(words)
        begun = process_time()
        sent, masked = mask.mask(text)
        took_s += process_time() - begun
        volume += len(text.encode())
        units += len(data)
        plain = re.sub(r"\[MASKED_\w+\]", "", sent)
        leaked += sum(any(d[i : i + 8] in plain for i in range(len(d) - 7)) for d in data)  # eight characters in a row
        changed += len([word for word in words if word in WORDS]) - len([word for word in plain.split() if word in WORDS])
        parts = re.split(r"(\[MASKED_\w+\])", sent)
        parts[1::2] = rng.sample(parts[1::2], len(parts) // 2)
        for answer in (sent, "".join(parts)):
            reader, answers = MaskedData(masked.originals), answers + 1
            whole = masked.restore(Prediction(answer, None, None))
            cuts = [answer[i : i + 3] for i in range(0, len(answer), 3)]
            pieces = "".join([*map(reader.piece, cuts), reader.rest()])
            wanted = re.sub(r"\[MASKED_(\w+)\]", lambda match, data=masked.originals: data[match[1]], answer)
            restored += getattr(whole, "value", None) == pieces == wanted and (answer != sent or wanted == text)
    print("| texts | KB | units of data | units leaked | answers restored | other words masked | ms of CPU a KB |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print(
        f"| {count:,} | {volume / 1024:,.0f} | {units:,} | {leaked / units:.2%} | {restored / answers:.2%}"
        f" | {changed:,} | {took_s * 1000 / (volume / 1024):.3f} |"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else size(2000, 100))
