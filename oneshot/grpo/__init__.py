"""One trial: GRPO on a few examples, with no orchestrator around it."""
