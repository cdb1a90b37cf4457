"""Storage that outlives a request: answer cache, outbox, journals and key-value state, with their locks and SQLite."""
