"""The algorithm of a trial: one GRPO training, with no orchestrator around it."""
