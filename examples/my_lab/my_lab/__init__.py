"""Parts of one's own for oneshot. Nothing here imports oneshot."""
