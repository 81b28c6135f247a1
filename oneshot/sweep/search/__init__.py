"""The search phase of a sweep: the only home of Optuna."""
