"""The routers: an engine of parts, and stages around the walk of each request."""
