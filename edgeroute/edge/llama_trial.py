"""Tries the chat template of a .gguf file in a process of its own: llama.cpp's template engine ends the process it is in.

It renders by recursion without a limit, so a template that calls itself, or is nested deeply, overflows the stack; and it has no
limit of time or memory. A short template without macros, counted loops and much nesting cannot do that, and is not tried.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgeroute.core.texts import FOREIGN, clean
from edgeroute.errors import ModelError

WAIT_S = 60.0
"""How long a trial may take; it takes a few seconds at most."""
MOST_BYTES = 8_192
"""Of a template that is not tried."""
MOST_NESTED, MOST_TOKENS, MOST_BRANCHES, MOST_SUMS = 60, 400, 100, 20
"""Blocks within each other, tokens of one tag, `elif`s, and variables set to a sum of texts; of templates that are not tried."""
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_BLOCK, _SHOWN = (rf"(?:{_STRING}|(?!{end})[^'\"])*" for end in (r"%\}", r"\}\}"))
_PART = re.compile(rf"\{{#.*?#\}}|\{{(?P<kind>%)(?P<block>{_BLOCK})%\}}|\{{\{{(?P<shown>{_SHOWN})\}}\}}", re.DOTALL)
"""A comment, a block's tag, or an expression that is shown."""
_WORDS = re.compile(r"\b(?:macro|range|recursive|import|include|extends)\b|\\['\"]")
"""What is not looked for in tags alone, since llama.cpp may see tags elsewhere; and what a string would have to end after it."""
_TOKEN = re.compile(rf"{_STRING}|\w+|[^\s\w]", re.DOTALL)
_UNBOUNDED = {"call", "replace", "center", "indent", "*"}
_BLOCKS = {"if", "for", "set", "filter", "generation"}
_CHILD = """
import json, os, sys
told = json.load(sys.stdin)
sys.path[:] = told["sys_path"]
try:
    import resource
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (AttributeError, ImportError, ValueError, OSError):
    pass
import threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = told["path"], 64, 1, 0
params.n_batch = params.n_ubatch = 32
params.fit_params = params.warmup = params.ui = params.endpoint_slots = False
params.no_extra_bufts, params.cache_ram_mib, params.verbosity, params.n_threads_http = True, 0, -1, 1
params.hostnames, params.api_keys = told["hostnames"] or params.hostnames, [told["key"]]
if told["template"] is not None:
    params.chat_template = told["template"]
def run():
    try:
        server = xllamacpp.Server(params)
        for request in told["requests"]:
            server.handle_chat_completions(request, None)
    except Exception as e:
        print(str(e)[:500])
        sys.stdout.flush()
        os._exit(3)
    os._exit(0)
threading.stack_size(2 << 20)
threading.Thread(target=run).start()
"""
"""In a thread whose stack is smaller than those that use the model later."""
_LONG = "word " * 2_000
"""More than the context of the trial: the request is refused once its prompt is there, and nothing is computed."""
_TOOL = {
    "type": "function",
    "function": {
        "name": "look", "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "array", "items": {"type": "string"}}}},
    },
}  # fmt: skip
_TALK = [{"role": role, "content": _LONG} for role in ("user", "assistant") * 4 + ("user",)]
REQUESTS: tuple[dict[str, Any], ...] = (
    {"max_tokens": 1, "messages": [{"role": "user", "content": _LONG}]},
    {"max_tokens": 1, "messages": [{"role": "system", "content": _LONG}, *_TALK]},
    {"max_tokens": 1, "messages": _TALK, "tools": [_TOOL]},
)


def harmless(template: str) -> bool:
    """Whether a template is of a kind that cannot recurse or count: without macros and ranges, and with little nesting."""
    if len(template.encode("utf-8", "replace")) > MOST_BYTES or _WORDS.search(template):
        return False
    depth = branches = sums = 0
    for part in _PART.finditer(template):
        tokens = _TOKEN.findall(part["block"] or part["shown"] or "")
        if len(tokens) > MOST_TOKENS or _UNBOUNDED & {*tokens}:
            return False
        first = next((one for one in tokens if one not in "-+~"), "") if part["kind"] else ""
        depth += (first in _BLOCKS) - first.startswith("end")
        branches += first == "elif"
        sums += first == "set" and bool({"+", "~"} & {*tokens})
        if depth > MOST_NESTED or branches > MOST_BRANCHES or sums > MOST_SUMS:
            return False
    rest = _PART.sub(" ", template)
    return not any(begin in rest for begin in ("{%", "{{", "{#"))


def tried(path: Path, template: str, given: str | None) -> None:
    """Has llama.cpp render the template in a process of its own, unless it is harmless.

    Args:
        path: of the .gguf file.
        template: the file's.
        given: by the caller in its place, who is trusted with it; None: none.

    Raises:
        ModelError: the process did not survive it, or it took too long.
    """
    if given is not None or harmless(template):
        return
    advice = "Give one that you trust, chat_template=, or use another model"
    try:
        why = _died(path, None)
        if why is None or (why.startswith(FAILED) and _died(path, "{{ messages[0].content }}") is not None):
            return  # in the latter case it is not the template: loading says what
    except OSError as e:
        raise ModelError(f"{path}: its chat template is to be tried in another process, and none starts: {e}. {advice}") from e
    raise ModelError(f"{path}: its chat template is broken or hostile: a process that tried it {why}. {advice}")


FAILED = "failed"
_found: dict[tuple[str, int, int, str | None], str | None] = {}
"""What came of earlier trials of a file, by time and size."""


def _died(path: Path, template: str | None) -> str | None:
    """What became of a process that loaded the model with that template, None: the file's; None: nothing, it is well."""
    stat = path.stat()
    key = (str(path.absolute()), stat.st_mtime_ns, stat.st_size, template)
    if key not in _found:
        _found[key] = _run(path, template)
    return _found[key]


def _run(path: Path, template: str | None) -> str | None:
    with tempfile.TemporaryDirectory(prefix="edgeroute-", ignore_cleanup_errors=True) as folder:
        told: dict[str, Any] = {
            "sys_path": [one or "." for one in sys.path], "path": str(path), "template": template, "requests": REQUESTS,
            "hostnames": [f"{folder}/s.sock"] if sys.platform != "win32" else [], "key": secrets.token_hex(16),
        }  # fmt: skip
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter
                [sys.executable, "-I", "-c", _CHILD],
                input=json.dumps(told).encode(), capture_output=True, timeout=WAIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"did not end within {WAIT_S:g} s"
    if done.returncode == 0:
        return None
    said = clean(done.stdout.decode("utf-8", "replace") or done.stderr.decode("utf-8", "replace")[-300:], FOREIGN)
    return f"was ended by the system ({done.returncode})" if done.returncode not in {1, 3} else f"{FAILED}: {said}"
