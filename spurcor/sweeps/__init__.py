"""Sweeps on disk: their points, the state of each point, and how points are run."""
