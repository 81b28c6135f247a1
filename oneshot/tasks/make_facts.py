"""Write the digests that ship for known sets: `python -m oneshot.tasks.make_facts`, with the files at hand.

Writes `tasks/facts/<set>.sha256` (of each row, sha256 of prompt and of answer) and `tasks/facts/val.json`: 200 rows of
dsr_sub, drawn by a fixed seed from those that have no alias, stand there once, have a label that can be graded, and
resemble no problem of a test suite.
"""

import json
import random
from collections import Counter

from oneshot.tasks import sets
from oneshot.tasks.examples import aliases
from oneshot.tasks.grading import grade
from oneshot.tasks.problems import load_file

WITH_DIGESTS = ("dsr_sub", "math500", "aime24", "aime25", "amc23")
TEST_SUITES = WITH_DIGESTS[1:]
NUM_VAL = 200
SHINGLE = 40
"""Characters; two problems are near where they share more than a quarter of one's."""
NEAR_SHARE = 0.25
KNOWN_NEAR = {708: "OlympiadBench's problem 65"}
"""Found by the same measure with files that are not among the above."""


def shingles(prompt: str) -> set[str]:
    """Every run of 40 letters and digits of a problem."""
    text = "".join(character for character in prompt.lower() if character.isalnum())
    return {text[start : start + SHINGLE] for start in range(max(1, len(text) - SHINGLE + 1))}


def near_duplicates(rows: list[str], tested: list[str]) -> list[int]:
    """Rows of which more than a quarter of the shingles stand in one tested problem, or the other way round."""
    suites = [shingles(prompt) for prompt in tested]
    near = []
    for row, prompt in enumerate(rows):
        mine = shingles(prompt)
        if any(len(mine & other) > NEAR_SHARE * min(len(mine), len(other)) for other in suites):
            near.append(row)
    return near


def draw_val() -> list[int]:
    """The rows of `val`, sorted."""
    prompts = {name: [p.prompt for p in load_file(str(sets.local_path(name)))] for name in WITH_DIGESTS}
    rows = prompts["dsr_sub"]
    tested = [prompt for name in TEST_SUITES for prompt in prompts[name]]
    times = Counter(rows)
    excluded = {row for row, prompt in enumerate(rows) if times[prompt] > 1}
    excluded |= {int(str(alias["row"]).partition(":")[2]) for alias in aliases().values()}
    excluded |= {*near_duplicates(rows, tested), *KNOWN_NEAR}
    labels = [problem.answer for problem in load_file(str(sets.local_path("dsr_sub")))]
    excluded |= {
        row for row, label in enumerate(labels) if not label or grade(f"\\boxed{{{label}}}", label).strict is not True
    }
    return sorted(random.Random("val 0").sample([row for row in range(len(rows)) if row not in excluded], NUM_VAL))


def main() -> None:
    """Writes the files."""
    for name in WITH_DIGESTS:
        found = load_file(str(sets.local_path(name)))
        lines = [" ".join(problem.content) for problem in found]
        (sets.FACTS / f"{name}.sha256").write_text("\n".join(lines) + "\n")
    facts = {"of": "dsr_sub", "made_by": "python -m oneshot.tasks.make_facts", "rows": draw_val()}
    (sets.FACTS / "val.json").write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
