"""Presentation of results: tables, curves, pictures and statistics."""
