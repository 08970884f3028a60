"""Deep Feature Reweighting: pure functions of feature tables."""
