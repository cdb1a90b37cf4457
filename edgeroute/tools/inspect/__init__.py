"""Guesses of a model's card from its file and trial runs."""
