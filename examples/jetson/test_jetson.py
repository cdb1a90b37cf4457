"""The policy for a Jetson, where there is none: what loads, what is refused, what is recorded, and when it saves power."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

from edgeroute import DeviceSensors, Router, register
from edgeroute.policy import load
from edgeroute.testing import CannedServer, http_reply

HERE = Path(__file__).parent
AR = HERE.parent / "ar"
TREE = HERE.parents[1] / "tests" / "device_trees" / "orin.json"
sys.path.insert(0, str(AR))

from reader import TextReader  # noqa: E402 - found by the path above
from scene import frame_at  # noqa: E402 - likewise

WORDS = [{"text": "PLATFORM 4", "box": [[0, 0], [9, 0], [9, 9], [0, 9]], "score": 0.99}]


@pytest.fixture(scope="module", autouse=True)
def _runtime():
    register(".ocr", "reader:TextReader")


@pytest.fixture
def cloud(monkeypatch):
    """Reads one word in whatever it gets."""
    with CannedServer(http_reply(json.dumps({"words": WORDS, "confidence": 0.99}).encode())) as server:
        monkeypatch.setenv("EDGEROUTE_CLOUD__URL", f"{server.url}/read")
        yield server


def opened(policy=HERE / "policy.toml", **more):
    return Router.from_policy(policy, views={"cloud": lambda frame: b"a picture"}, deadline=60.0, **more)


def posted(cloud):
    """What was sent, without the questions whether it is there."""
    return [request for request in cloud.requests if request.startswith(b"POST")]


def orin(folder, factor):
    """Sensors of an Orin that draws so many times the 6.9 W of the tree."""
    files = json.loads(TREE.read_text(encoding="utf-8"))
    files.pop("commands", None)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(round(int(text) * factor)) if path.name.startswith("curr") and path.name.endswith("_input") else text)
    return DeviceSensors(folder)


def test_without_tensorrt_nothing_runs_on_the_quiet(cloud):
    """Strict, as the policy is: the networks are not loaded, `check` says why, and the cloud answers."""
    with opened() as router:
        checked = router.check()
        assert not checked.ok
        assert "TensorrtExecutionProvider, CUDAExecutionProvider is not in this onnxruntime" in str(checked)
        answer = router.infer(frame_at(1.0), data_class="scene")
    assert answer.source == "cloud"
    assert len(posted(cloud)) == 1


def test_a_downgrade_that_is_allowed_is_recorded(cloud, tmp_path):
    """The networks run on what there is, and `check` says on what; engines would be kept beside the policy."""
    text = (HERE / "policy.toml").read_text(encoding="utf-8")
    policy = tmp_path / "policy.toml"
    policy.write_text(text.replace('on_downgrade = "error"', 'on_downgrade = "record"'))
    with opened(policy) as router:
        answer = router.infer(frame_at(1.0), data_class="scene")
        assert [word["says"] for word in answer.value] == ["Exit", "To the trains"]
        assert "full" in answer.reason
        assert (
            "asked for TensorrtExecutionProvider, CUDAExecutionProvider, CPUExecutionProvider, running on CPUExecutionProvider"
            in str(router.check())
        )
    assert not posted(cloud)


def test_the_providers_are_asked_for_as_tensorrt_has_them():
    """float16, engines in a folder of their own for each variant, from the policy's folder on; CUDA and the CPU behind."""
    model = TextReader(
        HERE / "small.ocr", providers=[{"name": "tensorrt", "fp16": True, "engine_cache": "engines/full"}, "cuda", "cpu"]
    )
    for network in (model.detector, model.recogniser):
        first, *rest = network.providers
        assert first.options["trt_fp16_enable"] == "1"
        assert first.options["trt_engine_cache_path"] == str(HERE / "engines" / "full")
        assert [one.name for one in rest] == ["CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.mark.parametrize(("factor", "variant"), [(1.0, "full"), (2.0, "half")])
def test_above_its_watts_it_looks_at_fewer_pixels(cloud, tmp_path, factor, variant):
    """At 6.9 W nothing changes; at twice as many the smaller variant reads."""
    text = (HERE / "policy.toml").read_text(encoding="utf-8").replace('on_downgrade = "error"', 'on_downgrade = "record"')
    text = text.replace('hold = "6s"', 'hold = "0s"').replace(
        'of = "throttled"', 'of = "load"\nenter = "100%"'
    )  # the tree's is throttled
    policy = tmp_path / "policy.toml"
    policy.write_text(text)
    with opened(policy, sensors=orin(tmp_path / "tree", factor)) as router:
        assert f"edge {variant}" in str(router.decide(frame_at(1.0), data_class="scene"))


def test_the_cloud_is_asked_no_more_than_by_the_ar_example():
    """The sections are the same: endpoint, limits, what may leave."""
    ours, ar = (load(folder / "policy.toml") for folder in (HERE, AR))
    assert ours.limits is not None
    assert (ours.cloud, ours.limits, ours.egress) == (ar.cloud, ar.limits, ar.egress)


def test_check_says_what_is_missing_where_it_is(cloud, capsys, monkeypatch):
    """`main.py check` without TensorRT tells that, and goes on, as the cloud can still answer."""
    monkeypatch.setattr(sys, "argv", ["main.py", "--cloud", f"{cloud.url}/read", "check"])
    runpy.run_path(str(HERE / "main.py"), run_name="__main__")
    told = capsys.readouterr()
    assert "TensorrtExecutionProvider" in told.err
    assert "TensorrtExecutionProvider" in told.out


def test_the_program_is_that_of_the_ar_example(capsys, monkeypatch):
    """With this folder's policy."""
    monkeypatch.setattr(sys, "argv", ["main.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(HERE / "main.py"), run_name="__main__")
    assert ended.value.code == 0
    assert "camera's number" in capsys.readouterr().out
    assert sys.argv[1:3] == ["--policy", str(HERE / "policy.toml")]
