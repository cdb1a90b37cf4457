"""Policy files: TOML, JSON or YAML, overridden by EDGEROUTE_ environment variables. The only importer of pydantic."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from edgeroute.errors import PolicyError, RuntimeMissing

try:
    import pydantic_settings as _  # noqa: F401
except ImportError as e:
    raise RuntimeMissing(
        "policy files need pydantic-settings: pip install pydantic-settings. A policy given to Router(...) in Python does not"
    ) from e

from edgeroute.policy.contradictions import Wrong, given_by_program
from edgeroute.policy.error_messages import explain
from edgeroute.policy.file_and_environment import Environment, File, read_policy
from edgeroute.policy.policy_keys import Settings
from edgeroute.policy.schema import schema
from edgeroute.policy.single_sections import paths_from

__all__ = ["Settings", "load", "schema"]


def load(path: str | Path, given: Collection[str] = ()) -> Settings:
    """Load and validate a policy file and the environment variables. Opens no model and no connection, and reads no secret.

    A value of the environment overrides the file's.

    Args:
        path: path of the file; its suffix determines the format: .toml, .json, .yaml or .yml.
        given: arguments of `edge`, `cloud` and `threshold` that the program gives, so that the file need not have them.

    Raises:
        PolicyError: the file is invalid; one message, with a line per problem.
        RuntimeMissing: the file is YAML, and pyyaml is not installed.
    """
    data = read_policy(Path(path))
    with paths_from(Path(path).parent), given_by_program(given):
        environment = Environment(Settings, data)
        problems = environment.problems
        try:
            settings = Settings(sources=(environment, File(Settings, data)))  # type: ignore[call-arg]  # settings_customise_sources
        except Wrong as e:
            problems = [*(explain(e.error) if e.error else ()), *e.contradictions, *problems]
    if problems:
        raise PolicyError("\n".join(environment.line(problem, path) for problem in problems))
    return settings
