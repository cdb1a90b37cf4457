"""Private conversations for examples: those of a state folder are recognised, and the examples add none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from edgeroute.router.private_conversations_and_digest_store import Digests, PrivateConversations, Submit


class _KnownDigests(Digests):
    """Digests of a file, which are read as other processes add to it; none is added here."""

    def add(self, digests: Iterable[bytes]) -> None:
        """Store nothing: an example is nobody's conversation, even where the edge alone is asked."""


class KnownConversations(PrivateConversations):
    """Recogniser of the conversations that a state folder knows as private, which stores nothing.

    Args:
        path: path of the file with the digests; None: there is none.
        submit: runs a job in a thread, or returns False if there is none.
    """

    def __init__(self, path: Path | None, submit: Submit) -> None:
        super().__init__(None, submit)
        self._digests = _KnownDigests(path, submit)
