"""The command line. What a command needs is imported when it runs, so that `--help` is quick."""
