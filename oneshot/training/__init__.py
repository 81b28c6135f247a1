"""The algorithm of a trial: one GRPO training, without an orchestrator."""
