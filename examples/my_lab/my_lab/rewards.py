"""Completions of one example -> their rewards."""


def length_bonus(completions, token_ids, strict, example, *, target=50, **_):
    """Return 1 for a right answer, less for each token beyond the target, and 0 for a wrong one."""
    rewards = []
    for ids, right in zip(token_ids, strict, strict=True):
        beyond = max(0, len(ids) - target)
        rewards.append(max(0.0, 1 - beyond / target) if right else 0.0)
    return rewards
