"""What cloud, edge and labels call the same thing: no guarantee is certified, and none has held, where nothing was compared."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from both import Tasks, Threads

from edgeroute import Audit, BadInput, BadReply, CallableModel, Function, PlainJson, Router
from edgeroute.confidence import Certificate, calibrate
from edgeroute.confidence.output_forms_labels_and_comparison import Labels, label_form, labels_by_form, same
from edgeroute.tools.cli.prompt_reading_and_grading import read_prompts
from edgeroute.tools.measure.certification_and_verdicts import verdicts
from edgeroute.tools.measure.collect_edge_and_cloud import label_values
from edgeroute.tools.measure.report.report_pages_and_results import calibration_page, evaluation_page

pytestmark = pytest.mark.pure

BOTH = pytest.mark.parametrize("kind", [Threads, Tasks])
PETS = ["cat", "dog", "bird"]
N = 400
RNG = np.random.default_rng(5)
Y = RNG.integers(0, 3, N)
"""The right class of input i."""
SURE = RNG.uniform(size=N)
EDGE = np.where(RNG.uniform(size=N) < 0.8 + SURE / 5, Y, (Y + 1) % 3)
CLOUD = np.where(RNG.uniform(size=N) < 0.99, Y, (Y + 1) % 3)
X = list(range(N))


def edge(labels, name="1"):
    """An edge model that answers input i with its label."""

    def answers(i):
        return labels[EDGE[i]], float(SURE[i])

    answers.version = name
    return answers


def cloud(spell):
    """A cloud that gives `spell` of the class."""
    return Function(lambda i: spell(int(CLOUD[i])), version="1")


@contextmanager
def serving(spell):
    """A JSON API on loopback whose value is `spell` of the class of the input -> an endpoint for it."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version, wbufsize = "HTTP/1.1", -1

        def do_POST(self):
            i = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
            body = json.dumps({"value": spell(int(CLOUD[i])), "confidence": 0.9}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield PlainJson(f"http://127.0.0.1:{server.server_port}/")
        finally:
            server.shutdown()
            thread.join()


DIGITS = [5, 3, 8]
SPELT = [
    pytest.param(DIGITS, lambda c: str(DIGITS[c]), id="digits"),
    pytest.param(DIGITS, lambda c: f" {DIGITS[c]}.0\n", id="digits of a float"),
    pytest.param([str(d) for d in DIGITS], lambda c: DIGITS[c], id="numbers"),
    pytest.param(PETS, lambda c: PETS[c].title(), id="case"),
    pytest.param(["a  red car", "a Bus", "rain"], lambda c: ["A red\tcar ", " a bus", "Rain"][c], id="white space"),
]


def known(labels):
    """The labels of the inputs."""
    return [labels[Y[i]] for i in X]


@pytest.mark.parametrize(("labels", "spell"), SPELT)
@BOTH
def test_another_spelling_of_a_label_is_that_label(kind, labels, spell):
    """The guarantee is that of a cloud which spells as the labels do, the notes say so, and an evaluation finds it kept."""
    certificates = []
    for given in (cloud(lambda c: labels[c]), cloud(spell)):
        with closing(kind(edge(labels), given, threshold=0.5)) as router:
            made = router.calibrate(X, known(labels), max_loss=0.05)
            certificates.append(made.certificate)
            noted = [note for note in made.notes if "in another form" in note]
        with closing(kind(edge(labels), given, threshold=made.certificate)) as router:
            result = router.evaluate(X, known(labels))
        assert result.accuracy["cloud"].value > 0.95
        assert result.held
    assert noted
    assert noted[0].startswith("the cloud gives labels in another form (")
    assert any("in another form" in note for note in result.notes)
    plain, spelt = certificates
    assert (spelt.threshold, spelt.accuracy) == (plain.threshold, plain.accuracy)
    assert plain.deferral_rate > 0.05


@pytest.mark.parametrize(("labels", "spell"), [SPELT[0], SPELT[3]])
def test_a_json_api(labels, spell):
    """Most write numbers as text; a real server, with labels and without, and audits that compare as the calibration did."""
    with serving(spell) as there:
        with Router(edge(labels), there, threshold=0.5) as router:
            made = router.calibrate(X, known(labels), max_loss=0.05)
            agreed = router.calibrate(X, max_loss=0.1)
        assert made.certificate.accuracy["cloud"] > 0.95
        assert agreed.certificate.accuracy["edge"] > 0.8
        assert all(any("in another form" in note for note in result.notes) for result in (made, agreed))
        with Router(edge(labels), there, threshold=0.0, audit=Audit(share=1, scene=1)) as router:
            for i in X[:50]:
                router.infer(i)
            while router.engine.auditor.jobs.busy:
                threading.Event().wait(0.01)
            (audits,) = router.stats().audits
        assert audits.audited >= 10
        assert audits.disagreed < audits.audited / 2


def test_bytes():
    """As some message queues give them."""
    with Router(edge(PETS), cloud(lambda c: PETS[c].encode()), threshold=0.5) as router:
        made = router.calibrate(X, known(PETS), max_loss=0.05)
    assert made.certificate.accuracy["cloud"] > 0.95
    assert "labels in another form (b'" in made.notes[0]


NEVER = [
    pytest.param(PETS, lambda c: c, "gives numbers", id="an index for a name"),
    pytest.param(PETS, str, "gives numbers", id="an index as text"),
    pytest.param(PETS, lambda c: {"label": PETS[c], "score": 0.9}, "a mapping of 2", id="a mapping"),
    pytest.param(PETS, lambda c: [PETS[c]], "list of 1", id="a list"),
    pytest.param(DIGITS, lambda c: f"digit {DIGITS[c]}", "'digit ", id="words around it"),
    pytest.param(PETS, lambda c: ["chat", "chien", "oiseau"][c], "is ever one of the labels", id="another language"),
    pytest.param(["0.1", "2.5", "3.7"], lambda c: [0.11, 2.4, 3.8][c], "is ever one of the labels", id="regression"),
]


@pytest.mark.parametrize(("labels", "spell", "what"), NEVER)
@pytest.mark.parametrize("by", ["function", "server"])
def test_an_answer_that_is_never_a_label_is_an_error(labels, spell, what, by):
    """Of the cloud, which would count as never right, and so nothing as lost; whatever is asked for."""
    with serving(spell) as there:
        given = there if by == "server" else Function(lambda i: (spell(int(CLOUD[i])), 0.9), version="1")
        with Router(edge(labels), given, threshold=0.5) as router:
            for call in (lambda: router.calibrate(X, known(labels), max_loss=0.02), lambda: router.evaluate(X, known(labels))):
                with pytest.raises(BadInput, match=r"(none of the cloud's [0-9]+ answers|the answer of the cloud) \(") as raised:
                    call()
                assert what in str(raised.value)
                assert "\n" not in str(raised.value)


def test_a_mapping_with_other_keys_than_the_labels_is_an_error():
    """It would equal none of them, and so nothing would count as lost; with the same keys it is compared."""
    labels = [{"label": name} for name in PETS]
    for value, right in ((lambda c: {"label": PETS[c], "score": 0.9}, False), (lambda c: {"label": PETS[c]}, True)):
        far = Function(lambda i, value=value: (value(int(CLOUD[i])), 0.9), version="1")
        with Router(edge(labels), far, threshold=0.5) as router:
            if right:
                assert router.calibrate(X, known(labels), max_loss=0.05).certificate.accuracy["cloud"] > 0.95
                continue
            with pytest.raises(BadInput, match=r"cloud's? .*\(a mapping of 2\).*labels \(a mapping of 1\)"):
                router.calibrate(X, known(labels), max_loss=0.05)


def test_the_edge_like_the_cloud():
    """Of the edge, which would lose all; and of both, where nothing would be lost."""
    with Router(edge(["Katze", "Hund", "Vogel"]), cloud(lambda c: PETS[c]), threshold=0.5) as router:
        with pytest.raises(BadInput, match=r"(none of the edge's [0-9]+ answers|the answer of the edge) \("):
            router.calibrate(X, known(PETS), max_loss=0.02)
        with pytest.raises(BadInput, match=r"(none of the edge's [0-9]+ answers|the answer of the edge) \("):
            router.evaluate(X, known(PETS), ask_cloud=False)
    with (
        Router(edge(["Katze", "Hund", "Vogel"]), cloud(lambda c: ["Katze", "Hund", "Vogel"][c]), threshold=0.5) as router,
        pytest.raises(BadInput, match=r"(none of the edge's [0-9]+ answers|the answer of the edge) \("),
    ):
        router.calibrate(X, known(PETS), max_loss=0.02)


def test_without_labels_edge_and_cloud_are_compared():
    """Kinds that never agree are an error; another spelling is not."""
    with (
        Router(edge(PETS), cloud(lambda c: ({"label": PETS[c]}, 0.9)), threshold=0.5) as router,
        pytest.raises(BadInput, match=r"(none of the cloud's [0-9]+ answers|the answer of the cloud) \("),
    ):
        router.calibrate(X, max_loss=0.02)
    with Router(edge(PETS), cloud(lambda c: ["chat", "chien", "oiseau"][c]), threshold=0.5) as router:
        made = router.calibrate(X, max_loss=0.02)
    assert made.certificate.deferral_rate > 0.95
    assert any(note.startswith("none of the cloud's 400 answers") for note in made.notes)


LETTERS = ["A", "a", "B", "b"]
CASES = np.where(SURE < 0.3, (Y % 2) * 2 + 1 - np.arange(N) % 2, (Y % 2) * 2 + np.arange(N) % 2)
"""What an edge answers that takes A for a and B for b on the 30 % of the inputs on which it is least sure: an index of LETTERS."""


@pytest.mark.parametrize("given", ["y", "answers", "label"])
@BOTH
def test_labels_that_differ_in_case_alone_are_different_labels(kind, given):
    """Nothing else is certified than with the labels written down, and an evaluation finds the errors."""
    letters = [LETTERS[(Y[i] % 2) * 2 + i % 2] for i in X]

    def answers(i):
        return LETTERS[CASES[i]], float(SURE[i])

    answers.version = "1"
    right = {"y": (letters,), "answers": (), "label": ()}[given]
    asked = {"label": lambda i: letters[i]} if given == "label" else {}
    thresholds = []
    for small in (answers, CallableModel(answers, version="1", labels=LETTERS)):
        with closing(kind(small, Function(lambda i: letters[i], version="1"), threshold=0.5)) as router:
            made = router.calibrate(X, *right, max_loss=0.05, **asked)
            thresholds.append(made.certificate.threshold)
            result = router.evaluate(X, *right)
            assert made.certificate.deferral_rate > 0.2
            assert result.accuracy["edge"].value == pytest.approx((SURE >= 0.3).mean())
            if given == "y":
                assert result.accuracy["cloud"].value == 1
        if small is answers:
            assert any("are different labels" in note for note in made.notes)
    assert thresholds[0] == pytest.approx(thresholds[1])


def test_one_spelling_too_many_is_no_other_label():
    """A target that writes one label in two ways gives that label, also without ground truth."""
    with Router(edge(PETS), Function(lambda i: PETS[CLOUD[i]].title() if i % 2 else PETS[CLOUD[i]]), threshold=0.5) as router:
        assert router.evaluate(X, known(PETS)).accuracy["cloud"].value > 0.95
        assert router.evaluate(X).accuracy["edge"].value == pytest.approx((EDGE == CLOUD).mean())


def test_a_class_under_another_name():
    """Answers that are no label are noted where there are more than a few."""
    with Router(edge(PETS), cloud(lambda c: ["cat", "dog", "parrot"][c]), threshold=0.5) as router:
        notes = router.evaluate(X, known(PETS)).notes
    assert f"{sum(CLOUD == 2)} of 400 answers of the cloud ('parrot') are none of the labels" in notes


def test_a_few_may_all_be_wrong():
    """Of few examples it may be chance that none is right; another kind of answer is never."""
    with Router(edge(PETS), cloud(lambda c: PETS[c]), threshold=0.5) as router:
        assert router.evaluate(X[:5], ["horse"] * 5).accuracy["cloud"].value == 0
        with pytest.raises(BadInput, match="it gives text, and the labels are numbers"):
            router.evaluate(X[:5], [0] * 5)


def test_labels_are_matched_to_the_names_of_a_model():
    """Labels of a file that are spelt otherwise than the classes of the model."""
    labels = Labels(["cat", "Dog", 5, "x", "X"], "the model")
    assert [labels.same(value) for value in ("Cat ", b"dog", "5", 5.0, "x", "X", "?")] == ["cat", "Dog", 5, 5, "x", "X", "?"]

    def scores(i):
        return np.eye(3)[EDGE[i]] * (1 + SURE[i])

    with Router(scores, Function(lambda i: PETS[CLOUD[i]].upper(), version="1", labels=PETS), threshold=0.5) as router:
        assert router.infer(0, mode="only_cloud").value in PETS


def test_forms():
    """Text by its letters, numbers by their digits; what differs otherwise stays different, and what is ambiguous is nothing."""
    alike = [("5", 5), ("5.0", 5), (5.0, "5"), (np.int64(5), "5"), (np.array(["Cat"]), "cat "), (b"cat", "CAT"), (True, "true")]
    assert all(same(one, other) for one, other in alike)
    unlike = [
        ("05", 5),
        ("5.5", 5),
        ("cat", "cats"),
        ({"a": 1}, "a"),
        (None, "none"),
        (float("nan"), float("nan")),
        (b"\xff", "?"),
    ]
    assert not any(same(one, other) for one, other in unlike)
    assert same(np.arange(3), np.arange(3))
    assert not same(np.arange(3), np.arange(4))
    assert label_form(float("inf")) is label_form([1]) is None
    assert labels_by_form(["us", "US", "de", "DE ", "fr", 1, 1.0]) == {"fr": "fr", "1": 1}


MARKED = [
    pytest.param("A", "A*", 0.6, id="a star on one side"),
    pytest.param("5'", '5"', 0.6, id="feet and inches"),
    pytest.param("no", "no!", 0.6, id="an exclamation mark"),
    pytest.param("A", "**A**", 1, id="stars on both sides"),
    pytest.param("A", '"A".', 1, id="quotes and a full stop"),
]


@pytest.mark.parametrize(("label", "other", "agreed"), MARKED)
def test_marks_of_a_label_on_one_side(label, other, agreed):
    """They may be its own, as those of a grade: the other answer is another. What a chat model writes around it is noted."""
    far = Function(lambda i: other if i % 5 < 2 else label, version="1")
    with Router(edge([label] * 3), far, threshold=0.5) as router:
        made, result = router.calibrate(X, max_loss=0.05), router.evaluate(X)
    assert result.accuracy["edge"].value == pytest.approx(agreed)
    assert (made.certificate.deferral_rate > 0.5) == (agreed < 1)
    assert any("in another form" in note for note in made.notes) == (agreed == 1)


def test_labels_that_differ_in_marks_around_them():
    """Known as different labels, they are different, and a form of both is neither; the only label that is meant is found."""
    both = Labels(["no", "no.", "yes"], "the model")
    assert [both.same(value) for value in ("no", "no.", "NO.", '"yes"!')] == ["no", "no.", "NO.", "yes"]
    with Router(
        CallableModel(edge(["no", "no.", "no"]), labels=["no", "no."], version="1"),
        Function(lambda i: "no", version="1"),
        threshold=0.5,
    ) as router:
        assert router.evaluate(X).accuracy["edge"].value == pytest.approx((EDGE != 1).mean())


def test_a_long_text_of_marks():
    """It is no label, and takes no time that grows with the square of its length."""
    assert same("'" * 1_000_000, "'" * 1_000_000)
    assert not same("'" * 1_000_000, "'")


# --- labels that are names or indices


NAMED = sorted(map(str, range(12)))
"""Names of 12 classes in the order of texts: the index of "2" is 4."""
TWELVE = np.arange(N) % 12


def twelve(names):
    """An edge model of 12 classes with these names, right in 3 of 4."""

    def scores(i):
        z = np.zeros(12)
        z[names.index(str((TWELVE[i] + (i % 4 == 0)) % 12))] = 2 + SURE[i]
        return z

    return CallableModel(scores, labels=names, kind="logits", version="1")


@pytest.mark.parametrize("given", [int, np.int64, float, str])
@pytest.mark.parametrize("on_demand", [False, True])
def test_a_number_is_a_name_before_it_is_an_index(given, on_demand):
    """Numbers as labels certify what their texts do, with a note, and the accuracy is that of the names."""
    right = [given(c) for c in TWELVE]
    with Router(twelve(NAMED), Function(lambda i: str(TWELVE[i]), version="1"), threshold=0.5) as router:
        made = router.calibrate(X, **({"label": lambda i: right[i]} if on_demand else {"y": right}), max_loss=0.05)
        result = router.evaluate(X, right)
    assert result.accuracy["edge"].value == pytest.approx(0.75)
    assert result.accuracy["cloud"].value == 1
    assert made.certificate.deferral_rate > 0.5
    noted = [any("names of classes and also indices" in note for note in notes) for notes in (made.notes, result.notes)]
    assert noted == [given is not str] * 2


def test_numbers_that_mean_the_same_as_names_and_as_indices():
    """Then nothing is noted; neither where a name has no number, nor where the numbers can be no indices."""
    for names, right in (
        (["0", "1", "2", "other"], [0, 1, 2, 3]),
        (PETS, [0, 1, 2, 2]),
        (["10", "20", "30"], [10, 20, 30, 10]),
        ([3, 1, 7], [1, 3, 7, 7]),
        (["false", "true"], [True, False, True, "true"]),
    ):
        notes = []
        values = label_values(right, names, 4, notes)
        assert set(values) <= set(names)
        assert notes == []
    assert label_values([10, 20], ["10", "20"], 2) == ["10", "20"]
    assert label_values([1, 7], [3, 1, 7], 2) == [1, 7]
    assert label_values([True, False], ["false", "true"], 2) == ["true", "false"]


@pytest.mark.parametrize("right", [[1, 2, 0, 1], [0, 2.0, 1, 0], ["1", "2", 0, 1], [np.int8(0), 1, 1, 2]])
def test_labels_of_which_some_are_names_and_others_indices(right):
    """They are an error, which says what to write, with labels on demand, too."""
    with pytest.raises(BadInput, match="write each as the name of its class"):
        label_values(right, ["1", "2", "3"], 4)
    small = CallableModel(edge(["1", "2", "3"]), labels=["1", "2", "3"], version="1")
    with (
        Router(small, cloud(lambda c: "123"[c]), threshold=0.5) as router,
        pytest.raises(BadInput, match="write each as the name of its class"),
    ):
        router.calibrate(X, label=lambda i: i % 3, max_loss=0.05)


def test_a_model_that_gives_a_number_where_names_are_numbers():
    """It is the name, and none by its place where another number's place is another name; else it may be the index."""
    shifted, mixed = Labels(["1", "2", "3"], "the model"), Labels(["0", "1", "other"], "the model")
    assert [shifted.named(1), mixed.named(1), mixed.named(2)] == ["1", "1", "other"]
    with pytest.raises(BadReply, match="not among its 3 labels"):
        shifted.named(0)


# --- answers that are no labels


SHAPES = [
    pytest.param(np.zeros((0, 4), int), [1, 2, 3, 4], False, id="no box and one"),
    pytest.param(np.full((2, 3), 3), [3, 3, 3], False, id="two rows and one"),
    pytest.param(np.full(3, 3), 3, False, id="an array and a number"),
    pytest.param(np.arange(3), [0, 1, 2], True, id="an array and a list"),
    pytest.param([np.arange(3)], [[0, 1, 2]], True, id="lists of arrays"),
    pytest.param({"mask": np.ones(3)}, {"mask": np.ones(3)}, True, id="mappings of arrays"),
    pytest.param({"mask": np.ones(3)}, {"mask": [1, 1, 1]}, True, id="a mapping as JSON has it"),
    pytest.param(OrderedDict(mask=np.ones(3)), {"mask": np.ones(3)}, True, id="mappings of two types"),
    pytest.param({"mask": np.ones(3)}, {"mask": np.ones((2, 3))}, False, id="mappings of other shapes"),
    pytest.param({"mask": np.ones(3)}, {"mask": np.zeros(3)}, False, id="mappings that differ"),
]


@pytest.mark.parametrize(("near", "far", "alike"), SHAPES)
def test_shapes_and_parts(near, far, alike):
    """Arrays are equal with their shapes, mappings and lists by their parts; audits compare as calibrations do."""
    assert same(near, far) is same(far, near) is alike
    kinds = {isinstance(value, dict | list | np.ndarray) for value in (near, far)}
    with Router(lambda i: (near, float(SURE[i])), Function(lambda i: far, version="1"), threshold=0.5) as router:
        if len(kinds) > 1:
            with pytest.raises(BadInput, match="it gives numbers, and the labels are arrays"):
                router.calibrate(X, max_loss=0.05)
            return
        made = router.calibrate(X, max_loss=0.05)
        assert router.evaluate(X).accuracy["edge"].value == alike
    assert (made.certificate.deferral_rate == 0) == alike


class Opaque:
    """An answer that cannot be compared."""

    def __eq__(self, _):
        raise TypeError("no order")

    __hash__ = None


@pytest.mark.parametrize("value", [Opaque(), {"found": Opaque()}, [Opaque()]])
def test_answers_that_cannot_be_compared_are_an_error_before_anything_is_sent(value):
    """It says what a model may answer, in place of the error of a library after the cloud was paid."""
    asked = []
    with (
        Router(
            lambda i: (value, float(SURE[i])), Function(lambda i: asked.append(i) or value, version="1"), threshold=0.5
        ) as router,
        pytest.raises(BadInput, match=r"cannot be compared.*let the model answer with texts, numbers, arrays"),
    ):
        router.calibrate(X, max_loss=0.05)
    assert not asked


def test_answers_of_the_cloud_that_cannot_be_compared():
    """They end the calibration after the first 20."""
    asked = []
    with (
        Router(
            lambda i: ({"found": 1}, float(SURE[i])),
            Function(lambda i: asked.append(i) or {"found": Opaque()}, version="1"),
            threshold=0.5,
        ) as router,
        pytest.raises(BadInput, match="cannot be compared"),
    ):
        router.calibrate(X, max_loss=0.05)
    assert len(asked) < N / 4


# --- a cloud that is no reference


def wrong(i):
    """A cloud whose classes are numbered otherwise."""
    return PETS[(CLOUD[i] + (i % 9 > 0)) % 3]


@BOTH
def test_a_cloud_that_is_worse_than_the_edge_or_than_chance(kind, tmp_path):
    """It is said in the result, on the page and in the certificate; the loss below zero has no tick."""
    with closing(kind(edge(PETS), Function(wrong, version="1"), threshold=0.5)) as router:
        made = router.calibrate(X, known(PETS), max_loss=0.02)
    doubts = made.certificate.doubts
    assert [text.split(":")[0] for text in doubts] == [
        "the cloud is worse than the edge",
        "the cloud is no better than chance",
    ]
    assert set(doubts) <= set(made.notes)
    made.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json").doubts == doubts
    with closing(kind(edge(PETS), Function(wrong, version="1"), threshold=made.certificate)) as router:
        result = router.evaluate(X, known(PETS))
    with Router(edge(PETS), Function(wrong, version="1"), threshold=made.certificate) as router:
        assert any("worse than the edge" in line for line in router.check().lines)
    assert set(doubts) == set(result.notes) & set(doubts)
    assert verdicts(result.evaluation)[0].doubtful
    assert "worse than the edge" in result.verdict
    assert "worse than the edge" in repr(result)
    page = evaluation_page(result.evaluation, drawn=False).body
    assert "\N{CHECK MARK}" not in page
    assert "the cloud is no better than chance" in page
    assert "worse than the edge" in calibration_page(made.evaluation, made.why, made.notes, drawn=False).body


@pytest.mark.parametrize(("wrong", "doubt"), [(20, "wrong on the same 20 examples"), (19, ""), (0, "")])
def test_an_edge_and_a_cloud_that_are_one_model(wrong, doubt):
    """Mistakes on the same examples alone are a sign of it; a few may be chance, and two may make none."""
    right = np.arange(400) >= wrong
    made = calibrate(np.random.default_rng(0).random(400), right, right, max_loss=0.02, notes=[])
    assert doubt in "".join(made.doubts)
    assert bool(made.doubts) == bool(doubt)
    differ = calibrate(np.random.default_rng(0).random(400), right, np.roll(right, 1), max_loss=0.02, notes=[])
    assert differ.doubts == ()


def test_labels_of_one_class():
    """A set of one class says nothing of the others, however well edge and cloud do."""
    with Router(
        CallableModel(lambda i: ("ok", i / 400), version="1"),
        Function(lambda i: "ok" if i else "bad", version="1"),
        threshold=0.5,
    ) as router:
        made = router.calibrate(range(400), ["ok"] * 400, max_loss=0.02)
        two = router.calibrate(range(400), ["bad", *["ok"] * 399], max_loss=0.02)
    assert made.certificate.doubts == ("all 400 labels are the same: nothing is known of inputs with another",)
    assert two.certificate.doubts == ()


def test_truth_values_and_numbers_as_labels():
    """True is no 1: the error names both kinds."""
    with Router(
        CallableModel(lambda i: (i % 2 > 0, i / 400), version="1"), Function(lambda i: i % 2 > 0, version="1"), threshold=0.5
    ) as router:
        for labels, kind in (([i % 2 for i in range(400)], "numbers"), (["no", "yes"] * 200, "text")):
            with pytest.raises(BadInput, match=f"it gives True and False, and the labels are {kind}"):
                router.calibrate(range(400), labels, max_loss=0.02)


def test_a_confidence_is_not_rounded_up_to_certainty():
    """The label says how sure it is, to the last digit."""
    made = calibrate(np.random.default_rng(0).random(3000), np.ones(3000, bool), max_loss=0.02, sure=0.9999999)
    assert "99.99999 % sure" in made.label


def test_an_edge_that_is_a_little_better_is_no_doubt():
    """Within noise nothing is said, and the guarantee has its tick."""
    with Router(
        edge(PETS), Function(lambda i: PETS[EDGE[i]] if i % 50 else PETS[CLOUD[i]], version="1"), threshold=0.5
    ) as router:
        made = router.calibrate(X, known(PETS), max_loss=0.02)
    assert made.certificate.doubts == ()
    assert not any("worse" in note or "chance" in note for note in made.notes)


def test_grades_of_a_cloud_that_is_worse():
    """Of `calibrate` with what the caller has compared, too; and one that is never right."""
    score = RNG.uniform(size=300)
    for cloud_grades, words in ((np.full(300, 0.2), "worse than the edge"), (np.zeros(300), "right in none of the 300")):
        with pytest.warns(UserWarning, match=words):
            made = calibrate(score, np.where(np.arange(300) % 9, 0.9, 0.1), cloud_grades, max_loss=0.1, metric="F1")
        assert any(words in text for text in made.doubts)


def test_prompts_with_labels(tmp_path):
    """Prompts with labels: another spelling is right, and answers that are never a label are an error."""
    lines = [
        {
            "prompt": f"q{i}",
            "edge": "The answer: " + "ABC"[EDGE[i]],
            "cloud": "abc"[CLOUD[i]] + " ",
            "label": "ABC"[Y[i]],
            "confidence": SURE[i],
        }
        for i in X
    ]
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(BadInput, match=r"(none of the edge's [0-9]+ answers|the answer of the edge) \("):
        read_prompts([tmp_path / "asked.jsonl"], 1)
    for line in lines:
        line["edge"] = line["edge"][-1]
    (tmp_path / "asked.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = read_prompts([tmp_path / "asked.jsonl"], 1)
    assert sum(line.grades["cloud"] for line in found) == sum(CLOUD == Y)


LISTS = {
    "boxes": lambda which, sure: np.array([[0, 0, 9, 9, 0.5 + sure / 2, which]], np.float32),
    "multilabel": lambda which, sure: np.where(np.arange(3) == which, 0.5 + sure / 2, 0.1),
    "ctc": lambda which, sure: np.eye(4)[[0, which + 1]] * sure + (1 - sure) / 4,
}


@pytest.mark.parametrize("kind", LISTS)
def test_answers_that_are_made_of_labels_are_none_of_them(kind):
    """Boxes, several labels and texts of letters are compared as wholes; the labels of the edge are no list of its answers."""
    small = CallableModel(lambda i: LISTS[kind](EDGE[i], SURE[i]), kind=kind, labels=["a", "b", "c"], version="1")
    large = Function(lambda i: LISTS[kind](CLOUD[i], 0.9), kind=kind, version="1")
    with Router(small, large, threshold=0.5) as router:
        values = [router.infer(i, mode="only_cloud").value for i in range(N)]
        assert router.calibrate(X, max_defer=0.3).certificate.deferral_rate <= 0.3
        assert router.evaluate(X, values).accuracy["cloud"].value == 1
        made = router.calibrate(X, values, max_loss=0.4)
        assert made.certificate.deferral_rate < 1 or kind == "boxes"  # whose scores differ, too
        asked = router.calibrate(X, label=lambda i: values[i], max_loss=0.4)
        assert asked.certificate.threshold == made.certificate.threshold


def test_a_text_answers_where_the_edge_spells_it():
    """Labels of an edge of the kind ctc are letters: a cloud that reads a word whole is not held to them."""
    small = CallableModel(lambda i: LISTS["ctc"](EDGE[i], 0.5), kind="ctc", labels=["a", "b", "c"])
    with Router(small, lambda i: "cab", threshold=0.9) as router:
        assert (answer := router.infer(0)).value == "cab", answer.reason
