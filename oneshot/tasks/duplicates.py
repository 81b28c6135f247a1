"""Texts of problems -> which of them are exactly or nearly the same.

Two problems are near duplicates if they share enough of either one's shingles, which are runs of 40 letters and digits:
more than half to be called a leak, which pairs that differ in a number do; more than a quarter to be kept out of `val`,
which pairs that share a sentence do. A text that is shorter than one shingle resembles no other: `10+77=?` and
`107+7=?` have the same letters and digits. Such texts are duplicates only if they are equal.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

SHINGLE = 40  # characters per shingle
LEAK_SHARE, SIMILAR_SHARE = 0.5, 0.25  # parts of either one's shingles
_OTHERS = re.compile(r"[\W_]+")


def shingles(prompt: str) -> set[str]:
    """Return every run of 40 letters and digits in a problem; the whole text if it is shorter than that."""
    text = _OTHERS.sub("", prompt.lower())
    if len(text) < SHINGLE:
        return {prompt.strip()}
    return {text[start : start + SHINGLE] for start in range(len(text) - SHINGLE + 1)}


class Index:
    """Problems by their shingles, so that a problem is compared only with those that share one with it."""

    def __init__(self, prompts: Iterable[str]) -> None:
        self._places: dict[str, list[int]] = {}
        self._sizes: list[int] = []
        for place, prompt in enumerate(prompts):
            pieces = shingles(prompt)
            self._sizes.append(len(pieces))
            for piece in pieces:
                self._places.setdefault(piece, []).append(place)

    def near(self, prompt: str, *, share: float = LEAK_SHARE) -> list[int]:
        """Return the places of the problems that share more than this part with a problem, in order; its own too."""
        pieces = shingles(prompt)
        if self._places.keys().isdisjoint(pieces):
            return []
        shared = Counter(place for piece in pieces for place in self._places.get(piece, ()))
        return sorted(place for place, count in shared.items() if count > share * min(len(pieces), self._sizes[place]))


def near_duplicates(rows: Sequence[str], tested: Sequence[str]) -> list[int]:
    """Return the rows that are similar to a tested problem."""
    index = Index(tested)
    return [row for row, prompt in enumerate(rows) if index.near(prompt, share=SIMILAR_SHARE)]
