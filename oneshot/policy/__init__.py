"""The policy: loading a model, its weights, attention over packs, the output head, several processes."""
