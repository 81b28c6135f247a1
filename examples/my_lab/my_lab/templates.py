"""Prompts as texts."""

BARE = "{problem}\n"
