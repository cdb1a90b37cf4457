"""Routers: an engine, and stages around the walk of each request."""
