"""Two models or endpoints compared on the same requests: A/B, audits, shadow runs, and alarms when they drift."""
