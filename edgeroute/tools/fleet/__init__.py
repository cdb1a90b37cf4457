"""The owner's side of a fleet: tables of its digests, reports, alarms, and policies that are rolled out."""
