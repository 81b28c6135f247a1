"""Prompts -> completions sampled from a policy: the engine interface and its implementations."""
