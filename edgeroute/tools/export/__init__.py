"""Export of models to folders for Triton, Ray Serve, KServe and Kubernetes.

The programs in `programs` are copied into the folders, and need no edgeroute; the files in `templates` are filled with values.
"""
