"""A run on disk: opened, built, carried out, repaired, analysed."""
