"""Operating-system utilities: files, locks, signals and the terminal."""
