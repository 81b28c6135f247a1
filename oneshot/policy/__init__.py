"""The model that computes: loading, weights, attention over packs, the output head, several processes."""
