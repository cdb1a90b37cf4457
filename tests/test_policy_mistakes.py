"""A campaign of mistakes in policies: each is refused in one line or more that name the key, its place and what was meant.

The place is the file with the key, as `[cloud]` 1's `cloud[1].timeout`, or with the line where it cannot be parsed; or the variable.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path

import pytest
import tiny
from commands import cli

from edgeroute import EdgerouteError, ModelMissing, PolicyError, Router, Rule, policy

T, E, C = "threshold = 0.8\n", '[edge]\npath = "edge.onnx"\n', '[cloud]\nurl = "http://h/v2/models/m"\n'
"""A policy with one mistake has the other parts as they should be."""
TOML = [  # text, key, what it says beside it
    # a name that is not there, at each level
    ("treshold = 0.8\n" + E + C, "treshold", 'did you mean "threshold"?'),
    ("Threshold = 0.8\n" + E + C, "Threshold", 'did you mean "threshold"?'),
    (T + E + C + 'timout = "2s"\n', "cloud.timout", 'did you mean "timeout"?'),
    (T + '[[edge]]\npath = "edge.onnx"\n' + C.replace("[cloud]", "[clod]"), "clod", 'did you mean "cloud"?'),
    (T + E.replace("[edge]", "[edges]") + C, "edges", 'did you mean "edge"?'),
    (T + E + f"[{C[1:]}".replace("[cloud]", "[[cloud]]") * 2 + 'timout = "1s"\n', "cloud[1].timout", 'did you mean "timeout"?'),
    (T + E + C + "[limits]\nusd_per_month = 3\n", "limits.usd_per_month", 'did you mean "usd_per_day"?'),
    (T + E + C + '[egress]\nnever_leaves = ["a"]\n', "egress.never_leaves", 'did you mean "never_leave"?'),
    (T + E + C + '[egress]\nnever = ["a"]\n', "egress.never", 'did you mean "never_leave"?'),
    ('threshold = "85%"\n' + E + C, "threshold", "85 % is 0.85"),
    (T + E + C + "[audit]\nshares = 1\n", "audit.shares", 'did you mean "share"?'),
    (T + E + C + '[cache]\nttl_s = "1h"\n', "cache.ttl_s", 'did you mean "ttl"?'),
    (T + E + 'kind = "label+probabilites"\n' + C, "edge.kind", 'did you mean "label+probabilities"?'),
    (T + E + C + '[saver]\nbattery_below = "20%"\n', "saver", 'a [[rule]] of = "battery"'),
    # a key in the wrong place
    (T + E + C + 'mode = "only_edge"\n', "cloud.mode", "at the top of the file"),
    (T + E + C + 'share = "1%"\n', "cloud.share", "belongs in [audit]"),
    (T + E + C + 'value = "result"\n', "cloud.value", 'protocol = "json"'),
    (T + E + C + '[egress]\nallow = ["https://h"]\n', "egress.allow", "to the addresses in [cloud] alone"),
    (T + 'edge = "edge.onnx"\n' + C, "edge", "expected a section, as in [edge]"),
    # times, sizes and shares
    (T + "deadline = 300\n" + E + C, "deadline", 'did you mean "300ms" or "300s"?'),
    (T + 'deadline = "300 ms"\n' + E + C, "deadline", 'did you mean "300ms"?'),
    (T + 'deadline = "5 minutes"\n' + E + C, "deadline", 'did you mean "5m"?'),
    (T + 'deadline = "0s"\n' + E + C, "deadline", "more than 0"),
    (T + 'deadline = "-1s"\n' + E + C, "deadline", 'expected a duration such as "300ms"'),
    (T + E + C + 'timeout = "2"\n', "cloud.timeout", 'did you mean "2ms" or "2s"?'),
    (T + E + C + "max_reply = 1000\n", "cloud.max_reply", 'did you mean "1000KB" or "1000MB"?'),
    (T + E + C + 'max_reply = "1 megabyte"\n', "cloud.max_reply", 'did you mean "1MB"?'),
    (T + E + C + '[cache]\nmax_size = "16M"\n', "cache.max_size", 'did you mean "16MB"?'),
    (T + E + C + "[audit]\nshare = 5\n", "audit.share", 'did you mean "5%"?'),
    (T + E + C + '[[rule]]\nof = "battery"\nthen = "only_edge"\nenter = 20\n', "rule.enter", 'did you mean "20%"?'),
    ('hedge_after = "p100"\n' + T + E + C, "hedge_after", '"p10" to "p99"'),
    # numbers
    ("threshold = 80\n" + E + C, "threshold", "0.8"),
    ("threshold = -1\n" + E + C, "threshold", "0 to 1"),
    ('threshold = "80%"\n' + E + C, "threshold", "expected a number"),
    ("threshold = nan\n" + E + C, "threshold", "expected a number"),
    ("threshold = true\n" + E + C, "threshold", "expected a number"),
    ("threshold = [0.5, 0.6]\n" + E + C, "threshold", "one for each edge model (1), found a list of 2"),
    (T + E + "threads = 0\n" + C, "edge.threads", "1 or more, found 0"),
    (T + E + C + "retries = -1\n", "cloud.retries", "0 or more, found -1"),
    (T + E + C + "retries = 2.5\n", "cloud.retries", "a whole number"),
    (T + E + C + '[limits]\nusd_per_day = "3"\n', "limits.usd_per_day", "a number, 0 or more"),
    # words
    ('mode = "prefer-edge"\n' + T + E + C, "mode", 'did you mean "prefer_edge"?'),
    ('offline = "que"\n' + T + E + C, "offline", 'did you mean "queue"?'),
    ('order = "quickest"\n' + T + E + C, "order", "listed, fastest"),
    ('score = "max"\n' + T + E + C, "score", "msp, margin"),
    ('metered = "no"\n' + T + E + C, "metered", "true or false"),
    (T + E + 'on_downgrade = "ignore"\n' + C, "edge.on_downgrade", "error, record"),
    (T + E + C + 'protocol = "grpc"\n', "cloud.protocol", "openinference, openinference-grpc, json"),
    (T + E + C + '[audit]\non_alarm = "stop"\n', "audit.on_alarm", "tell, raise, defer"),
    (T + E + C + 'verify = "no"\n', "cloud.verify", "did you mean false?"),
    # lists and tables
    (T + E + C + 'labels = "cat,dog"\n', "cloud.labels", 'as in ["a", "b"]'),
    (T + E + C + 'cert = "client.pem"\n', "cloud.cert", '["client.pem", "client.key"]'),
    (T + E + C + 'headers = ["a"]\n', "cloud.headers", '{ "X-Tenant" = "shop-7" }'),
    # secrets, which are quoted nowhere
    (T + E + C + 'api_key = "SECRET"\n', "cloud.api_key", '{ env = "ITS_NAME" }'),
    (T + E + C + 'headers = { Authorization = "Bearer SECRET" }\n', "cloud.headers", '{ env = "ITS_NAME" }'),
    (T + E + C.replace("//h", "//user:SECRET@h"), "cloud.url", "give it as api_key"),
    (T + E + C.replace("/m", "/m?key=SECRET"), "cloud.url", "query"),
    # addresses and files
    (T + E + C.replace("http://h", "localhost:8080"), "cloud.url", "begins with http:// or https://"),
    (T + E + '[cloud]\nurl = "http://h"\n', "cloud", "which model?"),
    (T + E + '[cloud]\nmodel = "m"\n', "cloud.url", "is missing"),
    (T + E.replace("edge.onnx", "none.onnx") + C, "edge.path", "there is no model at"),
    (T + E.replace("edge.onnx", "edge.h5x") + C, "edge.path", ".onnx"),
    (T + "[edge]\nthreads = 1\n" + C, "edge.path", "is missing"),
    ('threshold = "none.json"\n' + E + C, "threshold", "there is no certificate at"),
    ('score = "none.json"\n' + T + E + C, "score", "none.json"),
    # what does not fit together
    (E + C, "threshold", "is missing"),
    ('mode = "only_cloud"\n' + E, "mode", "needs a [cloud] section"),
    ('offline = "queue"\n' + T + E + C, "offline", "needs state"),
    ('offline = "stale"\n' + T + E + C, "offline", "needs a [cache] section"),
    ('deadline = "300ms"\nhedge_after = "500ms"\n' + T + E + C, "hedge_after", "less than the deadline"),
    (T + E + C + "[cache]\ndisk = true\n", "cache.disk", "needs state"),
    (T + E + C + "[trace]\nsample = 1\n", "trace.file", "so is state"),
    (T + E + C + '[egress]\nnever_leave = ["a"]\nmay_leave = ["a"]\n', "egress.may_leave", "in never_leave too"),
    (T + E + C + '[egress]\nunknown_class = "deny"\n', "egress", "never_leave, may_leave or default_class"),
    # values of another type, or that cannot be what they are for
    (T + E + C + 'protocol = ["json"]\n', "cloud.protocol", "found a list"),
    (T + E + C + "protocol = {}\n", "cloud.protocol", "expected"),
    (T + E + "card = 0\n" + C, "edge.card", "the path of a card, or false"),
    (T + E + 'card = "a\\u0000b"\n' + C, "edge.card", "the path of a card, or false"),
    ('state = "a\\u0000b"\n' + T + E + C, "state", "cannot be a path"),
    (f'state = "{"y" * 300}"\n' + T + E + C, "state", "cannot be a path"),
    (T + E + C + f'verify = "SECRET{"y" * 300}"\n', "cloud.verify", "cannot be a path"),
    (T + E + C + '[trace]\nfile = "a\\u0000b"\n', "trace.file", "cannot be a path"),
    ('state = "s"\n' + T + E + C + '[fleet]\nto = ""\n', "fleet.to", "cannot be a path"),
    (T + E + C + '[trial]\nedge = "edge.onnx"\nthreshold = inf\n', "trial.threshold", "expected a number"),
    ("deadline = 2026-01-01\n" + T + E + C, "deadline", "expected a duration"),
    # what cannot be parsed
    (T + T + E + C, "threshold", "is there twice (at line 2, "),
    (T + E + 'path = "b.onnx"\n' + C, "path", "is there twice (at line 4, "),
    (T + E + E + C, "[edge]", "[[edge]] (at line 4, "),
    ("mode = prefer_edge\n" + T + E + C, "mode", '(at line 1, column 8); text needs straight quotes, "300ms", and a number a'),
    ("threshold = .5\n" + E + C, "threshold", "and a number a digit before its point, 0.5"),
    ("threshold: 0.8\n" + E + C, "threshold", "have = between"),
]
OTHERS = [  # file's name, text, key, what it says beside it
    (
        "p.json",
        '{"threshold": 0.8,\n "threshold": 0.9, "edge": {"path": "edge.onnx"}}',
        '"threshold"',
        "is there twice (at line 2)",
    ),
    ("p.json", '{"threshold": 0.8,\n "edge": {"path": "edge.onnx"},}', "is not JSON", "line 2, column"),
    ("p.json", "[1]", "", "expected keys such as mode"),
    ("p.json", '{"edge": {"path": "edge.onnx", "thread": 2}}', "edge.thread", 'did you mean "threads"?'),
    ("p.yaml", "edge:\n path: edge.onnx\nedge:\n path: b.onnx\n", '"edge"', "is there twice (at line 3, "),
    ("p.yaml", "edge:\n\tpath: edge.onnx\n", "is not YAML", "found a tab, where YAML is indented with spaces (at line 2, "),
    ("p.yaml", "offline: off\nedge:\n path: edge.onnx\n", "offline", "edge, queue, stale, raise, in quotes"),
    ("p.yaml", "deadline: 1:30\nedge:\n path: edge.onnx\n", "deadline", 'did you mean "90ms" or "90s"?'),
    ("p.yml", "edge: [edge.onnx]\n", "edge", "expected a section"),
    ("p.ini", E, "p.ini", ".toml, .json, .yaml, .yml"),
    ("p.toml", "", "", "expected an [edge] section"),
]
VARIABLES = [  # name, value, what it says
    ("EDGEROUTE_TRESHOLD", "0.5", 'did you mean "EDGEROUTE_THRESHOLD"?'),
    ("edgeroute_mode", "only_edge", 'did you mean "EDGEROUTE_MODE"?'),
    ("EDGEROUTE_CLOUD_TIMEOUT", "2s", 'did you mean "EDGEROUTE_CLOUD__TIMEOUT"?'),
    ("EDGEROUTE_CLOUD__TIMOUT", "2s", 'did you mean "EDGEROUTE_CLOUD__TIMEOUT"?'),
    ("EDGEROUTE_CLOUD__1__TIMEOUT", "2s", "there is no [[cloud]] number 1"),
    ("EDGEROUTE_CLOUD__TIMEOUT", "2", 'did you mean "2ms" or "2s"?'),
    ("EDGEROUTE_EDGE", "edge.onnx", 'did you mean "EDGEROUTE_EDGE__'),
    ("EDGEROUTE_MODE", "only_clod", 'did you mean "only_cloud"?'),
    ("EDGEROUTE_THRESHOLD", "", "is empty"),
    ("EDGEROUTE_THRESHOLD", "high", "expected a number"),
    ("EDGEROUTE_METERED", "maybe", "true or false"),
    ("EDGEROUTE_EGRESS__NEVER_LEAVE", "[faces", 'expected JSON, such as ["a", "b"]'),
]


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("EDGEROUTE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def refusal(tmp_path):
    """Text -> what is said of the policy with it, line by line, without its folder."""
    (tmp_path / "edge.onnx").write_bytes(b"")

    def refuse(text, name="policy.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(EdgerouteError) as told:
            Router.from_policy(tmp_path / name).close()
        return str(told.value).replace(f"{tmp_path}{os.sep}", "").splitlines()

    return refuse


def test_there_are_sixty_kinds():
    """No two of them are the same mistake."""
    assert (
        len({text for text, *_ in TOML} | {text for _, text, *_ in OTHERS} | {name + value for name, value, _ in VARIABLES}) >= 60
    )
    assert len(TOML) + len(OTHERS) + len(VARIABLES) == len({*TOML} | {*OTHERS} | {*VARIABLES})


@pytest.mark.parametrize(("text", "key", "said"), TOML)
def test_a_mistake_in_toml(refusal, text, key, said):
    """Refused with file, key and what was meant."""
    lines = refusal(text)
    assert all(line.startswith("policy.toml: ") for line in lines), lines
    assert any(key in line and said in line for line in lines), lines
    assert "SECRET" not in "".join(lines)
    if "is not TOML" not in lines[0]:
        assert any(line.startswith(f"policy.toml: {key}: ") and said in line for line in lines), lines


WRONG = [
    '"x"', '""', '"a\\u0000b"', "0", "-1", "1.5", "1" + 30 * "0", "nan", "inf", "true", "[]", '["x"]', "{}", "{ a = 1 }",
    "2026-01-01",
]  # fmt: skip
CLOUDS = {
    "OpenInferenceCloud": C, "OpenInferenceGrpcCloud": C + 'protocol = "openinference-grpc"\n',
    "JsonCloud": C + 'protocol = "json"\n', "OpenAICloud": C + 'protocol = "openai"\nmodel = "m"\n',
}  # fmt: skip
SECTIONS = [  # name of its schema; empty: the top; the rest of the policy, and the section with the keys that it needs
    ("", E + C, ""), ("Edge", C, E), *((name, E, text) for name, text in CLOUDS.items()),
    *((name, E + C, f"[{name.lower()}]\n") for name in ("Limits", "Egress", "Audit", "Cache", "Outbox", "Trace", "Telemetry")),
    ("Gateway", E + C, "[gateway]\n"), ("Fleet", E + C, "[fleet]\n"), ("Trial", E + C, '[trial]\nedge = "edge.onnx"\n'),
    ("Rule", E + C, '[rule]\nof = "battery"\nthen = "only_edge"\nenter = 0.2\n'),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rest", "section"), SECTIONS)
def test_any_value_of_any_key(tmp_path, monkeypatch, name, rest, section):
    """It is refused with the key, or the router works; `check` says so, too, and that the cloud is away."""
    monkeypatch.chdir(tmp_path)
    tiny.linear(Path("edge.onnx"))
    schema = policy.schema()
    keys = schema["$defs"][name]["properties"] if name else schema["properties"].keys() - {"edge", "cloud", "local"}
    for key, value in itertools.product(keys, WRONG):
        top = {"threshold": "0.8", "state": '"state"', **({key: value} if not name else {})}
        own = [line for line in section.splitlines() if not line.startswith(f"{key} = ")]
        rest = rest.replace("//h/", "//127.0.0.1:9/")  # which refuses
        written = [*(f"{k} = {v}" for k, v in top.items()), rest, *own, f"{key} = {value}" if name else ""]
        Path("p.toml").write_text("\n".join(written), encoding="utf-8")
        told, expected = key, 1
        try:
            Router.from_policy("p.toml").close()
        except EdgerouteError as e:
            told, expected = str(e), 2
        code, out, err = cli("check", "p.toml")
        assert (key in told, code) == (True, expected), (key, value, err)
        assert (key in err) if code == 2 else ("! cloud" in out), (key, value, out, err)


@pytest.mark.parametrize(("name", "text", "key", "said"), OTHERS)
def test_a_mistake_in_another_format(refusal, name, text, key, said):
    """Likewise, with the line where it cannot be parsed."""
    lines = refusal(text, name)
    assert all(line.startswith(f"{name}: ") for line in lines), lines
    assert any(key in line and said in line for line in lines), lines


@pytest.mark.parametrize(("name", "value", "said"), VARIABLES)
def test_a_mistake_in_a_variable(refusal, monkeypatch, name, value, said):
    """Refused with the variable's name, and what was meant."""
    monkeypatch.setenv(name, value)
    (line,) = refusal(T + E + C)
    assert line.startswith(f"{name}: ")
    assert said in line


@pytest.mark.parametrize(
    ("text", "key", "given"),
    [
        (T + E + C + '[[rule]]\nof = "heat"\nenter = 80\nthen = "small_model"\n', "rule[0].then", {"rules": [Rule("heat", "small_model", 80)]}),
        ('uncalibrated = "error"\n' + T + E + C, "uncalibrated", {"uncalibrated": "error"}),
    ],
)  # fmt: skip
def test_a_mistake_that_shows_once_models_are_there(tmp_path, monkeypatch, text, key, given):
    """Likewise, when the router is made and when the file is read again; not where the program gave what is wrong."""
    monkeypatch.chdir(tmp_path)
    path = Path("policy.toml")
    path.write_text(text)
    tiny.linear(Path("edge.onnx"))
    with pytest.raises(PolicyError, match=rf"^policy\.toml: {re.escape(key)}: "):
        Router.from_policy(path)
    path.write_text(T + E + C)
    with pytest.raises(PolicyError, match=r"^(a rule|the threshold)"):
        Router.from_policy(path, **given)
    with Router.from_policy(path) as router:
        path.write_text(text)
        with pytest.raises(PolicyError, match=rf"^policy\.toml: {re.escape(key)}: "):
            router.reload()


MANY = {  # place of a section, or (), and what is wrong there
    "misspelt": ((), {"deadlin": "300ms"}),
    "misspelt, with a bad value": ((), {"hedgeafter": 1}),
    "no certificate": ((), {"threshold": "none.json"}),
    "no score": ((), {"score": "none.json"}),
    "mode": ((), {"mode": "prefer-edge"}),
    "no model": (("edge",), {"path": "none.onnx"}),
    "no card": (("edge",), {"card": "none.card.json"}),
    "misspelt in the edge": (("edge",), {"thread": 0}),
    "time": (("cloud",), {"timeout": "2"}),
    "misspelt in the cloud": (("cloud",), {"retry": -1}),
    "nameless": (("cloud",), {"url": "http://h"}),
    "limit": (("limits",), {"usd_per_month": 3}),
    "classes": (("egress",), {"may_leave": ["a"]}),
    "misspelt in a rule, which has a needless key": (("rule",), {"of": "throttled", "enter": 0.5, "thn": "only_edge"}),
    "section": ((), {"audits": {"share": 5}}),
    "trial": (("trial",), {"edge": "none.b.onnx"}),
}


def test_all_mistakes_are_told_at_once(tmp_path):
    """Each line of one mistake is there beside any other: files that are missing, misspelt keys, and what those hold."""
    tiny.linear(tmp_path / "edge.onnx")
    path = tmp_path / "policy.json"

    def keys(*names):
        policy = {"threshold": 0.8, "edge": {"path": "edge.onnx"}, "cloud": {"url": "http://h/v2/models/m"}}
        policy["egress"] = {"never_leave": ["a"]}
        for place, wrong in map(MANY.get, names):
            (policy.setdefault(*place, {}) if place else policy).update(wrong)
        path.write_text(json.dumps(policy))
        with pytest.raises(EdgerouteError) as told:
            Router.from_policy(path)
        lines = [re.sub(r"\[0\]", "", line.replace(f"{tmp_path}{os.sep}", "")) for line in str(told.value).splitlines()]
        assert all(line.startswith("policy.json: ") for line in lines), lines
        return {line.removeprefix("policy.json: ").removeprefix("edge.card: ") for line in lines}

    alone = {name: keys(name) for name in MANY}
    for one, other in itertools.combinations(MANY, 2):
        both = keys(one, other)
        assert alone[one] | alone[other] <= both, (one, other)
    assert len(keys(*MANY)) == len(set().union(*alone.values())) > len(MANY)


def test_a_key_that_was_meant_is_missing_no_more(refusal):
    """A misspelt key is one mistake, whatever needs that key; a wrong guess does not replace what is there."""
    assert len(refusal("treshold = 0.8\n" + E + C)) == 1
    assert len(refusal(T + E + C.replace("[cloud]", "[clod]"))) == 1
    assert refusal(T + "treshold = 80\n" + E + C) == ['policy.toml: treshold: there is no such key: did you mean "threshold"?']


def test_a_variable_of_a_misspelt_section(refusal, monkeypatch):
    """Counts for the section that was meant, and its own mistakes are its own."""
    monkeypatch.setenv("EDGEROUTE_CLOUD__1__TIMEOUT", "2")
    lines = refusal(T + E + C.replace("[cloud]", "[[clod]]") * 2)
    assert [line.partition(": ")[0] for line in lines] == ["policy.toml", "EDGEROUTE_CLOUD__1__TIMEOUT"]
    assert 'did you mean "2ms" or "2s"?' in lines[1]


def test_several_missing_models(tmp_path):
    """Are missing models, and no mistakes of the policy; those that the program gives are not looked for."""
    path = tmp_path / "policy.toml"
    path.write_text('threshold = 0.8\n[[edge]]\npath = "a.onnx"\n[[edge]]\npath = "b.onnx"\n' + C)
    with pytest.raises(ModelMissing) as told:
        Router.from_policy(path)
    assert [line.split(": ")[1] for line in str(told.value).splitlines()] == ["edge[0].path", "edge[1].path"]
    with Router.from_policy(path, edge=lambda x: ("a", 0.9)) as router:
        assert router.infer(1).value == "a"


def test_a_missing_file_that_a_variable_replaces(tmp_path, monkeypatch):
    """Is not looked for; what replaces it, is."""
    tiny.linear(tmp_path / "edge.onnx")
    path = tmp_path / "policy.toml"
    path.write_text('threshold = "none.json"\n[edge]\npath = "none.onnx"\n')
    monkeypatch.setenv("EDGEROUTE_EDGE__PATH", "edge.onnx")
    monkeypatch.setenv("EDGEROUTE_THRESHOLD", "0.5")
    Router.from_policy(path).close()
    monkeypatch.setenv("EDGEROUTE_EDGE__PATH", "other.onnx")
    with pytest.raises(ModelMissing, match=r"there is no model at .*other\.onnx"):
        Router.from_policy(path)
