"""The version of oneshot."""

__version__ = "0.1.0"
