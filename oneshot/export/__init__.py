"""A finished trial -> a model folder, and a repository on a hub (MLflow: sweep/tracking/registry.py)."""
