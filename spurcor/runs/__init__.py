"""A run on disk: opening, building, training, repairing and analysing it."""
