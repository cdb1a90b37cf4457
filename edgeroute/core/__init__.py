"""The decisions, pure: no clock, no I/O, nothing but the standard library. Time comes in as a number of seconds."""
