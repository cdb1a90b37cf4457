"""Checks of a router's arguments at construction, with advice on what to write; and the endpoint that `cloud=` stands for."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from math import isnan
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from edgeroute.core.device_rules import Rule
from edgeroute.core.policy_egress_and_options import Options
from edgeroute.edge.edge_model_members_and_fingerprints import is_model
from edgeroute.edge.runtimes_variants_ensemble import Variants, each
from edgeroute.errors import PolicyError
from edgeroute.system.late_imports_and_plugins import import_tool
from edgeroute.types import Classifier, StopToken, V

if TYPE_CHECKING:
    from edgeroute.cloud.function_backend_and_reply_checks import Function


class Runs(Protocol):
    """Edge model, as far as its type can be checked; see `EdgeModel`."""

    def run(self, inputs: list[Any], cancel: StopToken | None, /) -> Any:
        """Run a batch."""


class Talks(Protocol):
    """Endpoint, as far as its type can be checked."""

    def talk(self, inputs: list[Any], /) -> Any:
        """Return the calls for a batch."""


Called: TypeAlias = "Callable[[Any], tuple[V, float | None]] | Callable[[Any], Any] | Classifier"
Edge: TypeAlias = "str | os.PathLike[str] | Runs | Variants | Called[V]"
Cloud: TypeAlias = "str | Talks | Function | Called[V]"


DEFAULTS = Options()
ESTIMATORS = {"catboost", "keras", "lightgbm", "sklearn", "xgboost"}  # packages whose methods take tables, and never one input


def with_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments, with the fields of `Options` combined in one argument `options`.

    Without such a field `options` is left out.
    """
    options = {name: arguments[name] for name in Options._fields if name in arguments}
    rest = {name: value for name, value in arguments.items() if name not in options}
    return {**rest, "options": Options(**options)} if options else rest


def checked_options(options: Options | None) -> Options:
    """Return the options, or the defaults for None.

    Raises:
        PolicyError: another type.
    """
    if options is not None and not isinstance(options, Options):
        raise _wrong("options", "an edgeroute.Options, as in options=Options(...)", options)
    return options or DEFAULTS


# Argument -> module and name of its class, imported only if the argument is given.
CLASSES: Mapping[str, tuple[str, str]] = {
    "audit": ("edgeroute.trials.audit_setting_and_drift_monitor", "Audit"),
    "cache": ("edgeroute.stores.cache", "Cache"),
    "egress": ("edgeroute.cloud.egress_consent_and_redaction", "Egress"),
    "limits": ("edgeroute.core.spending_limits", "Limits"),
    "outbox": ("edgeroute.stores.outbox", "Outbox"),
}
UNITS = {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


# Argument -> test of its value, and the words for a value that fits.
FITS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "rules": (
        lambda rules: isinstance(rules, list | tuple) and all(isinstance(rule, Rule) for rule in rules),
        'a list of rules, as in rules=[Rule("heat", "prefer_cloud", enter=80)]',
    ),
    "score": (
        lambda score: isinstance(score, str) or callable(score),
        'a name, as in score="margin", or a function of the outputs of one input',
    ),
    "trace": (
        lambda trace: callable(trace) or isinstance(trace, str | os.PathLike) or _is_trace(trace),
        "a function, the path of a file, or an edgeroute.Trace",
    ),
    "metered": (lambda metered: callable(metered) or isinstance(metered, bool), "True, False, or a function that returns either"),
    "sensors": (callable, "a function that returns a Reading"),
    "views": (lambda views: isinstance(views, Mapping), 'a mapping such as {"edge": "image", "cloud": "jpeg"}'),
    "state": (lambda state: isinstance(state, str | os.PathLike), "the path of a folder"),
    "instruments": (
        lambda given: isinstance(given, Collection) and not isinstance(given, str | bytes | Mapping) and all(map(_hears, given)),
        "a list of instruments, objects with methods as edgeroute.Instrument has",
    ),
}


def _hears(instrument: Any) -> bool:
    """Return True if an object, which is no class, has a method of an instrument."""
    from edgeroute.record.instrument_interface import Instrument

    events = [name for name in vars(Instrument) if not name.startswith("_")]
    return not isinstance(instrument, type) and any(hasattr(instrument, event) for event in events)


def _is_trace(value: Any) -> bool:
    """Return True for a `Trace`. If its module is not imported, nothing can be one."""
    module = sys.modules.get("edgeroute.record.trace")
    return module is not None and isinstance(value, module.Trace)


def check_types(arguments: Mapping[str, Any]) -> None:
    """Check the types, units and ranges of a router's arguments; None counts as not given.

    Imports the modules of the classes that are given. Loads and calls nothing of them.

    Raises:
        PolicyError: a wrong type, or a number out of its range; the message names what to pass.
    """
    for name, (module, kind) in CLASSES.items():
        value = arguments.get(name)
        if value is not None and not isinstance(value, getattr(import_module(module), kind)):
            raise _wrong(name, f"an edgeroute.{kind}, as in {name}={kind}(...)", value)
    for name in ("limits", "audit"):  # plain data, which cannot refuse a number itself
        if arguments.get(name) is not None:
            from edgeroute.system.read_and_check_signatures import check_units

            check_units(type(arguments[name]), arguments[name]._asdict(), f"{name}: ")
    for side in ("edge", "cloud"):
        several = arguments.get(side)
        for target in several if isinstance(several, list | tuple) else [several]:
            for model in each(target):
                _check_not_estimator(side, model)
    trials = arguments.get("trial")
    for trial in trials if isinstance(trials, list | tuple) and not hasattr(trials, "shown") else [trials]:
        for side in ("edge", "cloud"):
            _check_not_estimator(side, getattr(trial, side, None))
    for name, (fits, words) in FITS.items():
        value = arguments.get(name)
        if value is not None and not fits(value):
            raise _wrong(name, words, value)
    for name in ("deadline", "first_token", "certificate_max_age", "sensors_every"):
        check_seconds(name, arguments.get(name))
    if not isinstance(arguments.get("hedge_after"), str):
        check_seconds("hedge_after", arguments.get("hedge_after"), least=True)


def is_float(value: Any) -> bool:
    """Return True if a real number fits into a float: not NaN, and no whole number above the largest float; infinity does."""
    try:
        return not isnan(value)
    except OverflowError:
        return False


def check_seconds(name: str, value: Any, *, least: bool = False) -> None:
    """Check a number of seconds; None counts as not given.

    Args:
        name: name of the argument, for the message.
        value: its value.
        least: True: 0 is allowed.

    Raises:
        PolicyError: the value is invalid; the message names what to write.
    """
    if value is None:
        return
    number = isinstance(value, Real) and not isinstance(value, bool) and is_float(value)
    if not number or not (value >= 0 if least else value > 0):
        quoted = value if isinstance(value, Real) else f"a {type(value).__name__}"
        wanted = "seconds, a number of 0 or more" if least else "seconds, a number of more than 0"
        raise PolicyError(f"{name}= takes {wanted}, not {quoted}{_in_seconds(name, value)}")


def _in_seconds(name: str, value: Any) -> str:
    """Return a hint how to write a duration as a number; empty if the value is no duration.

    A number in quotes counts as seconds.
    """
    if hasattr(value, "total_seconds"):
        return f": write {name}={value.total_seconds():.12g}"
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(ms|s|min|m|h|d|)\s*", value) if isinstance(value, str) else None
    if match is None:
        return ""
    return f": write {name}={float(match[1]) * UNITS.get(match[2], 1):.12g}" + (' ("2s" is for policy files)' if match[2] else "")


def _check_not_estimator(side: str, value: Any) -> None:
    """Raise PolicyError, with code to write instead, for an estimator, its method, or a class that is passed as a model.

    An estimator, as scikit-learn's, takes a table and not one input. One with `predict_proba` and other callables pass.
    """
    model = getattr(value, "__self__", value)
    estimator = next((name for name in ("predict_proba", "predict") if hasattr(model, name)), None)
    if isinstance(value, type) and (estimator or hasattr(value, "run") or hasattr(value, "talk")):
        raise _wrong(side, f"an object, as in {side}={value.__name__}(...)", value)
    foreign = value is not model and type(model).__module__.partition(".")[0] in ESTIMATORS
    if estimator is None or (callable(value) and not foreign) or hasattr(value, "run") or hasattr(value, "talk"):
        return
    several = isinstance(classes := getattr(model, "classes_", None), list) and hasattr(classes[0], "dtype")
    classifier = estimator == "predict_proba" and not several
    if classifier and (side == "edge" or value is model):
        return
    raise PolicyError(import_tool("inspect.conversion_advice").of_estimator(side, value, classifier=classifier))


def _wrong(name: str, wanted: str, value: Any) -> PolicyError:
    """Return, not raise, the PolicyError for an argument of another type; quotes only a bool, since a value may hold secrets."""
    type_text = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
    return PolicyError(f"{name}= takes {wanted}, not {value if isinstance(value, bool) else type_text}")


_MODEL_FILES = ".onnx", ".ort", ".gguf", ".tflite", ".mlpackage", ".mlmodel", ".joblib", ".pkl", ".pt", ".keras"
_LOCAL = 'write large = Router(model, mode="only_edge"), and cloud=lambda x: large.infer(x).value'


def checked_cloud(cloud: Any) -> Any:
    """Check an argument `cloud`, and return it; for a URL return a new endpoint of the Open Inference Protocol.

    Opens no connection.

    Raises:
        PolicyError: it is neither the URL of a model, nor an endpoint, nor a callable; the message names what to write.
    """
    if isinstance(cloud, str):
        from edgeroute.cloud.openinference import OpenInference
        from edgeroute.http.messages_addresses_and_secrets import bare, chat_advice

        if "://" not in cloud and (cloud[:1] in {"/", ".", "~", "\\"} or cloud.lower().endswith(_MODEL_FILES)):
            file = cloud if bare(cloud).startswith("'") else "FILE"
            raise PolicyError(f"cloud= takes no model file: {_LOCAL}; or run `edgeroute serve {file}`, and pass its URL")
        if "/v2/models/" not in cloud:
            advice = import_tool("inspect.conversion_advice")
            raise PolicyError(advice.of_address(bare(cloud), chats=bool(chat_advice(cloud))))
        return OpenInference(cloud)
    from edgeroute.cloud.function_backend_and_reply_checks import Function

    if hasattr(cloud, "talk") or callable(cloud) or isinstance(cloud, Function) or hasattr(cloud, "predict_proba"):
        return cloud
    local = f": {_LOCAL}" if is_model(cloud) or isinstance(cloud, os.PathLike) else ""
    raise PolicyError(f"cloud= takes a URL, an endpoint or a callable, not {type(cloud).__name__}{local}")


def threshold_advice(value: Any) -> str:
    """Return how to write a percentage or a certificate's path as a threshold, after a colon; empty for all other values."""
    if isinstance(value, str) and value.endswith("%"):
        return ": 85 % is 0.85"
    file = isinstance(value, os.PathLike) or str(value).endswith(".json")
    return ": a certificate's file is Certificate.load(path)" if file else ""
