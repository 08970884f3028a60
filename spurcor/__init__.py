"""Train, repair and dissect image classifiers that learn shortcuts."""
