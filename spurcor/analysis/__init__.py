"""Analyses, one file each."""
