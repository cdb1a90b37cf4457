"""Fleet simulation: many devices against one cloud, through an outage."""
