"""Variants in a router: answers name the member, each has its threshold and certificate; policy files, traces and replay."""

import json

import pytest
import routes
from both import makes
from devices import Device, now_it_reads

from edgeroute import Ensemble, Options, PolicyError, Reading, Router, Rule, Trial, Variants
from edgeroute.policy import load
from edgeroute.tools.replay import Setup, replay

BUSY = Rule("load", "small_model", enter=0.9)


pytestmark = [pytest.mark.pure, pytest.mark.usefixtures("leaves_nothing")]
make = makes()


def fp32(_):
    return "large", 0.85


def int8(_):
    return "small", 0.85


def cloud(_):
    return "cloud", 0.99


def test_an_answer_names_the_variant_and_its_own_threshold(make):
    """By rule the smallest runs, whose threshold is higher here; afterwards the first does again."""
    device = Device(cpu=0.5)
    router = make(Variants(fp32=fp32, int8=int8), cloud, threshold=[0.8, 0.9], rules=[BUSY], sensors=device)
    answer = router.infer(1)
    assert (answer.value, answer.leg, answer.source) == ("large", "edge fp32", "edge")
    assert routes.judged(answer, "edge fp32") == ("accepted", 0.85, 0.8, "uncalibrated")
    device.says = Reading(cpu=0.95)
    now_it_reads(router, device)
    answer = router.infer(1)
    assert routes.judged(answer, "edge int8") == ("below", 0.85, 0.9, "uncalibrated")
    assert routes.rules(answer) == [("load", "small_model")]
    assert [leg["leg"] for leg in answer.trace["plan"]] == ["edge int8", "cloud"]
    assert [a.leg for a in router.infer_many([1, 2])] == ["cloud", "cloud"]
    device.says = Reading(cpu=0.7)
    now_it_reads(router, device)
    assert router.infer(1).leg == "edge fp32"
    stats = {leg.name: leg.started for leg in getattr(router, "router", router).stats().legs}
    assert stats["edge fp32"] >= 2
    assert stats["edge int8"] >= 2


def test_each_has_a_certificate_of_its_own():
    """Calibrated one by one; it is bound to that member alone, and the other says nothing of it."""
    inputs = [i / 400 for i in range(400)]
    labels = [int(x > 0.5) for x in inputs]

    def right(x):
        return int(x > 0.5), abs(x - 0.5) + 0.5

    def often(x):
        return int(x > 0.52), min(1.0, abs(x - 0.52) + 0.5)

    pair = Variants(fp32=right, int8=often)
    with Router(pair, lambda x: (int(x > 0.5), 1.0), threshold=[0.5, 0.5]) as router:
        prints = [router.fingerprints(i) for i in range(2)]
        assert prints[0]["edge"] != prints[1]["edge"]
        assert all("earlier" not in one for one in prints)
        made = [router.calibrate(inputs, labels, max_loss=0.1, edge=i).certificate for i in range(2)]
        assert router.evaluate(inputs, labels, edge=1)
    device = Device(cpu=0.95)
    with Router(
        pair, lambda x: (int(x > 0.5), 1.0), threshold=made, options=Options(uncalibrated="error", sensors=device, rules=[BUSY])
    ) as router:
        judged = routes.judged(router.infer(0.99), "edge int8")
        assert judged == ("accepted", pytest.approx(0.97, abs=0.005), made[1].threshold, made[1].label)
        assert [target.threshold for target in router.engine.snapshot.targets[:2]] == [one.threshold for one in made]
    with pytest.raises(PolicyError, match="edge fp32 guarantees nothing here"):
        Router(pair, cloud, threshold=made[::-1], options=Options(uncalibrated="error"))


def test_an_edge_model_after_a_group_has_it_before_it():
    """Its certificate is bound to all members, each of which may have kept an input."""
    with Router([Variants(fp32=fp32, int8=int8), lambda x: ("third", 0.9)], cloud, threshold=0.9) as router:
        assert ["earlier" in router.fingerprints(i) for i in range(3)] == [False, False, True]
        assert [target.name for target in router.engine.snapshot.targets][:2] == ["edge-1 fp32", "edge-1 int8"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (lambda: Variants(fp32=fp32), "variants are two models or more"),
        (lambda: Router(Variants(a=fp32, b=3), None), "edge= takes a path, a model or a callable, not int"),
        (lambda: Router(Variants(a=fp32, b=int8), cloud, threshold=[0.5]), "1 thresholds for 2 edge models"),
        (
            lambda: Router(Variants(a=fp32, b=int8), cloud, threshold=0.5, trial=Trial(edge=fp32, shown=False)),
            "there are 2 edges",
        ),
    ],
)
def test_groups_that_cannot_be(given, says):
    """They are refused when they are made."""
    with pytest.raises(PolicyError, match=says):
        given()


class Remembers:
    """Keeps a state, which no card tells."""

    name, stateful = "remembers", True

    def run(self, inputs, cancel=None):
        """Says cat."""
        return [("cat", 0.9) for _ in inputs]


def test_a_model_that_keeps_a_state_is_no_variant():
    """Whichever way it says so: it would miss the inputs that its neighbour gets."""
    for one in (Remembers(), Ensemble([Remembers(), fp32])):
        with pytest.raises(PolicyError, match="keeps a state from call to call, so it cannot be one of several variants"):
            Router(Variants(a=one, b=fp32), cloud, threshold=0.5)


POLICY = """
threshold = [0.8, 0.9]
[edge]
[[edge.variant]]
name = "fp32"
path = "fp32.onnx"
[[edge.variant]]
name = "int8"
path = "int8.onnx"
threads = 2
[cloud]
url = "http://127.0.0.1:1/v2/models/m"
[[rule]]
of = "load"
enter = "90%"
then = "small_model"
"""


def test_a_policy_file_has_them(tmp_path, monkeypatch):
    """Nested or flat; a variable names one by its number."""
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    nested = load(policy).arguments(tmp_path)["edge"]
    assert {name: model.path.name for name, model in nested.models.items()} == {"fp32": "fp32.onnx", "int8": "int8.onnx"}
    assert nested.models["int8"].threads == 2
    flat = POLICY.replace("[edge]\n", "").replace("[[edge.variant]]\nname", "[[edge]]\nvariant")
    policy.write_text(flat)
    assert load(policy).arguments(tmp_path)["edge"].models.keys() == nested.models.keys()
    policy.write_text(POLICY)
    monkeypatch.setenv("EDGEROUTE_EDGE__0__THREADS", "3")
    assert load(policy).arguments(tmp_path)["edge"].models["fp32"].threads == 3


def test_two_groups_next_to_each_other_stay_two(tmp_path):
    """Nested by their sections, flat by `group`; each has one member in a plan, and the names may be the same."""
    policy = tmp_path / "policy.toml"
    nested = POLICY.replace("[0.8, 0.9]", "[0.8, 0.9, 0.8, 0.9]").replace(
        "[cloud]",
        '[[edge]]\n[[edge.variant]]\nname = "fp32"\npath = "a.onnx"\n[[edge.variant]]\nname = "int8"\npath = "b.onnx"\n[cloud]',
    )
    nested = nested.replace("[edge]\n[[edge.variant]]", "[[edge]]\n[[edge.variant]]", 1)
    flat = "".join(
        f'[[edge]]\nvariant = "{name}"\npath = "{path}.onnx"\ngroup = "{group}"\n'
        for name, path, group in (("fp32", "fp32", "x"), ("int8", "int8", "x"), ("fp32", "a", "y"), ("int8", "b", "y"))
    )
    flat = nested.partition("[[edge]]")[0] + flat + "[cloud]" + nested.partition("[cloud]")[2]
    for text in (nested, flat):
        policy.write_text(text)
        groups = load(policy).arguments(tmp_path)["edge"]
        assert [{name: model.path.name for name, model in group.models.items()} for group in groups] == [
            {"fp32": "fp32.onnx", "int8": "int8.onnx"}, {"fp32": "a.onnx", "int8": "b.onnx"},
        ]  # fmt: skip
        assert [target.name for target in Setup.read(policy).targets] == [
            "edge-1 fp32", "edge-1 int8", "edge-2 fp32", "edge-2 int8", "cloud",
        ]  # fmt: skip
    with Router([Variants(a=fp32, b=int8), Variants(a=int8, b=fp32)], cloud, threshold=[0.9, 0.9, 0.8, 0.8]) as router:
        assert router.infer(1).leg == "edge-2 a"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (("[edge]\n", '[edge]\npath = "a.onnx"\n'), "edge.path: belongs in each [[edge.variant]], not beside them"),
        (('name = "int8"\n', ""), 'expected sections [[edge.variant]], each with a name, as in name = "int8"'),
        (("threads = 2", "threds = 2"), 'edge[1].threds: there is no such key: did you mean "threads"?'),
        (('name = "int8"', 'name = "fp32"'), "edge: two variants have the same name"),
    ],
)
def test_mistakes_in_a_policy_file(tmp_path, wrong, says):
    """A line with the key."""
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.replace(*wrong))
    for name in ("fp32", "int8"):
        (tmp_path / f"{name}.onnx").touch()
    with pytest.raises(PolicyError) as error:
        Router.from_policy(policy)
    assert says in str(error.value)


def test_replay_picks_them_as_well(tmp_path):
    """By the readings of the trace: the same rules take the same variants, others may need what was not recorded."""
    device, path = Device(cpu=0.5), tmp_path / "trace.jsonl"
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    with Router(
        Variants(fp32=fp32, int8=int8), cloud, threshold=[0.8, 0.9], trace=path, options=Options(sensors=device, rules=[BUSY])
    ) as router:
        for load_ in (0.5, 0.95, 0.85, 0.7, 0.95):
            device.says = Reading(cpu=load_)
            now_it_reads(router, device)
            router.infer(1)
    found = replay(path, policy)
    assert (found.changed, dict(found.unknown)) == (0, {})
    legs = [json.loads(line)["plan"][0]["leg"] for line in path.read_text().splitlines()]
    assert {*legs} == {"edge fp32", "edge int8"}
    policy.write_text(POLICY.partition("[[rule]]")[0])
    assert sum(replay(path, policy).unknown.values()) == legs.count("edge int8")
