"""Pure decision rules: no clock, no I/O, standard library only. Times are passed in, in seconds."""
