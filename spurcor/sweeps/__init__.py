"""A sweep on disk: its points, how far they are, how they are carried out."""
