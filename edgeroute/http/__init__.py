"""HTTP/1.1: requests and replies, connections for threads and for asyncio, and parsing without I/O."""
