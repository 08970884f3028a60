"""Gates on weights, and the clusters and sets that they are learnt on."""
