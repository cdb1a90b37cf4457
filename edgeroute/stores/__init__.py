"""Storage on disk or between requests: answer cache, outbox, journals and key-value state, with their locks and SQLite."""
