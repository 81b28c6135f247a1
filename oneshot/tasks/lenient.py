"""Completion and label -> whether any answer that can be extracted from the completion is right, by our own grader.

A box wins over all else, and several boxes side by side are a list. Without a box, the answer is what is marked as
such, or else what math-verify extracts.
"""

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

from oneshot.tasks.answers import extract_boxes, extract_marked
from oneshot.tasks.equality import equal


def lenient_equal(completion: str, label: str) -> bool:
    """Return whether the extracted answer is equal to the label."""
    boxes = extract_boxes(completion)
    if boxes:
        return equal(boxes[-1], label) or (len(boxes) > 1 and equal(", ".join(boxes), label))
    marked = extract_marked(completion)
    if marked is not None:
        return equal(marked, label)
    extracted = parse(
        completion,
        extraction_config=[LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()],
        parsing_timeout=None,  # type: ignore[arg-type]  # math-verify accepts None (no alarm), its annotation does not
        raise_on_error=True,
    )
    return any(equal(text, label) for text in extracted if isinstance(text, str) and text.strip())
