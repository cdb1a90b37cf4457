"""HTTP/1.1: requests and replies, connections for threads and for asyncio, and reading without I/O."""
