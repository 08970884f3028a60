"""Configuration: what a run is made from, checked before anything is built."""
