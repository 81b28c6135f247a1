"""oneshot: the replication lab for one-shot RLVR."""

__version__ = "0.1.0"
