"""A device's part of a fleet: counts of its requests by day, without inputs and answers, and their way to the owner."""
