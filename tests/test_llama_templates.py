"""Chat templates of .gguf files that would end the process, or never end: llama.cpp renders them without a limit."""

import subprocess
import sys

import pytest

pytest.importorskip("xllamacpp")
tiny_gguf = pytest.importorskip("tiny_gguf")

from edgeroute import LlamaModel, ModelError  # noqa: E402
from edgeroute.edge import llama  # noqa: E402

SELF = "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}"
LATER = "{% macro f() %}{% if messages|length > 3 %}{{ f() }}{% endif %}{% endmacro %}{{ f() }}{{ messages[0].content }}"
"""Calls itself in longer talks alone."""
TREE = (
    "{% macro tree(n) %}{% if n > 0 %}.{{ tree(n - 1) }}{% endif %}{% endmacro %}"
    "{% for message in messages %}{{ tree(3) }}{{ message.content }}{% endfor %}"
)
"""Calls itself, and ends: as templates do that print the schema of a tool."""
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful "
    "AI assistant<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    "template",
    [SELF, LATER, "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "{% if true %}" * 20_000 + "x" + "{% endif %}" * 20_000],
    ids=["self", "later", "parentheses", "blocks"],
)
def test_a_template_that_would_end_the_process(tmp_path, template):
    """It ends one of its own, at load; the model is refused, with what to do."""
    path = tiny_gguf.write(tmp_path / "tiny.gguf", template=template)
    with pytest.raises(ModelError, match=r"its chat template is broken or hostile: .* Give another, chat_template="):
        LlamaModel(path).load()
    model = LlamaModel(path, chat_template=tiny_gguf.TEMPLATE, max_tokens=3)
    assert model.run_one("hi")[0].value
    model.close()


def test_a_template_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(llama, "WAIT_S", 1.0)
    endless = "{% for i in range(1000000000) %}{% for j in range(1000000000) %}{% endfor %}{% endfor %}"
    path = tiny_gguf.write(tmp_path / "tiny.gguf", template=endless)
    with pytest.raises(ModelError, match="did not load within 1 s"):
        LlamaModel(path).load()


@pytest.mark.slow
def test_a_template_that_calls_itself_and_ends(tmp_path, monkeypatch):
    """It is tried once for all models of the file, and used."""
    path, start, tried = tiny_gguf.write(tmp_path / "tiny.gguf", template=TREE), subprocess.Popen, []
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **options: tried.append(args) or start(*args, **options))
    for _ in range(2):
        model = LlamaModel(path, max_tokens=3)
        assert model.run_one("hi")[0].value
        model.close()
    assert len(tried) == 1


def test_what_cannot_be_harmful_is_not_tried(tmp_path, monkeypatch):
    """Usual templates cost no process, and need none: there may be no interpreter to start, as on Android."""

    def none(*args, **options):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(subprocess, "Popen", none)
    model = LlamaModel(tiny_gguf.write(tmp_path / "plain.gguf", template=CHATML), max_tokens=3)
    assert model.run_one("hi")[0].value
    model.close()
    with pytest.raises(ModelError, match=r"needs a process of its own, which cannot be started: .*No such file"):
        LlamaModel(tiny_gguf.write(tmp_path / "tree.gguf", template=TREE)).load()


@pytest.mark.parametrize(
    ("template", "harmless"),
    [
        (CHATML, True), (tiny_gguf.TEMPLATE, True), ("", True), ("{{ '%}' }}{# {% if %} #}{{ '}}' }}", True),
        ('{{ "{#" }}' + SELF + '{{ "#}" }}', False), ("{{ '\\' }}{{ 'x' }}", False), ("x" * 9_000, False), ("{# {{ 1 }}", False),
        (SELF, False), ("{% set s = s + s %}" * 30, False), ("{{ 'a' * 10000000000 }}", False),
        ("{{ " + "+1" * 500 + " }}", False), ("{% if x %}{% elif x %}" + "{% elif x %}" * 200 + "{% endif %}", False),
        ("{%- macro f() -%}", False), ("{% if x ", False), ("{% for x in messages recursive %}", False), ("x" * (1 << 16), False),
        ("{{ '%}' }}{% macro f() %}{% endmacro %}", False),
        ('{{ "}}" }}{% macro f() %}{{ f() }}{% endmacro %}', False),
    ],
)  # fmt: skip
def test_which_are_harmless(template, harmless):
    assert llama.is_harmless(template) is harmless


def test_a_model_that_does_not_load_is_no_matter_of_its_template(tmp_path):
    """With a template that is tried: the message is that of the model."""
    path = tiny_gguf.write(tmp_path / "tiny.gguf", arch="nothing", template=TREE)
    with pytest.raises(ModelError, match="it may not know that architecture"):
        LlamaModel(path).load()


def test_the_trial_is_a_process_with_the_same_packages(tmp_path):
    """Also where the package is on no path but one that the program added itself."""
    path = tiny_gguf.write(tmp_path / "tiny.gguf", template=TREE)
    program = (
        "import sys; path = sys.argv[1]; from edgeroute.edge.llama import LlamaModel\n"
        "model = LlamaModel(path, max_tokens=2); print(model.run_one('hi')[0].value != ''); model.close()"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "True", done.stderr
