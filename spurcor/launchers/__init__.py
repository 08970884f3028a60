"""Hydra's way into spurcor."""
