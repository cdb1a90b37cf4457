"""Models as other servers take them: Triton, Ray Serve, KServe, Kubernetes. Programs of `programs` are copied, and need no edgeroute."""
