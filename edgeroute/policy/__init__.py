"""Policy files: TOML, JSON or YAML, overridden by EDGEROUTE_ environment variables. The only importer of pydantic."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from edgeroute.catalog.signed_policy_follower import Standing, in_force, orders, standing, state_folder
from edgeroute.errors import ModelMissing, PolicyError, RuntimeMissing

try:
    import pydantic_settings as _  # noqa: F401
except ImportError as e:
    raise RuntimeMissing("policy files need it: pip install pydantic-settings; Router(...) in Python does not") from e

from edgeroute.policy.file_and_environment import Environment, File, read_policy
from edgeroute.policy.json_schema import schema
from edgeroute.policy.policy_problems_and_contradictions import Problem, Wrong, given_by_program
from edgeroute.policy.policy_settings import MISSPELT, Settings, corrected, explain, missing_files
from edgeroute.policy.single_sections import Limits, paths_from

__all__ = ["Settings", "load", "schema"]


def load(path: str | Path, given: Collection[str] = (), *, complete: bool = False, state: str | Path | None = None) -> Settings:
    """Load and validate a policy file and the environment variables. Opens no model and no connection, and reads no secret.

    A value of the environment overrides the file's. A signed policy that the device follows counts above the file, and its
    owner's orders above all. A misspelt key is a problem, and its value is checked as that of the key that was meant.

    Args:
        path: path of the file; its suffix determines the format: .toml, .json, .yaml or .yml.
        given: arguments of `edge`, `cloud`, `threshold` and `state` that the program gives, so that the file need not have them.
        complete: also report missing models, cards, certificates and scores.
        state: state folder that the program gives; there is the signed policy that the device follows.

    Raises:
        PolicyError: the file is invalid; one message, with a line per problem.
        ModelMissing: files of models are missing, and nothing else is wrong.
        RuntimeMissing: the file is YAML, and pyyaml is not installed.
    """
    folder = Path(path).parent
    data = in_force(read_policy(Path(path)), folder, state)
    with paths_from(folder), given_by_program(given):
        settings, environment, problems = _validate(data)
        while better := corrected(data, problems):
            data, (_, environment, rest) = better, _validate(better)
            problems = [*(p for p in problems if p in rest or MISSPELT.match(p.text)), *(p for p in rest if p not in problems)]
    wrong = {p.key for p in problems}
    missing = [p for p in missing_files(data, folder, given) if p.key not in wrong and not environment.variable(p.key)]
    if lines := [environment.line(problem, path) for problem in [*problems, *(missing if complete else ())]]:
        of_models = not problems and not any("certificate" in problem.text for problem in missing)
        raise (ModelMissing if of_models else PolicyError)("\n".join(lines))
    home = state_folder(data, folder, state)
    return settings if home is None else _with_orders(settings, standing(home))


def _with_orders(settings: Settings, known: Standing) -> Settings:
    """Return a copy of settings under the orders of the device's owner: other limits of spending, or mode `only_edge`.

    They count above the file and the variables. Without orders the settings are returned themselves, and without an edge the mode
    stays.
    """
    limits = settings.limits or Limits.model_validate({})
    changes: dict[str, Any] = {}
    if ordered := orders(known, limits.model_dump()):
        changes["limits"] = limits.model_copy(update=ordered)
    if known.only_edge and settings.edge:
        changes["mode"] = "only_edge"
    return settings.model_copy(update=changes) if changes else settings


def _validate(data: dict[str, Any]) -> tuple[Any, Environment, list[Problem]]:
    """Validate a policy that was read, with the environment's variables. Return its settings, the variables, and the problems.

    The settings are None if pydantic found a problem; problems of variables alone leave them.
    """
    environment = Environment(Settings, data)
    problems = environment.problems
    settings = None
    try:
        settings = Settings(sources=(environment, File(Settings, data)))  # type: ignore[call-arg]  # settings_customise_sources
    except Wrong as e:
        problems = [*(explain(e.error) if e.error else ()), *e.contradictions, *problems]
    return settings, environment, problems
