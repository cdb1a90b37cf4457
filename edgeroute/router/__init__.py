"""The routers: an engine, and stages around the walk of each request."""
