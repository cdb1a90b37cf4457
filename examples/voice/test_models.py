"""The models of spoken commands and intents: sizes, labels, features, and what they say to real input."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import commands
import features
import intents
import numpy as np
import pytest
import text_features

from edgeroute import BadInput, OnnxModel, Router

MODELS = Path(__file__).parent / "models"
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NO_ESPEAK = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")


def say(text, *how):
    """espeak-ng's audio: float32 [samples], and its rate."""
    wav = subprocess.run(["espeak-ng", *how, "--stdout", text], capture_output=True, check=True).stdout
    return np.frombuffer(wav[44:], "<i2").astype(np.float32) / 32768, int.from_bytes(wav[24:28], "little")


def never(_):
    raise AssertionError("the cloud was asked")


@pytest.mark.parametrize(
    ("name", "limit"),
    [("digits.int8", 100_000), ("digits-large", 4_000_000), ("intents.int8", 600_000), ("intents-large", 4_000_000)],
)
def test_models_are_as_small_as_they_should_be_and_have_cards(name, limit):
    card = json.loads((MODELS / f"{name}.json").read_text())
    assert (MODELS / f"{name}.onnx").stat().st_size == card["bytes"] <= limit
    assert "CC BY" in card["data"]
    assert card["licence"]


def test_both_models_of_a_pair_have_the_same_labels():
    assert commands.edge().labels == commands.cloud().labels == (*DIGITS, commands.OTHER)
    assert intents.edge().labels == intents.cloud().labels
    assert len(intents.edge().labels) == 150


def test_features_are_the_same_at_any_loudness_rate_and_place():
    rng = np.random.default_rng(0)
    tone = np.sin(2 * np.pi * 500 * np.arange(8_000) / 16_000) * np.hanning(8_000)
    audio = (0.5 * tone + 0.001 * rng.normal(size=8_000)).astype(np.float32)
    one = features.log_mel(audio, 16_000)
    assert one.shape == (1, 64, 32)
    assert one.dtype == np.float32
    assert -1.001 < one.min() < one.max() < 1.001
    np.testing.assert_array_equal(one, features.log_mel(audio, 16_000))
    np.testing.assert_allclose(one, features.log_mel(audio / 8, 16_000), atol=1e-4)
    for other, rate in ((audio[::2], 8_000), (np.pad(audio, (4_096, 0)), 16_000)):
        assert np.abs(one - features.log_mel(other, rate)).mean() < 0.05


def test_audio_of_any_length_has_features_and_silence_too():
    for length in (1, 200, 8_320, 100_000):
        assert np.isfinite(features.log_mel(np.zeros(length, np.float32))).all()
        assert features.log_mel(np.ones(length, np.float32)).shape == (1, 64, 32)


@pytest.mark.parametrize(
    ("audio", "rate", "reason"),
    [
        (np.zeros(100, np.int16), 16_000, "float32"),
        (np.zeros((100, 2), np.float32), 16_000, "mono"),
        (np.zeros(0, np.float32), 16_000, "float32"),
        (np.full(100, np.nan, np.float32), 16_000, "NaN"),
        (np.zeros(100, np.float32), 4_000, "4000 Hz"),
    ],
)
def test_audio_that_is_none_is_refused(audio, rate, reason):
    with pytest.raises(BadInput, match=reason):
        features.log_mel(audio, rate)


def test_sentences_become_hashes_of_their_pieces():
    assert text_features.pieces("Go, go!") == ["go", "go go", "<go", "go>", "<go>"]
    ids = text_features.piece_ids("Turn the lights off")
    np.testing.assert_array_equal(ids, text_features.piece_ids("turn THE lights off!"))
    assert ids.dtype == np.int64
    assert ids.shape == (text_features.MOST,)
    assert np.count_nonzero(ids) == len(text_features.pieces("turn the lights off")) == len({*ids.tolist()} - {0})
    assert not text_features.piece_ids("?!").any()
    assert text_features.piece_ids("antidisestablishmentarianism " + " ".join(f"word{i}" for i in range(1_000))).all()


@NO_ESPEAK
@pytest.mark.parametrize("voice", ["en", "en-us", "en-gb+f2"])
def test_digits_of_a_synthesised_voice_are_recognised_on_the_device(voice):
    for rate in (22_050, 16_000):
        with Router(commands.edge(rate), never, threshold=0.5) as router:
            for digit in DIGITS:
                audio, made_at = say(digit, "-v", voice)
                at = np.arange(0, len(audio) - 1, made_at / rate)
                audio = np.interp(at, np.arange(len(audio)), audio).astype(np.float32)
                assert router.infer(audio).value == digit


@NO_ESPEAK
def test_other_words_and_noise_are_no_digits():
    rng = np.random.default_rng(0)
    sounds = [(say(word)[0], 22_050) for word in ("hello", "umbrella", "computer", "good morning")]
    sounds += [(rng.normal(size=16_000).astype(np.float32) / 10, 16_000), (np.zeros(16_000, np.float32), 16_000)]
    for audio, rate in sounds:
        with Router(commands.edge(rate), lambda _: (commands.OTHER, 1.0), threshold=0.8) as router:
            answer = router.infer(audio)
            assert (answer.value, answer.degraded) == (commands.OTHER, False)


@pytest.mark.parametrize(
    ("sentence", "intent"),
    [
        ("set an alarm for half past six tomorrow morning", "alarm"),
        ("what will the weather be like this weekend", "weather"),
        ("how much money do I have in my checking account", "balance"),
        ("tell me a joke", "tell_joke"),
        ("book me a flight from Berlin to Rome", "book_flight"),
    ],
)
def test_intents_of_plain_sentences(sentence, intent):
    for model in (intents.edge(), intents.cloud()):
        with Router(model, never, threshold=0.5) as router:
            assert router.infer(sentence).value == intent


@pytest.mark.parametrize(
    "sentence", ["who painted the ceiling of that chapel", "is a whale a fish", "purple seven because upstairs", "?"]
)
def test_what_has_no_intent_is_deferred(sentence):
    with Router(intents.edge(), lambda _: ("maybe", 1.0), threshold=0.5) as router:
        assert router.infer(sentence).source == "cloud"


def test_a_sentence_is_text():
    with Router(intents.edge(), never, threshold=0.5) as router, pytest.raises(BadInput, match="text"):
        router.infer(b"tell me a joke")


def test_by_a_policy_the_files_take_the_features():
    """As the example's policies have them, the larger one behind a server."""
    with Router(OnnxModel(MODELS / "intents.int8.onnx"), never, threshold=0.5) as router:
        sentences = ["tell me a joke", "set an alarm for half past six tomorrow morning"]
        answers = router.infer_many([text_features.piece_ids(sentence) for sentence in sentences])
        assert [answer.value for answer in answers] == ["tell_joke", "alarm"]
    with Router(OnnxModel(MODELS / "digits.int8.onnx"), lambda _: ("other", 1.0), threshold=0.5) as router:
        assert router.infer(features.log_mel(np.random.default_rng(0).normal(size=9_000).astype(np.float32))).value == "other"


def test_models_answer_the_same_each_time():
    audio = np.random.default_rng(0).normal(size=9_000).astype(np.float32)
    for make, given in ((commands.edge, audio), (intents.edge, "pay the electricity bill")):
        first, second = make(), make()
        np.testing.assert_array_equal(first.run([given])[0], second.run([given])[0])
        np.testing.assert_array_equal(first.run([given])[0], first.run([given])[0])
