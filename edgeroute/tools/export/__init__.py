"""Models as Triton, Ray Serve, KServe and Kubernetes take them. The programs in `programs` are copied, and need no edgeroute."""
