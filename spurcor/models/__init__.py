"""Code shared by all backbones: layers, heads, weights, features."""
