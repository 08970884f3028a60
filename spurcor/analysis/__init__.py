"""Analyses of a run: the gradient flow of its groups, and selective classification."""
