"""Deep Feature Reweighting, as pure functions of feature tables."""
