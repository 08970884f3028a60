"""Configuration, checked before anything is built."""
