"""Hydra launchers and sweeper of spurcor."""
