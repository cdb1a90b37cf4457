"""Policy files: what they give the router, what is said of mistakes in them, and what of secrets: nothing."""

import asyncio
import gc
import importlib
import inspect
import json
import os
import re
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from both import sure, unsure
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from edgeroute import (
    AsyncRouter,
    Egress,
    Limits,
    ModelError,
    ModelMissing,
    OnnxModel,
    OpenInference,
    Options,
    PlainJson,
    PolicyError,
    Router,
    RuntimeMissing,
)
from edgeroute import policy as settings
from edgeroute.confidence import Learned, calibrate, fit
from edgeroute.core.policy_egress_and_options import INF, Terms
from edgeroute.core.setting_unit_types import Bytes, Delay, Patience, Share
from edgeroute.edge.runtimes_variants_ensemble import suffixes
from edgeroute.policy import file_and_environment as sources
from edgeroute.policy import policy_settings as keys
from edgeroute.policy import units_as_text as units
from edgeroute.policy.policy_keys_from_signatures import Section as Base
from edgeroute.policy.policy_keys_from_signatures import configures
from edgeroute.system.read_and_check_signatures import check_units

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "policy.md"
URL = "http://h/v2/models/m"
SUFFIXES = " or ".join(suffixes())
BOTH = """
threshold = 0.85
[edge]
path = "edge.onnx"
[cloud]
url = "http://h/v2/models/m"
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("EDGEROUTE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def policy(tmp_path):
    """Text -> what the router is given for a file with it."""
    made = []

    def load(text, name="policy.toml", **functions):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        given = settings.load(path).arguments(tmp_path, **functions)
        made.extend(part for key in ("cache", "outbox", "trace") if hasattr(part := given.get(key), "close"))
        return given

    yield load
    for part in made:
        part.close()


@pytest.fixture
def calls(monkeypatch):
    """What Cache, Outbox and Trace are made with: name -> arguments, checked against the signature. None of them is made."""
    calls = {}
    for section in (keys.Cache, keys.Outbox, keys.Trace):
        name, signature = section.__name__.lower(), inspect.signature(section.makes)

        def record(*args, _name=name, _signature=signature, **kwargs):
            calls[_name] = _signature.bind(*args, **kwargs).arguments
            return _name

        monkeypatch.setattr(section, "makes", staticmethod(record))
    return calls


@pytest.fixture
def problems(policy):
    """Text -> the lines of the error, without the file's name, which each has to begin with."""

    def lines(text, name="policy.toml"):
        with pytest.raises(PolicyError) as e:
            policy(text, name)
        return [re.sub(rf"^\S*/{re.escape(name)}: ", "", line) for line in str(e.value).splitlines()]

    return lines


def edge(text=""):
    return f'[edge]\npath = "edge.onnx"\n{text}\n'


def cloud(text):
    return f'mode = "only_cloud"\n[cloud]\n{text}\n'


# What a file gives


def test_every_key_of_the_top_reaches_the_router(policy, tmp_path):
    """Durations come as seconds, the folder from the policy's; the names are Router's."""
    given = policy(
        'deadline = "300ms"\nhedge_after = "0s"\nfirst_token = "150ms"\nscore = "margin"\nno_confidence = "accept"\noffline = "raise"\n'
        'order = "fastest"\nmetered = true\nstate = "sub/../kept"\nuncalibrated = "error"\ncertificate_max_age = "90d"\nsensors_every = "5s"\n'
        + BOTH
    )
    assert {k: v for k, v in given.items() if k not in {"edge", "cloud"}} == {
        "mode": "prefer_edge", "threshold": 0.85, "deadline": 0.3, "hedge_after": 0.0, "first_token": 0.15, "score": "margin", "no_confidence": "accept",
        "offline": "raise", "order": "fastest", "metered": True, "state": tmp_path.resolve() / "kept",
        "limits": None, "egress": None, "cache": None, "outbox": None, "audit": None, "rules": None, "uncalibrated": "error",
        "certificate_max_age": 7776000.0,
        "views": None, "trial": None, "sensors_every": 5.0,
    }  # fmt: skip
    assert set(given) == {*inspect.signature(Router).parameters, *Options._fields} - {
        "trace",
        "sensors",
        "instruments",
        "parts",
        "options",
    }


def test_keys_that_are_not_given_have_the_routers_defaults(policy):
    """A file need not repeat them."""
    given = policy('[edge]\npath = "edge.onnx"')
    defaults = {name: parameter.default for name, parameter in inspect.signature(Router).parameters.items()}
    for name, default in {**defaults, **Options()._asdict()}.items():
        if name not in {"edge", "sensors", "trace", "instruments", "parts", "options"}:
            assert given[name] == default, name


@pytest.mark.parametrize(("written", "meant"), [("90m", 5400.0), ("p10", "p10"), ("p99", "p99"), ("auto", "auto")])
def test_a_hedge_is_a_duration_a_quantile_or_auto(policy, monkeypatch, written, meant):
    """In the file as in the variable."""
    assert policy(f'hedge_after = "{written}"\n' + BOTH)["hedge_after"] == meant
    monkeypatch.setenv("EDGEROUTE_HEDGE_AFTER", written)
    assert policy(BOTH)["hedge_after"] == meant


def test_an_edge_section_is_a_model_with_its_options(policy, tmp_path):
    """The path starts from the policy's folder, and need not be there yet."""
    (tmp_path / "card.json").write_text('{"name": "small"}')
    model = policy(f'[edge]\npath = "sub/../edge.onnx"\nthreads = 2\nproviders = ["cuda", "cpu"]\non_downgrade = "record"\nsha256 = "{"aB" * 32}"\ncard = "card.json"')["edge"]  # fmt: skip
    assert isinstance(model, OnnxModel)
    assert (model.path, model.threads, model.on_downgrade) == (tmp_path / "edge.onnx", 2, "record")
    assert [one.name for one in model.providers] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert model.name == "small"
    (tmp_path / "edge.onnx").write_bytes(b"another")
    with pytest.raises(ModelError, match=f"expected {'aB' * 32}"):
        model.load()


def test_a_card_that_is_not_there_is_told_of(policy):
    """It is read with the policy, unlike the model."""
    with pytest.raises(ModelMissing, match=r"card\.json"):
        policy('[edge]\npath = "edge.onnx"\ncard = "card.json"')


def test_a_cloud_section_is_an_endpoint_with_its_options(policy, tmp_path, monkeypatch):
    """The protocol is openinference unless it says otherwise; sizes come as bytes, paths from the policy's folder."""
    monkeypatch.setenv("KEY", "sk-1")
    text = """name = "far"\nurl = "https://h:1/v2/models/m"\nbinary = false\nlabels = ["a", "b"]\nkind = "probabilities"\noutput = "y"
        api_key = { env = "KEY" }\nheaders = { "X-Tenant" = "t", "X-Secret" = { env = "KEY" } }
        verify = "ca.pem"\ncert = ["c.pem", "k.pem"]\ntimeout = "1.5s"\nretries = 0\nmax_reply = "5MB\""""
    given = policy(cloud(text))["cloud"]
    assert isinstance(given, OpenInference)
    assert (given.where, given.name, given.binary, given.labels) == ("https://h:1/v2/models/m", "far", False, ("a", "b"))
    assert (given.kind, given.output) == ("probabilities", "y")
    address = given.address
    assert dict(address.headers()) == {"X-Tenant": "t", "X-Secret": "sk-1", "Authorization": "Bearer sk-1"}
    assert (address.verify, address.cert) == (tmp_path / "ca.pem", (tmp_path / "c.pem", tmp_path / "k.pem"))
    assert (address.timeout_s, address.retries, address.max_reply_bytes) == (1.5, 0, 5_000_000)


def test_protocol_json_is_a_plain_endpoint(policy):
    """With the places in the reply that the file names."""
    given = policy(
        cloud('protocol = "json"\nurl = "http://h/x"\nvalue = "a.0"\nconfidence = "b"\nlogits = "c"\nping_path = "/up"')
    )["cloud"]
    assert isinstance(given, PlainJson)
    assert (given.where, given.value, given.confidence, given.logits, given.ping_path) == ("http://h/x", "a.0", "b", "c", "/up")


@pytest.mark.parametrize("protocol", ["openinference", "openinference-grpc", "json"])
def test_the_terms_of_a_cloud_reach_its_address(policy, protocol):
    """Whatever the protocol; what is not given costs nothing and has no limit but that of calls at a time."""
    text = f'protocol = "{protocol}"\nurl = "{URL}"\n'
    assert policy(cloud(text))["cloud"].address.terms == Terms()
    text += "usd_per_call = 0.1\nusd_per_mb = 2\njoules_per_call = 3\njoules_per_mb = 0.4\ncalls_per_s = 0.5\nmax_concurrent = 6"
    assert policy(cloud(text))["cloud"].address.terms == Terms(0.1, 2, 3, 0.4, 0.5, 6)


def test_limits_are_those_that_are_given(policy):
    """The others are none; 0 is one."""
    assert policy("[limits]\nusd_per_day = 2.5\ncalls_per_minute = 0\n" + edge())["limits"] == Limits(2.5, INF, INF, 0)
    assert policy("[limits]\nmb_per_day = 1\njoules_per_hour = 2\n" + edge())["limits"] == Limits(INF, 1, 2, INF)
    assert policy("[limits]\n" + edge())["limits"] == Limits()


def test_rules_of_egress_come_with_the_functions_that_a_file_cannot_hold(policy):
    """Which may also come alone."""
    text = '[egress]\nnever_leave = ["a", "b"]\nmay_leave = ["c"]\nunknown_class = "allow"\ndefault_class = "d"\n' + edge()
    functions = {"consent": lambda where, data_class: True, "redact": lambda x, data_class: x}
    for passed, kept in (({}, {"consent": None, "redact": None}), (functions, functions)):
        egress = policy(text, **passed)["egress"]
        assert isinstance(egress, Egress)
        assert egress.rules == Egress(never_leave=["a", "b"], may_leave=["c"], unknown_class="allow", default_class="d").rules
        assert {"consent": egress.consent, "redact": egress.redact} == kept
    for name, function in functions.items():
        alone = policy(edge(), **{name: function})["egress"]
        assert alone.rules == Egress().rules
        assert getattr(alone, name) is function
    assert policy('[egress]\nmay_leave = ["c"]\n' + edge())["egress"].rules == Egress(may_leave=["c"]).rules


def test_a_consent_that_looks_empty_is_one(policy):
    """What asks before data leaves is not lost because it is false as a truth value."""

    class Asked(list):
        def __call__(self, where, data_class):
            return False

    asked = Asked()
    assert policy(edge(), consent=asked)["egress"].consent is asked


def test_a_cache_is_made_with_its_options(policy, calls, tmp_path):
    """Its file is in the folder for what outlives the process, and only where it is asked for."""
    text = """[cache]\nttl = "2h"\nmax_size = "1MB"\ndisk = true\ndisk_max = "2MB"\nstale_while_revalidate = "30s"
        stale_if_offline = "7d"\nnegative_ttl = "5m"\nnever = ["a", "b"]\n"""
    assert policy('state = "kept"\n' + text + edge())["cache"] == "cache"
    assert calls["cache"] == {
        "ttl_s": 7200.0, "max_bytes": 10**6, "disk": tmp_path.resolve() / "kept/cache.db", "disk_max_bytes": 2 * 10**6,
        "stale_while_revalidate_s": 30.0, "stale_if_offline_s": 604800.0, "negative_ttl_s": 300.0, "never": {"a", "b"},
    }  # fmt: skip
    policy('state = "kept"\n[cache]\n' + edge())
    assert (calls["cache"]["disk"], calls["cache"]["never"]) == (None, frozenset())


def test_an_outbox_is_made_with_its_options(policy, calls, tmp_path):
    """Its file is in the folder for what outlives the process."""
    text = '[outbox]\nmax_size = "1MB"\nttl = "12h"\ndrop = "least_important"\nordered = true\nparallel = 3\nrate = 0.5\nspread = "0s"\n'
    assert policy('state = "kept"\n' + text + edge())["outbox"] == "outbox"
    assert calls["outbox"] == {
        "path": tmp_path.resolve() / "kept/outbox.db", "max_bytes": 10**6, "ttl_s": 43200.0, "drop": "least_important",
        "ordered": True, "parallel": 3, "rate_per_s": 0.5, "spread_s": 0.0,
    }  # fmt: skip


def test_a_trace_is_made_with_its_options(policy, calls, tmp_path):
    """Its file is where the policy says, or in the folder for what outlives the process."""
    text = '[trace]\nfile = "a.jsonl"\nsample = "2.5%"\ninputs = true\nmax_size = "1MB"\nkeep = 9\n'
    assert policy(text + edge())["trace"] == "trace"
    to = tmp_path.resolve() / "a.jsonl"
    assert calls["trace"] == {"to": to, "sample": 0.025, "inputs": True, "max_bytes": 10**6, "keep": 9}
    policy('state = "kept"\n[trace]\nsample = 0.5\n' + edge())
    assert (calls["trace"]["to"], calls["trace"]["sample"]) == (tmp_path.resolve() / "kept/trace.jsonl", 0.5)
    policy('state = "kept"\n[trace]\nfile = "a.jsonl"\n' + edge())
    assert calls["trace"]["to"] == to


def test_to_read_a_policy_makes_no_file(policy, tmp_path):
    """Neither the folder for what outlives the process nor what will be in it: a reload and a check read it too."""
    policy('offline = "queue"\nstate = "kept"\n' + BOTH + "[cache]\ndisk = true\n[outbox]\n[trace]")
    assert [path.name for path in tmp_path.iterdir()] == ["policy.toml"]


def test_several_sections_are_lists_in_their_order(policy):
    """And a list of thresholds goes with several edges."""
    given = policy(
        f'threshold = [0.9, 1]\n[[edge]]\npath = "a.onnx"\n[[edge]]\npath = "b.onnx"\n[[cloud]]\nurl = "{URL}1"\n[[cloud]]\nurl = "{URL}2"'
    )
    assert [model.name for model in given["edge"]] == ["a", "b"]
    assert [endpoint.where for endpoint in given["cloud"]] == [f"{URL}1", f"{URL}2"]
    assert given["threshold"] == [0.9, 1.0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '{"mode": "only_edge", "deadline": null, "edge": {"path": "edge.onnx"}}'),
        ("p.yaml", "mode: only_edge  # here\nedge:\n  path: edge.onnx\n"),
        ("p.YML", "mode: only_edge\nedge: [{path: edge.onnx, card: null}]\n"),
        ("p.toml", '\ufeffmode = "only_edge"\nedge = { path = "edge.onnx" }\n'),
    ],
)
def test_json_and_yaml_say_the_same_as_toml(policy, name, text):
    """A null is a key that is not given, and a byte order mark does no harm."""
    given = policy(text, name)
    assert (given["mode"], given["edge"].name, given["deadline"]) == ("only_edge", "edge", None)


def test_yaml_may_use_aliases(policy):
    """What several sections share is written once."""
    shared = "threshold: 0.5\nedge:\n  path: edge.onnx\ncloud:\n  - &c\n    url: http://a/v2/models/m\n    timeout: 2s\n"
    both = policy(shared + "  - <<: *c\n    name: other\n", "p.yaml")
    assert [made.address.timeout_s for made in both["cloud"]] == [2.0, 2.0]


class Siren:
    """Something that a policy configures.

    Args:
        lasts_s: how long it lasts, seconds; None: until it is stopped.
        wait_s: how long it waits, seconds.
        max_bytes: maximum size of its log.
        share: share of alarms that are heard, 0..1.
        tone: kind of sound.
        loud: it is heard outside.
        ring: called at its end.
    """

    def __init__(
        self, *, lasts_s: Patience | None = None, wait_s: Delay = 1.5, max_bytes: Bytes = 3 << 10, share: Share = 0.25,
        tone: Literal["high", "low"] = "low", loud: bool = True, ring: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        check_units(Siren, locals())


def test_a_setting_is_declared_once():
    """The signature and the docstring of a class make the keys of its section, their text, and the check of its arguments."""

    @configures(Siren)
    class Section(Base):
        """Keys."""

    made = Section.model_json_schema()["properties"]
    assert [(key, value.get("default"), value["description"]) for key, value in made.items()] == [
        ("lasts", None, "How long it lasts; without it: until it is stopped."), ("wait", "1500ms", "How long it waits."),
        ("max_size", "3KiB", "Maximum size of its log."), ("share", "25%", "Share of alarms that are heard."),
        ("tone", "low", "Kind of sound."), ("loud", True, "It is heard outside."),
    ]  # fmt: skip
    section = Section.model_validate({"wait": "2m", "max_size": "1MB", "tone": "high"})
    assert section.given() == {"wait_s": 120.0, "max_bytes": 10**6, "tone": "high"}
    Siren(**section.given())
    for name, value in (("wait_s", -1), ("max_bytes", 0.5), ("share", 2), ("lasts_s", 0)):
        with pytest.raises(PolicyError, match=f"^{name}= takes a"):
            Siren(**{name: value})


def test_a_threshold_may_be_the_path_of_a_certificate(policy, tmp_path):
    """From the policy's folder; one of several; and one that is not there is said to be missing, not its key."""
    certificate = calibrate(np.linspace(0, 1, 1000), np.arange(1000) > 300, max_error=0.05)
    certificate.save(tmp_path / "c.json")
    assert policy(BOTH.replace("0.85", '"c.json"'))["threshold"] == certificate
    two = BOTH.replace("0.85", '["c.json", 0.5]').replace("[edge]", "[[edge]]") + '[[edge]]\npath = "second.onnx"\n'
    assert policy(two)["threshold"] == [certificate, 0.5]
    with pytest.raises(PolicyError, match=r"there is no certificate at .*d\.json"):
        policy(BOTH.replace("0.85", '"d.json"'))


def test_a_score_may_be_the_path_of_a_fitted_one(policy, tmp_path):
    """It is the same object, and so are the models that are read with it, until the file changes."""
    rng = np.random.default_rng(0)
    fit(rng.normal(size=(400, 3)), rng.uniform(size=400) < 0.7, rng.uniform(size=400) < 0.9).save(tmp_path / "s.json")
    text = 'score = "s.json"\n' + BOTH
    first, second = policy(text), policy('deadline = "1s"\n' + text)
    assert isinstance(first["score"], Learned)
    assert first["score"] is second["score"]
    assert first["edge"] is second["edge"]
    (tmp_path / "s.json").write_text((tmp_path / "s.json").read_text() + " ")
    third = policy(text)
    assert third["score"] is not first["score"]
    assert third["edge"] is not first["edge"]
    with pytest.raises(ModelMissing, match=r"t\.json"):
        policy('score = "t.json"\n' + BOTH)


@pytest.mark.parametrize("kind", [Router, AsyncRouter])
@pytest.mark.parametrize(
    ("text", "beside", "legs"),
    [
        ("threshold = 0.5", {"edge": unsure}, ["edge"]),
        ('mode = "only_cloud"\nthreshold = 0.5', {"cloud": sure}, ["cloud"]),
        ("", {"edge": unsure, "cloud": sure, "threshold": 0.5}, ["edge", "cloud"]),
        (BOTH.replace("threshold = 0.85", ""), {"threshold": 0.5, "edge": unsure, "cloud": sure}, ["edge", "cloud"]),
    ],
)
def test_what_the_program_gives_the_file_need_not_have(tmp_path, kind, text, beside, legs):
    """A model or endpoint in code takes the place of the section, also when the file is read again."""
    (tmp_path / "policy.toml").write_text(text)
    router = kind.from_policy(tmp_path / "policy.toml", **beside)
    try:
        router.reload()
        assert [leg.name for leg in router.stats().legs] == legs
    finally:
        if kind is Router:
            router.close()
        else:
            asyncio.run(router.close())


def test_a_file_without_a_side_still_needs_one(tmp_path):
    """Where the program gives none either, or gives None."""
    (tmp_path / "policy.toml").write_text("threshold = 0.5")
    for beside in ({}, {"edge": None}):
        with pytest.raises(PolicyError, match="found neither"):
            Router.from_policy(tmp_path / "policy.toml", **beside)


@pytest.mark.parametrize("more", ["", '[limits]\n[egress]\nmay_leave = ["a"]\n[cache]\ndisk = true\n[outbox]\n[trace]'])
def test_a_policy_makes_a_router(tmp_path, more):
    """The model file has to be there, and is not read yet. It may change, whatever sections it has."""
    (tmp_path / "policy.toml").write_text('metered = true\nstate = "kept"\n' + BOTH + more)
    with pytest.raises(ModelMissing, match=r"edge\.onnx"):
        Router.from_policy(tmp_path / "policy.toml")
    (tmp_path / "edge.onnx").write_bytes(b"")
    with Router.from_policy(tmp_path / "policy.toml") as router:
        router.reload()
        (tmp_path / "policy.toml").write_text("mode = 1")
        with pytest.raises(PolicyError):
            router.reload()


# What a reload keeps


def test_an_unchanged_section_gives_the_same_object(policy):
    """Whatever changed elsewhere, so that the router keeps its runner."""
    first = policy(BOTH)
    second = policy('deadline = "1s"\n' + BOTH.replace("0.85", "0.9"))
    assert second["edge"] is first["edge"]
    assert second["cloud"] is first["cloud"]


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [("[cloud]", "threads = 2\n[cloud]", "cloud"), ("models/m", "models/n", "edge"), ("[edge]", 'score = "margin"\n[edge]', "")],
)
def test_a_changed_section_gives_another_object(policy, old, new, kept):
    """And the other one stays; another score needs other runners on both sides."""
    first, second = policy(BOTH), policy(BOTH.replace(old, new))
    for side in ("edge", "cloud"):
        assert (second[side] is first[side]) == (side == kept)


@pytest.mark.parametrize("name", ["edge.onnx", "edge.json"])
def test_a_new_model_or_card_under_an_old_name_gives_another_object(policy, tmp_path, name):
    """The file's time and size tell."""
    first = policy(BOTH)
    (tmp_path / name).write_text("{}")
    assert policy(BOTH)["edge"] is not first["edge"]


def test_what_no_router_has_any_more_is_gone(policy):
    """The references are weak."""
    given = policy(BOTH)
    made = [weakref.ref(given[side]) for side in ("edge", "cloud")]
    del given
    gc.collect()
    assert [one() for one in made] == [None, None]


# Variables


def test_a_variable_beats_the_file(policy, monkeypatch):
    """In every section, whatever the type of the key."""
    monkeypatch.setenv("EDGEROUTE_MODE", "only_edge")
    monkeypatch.setenv("EDGEROUTE_THRESHOLD", "[0.5]")
    monkeypatch.setenv("EDGEROUTE_DEADLINE", "2s")
    monkeypatch.setenv("EDGEROUTE_EDGE__THREADS", "3")
    monkeypatch.setenv("EDGEROUTE_EDGE__PROVIDERS", '[{"name": "cuda", "device": 1}]')
    monkeypatch.setenv("EDGEROUTE_CLOUD__URL", "http://other")
    monkeypatch.setenv("EDGEROUTE_CLOUD__MODEL", "123")
    monkeypatch.setenv("EDGEROUTE_CLOUD__VERIFY", "False")
    monkeypatch.setenv("EDGEROUTE_CLOUD__BINARY", "auto")
    given = policy(BOTH + "retries = 1\nbinary = true")
    assert (given["mode"], given["threshold"], given["deadline"]) == ("only_edge", [0.5], 2.0)
    assert (given["edge"].name, given["edge"].threads, given["edge"].providers[0].options) == ("edge", 3, {"device_id": "1"})
    assert (given["cloud"].where, given["cloud"].binary) == ("http://other/v2/models/123", None)
    assert (given["cloud"].address.verify, given["cloud"].address.retries) == (False, 1)


def test_a_variable_sets_a_key_of_a_section_that_there_is_one_of(policy, calls, monkeypatch):
    """It needs no number, and the file need not have the section."""
    for name, value in {
        "METERED": "true", "STATE": "1", "LIMITS__USD_PER_DAY": "2", "EGRESS__NEVER_LEAVE": '["a"]', "EGRESS__DEFAULT_CLASS": "7",
        "CACHE__TTL": "7d", "CACHE__DISK": "true", "OUTBOX__RATE": "0.5", "OUTBOX__DROP": "newest", "TRACE__SAMPLE": "1%",
        "CLOUD__USD_PER_CALL": "0.25", "CLOUD__MAX_CONCURRENT": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"EDGEROUTE_{name}", value)
    given = policy(BOTH + '[limits]\nusd_per_day = 1\nmb_per_day = 3\n[egress]\nnever_leave = ["b", "c"]')
    assert (given["metered"], given["state"].name, given["limits"]) == (True, "1", Limits(usd_per_day=2, mb_per_day=3))
    assert given["egress"].rules == Egress(never_leave=["a"], default_class="7").rules
    monkeypatch.delenv("EDGEROUTE_EGRESS__NEVER_LEAVE")
    monkeypatch.delenv("EDGEROUTE_EGRESS__DEFAULT_CLASS")
    assert policy(BOTH + "[egress]\nmay_leave = []")["egress"].rules == Egress(may_leave=[]).rules, "nothing may leave"
    assert given["cloud"].address.terms == Terms(usd_per_call=0.25, max_concurrent=2)
    assert (calls["cache"]["ttl_s"], calls["cache"]["disk"]) == (604800.0, given["state"] / "cache.db")
    assert (calls["outbox"]["rate_per_s"], calls["outbox"]["drop"], calls["trace"]["sample"]) == (0.5, "newest", 0.01)
    assert "spread_s" not in calls["outbox"]  # the default of the class
    monkeypatch.setenv("EDGEROUTE_TRACE__SAMPLE", "0.5")
    policy(BOTH)
    assert calls["trace"]["sample"] == 0.5


@pytest.mark.parametrize(("section", "given"), [("egress", '"x"'), ("egress", '[{ may_leave = ["a"] }]'), ("cloud", '"x"')])
def test_a_variable_does_not_hide_that_a_section_is_none(problems, monkeypatch, section, given):
    """Else rules of egress that nobody can read would be replaced by a part of what was meant."""
    monkeypatch.setenv("EDGEROUTE_EGRESS__NEVER_LEAVE", '["b"]')
    monkeypatch.setenv("EDGEROUTE_CLOUD__URL", URL)
    lines = problems(f"threshold = 0.5\n{section} = {given}\n" + edge())
    found = "text" if given == '"x"' else "a list"
    assert lines == [f"{section}: expected a section, as in [{section}] and its keys below, found {found}"]


def test_variables_can_make_a_section_that_the_file_lacks(policy, monkeypatch):
    """A file that says the rest may leave the address to the environment."""
    monkeypatch.setenv("EDGEROUTE_CLOUD__URL", URL)
    assert policy('mode = "only_cloud"')["cloud"].where == URL
    assert policy('mode = "only_cloud"\n[cloud]')["cloud"].where == URL


def test_a_number_says_which_of_several_sections(policy, problems, monkeypatch):
    """Without one it would be a guess."""
    text = f'mode = "only_cloud"\n[[cloud]]\nurl = "{URL}"\n[[cloud]]\nurl = "{URL}"'
    monkeypatch.setenv("EDGEROUTE_CLOUD__1__URL", "http://second/v2/models/m")
    assert [endpoint.where for endpoint in policy(text)["cloud"]] == [URL, "http://second/v2/models/m"]
    monkeypatch.setenv("EDGEROUTE_CLOUD__2__URL", "x")
    monkeypatch.setenv("EDGEROUTE_CLOUD__NAME", "x")
    assert problems(text) == [
        "EDGEROUTE_CLOUD__2__URL: there is no [[cloud]] number 2: the file has 2, counted from 0",
        "EDGEROUTE_CLOUD__NAME: which of the 2 [[cloud]]? Say its number, counted from 0, as in EDGEROUTE_CLOUD__0__NAME",
    ]


def test_the_key_itself_may_be_in_its_variable(policy, monkeypatch):
    """It stays there: the policy has a reference, and a reference may be given too."""
    monkeypatch.setenv("EDGEROUTE_CLOUD__API_KEY", "sk-live")
    given = policy(BOTH + 'api_key = { env = "OTHER" }')["cloud"]
    assert dict(given.address.headers()) == {"Authorization": "Bearer sk-live"}
    monkeypatch.setenv("EDGEROUTE_CLOUD__API_KEY", '{"env": "MINE"}')
    monkeypatch.setenv("MINE", "sk-mine")
    assert dict(policy(BOTH)["cloud"].address.headers()) == {"Authorization": "Bearer sk-mine"}


def test_an_unknown_variable_is_refused_with_the_nearest_name(problems, monkeypatch):
    """A misspelt one would otherwise do nothing, silently; so would one in lower case."""
    for name in (
        "EDGEROUTE_MOD", "EDGEROUTE_CLOUD__URI", "edgeroute_threshold", "EDGEROUTE_CLOUD", "EDGEROUTE_LIMITS",
        "EDGEROUTE_LIMITS__0__USD_PER_DAY", "EDGEROUTE_EGRESS__MAYLEAVE",
    ):  # fmt: skip
        monkeypatch.setenv(name, "sekret")
    lines = problems(BOTH)
    assert lines == [
        'EDGEROUTE_CLOUD: there is no such variable: did you mean "EDGEROUTE_CLOUD__URL"?',
        'EDGEROUTE_CLOUD__URI: there is no such variable: did you mean "EDGEROUTE_CLOUD__URL"?',
        'EDGEROUTE_EGRESS__MAYLEAVE: there is no such variable: did you mean "EDGEROUTE_EGRESS__MAY_LEAVE"?',
        'EDGEROUTE_LIMITS: there is no such variable: did you mean "EDGEROUTE_LIMITS__MB_PER_DAY"?',
        'EDGEROUTE_LIMITS__0__USD_PER_DAY: there is no such variable: did you mean "EDGEROUTE_LIMITS__USD_PER_DAY"?',
        'EDGEROUTE_MOD: there is no such variable: did you mean "EDGEROUTE_MODE"?',
        'edgeroute_threshold: there is no such variable: did you mean "EDGEROUTE_THRESHOLD"?',
    ]


def test_variables_that_are_not_the_policys_are_left_alone(policy, monkeypatch):
    """Those that hold the secrets which it names, and those that Kubernetes sets for a service called edgeroute."""
    monkeypatch.setenv("EDGEROUTE_KEY", "sk-1")
    monkeypatch.setenv("EDGEROUTE_TENANT", "sk-2")
    monkeypatch.setenv("EDGEROUTE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("EDGEROUTE_PORT_8080_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("EDGEROUTE_DEMO_PORT", "tcp://10.0.0.1:80")
    policy(BOTH + 'api_key = { env = "EDGEROUTE_KEY" }\nheaders = { X-Tenant = { env = "EDGEROUTE_TENANT" } }')


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("EDGEROUTE_MODE", "only_egde", 'found "only_egde": did you mean "only_edge"?'),
        ("EDGEROUTE_MODE", "", "is empty: give it a value, or unset it"),
        ("EDGEROUTE_THRESHOLD", "high", 'expected a number, the path of a certificate (.json), or a list with one of them for each edge model, found "high"'),
        ("EDGEROUTE_DEADLINE", "300", 'expected a duration such as "300ms", "2s" or "12h", found "300"; did you mean "300ms" or "300s"?'),
        ("EDGEROUTE_EDGE__PROVIDERS", '["A"', """expected JSON, such as ["a", "b"], found an error at line 1, column 5: Expecting ',' delimiter"""),
        ("EDGEROUTE_CLOUD__RETRIES", "1.5", "expected a whole number, 0 or more, found 1.5"),
        ("EDGEROUTE_OFFLINE", "que", 'found "que": did you mean "queue"?'),
        ("EDGEROUTE_OFFLINE", "queue", '"queue" needs state, the folder for what outlives the process, and there is none'),
        ("EDGEROUTE_METERED", "yes", 'expected true or false, found "yes"'),
        ("EDGEROUTE_LIMITS__USD_PER_DAY", "-1", "expected a number, 0 or more, found -1"),
        ("EDGEROUTE_LIMITS__USD_PER_DAY", "1e999", 'expected a number, 0 or more, found "1e999"'),
        ("EDGEROUTE_EGRESS__NEVER_LEAVE", "medical", 'expected a list of texts, as in ["a", "b"], found "medical"'),
        ("EDGEROUTE_CACHE__DISK", "true", "needs state, the folder for what outlives the process, and there is none"),
        ("EDGEROUTE_CLOUD__VERIFY", "0", "expected true, false, or the path of a file with authorities in quotes, found a number"),
    ],
)  # fmt: skip
def test_a_malformed_value_is_told_of_under_the_variables_name(problems, monkeypatch, name, value, says):
    """Not under the file's, where nobody would find it."""
    monkeypatch.setenv(name, value)
    assert problems(BOTH) == [f"{name}: {says}"]


# Mistakes


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("treshold = 1\n" + BOTH, 'treshold: there is no such key: did you mean "threshold"?'),
        ('hedge-after = "1s"\n' + BOTH, 'hedge-after: there is no such key: did you mean "hedge_after"?'),
        ('Mode = "only_edge"\n' + BOTH, 'Mode: there is no such key: did you mean "mode"?'),
        ('url = "x"\n' + BOTH, "url: there is no such key: it belongs in [cloud]"),
        ("_env_file = 1\n" + BOTH, "_env_file: there is no such key: expected one of mode, threshold, deadline, score, offline, state, hedge_after, first_token, uncalibrated, certificate_max_age, no_confidence, order, metered, sensors_every, edge, cloud, trial, limits, egress, audit, cache, outbox, rule, trace, telemetry, gateway, fleet, parts"),
        (BOTH + 'deadline = "1s"', "cloud.deadline: there is no such key: it belongs at the top of the file, before the first section"),
        (BOTH + "threads = 1", "cloud.threads: there is no such key: it belongs in [edge]"),
        (BOTH + "retry = 1", 'cloud.retry: there is no such key: did you mean "retries"?'),
        (BOTH + 'logits = "x"', 'cloud.logits: there is no such key: only a cloud with protocol = "json" has it'),
        (cloud('protocol = "json"\nurl = "http://h"\nbinary = true'), 'cloud.binary: there is no such key: only a cloud with protocol = "openinference" has it'),
        (cloud(f'protocol = "jsn"\nurl = "{URL}"'), 'cloud.protocol: found "jsn": did you mean "json"?'),
        ('mode = "prefer"\n' + BOTH, 'mode: found "prefer": did you mean "prefer_edge"?'),
        ('mode = "x"\n' + BOTH, 'mode: found "x": expected one of prefer_edge, only_edge, prefer_cloud, only_cloud, shadow'),
        ("mode = [1]\n" + BOTH, "mode: found a list: expected one of prefer_edge, only_edge, prefer_cloud, only_cloud, shadow"),
        ("deadline = 300\n" + BOTH, 'deadline: expected a duration such as "300ms", "2s" or "12h", found 300; did you mean "300ms" or "300s"?'),
        ('deadline = "2 Sec"\n' + BOTH, 'deadline: expected a duration such as "300ms", "2s" or "12h", found "2 Sec"; did you mean "2s"?'),
        ('deadline = "5 minutes"\n' + BOTH, 'deadline: expected a duration such as "300ms", "2s" or "12h", found "5 minutes"; did you mean "5m"?'),
        ('deadline = "3 millis"\n' + BOTH, 'deadline: expected a duration such as "300ms", "2s" or "12h", found "3 millis"; did you mean "3ms"?'),
        ('deadline = "5MB"\n' + BOTH, 'deadline: expected a duration such as "300ms", "2s" or "12h", found "5MB"'),
        ("deadline = true\n" + BOTH, 'deadline: expected a duration such as "300ms", "2s" or "12h", found true'),
        ("deadline = 2020-01-01\n" + BOTH, 'deadline: expected a duration such as "300ms", "2s" or "12h", found a date'),
        ('deadline = "0s"\n' + BOTH, 'deadline: expected a duration of more than 0, found "0s"'),
        (BOTH + "max_reply = 5", 'cloud.max_reply: expected a size such as "512KB" or "16MiB", found 5; did you mean "5KB" or "5MB"?'),
        (BOTH + 'max_reply = "5 mib"', 'cloud.max_reply: expected a size such as "512KB" or "16MiB", found "5 mib"; did you mean "5MiB"?'),
        (BOTH + 'max_reply = "0B"', 'cloud.max_reply: expected a size of a byte or more, found "0B"'),
        (BOTH.replace("0.85", '"0.85"'), 'threshold: expected a number, the path of a certificate (.json), or a list with one of them for each edge model, found "0.85"'),
        (BOTH.replace("0.85", "nan"), "threshold: expected a number, the path of a certificate (.json), or a list with one of them for each edge model, found nan"),
        (BOTH.replace("0.85", "true"), "threshold: expected a number, the path of a certificate (.json), or a list with one of them for each edge model, found true"),
        (BOTH.replace("0.85", "[0.1, 0.2]"), "threshold: expected one number, or a list with one for each edge model (1), found a list of 2"),
        (BOTH.replace("threshold = 0.85", ""), "threshold: is missing: the confidence, such as 0.85, from which the edge's answer is accepted and nothing is sent"),
        (BOTH.replace("edge.onnx", "edge.unheard"), f'edge.path: expected a file that ends in {SUFFIXES}, found "edge.unheard"'),
        ("[edge]", "edge.path: is missing. The model file or folder; its suffix picks the runtime."),
        ('edge = "edge.onnx"', "edge: expected a section, as in [edge] and its keys below, found text"),
        ('[[edge]]\npath = "a.onnx"\n[[edge]]\npath = 1', "edge[1].path: expected text in quotes, found 1"),
        ('[edge]\npath = "a.onnx"\nsha256 = "12"', 'edge.sha256: expected 64 hexadecimal digits in quotes, found "12"'),
        ('[edge]\npath = "a.onnx"\nthreads = 0', "edge.threads: expected a whole number, 1 or more, found 0"),
        ('[edge]\npath = "a.onnx"\nproviders = []', 'edge.providers: expected a list of providers, as in ["cpu"] or [{ name = "tensorrt", fp16 = true }, "cuda"], found an empty list'),
        ('[edge]\npath = "a.onnx"\nproviders = ["cdua"]', 'edge.providers: there is no provider "cdua": did you mean "cuda"?'),
        ('[edge]\npath = "a.onnx"\nproviders = [{ name = "tensorrt", fp61 = true }]', 'edge.providers: tensorrt has no option "fp61": did you mean "fp16"?'),
        (cloud('url = "http://h"'), "cloud: which model? Give model, or a url that ends in /v2/models/NAME"),
        (cloud('url = "http://h/v1/"\nmodel = "m"'), "cloud: a url that ends in /v1 is of an API of chats, as OpenAI's: write protocol = \"openai\""),
        (cloud('url = "http://h/v1/chat/completions"'), "cloud: a url that ends in /chat/completions is of an API of chats, as OpenAI's: write protocol = \"openai\""),
        (cloud('url = "http://h/v1/messages"'), "cloud: a url that ends in /v1/messages is of an API of chats, as OpenAI's: write protocol = \"openai\", and a url that ends in /v1"),
        (cloud('url = "h/v2/models/m"'), 'cloud.url: expected an address that begins with http:// or https://, found "h/v2/models/m"'),
        (cloud('url = "http://h:x/v2/models/m"'), "cloud.url: expected an address that begins with http:// or https://"),
        (BOTH + 'cert = ["a"]', 'cloud.cert: expected two paths, as in ["client.pem", "client.key"], found a list'),
        (BOTH + "headers = 3", 'cloud.headers: expected a table of header names and values, as in { "X-Tenant" = "shop-7" }'),
        (BOTH + 'headers = { "A B" = "c" }', "cloud.headers: one of them: a header's name takes letters, digits and -, its value ASCII on one line"),
        (BOTH + 'api_key = { environ = "A" }', 'cloud.api_key: expected { env = "NAME" }, with the name of an environment variable'),
        (BOTH + "api_key = { env = true }", 'cloud.api_key: expected { env = "NAME" }, with the name of an environment variable'),
        (BOTH + "headers = { X-A = { env = nan } }", 'cloud.headers: expected { env = "NAME" }, with the name of an environment variable'),
        ("", "expected an [edge] section, a [cloud] section or both, found neither"),
        ('mode = "only_cloud"\n[edge]\npath = "a.onnx"', 'mode: "only_cloud" needs a [cloud] section, and there is none'),
        ('mode = "prefer_cloud"\n[edge]\npath = "a.onnx"', 'mode: "prefer_cloud" needs a [cloud] section, and there is none'),
        (f'mode = "only_edge"\n[cloud]\nurl = "{URL}"', 'mode: "only_edge" needs an [edge] section, and there is none'),
        ("on_exhausted = 'raise'\n" + BOTH, "on_exhausted: there is no such key: expected one of mode, threshold, deadline, score, offline, state, hedge_after, first_token, uncalibrated, certificate_max_age, no_confidence, order, metered, sensors_every, edge, cloud, trial, limits, egress, audit, cache, outbox, rule, trace, telemetry, gateway, fleet, parts"),
        ('offline = "answer"\n' + BOTH, 'offline: found "answer": expected one of edge, queue, stale, raise'),
        ('order = "fast"\n' + BOTH, 'order: found "fast": did you mean "fastest"?'),
        ("metered = 1\n" + BOTH, "metered: expected true or false, found 1"),
        ("state = true\n" + BOTH, "state: expected text in quotes, found true"),
        ('state = ""\n' + BOTH, 'state: expected text in quotes, found ""'),
        ('hedge_after = "p5"\n' + BOTH, 'hedge_after: expected a duration such as "300ms", a quantile from "p10" to "p99", or "auto", found "p5"'),
        ('hedge_after = "90%"\n' + BOTH, 'hedge_after: expected a duration such as "300ms", a quantile from "p10" to "p99", or "auto", found "90%"'),
        ("hedge_after = 50\n" + BOTH, 'hedge_after: expected a duration such as "300ms", a quantile from "p10" to "p99", or "auto", found 50; did you mean "50ms" or "50s"?'),
        ('deadline = "2 hours"\n' + BOTH, 'deadline: expected a duration such as "300ms", "2s" or "12h", found "2 hours"; did you mean "2h"?'),
        ('ttl = "1h"\n' + BOTH, "ttl: there is no such key: it belongs in [cache] or [outbox]"),
        (BOTH + "[cloud.limits]\nusd_per_day = 1", "cloud.limits: there is no such key: it is a section of its own, [limits]"),
        (BOTH + '[audit]\nbudget = "50%"', "audit.budget: there is no such key: expected one of share, on_alarm, scene, labelled"),
        (BOTH + "[limits]\nusd_a_day = 1", 'limits.usd_a_day: there is no such key: did you mean "usd_per_day"?'),
        (BOTH + "[limits]\nusd_per_call = 1", "limits.usd_per_call: there is no such key: it belongs in [cloud]"),
        (BOTH + '[limits]\nusd_per_day = "1"', 'limits.usd_per_day: expected a number, 0 or more, found "1"'),
        (BOTH + "[limits]\nmb_per_day = -1", "limits.mb_per_day: expected a number, 0 or more, found -1"),
        (BOTH + "[limits]\njoules_per_hour = inf", "limits.joules_per_hour: expected a number, 0 or more, found inf"),
        (BOTH + "[limits]\ncalls_per_minute = true", "limits.calls_per_minute: expected a number, 0 or more, found true"),
        (BOTH + f"[limits]\nusd_per_day = -{10**400}", "limits.usd_per_day: expected a number, 0 or more, found a huge number"),
        ("limits = 3\n" + BOTH, "limits: expected a section, as in [limits] and its keys below, found a number"),
        (BOTH + "[[cache]]", "cache: expected a section, as in [cache] and its keys below, found a list"),
        (BOTH + "usd_per_call = -0.1", "cloud.usd_per_call: expected a number, 0 or more, found -0.1"),
        (BOTH + "joules_per_mb = nan", "cloud.joules_per_mb: expected a number, 0 or more, found nan"),
        (BOTH + "calls_per_s = 0", "cloud.calls_per_s: expected a number of more than 0, found 0"),
        (BOTH + "max_concurrent = 0", 'cloud.max_concurrent: expected "auto", or a whole number, 1 or more, found 0'),
        (BOTH + "max_concurrent = 1.5", 'cloud.max_concurrent: expected "auto", or a whole number, 1 or more, found 1.5'),
        (BOTH + "[egress]", "egress: expected never_leave, may_leave or default_class, found none of them"),
        (BOTH + '[egress]\nunknown_class = "deny"', "egress: expected never_leave, may_leave or default_class, found none of them"),
        (BOTH + '[egress]\nneverleave = ["a"]', 'egress.neverleave: there is no such key: did you mean "never_leave"?'),
        (BOTH + "[egress]\nnever_leave = []", 'egress.never_leave: expected a list of texts, as in ["a", "b"], found an empty list'),
        (BOTH + '[egress]\nnever_leave = "a"', 'egress.never_leave: expected a list of texts, as in ["a", "b"], found "a"'),
        (BOTH + '[egress]\nmay_leave = ["a", 1]', 'egress.may_leave: expected a list of texts, as in ["a", "b"], found a list'),
        (BOTH + '[egress]\nmay_leave = ["a"]\nunknown_class = "denied"', 'egress.unknown_class: found "denied": did you mean "deny"?'),
        (BOTH + '[egress]\ndefault_class = ""', 'egress.default_class: expected text in quotes, found ""'),
        (BOTH + '[egress]\nnever_leave = ["b", "a"]\nmay_leave = ["a", "c"]', 'egress.may_leave: "a" is in never_leave too'),
        (BOTH + "[cache]\nttl = 60", 'cache.ttl: expected a duration such as "300ms", "2s" or "12h", found 60; did you mean "60ms" or "60s"?'),
        (BOTH + '[cache]\ndisk = "cache.db"', 'cache.disk: expected true or false, found "cache.db"'),
        (BOTH + '[cache]\nmax_size = "16M"', 'cache.max_size: expected a size such as "512KB" or "16MiB", found "16M"; did you mean "16MB"?'),
        (BOTH + '[cache]\nstale_if_ofline = "1h"', 'cache.stale_if_ofline: there is no such key: did you mean "stale_if_offline"?'),
        ('state = "s"\n' + BOTH + '[outbox]\ndrop = "least-important"', 'outbox.drop: found "least-important": did you mean "least_important"?'),
        ('state = "s"\n' + BOTH + '[outbox]\nttl = "0s"', 'outbox.ttl: expected a duration of more than 0, found "0s"'),
        ('state = "s"\n' + BOTH + "[outbox]\nparallel = 0", "outbox.parallel: expected a whole number, 1 or more, found 0"),
        ('state = "s"\n' + BOTH + "[outbox]\nrate = 0", "outbox.rate: expected a number of more than 0, found 0"),
        ('state = "s"\n' + BOTH + '[outbox]\nordered = "yes"', 'outbox.ordered: expected true or false, found "yes"'),
        ('state = "s"\n' + BOTH + "[trace]\nsample = 5", 'trace.sample: expected a share such as "1%" or 0.01, found 5; did you mean "5%"?'),
        ('state = "s"\n' + BOTH + "[trace]\nsample = true", 'trace.sample: expected a share such as "1%" or 0.01, found true'),
        ('state = "s"\n' + BOTH + '[trace]\nsample = "5 %"', 'trace.sample: expected a share such as "1%" or 0.01, found "5 %"; did you mean "5%"?'),
        ('state = "s"\n' + BOTH + '[trace]\nsample = "150 %"', 'trace.sample: expected a share such as "1%" or 0.01, found "150 %"'),
        ('state = "s"\n' + BOTH + "[trace]\nkeep = 0", "trace.keep: expected a whole number, 1 or more, found 0"),
        (BOTH + "[trace]\nfile = 1", "trace.file: expected text in quotes, found 1"),
        (BOTH + "[telemetry]\nprometheus = 1", "telemetry.prometheus: expected true or false, found 1"),
        (BOTH + '[telemetry]\nrouter = "a"', "telemetry.router: has no effect without prometheus = true"),
        (BOTH + '[telemetry]\nopentelemetry = true\npropagate = "a"', 'telemetry.propagate: expected a list of texts, as in ["a", "b"], found "a"'),
        ('offline = "queue"\n' + BOTH, 'offline: "queue" needs state, the folder for what outlives the process, and there is none'),
        ('offline = "queue"\nstate = "s"\n' + edge(), 'offline: "queue" needs a [cloud] section, and there is none'),
        ('offline = "stale"\n' + BOTH, 'offline: "stale" needs a [cache] section, and there is none'),
        (BOTH + "[cache]\ndisk = true", "cache.disk: needs state, the folder for what outlives the process, and there is none"),
        (BOTH + "[outbox]", "outbox: needs state, the folder for what outlives the process, and there is none"),
        (BOTH + "[trace]", "trace.file: is missing, and so is state, the folder where it would be"),
        ('deadline = "1s"\nhedge_after = "1000ms"\n' + BOTH, 'hedge_after: expected less than the deadline, "1s", found "1000ms"'),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_key_what_was_expected_and_what_was_found(problems, text, says):
    """In one line, and that line alone."""
    assert problems(text) == [says]


def test_all_mistakes_are_told_at_once(policy, tmp_path, monkeypatch):
    """Those in keys, the contradictions, and those in variables; each line names the file or the variable."""
    monkeypatch.setenv("EDGEROUTE_SCOR", "x")
    with pytest.raises(PolicyError) as e:
        policy('mode = "only_cloud"\ndeadline = 1\n[edge]\npath = "a.onnx"\nthread = 1')
    file = tmp_path / "policy.toml"
    assert str(e.value).splitlines() == [
        f'{file}: deadline: expected a duration such as "300ms", "2s" or "12h", found 1; did you mean "1ms" or "1s"?',
        f'{file}: edge.thread: there is no such key: did you mean "threads"?',
        f'{file}: mode: "only_cloud" needs a [cloud] section, and there is none',
        'EDGEROUTE_SCOR: there is no such variable: did you mean "EDGEROUTE_SCORE"?',
    ]


@pytest.mark.parametrize(
    "text",
    [
        'api_key = "sekret"',
        "api_key = { env = 'sekret-1' }",
        "api_key = { env = 'KEY', value = 'sekret' }",
        'headers = { Authorization = "sekret" }',
        'headers = { "X-Api-Key" = "sekret" }',
        'headers = { "X-Other" = "Bearer sekret" }',
        'headers = { "X-Other" = "sekret\\n" }',
        'headers = { "X-Other" = ["sekret"] }',
        'apikey = "sekret"',
        'password = "sekret"',
        'api_key = "sekret',
    ],
)
@pytest.mark.parametrize(
    "url", [URL, "http://me:sekret@h/v2/models/m", "http://h/v2/models/m?key=sekret", "me:sekret@h", "http://[sekret@h"]
)
def test_a_secret_in_the_file_is_refused_and_not_shown(policy, text, url):
    """Neither in the message nor in anything that the error carries."""
    with pytest.raises(PolicyError) as e:
        policy(cloud(f'url = "{url}"\n{text}'))
    assert "sekret" not in str(e.value)
    assert e.value.__cause__ is None
    assert e.value.__suppress_context__ or e.value.__context__ is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.toml", 'cloud = "http://u:sekret@h/"'),
        ("p.toml", 'edge = "http://u:sekret@h/"'),
        ("p.toml", 'cache = "sekret"'),
        ("p.toml", cloud(f'url = "{URL}"\ncert = "sekret"\nverify = ["sekret"]')),
        ("p.toml", cloud(f'url = "{URL}"\nheaders = {{ "Authorization: Bearer sekret" = "x", "Key: sekret" = 1 }}')),
        ("p.toml", cloud(f'url = "{URL}"\nheaders = {{ "X: sekret" = "x" }}')),
        ("p.json", r'{"cloud": {"api_key": "sekret\ud800"}}'),
        ("p.yaml", "cloud:\n  api_key: *sekret\n"),
        ("p.yaml", "cloud:\n  api_key: !sekret x\n"),
        ("p.yaml", "cloud:\n  api_key: !s!sekret x\n"),
        ("p.yaml", "cloud:\n  api_key: !sekret'sekret x\n"),
        ("p.yaml", "cloud:\n  api_key: !!int sekret\n"),
        ("p.yaml", "cloud:\n  api_key: !!float sekret\n"),
        ("p.yaml", "cloud:\n  api_key: !!bool sekret\n"),
        ("p.yaml", "cloud:\n  api_key: !!timestamp sekret\n"),
        ("p.yaml", "cloud:\n  !!int sekret: x\n"),
    ],
)
def test_a_secret_where_none_belongs_is_not_shown(problems, name, text):
    """In place of a section, in a certificate's path or a header's name, or near a mark of YAML: its kind alone is told."""
    assert "sekret" not in "".join(problems(text, name))


def test_a_secret_as_the_name_of_its_variable_is_not_shown(policy, tmp_path, monkeypatch):
    """What does not look like the name of a variable; the policy's key is told, and two such names stay two."""
    text = f'url = "{URL}"\napi_key = {{ env = "sk_sekret" }}\nheaders = {{ X-Key = {{ env = "NOT_SET" }} }}'
    given = policy(cloud(text))["cloud"]
    for shown in (repr(settings.load(tmp_path / "policy.toml")), repr(given), repr(given.address)):
        assert "sekret" not in shown
    assert "Secret(env=***)" in repr(settings.load(tmp_path / "policy.toml")), "its kind is"
    assert policy(cloud(text.replace("sk_sekret", "sk_another")))["cloud"] is not given
    with pytest.raises(PolicyError, match=r"^headers\.X-Key is to come from the environment variable NOT_SET, which is not set"):
        given.address.headers()
    monkeypatch.setenv("NOT_SET", "sk-1")
    with pytest.raises(PolicyError, match=r"^api_key: env takes the name of an environment variable") as e:
        given.address.headers()
    assert "sekret" not in str(e.value)


def test_a_literal_secret_is_refused_with_the_way_to_give_it(problems):
    """Other headers may be literal."""
    where = 'a secret does not belong in a file: put it in an environment variable, and write { env = "ITS_NAME" } here'
    assert problems(BOTH + 'api_key = "k"\nheaders = { Cookie = "c", X-Tenant = "t", X-Token = "t" }') == [
        f"cloud.api_key: {where}",
        f"cloud.headers: Cookie, X-Token: {where}",
    ]


ALIASES = "a: &a [x, x]\n" + "".join(
    f"{chr(97 + i)}: &{chr(97 + i)} [{', '.join(['*' + chr(96 + i)] * 9)}]\n" for i in range(1, 26)
)
"""Little text that stands for 10**24 values."""


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "p.toml",
            "mode = = 1",
            'is not TOML: mode: Invalid value (at line 1, column 8); text needs straight quotes, "300ms", and a number a digit before its point, 0.5',
        ),
        (
            "p.json",
            '{\n"mode": 1,,}',
            "is not JSON: an error at line 2, column 11: Expecting property name enclosed in double quotes",
        ),
        ("p.yaml", "mode: x\nedge: [1\n", "is not YAML: expected ',' or ']', but got '<stream end>' (at line 3, column 1)"),
        ("p.yaml", "a: !!python/object:os.system 1", "(at line 1, column 4)"),
        (
            "p.yaml",
            "egress: {never_leave: [a]}\negress: {}\n",
            'is not YAML: the key "egress" is there twice (at line 2, column 1)',
        ),
        (
            "p.yaml",
            "egress:\n  never_leave: [a]\n  never_leave: []\n",
            'the key "never_leave" is there twice (at line 3, column 3)',
        ),
        ("p.yaml", "1: a\n'1': b\n", 'the key "1" is there twice (at line 2, column 1)'),
        ("p.yaml", "<<: {a: 1}\n<<: {b: 1}\n", 'the key "<<" is there twice (at line 2, column 1)'),
        ("p.json", '{"egress": {"never_leave": ["a"]}, "egress": {}}', 'is not JSON: the key "egress" is there twice'),
        ("p.json", '{"egress": {"a\\u001b": 1, "b": 1, "a\\u001b": 2}}', 'is not JSON: the key "a\ufffd" is there twice'),
        ("p.yaml", "a: 2020-99-99", "is not YAML: a value that does not fit its type (at line 1, column 4)"),
        *(("p.yaml", f"a: !!{tag}", "is not YAML: ") for tag in ("bool x", "timestamp x", "int '-'", "float")),
        ("p.yaml", "a: \x01", "is not YAML: unacceptable character #x0001: special characters are not allowed"),
        ("p.yaml", "a: &a [*a]", "is not YAML: its aliases stand for more than 10000 values"),
        ("p.yaml", ALIASES, "is not YAML: its aliases stand for more than 10000 values"),
        ("p.json", "[" * 100_000, "is nested too deeply"),
        ("p.json", r'{"mode": "\ud800"}', "expected text, found half of a character"),
        ("p.json", r'{"\ud800": 1}', "expected text, found half of a character"),
        ("p.toml", f"[edge]\npath = 'a.onnx'\n[limits]\nusd_per_day = {'9' * 400}", "usd_per_day"),
        ("p.toml", f"threshold = -{'9' * 400}\n[edge]\npath = 'a.onnx'", "threshold: expected a number"),
        ("p.json", "[1]", "expected keys such as mode and a section such as [edge], found something else"),
        ("p.yml", "# nothing", "expected an [edge] section, a [cloud] section or both, found neither"),
        ("p.yml", "1: 2\nedge: {path: a.onnx}", "1: there is no such key: expected one of mode"),
        ("p.ini", "", "expected a file that ends in .toml, .json, .yaml, .yml, found '.ini'"),
        ("p", "", "expected a file that ends in .toml, .json, .yaml, .yml, found 'no suffix'"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_told_of_with_line_and_column(problems, name, text, says):
    """And nothing of its content."""
    (line,) = problems(text, name)
    assert says in line


def test_a_file_that_cannot_be_read_is_told_of(tmp_path):
    """Not there, a directory, not text."""
    (tmp_path / "d.toml").mkdir()
    (tmp_path / "b.toml").write_bytes(b"a = \xff")
    for name, says in (
        ("x.toml", "there is no such file"),
        ("d.toml", "is a directory"),
        ("b.toml", "is not text in UTF-8, at byte 4"),
    ):
        with pytest.raises(PolicyError, match=rf"{name}: {says}"):
            settings.load(tmp_path / name)


def test_a_file_without_permission_is_told_of(tmp_path, monkeypatch):
    """With the system's words."""
    (tmp_path / "p.toml").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr("os.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        with pytest.raises(PolicyError, match=r"p\.toml: cannot be read: Permission denied"):
            settings.load(tmp_path / "p.toml")


def test_what_a_yaml_merge_brings_may_be_overridden(tmp_path):
    """It is there once, as written; also where the merged section is itself made of another."""
    text = "x: &a {path: a.onnx}\ny: {in: &b {<<: *a, path: b.onnx}}\nz: {<<: *b, path: c.onnx}\n"
    path = tmp_path / "m.yaml"
    path.write_text(text)
    assert sources.read_policy(path)["z"] == {"path": "c.onnx"}


def test_a_variable_in_json_has_no_key_twice(problems, monkeypatch):
    """As a file."""
    monkeypatch.setenv("EDGEROUTE_LIMITS__USD_PER_DAY", "1")
    monkeypatch.setenv("EDGEROUTE_EGRESS__NEVER_LEAVE", '[{"a": 1, "a": 2}]')
    (line,) = problems(BOTH)
    assert line.endswith('found the key "a" is there twice')


def test_yaml_without_pyyaml_says_what_to_install(policy, monkeypatch):
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(RuntimeMissing, match=re.escape("pip install 'edgeroute[yaml]'")):
        policy("", "p.yaml")


def test_a_policy_file_without_pydantic_says_what_to_install(monkeypatch):
    """On platforms without it the rest of the library works."""
    monkeypatch.setitem(sys.modules, "pydantic_settings", None)
    monkeypatch.delitem(sys.modules, "edgeroute.policy")
    with pytest.raises(RuntimeMissing, match="pip install pydantic-settings"):
        importlib.import_module("edgeroute.policy")


# Units


@given(st.integers(0, 999_999_999), st.sampled_from([("s", 1), ("m", 60), ("h", 3600), ("d", 86400)]))
def test_a_duration_is_the_number_that_was_written(number, unit):
    """To the last bit."""
    assert units.duration(f"{number}ms") == number / 1000
    assert units.duration(f"{number}{unit[0]}") == number * unit[1]


@given(st.integers(1, 999_999_999), st.sampled_from(sorted(units.BYTES)))
def test_a_size_is_the_number_that_was_written(number, unit):
    """KB are thousands, KiB 1024."""
    assert units.size(f"{number}{unit}") == number * units.BYTES[unit]


@given(st.floats(0, 1), st.integers(0, 100))
def test_a_share_is_a_number_or_percent(number, percent):
    """Of one or of a hundred."""
    assert units.share(number) == number
    assert units.share(f"{percent}%") == percent / 100


@given(
    st.from_regex(units.DURATION, fullmatch=True),
    st.from_regex(units.SIZE, fullmatch=True),
    st.from_regex(units.SHARE, fullmatch=True),
)
def test_what_the_schemas_patterns_take_is_taken(duration, size, share):
    """An editor that finds no fault and a program that does would be a trap; only zeros are refused beyond the pattern."""
    assert units.duration(duration) >= 0
    assert 0 <= units.share(share) <= 1
    if float(re.match(r"[\d.]+", size)[0]) * units.BYTES[re.search("[A-Za-z]+", size)[0]] >= 1:
        assert units.size(size) >= 1


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans(), st.lists(st.integers())))
def test_anything_else_is_refused_with_words(value):
    """No input makes another error."""
    for read, written in ((units.duration, units.DURATION), (units.size, units.SIZE), (units.share, units.SHARE)):
        if read is units.share and isinstance(value, int | float) and 0 <= value <= 1 and not isinstance(value, bool):
            continue
        if not (isinstance(value, str) and re.fullmatch(written, value)):
            with pytest.raises(PydanticCustomError) as e:
                read(value)
            assert e.value.context["words"]


@given(
    st.integers(1, 999).map(str),
    st.sampled_from(
        [
            "sec",
            " s",
            "S",
            " seconds",
            "min",
            "mins",
            " minutes",
            "msec",
            " milliseconds",
            "MS",
            " hours",
            "hrs",
            "H",
            " day",
            "D",
        ]
    ),
)
def test_the_suggested_spelling_is_a_right_one(number, unit):
    """Taking the advice ends the trouble."""
    with pytest.raises(PydanticCustomError) as e:
        units.duration(number + unit)
    assert units.duration(re.search('"(.+)"', e.value.context["hint"])[1]) > 0


# The schema, the reference, the examples


def test_the_schema_describes_every_key_and_allows_no_other():
    """For editors: what they offer is what a policy takes."""
    schema = settings.schema()
    json.dumps(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for name, section in (("", schema), *schema["$defs"].items()):
        assert section["additionalProperties"] is (name == "InstalledCloud")  # whose further keys are its own
        assert section["title"]
        for key, value in section["properties"].items():
            assert value["description"].endswith("."), key
    assert schema["properties"]["mode"]["enum"] == ["prefer_edge", "only_edge", "prefer_cloud", "only_cloud", "shadow"]
    assert re.match(schema["properties"]["deadline"]["pattern"], "300ms")
    assert not re.match(schema["properties"]["deadline"]["pattern"], "300")
    for written, right in {
        "100ms": True,
        "12h": True,
        "p10": True,
        "p99": True,
        "auto": True,
        "p9": False,
        "p100": False,
        "xp90": False,
    }.items():
        assert bool(re.search(schema["properties"]["hedge_after"]["pattern"], written)) == right
    assert "null" not in json.dumps(schema)
    assert {name for name, value in schema["properties"].items() if "$ref" in json.dumps(value)} == {*keys.SECTIONS}


def test_every_key_of_a_section_has_a_variable():
    """What a file can say, the environment can."""
    named = set(sources.variable_names())
    for section, models in keys.SECTIONS.items():
        for model in models:
            assert {f"EDGEROUTE_{section}__{key}".upper() for key in model.model_fields} <= named
    assert {f"EDGEROUTE_{key}".upper() for key in keys.Settings.model_fields if key not in keys.SECTIONS} <= named


def test_the_document_has_every_key_under_its_section(monkeypatch):
    """With its meaning; docs/policy.md is what `make docs` writes."""
    monkeypatch.syspath_prepend(str(ROOT / "website"))
    reference_pages = importlib.import_module("reference_pages")
    page = reference_pages.pages()["policy.md"]
    assert PAGE.read_text(encoding="utf-8") == page
    parts = re.split(r"^### ", page, flags=re.MULTILINE)
    for section, models in keys.SECTIONS.items():
        text = "".join(part for part in parts if part.startswith(f"`[{section}]`"))
        for key, field in ((key, field) for model in models for key, field in model.model_fields.items()):
            meaning = re.escape(reference_pages.link_pages(field.description))
            where = page if re.search(rf"^\* As in `\[edge\]`: .*`{key}`", text, re.MULTILINE) else text
            assert re.search(rf"^\* `{key}`(?: \(.*\))?: {meaning}$", where, re.MULTILINE), (section, key)


def test_the_documents_example_loads(policy):
    """As it stands."""
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert policy(text)["cloud"].where == "http://127.0.0.1:8080/v2/models/fashion-large"


def test_the_documents_mistakes_are_told_as_it_says(problems, monkeypatch):
    """Word for word."""
    (text,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.setenv("EDGEROUTE_MODE", "only_egde")
    lines = problems('treshold = 1\ndeadline = 300\n[edge]\npath = "a.onnx"')
    assert sorted(lines) == sorted(line.removeprefix("policy.toml: ") for line in text.splitlines())


@pytest.mark.parametrize("path", sorted((ROOT / "examples/policies").iterdir()), ids=lambda path: path.name)
def test_the_examples_load(path):
    """Whether or not the model that they name has been fetched; and nothing is made beside them."""
    given = settings.load(path).arguments(path.parent)
    assert given["mode"].replace("_", "-") == path.stem or path.stem in {"ladder", "field-device"}
    assert not (path.parent / "state").exists()
    assert given["edge"].path == ROOT.resolve() / "models/fashion/edge.int8.onnx"
