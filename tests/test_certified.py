"""A router whose threshold comes with a guarantee: what it says, and when it says that the guarantee does not hold here."""

import json
import pickle
import re
import time

import numpy as np
import pytest
import routes
import tiny
from both import flat

from edgeroute import Audit, Egress, Ensemble, OnnxModel, OpenInference, Options, PlainJson, PolicyError, Router
from edgeroute.confidence import Certificate, Learned, calibrate, fit
from edgeroute.confidence.certificate import checksum_of
from edgeroute.edge.runtime_base import LoadsLate
from edgeroute.observe.target_counts import TOGETHER


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
        assert routes.judged(sure) == ("accepted", 1.0, certificate.threshold, certificate.label)
        assert unsure.source == "cloud"
        assert "the threshold of edge: certified, loss <= 2 %, 95 % sure" in router.check().lines


@pytest.mark.parametrize("change", [{"threshold": 0.0}, {"thresholds": {"edge": 0.0}}, {"value": 0.001}, {"sure": 0.999}])
def test_another_threshold_or_limit_is_not_what_was_certified(certificate, tmp_path, change):
    """Also of a file that was written since; what is said beside it may change."""
    changed = certificate._replace(**change)
    changed.save(tmp_path / "changed.json")
    for other in (changed, Certificate.load(tmp_path / "changed.json")):
        with Router(edge, cloud, threshold=other) as router:
            assert routes.uncalibrated(router.infer(1.0))
    noted = certificate._replace(doubts=("the labels are old",))
    noted.save(tmp_path / "noted.json")
    with Router(edge, cloud, threshold=Certificate.load(tmp_path / "noted.json")) as router:
        assert not routes.uncalibrated(router.infer(1.0))


def test_a_file_without_a_seal_keeps_its_checksum(certificate, tmp_path):
    """By it a router knows its alarms and audits again."""
    old = {name: value for name, value in certificate.as_dict().items() if name not in {"seal", "checksum"}}
    old["checksum"] = checksum_of(old)
    (tmp_path / "old.json").write_text(json.dumps(old))
    read = Certificate.load(tmp_path / "old.json")
    assert (read.checksum, read.matches()) == (old["checksum"], None)


def test_thresholds_of_classes_have_no_order(certificate):
    """As in a file that another program has written with its keys sorted."""
    tested = certificate._replace(thresholds={"b": 0.5, "a": 0.25}).sealed()
    other = tested._replace(thresholds={"a": 0.25, "b": 0.5})
    assert other == tested
    assert other.matches() is None


def test_for_another_model_it_is_uncalibrated(certificate):
    """The threshold is used, and every reason says that nothing is guaranteed for this edge or this cloud."""
    for given in (
        {"edge": lambda x: ("edge", x), "cloud": cloud},
        {"edge": edge, "cloud": other},
        {"edge": edge, "cloud": cloud, "score": "margin"},
    ):
        with Router(**flat(**given, threshold=certificate)) as router:
            answer = router.infer(1.0)
            assert routes.judged(answer)[:3] == ("accepted", 1.0, certificate.threshold)
            assert routes.uncalibrated(answer)
            assert any("uncalibrated: it was made for" in line for line in router.check().lines)


def test_one_that_is_bound_to_nothing_promises_nothing():
    """It does not say for which model it was made."""
    loose = calibrate(SCORE, RIGHT, CLOUD, max_loss=0.02)
    with Router(edge, cloud, threshold=[loose]) as router:
        assert routes.uncalibrated(router.infer(1.0))


OTHER = np.eye(4, 3)[:, ::-1]
SURE = np.array([9, 0, 0, 0], np.float32)


def promising(edge):
    """A certificate for the edge as its files are now, with a threshold that all answers reach."""
    with Router(edge, cloud, threshold=0.1) as router:
        return calibrate(SCORE, RIGHT, CLOUD, max_loss=0.02, fingerprints=router.fingerprints(), name="msp")._replace(
            threshold=0.1, seal=""
        )


def replaced(answer):
    """Whether the reason says that another file was loaded; otherwise it quotes the limit."""
    assert ("loss <=" in answer.reason) == (not routes.uncalibrated(answer, answer.leg))
    return "replaced" in answer.reason


@pytest.mark.parametrize("whole", [False, True], ids=["one", "in an ensemble"])
def test_a_file_replaced_before_it_is_loaded_breaks_it(tmp_path, whole):
    """At the first load, and at one after it was freed: from the first answer on, and also what was asked by a batch."""
    path = tiny.linear(tmp_path / "small.onnx")
    twin = tiny.linear(tmp_path / "twin.onnx")

    def made():
        model = OnnxModel(path)
        return model, Ensemble([model, twin], name="both") if whole else model

    threshold = promising(made()[1])
    model, given = made()
    with Router(given, cloud, threshold=threshold) as router:
        answer = router.infer(SURE, mode="only_edge")
        assert not replaced(answer)
        held = answer.reason
        tiny.linear(path, weights=OTHER)
        assert not replaced(router.infer(SURE, mode="only_edge")), "the first is still in memory"
        model.close()
        assert [replaced(a) for a in router.infer_many([SURE, SURE], mode="only_edge")] == [True, True]
        assert router.engine.snapshot.certificates[0].broken() == "the file of small was replaced before it was loaded"
        assert "loss <=" in held
        decision = pickle.loads(pickle.dumps(router.decide(SURE)))
        assert "was replaced before it was loaded" in decision.steps[-1]
        assert "was replaced" in decision.plan.legs[0].moved()
    tiny.linear(path)
    with Router(made()[1], cloud, threshold=threshold) as router:
        tiny.linear(path, weights=OTHER)
        assert replaced(router.infer(SURE, mode="only_edge"))


def test_the_file_that_is_loaded_is_compared_not_one_before(tmp_path):
    """The same content again is the same model; and a model loaded for another router earlier is no reason, once it was freed."""
    path = tiny.linear(tmp_path / "small.onnx")
    model, content = OnnxModel(path), path.read_bytes()
    threshold = promising(OnnxModel(path))
    tiny.linear(path, weights=OTHER)
    model.load()
    path.write_bytes(content)
    with Router(model, cloud, threshold=threshold) as router:
        assert replaced(router.infer(SURE, mode="only_edge")), "it is in memory"
    assert not model.in_memory
    with Router(model, cloud, threshold=threshold, options=Options(uncalibrated="error")) as router:
        path.unlink()
        path.write_bytes(content)
        assert not replaced(router.infer(SURE, mode="only_edge"))


def test_a_model_without_a_hash_is_known_by_the_time_and_size_of_its_file(tmp_path):
    """As language models are, which are hashed for a certificate, and not again by loading."""

    class Words(LoadsLate):
        def _load(self):
            return self.path.read_text()

        def run(self, inputs, cancel=None):
            self.load()
            return [("edge", 0.9)] * len(inputs)

    path = tmp_path / "words.txt"
    path.write_text("one")
    model = Words(path, card=None, sha256=None)
    with Router(model, cloud, threshold=promising(model)) as router:
        assert not replaced(router.infer(1.0, mode="only_edge"))
        path.write_text("three")
        model.close()
        assert replaced(router.infer(1.0, mode="only_edge"))


def test_what_a_certificate_cannot_promise_is_refused(certificate):
    """Answers without a confidence, and what is no certificate."""
    with pytest.raises(PolicyError, match="no_confidence has to be 'defer'"):
        Router(edge, cloud, threshold=certificate, options=Options(no_confidence="accept"))
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
            assert ("uncalibrated" in router.engine.snapshot.targets[0].label) != known


# Thresholds of each class


def typed(x):
    return x


@pytest.fixture(scope="module")
def each():
    """`cat` is accepted from about .7 on, `dog` never: its examples do not suffice."""
    label = np.where(RNG.uniform(size=3000) < 0.99, "cat", "dog")
    score = RNG.uniform(size=3000)
    right = RNG.uniform(size=3000) < np.minimum(1, 0.6 + score / 2)
    with Router(typed, cloud, threshold=0.5) as router:
        prints = router.fingerprints()
    with pytest.warns(UserWarning, match="dog"):
        return calibrate(score, right, max_error=0.05, per_class=label, fingerprints=prints)


def test_each_answer_has_the_threshold_of_its_class(each):
    """One with a class of too few examples, or of none, goes to the cloud however sure the edge is."""
    own = each.thresholds["cat"]
    with Router(typed, cloud, threshold=each) as router:
        sure, unsure = router.infer(("cat", 1.0)), router.infer(("cat", own - 0.01))
        assert routes.judged(sure) == ("accepted", 1.0, own, each.label)
        assert routes.judged(unsure) == ("below", own - 0.01, own, each.label)
        assert unsure.source == "cloud"
        for label in ("dog", "cow"):
            asked = router.infer((label, 1.0))
            assert asked.source == "cloud"
            assert routes.judged(asked) == ("below", 1.0, "inf", each.label)
        assert router.infer(("cat", own)).source == "edge"
        assert router.infer(("dog", float("inf"))).source == "cloud", "nothing is sure enough"
        assert [a.source for a in router.infer_many([("cat", 1.0), ("dog", 1.0)])] == ["edge", "cloud"]
        assert routes.judged(router.infer(("dog", 1.0), mode="only_edge")) == ("accepted", 1.0, "inf", each.label)
        with router.stream(("dog", 1.0)) as stream:
            list(stream)
            assert stream.answer.source == "cloud"
        assert router.decide(("dog", 1.0)).sends_to
        assert not router.decide(("cat", 1.0)).sends_to


def test_the_trace_tells_the_threshold_of_the_answer(each):
    """As an event of its own, and what is infinite in words: JSON knows no infinity."""
    with Router(typed, cloud, threshold=each) as router:
        told = router.infer(("dog", 1.0)).trace
        assert [(e["what"], e.get("threshold")) for e in told["events"]][:3] == [
            ("start", None),
            ("limit", "inf"),
            ("below", None),
        ]
        assert told["plan"][0]["threshold"] == "inf"
        json.dumps(told, allow_nan=False)
        assert router.stats().legs[0].answered == 1


# What the owner asks for


def test_one_that_does_not_hold_can_be_refused(certificate):
    """So is a plain number; the one that holds is not."""
    Router(edge, cloud, threshold=certificate, options=Options(uncalibrated="error")).close()
    Router(edge, threshold=None, mode="only_edge", options=Options(uncalibrated="error")).close()
    for wrong, why in ((0.5, "plain number"), (certificate, "made for cloud model")):
        with pytest.raises(PolicyError, match=rf"the threshold of edge guarantees nothing here .*{why}"):
            Router(edge, other, threshold=wrong, options=Options(uncalibrated="error"))
    with pytest.raises(PolicyError, match="there is no uncalibrated 'maybe'"):
        Router(edge, cloud, threshold=certificate, options=Options(uncalibrated="maybe"))


def test_it_ages_while_it_is_used(certificate, monkeypatch):
    """The reason says so a minute later at most, without a restart."""
    day = 86400.0
    with Router(edge, cloud, threshold=certificate, options=Options(certificate_max_age=30 * day)) as router:
        assert routes.label(router.infer(1.0)) == certificate.label
        then = time.time() + 40 * day
        monkeypatch.setattr("edgeroute.confidence.certificate.now", lambda: then)
        router.engine.refresh_at = -1.0  # the minute is over
        for _ in range(TOGETHER):
            router.infer(1.0)
        answer = router.infer(1.0)
        assert routes.uncalibrated(answer)
        assert re.findall(r"\d+", routes.label(answer)) == ["40", "30"]


def test_what_is_sent_is_part_of_it(certificate):
    """Another redaction, and the cloud sees something else."""
    with Router(edge, cloud, threshold=certificate, egress=Egress(redact=lambda x, _: x)) as router:
        answer = router.infer(1.0)
        assert routes.uncalibrated(answer)
        assert "codec" in answer.reason


def test_a_card_of_the_endpoint_is_part_of_it(tmp_path):
    """It says what becomes of the input before it is sent."""
    url, card = "http://127.0.0.1:1/v2/models/m", tmp_path / "card.json"
    card.write_text("{}")
    with Router(edge, OpenInference(url, card=card), threshold=0.5) as one, Router(edge, url, threshold=0.5) as two:
        assert one.fingerprints()["codec"] != two.fingerprints()["codec"]
    with Router(edge, PlainJson("http://127.0.0.1:1"), threshold=0.5) as three:
        assert three.fingerprints()["codec"] == "PlainJson"


# ------------------------------------------------------------------------------------------------------------------ ladders
def small(x):
    return "small", x


def larger(x):
    return "larger", x


def of_ladder(thresholds, number, edges=(small, larger)):
    """A certificate for that edge of a ladder with these thresholds."""
    with Router(list(edges), cloud, threshold=thresholds) as router:
        return calibrate(SCORE, RIGHT, CLOUD, max_loss=0.02, sure=0.95, fingerprints=router.fingerprints(number))


def labels(router):
    return [target.label for target in router.engine.snapshot.targets if target.side == "edge"]


@pytest.fixture(scope="module")
def first():
    return of_ladder([0.5, 0.5], 0)


def test_a_later_edge_has_a_promise_of_what_reaches_it(first):
    """It is bound to the edge before it and that one's threshold, and says so."""
    second = of_ladder([first, 0.5], 1)
    assert f"the {second.n:,} examples of {second.date}, and that the edge models before it defer:" in second.guarantee
    with Router([small, larger], cloud, threshold=[first, second], options=Options(uncalibrated="error")) as router:
        assert all(label.endswith("of all edge models together, 85 % sure") for label in labels(router))
        assert router.fingerprints(1)["earlier"] == second.fingerprints["earlier"]


@pytest.mark.parametrize("made", ["as a first edge", "another threshold", "another model", "a plain number"])
def test_a_later_edge_that_other_inputs_reach_is_uncalibrated(first, made):
    """The threshold is used, and nothing confirms a guarantee that was not certified."""
    given = first
    if made == "as a first edge":
        second = of_ladder([0.5], 0, edges=[larger])
        why = "it was made for all inputs, and only those that the edge models before it defer reach this one"
    else:
        second = of_ladder(
            [0.25 if made == "another threshold" else first, 0.5], 1, [other if "model" in made else small, larger]
        )
        given = first.threshold + 0.01 if made == "a plain number" else first
        why = "the edge models before it, or their thresholds, are not those that it was made for"
    with Router([small, larger], cloud, threshold=[given, second]) as router:
        assert labels(router)[1].startswith(f"uncalibrated: {why}")
    with pytest.raises(PolicyError, match=r"the threshold of (small|larger) guarantees nothing here"):
        Router([small, larger], cloud, threshold=[given, second], options=Options(uncalibrated="error"))


def test_a_later_edge_that_is_first_now_is_uncalibrated(first):
    """What reaches it is more than it was made for."""
    second = of_ladder([first, 0.5], 1)
    with Router(larger, cloud, threshold=second) as router:
        assert labels(router) == ["uncalibrated: it was made for what the edge models before it defer, and there are none"]


def test_a_threshold_that_an_alarm_raised_ends_the_promises_after_it(first):
    """More reaches the later edges then; a new calibration is for the threshold that the model was given."""
    second = of_ladder([first, 0.5], 1)
    with Router([small, larger], cloud, threshold=[first, second], audit=Audit(share=1.0, on_alarm="raise")) as router:
        monitor = router.engine.auditor.watch("small")
        monitor.at_least = 2.0
        router.engine.refresh_thresholds()
        assert (
            labels(router)[1] == "uncalibrated: small, whose threshold was raised, defers more to it than when it was calibrated"
        )
        assert router.fingerprints(1) == {**second.fingerprints}
        monitor.at_least = -np.inf
        router.engine.refresh_thresholds()
        assert all(label.endswith("of all edge models together, 85 % sure") for label in labels(router))
