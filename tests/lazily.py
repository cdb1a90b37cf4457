"""Imports that wait for the first test that uses them: every worker collects all tests, and most need none of these modules."""

from __future__ import annotations

import importlib
import importlib.util

import pytest


class Later:
    """A module that is imported once a public name of it is read. A test that reads one is skipped where it is not installed."""

    def __init__(self, name):
        self._name = name

    def __getattr__(self, name):
        if name.startswith("_"):  # which pytest tries on all that a test module names
            raise AttributeError(name)
        needs(self._name.partition(".")[0])
        return getattr(importlib.import_module(self._name), name)


def needs(*names):
    """Skips the test, or the test module, that calls this unless these top modules can be found; it imports none of them."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"could not import {name!r}: it is not installed", allow_module_level=True)
