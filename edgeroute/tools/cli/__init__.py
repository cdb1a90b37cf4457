"""Command line of edgeroute. Each command's imports happen when it runs, so that `--help` is fast."""
