"""How results are shown: tables, curves, pictures, statistics."""
