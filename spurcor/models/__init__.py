"""What backbones have in common: layers, heads, weights, features."""
