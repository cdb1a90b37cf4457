"""Looks at a language model's file: its header alone, so that llama.cpp need not be installed."""

from __future__ import annotations

from pathlib import Path

from edgeroute.cli.inspect_report import Report
from edgeroute.edge import gguf
from edgeroute.edge.card import Card, sha256_of
from edgeroute.edge.guess_inputs import Finding, quoted
from edgeroute.errors import EdgerouteError
from edgeroute.types import TensorSpec


def inspect_gguf(path: Path) -> Report:
    """Everything that the file says of its model.

    Raises:
        ModelError: it is no whole .gguf file.
    """
    about = gguf.read(path)
    facts = {
        "sha256": sha256_of(path),
        "architecture": about.architecture,
        "name": quoted(about.name) if about.name else "",
        "parameters": f"{about.parameters / 1e6:,.0f} million" if about.parameters >= 1e6 else f"{about.parameters:,}",  # noqa: PLR2004
        "quantisation": about.quantisation,
        "context": f"{about.context:,} tokens" if about.context else "",
        "vocabulary": f"{about.tokens:,} tokens" if about.tokens else "",
        "chat_template": "yes" if about.template else "none",
        "license": about.license,
        "card_there": _card_there(path),
    }
    report = Report(str(path), {name: fact for name, fact in facts.items() if fact}, card={"sha256": facts["sha256"]})
    report.inputs = [(TensorSpec("a prompt, messages or a request", "text", ()), "given")]
    report.outputs = [(TensorSpec("the answer, with the log-probabilities of its tokens", "text", ()), "read")]
    if not about.tokens:
        report.findings.append(Finding("vocabulary", "none", "certain", "so it is no language model, but a part of one"))
    if not about.template:
        why = "its file has no chat template, so that texts are continued, or the template is given"
        report.findings.append(Finding("chat", "?", "open", why, 'chat = false  (or chat_template = "...", in [edge])'))
    report.notes.append("it was not run: `edgeroute infer` asks it")
    return report


def _card_there(path: Path) -> str:
    card = path.with_suffix(".json")
    if not card.exists():
        return ""
    try:
        Card.read(card)
    except EdgerouteError as e:
        return f"{card.name} is there, and wrong: {e}"
    return f"{card.name} is there"
