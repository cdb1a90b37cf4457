"""Looks at models and routers before use: guesses of a model's card, `check` and `decide`, settings that can never work."""
