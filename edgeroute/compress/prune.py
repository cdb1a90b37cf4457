def prune() -> None:
    """To come."""
