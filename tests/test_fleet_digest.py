"""Digests: at most a kilobyte whatever the device does, sums that stay, and bytes of strangers that are refused by kind."""

import json
import random
import zlib

import pytest
from draws import slow

from edgeroute.core.sequential_tests import GRID
from edgeroute.fleet.digest_encoding_and_coarsening import (
    AUDIT_STEP,
    CONFIDENCES,
    FORMAT,
    LAST_LEVEL,
    MOST_BYTES,
    UNSTATED,
    Digest,
    bucket,
    coarsen,
    encode,
    mac,
    name_of,
    path_of,
)
from edgeroute.tools.fleet.untrusted_digest_decoder import BadDigest, decode

KEY = b"a key of the fleet"


def digest(models=1, classes=1, requests=1440, seed=1, **fields):
    """Return the digest of a device with that many requests a day of each group."""
    draw = random.Random(seed)
    groups = tuple(
        (f"edge{m}:{draw.getrandbits(48):012x}", "0123456789ab", "", f"class{c}") for m in range(models) for c in range(classes)
    )
    rows, confidences, audits = [], [], {}
    for g in range(len(groups)):
        for hour in range(24):
            count = max(1, int(draw.gauss(requests / 24, (requests / 24) ** 0.5)))
            deferred = (
                sum(draw.random() < 0.2 for _ in range(count)) if count < 500 else int(draw.gauss(count / 5, count**0.5 / 3))
            )
            fast, slow = int((count - deferred) * draw.uniform(0.9, 1)), int(deferred * draw.uniform(0.9, 1))
            latencies = (fast, count - deferred - fast, 0, 0, slow, deferred - slow, 0, 0)
            rows.append((g, hour, count, deferred, 0, 0, deferred * draw.randint(9000, 11000), deferred * 400, *latencies))
            for _ in range(int(count * 0.01 + draw.random())):
                index = draw.randrange(0, len(GRID), AUDIT_STEP)
                had = audits.get((g, hour, index), (0, 0))
                audits[g, hour, index] = had[0] + 1, had[1] + (draw.random() < 0.05)
        confidences += [(g, i, draw.randint(1, requests // 15)) for i in range(5, 20)]
    audit_rows = tuple((*key, n, differ, differ, 0, 0.01) for key, (n, differ) in audits.items())
    values = {
        "device": "ab" * 16, "day": "2026-11-28", "revision": 2, "final": True, "site": "plant-7", "version": "0.9.0", "signed": "",
        "groups": groups, "requests": tuple(rows), "confidences": tuple(confidences), "audits": audit_rows, **fields,
    }  # fmt: skip
    return Digest(**values)


def sums(value):
    """Return the sums of requests and audits, which no coarsening changes."""
    return [sum(row[i] for row in value.requests) for i in range(2, 8)], [
        sum(row[i] for row in value.audits) for i in range(3, 7)
    ]


@pytest.mark.parametrize(
    ("models", "classes", "requests"), [(1, 1, 30), (1, 1, 1440), (1, 1, 86_400), (4, 3, 10_000), *slow((20, 3, 100_000))]
)
def test_a_digest_has_at_most_a_kilobyte_and_its_sums(models, classes, requests):
    """A quiet device has each hour, a busy one less detail and the same sums."""
    given = digest(models, classes, requests)
    data = encode(given, KEY)
    read = decode(data, KEY, today=given.day)
    assert len(data) <= MOST_BYTES
    assert sums(read) == sums(given)
    assert read == coarsen(given, read.coarse)
    assert (read.coarse == 0) == (requests <= 1440)


def test_each_level_is_read_again_and_coarser_than_the_one_before():
    """Levels drop one kind of detail each; a coarsened digest is not refined again."""
    given = digest(20, 3, 200)
    sizes = []
    for level in range(LAST_LEVEL + 1):
        value = coarsen(given, level)
        sizes.append(sum(map(len, (value.groups, value.requests, value.confidences, value.audits))))
        assert sums(value) == sums(given)
        assert coarsen(value, 0).coarse == level
    assert sizes == sorted(sizes, reverse=True)
    last = coarsen(given, LAST_LEVEL)
    assert last.groups[1] == ("other", "", "", "")
    assert {row[2] for row in last.audits} == {UNSTATED}
    assert {row[8:] for row in last.requests} == {(0,) * 8}


def test_long_names_fit():
    """The longest names that `name_of` makes fit into a digest of one group, and those beyond raise."""
    names = tuple(
        (
            *(
                name_of("".join(chr(random.Random(i * 9 + j).randrange(0x4E00, 0x9FFF)) for j in range(99)))
                for i in range(g, g + 3)
            ),
            "",
        )
        for g in (0, 5, 9)
    )
    rows = tuple((g, 0, 1, 0, 0, 0, 0, 0, 1, *[0] * 7) for g in range(3))
    given = digest()._replace(groups=names, requests=rows, confidences=(), audits=(), site=names[0][0])
    read = decode(encode(given, KEY), KEY)
    assert sums(read) == sums(given)
    with pytest.raises(ValueError, match="too long"):
        encode(given._replace(site=random.Random(1).randbytes(1500).hex()))


def test_the_longest_name_of_a_signed_policy_is_read():
    """Of 64 letters, as a catalog allows, with its version."""
    given = digest()._replace(signed=f"{'a' * 64}-{10**9}")
    assert decode(encode(given)).signed == given.signed


def test_names_are_short_and_printable():
    """Control characters and lone surrogates become question marks, and no character is cut in two."""
    assert name_of("a\n\ud800b") == "a??b"
    assert name_of("ä" * 40) == "ä" * 32


def test_buckets_of_latencies():
    """A bound belongs to its bucket."""
    assert [bucket(s) for s in (0.0, 0.005, 0.0051, 0.25, 5.0, 99.0)] == [0, 0, 1, 4, 6, 7]


def test_the_name_at_the_destination():
    """It has the day, the device and the revision alone."""
    assert path_of(digest()) == f"digests/2026-11-28/{'ab' * 16}.2.digest"


def packed(value, **fields):
    """Return the bytes of a digest with other fields, valid or not."""
    return zlib.compress(json.dumps({"format": FORMAT, **value._asdict(), **fields}).encode(), 9)


def test_a_digest_of_the_first_format():
    """Its indices are of other thresholds, so its audits have none, and confidences are left out; the sums count."""
    given = digest()
    first = given._replace(audits=((0, 1, 4, 3, 1, 0, 0, 0.1), (0, 1, 12, 2, 1, 0, 0, 0.1), (0, 2, -1, 1, 0, 0, 0, 0.1)))
    read = decode(packed(first, format=1))
    assert read.audits == ((0, 1, UNSTATED, 5, 2, 0, 0, 0.1), (0, 2, UNSTATED, 1, 0, 0, 0, 0.1))
    assert (read.confidences, sums(read)[0], read.coarse) == ((), sums(given)[0], 0)


def fault(data, key=b"", today=""):
    """Return the fault of refused bytes."""
    with pytest.raises(BadDigest) as refused:
        decode(data, key, today=today)
    return refused.value.fault


ROW = [0, 1, 9, 1, 1, 1, 9, 9, 1, 1, 1, 1, 1, 1, 1, 2]
BAD = [
    {"device": "AB" * 16}, {"device": 1}, {"device": "ab" * 15 + "/."}, {"day": "20261128"}, {"day": "2026-02-30"}, {"day": 3}, {"revision": 0},
    {"revision": True}, {"revision": 1.0}, {"revision": 10**9}, {"coarse": -1}, {"coarse": 99}, {"final": 1}, {"site": "a\nb"},
    {"site": "x" * 65}, {"version": None}, {"signed": ["a"]}, {"signed": "x" * 81}, {"more": 1}, {"groups": {}}, {"groups": [["a", "b", "c"]]},
    {"groups": [["a", "b", "c", 1]]}, {"groups": [["a", "", "", ""], ["a", "", "", ""]]}, {"requests": [1]}, {"requests": [ROW[:15]]},
    {"requests": [ROW, ROW]}, {"requests": [[1, *ROW[1:]]]}, {"requests": [[-1, *ROW[1:]]]}, {"requests": [[0, 24, *ROW[2:]]]},
    {"requests": [[0, 1, 9.0, *ROW[3:]]]}, {"requests": [[0, 1, 10**9 + 1, *ROW[3:]]]}, {"requests": [[0, 1, 9, 10, *ROW[4:]]]},
    {"requests": [[*ROW[:6], -1, *ROW[7:]]]}, {"requests": [[*ROW[:6], 10**16, *ROW[7:]]]}, {"requests": [[*ROW[:15], 3]]},
    {"requests": [[*ROW[:15], float("nan")]]}, {"requests": [[*ROW[:15], None]]}, {"confidences": [[0, -2, 1]]},
    {"confidences": [[0, len(CONFIDENCES), 1]]}, {"confidences": [[0, 1, 1], [0, 1, 2]]}, {"audits": [[0, 1, 8, 1, 2, 0, 0, 0.1]]},
    {"audits": [[0, 1, 8, 2, 1, 2, 1, 0.1]]}, {"audits": [[0, 1, 5, 1, 0, 0, 0, 0.1]]}, {"audits": [[0, 1, -3, 1, 0, 0, 0, 0.1]]},
    {"audits": [[0, 1, 8, 1, 0, 0, 0, 0]]}, {"audits": [[0, 1, 8, 1, 0, 0, 0, 1.5]]}, {"audits": [[0, 1, 8, 1, 0, 0, 0, True]]},
    {"audits": [[0, 1, 8, 1, 0, 0, 0, float("inf")]]}, {"audits": [[0, 1, 8, 1, 0, 0, 0, 0.1], [0, 1, 4, 2, 0, 0, 0, 0.1]]},
]  # fmt: skip


@pytest.mark.parametrize("fields", BAD, ids=str)
def test_numbers_and_texts_out_of_range_are_refused(fields):
    """Each wrong type, range and repetition is malformed; the digest without it is read."""
    small = digest(requests=24, confidences=(), audits=())
    decode(packed(small))
    assert fault(packed(small, **fields)) == "malformed"


def test_damaged_forged_and_future_bytes_are_refused_by_kind():
    """Every cut, another key, another day, another format, bombs and keys that are there twice."""
    given = digest()
    data = encode(given, KEY)
    assert {fault(data[:n]) for n in range(1, len(data))} <= {"truncated", "malformed"}
    assert fault(data[:-1]) == "truncated"
    assert fault(data + b"x") == "malformed"
    assert fault(b"") == "truncated"
    assert fault(b"\0" * 2000) == "too large"
    assert fault(zlib.compress(b"[" * 60_000)) == "malformed"
    assert fault(zlib.compress(b" " * (1 << 17), 9)) == "too large"
    assert fault(zlib.compress(b'{"format":1,"format":1}')) == "malformed"
    assert fault(zlib.compress(b'{"format":1,"device":"\xff"}')) == "malformed"
    assert fault(zlib.compress(b'{"format":1,"revision":' + b"9" * 5000 + b"}")) == "malformed"
    assert fault(zlib.compress(b"[]")) == "version"
    assert fault(packed(given._replace(audits=()), format=FORMAT + 1)) == "version"
    assert fault(data, KEY + b"x") == "forged"
    assert fault(encode(given), KEY) == "forged"
    assert fault(zlib.compress(zlib.decompress(data).replace(b"plant-7", b"plant-8")), KEY) == "forged"
    assert fault(data, KEY, today="2026-11-27") == "future"
    assert decode(data) == decode(data, KEY, today="2026-11-28")


def test_a_flipped_bit_is_refused_or_changes_nothing():
    """Each bit of a signed digest; a few do not count in zlib's format."""
    given = encode(digest(requests=100), KEY)
    faults = []
    for bit in range(len(given) * 8):
        flipped = bytearray(given)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert decode(bytes(flipped), KEY) == decode(given)
        except BadDigest as e:
            faults.append(e.fault)
    assert len(faults) > len(given) * 8 - 16


def test_the_hmac_is_of_the_text_before_it():
    """So others can compute it without edgeroute: the JSON without its key `mac`, byte by byte."""
    text = zlib.decompress(encode(digest(), KEY))
    assert json.loads(text)["mac"] == mac(KEY, text[:-74] + b"}")
