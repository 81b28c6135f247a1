"""A policy and prompts -> completions: the engine interface and its implementations."""
