"""A seed and a step -> the examples of the step."""

import numpy as np

_SHUFFLE = 0x5E7  # separates the random stream of the examples' order from the completions' random table


def shuffled(number: int, *, seed: int, epoch: int) -> list[int]:
    """Return the numbers below `number` in the order of an epoch."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch, _SHUFFLE))))
    return [int(place) for place in generator.permutation(number)]


def groups_of_step(num_examples: int, num_groups: int, *, seed: int, step: int) -> list[int]:
    """Return the example of each of a step's groups.

    If there are at most as many examples as groups, they take turns, so that an update on some of the groups sees them
    all. With more examples, each step takes the next ones of a shuffled order. The order is drawn again when too few
    are left for a step, as with the released dataloader's `drop_last`.
    """
    if num_examples <= num_groups:
        return [group % num_examples for group in range(num_groups)]
    epoch, position = divmod(step, num_examples // num_groups)
    return shuffled(num_examples, seed=seed, epoch=epoch)[position * num_groups : (position + 1) * num_groups]


def first_visits(num_examples: int, num_groups: int, *, seed: int, step: int) -> set[int]:
    """Return the examples of a step that no earlier step has visited. An epoch leaves some for later ones."""
    if num_examples <= num_groups:
        return set() if step else set(range(num_examples))
    steps_per_epoch = num_examples // num_groups
    new = set(groups_of_step(num_examples, num_groups, seed=seed, step=step))
    for epoch in range(step // steps_per_epoch):
        if not new:
            break
        new -= set(shuffled(num_examples, seed=seed, epoch=epoch)[: steps_per_epoch * num_groups])
    return new


def batch_of_step(number: int, batch_size: int, *, seed: int, step: int) -> list[int]:
    """Return the solutions of a step of SFT: the next ones of a shuffled order; an epoch's last step takes the rest."""
    epoch, position = divmod(step, -(-number // batch_size))
    return shuffled(number, seed=seed, epoch=epoch)[position * batch_size : (position + 1) * batch_size]
