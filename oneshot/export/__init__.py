"""A finished trial -> a model that others load: a folder, and a repository on a hub (MLflow: sweep/registry.py)."""
