"""The machine: files, locks, signals, the terminal; nothing of machine learning."""
