"""Learnt gates on weights, and the clusters and de-biasing sets that they are trained on."""
