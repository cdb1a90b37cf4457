"""Contracts of models and endpoints, which a package with one of its own runs in its tests."""
