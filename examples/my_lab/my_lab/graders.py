"""Completion and answer -> right or wrong."""

import re


def exact(completion, answer):
    """Return whether the last box is the answer to the letter; None if there are two boxes that differ."""
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", completion)
    if len(set(boxes)) > 1:
        return None
    return boxes[-1:] == [answer]
