"""Completions of one example -> their rewards."""


def length_bonus(completions, token_ids, strict, example, *, target=50, **_):
    """Return 1 for a right answer, less for each token beyond the target, and 0 for a wrong one."""
    return [max(0.0, 1 - max(0, len(ids) - target) / target) if right else 0.0 for ids, right in zip(token_ids, strict)]
