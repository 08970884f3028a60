"""What is shown to people: tables, curves, pictures, statistics."""
