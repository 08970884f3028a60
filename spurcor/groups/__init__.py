"""Inference of groups that nobody annotated, as pure functions of tables."""
