"""A router whose threshold comes with a promise: what it says, and when it says that the promise does not hold here."""

import numpy as np
import pytest

from edgeroute import PolicyError, Router
from edgeroute.confidence import Learned, calibrate, fit


def edge(x):
    return "edge", x


def cloud(_):
    return "cloud"


def other(_):
    return "another"


RNG = np.random.default_rng(0)
SCORE = RNG.uniform(size=2000)
RIGHT = RNG.uniform(size=2000) < 0.5 + SCORE / 2
CLOUD = RNG.uniform(size=2000) < 0.97


@pytest.fixture(scope="module")
def certificate():
    with Router(edge, cloud, threshold=0.5) as router:
        return calibrate(SCORE, RIGHT, CLOUD, max_loss=0.02, sure=0.95, fingerprints=router.fingerprints())


def test_the_reason_quotes_the_promise(certificate):
    """So does check; below the threshold the cloud is asked, as with a number."""
    with Router(edge, cloud, threshold=certificate) as router:
        sure, unsure = router.infer(1.0), router.infer(certificate.threshold - 0.01)
        assert sure.reason == f"edge 1.00 >= {certificate.threshold:.2f} (loss <= 2 %, 95 % sure)"
        assert unsure.source == "cloud"
        assert "the threshold of edge: certified, loss <= 2 %, 95 % sure" in router.check().lines


def test_for_another_model_it_is_uncalibrated(certificate):
    """The threshold is used, and every reason says that nothing is promised for this edge or this cloud."""
    for given in (
        {"edge": lambda x: ("edge", x), "cloud": cloud},
        {"edge": edge, "cloud": other},
        {"edge": edge, "cloud": cloud, "score": "margin"},
    ):
        with Router(**given, threshold=certificate) as router:
            assert "(uncalibrated: it was made for" in router.infer(1.0).reason
            assert any("uncalibrated: it was made for" in line for line in router.check().lines)


def test_one_that_is_bound_to_nothing_promises_nothing():
    """It does not say for which model it was made."""
    loose = calibrate(SCORE, RIGHT, CLOUD, max_loss=0.02)
    with Router(edge, cloud, threshold=[loose]) as router:
        assert "uncalibrated: it does not say for which edge model" in router.infer(1.0).reason


def test_what_a_certificate_cannot_promise_is_refused(certificate):
    """Answers without a confidence, thresholds for each class, and what is no certificate."""
    with pytest.raises(PolicyError, match="no_confidence has to be 'defer'"):
        Router(edge, cloud, threshold=certificate, no_confidence="accept")
    with pytest.raises(PolicyError, match="for each class cannot be used"):
        Router(edge, cloud, threshold=certificate._replace(thresholds={"a": 0.5}))
    with pytest.raises(PolicyError, match="a threshold is a number or a certificate"):
        Router(edge, cloud, threshold="high")


def test_a_learned_score_is_known_by_its_fingerprint():
    """The same score in another object is the same; one that was fitted to other data is not."""
    logits = RNG.normal(size=(400, 3)) * 3
    right, better = RNG.uniform(size=400) < 0.7, RNG.uniform(size=400) < 0.9
    score, twin = fit(logits, right, better), fit(logits, right, better)
    foreign: Learned = fit(logits, right[::-1], better)

    def model(x):
        return x

    with Router(model, cloud, threshold=0.5, score=score) as router:
        made = calibrate(score.many(logits), right, better, max_loss=0.1, fingerprints=router.fingerprints())
    for used, known in ((twin, True), (foreign, False)):
        with Router(model, cloud, threshold=made, score=used) as router:
            assert ("uncalibrated" in router._live.targets[0].label) != known
