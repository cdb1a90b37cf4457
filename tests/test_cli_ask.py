"""`edgeroute calibrate --ask`: a person answers in the terminal or on a page, and nothing that was answered is asked again."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import wave
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np
import pytest
import tiny
from both import LONG, wait_for
from commands import PYTHON, cli
from lazily import needs

from edgeroute import BadInput, StoreError
from edgeroute.confidence import Certificate
from edgeroute.tools.cli.label_questions_and_answers import Asked, AskedLabels, answers_file, parts_of
from edgeroute.tools.measure.labels_on_demand import Question
from edgeroute.tools.measure.threshold_evaluation import Examples

LABELS = ["a", "b", "c"]
EDGE = [[3, 0, 0], [0, 3, 0], [0, 0, 3], [2, -1.5, 0]]


@pytest.fixture
def home(tmp_path, right_server):
    """A folder with a policy, an edge model that the fourth number misleads, and 600 inputs with and without labels."""
    tiny.linear(tmp_path / "edge.onnx", weights=EDGE, card={"labels": LABELS})
    (tmp_path / "policy.toml").write_text(f'[edge]\npath = "edge.onnx"\n[cloud]\nurl = "{right_server}"\nretries = 0\n')
    x = np.random.default_rng(5).normal(size=(600, 4)).astype(np.float32)
    y = x[:, :3].argmax(1)
    np.savez(tmp_path / "bare.npz", images=x)
    np.savez(tmp_path / "labelled.npz", images=x, labels=y)
    blank = [LABELS[label] if i % 2 else "" for i, label in enumerate(y)]
    rows = [",".join([*map(repr, map(float, row)), label]) for row, label in zip(x, blank, strict=True)]
    (tmp_path / "blanks.csv").write_text("\n".join(["p,q,r,s,label", *rows]) + "\n")
    return tmp_path


def command(home, *more, data="bare.npz"):
    """Arguments of a calibration."""
    return ("calibrate", "-p", home / "policy.toml", "-d", home / data, "--max-loss", "5%", *more)


def answers(home):
    """What the file of answers holds."""
    return [json.loads(line) for line in (home / "answers.jsonl").read_text().splitlines()]


def test_a_person_in_the_terminal(home):
    """Is asked for a few of 600, and the threshold is that of all labels; each answer is a line of the file."""
    code, _, err = cli(*command(home, "--json", "--out", home / "full.json", data="labelled.npz"))
    assert code == 0, err
    process = subprocess.Popen(
        [*PYTHON, *map(str, command(home, "--ask", "--json"))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    x = np.load(home / "bare.npz")["images"]
    shown = []
    with process:
        block = ""
        while True:
            char = process.stderr.read(1)
            if not char:
                break
            block += char
            if block.endswith("q (stop): "):
                lines = block.split("--- ")[1].splitlines()
                row = int(lines[0].split("[")[1].rstrip("]"))
                keys = {line[3:]: line[0] for line in lines[2:4]}
                shown.append(row)
                process.stdin.write(keys[LABELS[x[row, :3].argmax()]] + "\n")
                process.stdin.flush()
                block = ""
        told = json.loads(process.stdout.read())
    assert process.returncode == 0, block
    assert told["labels_read"] == len(shown) == len(answers(home)) < 60
    assert Certificate.load(home / "certificate.json").threshold == Certificate.load(home / "full.json").threshold
    assert {line["right"] for line in answers(home)} == {"cloud"}
    assert os.name == "nt" or (home / "answers.jsonl").stat().st_mode & 0o077 == 0
    # nothing is asked again, also without anybody there
    code, out, err = cli(*command(home, "--answers", home / "answers.jsonl", "--json"))
    assert (code, json.loads(out)["certificate"]["threshold"]) == (0, told["certificate"]["threshold"]), err


@pytest.mark.slow
def test_a_stop_and_what_goes_on(home):
    """q, the end of the input and kill -9 lose no answer; other keys are asked again."""
    code, out, err = cli(*command(home, "--ask"), input="n\nx\n?\nq\n")
    assert (code, out) == (130, "")
    assert "stopped: 2 answers are in" in err
    assert err.count("Which is right?") == 4
    assert [line["right"] for line in answers(home)] == ["neither", "unknown"]
    first = [line["name"] for line in answers(home)]
    with subprocess.Popen(
        [*PYTHON, *map(str, command(home, "--ask"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=home,
    ) as process:
        process.stdin.write(b"?\n?\n")
        process.stdin.flush()
        wait_for(lambda: len(answers(home)) == 4)
        process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    with (home / "answers.jsonl").open("ab") as file:
        file.write(b'{"input": "to')  # as a killed process may leave it
    code, _, err = cli(*command(home, "--ask"), input="?\n")
    assert code == 130
    lines = (home / "answers.jsonl").read_text().splitlines()
    names = [json.loads(line)["name"] for line in lines]
    assert len(set(names)) == len(names) == 5
    assert names[:2] == first
    assert "stopped: 5 answers" in err
    assert not any(f": {name}\n" in err for name in names[:4])


def test_two_at_once(home):
    """The second is refused before a model runs, and the first goes on."""
    with answers_file(home / "answers.jsonl"):
        code, _, err = cli(*command(home, "--ask"))
    assert (code, "another `calibrate` has it" in err) == (2, True)
    assert cli(*command(home, "--ask"), input="?\n" * 600)[0] == 0


def test_labels_with_blanks(home):
    """A table's labels are read where they are there, and a person is asked for the others; without --ask they are an error."""
    code, _, err = cli(*command(home, data="blanks.csv"))
    assert (code, "300 of 600 inputs have no label" in err) == (1, True)
    code, out, err = cli(*command(home, "--ask", "--json", data="blanks.csv"), input="?\n" * 600)
    assert code == 0, err
    told = json.loads(out)
    assert 0 < len(answers(home)) < told["labels_read"]


def test_nobody_learns_whose_the_first_answer_is(home):
    """The first is the edge's for some inputs, and the cloud's for others."""
    assert cli(*command(home, "--ask"), input="1\n" * 600)[0] == 0
    assert {line["right"] for line in answers(home)} == {"edge", "cloud"}


def test_a_file_about_other_inputs(home):
    """Its answers have no part, which is said; a line that is none is named."""
    cli(*command(home, "--ask"), input="?\n?\n")
    np.savez(home / "others.npz", images=np.random.default_rng(6).normal(size=(600, 4)).astype(np.float32))
    code, _, err = cli(*command(home, "--ask", data="others.npz"), input="?\n" * 600)
    assert code == 0
    assert "2 answers in" in err
    assert "are about other inputs, and not used" in err
    for line, text in [
        ("[1]", 'expected "input"'),
        ('{"a": ', "expected a line of JSON"),
        ('{"input": "1", "edge": 1, "cloud": 2, "right": "me"}', "right must be"),
    ]:
        (home / "answers.jsonl").write_text(line + "\n\n")
        code, _, err = cli(*command(home, "--ask"))
        assert code == 1
        assert f"answers.jsonl:1: {text}" in err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--ask", "--score", "auto"), "a score that is not fitted"),
        (("--ask", "-d", "-"), "stdin has the data"),
    ],
)
def test_what_cannot_be_asked(home, options, text):
    """One line says why."""
    code, _, err = cli(*command(home, *options))
    assert code == 2
    assert text in " ".join(err.replace("│", " ").split())


def test_recorded_answers_cannot_be_asked(home):
    """Nobody could see the inputs."""
    np.savez(home / "logits.npz", edge_logits=np.eye(3), cloud_logits=np.eye(3))
    np.savez(home / "graded.npz", confidence=[0.1, 0.2], edge_scores=[0.1, 0.2], cloud_scores=[0.1, 0.3])
    for data in ("logits.npz", "graded.npz"):
        code, _, err = cli(*command(home, "--ask", data=data))
        assert (code, "--ask" in err) == (2, True)


@pytest.mark.parametrize(
    ("then", "reply", "now", "loss"),
    [
        (("cat", "dog"), "cat", ("cat", "dog"), -1),
        (("cat", "dog"), "dog", ("cat", "dog"), 1),
        (("cat", "dog"), "dog", ("dog", "cat"), -1),
        (("cat", "dog"), "dog", ("cat", "cow"), 0),
        (("cat", "dog"), "neither", ("dog", "cat"), 0),
        (("cat", "dog"), "neither", ("cat", "cow"), "asked"),
        (("cat", "dog"), "unknown", ("cat", "dog"), None),
        (("cat", "dog"), "unknown", ("cow", "dog"), "asked"),
        ((1, 2), "2", (1, 2.0), 1),
        (([1], np.array([2, 3])), "[1]", ([1], np.array([2, 3])), -1),
    ],
)
def test_answers_outlive_the_models(tmp_path, then, reply, now, loss):
    """A label is of the input: it counts for other answers, too; that neither was right says nothing of others."""

    def person(asked):
        return str(asked.answers.index(reply) + 1) if reply in asked.answers else reply

    def nobody(asked):
        raise LookupError("asked")

    with answers_file(tmp_path / "answers.jsonl") as file:
        judged(file, then, person)
    with answers_file(tmp_path / "answers.jsonl") as file:
        if loss == "asked":
            with pytest.raises(LookupError):
                judged(file, now, nobody)
        else:
            assert judged(file, now, nobody) == [loss]


def judged(file, answers, ask):
    """The loss of one input with these answers of edge and cloud."""
    labels = AskedLabels(file, ask, None, ["name"])
    labels.begin(Examples(np.array([0.5]), [answers[0]], [answers[1]], None), ["x"], None)
    return [*labels.judge([Question(0, "x", *answers)])]


def test_answers_to_fewer_examples_are_extended(tmp_path):
    """With a note that this is a further test; a file whose answers are all used again, or not at all, has none."""
    for inputs, noted in ((["x", "y"], False), (["x", "y"], False), (["x", "y", "z"], True)):
        n = len(inputs)
        with answers_file(tmp_path / "answers.jsonl") as file:
            labels = AskedLabels(file, lambda asked: "1", None, inputs)
            labels.begin(Examples(np.ones(n), ["a"] * n, ["b"] * n, None), inputs, None)
            labels.losses(np.arange(n))
            assert any("a further test with a risk of its own" in note for note in labels.notes()) == noted


def test_what_is_shown_of_an_input():
    """Pictures as PNG, sounds as WAV, files as they are, messages by role, and text without control characters in a terminal."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for x, kind, start in [
        (grey, "image", "data:image/png;base64,"),
        (np.zeros((3, 16, 20), np.float32), "image", "data:image/png;base64,"),
        (np.ones((16, 20, 4), np.uint8), "image", "data:image/png;base64,"),
        (np.zeros((4096, 8)), "image", "data:image/png;base64,"),
        (np.arange(16000, dtype=np.int16), "audio", "data:audio/wav;base64,"),
        (np.zeros((1, 16000), np.float32), "audio", "data:audio/wav;base64,"),
        (b"\x89PNG rest", "image", "data:image/png;base64,"),
        (b"RIFF rest", "audio", "data:audio/wav;base64,"),
        (b"<svg onload=alert(1)>", "text", "21 bytes"),
        (np.array([1.5, 2]), "text", "float64 [2] 1.5 2"),
        ("<b>", "text", "<b>"),
        ({"age": 3, "name": "x"}, "text", "age: 3"),
        ([{"role": "user", "content": "hello"}], "text", "user: hello"),
        ([{"role": "user", "content": [{"type": "text", "text": "hello"}]}], "text", "user: hello"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}],
            "image",
            "data:image/png",
        ),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a.b/c.png"}}]}],
            "text",
            "type: image_url",
        ),
        ({"image_url": "data:image/png;base64,AA"}, "text", "image_url: data:"),
        (np.full((9, 9), np.inf), "image", "data:image/png;base64,"),
        (np.full(5000, np.nan), "audio", "data:audio/wav;base64,"),
        ("y" * 9000, "text", "y" * 4000 + "... (9,000 characters)"),
    ]:
        part = next(iter(parts_of(x)))
        assert (part.kind, part.data[: len(start)]) == (kind, start)
    sound = next(iter(parts_of(np.arange(16000, dtype=np.int16))))
    with wave.open(io.BytesIO(base64.b64decode(sound.data.partition(",")[2]))) as file:
        assert (file.getnframes(), file.getframerate()) == (16000, 16000)
    pillow = pytest.importorskip("PIL.Image")
    png = base64.b64decode(next(iter(parts_of(grey))).data.partition(",")[2])
    assert (np.asarray(pillow.open(io.BytesIO(png))) == grey).all()


# ------------------------------------------------------------------------------------------------ the page
EVIL = "<img src=x onerror=alert(1)><script>alert(2)</script>"


def got(address, path, token=None, **headers):
    """Status and body of a request to the page's server."""
    parts = urlsplit(address)
    connection = HTTPConnection(parts.hostname, parts.port, timeout=LONG)
    try:
        connection.request("GET", path, headers={**({"Authorization": f"Bearer {token}"} if token else {}), **headers})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def test_the_page_needs_its_token(capsys):
    """Without it there is the page, and no data; other sites' pages and names are refused; a reply counts once."""
    needs("uvicorn")
    from edgeroute.tools.cli.label_questions_web_server import LabelPage

    asked = Asked(EVIL, tuple(parts_of(EVIL)), (EVIL, "dog"), 0, 3)
    with LabelPage() as page, ThreadPoolExecutor() as threads:
        address, token = page.url.split("/#token=")
        assert address.startswith("http://127.0.0.1:")
        assert page.url in capsys.readouterr().err
        waiting = threads.submit(page.ask, asked)
        wait_for(lambda: json.loads(got(address, "/question", token)[1])["number"] == 1)
        status, html = got(address, "/")
        assert (status, "alert(" in html) == (200, False)
        assert [got(address, path, key)[0] for path in ("/question", "/reply?number=1&reply=1") for key in (None, "wrong")] == [
            401
        ] * 4
        assert got(address, "/reply?number=1&reply=1", token, Origin="http://evil.example")[0] == 403
        assert got(address, "/question", token, Host="evil.example")[0] == 421
        for reply in ("number=1&reply=3", "number=2&reply=1", "number=x&reply=1", ""):
            assert got(address, f"/reply?{reply}", token)[0] == 400
        question = json.loads(got(address, "/question", token)[1])
        assert (question["answers"], question["parts"]) == ([EVIL, "dog"], [{"kind": "text", "data": EVIL}])
        assert json.loads(got(address, "/question?seen=1", token)[1]) == {"number": 1}
        assert not waiting.done()
        assert got(address, "/reply?number=1&reply=neither", token)[0] == 200
        assert waiting.result(LONG) == "neither"
        again = threads.submit(page.ask, asked)
        wait_for(lambda: json.loads(got(address, "/question", token)[1])["number"] == 2)
        assert got(address, "/reply?number=1&reply=1", token)[0] == 400  # another tab
        assert got(address, "/reply?number=2&reply=2", token)[0] == 200
        assert again.result(LONG) == "2"


def test_another_file_of_one_line(tmp_path):
    """It is refused, and stays: its line is no half of an answer."""
    path = tmp_path / "notes.txt"
    path.write_text("buy bread")
    with pytest.raises(BadInput, match="expected a line of JSON"), answers_file(path):
        pass
    assert path.read_text() == "buy bread"


def test_a_disk_that_takes_half_a_line(tmp_path):
    """It raises, the next line replaces the half, and so does that of the next process; a last line without its end stays."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "answers.jsonl"
    lines = [{"input": f"{i:064x}", "name": "n", "edge": "a" * 50, "cloud": "b" * 50, "right": "edge"} for i in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fails(file):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, hard))
            with pytest.raises(StoreError, match="cannot be written: File too large"):
                file.add(lines[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert not path.read_bytes().endswith(b"\n")

    with answers_file(path) as file:
        file.add(lines[0])
        fails(file)
        file.add(lines[1])
        assert [json.loads(row) for row in path.read_bytes().splitlines()] == lines[:2]
        fails(file)
    with answers_file(path) as file:
        assert [*file.lines.values()] == lines[:2]
        file.add(lines[2])
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    with answers_file(path) as file:
        file.add(lines[0])
    assert [json.loads(row) for row in path.read_bytes().splitlines()] == [*lines, lines[0]]
